//! Attention weights from scores: scale, mask, softmax and dropout in one operation with a gradient.
//!
//! Refuses dtypes without a fused form. Invariant: probabilities are not kept; the backward pass computes them again and
//! draws the same mask.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, by_dtype, elements};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::rows::{Dropout, softmax, softmax_backward};

/// What stands between scores and attention weights.
#[derive(Clone)]
pub(crate) struct Attend {
    /// `[B, T]`, u8, contiguous: 0 for keys that nobody sees. `None`: all are seen.
    pub(crate) keep: Option<Tensor>,
    /// Factor of the scores.
    pub(crate) scale: f64,
    /// Of the weights.
    pub(crate) dropout: Option<Dropout>,
    /// Row r of the scores, counted over batch, heads and queries, takes draws of row `row_step · r`.
    pub(crate) row_step: usize,
}

impl Attend {
    /// `dropout(softmax(scale · scores))` over the keys that `keep` allows; a row without any is 0.
    ///
    /// * `scores`: `[B, A, Q, T]`.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn apply(self, scores: &Tensor) -> Result<Tensor> {
        scores.contiguous()?.apply_op1(self)
    }

    /// Probabilities before dropout.
    fn probabilities<T: Element>(&self, scores: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let (width, sequences) = (dims[dims.len() - 1].max(1), dims[0]);
        let keep: Vec<bool> = match &self.keep {
            Some(keep) => keep.flatten_all()?.to_vec1::<u8>()?.iter().map(|&k| k != 0).collect(),
            None => vec![true; sequences * width],
        };
        let scale = T::of(self.scale);
        let mut p: Vec<T> = scores.iter().map(|&s| s * scale).collect();
        let size = (p.len() / sequences.max(1)).max(1);
        for (p, keep) in p.chunks_mut(size).zip(keep.chunks(width)) {
            softmax(p, width, keep);
        }
        Ok(p)
    }

    fn drop<T: Element>(&self, rows: &mut [T], width: usize) {
        let Some(dropout) = self.dropout else { return };
        for (r, row) in rows.chunks_mut(width.max(1)).enumerate() {
            dropout.row(r * self.row_step, width, row);
        }
    }
}

impl CustomOp1 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        by_dtype!(storage.dtype(), "attend", T => {
            let mut p = self.probabilities(elements::<T>(storage, layout)?, dims)?;
            self.drop(&mut p, dims[dims.len() - 1]);
            Ok((T::to_cpu_storage_owned(p), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((site::attend(self, (storage, layout), None)?, layout.shape().clone()))
    }

    fn bwd(&self, scores: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        scores.apply_op2_no_bwd(&grad.contiguous()?, &AttendBackward(self)).map(Some)
    }
}

/// From scores and the weights' gradient g to `scale · p (g' - Σ g' p)`, g' = dropout(g).
struct AttendBackward<'a>(&'a Attend);

impl CustomOp2 for AttendBackward<'_> {
    fn name(&self) -> &'static str {
        "attend_backward"
    }

    fn cpu_fwd(
        &self,
        scores: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        by_dtype!(scores.dtype(), "attend", T => {
            let p = self.0.probabilities(elements::<T>(scores, layout)?, dims)?;
            let mut grad = elements::<T>(grad, grad_layout)?.to_vec();
            let width = dims[dims.len() - 1];
            self.0.drop(&mut grad, width);
            softmax_backward(&mut grad, &p, width);
            let scale = T::of(self.0.scale);
            grad.iter_mut().for_each(|g| *g *= scale);
            Ok((T::to_cpu_storage_owned(grad), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        scores: &candle_core::CudaStorage,
        layout: &Layout,
        grad: &candle_core::CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let grad = Some((grad, grad_layout));
        Ok((site::attend(self.0, (scores, layout), grad)?, layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use crate::random::Stream;
    use candle_core::Device;

    #[test]
    fn gradients_match_central_differences_under_mask_and_dropout() {
        let keep = Tensor::new(&[[1u8, 1, 1, 0, 0], [1, 0, 1, 1, 1]], &Device::Cpu).unwrap();
        for (keep, p, row_step) in [(None, 0.0, 1), (Some(keep), 0.4, 5)] {
            let dropout = Dropout::new(Stream::new([1, 2], 3), p);
            let op = Attend { keep, scale: 0.7, dropout, row_step };
            check_gradients(&[wave(&[2, 2, 3, 5], 1.5)], |x| op.clone().apply(&x[0]));
        }
    }
}
