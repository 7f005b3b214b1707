//! Max and average pooling over windows that do not overlap.
//!
//! Rows and columns that fill no window are left out (candle's own gradient fails there). Invariant: of equal
//! maxima the first one in row-major order gets the whole gradient, as in PyTorch.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};
use serde::{Deserialize, Serialize};

use super::element::{Element, by_dtype, elements, tensor, with_elements};
use super::is_fused;

/// What stands for a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Nothing: no pooling.
    None,
    /// Its largest element; NaN if one is.
    #[default]
    Max,
    /// Its mean.
    Average,
}

/// Pools `[B, C, H, W]` to `[B, C, ⌊H/size⌋, ⌊W/size⌋]`; gradients flow.
///
/// # Errors
/// candle's, when `x` has not four dimensions or `size` is 0.
pub fn pool2d(x: &Tensor, pool: Pool, size: usize) -> Result<Tensor> {
    if pool == Pool::None {
        return Ok(x.clone());
    }
    if is_fused(x) {
        return x.contiguous()?.apply_op1(PoolOp { pool, size });
    }
    let (_, _, height, width) = x.dims4()?;
    let x =
        x.narrow(2, 0, height / size * size)?.narrow(3, 0, width / size * size)?.contiguous()?;
    if pool == Pool::Max { x.max_pool2d(size) } else { x.avg_pool2d(size) }
}

struct PoolOp {
    pool: Pool,
    size: usize,
}

/// Positions of one window's first element and of its result.
fn windows(planes: usize, height: usize, width: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..planes).flat_map(move |plane| {
        (0..height / size).flat_map(move |i| {
            (0..width / size).map(move |j| (plane * height + i * size) * width + j * size)
        })
    })
}

/// Positions of a window's elements in row-major order.
fn window(first: usize, width: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..size).flat_map(move |i| (0..size).map(move |j| first + i * width + j))
}

impl PoolOp {
    fn argmax<T: Element>(&self, x: &[T], first: usize, width: usize) -> usize {
        let mut best = first;
        for at in window(first, width, self.size) {
            // A NaN compares false with all, so it is taken by hand and then kept.
            if x[at] > x[best] || (x[at].to_f64().is_nan() && !x[best].to_f64().is_nan()) {
                best = at;
            }
        }
        best
    }

    fn forward<T: Element>(&self, x: &[T], planes: usize, height: usize, width: usize) -> Vec<T> {
        let scale = T::of(1.0 / (self.size * self.size) as f64);
        windows(planes, height, width, self.size)
            .map(|first| match self.pool {
                Pool::Average => {
                    let sum =
                        window(first, width, self.size).fold(T::of(0.0), |sum, at| sum + x[at]);
                    sum * scale
                }
                _ => x[self.argmax(x, first, width)],
            })
            .collect()
    }

    fn backward<T: Element>(&self, x: &[T], grad: &[T], dims: (usize, usize, usize)) -> Vec<T> {
        let (planes, height, width) = dims;
        let mut dx = vec![T::of(0.0); x.len()];
        let scale = T::of(1.0 / (self.size * self.size) as f64);
        for (first, &grad) in windows(planes, height, width, self.size).zip(grad) {
            match self.pool {
                Pool::Average => {
                    window(first, width, self.size).for_each(|at| dx[at] = grad * scale);
                }
                _ => dx[self.argmax(x, first, width)] = grad,
            }
        }
        dx
    }
}

impl CustomOp1 for PoolOp {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        if self.size == 0 {
            candle_core::bail!("pool2d of size 0");
        }
        by_dtype!(storage.dtype(), "pool2d", T => {
            let y = self.forward(elements::<T>(storage, layout)?, batch * channels, height, width);
            let shape = Shape::from((batch, channels, height / self.size, width / self.size));
            Ok((T::to_cpu_storage_owned(y), shape))
        })
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (batch, channels, height, width) = arg.dims4()?;
        by_dtype!(arg.dtype(), "pool2d", T => with_elements::<T, _>(arg, |x| {
            with_elements::<T, _>(&grad.contiguous()?, |grad| {
                tensor(self.backward(x, grad, (batch * channels, height, width)), arg.dims())
            })
        }))
        .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn gradients_match_central_differences_also_with_a_rest() {
        for pool in [Pool::Max, Pool::Average, Pool::None] {
            for (height, width) in [(4, 4), (5, 7)] {
                check_gradients(&[wave(&[2, 3, height, width], 1.0)], |x| pool2d(&x[0], pool, 2));
            }
        }
    }

    #[test]
    fn values_equal_those_of_candle() {
        let x = wave(&[2, 3, 5, 7], 1.0);
        let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let max = pool2d(&x, Pool::Max, 2).unwrap();
        assert_eq!(bits(max), bits(x.max_pool2d(2).unwrap()));
        let mean = pool2d(&x, Pool::Average, 2).unwrap();
        let wanted = x.avg_pool2d(2).unwrap();
        for (y, wanted) in bits(mean).iter().zip(bits(wanted)) {
            assert!((y - wanted).abs() < 1e-14);
        }
    }

    #[test]
    fn of_equal_maxima_the_first_gets_the_gradient() {
        let x = Var::ones((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let grads = pool2d(&x, Pool::Max, 2).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(grad, [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn not_a_number_stays_visible() {
        for at in 0..4 {
            let mut values = [1f32, 2.0, 3.0, 4.0];
            values[at] = f32::NAN;
            let x = Tensor::from_slice(&values, (1, 1, 2, 2), &Device::Cpu).unwrap();
            for pool in [Pool::Max, Pool::Average] {
                let y = pool2d(&x, pool, 2).unwrap().flatten_all().unwrap();
                assert!(y.to_vec1::<f32>().unwrap()[0].is_nan());
            }
        }
    }
}
