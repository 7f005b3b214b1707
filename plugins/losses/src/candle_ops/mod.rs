//! The losses as operations of candle programs, with their gradients.
//!
//! * [`LogitLoss`]: a dense loss on logits.
//! * [`FusedLinearLoss`]: the same on hidden states times a head, whose logits are never whole in memory.
//!
//! Forward computes loss and gradients in one pass and keeps the gradients for the backward pass, which scales them; a
//! second backward computes them again. No graph of intermediate tensors is made. On the CPU, and with feature
//! `candle-cuda` on NVIDIA GPUs. Refuses what the settings refuse, other shapes, and tensors on several devices.
//!
//! ```
#![doc = include_str!("../../examples/distill.rs")]
//! ```

mod counting;
#[cfg(feature = "candle-cuda")]
mod gpu;
mod linear;
mod logits;
mod pool;

pub use linear::{FusedLinearLoss, Teacher};
pub use logits::LogitLoss;

use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, Result, Storage, Tensor, bail};

/// The elements of a contiguous tensor.
fn part<'a, E>(data: &'a [E], layout: &Layout) -> Result<&'a [E]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&data[from..to]),
        None => bail!("matrices must be contiguous"),
    }
}

/// A kept gradient of the shape and type of `of`, times the scalar `upstream`.
fn scaled(grad: Storage, of: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "candle-cuda")]
    let grad = match grad {
        Storage::Cuda(mut grad) => {
            gpu::scale(&mut grad, of.dims2()?, upstream)?;
            let grad = from_storage(Storage::Cuda(grad), of);
            return grad.to_dtype(of.dtype());
        }
        grad => grad,
    };
    let grad = from_storage(grad, of).to_dtype(of.dtype())?;
    // The loss of a step is mostly its own objective: nothing to multiply then.
    let factor = upstream.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    if factor == 1.0 { Ok(grad) } else { grad * factor }
}

fn from_storage(storage: Storage, of: &Tensor) -> Tensor {
    Tensor::from_storage(storage, of.shape().clone(), BackpropOp::none(), false)
}
