#!/usr/bin/env python3
"""The same streams by Limbeck and by Avalanche, a process each, side by side.

    benches/continual/against_avalanche.py PYTHON [--seeds 5] [--only WORD ...] [--out benches/results/avalanche.json]

PYTHON has Avalanche (`benches/peers/avalanche-requirements.txt`). Split MNIST as in `bands.py`, domain-IL, 16 epochs a
task, one thread on both sides; accuracy after the last task. Definitions differ between the two, so each method is set to
mean the same:

* er: 200 rows by reservoir, offered at the end of each task, 64 replayed.
* lwf: KL at T = 2 without T squared, factor 1 from the second task on.
* ewc: squared gradients of single rows with their true labels, all rows of a task; Avalanche's penalty has no 1/2, so
  Limbeck's lambda is twice its. Avalanche as it is squares the gradient of each mini-batch: timed, not compared.
* all: Limbeck clears the optimizer's moments at the beginning of each task. Avalanche keeps them; here its are cleared too.
  "moments kept" is Avalanche as it is: timed, not compared.
* si: another normalisation and a clip in Avalanche; strengths were chosen on each side by accuracy.

Seconds are of the whole process, from start to exit.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bands

SCENARIO = "domain"
EWC = bands.scheduler("ewc", **{"lambda": "1e4", "fisher": "empirical", "rows": 0})
# Name -> (Limbeck's scheduler, Avalanche's method, its moments).
METHODS = {
    "none": ("", "none", "cleared"),
    "none, moments kept": ("", "none", "kept"),
    "er": (bands.replay("er", insert="task_end"), "er", "cleared"),
    "lwf": (bands.scheduler("lwf", temperature=2, t2="false", weighting="constant"), "lwf", "cleared"),
    "ewc": (EWC, "ewc", "cleared"),
    "ewc, moments kept": (EWC, "ewc", "kept"),
    "ewc, mini-batches squared": (EWC, "ewc, mini-batches squared", "cleared"),
    "si": (bands.scheduler("si", c=1000), "si", "cleared"),
}


def ours(method, seed):
    text = bands.pipeline("none", SCENARIO, METHODS[method][0])
    text = re.sub("steps: 200", "epochs: 16", text)
    with tempfile.TemporaryDirectory() as folder:
        matrix, seconds = bands.one_run(folder, text, seed)
    return 100 * statistics.mean(matrix["rows"][-1]), seconds


def theirs(python, method, seed):
    script = os.path.join(bands.ROOT, "benches", "peers", "avalanche_split.py")
    _, peer, moments = METHODS[method]
    command = [python, "-W", "ignore", script, peer, SCENARIO, str(seed), moments]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(done.stderr)
    return 100 * statistics.mean(json.loads(done.stdout.splitlines()[-1])), seconds


def spread(values):
    return f"{statistics.mean(values):.1f} +- {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("python")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--out")
    arguments = parser.parse_args()
    results = []
    print(f"{'method':26} {'limbeck':>13} {'avalanche':>13} {'s':>6} {'s':>6} {'ratio':>6}")
    for method in (m for m in METHODS if any(word in m for word in arguments.only)):
        rows = []
        for seed in range(1, arguments.seeds + 1):
            # Side by side, so that a busy machine is busy for both.
            rows.append((*ours(method, seed), *theirs(arguments.python, method, seed)))
        own, own_s, their, their_s = map(list, zip(*rows))
        ratio = statistics.median(their_s) / statistics.median(own_s)
        print(f"{method:26} {spread(own):>13} {spread(their):>13} {statistics.median(own_s):6.1f} {statistics.median(their_s):6.1f} {ratio:6.1f}", flush=True)
        results.append({
            "method": method, "limbeck": own, "avalanche": their, "limbeck_s": own_s, "avalanche_s": their_s,
            "ratio_of_medians": round(ratio, 1),
        })
    if arguments.out:
        record = {
            "bench": "avalanche", "command": "benches/continual/against_avalanche.py", "scenario": SCENARIO,
            "machine": bands.machine(), "load_1min": os.getloadavg()[0], "results": results,
        }
        with open(arguments.out, "w") as out:
            json.dump(record, out, indent=1)


main()
