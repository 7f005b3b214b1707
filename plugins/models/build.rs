//! Compiles the layers' CUDA kernels when feature `cuda` is on.

#[path = "../losses/cuda/compile.rs"]
mod compile;

fn main() {
    compile::images(include_str!("cuda/images.txt"));
}
