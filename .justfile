# Parts of .ci/run, for the hand.
default: check

build:
    cargo build --release --workspace

test: build
    cargo test --release --workspace

check:
    cargo fmt --check
    cargo clippy --release --workspace --all-targets -- -D warnings

smoke: build
    target/release/limbeck run pipelines/digits.yaml

# The GPU half without a GPU.
cuda:
    bash .ci/cuda

# Everything with its CUDA half, into target/cuda/release, and what can be checked of it on the CPU.
cuda-models:
    bash .ci/cuda-models

# On a machine with a GPU.
gpu-test:
    bash benches/gpu.sh

bench:
    bash benches/run.sh

deny:
    cargo deny check
