#!/usr/bin/env bash
# Means of the quick start over seeds 1 to N (5), one row a stage: bash benches/seeds.sh [N]
set -euo pipefail
cd "$(dirname "$0")/.."
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
for seed in $(seq "${1:-5}"); do
    target/release/limbeck --json run pipelines/digits.yaml --set seed="$seed" --runs "$runs" \
        | sed -n 's/.*"stage":"\([a-z]*\)".*/\1 &/p' \
        | awk -v seed="$seed" '/"type":"stage_finished"/ {
            accuracy = recall = ""
            if (match($0, /"accuracy":[0-9.]+/)) accuracy = substr($0, RSTART + 11, RLENGTH - 11)
            if (match($0, /"recall.3":[0-9.]+/)) recall = substr($0, RSTART + 11, RLENGTH - 11)
            if (accuracy != "") print $1, seed, accuracy, recall
        }'
done | tee "$runs/rows" >&2
awk '{ n[$1]++; a[$1] += $3; r[$1] += $4; if (!($1 in order)) { order[$1] = ++k; name[k] = $1 } }
     END { printf "%-10s %8s %8s %5s\n", "stage", "accuracy", "recall.3", "seeds"
           for (i = 1; i <= k; i++) printf "%-10s %8.3f %8.3f %5d\n", name[i], a[name[i]] / n[name[i]], r[name[i]] / n[name[i]], n[name[i]] }' "$runs/rows"
