//! Dropout whose mask is a function of the call's key.
//!
//! candle's own draws from a generator that cannot be seeded on the CPU. Invariant: the mask is never stored; the
//! backward pass draws the same one again.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, by_dtype, elements, tensor, with_elements};
use super::is_fused;
use super::rows::Dropout;
use crate::architecture::Mode;
use crate::random::Stream;

/// y = x·m/(1-p) in training, m = 0 with probability p and 1 otherwise; y = x in evaluation or for p = 0.
///
/// `layer` tells the dropouts of one pass apart. Element i in row-major order takes draw i of the stream of
/// (`key`, `layer`), so equal keys and shapes give equal masks. On other devices than the CPU the mask is drawn on
/// the CPU and copied, which costs a transfer.
///
/// # Errors
/// candle's.
///
/// Source: Srivastava et al. 2014, in the inverted form.
pub fn dropout(x: &Tensor, p: f64, mode: Mode, layer: u64) -> Result<Tensor> {
    let Mode::Train { key } = mode else { return Ok(x.clone()) };
    if p <= 0.0 {
        return Ok(x.clone());
    }
    let op = DropoutOp { stream: Stream::new(key, layer), p };
    if is_fused(x) {
        return x.contiguous()?.apply_op1(op);
    }
    let mut mask = vec![1f32; x.elem_count()];
    op.apply(&mut mask);
    x * Tensor::from_vec(mask, x.dims(), x.device())?.to_dtype(x.dtype())?
}

#[derive(Clone, Copy)]
struct DropoutOp {
    stream: Stream,
    p: f64,
}

impl DropoutOp {
    fn apply<T: Element>(self, values: &mut [T]) {
        if let Some(dropout) = Dropout::new(self.stream, self.p) {
            dropout.row(0, values.len(), values);
        }
    }
}

impl CustomOp1 for DropoutOp {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(storage.dtype(), "dropout", T => {
            let mut y = elements::<T>(storage, layout)?.to_vec();
            self.apply(&mut y);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        by_dtype!(arg.dtype(), "dropout", T => with_elements::<T, _>(&grad.contiguous()?, |grad| {
            let mut dx = grad.to_vec();
            self.apply(&mut dx);
            tensor(dx, arg.dims())
        }))
        .map(Some)
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
