//! Linear map, bias and activation as one operation.
//!
//! candle's own bias gradient (a sum over the first dimension) is 70 times slower than the row sum here. Refuses an
//! input whose last dimension is not the layer's. Invariant: a gradient that nobody tracks is not computed.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{
    Element, Matrix, add_rows, by_dtype, elements, matmul, tensor, with_elements,
};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::{Activation, bias::sum_rows, has_kernels, is_fused};
use crate::error::ModelError;
use crate::params::{Init, ParamSpec, Params, Role};

/// y = act(x Wᵀ + b) on the last dimension of x.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`, uniform in ±1/√inputs.
    pub fn specs(name: &str, inputs: usize, outputs: usize) -> [ParamSpec; 2] {
        let init = Init::fan_in(inputs);
        [
            ParamSpec::new(format!("{name}.weight"), &[outputs, inputs], init, Role::Weight),
            ParamSpec::new(format!("{name}.bias"), &[outputs], init, Role::NoDecay),
        ]
    }

    /// The layer over the tensors of those names.
    ///
    /// # Errors
    /// [`ModelError::MissingParam`], [`ModelError::ParamShape`].
    pub fn new(
        params: &Params,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            weight: params.get(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: params.get(&format!("{name}.bias"), &[outputs])?,
        })
    }

    /// The layer over these two tensors, `[outputs, inputs]` and `[outputs]`.
    pub(crate) fn over(weight: &Tensor, bias: &Tensor) -> Self {
        Self { weight: weight.clone(), bias: bias.clone() }
    }

    /// * `x`: `[..., inputs]`, at least two dimensions; f32 over a weight in bf16 is mixed precision.
    /// * Gives `[..., outputs]`; gradients: `g = grad·act'`, `dx = g W`, `dW = gᵀ x`, `db = Σ_rows g`.
    ///
    /// # Errors
    /// candle's, when shapes or dtypes do not agree.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let dims = x.dims();
        let Some((&inputs, rows)) = dims.split_last() else { bail!("a linear layer got a scalar") };
        if dims.len() == 2 {
            return self.forward_rows(x, activation);
        }
        let y =
            self.forward_rows(&x.reshape((rows.iter().product::<usize>(), inputs))?, activation)?;
        let mut shape = rows.to_vec();
        shape.push(self.bias.dim(0)?);
        y.reshape(shape)
    }

    fn forward_rows(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if !has_kernels(x) || x.dtype() != self.weight.dtype() {
            // A product is taken in the weight's type, all else in that of x.
            let product = x.to_dtype(self.weight.dtype())?.matmul(&self.weight.t()?)?;
            let y = product.to_dtype(x.dtype())?.broadcast_add(&self.bias.to_dtype(x.dtype())?)?;
            return activation.apply(&y);
        }
        if activation.is_fusable() {
            return x.contiguous()?.apply_op3(&self.weight, &self.bias, LinearOp(activation));
        }
        let op = LinearOp(Activation::Identity);
        activation.apply(&x.contiguous()?.apply_op3(&self.weight, &self.bias, op)?)
    }
}

