//! Two-dimensional convolution of stride 1 that keeps height and width, with bias and activation, as one operation.
//!
//! Images are unfolded into columns, a few at a time, so that memory is bounded whatever the batch. Refuses even
//! kernels. Invariant: the number of images per chunk follows from the layer's sizes alone, so sums have one order.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{
    Element, Matrix, by_dtype, elements, matmul, sum_pairs, tensor, with_elements,
};
use super::{Activation, is_fused};
use crate::error::ModelError;
use crate::params::{Init, ParamSpec, Params, Role};

/// Elements of the unfolded columns of one chunk: 2 MiB in f32, about an L2 cache.
const CHUNK: usize = 1 << 19;

/// y = act(w ∗ x + b), cross-correlation with zero padding of kernel/2.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    kernel: usize,
}

impl Conv2d {
    /// `{name}.weight` `[outputs, inputs, kernel, kernel]` and `{name}.bias` `[outputs]`, uniform in
    /// ±1/√(inputs·kernel²).
    pub fn specs(name: &str, inputs: usize, outputs: usize, kernel: usize) -> [ParamSpec; 2] {
        let init = Init::fan_in(inputs * kernel * kernel);
        let shape = [outputs, inputs, kernel, kernel];
        [
            ParamSpec::new(format!("{name}.weight"), &shape, init, Role::Weight),
            ParamSpec::new(format!("{name}.bias"), &[outputs], init, Role::NoDecay),
        ]
    }

