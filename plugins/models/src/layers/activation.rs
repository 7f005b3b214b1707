//! Activations, their derivatives, and both GELUs as one operation with a gradient.
//!
//! NaN stays NaN in every activation. Invariant: ReLU and tanh take their derivative from the result, so nothing but
//! the result is kept.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use serde::{Deserialize, Serialize};

use super::element::{Element, by_dtype, elements};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::has_kernels;
use super::rows::{activate, activate_backward};

/// What follows a linear map, element by element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// y = x.
    Identity,
    /// y = max(x, 0); derivative 0 at 0.
    #[default]
    Relu,
    /// y = x Φ(x), Φ the standard normal distribution function (no tanh approximation).
    /// Source: Hendrycks and Gimpel 2016.
    Gelu,
    /// y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation of GELU in the same paper.
    #[serde(rename = "gelu_tanh")]
    GeluTanh,
    /// y = tanh x.
    Tanh,
}

impl Activation {
    /// y of x, any shape; gradients flow.
    ///
    /// # Errors
    /// candle's.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Identity => Ok(x.clone()),
            other if has_kernels(x) => x.contiguous()?.apply_op1(Apply(other)),
            Self::Relu => x.relu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Tanh => x.tanh(),
        }
    }

    /// `grad · dy/dx` from the results y (fusable activations) or the inputs x, without a gradient of its own.
    pub(super) fn back(self, from: &Tensor, grad: &Tensor) -> Result<Tensor> {
        from.apply_op2_no_bwd(&grad.contiguous()?, &Backward(self))
    }

    /// Whether the derivative follows from the result.
    pub(super) fn is_fusable(self) -> bool {
        !matches!(self, Self::Gelu | Self::GeluTanh)
    }

    /// Replaces each x by y (fusable activations; others are left alone).
    pub(super) fn apply_in_place<T: Element>(self, values: &mut [T]) {
        match self {
            Self::Identity | Self::Gelu | Self::GeluTanh => {}
            // Not `max`: it would turn NaN into 0.
            Self::Relu => values.iter_mut().for_each(|x| {
                *x = if *x < T::of(0.0) { T::of(0.0) } else { *x };
            }),
            Self::Tanh => values.iter_mut().for_each(|x| *x = Element::tanh(*x)),
        }
    }

    /// Appends `grad · dy/dx` from the results y.
    pub(super) fn extend_gradient<T: Element>(self, out: &mut Vec<T>, y: &[T], grad: &[T]) {
        let pairs = y.iter().zip(grad);
        match self {
            Self::Identity | Self::Gelu | Self::GeluTanh => out.extend_from_slice(grad),
            // Not `y > 0`: NaN keeps its gradient.
            Self::Relu => {
                out.extend(pairs.map(|(&y, &grad)| if y <= T::of(0.0) { T::of(0.0) } else { grad }))
            }
            Self::Tanh => out.extend(pairs.map(|(&y, &grad)| grad * (T::of(1.0) - y * y))),
        }
    }

    /// As [`Self::extend_gradient`], alone.
    pub(super) fn gradient<T: Element>(self, y: &[T], grad: &[T]) -> Vec<T> {
        let mut out = Vec::with_capacity(grad.len());
        self.extend_gradient(&mut out, y, grad);
        out
    }
}

/// An activation alone.
struct Apply(Activation);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(storage.dtype(), "activation", T => {
            let x = elements::<T>(storage, layout)?;
            let mut y = vec![T::of(0.0); x.len()];
            activate(&mut y, x, self.0);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((site::activate((storage, layout), None, self.0)?, layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.0.back(if self.0.is_fusable() { res } else { arg }, grad).map(Some)
    }
}

/// From the result (fusable activations) or the input, and dy, to dx.
struct Backward(Activation);

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        "activation_backward"
    }

    fn cpu_fwd(
        &self,
        from: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(from.dtype(), "activation", T => {
            let (from, grad) = (elements::<T>(from, layout)?, elements::<T>(grad, grad_layout)?);
            let dx = if self.0.is_fusable() {
                self.0.gradient(from, grad)
            } else {
                let (mut dx, mut y) = (grad.to_vec(), vec![T::of(0.0); from.len()]);
                activate_backward(&mut dx, &mut y, from, self.0);
                dx
            };
            Ok((T::to_cpu_storage_owned(dx), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        from: &candle_core::CudaStorage,
        layout: &Layout,
        grad: &candle_core::CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let dx = site::activate_backward((from, layout), (grad, grad_layout), self.0)?;
        Ok((dx, layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn gradients_match_central_differences() {
        for activation in
            [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh]
        {
            check_gradients(&[wave(&[4, 5], 1.3)], |x| activation.apply(&x[0]));
        }
    }

    #[test]
    fn gelu_has_the_published_values_in_both_dtypes() {
        // Φ(1) = 0.841344746, Φ(-1) = 0.158655254.
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::new(&[0f64, 1.0, -1.0, -30.0, 30.0], &Device::Cpu).unwrap();
            let y = Activation::Gelu.apply(&x.to_dtype(dtype).unwrap()).unwrap();
            let y = y.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            for (y, wanted) in y.iter().zip([0.0, 0.841_344_746, -0.158_655_254, 0.0, 30.0]) {
                assert!((y - wanted).abs() < 4e-6, "{y} {wanted}");
            }
        }
    }

    #[test]
    fn not_a_number_stays_visible() {
        let mut values = [f32::NAN, -1.0, 2.0];
        Activation::Relu.apply_in_place(&mut values);
        assert!(values[0].is_nan());
        assert_eq!(values[1..], [0.0, 2.0]);
        assert!(Activation::Relu.gradient(&[f32::NAN], &[1.0])[0] == 1.0);
    }
}