struct LinearOp(Activation);

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
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
        let (rows, inputs) = x_layout.shape().dims2()?;
        let (outputs, _) = weight_layout.shape().dims2()?;
        by_dtype!(x.dtype(), "linear", T => {
            let bias = elements::<T>(bias, bias_layout)?;
            let mut y: Vec<T> = Vec::with_capacity(rows * outputs);
            for _ in 0..rows {
                y.extend_from_slice(bias);
            }
            let x = Matrix::new(elements::<T>(x, x_layout)?, rows, inputs);
            let weight = Matrix::new(elements::<T>(weight, weight_layout)?, outputs, inputs);
            matmul(&mut y, x, weight.transposed(), true)?;
            self.0.apply_in_place(&mut y);
            Ok((T::to_cpu_storage_owned(y), Shape::from((rows, outputs))))
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
        let (rows, inputs) = x_layout.shape().dims2()?;
        let (outputs, _) = weight_layout.shape().dims2()?;
        let sizes = (1, rows, outputs, inputs);
        let mut y = x.matmul(weight, sizes, x_layout, &weight_layout.transpose(0, 1)?)?;
        let layout = Layout::contiguous((rows, outputs));
        site::activate_in_place((&mut y, &layout), (bias, bias_layout), self.0)?;
        Ok((y, Shape::from((rows, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        if !is_fused(&grad) {
            let grad = match self.0 {
                Activation::Identity => grad,
                activation => activation.back(y, &grad)?,
            };
            // Detached: the products would record a graph of their own.
            let dx = || grad.matmul(&weight.detach());
            let dweight = || grad.t()?.matmul(&x.detach());
            return Ok((
                x.track_op().then(dx).transpose()?,
                weight.track_op().then(dweight).transpose()?,
                bias.track_op().then(|| sum_rows(&grad)).transpose()?,
            ));
        }
        by_dtype!(x.dtype(), "linear", T => with_elements::<T, _>(&grad, |grad| {
            if self.0 == Activation::Identity {
                return gradients(x, weight, bias, grad);
            }
            let grad = with_elements::<T, _>(y, |y| Ok(self.0.gradient(y, grad)))?;
            gradients(x, weight, bias, &grad)
        }))
    }
}

/// dx, dW, db for the gradient of x Wᵀ + b; only those that are tracked.
fn gradients<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    grad: &[T],
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let (rows, inputs) = x.dims2()?;
    let (outputs, _) = weight.dims2()?;
    let grad_matrix = Matrix::new(grad, rows, outputs);
    let dx = x.track_op().then(|| {
        with_elements::<T, _>(weight, |weight| {
            let mut dx = vec![T::of(0.0); rows * inputs];
            matmul(&mut dx, grad_matrix, Matrix::new(weight, outputs, inputs), false)?;
            tensor(dx, &[rows, inputs])
        })
    });
    let dweight = weight.track_op().then(|| {
        with_elements::<T, _>(x, |x| {
            let mut dweight = vec![T::of(0.0); outputs * inputs];
            matmul(&mut dweight, grad_matrix.transposed(), Matrix::new(x, rows, inputs), false)?;
            tensor(dweight, &[outputs, inputs])
        })
    });
    let dbias = bias.track_op().then(|| {
        let mut dbias = vec![T::of(0.0); outputs];
        add_rows(&mut dbias, grad);
        tensor(dbias, &[outputs])
    });
    Ok((dx.transpose()?, dweight.transpose()?, dbias.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use candle_core::{DType, Device, Var};

    fn layer(x: &[Tensor]) -> Linear {
        Linear { weight: x[1].clone(), bias: x[2].clone() }
    }

    #[test]
    fn gradients_match_central_differences_for_every_activation_and_rank() {
        for activation in
            [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::Tanh]
        {
            for shape in [vec![7, 5], vec![2, 3, 5]] {
                check_gradients(&[wave(&shape, 1.0), wave(&[4, 5], 0.7), wave(&[4], 0.3)], |x| {
                    layer(x).forward(&x[0], activation)
                });
            }
        }
    }

    #[test]
    fn fused_values_equal_composed_ones() {
        let (x, w, b) = (wave(&[6, 5], 1.0), wave(&[4, 5], 0.7), wave(&[4], 0.3));
        for activation in [Activation::Relu, Activation::Gelu, Activation::Tanh] {
            let fused = layer(&[x.clone(), w.clone(), b.clone()]).forward(&x, activation).unwrap();
            let composed = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
            let composed = activation.apply(&composed).unwrap();
            let error = (fused - composed).unwrap().abs().unwrap().max_all().unwrap();
            assert!(error.to_scalar::<f64>().unwrap() < 1e-14);
        }
    }

    #[test]
    fn a_strided_input_gives_the_same_values_and_no_rows_give_no_rows() {
        let (x, w, b) = (wave(&[5, 6], 1.0), wave(&[4, 5], 0.7), wave(&[4], 0.3));
        let linear = layer(&[x.clone(), w, b]);
        let strided = linear.forward(&x.t().unwrap(), Activation::Relu).unwrap();
        let packed = linear.forward(&x.t().unwrap().contiguous().unwrap(), Activation::Relu);
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(bits(&strided), bits(&packed.unwrap()));
        let empty = Tensor::zeros((0, 5), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(linear.forward(&empty, Activation::Relu).unwrap().dims(), [0, 4]);
    }

    #[test]
    fn an_untracked_input_gets_no_gradient() {
        let x = wave(&[6, 5], 1.0);
        let weight = Var::from_tensor(&wave(&[4, 5], 0.7)).unwrap();
        let bias = Var::from_tensor(&wave(&[4], 0.3)).unwrap();
        let linear = Linear { weight: weight.as_tensor().clone(), bias: bias.as_tensor().clone() };
        let loss = linear.forward(&x, Activation::Relu).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        assert!(grads.get(&x).is_none());
        assert!(grads.get(&weight).is_some() && grads.get(&bias).is_some());
    }

    #[test]
    fn half_precision_takes_the_composed_path_with_gradients() {
        let f16 = |t: Tensor| Var::from_tensor(&t.to_dtype(DType::F16).unwrap()).unwrap();
        let vars = [f16(wave(&[3, 5], 1.0)), f16(wave(&[4, 5], 0.7)), f16(wave(&[4], 0.3))];
        let tensors: Vec<_> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = layer(&tensors).forward(&tensors[0], Activation::Tanh).unwrap();
        assert_eq!(y.dtype(), DType::F16);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(vars.iter().all(|v| grads.get(v).is_some()));
    }
}
