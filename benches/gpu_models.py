#!/usr/bin/env python3
"""Whole pipelines on a GPU: agreement with the CPU, resume, then a distillation step beside PyTorch. Writes one JSON.

    plugins/cuda/build.sh                                   # anywhere; copy target/cuda/release/{limbeck,*.so} and benches/
    python3 benches/gpu_models.py --build DIR --out FILE    # on the machine with the GPU; --torch PYTHON compares with it
    python3 benches/gpu_models.py --build target/release --rehearse --out FILE   # no GPU: the CPU against itself, small

A pipeline whose plugins do not compute on the device is recorded as refused, with the reason, and counts as not shown.
Standard library alone, but for the peer, which runs in the Python of --torch (PyTorch and transformers).
"""

import argparse
import json
import os
import platform
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "pipelines/data/digits.csv.gz"
FILES = ["limbeck"] + [f"liblimbeck_{name}.so" for name in ["losses", "schedulers", "students", "teachers"]]
STEPS = 20
# Loss of step k, relative: f32 sums in another order, which k steps of Adam carry on.
LOSS_BOUND = 1e-3
# Weights after them, relative to the largest.
WEIGHT_BOUND = 5e-3
# Both for a student in bf16, whose gradients are those at rounded weights.
BF16_BOUND = 5e-2
REFUSED = 69

ROWS = """version: 1
name: NAME
seed: 3
device: DEVICE
dtype: DTYPE
datasets:
  all: {format: csv, path: digits.csv.gz, tensors: {pixel_values: {columns: [0, 63], scale: 0.0625, shape: SHAPE}}, label: 64}
data: {train: all, valid: all}
batch: {size: 32}
optimizer: {kind: adamw, lr: 1e-3}
eval: {metrics: [accuracy]}
student: STUDENT
stages:
  - {name: teacher, kind: train, loss: [{uses: limbeck.ce}], steps: 20}
  - {name: distilled, kind: distill, teacher: {from: teacher}, loss: [{uses: limbeck.kl, with: {temperature: 2.0}}], steps: 20}
  - {name: export, kind: export, model: {from: distilled}, format: hf}
"""

TEXT = """version: 1
name: NAME
seed: 3
device: DEVICE
dtype: DTYPE
tokenizer: {path: tokenizer.json, max_length: LENGTH}
datasets:
  all: {format: jsonl, path: rows.jsonl, text: text, label: label}
data: {train: all, valid: all}
batch: {size: BATCH}
optimizer: {kind: adamw, lr: 1e-4, weight_decay: 0.01}
eval: {metrics: [accuracy]}
stages:
  - {name: teacher, kind: train, student: TEACHER, loss: [{uses: limbeck.ce}], steps: FIRST}
  - name: distilled
    kind: distill
    student: STUDENT
    teacher: {from: teacher}
    loss: [{uses: limbeck.kl, with: {temperature: 2.0}}]
    steps: SECOND
  - {name: export, kind: export, model: {from: distilled}, format: hf}
"""


def model(kind, dim, layers, heads, vocab, length, dropout):
    settings = {
        "classes": 2, "vocab_size": vocab, "max_positions": length, "dim": dim, "layers": layers, "heads": heads,
        "dropout": dropout, "attention_dropout": dropout, "head_dropout": dropout,
    }
    return json.dumps({"uses": f"limbeck.{kind}", "with": settings})


