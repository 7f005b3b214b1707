//! `lmb.vector/1` on the CPU: the arithmetic of optimizers, moving averages and penalties.
//!
//! Refuses other element types than f32, bf16 and f16, gaps, and lists whose entries differ in size. Computes in f32
//! (`dot` in f64) in an order that depends on sizes alone, so results repeat bit for bit at any number of threads.

mod kernels;
mod table;
#[cfg(test)]
mod tests;

pub use table::{register_device, table};

use crate::tensor::{DType, Tensor};
use limbeck_abi as abi;

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    /// Another element type than f32, bf16, f16, or moments that are not f32.
    #[error("entry {index}: element type {found} cannot be used here")]
    DType {
        /// Position in the list.
        index: usize,
        /// What it has.
        found: &'static str,
    },
    /// Sizes differ.
    #[error("entry {index}: {found} elements where {wanted} are needed")]
    Size {
        /// Position in the list.
        index: usize,
        /// What it has.
        found: usize,
        /// What its peer has.
        wanted: usize,
    },
    /// Lists of different lengths.
    #[error("lists of {0} and {1} entries")]
    Length(usize, usize),
    /// Not contiguous, not on the CPU, or not a valid tensor.
    #[error("entry {0} is not a contiguous tensor on the CPU")]
    Layout(usize),
    /// A NULL list or a struct of an unknown version.
    #[error("incomplete arguments")]
    Arguments,
}

/// One checked entry of a list.
#[derive(Clone, Copy)]
struct View {
    data: *mut u8,
    dtype: DType,
    len: usize,
}

impl View {
    fn new(index: usize, tensor: &Tensor) -> Result<Self, VectorError> {
        let dtype = tensor.dtype();
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(VectorError::DType { index, found: dtype.name() });
        }
        if tensor.device() != abi::DLDevice::CPU || !tensor.is_contiguous() {
            return Err(VectorError::Layout(index));
        }
        Ok(Self { data: tensor.address().cast(), dtype, len: tensor.elements() })
    }
}

fn views(tensors: &[Tensor]) -> Result<Vec<View>, VectorError> {
    tensors.iter().enumerate().map(|(i, t)| View::new(i, t)).collect()
}

fn same_sizes(a: &[View], b: &[View]) -> Result<(), VectorError> {
    if a.len() != b.len() {
        return Err(VectorError::Length(a.len(), b.len()));
    }
    match a.iter().zip(b).position(|(a, b)| a.len != b.len) {
        None => Ok(()),
        Some(index) => Err(VectorError::Size { index, found: b[index].len, wanted: a[index].len }),
    }
}

fn only_f32(list: &[View]) -> Result<(), VectorError> {
    match list.iter().position(|v| v.dtype != DType::F32) {
        None => Ok(()),
        Some(index) => Err(VectorError::DType { index, found: list[index].dtype.name() }),
    }
}

/// `y = a*x + b*y`, element by element. `b == 0` does not read `y`; `a == 0` does not read `x`.
///
/// # Errors
/// See [`VectorError`].
pub fn axpby(a: f64, x: &[Tensor], b: f64, y: &[Tensor]) -> Result<(), VectorError> {
    kernels::axpby(a, &views(x)?, b, &views(y)?)
}

/// `z = a*x*y + b*z`, element by element; `z` may be `x` or `y`.
///
/// # Errors
/// See [`VectorError`].
pub fn mul(a: f64, x: &[Tensor], y: &[Tensor], b: f64, z: &[Tensor]) -> Result<(), VectorError> {
    kernels::mul(a, &views(x)?, &views(y)?, b, &views(z)?)
}

/// Sum of `x*y` over all entries, in f64.
///
/// # Errors
/// See [`VectorError`].
pub fn dot(x: &[Tensor], y: &[Tensor]) -> Result<f64, VectorError> {
    kernels::dot(&views(x)?, &views(y)?)
}

/// Lists and settings of one [`adamw`] update.
#[derive(Clone, Copy)]
pub struct Adamw<'a> {
    /// Parameters, f32, bf16 or f16.
    pub params: &'a [Tensor],
    /// Gradients, likewise.
    pub grads: &'a [Tensor],
    /// First moments, f32.
    pub m: &'a [Tensor],
    /// Second moments, f32.
    pub v: &'a [Tensor],
    /// f32 copies that are updated and then rounded into `params`.
    pub masters: Option<&'a [Tensor]>,
    /// Learning rate of each tensor.
    pub lr: &'a [f64],
    /// Decoupled weight decay of each tensor.
    pub weight_decay: &'a [f64],
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f64,
    /// Gradients are multiplied by it first.
    pub grad_scale: f64,
    /// 1 for the first update.
    pub t: u64,
}

/// One AdamW update in place: with `g = grad_scale * grad`,
///
/// `p -= lr*wd*p; m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g²; p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)`.
///
/// Source: Loshchilov & Hutter 2019, in the operation order of PyTorch's `torch.optim.AdamW`.
///
/// # Errors
/// See [`VectorError`].
pub fn adamw(update: &Adamw<'_>) -> Result<(), VectorError> {
    kernels::adamw(&kernels::AdamwViews {
        params: views(update.params)?,
        grads: views(update.grads)?,
        m: views(update.m)?,
        v: views(update.v)?,
        masters: update.masters.map(views).transpose()?,
        lr: update.lr,
        weight_decay: update.weight_decay,
        beta1: update.beta1,
        beta2: update.beta2,
        eps: update.eps,
        grad_scale: update.grad_scale,
        t: update.t,
    })
}
