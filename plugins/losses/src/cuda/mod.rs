//! The losses on NVIDIA GPUs: kernels embedded in this library, launched on the host's stream.
//!
//! * [`driver`]: the CUDA driver, opened when a GPU is asked for. Without it this library loads all the same
//!   and `activate` on a GPU says what is missing.
//! * [`plan`]: which kernel serves a call and how it is launched; pure, so that it is tested without a GPU.
//! * [`arguments`]: what kernels are given, as `cuda/args.h` reads it.
//! * [`session`], [`call`]: one instance on one GPU, and a call of the contract on borrowed device memory.
//! * [`linear`]: losses on hidden states times a head, in [`chunks`], with products of cuBLASLt ([`lt`]).
//! * [`vector`], [`memory`]: `lmb.vector/1` for the host's optimizer, `lmb.device/1` for its memory.
//!
//! A call launches kernels and nothing else: no allocation, no wait, nothing that a CUDA graph cannot capture.

pub mod arguments;
mod call;
pub mod chunks;
pub mod driver;
mod images;
pub mod launch;
pub mod linear;
pub mod lt;
mod memory;
pub mod plan;
pub mod prepared;
pub mod rows;
pub mod session;
pub mod table;
pub mod vector;

use limbeck_sdk::abi;

/// Losses with kernels. The others refuse a GPU; none is copied to the host in silence.
pub const ON_GPU: &[&str] = &[
    "limbeck.kl",
    "limbeck.rkl",
    "limbeck.gjsd",
    "limbeck.skl",
    "limbeck.srkl",
    "limbeck.tvd",
    "limbeck.soft-ce",
    "limbeck.sym-kl",
    "limbeck.logit-mse",
    "limbeck.ce",
    "limbeck.lwf-kl",
    "limbeck.topk-tail",
    "limbeck.topk-teacher-renorm",
    "limbeck.topk-both-renorm",
    "limbeck.cosine",
    "limbeck.hidden-mse",
    "limbeck.fused-linear",
];

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while a.len() == b.len() && i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    a.len() == b.len()
}

/// Devices of the descriptor of loss `id`: what this build has kernels for, whether or not a GPU is there.
pub const fn devices(id: &str) -> &'static [i32] {
    let mut i = 0;
    while i < ON_GPU.len() {
        if same(ON_GPU[i], id) {
            return &[abi::DL_CPU, abi::DL_CUDA];
        }
        i += 1;
    }
    &[abi::DL_CPU]
}
