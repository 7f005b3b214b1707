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

/// Sizes of one pooling.
#[derive(Clone, Copy)]
struct Geometry {
    planes: usize,
    height: usize,
    width: usize,
    size: usize,
}

impl Geometry {
    /// Calls `f` for each row of results with its place among them and the place of its windows' first row in x.
    fn rows(self, mut f: impl FnMut(std::ops::Range<usize>, usize)) {
        let columns = self.width / self.size;
        for plane in 0..self.planes {
            for i in 0..self.height / self.size {
                let row = plane * (self.height / self.size) + i;
                let first = (plane * self.height + i * self.size) * self.width;
                f(row * columns..(row + 1) * columns, first);
            }
        }
    }

    /// Places of the windows' elements that share a place in their window, in row-major order of that place.
    fn taps(self, first: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let columns = self.width / self.size;
        (0..self.size * self.size).filter(move |_| columns > 0).map(move |tap| {
            let begin = first + tap / self.size * self.width + tap % self.size;
            begin..begin + (columns - 1) * self.size + 1
        })
    }

    /// 1/size².
    fn share<T: Element>(self) -> T {
        T::of(1.0 / (self.size * self.size) as f64)
    }

    /// Whole rows at a time and without branches, so that it compiles to vector code.
    fn forward<T: Element>(self, pool: Pool, x: &[T]) -> Vec<T> {
        let count = self.planes * (self.height / self.size) * (self.width / self.size);
        let start = if pool == Pool::Max { f64::NEG_INFINITY } else { 0.0 };
        let mut y = vec![T::of(start); count];
        self.rows(|results, first| {
            let y = &mut y[results];
            for tap in self.taps(first) {
                let x = x[tap].iter().step_by(self.size);
                if pool == Pool::Max {
                    y.iter_mut().zip(x).for_each(|(y, &x)| {
                        *y = if (x > *y) | x.is_nan() { x } else { *y };
                    });
                } else {
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
                }
            }
            if pool == Pool::Average {
                y.iter_mut().for_each(|y| *y *= self.share());
            }
        });
        y
    }

    fn backward<T: Element>(self, pool: Pool, x: &[T], y: &[T], grad: &[T]) -> Vec<T> {
        let zero = T::of(0.0);
        let mut dx = vec![zero; x.len()];
        // What no element of a window has taken yet.
        let mut left = vec![zero; self.width / self.size];
        self.rows(|results, first| {
            let (y, grad) = (&y[results.clone()], &grad[results]);
            left.copy_from_slice(grad);
            for tap in self.taps(first) {
                let dx = dx[tap.clone()].iter_mut().step_by(self.size);
                if pool == Pool::Average {
                    dx.zip(grad).for_each(|(dx, &grad)| *dx = grad * self.share());
                    continue;
                }
                let x = x[tap].iter().step_by(self.size);
                for (((dx, &x), &y), left) in dx.zip(x).zip(y).zip(&mut left) {
                    let is_largest = (x == y) | (x.is_nan() & y.is_nan());
                    *dx = if is_largest { *left } else { zero };
                    *left = if is_largest { zero } else { *left };
                }
            }
        });
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
            let g = Geometry { planes: batch * channels, height, width, size: self.size };
            let y = g.forward(self.pool, elements::<T>(storage, layout)?);
            let shape = Shape::from((batch, channels, height / self.size, width / self.size));
            Ok((T::to_cpu_storage_owned(y), shape))
        })
    }

    fn bwd(&self, arg: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (batch, channels, height, width) = arg.dims4()?;
        let g = Geometry { planes: batch * channels, height, width, size: self.size };
        let grad = grad.contiguous()?;
        by_dtype!(arg.dtype(), "pool2d", T => with_elements::<T, _>(arg, |x| {
            with_elements::<T, _>(res, |y| {
                with_elements::<T, _>(&grad, |grad| {
                    tensor(g.backward(self.pool, x, y, grad), arg.dims())
                })
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
