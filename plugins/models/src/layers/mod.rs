//! Layers with gradients: fused on the CPU for f32 and f64 and, those of encoders, on NVIDIA GPUs for f32 and bf16;
//! composed of candle's own operations elsewhere.
//!
//! Which of these runs depends on device and dtype alone, never on sizes or threads. Invariant: each layer's
//! gradient is checked against central differences in f64, and every sum has a fixed order, so results do not depend
//! on the number of threads.

mod activation;
pub(crate) mod attend;
mod bias;
mod conv;
mod dropout;
pub(crate) mod element;
#[cfg(any(test, feature = "cuda"))]
mod gpu;
pub(crate) mod isa;
mod layer_norm;
mod linear;
mod lookup;
mod norm;
mod pool;
pub(crate) mod rows;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transpose;

pub use activation::Activation;
pub(crate) use bias::add_row;
pub use conv::Conv2d;
pub(crate) use dropout::Drop;
pub use dropout::dropout;
pub(crate) use layer_norm::layer_norm;
pub use linear::Linear;
pub(crate) use lookup::lookup;
pub use norm::BatchNorm;
pub use pool::{Pool, pool2d};

use candle_core::{DType, Tensor};

/// Whether the fused operations with a CUDA half serve this tensor.
pub(crate) fn has_kernels(x: &Tensor) -> bool {
    let is_served = matches!(x.dtype(), DType::F32 | DType::BF16);
    is_fused(x) || (cfg!(feature = "cuda") && x.device().is_cuda() && is_served)
}

/// Whether the fused operations of the CPU serve this tensor.
pub(crate) fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}
