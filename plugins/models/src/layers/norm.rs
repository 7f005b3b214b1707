//! Batch normalization whose running statistics are parameters.
//!
//! candle's own copies its statistics when it is built, so a twin over the same storage would not see them move.
//! Refuses a training pass with one value a channel. Invariant: evaluation reads the statistics and changes nothing.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, by_dtype, elements, sum_pairs, tensor, with_elements};
use super::is_fused;
use crate::architecture::Mode;
use crate::error::ModelError;
use crate::params::{Init, ParamSpec, Params, Role};

const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// y = (x - μ)/√(σ² + 1e-5) · w + b for each channel of `[B, C, ...]`.
///
/// Training takes μ, σ² of the batch (biased) and moves the running mean and variance (unbiased) a tenth of the way;
/// evaluation takes the running ones. Source: Ioffe and Szegedy 2015; constants as in PyTorch.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// `{name}.weight`, `.bias`, `.running_mean`, `.running_var`, each `[channels]`.
    pub fn specs(name: &str, channels: usize) -> [ParamSpec; 4] {
        [
            ("weight", Init::Ones, Role::NoDecay),
            ("bias", Init::Zeros, Role::NoDecay),
            ("running_mean", Init::Zeros, Role::Buffer),
            ("running_var", Init::Ones, Role::Buffer),
        ]
        .map(|(part, init, role)| ParamSpec::new(format!("{name}.{part}"), &[channels], init, role))
    }

    /// The layer over the tensors of those names.
    ///
    /// # Errors
    /// [`ModelError::MissingParam`], [`ModelError::ParamShape`].
    pub fn new(
        params: &Params,
        name: &str,
        channels: usize,
    ) -> std::result::Result<Self, ModelError> {
        let get = |part: &str| params.get(&format!("{name}.{part}"), &[channels]);
        Ok(Self {
            weight: get("weight")?,
            bias: get("bias")?,
            running_mean: get("running_mean")?,
            running_var: get("running_var")?,
        })
    }

    /// * `x`: `[B, channels, ...]`; gradients flow to x, weight and bias, in training also through μ and σ².
    ///
    /// # Errors
    /// In training if a channel has fewer than two values; candle's.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = x.contiguous()?;
        let count = x.elem_count() / x.dim(1)?.max(1);
        let is_training = mode != Mode::Eval;
        if is_training && count < 2 {
            bail!("batch normalization needs two values a channel to train, the batch has {count}");
        }
        if !is_fused(&x) || x.dtype() != self.weight.dtype() {
            return self.forward_composed(&x, is_training, count);
        }
        let (mean, var) = if is_training {
            by_dtype!(x.dtype(), "batch_norm", T => with_elements::<T, _>(&x, |values| {
                moments(values, x.dims())
            }))?
        } else {
            (to_f64(&self.running_mean)?, to_f64(&self.running_var)?)
        };
        if is_training {
            let statistics = |values: &[f64]| {
                Tensor::from_slice(values, values.len(), x.device())?
                    .to_dtype(self.running_mean.dtype())
            };
            self.move_statistics(&statistics(&mean)?, &statistics(&var)?, count)?;
        }
        let scale = var.iter().map(|var| 1.0 / (var + EPSILON).sqrt()).collect();
        x.apply_op3(&self.weight, &self.bias, NormOp { mean, scale, is_training })
    }

    fn forward_composed(&self, x: &Tensor, is_training: bool, count: usize) -> Result<Tensor> {
        let channels = x.dim(1)?;
        let rows = x.transpose(0, 1)?.contiguous()?.reshape((channels, count))?;
        let column = |t: &Tensor| t.reshape((channels, 1));
        let (mean, var) = if is_training {
            let mean = rows.mean_keepdim(1)?;
            let var = rows.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?;
            let flat = |t: &Tensor| t.detach().flatten_all()?.to_dtype(self.running_mean.dtype());
            self.move_statistics(&flat(&mean)?, &flat(&var)?, count)?;
            (mean, var)
        } else {
            let typed = |t: &Tensor| column(&t.detach())?.to_dtype(x.dtype());
            (typed(&self.running_mean)?, typed(&self.running_var)?)
        };
        let normal = rows.broadcast_sub(&mean)?.broadcast_div(&(var + EPSILON)?.sqrt()?)?;
        let y =
            normal.broadcast_mul(&column(&self.weight)?)?.broadcast_add(&column(&self.bias)?)?;
        let mut shape = x.dims().to_vec();
        shape.swap(0, 1);
        y.reshape(shape)?.transpose(0, 1)?.contiguous()
    }

    /// Writes in place, so that a twin over the same storage sees it.
    fn move_statistics(&self, mean: &Tensor, var: &Tensor, count: usize) -> Result<()> {
        let unbiased = (var * (count as f64 / (count as f64 - 1.0)))?;
        for (running, batch) in [(&self.running_mean, mean), (&self.running_var, &unbiased)] {
            let moved = ((running.detach() * (1.0 - MOMENTUM))? + (batch * MOMENTUM)?)?;
            running.slice_set(&moved, 0, 0)?;
        }
        Ok(())
    }
}

