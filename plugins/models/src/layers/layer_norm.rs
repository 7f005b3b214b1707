//! Layer normalization of rows, with its gradients.
//!
//! Refuses dtypes without a fused form. Invariant: of the forward pass nothing but its input is kept; mean and scale of a
//! row are computed again.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, by_dtype, elements};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::rows::{norm, norm_backward};

/// y = (x - μ)/√(σ² + ε) · w + b for each row of the last dimension; μ, σ² (biased) of the row.
///
/// * `x`: `[..., C]`; `weight`, `bias`: `[C]`, the dtype of x. Gradients flow to all three.
///
/// # Errors
/// candle's.
///
/// Source: Ba et al. 2016.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, Norm { eps })
}

#[derive(Clone, Copy)]
struct Norm {
    eps: f64,
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), "layer_norm", T => {
            let (w, b) = (elements::<T>(weight, weight_layout)?, elements(bias, bias_layout)?);
            let (y, ..) = self.normalize(elements::<T>(x, x_layout)?, w, b);
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
        bias: &candle_core::CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let given = [(x, x_layout), (weight, weight_layout), (bias, bias_layout)];
        Ok((site::norm(given, self.eps)?, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let all = x.apply_op3_no_bwd(weight, &grad.contiguous()?, &NormBackward(*self))?;
        let mut from = 0;
        let mut next = |of: &Tensor| {
            let start = from;
            from += of.elem_count();
            of.track_op().then(|| all.narrow(0, start, of.elem_count())?.reshape(of.shape()))
        };
        let [dx, dw, db] = [x, weight, bias].map(&mut next);
        Ok((dx.transpose()?, dw.transpose()?, db.transpose()?))
    }
}

impl Norm {
    /// y, x̂ and 1/√(σ² + ε).
    fn normalize<T: Element>(self, x: &[T], w: &[T], b: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
        let (mut y, mut normalized) = (x.to_vec(), vec![T::of(0.0); x.len()]);
        let mut scales = vec![T::of(0.0); x.len() / w.len().max(1)];
        norm(&mut y, &[], &mut normalized, &mut scales, w, b, self.eps);
        (y, normalized, scales)
    }
}

/// From x, w and dy to dx, dw and db, one after another.
struct NormBackward(Norm);

impl CustomOp3 for NormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), "layer_norm", T => {
            let w = elements::<T>(weight, weight_layout)?;
            let (_, normalized, scales) = self.0.normalize(elements(x, x_layout)?, w, w);
            let mut out = elements::<T>(grad, grad_layout)?.to_vec();
            let count = out.len();
            out.resize(count + 2 * w.len(), T::of(0.0));
            let (dx, sums) = out.split_at_mut(count);
            let (dw, db) = sums.split_at_mut(w.len());
            norm_backward(dx, &normalized, &scales, w, dw, db);
            let shape = Shape::from(out.len());
            Ok((T::to_cpu_storage_owned(out), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
        grad: &candle_core::CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let given = [(x, x_layout), (weight, weight_layout), (grad, grad_layout)];
        let count = x_layout.shape().elem_count() + 2 * weight_layout.shape().elem_count();
        Ok((site::norm_backward(given, self.0.eps)?, Shape::from(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;

    #[test]
    fn gradients_match_central_differences() {
        for shape in [vec![3, 7], vec![2, 3, 20]] {
            let width = [shape[shape.len() - 1]];
            let tensors = [wave(&shape, 1.0), wave(&width, 0.7), wave(&width, 0.3)];
            check_gradients(&tensors, |x| layer_norm(&x[0], &x[1], &x[2], 1e-5));
        }
    }
}
