//! Layers with gradients: fused on the CPU for f32 and f64, composed of candle's own operations elsewhere.
//!
//! Which of the two runs depends on device and dtype alone, never on sizes or threads. Invariant: each layer's
//! gradient is checked against central differences in f64, and every sum has a fixed order, so results do not depend
//! on the number of threads.

mod activation;
mod conv;
mod dropout;
pub(crate) mod element;
pub(crate) mod isa;
mod linear;
mod norm;
mod pool;
pub(crate) mod rows;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transpose;

pub use activation::Activation;
pub use conv::Conv2d;
pub use dropout::dropout;
pub use linear::Linear;
pub use norm::BatchNorm;
pub use pool::{Pool, pool2d};

use candle_core::{DType, Tensor};

/// Whether the fused operations serve this tensor.
pub(crate) fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}