fn to_f64(t: &Tensor) -> Result<Vec<f64>> {
    t.detach().to_dtype(DType::F64)?.to_vec1()
}

/// Mean and biased variance of each channel, in f64, two passes.
fn moments<T: Element>(x: &[T], dims: &[usize]) -> Result<(Vec<f64>, Vec<f64>)> {
    let channels = dims.get(1).copied().unwrap_or(0);
    let plane: usize = dims.iter().skip(2).product();
    let count = (x.len() / channels.max(1)).max(1) as f64;
    let mut mean = vec![0f64; channels];
    let mut var = vec![0f64; channels];
    for (index, values) in x.chunks_exact(plane.max(1)).enumerate() {
        mean[index % channels] += sum_pairs(values, values, |x, _| x);
    }
    mean.iter_mut().for_each(|mean| *mean /= count);
    for (index, values) in x.chunks_exact(plane.max(1)).enumerate() {
        let mean = mean[index % channels];
        var[index % channels] += sum_pairs(values, values, |x, _| (x - mean) * (x - mean));
    }
    var.iter_mut().for_each(|var| *var /= count);
    Ok((mean, var))
}

struct NormOp {
    mean: Vec<f64>,
    /// 1/√(σ² + ε).
    scale: Vec<f64>,
    is_training: bool,
}

impl NormOp {
    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: &[T], plane: usize) -> Vec<T> {
        let channels = weight.len();
        let mut y = Vec::with_capacity(x.len());
        for (index, values) in x.chunks_exact(plane.max(1)).enumerate() {
            let channel = index % channels;
            let (mean, scale) = (T::of(self.mean[channel]), T::of(self.scale[channel]));
            let (weight, bias) = (weight[channel], bias[channel]);
            y.extend(values.iter().map(|&x| (x - mean) * scale * weight + bias));
        }
        y
    }

    /// Σ grad and Σ grad·x̂ of each channel: the gradients of bias and weight.
    fn sums<T: Element>(&self, x: &[T], grad: &[T], plane: usize) -> (Vec<f64>, Vec<f64>) {
        let channels = self.mean.len();
        let (mut dbias, mut dweight) = (vec![0f64; channels], vec![0f64; channels]);
        let planes = x.chunks_exact(plane.max(1)).zip(grad.chunks_exact(plane.max(1)));
        for (index, (x, grad)) in planes.enumerate() {
            let channel = index % channels;
            let (mean, scale) = (self.mean[channel], self.scale[channel]);
            dbias[channel] += sum_pairs(grad, grad, |grad, _| grad);
            dweight[channel] += sum_pairs(x, grad, |x, grad| grad * (x - mean) * scale);
        }
        (dbias, dweight)
    }

    /// Training: `dx = scale·w·(grad - (Σgrad + x̂ Σgrad·x̂)/M)`, M values a channel. Evaluation: `scale·w·grad`.
    fn input_gradient<T: Element>(
        &self,
        x: &[T],
        grad: &[T],
        weight: &[T],
        plane: usize,
        sums: &(Vec<f64>, Vec<f64>),
    ) -> Vec<T> {
        let channels = weight.len();
        let count = (x.len() / channels.max(1)).max(1) as f64;
        let share = if self.is_training { 1.0 / count } else { 0.0 };
        let mut dx = Vec::with_capacity(x.len());
        let planes = x.chunks_exact(plane.max(1)).zip(grad.chunks_exact(plane.max(1)));
        for (index, (x, grad)) in planes.enumerate() {
            let channel = index % channels;
            let (mean, scale) = (T::of(self.mean[channel]), T::of(self.scale[channel]));
            let factor = scale * weight[channel];
            let (a, b) = (T::of(sums.0[channel] * share), T::of(sums.1[channel] * share));
            dx.extend(
                x.iter().zip(grad).map(|(&x, &grad)| factor * (grad - a - (x - mean) * scale * b)),
            );
        }
        dx
    }
}

