#!/usr/bin/env bash
# The CUDA compiler without a system CUDA, root or GPU: pinned wheels of PyPI, unpacked under .toolchain (280 MB).
# Prints nothing and does nothing if they are there.
set -euo pipefail
cd "$(dirname "$0")/../../.."
compiler=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
# No 13.0 exists of these two; 13.2 reads the images of 13.0.
tools=(nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86)

fetch() { # folder, wheels
    local folder=.toolchain/$1 pins
    shift
    pins=$(printf '%s\n' "$@")
    [ -f "$folder/pins" ] && [ "$(cat "$folder/pins")" = "$pins" ] && return
    rm -rf "$folder"
    # Without --no-deps newer parts mix in.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "$@"
    printf '%s\n' "$pins" >"$folder/pins"
}

fetch cu "${compiler[@]}"
fetch dis "${tools[@]}"
