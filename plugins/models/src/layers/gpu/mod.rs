//! The layers' operations on NVIDIA GPUs: own kernels, launched on candle's memory and stream.
//!
//! * [`arguments`]: what kernels are given, as `cuda/arguments.h` reads it.
//! * [`launches`]: which kernels an operation is, with their grids and workspaces.
//! * `site`, with feature `cuda`: the operations on candle's storage.
//! * `emulator`, in tests: a machine on which the same kernels run without a GPU.
//!
//! Kernels are in f32 and bf16 with arithmetic in f32. Invariant: launches are the same on a GPU and on the emulated machine,
//! so what tests leave open is candle's storage alone.

pub(super) mod arguments;
#[cfg(test)]
mod emulator;
pub(super) mod launches;
#[cfg(feature = "cuda")]
pub(super) mod site;
#[cfg(test)]
mod tests;
