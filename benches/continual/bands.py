#!/usr/bin/env python3
"""Continual learning on split MNIST against known bands.

    benches/continual/bands.py [--seeds 5] [--only WORD ...] [--out benches/results/continual.json]

Protocol: `pipelines/fetch.sh mnist` (4,000 training and 1,000 test digits), five tasks {0,1} ... {8,9}; MLP
784-100-100-C, C = 10, in domain-IL 2 (digit modulo 2); Adam 1e-3, batch 64, 200 steps a task, moments cleared per task;
replay 64 rows (DER++ 64 + 64), buffer 200 filled in every step; Fisher exact on 400 rows. Online: one pass, batch 10 +
10, SGD 0.1. A figure is the average accuracy in % after the last task. The means and deviations that a run is held
against come from ten seeds of an implementation in numpy; a method is inside its band if its mean lies within
mean +- (2 sd + 1). Each run is a process of its own with one thread (a second one gains nothing on models this small),
one after the other.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = os.path.join(ROOT, ".cache", "mnist5k")
LIMBECK = os.environ.get("LIMBECK", os.path.join(ROOT, "target", "release", "limbeck"))


def scheduler(uses, **settings):
    settings = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"scheduler: {{uses: limbeck.{uses}, with: {{{settings}}}}}"


def replay(uses, **settings):
    return scheduler(uses, **{"capacity": 200, "batch": 64, **settings})


# (method, scenario) -> (scheduler, mean, sd); no mean: no band.
BANDS = {}


def band(method, klass=None, task=None, domain=None):
    for scenario, entry in (("class", klass), ("task", task), ("domain", domain)):
        if entry:
            BANDS[method, scenario] = entry


band("none", ("", 19.5, 0.3), ("", 87.7, 3.8), ("", 62.2, 0.8))
band(
    "ewc",
    (scheduler("ewc", **{"lambda": "1e3"}), 20.2, 0.9),
    (scheduler("ewc", **{"lambda": "1e4"}), 97.1, 0.5),
    (scheduler("ewc", **{"lambda": "1e4"}), 75.0, 3.3),
)
band(
    "ewc online",
    (scheduler("ewc", mode="online", **{"lambda": "1e3"}), 20.6, 1.6),
    (scheduler("ewc", mode="online", **{"lambda": "1e4"}), 97.1, 0.5),
    (scheduler("ewc", mode="online", **{"lambda": "1e4"}), 75.6, 2.5),
)
band(
    "si",
    (scheduler("si", c=100), 19.5, 1.0),
    (scheduler("si", c=100), 97.5, 0.4),
    (scheduler("si", c=1000), 78.1, 2.0),
)
band(
    "mas",
    None,
    (scheduler("mas", **{"lambda": 0.1}), 97.4, 0.8),
    (scheduler("mas", **{"lambda": 1}), 77.8, 4.0),
)
band(
    "lwf",
    (scheduler("lwf"), 28.9, 1.9),
    (scheduler("lwf", classes="old"), 98.2, 0.2),
    (scheduler("lwf"), 73.5, 1.2),
)
band("er", (replay("er"), 80.3, 1.9), (replay("er"), 97.7, 0.4), (replay("er"), 88.0, 0.7))
DER = replay("derpp", beta=0)
band("der", (DER, 84.5, 1.7), (DER, 98.0, 0.3), (DER, 90.8, 0.8))
band(
    "der++",
    (replay("derpp"), 86.2, 1.1),
    (replay("derpp"), 98.3, 0.2),
    (replay("derpp"), 91.1, 0.8),
)
JOINT = "scheduler: {uses: limbeck.joint}"
band("joint", (JOINT, 92.0, 0.5), (JOINT, 98.2, 0.3), (JOINT, 95.0, 0.4))
# Without a band.
band("a-gem", (replay("agem"), None, None), (replay("agem"), None, None), (replay("agem"), None, None))
band("icarl", (scheduler("icarl", capacity=200), None, None))
GDUMB = scheduler("gdumb", capacity=200)
band("gdumb", (GDUMB, None, None), (GDUMB, None, None), (GDUMB, None, None))

# By insertion and by capacity, class-IL.
VARIANTS = {
    "first_pass": ({"insert": "first_pass"}, [(79.5, 2.3), (39.2, 3.6), (79.8, 1.7)]),
    "task_end": ({"insert": "task_end"}, [(83.0, 1.2), (88.4, 0.6), (88.4, 0.7)]),
    "50 rows": ({"capacity": 50}, [(60.2, 2.7), (65.0, 3.0), (66.8, 3.2)]),
    "500 rows": ({"capacity": 500}, [(85.7, 0.9), (88.3, 0.9), (90.0, 1.0)]),
}
for word, (settings, numbers) in VARIANTS.items():
    for (name, uses, more), (mean, sd) in zip(
        [("er", "er", {}), ("der", "derpp", {"beta": 0}), ("der++", "derpp", {})], numbers
    ):
        BANDS[f"{name}, {word}", "class"] = (replay(uses, **{**settings, **more}), mean, sd)

# One pass, batch 10 + 10, SGD 0.1.
ONLINE = {
    "none": ("", (18.4, 2.7), (63.4, 1.6)),
    "er": (replay("er", batch=10), (74.7, 3.3), (86.0, 1.7)),
    "der": (replay("derpp", batch=10, beta=0), (75.4, 3.7), (87.5, 1.5)),
    "der++": (replay("derpp", batch=10), (79.9, 3.7), (89.4, 1.8)),
}
for name, (text, klass, domain) in ONLINE.items():
    BANDS[f"online {name}", "class"] = (text, *klass)
    BANDS[f"online {name}", "domain"] = (text, *domain)


def pipeline(method, scenario, text):
    domain = scenario == "domain"
    online = method.startswith("online ")
    datasets, tasks = [], []
    for task in range(5):
        for part, each in (("train", 400), ("test", 100)):
            rows = [2 * each * task, 2 * each * (task + 1)]
            datasets.append(f"  {part}-{task}: {{<<: *{part}, rows: {rows}}}")
        tasks.append(f"  - {{name: t{task}, train: train-{task}, valid: test-{task}}}")
    labels = "parity" if domain else "labels"

    def source(part):
        return (
            f"  {part}: &{part} {{format: idx, path: {DATA}/{part}-images.idx, "
            f"label: {DATA}/{part}-{labels}.idx, tensors: {{pixel_values: {{shape: [784], scale: 1/255}}}}}}"
        )

    length = ["batch: {size: 10}", "epochs: 1", "optimizer: {kind: sgd, lr: 0.1}"]
    if not online:
        length = ["batch: {size: 64}", "steps: 200", "optimizer: {kind: adamw, lr: 1e-3, weight_decay: 0}"]
    own_loss = "loss: []" if method == "icarl" else "loss: [{uses: limbeck.ce}]"
    lines = [
        "version: 1",
        "name: bands",
        f"scenario: {{kind: {scenario}}}",
        "x-rows:",
        source("train"),
        source("test"),
        "datasets:",
        *datasets,
        "tasks:",
        *tasks,
        *length,
        "eval: {every: end, metrics: [accuracy]}",
        own_loss,
        "stages:",
        "  - name: stream",
        "    kind: train",
        f"    student: {{uses: limbeck.mlp, with: {{inputs: 784, hidden: [100, 100], classes: {2 if domain else 10}}}}}",
    ]
    if text:
        lines.append(f"    {text}")
    return "\n".join(lines) + "\n"


def one_run(folder, text, seed):
    """Final row of the matrix, its summary, seconds of the whole process."""
    file = os.path.join(folder, "bands.yaml")
    with open(file, "w") as out:
        out.write(text)
    runs = os.path.join(folder, "runs")
    start = time.monotonic()
    done = subprocess.run(
        [LIMBECK, "--quiet", "--threads", "1", "--runs", runs, "run", file, "--fresh", "--set", f"seed={seed}"],
        capture_output=True, text=True, check=False,
    )
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"{text}\n{done.stderr}")
    found = []
    for place, _, names in os.walk(runs):
        found += [os.path.join(place, n) for n in names if n == "task-matrix.json"]
    matrix = json.load(open(max(found, key=os.path.getmtime)))
    subprocess.run(["rm", "-rf", runs], check=True)
    return matrix, seconds


def machine():
    model = "unknown"
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return {"processor": model, "cores": os.cpu_count(), "system": platform.platform(terse=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="methods or scenarios, as in the table")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    if not os.path.exists(os.path.join(DATA, "train-images.idx")):
        sys.exit("no digits: run  bash pipelines/fetch.sh mnist")
    results, missed = [], 0
    print(f"{'method':20} {'scenario':9} {'mean':>6} {'sd':>5} {'bwt':>6}  {'band':>14}  inside   s/run")
    for (method, scenario), (text, mean, sd) in BANDS.items():
        if arguments.only and method not in arguments.only and scenario not in arguments.only:
            continue
        runs = []
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(1, arguments.seeds + 1):
                matrix, seconds = one_run(folder, pipeline(method, scenario, text), seed)
                summary = matrix["summary"]
                runs.append((100 * summary["average_accuracy"], 100 * summary["bwt"], seconds, matrix["rows"][-1]))
        scores = [run[0] for run in runs]
        ours = statistics.mean(scores)
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        bwt, each = (statistics.mean(run[i] for run in runs) for i in (1, 2))
        inside = None if mean is None else abs(ours - mean) <= 2 * sd + 1
        missed += inside is False
        shown = "-" if mean is None else f"{mean} +- {2 * sd + 1:.1f}"
        word = {None: "", True: "yes", False: "NO"}[inside]
        print(f"{method:20} {scenario:9} {ours:6.1f} {spread:5.1f} {bwt:6.1f}  {shown:>14}  {word:7} {each:5.1f}", flush=True)
        results.append({
            "method": method, "scenario": scenario, "mean": round(ours, 2), "sd": round(spread, 2),
            "bwt": round(bwt, 2), "seeds": [round(s, 2) for s in scores], "reference": mean, "reference_sd": sd,
            "inside": inside, "seconds": round(each, 2),
            "last_row": [round(100 * statistics.mean(r[3][t] for r in runs), 1) for t in range(5)],
            "scheduler": text,
        })
    if arguments.out:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        record = {
            "bench": "continual", "command": "benches/continual/bands.py", "commit": commit.stdout.strip(),
            "date": datetime.date.today().isoformat(), "machine": machine(),
            "load_1min": os.getloadavg()[0], "seeds": arguments.seeds, "results": results,
        }
        os.makedirs(os.path.dirname(arguments.out), exist_ok=True)
        with open(arguments.out, "w") as out:
            json.dump(record, out, indent=1)
    banded = [r for r in results if r["inside"] is not None]
    print(f"{len(banded) - missed} of {len(banded)} inside their bands")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
