#!/usr/bin/env python3
"""Compiles the kernels of losses and layers twice and holds them to what can be seen without a GPU.

Both builds, made in different folders, are equal to the byte; no kernel spills or has a stack; registers,
instructions and instructions of the special function unit stay within the crates' budgets.json. `check.py --bless`
writes what it finds there. nvcc and cuobjdump come from .toolchain (toolkit.sh) or PATH.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

PLUGINS = pathlib.Path(__file__).resolve().parents[2]
TOOLS = PLUGINS.parent / ".toolchain"
# Kernels of the second include headers of the first.
CRATES = ["losses", "models"]
SLACK = 1.05
REGISTERS = re.compile(r"Used (\d+) registers")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)")


def compile_all(sources, out):
    """Fat binaries in `out`; the compiler's report of each image."""
    lines = dict(line.split(" ", 1) for line in (sources / "images.txt").read_text().splitlines())
    flags = lines.pop("flags").split()

    def compile_one(name):
        command = ["nvcc", *flags, *lines[name].split(), f"{name}.cu", "-o", out / f"{name}.fatbin"]
        done = subprocess.run(command, cwd=sources, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {name}.cu\n{done.stderr}")
        return name, done.stderr

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(compile_one, lines))


def registers_of(report):
    """Registers by kernel; a kernel with a stack or a spill is an error."""
    registers, name = {}, None
    for line in report.splitlines():
        if "entry function '" in line:
            name = line.split("'")[1]
        if (stack := STACK.search(line)) and any(int(size) for size in stack.groups()):
            sys.exit(f"error: {name} has {stack[0]}")
        if used := REGISTERS.search(line):
            registers[name] = int(used[1])
    return registers


def instructions_of(image):
    """Instructions, and those of the special function unit, by kernel."""
    text = subprocess.run(["cuobjdump", "-sass", image], check=True, capture_output=True, text=True).stdout
    counts, name = {}, None
    for line in text.splitlines():
        if "Function : " in line:
            name = line.split("Function : ")[1].strip()
            counts[name] = [0, 0]
        elif name and (found := INSTRUCTION.match(line)):
            counts[name][0] += 1
            counts[name][1] += found[1] == "MUFU"
    return counts


def measure(crate, folder, elsewhere):
    """Every kernel's figures, after the comparison of two builds."""
    first, second = (folder / crate / name for name in ("first", "second"))
    first.mkdir(parents=True), second.mkdir()
    reports = compile_all(PLUGINS / crate / "cuda", first)
    compile_all(elsewhere / crate / "cuda", second)
    found = {}
    for name, report in reports.items():
        image = first / f"{name}.fatbin"
        if image.read_bytes() != (second / image.name).read_bytes():
            sys.exit(f"error: two builds of {name}.cu differ")
        registers = registers_of(report)
        for kernel, (instructions, special) in instructions_of(image).items():
            found[kernel] = {"registers": registers[kernel], "instructions": instructions, "special": special}
    size = sum(image.stat().st_size for image in first.iterdir())
    return found, size


def over_budget(crate, found, is_blessed):
    """What is wrong, in words."""
    budgets = PLUGINS / crate / "cuda/budgets.json"
    if is_blessed:
        lines = [f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
        budgets.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    budget = json.loads(budgets.read_text())
    problems = [f"{name}: in one of kernels and budgets.json only" for name in budget.keys() ^ found.keys()]
    for name in sorted(budget.keys() & found.keys()):
        for what, most in budget[name].items():
            if found[name][what] > most * SLACK:
                problems.append(f"{name}: {found[name][what]} {what}, budget {most}")
    return problems


def main():
    os.environ["PATH"] = ":".join(
        [str(TOOLS / "cu/nvidia/cu13/bin"), str(TOOLS / "dis/nvidia/cu13/bin"), os.environ["PATH"]]
    )
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        elsewhere = folder / "elsewhere"
        for crate in CRATES:
            shutil.copytree(PLUGINS / crate / "cuda", elsewhere / crate / "cuda")
        for crate in CRATES:
            found, size = measure(crate, folder, elsewhere)
            problems += over_budget(crate, found, "--bless" in sys.argv)
            print(f"{crate}: {len(found)} kernels, {size} bytes: two builds equal, no spill")
    if problems:
        sys.exit("error: kernels over budget (check.py --bless takes them as they are)\n" + "\n".join(problems))
    print("within budget")


main()