    /// The layer over the tensors of those names; `kernel` is odd.
    ///
    /// # Errors
    /// [`ModelError::MissingParam`], [`ModelError::ParamShape`].
    pub fn new(
        params: &Params,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> std::result::Result<Self, ModelError> {
        let shape = [outputs, inputs, kernel, kernel];
        Ok(Self {
            weight: params.get(&format!("{name}.weight"), &shape)?,
            bias: params.get(&format!("{name}.bias"), &[outputs])?,
            kernel,
        })
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H, W]`; gradients flow to x, weight and bias.
    ///
    /// # Errors
    /// candle's, when shapes or dtypes do not agree; an even kernel.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if self.kernel.is_multiple_of(2) {
            bail!("conv2d keeps the size of an image for odd kernels only, not {}", self.kernel);
        }
        if !is_fused(x) || x.dtype() != self.weight.dtype() {
            let bias = self.bias.reshape((1, self.bias.dim(0)?, 1, 1))?;
            let y = x.conv2d(&self.weight, self.kernel / 2, 1, 1, 1)?.broadcast_add(&bias)?;
            return activation.apply(&y);
        }
        let fused = if activation.is_fusable() { activation } else { Activation::Identity };
        let y = x.contiguous()?.apply_op3(&self.weight, &self.bias, ConvOp(fused))?;
        if fused == activation { Ok(y) } else { activation.apply(&y) }
    }
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: usize,
}

impl Geometry {
    fn new(x: &Shape, weight: &Shape) -> Result<Self> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, weight_inputs, kernel, _) = weight.dims4()?;
        if inputs != weight_inputs {
            bail!("conv2d of {inputs} channels with a weight for {weight_inputs}");
        }
        Ok(Self { batch, inputs, outputs, height, width, kernel })
    }

    /// Pixels of a plane.
    fn plane(self) -> usize {
        self.height * self.width
    }

    /// Weights that meet in one output pixel.
    fn taps(self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    fn chunk(self) -> usize {
        (CHUNK / (self.taps() * self.plane()).max(1)).max(1)
    }

    /// Calls `f` with ranges of images.
    fn chunks(self, mut f: impl FnMut(std::ops::Range<usize>) -> Result<()>) -> Result<()> {
        (0..self.batch)
            .step_by(self.chunk())
            .try_for_each(|begin| f(begin..(begin + self.chunk()).min(self.batch)))
    }

    /// Calls `f` for each run of pixels that a tap moves: where it starts in the columns (row-major
    /// `[taps, images·plane]`), where in x, and its length.
    fn runs(self, images: std::ops::Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let pad = self.kernel / 2;
        let columns = images.len() * self.plane();
        for tap in 0..self.taps() {
            let (channel, di, dj) = (
                tap / (self.kernel * self.kernel),
                tap / self.kernel % self.kernel,
                tap % self.kernel,
            );
            let rows =
                pad.saturating_sub(di)..(self.height + pad).saturating_sub(di).min(self.height);
            let first = pad.saturating_sub(dj);
            let last = (self.width + pad).saturating_sub(dj).min(self.width);
            if first >= last {
                continue;
            }
            for (slot, image) in images.clone().enumerate() {
                let source = (image * self.inputs + channel) * self.plane();
                for i in rows.clone() {
                    let to = tap * columns + slot * self.plane() + i * self.width + first;
                    let from = source + (i + di - pad) * self.width + (first + dj - pad);
                    f(to, from, last - first);
                }
            }
        }
    }

    /// Unfolds images into zeroed columns.
    fn unfold<T: Element>(self, columns: &mut [T], x: &[T], images: std::ops::Range<usize>) {
        self.runs(images, |to, from, length| {
            columns[to..to + length].copy_from_slice(&x[from..from + length]);
        });
    }

    /// Adds columns back to the images they came from.
    fn fold<T: Element>(self, dx: &mut [T], columns: &[T], images: std::ops::Range<usize>) {
        self.runs(images, |to, from, length| {
            for (dx, &column) in dx[from..from + length].iter_mut().zip(&columns[to..to + length]) {
                *dx += column;
            }
        });
    }
}

struct ConvOp(Activation);

impl ConvOp {
    fn forward<T: Element>(
        &self,
        g: Geometry,
        x: &[T],
        weight: &[T],
        bias: &[T],
    ) -> Result<Vec<T>> {
        let mut y = vec![T::of(0.0); g.batch * g.outputs * g.plane()];
        g.chunks(|images| {
            let width = images.len() * g.plane();
            let mut columns = vec![T::of(0.0); g.taps() * width];
            g.unfold(&mut columns, x, images.clone());
            let mut out = vec![T::of(0.0); g.outputs * width];
            let columns = Matrix::new(&columns, g.taps(), width);
            matmul(&mut out, Matrix::new(weight, g.outputs, g.taps()), columns, false)?;
            for (slot, image) in images.enumerate() {
                for (channel, &bias) in bias.iter().enumerate() {
                    let from = channel * width + slot * g.plane();
                    let to = (image * g.outputs + channel) * g.plane();
                    let source = &out[from..from + g.plane()];
                    for (y, &out) in y[to..to + g.plane()].iter_mut().zip(source) {
                        *y = out + bias;
                    }
                }
            }
            Ok(())
        })?;
        self.0.apply_in_place(&mut y);
        Ok(y)
    }

    /// grad·act' of some images, `[outputs, images·plane]`.
    fn gather<T: Element>(
        &self,
        g: Geometry,
        y: &[T],
        grad: &[T],
        images: std::ops::Range<usize>,
    ) -> Vec<T> {
        let mut gathered = Vec::with_capacity(images.len() * g.outputs * g.plane());
        for channel in 0..g.outputs {
            for image in images.clone() {
                let from = (image * g.outputs + channel) * g.plane();
                let (y, grad) = (&y[from..from + g.plane()], &grad[from..from + g.plane()]);
                self.0.extend_gradient(&mut gathered, y, grad);
            }
        }
        gathered
    }

    fn backward<T: Element>(
        &self,
        g: Geometry,
        x: (&Tensor, &[T]),
        weight: (&Tensor, &[T]),
        bias: &Tensor,
        y_and_grad: (&[T], &[T]),
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let zeros = |tracked: bool, count: usize| vec![T::of(0.0); if tracked { count } else { 0 }];
        let mut dx = zeros(x.0.track_op(), x.1.len());
        let mut dweight = zeros(weight.0.track_op(), weight.1.len());
        let mut dbias = zeros(bias.track_op(), g.outputs);
        g.chunks(|images| {
            let width = images.len() * g.plane();
            let grad = self.gather(g, y_and_grad.0, y_and_grad.1, images.clone());
            for (dbias, row) in dbias.iter_mut().zip(grad.chunks_exact(width.max(1))) {
                *dbias += T::of(sum_pairs(row, row, |grad, _| grad));
            }
            let grad = Matrix::new(&grad, g.outputs, width);
            let mut columns = vec![T::of(0.0); g.taps() * width];
            if weight.0.track_op() {
                g.unfold(&mut columns, x.1, images.clone());
                let unfolded = Matrix::new(&columns, g.taps(), width);
                matmul(&mut dweight, grad, unfolded.transposed(), true)?;
            }
            if x.0.track_op() {
                let weight = Matrix::new(weight.1, g.outputs, g.taps());
                matmul(&mut columns, weight.transposed(), grad, false)?;
                g.fold(&mut dx, &columns, images);
            }
            Ok(())
        })?;
        let give = |like: &Tensor, values: Vec<T>| {
            like.track_op().then(|| tensor(values, like.dims())).transpose()
        };
        Ok((give(x.0, dx)?, give(weight.0, dweight)?, give(bias, dbias)?))
    }
}

impl CustomOp3 for ConvOp {
    fn name(&self) -> &'static str {
        "conv2d"
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
        let g = Geometry::new(x_layout.shape(), weight_layout.shape())?;
        by_dtype!(x.dtype(), "conv2d", T => {
            let weight = elements::<T>(weight, weight_layout)?;
            let y = self.forward(g, elements(x, x_layout)?, weight, elements(bias, bias_layout)?)?;
            let shape = Shape::from((g.batch, g.outputs, g.height, g.width));
            Ok((T::to_cpu_storage_owned(y), shape))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = Geometry::new(x.shape(), weight.shape())?;
        let grad = grad.contiguous()?;
        by_dtype!(x.dtype(), "conv2d", T => with_elements::<T, _>(x, |x_values| {
            with_elements::<T, _>(weight, |weight_values| {
                with_elements::<T, _>(y, |y| {
                    with_elements::<T, _>(&grad, |grad| {
                        let (x, weight) = ((x, x_values), (weight, weight_values));
                        self.backward(g, x, weight, bias, (y, grad))
                    })
                })
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;

    fn layer(x: &[Tensor]) -> Conv2d {
        Conv2d { weight: x[1].clone(), bias: x[2].clone(), kernel: x[1].dims()[2] }
    }

    #[test]
    fn gradients_match_central_differences() {
        for activation in [Activation::Identity, Activation::Relu, Activation::Gelu] {
            for (kernel, height, width) in [(1, 3, 2), (3, 4, 5), (5, 2, 3)] {
                let x = wave(&[2, 3, height, width], 1.0);
                let w = wave(&[4, 3, kernel, kernel], 0.5);
                check_gradients(&[x, w, wave(&[4], 0.3)], |x| layer(x).forward(&x[0], activation));
            }
        }
    }

    #[test]
    fn values_equal_those_of_candle_over_several_chunks() {
        // 27 taps x 48² pixels = 62,208 columns an image: 8 images a chunk, so 19 make three.
        for (kernel, batch, size) in [(1, 2, 5), (3, 19, 48), (7, 2, 4)] {
            let x = wave(&[batch, 3, size, size], 1.0);
            let (w, b) = (wave(&[2, 3, kernel, kernel], 0.5), wave(&[2], 0.3));
            let y = layer(&[x.clone(), w.clone(), b.clone()]);
            let y = y.forward(&x, Activation::Identity).unwrap();
            let wanted = x.conv2d(&w, kernel / 2, 1, 1, 1).unwrap();
            let wanted = wanted.broadcast_add(&b.reshape((1, 2, 1, 1)).unwrap()).unwrap();
            let error = (y - wanted).unwrap().abs().unwrap().max_all().unwrap();
            assert!(error.to_scalar::<f64>().unwrap() < 1e-12);
        }
    }

    #[test]
    fn weight_gradients_add_up_over_chunks() {
        let var = |t: Tensor| candle_core::Var::from_tensor(&t).unwrap();
        let (w, b) = (var(wave(&[2, 3, 3, 3], 0.5)), var(wave(&[2], 0.3)));
        let x = wave(&[19, 3, 48, 48], 1.0);
        let layer = layer(&[x.clone(), w.as_tensor().clone(), b.as_tensor().clone()]);
        let y = layer.forward(&x, Activation::Tanh).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let bias = b.reshape((1, 2, 1, 1)).unwrap();
        let y = x.conv2d(&w, 1, 1, 1, 1).unwrap().broadcast_add(&bias).unwrap().tanh().unwrap();
        let wanted = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for tensor in [w.as_tensor(), b.as_tensor()] {
            let (grad, wanted) = (grads.get(tensor).unwrap(), wanted.get(tensor).unwrap());
            let error = (grad - wanted).unwrap().abs().unwrap().max_all().unwrap();
            assert!(error.to_scalar::<f64>().unwrap() < 1e-9);
        }
    }

    #[test]
    fn an_even_kernel_is_refused() {
        let layer = layer(&[wave(&[1], 1.0), wave(&[1, 1, 2, 2], 1.0), wave(&[1], 1.0)]);
        let message = layer.forward(&wave(&[1, 1, 4, 4], 1.0), Activation::Relu).unwrap_err();
        assert!(message.to_string().contains("odd kernels only"));
    }
}
