#!/usr/bin/env bash
# Makes .venv/ with the pinned peers: about 6 GB, because the PyTorch wheel for Linux links its CUDA libraries even on a
# machine without a GPU (without them `import torch` fails). A second call does nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv
fi
.venv/bin/python -m pip install --quiet --no-deps --only-binary=:all: -r benches/peers/requirements.txt
.venv/bin/python -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