def write_text(folder, vocab, length, rows):
    words = {"[PAD]": 0, **{f"w{i}": i for i in range(1, vocab)}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[PAD]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    draw = random.Random(7)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for i in range(rows):
            text = " ".join(f"w{draw.randrange(1, vocab)}" for _ in range(length))
            file.write(json.dumps({"text": text, "label": i % 2}) + "\n")


def pipeline(folder, name, device, template, **values):
    text = template.replace("NAME", name).replace("DEVICE", device)
    for key, value in values.items():
        text = text.replace(key, str(value))
    path = folder / f"{name}-{device.replace(':', '')}.yaml"
    path.write_text(text)
    return path


def run(build, path, runs, *more):
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [build / "limbeck", "--json", "run", path, "--runs", runs, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def refusal(done):
    lines = [line for line in (done.stderr + done.stdout).splitlines() if "LMB08" in line]
    return lines[0][:300] if lines else (done.stderr or done.stdout)[-300:]


def losses(runs):
    text = next(runs.glob("*/*/metrics.jsonl")).read_text()
    return [row["loss"] for row in map(json.loads, text.splitlines()) if "loss" in row]


def weights(runs):
    """f32 tensors by name."""
    data = next(runs.glob("*/*/stages/*/out/model.safetensors")).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            tensors[name] = struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
    return data, tensors


def relative(a, b):
    scale = max((abs(x) for x in b), default=0.0) or 1.0
    return max((abs(x - y) for x, y in zip(a, b)), default=0.0) / scale


def agreement(build, device, dtype, make, folder):
    """The same pipeline on the CPU and on the device, then on the device in two parts."""
    record = {"steps": STEPS, "dtype": dtype}
    for place in ["cpu", device]:
        done = run(build, make(place), folder / f"runs-{place.replace(':', '')}")
        if done.returncode:
            return {**record, "shown": False, "exit": done.returncode, "on": place, "reason": refusal(done)}
    (cpu, here) = (folder / "runs-cpu", folder / f"runs-{device.replace(':', '')}")
    a, b = losses(cpu), losses(here)
    record["loss"] = max(abs(x - y) / max(abs(x), 1e-6) for x, y in zip(a, b)) if len(a) == len(b) else None
    (_, on_cpu), (bytes_whole, on_device) = weights(cpu), weights(here)
    record["weights"] = max(relative(on_device[name], on_cpu[name]) for name in on_cpu)
    parts = folder / "runs-parts"
    for limit in [["--max-steps", "7"], []]:
        done = run(build, make(device), parts, *limit)
    record["resume_bit_for_bit"] = done.returncode == 0 and weights(parts)[0] == bytes_whole
    bounds = {"loss": LOSS_BOUND, "weights": WEIGHT_BOUND} if dtype == "f32" else dict.fromkeys(["loss", "weights"], BF16_BOUND)
    record["bounds"] = bounds
    within = record["loss"] is not None and record["loss"] < bounds["loss"] and record["weights"] < bounds["weights"]
    record["shown"] = within and record["resume_bit_for_bit"]
    return record


def agreements(build, device):
    small = {"vocab": 60, "length": 16, "dropout": 0.1}
    mlp = {"SHAPE": "[64]", "STUDENT": "{uses: limbeck.mlp, with: {inputs: 64, hidden: [64, 32], classes: 10, dropout: 0.1}}"}
    cases = {
        "mlp": (ROWS, mlp),
        "mlp bf16": (ROWS, {**mlp, "DTYPE": "bf16"}),
        "cnn": (ROWS, {"SHAPE": "[1, 8, 8]", "STUDENT": "{uses: limbeck.cnn, with: {image: [1, 8, 8], channels: [8, 16], hidden: [32], classes: 10}}"}),
        "bert to distilbert": (
            TEXT,
            {
                "LENGTH": 16, "BATCH": 16, "FIRST": STEPS, "SECOND": STEPS,
                "TEACHER": model("bert", 32, 2, 2, **small), "STUDENT": model("distilbert", 32, 1, 2, **small),
            },
        ),
    }
    records = {}
    for name, (template, values) in cases.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "digits.csv.gz").write_bytes(DIGITS.read_bytes())
            write_text(folder, small["vocab"], small["length"], 64)
            plain, values = name.replace(" ", "-"), {"DTYPE": "f32", **values}
            make = lambda place: pipeline(folder, plain, place, template, **values)
            records[name] = agreement(build, device, values["DTYPE"], make, folder)
        print(f"agreement  {name}: {json.dumps(records[name])}")
    return records


class Memory(threading.Thread):
    """The largest memory of a process on the GPU, in MiB, as nvidia-smi tells it."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = str(pid), None, threading.Event()

    def run(self):
        ask = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        while not self.ended.wait(0.2):
            try:
                out = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
            except FileNotFoundError:
                return
            for line in out.splitlines():
                pid, _, used = line.partition(",")
                if pid.strip() == self.pid and used.strip().isdigit():
                    self.peak = max(self.peak or 0, int(used))


def timed(build, path, runs, warmup):
    """Milliseconds a step of the last training stage, warm-up left out: the mean, since lines may arrive several at once."""
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [build / "limbeck", "--json", "run", path, "--runs", runs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        memory = Memory(child.pid)
        memory.start()
        times, stage = [], ""
        for line in child.stdout:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("type") == "stage_started" and event["total_steps"]:
                stage, times = event["stage"], []
            elif event.get("type") == "step" and stage == "distilled":
                times.append(time.perf_counter())
        error = child.stderr.read()
    memory.ended.set()
    if child.returncode:
        return {"shown": False, "exit": child.returncode, "reason": error[-300:]}
    steps = len(times) - 1 - warmup
    dtype = "f32" if "LMB0223" in error else "bf16"
    return {"shown": True, "dtype": dtype, "ms_per_step": 1e3 * (times[-1] - times[warmup]) / steps, "samples": steps, "peak_mib": memory.peak}


def speed(build, device, rehearse, torch):
    if rehearse:
        sizes, shapes, warmup, steps = (32, 2, 1, 2, 200), [(4, 8), (4, 16)], 2, 10
    else:
        sizes, shapes, warmup, steps = (768, 12, 6, 12, 30522), [(32, 128), (64, 512)], 20, 120
    dim, teacher, student, heads, vocab = sizes
    records = []
    for batch, length in shapes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_text(folder, vocab, length, 16 * batch)
            shape = {"vocab": vocab, "length": length, "dropout": 0.1}
            path = pipeline(
                folder, "speed", device, TEXT, DTYPE="bf16", LENGTH=length, BATCH=batch, FIRST=1, SECOND=steps,
                TEACHER=model("bert", dim, teacher, heads, **shape), STUDENT=model("distilbert", dim, student, heads, **shape),
            )
            record = {"batch": batch, "length": length, "limbeck": timed(build, path, folder / "runs", warmup)}
        peer = [torch, HERE / "peers/gpu_step.py", "--device", device.split(":")[0], "--batch", batch, "--length", length]
        peer += ["--dim", dim, "--teacher", teacher, "--student", student, "--heads", heads, "--vocab", vocab]
        peer += ["--steps", steps, "--warmup", warmup]
        for mode in ["eager", "compile"] if torch else []:
            done = subprocess.run([*map(str, peer), "--mode", mode], capture_output=True, text=True, check=False)
            last = done.stdout.strip().splitlines()[-1:] or [""]
            record[f"torch {mode}"] = json.loads(last[0]) if last[0].startswith("{") else {"shown": False, "reason": done.stderr[-300:]}
        records.append(record)
        print(f"speed      {json.dumps(record)}")
    return records


def environment(build, device):
    def output(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:
            return None

    return {
        "device": device, "machine": platform.platform(), "cpus": os.cpu_count(),
        "gpu": output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "commit": output("git", "-C", str(HERE), "rev-parse", "HEAD"),
        "files": {name: (build / name).stat().st_size for name in FILES},
        "command": " ".join(sys.argv),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=Path, default=HERE.parent / "target/cuda/release")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rehearse", action="store_true", help="the CPU in place of the GPU, small sizes")
    parser.add_argument("--torch", help="a Python with PyTorch and transformers")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    build = args.build.resolve()
    device = "cpu" if args.rehearse else args.device
    result = {"rehearsal": args.rehearse, "environment": environment(build, device)}
    result["agreement"] = agreements(build, device)
    result["speed"] = speed(build, device, args.rehearse, args.torch)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    missing = [name for name, record in result["agreement"].items() if not record["shown"]]
    print(f"wrote {args.out}; not shown: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main()
