#!/usr/bin/env bash
# Everything that needs a GPU, in one command: correctness of the losses' kernels, compute-sanitizer on small shapes
# where it is installed, and the comparison with PyTorch and Liger. Needs a tree built with
#   plugins/losses/cuda/toolkit.sh && cargo build --release --workspace --features limbeck-losses/cuda
# and a Python with PyTorch for CUDA (PYTHON; .venv of benches/peers/setup.sh by default). liger-kernel is optional.
# Without a GPU: benches/gpu.sh --rehearse DIR, with the emulated libcuda.so.1 and libcublasLt.so.13 in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
library="${LIBRARY:-target/release/liblimbeck_losses.so}"
kd=benches/peers/kd.py

if [ "${1:-}" = --rehearse ]; then
    out=$(mktemp)
    trap 'rm -f "$out"' EXIT
    LD_LIBRARY_PATH="$2" LIMBECK_CUDA_LIB_DIR="$2" "$python" "$kd" --library "$library" --rehearse --out "$out"
    exit
fi
nvidia-smi
if command -v compute-sanitizer >/dev/null; then
    out=$(mktemp)
    trap 'rm -f "$out"' EXIT
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== compute-sanitizer $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name-exclude regex:at:: \
            "$python" "$kd" --library "$library" --only check --small --out "$out"
    done
else
    echo "compute-sanitizer is not installed: its checks are left out"
fi
"$python" "$kd" --library "$library" "$@"
