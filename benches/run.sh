#!/usr/bin/env bash
# Every bench, one after the other; numbers count only on a machine that does nothing else.
# benches/peers/setup.sh first for the comparison with PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --workspace
for bench in abi data losses startup step encoder job; do
    echo "== $bench"
    cargo bench --workspace --bench "$bench"
done
