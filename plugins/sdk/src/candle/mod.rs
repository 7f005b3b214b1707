//! Plugins on candle: the author writes the expression or the model, the SDK does gradients, export and copies.
//!
//! Feature `candle`. Only detached tensors leave a call, so no graph outlives its tape.

mod convert;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "no_gpu.rs"]
mod gpu;
mod loss;
mod model;
mod student;
mod teacher;
mod weights;

pub use candle_core::{self, D, DType as CandleDType, Device, Result as Candle, Tensor, Var};
pub use gpu::BUILT_FOR;
pub use loss::{CandleLoss, Inputs, LossAdapter};
pub use model::{GradSlot, ModelCall, Outputs, OwnBackward};
pub use student::{CandleStudent, StudentAdapter};
pub use teacher::{CandleTeacher, TeacherAdapter};
pub use weights::{Buffer, Init, ParamSpec, Weights};

/// What candle plugins need beside [`crate::prelude`].
pub mod prelude {
    pub use super::{
        Buffer, Candle, CandleDType, CandleLoss, CandleStudent, CandleTeacher, D, Device, Init,
        Inputs, ModelCall, Outputs, ParamSpec, Tensor, Weights, log_softmax,
    };
    pub use crate::prelude::*;
}

/// `ln softmax(x)` along `dim`, of operations that all have gradients: `x - max - ln Σ exp(x - max)`.
///
/// # Errors
/// What candle says.
pub fn log_softmax<T: candle_core::shape::Dim>(x: &Tensor, dim: T) -> Candle<Tensor> {
    let dim = dim.to_index(x.shape(), "log_softmax")?;
    // The maximum is a constant shift: detached, it adds nothing to the gradient.
    let shifted = x.broadcast_sub(&x.max_keepdim(dim)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(dim)?.log()?;
    shifted.broadcast_sub(&log_sum)
}
