#!/usr/bin/env python3
"""Kills a stream in mid-chain and looks whether the same command ends with the same bytes, for every method.

    benches/continual/kill.py [--kills 3] [--only METHOD ...]

Each method of `bands.py` on split MNIST, class-IL (MAS and online EWC too), 60 steps a task, a checkpoint every 25 steps.
SIGKILL comes at moments spread over the third to fifth task; then the same command runs to its end. Weights, moments,
buffers, importance, snapshots (every file of the last checkpoint), metrics and evaluations are compared byte for byte.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bands

METHODS = {
    method: text
    for (method, scenario), (text, *_) in bands.BANDS.items()
    if "," not in method and not method.startswith("online ") and scenario in ("class", "domain")
}


def command(runs, file):
    return [bands.LIMBECK, "--quiet", "--threads", "1", "--runs", runs, "run", file]


def files(runs):
    """Relative name and bytes of everything that has to be equal."""
    found, newest = {}, {}
    for place, _, names in os.walk(runs):
        for name in names:
            path = os.path.join(place, name)
            # Name, run id and pid differ from run to run.
            inside = "/".join(os.path.relpath(path, runs).split("/")[2:])
            step = re.search(r"ckpt/step-(\d+)/", inside)
            if step:
                newest.setdefault(inside.split("/ckpt/")[0], []).append(int(step[1]))
            if step or inside == "metrics.jsonl" or "/eval/" in inside:
                found[inside] = open(path, "rb").read()
    last = {stage: max(steps) for stage, steps in newest.items()}
    kept = {}
    for name, data in found.items():
        step = re.search(r"ckpt/step-(\d+)/", name)
        if name.endswith("manifest.json") or (step and int(step[1]) != last[name.split("/ckpt/")[0]]):
            continue
        kept[name] = data
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    wrong = 0
    for method, text in METHODS.items():
        if arguments.only and method not in arguments.only:
            continue
        scenario = "class" if (method, "class") in bands.BANDS else "domain"
        pipeline = bands.pipeline(method, scenario, text).replace("steps: 200", "steps: 60\ncheckpoint: {every: 25 steps}")
        pipeline = pipeline.replace("version: 1", "version: 1\nseed: 5")
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "kill.yaml")
            open(file, "w").write(pipeline)
            start = time.monotonic()
            subprocess.run(command(f"{folder}/whole", file), check=True, stdout=subprocess.DEVNULL)
            whole, took = files(f"{folder}/whole"), time.monotonic() - start
            same, hit = True, 0
            for k in range(arguments.kills):
                runs = f"{folder}/kill-{k}"
                child = subprocess.Popen(command(runs, file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(took * (0.45 + 0.5 * k / arguments.kills))
                hit += child.poll() is None
                child.send_signal(signal.SIGKILL)
                child.wait()
                subprocess.run(command(runs, file), check=True, stdout=subprocess.DEVNULL)
                again = files(runs)
                differ = sorted(n for n in whole.keys() | again.keys() if whole.get(n) != again.get(n))
                same &= not differ
                for name in differ[:3]:
                    print(f"    {name} differs")
            print(f"{method:12} {len(whole)} files, {hit} of {arguments.kills} killed while running: {'equal' if same else 'DIFFERENT'}", flush=True)
            wrong += not same
    return 1 if wrong else 0


sys.exit(main())
