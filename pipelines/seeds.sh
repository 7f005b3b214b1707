#!/usr/bin/env bash
# Runs a pipeline under several seeds, one after the other.
#
#   bash pipelines/seeds.sh pipelines/r8.yaml 1 2 3
#
# LIMBECK names the program (default: target/release/limbeck), RUNS the folder for the runs (default: runs).
set -euo pipefail
pipeline="${1:?a pipeline}"
shift
limbeck="${LIMBECK:-target/release/limbeck}"
runs="${RUNS:-runs}"
for seed in "$@"; do
    "$limbeck" --progress none --runs "$runs" run "$pipeline" --set "seed=$seed"
done