impl CustomOp3 for NormOp {
    fn name(&self) -> &'static str {
        "batch_norm"
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
        let plane = x_layout.dims().iter().skip(2).product();
        by_dtype!(x.dtype(), "batch_norm", T => {
            let weight = elements::<T>(weight, weight_layout)?;
            let bias = elements::<T>(bias, bias_layout)?;
            let y = self.forward(elements::<T>(x, x_layout)?, weight, bias, plane);
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let plane = x.dims().iter().skip(2).product();
        let grad = grad.contiguous()?;
        by_dtype!(x.dtype(), "batch_norm", T => with_elements::<T, _>(x, |x_values| {
            with_elements::<T, _>(&grad, |grad| {
                let sums = self.sums(x_values, grad, plane);
                let dx = x.track_op().then(|| {
                    with_elements::<T, _>(weight, |weight| {
                        tensor(self.input_gradient(x_values, grad, weight, plane, &sums), x.dims())
                    })
                });
                let give = |like: &Tensor, sums: &[f64]| {
                    let values = sums.iter().map(|&sum| T::of(sum)).collect();
                    like.track_op().then(|| tensor(values, like.dims())).transpose()
                };
                Ok((dx.transpose()?, give(weight, &sums.1)?, give(bias, &sums.0)?))
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use candle_core::{Device, Var};

    const TRAIN: Mode = Mode::Train { key: [0, 0] };

    fn layer(weight: &Tensor, bias: &Tensor) -> BatchNorm {
        let channels = weight.dims()[0];
        BatchNorm {
            weight: weight.clone(),
            bias: bias.clone(),
            running_mean: wave(&[channels], 0.4),
            running_var: (wave(&[channels], 0.4) + 1.0).unwrap(),
        }
    }

    #[test]
    fn gradients_match_central_differences_in_both_modes() {
        for mode in [TRAIN, Mode::Eval] {
            for shape in [vec![4, 3], vec![2, 3, 2, 2]] {
                let tensors = [wave(&shape, 1.0), wave(&[3], 0.7), wave(&[3], 0.3)];
                check_gradients(&tensors, |x| layer(&x[1], &x[2]).forward(&x[0], mode));
            }
        }
    }

    #[test]
    fn fused_values_and_statistics_equal_composed_ones() {
        let x = wave(&[3, 2, 2, 2], 1.0);
        for is_training in [true, false] {
            let fused = layer(&wave(&[2], 0.7), &wave(&[2], 0.3));
            let composed = layer(&wave(&[2], 0.7), &wave(&[2], 0.3));
            let mode = if is_training { TRAIN } else { Mode::Eval };
            let y = fused.forward(&x, mode).unwrap();
            let wanted = composed.forward_composed(&x, is_training, 12).unwrap();
            for (a, b) in [
                (&y, &wanted),
                (&fused.running_mean, &composed.running_mean),
                (&fused.running_var, &composed.running_var),
            ] {
                let error = (a - b).unwrap().abs().unwrap().max_all().unwrap();
                assert!(error.to_scalar::<f64>().unwrap() < 1e-13);
            }
        }
    }

    #[test]
    fn statistics_move_a_tenth_and_a_twin_sees_them() {
        let mean = Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let var = Var::ones(2, DType::F32, &Device::Cpu).unwrap();
        let ones = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let layer = |twin: bool| BatchNorm {
            weight: ones.clone(),
            bias: ones.zeros_like().unwrap(),
            running_mean: if twin { mean.as_detached_tensor() } else { mean.as_tensor().clone() },
            running_var: if twin { var.as_detached_tensor() } else { var.as_tensor().clone() },
        };
        let twin = layer(true);
        let x = Tensor::new(&[[1f32, 10.0], [3.0, 30.0]], &Device::Cpu).unwrap();
        let before = twin.forward(&x, Mode::Eval).unwrap().to_vec2::<f32>().unwrap();
        let y = layer(false).forward(&x, TRAIN).unwrap().to_vec2::<f32>().unwrap();
        assert!((y[0][0] + 1.0).abs() < 1e-4 && (y[1][1] - 1.0).abs() < 1e-4, "{y:?}");
        // Means 2 and 20; unbiased variances 2 and 200.
        let close = |t: &Var, wanted: [f32; 2]| {
            let found = t.to_vec1::<f32>().unwrap();
            assert!(found.iter().zip(wanted).all(|(f, w)| (f - w).abs() < 1e-5), "{found:?}");
        };
        close(&mean, [0.2, 2.0]);
        close(&var, [1.1, 20.9]);
        let after = twin.forward(&x, Mode::Eval).unwrap().to_vec2::<f32>().unwrap();
        assert_ne!(before, after);
        let wanted = (1.0 - 0.2) / (1.1f32 + 1e-5).sqrt();
        assert!((after[0][0] - wanted).abs() < 1e-5);
    }

    #[test]
    fn one_value_a_channel_is_refused_in_training_only() {
        let layer = layer(&wave(&[3], 0.7), &wave(&[3], 0.3));
        let x = wave(&[1, 3], 1.0);
        assert!(layer.forward(&x, TRAIN).unwrap_err().to_string().contains("two values a channel"));
        assert!(layer.forward(&x, Mode::Eval).is_ok());
    }
}
