#!/usr/bin/env bash
# Builds the runner and every plugin with their CUDA halves into target/cuda/release, on any Linux x86-64 machine: no
# system CUDA, root or GPU. What is built also runs where there is no driver, on the CPU.
#   plugins/cuda/build.sh [--full] [cargo command and options; default: build --release --workspace]
# --full compiles candle's kernels for GGUF weights too: ten CPU minutes and 30 MB a plugin more.
# Needs python3 with pip, cc and c++; downloads 110 MB once into .toolchain.
set -euo pipefail
cd "$(dirname "$0")/../.."
kernels=slim
if [ "${1:-}" = --full ]; then
    kernels=full
    shift
fi
[ $# -gt 0 ] || set -- build --release --workspace

plugins/losses/cuda/toolkit.sh
python3 plugins/cuda/home.py
# A changed CUDA_HOME compiles candle again: its path is fixed.
export CUDA_HOME="$PWD/.toolchain/home" CUDA_PATH="$PWD/.toolchain/home"
# candle's kernels as PTX for Ampere, which the driver compiles for every later card; 90 would fit Hopper alone.
export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000
case $kernels in
    slim) export NVCC="$PWD/plugins/cuda/nvcc" ;;
    full) export NVCC="$CUDA_HOME/bin/nvcc" ;;
esac
command=$1
shift
exec cargo "$command" --target-dir target/cuda \
    --features limbeck-teachers/cuda,limbeck-students/cuda,limbeck-losses/cuda "$@"
