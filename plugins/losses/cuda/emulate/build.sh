#!/usr/bin/env bash
# The emulated driver as DIR/libcuda.so.1: build.sh DIR [FOLDER OF cuda.h]. A program finds it by LD_LIBRARY_PATH=DIR.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")/.."
include=${2:-../../../.toolchain/cu/nvidia/cu13/include}
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
for source in *.cu emulate/{arithmetic,driver,machine}.cc; do
    "${CXX:-c++}" -std=c++17 -O1 -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off -x c++ -c \
        -isystem "$include" "$source" -o "$objects/$(basename "$source").o" &
done
for job in $(jobs -p); do wait "$job"; done
c++ -shared -o "$out/libcuda.so.1" "$objects"/*.o
