//! Dropout whose mask is a function of the call's key.
//!
//! candle's own draws from a generator that cannot be seeded on the CPU. Invariant: the mask is never stored; the
//! backward pass draws the same one again.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, by_dtype, elements};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::has_kernels;
use super::rows::{Dropout, add};
use crate::architecture::Mode;
use crate::random::Stream;

/// y = x·m/(1-p) in training, m = 0 with probability p and 1 otherwise; y = x in evaluation or for p = 0.
///
/// `layer` tells the dropouts of one pass apart. Element i in row-major order takes draw i of the stream of
/// (`key`, `layer`), so equal keys and shapes give equal masks, on every device.
///
/// # Errors
/// candle's.
///
/// Source: Srivastava et al. 2014, in the inverted form.
pub fn dropout(x: &Tensor, p: f64, mode: Mode, layer: u64) -> Result<Tensor> {
    let Mode::Train { key } = mode else { return Ok(x.clone()) };
    let Some(dropout) = Dropout::new(Stream::new(key, layer), p) else { return Ok(x.clone()) };
    let drop = Drop { dropout, columns: x.elem_count(), row_step: 1 };
    if has_kernels(x) {
        return drop.apply(x);
    }
    let mut mask = vec![1f32; x.elem_count()];
    drop.rows(&mut mask);
    x * Tensor::from_vec(mask, x.dims(), x.device())?.to_dtype(x.dtype())?
}

/// Dropout of a matrix whose rows have places of their own in the stream.
#[derive(Clone, Copy)]
pub(crate) struct Drop {
    /// The draws.
    pub(crate) dropout: Dropout,
    /// Elements of a row.
    pub(crate) columns: usize,
    /// Row r takes draws of row `row_step · r`.
    pub(crate) row_step: usize,
}

impl Drop {
    /// `drop(x)`.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(self)
    }

    /// `residual + drop(branch)`; gradients flow to both.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn add(self, branch: &Tensor, residual: &Tensor) -> Result<Tensor> {
        branch.contiguous()?.apply_op2(&residual.contiguous()?, self)
    }

    fn rows<T: Element>(self, values: &mut [T]) {
        for (r, row) in values.chunks_mut(self.columns.max(1)).enumerate() {
            self.dropout.row(r * self.row_step, self.columns, row);
        }
    }
}

impl CustomOp1 for Drop {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(storage.dtype(), "dropout", T => {
            let mut y = elements::<T>(storage, layout)?.to_vec();
            self.rows(&mut y);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((site::drop((storage, layout), None, self)?, layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(self).map(Some)
    }
}

impl CustomOp2 for Drop {
    fn name(&self) -> &'static str {
        "add_dropped"
    }

    fn cpu_fwd(
        &self,
        branch: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(branch.dtype(), "dropout", T => {
            let mut y = elements::<T>(branch, layout)?.to_vec();
            self.rows(&mut y);
            add(&mut y, elements::<T>(residual, residual_layout)?);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        branch: &candle_core::CudaStorage,
        layout: &Layout,
        residual: &candle_core::CudaStorage,
        residual_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let residual = Some((residual, residual_layout));
        Ok((site::drop((branch, layout), residual, self)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        branch: &Tensor,
        residual: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dropped = || grad.contiguous()?.apply_op1_no_bwd(self);
        let d_branch = branch.track_op().then(dropped).transpose()?;
        Ok((d_branch, residual.track_op().then(|| grad.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use candle_core::{DType, Device};

    const TRAIN: Mode = Mode::Train { key: [3, 4] };

    #[test]
    fn gradients_match_central_differences() {
        check_gradients(&[wave(&[6, 7], 1.0)], |x| dropout(&x[0], 0.4, TRAIN, 1));
    }

    #[test]
    fn gradients_of_a_residual_match_central_differences() {
        let dropout = Dropout::new(Stream::new([3, 4], 1), 0.4).unwrap();
        let drop = Drop { dropout, columns: 7, row_step: 3 };
        check_gradients(&[wave(&[6, 7], 1.0), wave(&[6, 7], 0.5)], |x| drop.add(&x[0], &x[1]));
    }

    #[test]
    fn equal_keys_give_equal_masks_and_others_do_not() {
        let x = Tensor::ones((64, 33), DType::F32, &Device::Cpu).unwrap();
        let run = |mode, layer| {
            dropout(&x, 0.3, mode, layer).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(TRAIN, 0), run(TRAIN, 0));
        assert_ne!(run(TRAIN, 0), run(TRAIN, 1));
        assert_ne!(run(TRAIN, 0), run(Mode::Train { key: [3, 5] }, 0));
        assert_eq!(run(Mode::Eval, 0), vec![1.0; 64 * 33]);
    }

    #[test]
    fn the_dropped_share_is_p_and_the_mean_is_kept() {
        let n = 250_000;
        let x = Tensor::ones((n / 250, 250), DType::F32, &Device::Cpu).unwrap();
        for p in [0.1, 0.5, 0.9] {
            let y =
                dropout(&x, p, TRAIN, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64 / n as f64;
            // Four standard errors of a share.
            assert!((dropped - p).abs() < 4.0 * (p * (1.0 - p) / n as f64).sqrt(), "{p} {dropped}");
            let kept = 1.0 / (1.0 - p);
            assert!(y.iter().all(|&y| y == 0.0 || (f64::from(y) - kept).abs() < 1e-6));
        }
    }

    #[test]
    fn half_precision_gets_the_same_mask() {
        let x = Tensor::ones((5, 9), DType::F32, &Device::Cpu).unwrap();
        let wanted = dropout(&x, 0.5, TRAIN, 0).unwrap();
        let half = dropout(&x.to_dtype(DType::F16).unwrap(), 0.5, TRAIN, 0).unwrap();
        let half = half.to_dtype(DType::F32).unwrap();
        assert_eq!(half.to_vec2::<f32>().unwrap(), wanted.to_vec2::<f32>().unwrap());
    }
}
