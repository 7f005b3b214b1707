#!/usr/bin/env python3
"""Compares the build for GPUs with the plain one, on the CPU: check.py PLAIN CUDA, the two folders of built files.

Standard library and readelf alone. Prints sizes; fails at the first claim that does not hold.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ["losses", "schedulers", "students", "teachers"]
# Models that compute on GPUs.
ON_GPUS = {"limbeck.bert", "limbeck.cnn", "limbeck.distilbert", "limbeck.hf", "limbeck.mlp"}
# What a machine without CUDA has.
ALLOWED = re.compile(r"(libc|libm|libgcc_s|libstdc\+\+|ld-linux-x86-64|libpthread|libdl)\.so\.\d+")
# Rounding of another compilation of the same code over two hundred steps of Adam; most runs are equal to the bit.
BOUND = 1e-4

TEXT = """version: 1
name: words
seed: 5
tokenizer: {path: tokenizer.json, max_length: 16}
datasets:
  all: {format: jsonl, path: rows.jsonl, text: text, label: label}
data: {train: all, valid: all}
batch: {size: 16}
optimizer: {kind: adamw, lr: 1e-3}
eval: {metrics: [accuracy]}
stages:
  - name: teacher
    kind: train
    student: {uses: limbeck.bert, with: {classes: 2, vocab_size: 40, max_positions: 16, dim: 32, layers: 2, heads: 2}}
    loss: [{uses: limbeck.ce}]
    steps: 40
  - name: distilled
    kind: distill
    student: {uses: limbeck.distilbert, with: {classes: 2, vocab_size: 40, max_positions: 16, dim: 16, layers: 1, heads: 2}}
    teacher: {from: teacher}
    loss: [{uses: limbeck.kl, with: {temperature: 2.0}}]
    steps: 40
  - {name: export, kind: export, model: {from: distilled}, format: hf}
"""


def fail(message):
    sys.exit(f"cuda check: {message}")


def output(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def needed(path):
    _, text, _ = output("readelf", "-dW", path)
    return re.findall(r"NEEDED.*\[(.*)\]", text)


def exported(path):
    _, text, _ = output("readelf", "--dyn-syms", "-W", path)
    rows = [line.split() for line in text.splitlines()]
    return [r[7] for r in rows if len(r) > 7 and r[4] in ("GLOBAL", "WEAK") and r[6] not in ("UND", "Ndx")]


def files(folder):
    for name in ["limbeck"] + [f"liblimbeck_{p}.so" for p in PLUGINS]:
        path = folder / name
        if not path.is_file():
            fail(f"no {path}")
        libraries = needed(path)
        foreign = [l for l in libraries if not ALLOWED.fullmatch(l)]
        if foreign or not libraries:
            fail(f"{name} needs {foreign or 'nothing at all'}")
        if name.endswith(".so") and exported(path) != ["lmb_module_v1"]:
            fail(f"{name} exports {exported(path)}")
        print(f"{name:26} {path.stat().st_size / 1e6:6.1f} MB   needs {' '.join(libraries)}")


def write_text(folder):
    words = {f"w{i}": i for i in range(40)}
    words["[PAD]"] = words.pop("w0")
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[PAD]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = []
    for i in range(96):
        # Which of the first two words comes first is the label.
        first, second = (1, 2) if i % 2 else (2, 1)
        middle = [3 + (i * 7 + k * k) % 37 for k in range(3 + i % 5)]
        ids = [first, *middle, second]
        rows.append(json.dumps({"text": " ".join(f"w{k}" for k in ids), "label": i % 2}))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    path = folder / "text.yaml"
    path.write_text(TEXT)
    return path


def train(binary, pipeline, runs, *more):
    code, out, err = output(binary, "run", pipeline, "--runs", runs, *more, env={**os.environ, "NO_COLOR": "1"})
    if code:
        fail(f"{binary} run {pipeline}: exit {code}\n{out}\n{err}")
    metrics = next(runs.glob("*/*/metrics.jsonl"))
    losses = [row["loss"] for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]
    weights = next(runs.glob("*/*/stages/*/out/model.safetensors")).read_bytes()
    return losses, weights


def agree(name, pipeline, plain, cuda, folder):
    (a, weights_a), (b, weights_b) = (
        train(build / "limbeck", pipeline, folder / f"{name}-{k}") for k, build in enumerate([plain, cuda])
    )
    if len(a) != len(b) or not a:
        fail(f"{name}: {len(a)} and {len(b)} steps")
    worst = max(abs(x - y) / max(abs(x), 1e-6) for x, y in zip(a, b))
    if worst > BOUND:
        fail(f"{name}: losses differ by {worst:.1e}, at most {BOUND}")
    same = "equal to the bit" if weights_a == weights_b else "not equal to the bit"
    print(f"{name:26} {len(a)} steps, losses within {worst:.1e}, weights {same}")


def devices(cuda):
    """What the build says of itself: the plugins that compute on GPUs, and no others."""
    code, out, err = output(cuda / "limbeck", "--json", "plugin", "list")
    if code:
        fail(f"plugin list: exit {code}\n{err}")
    listed = [row["id"] for row in map(json.loads, out.splitlines()) if row.get("kind") in ("student", "teacher")]
    found = set()
    for plugin in listed:
        code, out, err = output(cuda / "limbeck", "--json", "plugin", "info", plugin)
        if code:
            fail(f"plugin info {plugin}: exit {code}\n{err}")
        if "cuda" in json.loads(out)["devices"]:
            found.add(plugin)
    if found != ON_GPUS or len(listed) < 5:
        fail(f"of {len(listed)} plugins, {sorted(found)} compute on GPUs, not {sorted(ON_GPUS)}")
    print(f"on GPUs: {' '.join(sorted(found))}, losses, schedulers")


def refused(cuda, folder):
    text = (ROOT / "pipelines/digits.yaml").read_text()
    (folder / "data").symlink_to(ROOT / "pipelines/data")
    path = folder / "gpu.yaml"
    path.write_text(text.replace("seed: 7", "seed: 7\ndevice: cuda:0"))
    code, _, err = output(cuda / "limbeck", "run", path, "--runs", folder / "gpu", env={**os.environ, "NO_COLOR": "1"})
    if code != 69 or "LMB0801" not in err:
        fail(f"device: cuda:0 ends with {code}:\n{err}")
    print(f"device: cuda:0 without one  exit 69: {err.splitlines()[0]}")


def main():
    plain, cuda = (Path(p).resolve() for p in sys.argv[1:3])
    files(cuda)
    devices(cuda)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        agree("digits", ROOT / "pipelines/digits.yaml", plain, cuda, folder)
        agree("text", write_text(folder), plain, cuda, folder)
        refused(cuda, folder)


if __name__ == "__main__":
    main()
