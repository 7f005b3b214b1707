//! Arithmetic on float tensors, in f32 with sums in f64, the same bits every time.
//!
//! On a device by the `lmb.vector/1` that a module brought. Refuses gaps, integer tensors and operands in two places.

use super::error::{RunResult, bug};
use crate::device;
use crate::load::services::{parallel_ranges, vector};
use crate::tensor::{DType, Tensor};
use half::{bf16, f16};
use limbeck_abi as abi;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls `$body` with `$slice` as the typed elements of `$tensor` (writable).
macro_rules! float_mut {
    ($tensor:expr, $slice:ident => $body:expr) => {{
        let tensor: &Tensor = $tensor;
        if !tensor.is_contiguous() || tensor.device() != abi::DLDevice::CPU {
            return Err(bug(format!("arithmetic on {tensor:?}, which is not contiguous CPU memory")));
        }
        match tensor.dtype() {
            DType::F32 => {
                // SAFETY: the session's thread is the only one that writes host tensors between plugin calls.
                let $slice = unsafe { tensor.data_mut::<f32>() };
                $body
            }
            DType::BF16 => {
                // SAFETY: as above.
                let $slice = unsafe { tensor.data_mut::<bf16>() };
                $body
            }
            DType::F16 => {
                // SAFETY: as above.
                let $slice = unsafe { tensor.data_mut::<f16>() };
                $body
            }
            _ => return Err(bug(format!("arithmetic on {tensor:?}"))),
        }
    }};
}

/// An element that arithmetic in f32 works on.
trait Real: Copy {
    fn get(self) -> f32;
    fn put(value: f32) -> Self;
}
impl Real for f32 {
    fn get(self) -> f32 {
        self
    }
    fn put(value: f32) -> Self {
        value
    }
}
impl Real for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
}
impl Real for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
}

fn blend<X: Real, Y: Real>(a: f32, x: &[X], b: f32, y: &mut [Y]) {
    if b == 0.0 {
        for (y, x) in y.iter_mut().zip(x) {
            *y = Y::put(a * x.get());
        }
    } else {
        for (y, x) in y.iter_mut().zip(x) {
            *y = Y::put(a * x.get() + b * y.get());
        }
    }
}

/// `y = a x + b y`. `b` = 0 does not read `y`. Shapes equal, types may differ.
///
/// # Errors
/// Not contiguous float tensors in CPU memory, or of different size.
pub(crate) fn axpby(a: f64, x: &Tensor, b: f64, y: &Tensor) -> RunResult<()> {
    if x.elements() != y.elements() {
        return Err(bug(format!("axpby of {x:?} and {y:?}")));
    }
    if y.device() != abi::DLDevice::CPU {
        let (ctx, table) = (device::context(y.device()), vector::table());
        let (x, y) = (x.view("x", abi::TENSOR_READ_ONLY), y.view("y", 0));
        // SAFETY: [step]; lists of one entry, alive during the call.
        let call = |e| unsafe { (table.axpby)(table, &ctx, 1, a, &x, b, &y, e) };
        return Ok(device::answer("axpby", call)?);
    }
    let (a, b) = (a as f32, b as f32);
    float_mut!(x, xs => float_mut!(y, ys => blend(a, xs, b, ys)));
    Ok(())
}

/// `y = 0`.
///
/// # Errors
/// As [`axpby`].
pub(crate) fn zero(y: &Tensor) -> RunResult<()> {
    Ok(y.clear()?)
}

/// Elements of a partial sum of squares; part of the result's definition.
const PART: usize = 1 << 16;

fn squares<T: Real + Sync>(x: &[T]) -> f64 {
    if x.len() <= PART {
        return squares_of_part(x);
    }
    let sums: Vec<AtomicU64> = x.chunks(PART).map(|_| AtomicU64::new(0)).collect();
    parallel_ranges(sums.len(), 1, &|range, _| {
        for part in range {
            let sum = squares_of_part(&x[part * PART..x.len().min((part + 1) * PART)]);
            sums[part].store(sum.to_bits(), Ordering::Relaxed);
        }
    });
    sums.into_iter().map(|sum| f64::from_bits(sum.into_inner())).sum()
}

fn squares_of_part<T: Real>(x: &[T]) -> f64 {
    // Four chains: as exact, and not bound by the latency of one addition.
    let mut sums = [0.0f64; 4];
    let chunks = x.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().map(|x| f64::from(x.get()).powi(2)).sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            let x = f64::from(x.get());
            *sum += x * x;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Sum of squares of all elements of a list; waits for the device.
///
/// # Errors
/// As [`axpby`].
pub(crate) fn sum_of_squares(list: &[&Tensor]) -> RunResult<f64> {
    let place = list.first().map_or(abi::DLDevice::CPU, |x| x.device());
    if place != abi::DLDevice::CPU {
        let (ctx, table, mut sum) = (device::context(place), vector::table(), 0.0);
        let views: Vec<_> = list.iter().map(|x| x.view("x", abi::TENSOR_READ_ONLY)).collect();
        let (n, x) = (views.len() as u64, views.as_ptr());
        // SAFETY: [step]; lists of n entries, alive during the call.
        device::answer("dot", |e| unsafe { (table.dot)(table, &ctx, n, x, x, &mut sum, e) })?;
        return Ok(sum);
    }
    let mut sum = 0.0;
    for x in list {
        let x: &Tensor = x;
        sum += float_mut!(x, xs => squares(xs));
    }
    Ok(sum)
}

/// The elements as f64, for metrics, fetched from a device if they lie there. `None` unless contiguous.
pub(crate) fn to_f64(x: &Tensor) -> Option<Vec<f64>> {
    fn list<T: crate::tensor::Element>(x: &Tensor, f: impl Fn(T) -> f64) -> Option<Vec<f64>> {
        Some(x.data::<T>()?.iter().map(|v| f(*v)).collect())
    }
    let x = &x.to(abi::DLDevice::CPU).ok()?;
    match x.dtype() {
        DType::F32 => list::<f32>(x, f64::from),
        DType::F64 => list::<f64>(x, |v| v),
        DType::F16 => list::<f16>(x, f64::from),
        DType::BF16 => list::<bf16>(x, f64::from),
        DType::I64 => list::<i64>(x, |v| v as f64),
        DType::I32 => list::<i32>(x, f64::from),
        DType::U8 => list::<u8>(x, f64::from),
        DType::U32 => list::<u32>(x, f64::from),
    }
}

/// The elements as i64 (floats are cut). `None` unless a contiguous CPU tensor.
pub(crate) fn to_i64(x: &Tensor) -> Option<Vec<i64>> {
    match x.dtype() {
        DType::I64 => Some(x.data::<i64>()?.to_vec()),
        _ => Some(to_f64(x)?.into_iter().map(|v| v as i64).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axpby_and_norms_agree_with_f64() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.37).sin()).collect();
        let y: Vec<f32> = (0..37).map(|i| (i as f32 * 0.11).cos()).collect();
        let (tx, ty) = (Tensor::from_slice(&x, &[37]), Tensor::from_slice(&y, &[37]));
        axpby(0.25, &tx, -2.0, &ty).unwrap();
        for (i, got) in ty.data::<f32>().unwrap().iter().enumerate() {
            let want = 0.25 * f64::from(x[i]) - 2.0 * f64::from(y[i]);
            assert!((f64::from(*got) - want).abs() < 1e-6);
        }
        let want: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((sum_of_squares(&[&tx]).unwrap() - want).abs() < 1e-12);
        let long: Vec<f32> = (0..3 * PART + 5).map(|i| (i as f32 * 0.37).sin()).collect();
        let want: f64 = long.iter().map(|v| f64::from(*v).powi(2)).sum();
        let got = squares(&long);
        assert!((got - want).abs() < 1e-12 * want, "{got} {want}");
        let nan = Tensor::from_slice(&[f32::NAN, 1.0], &[2]);
        axpby(1.0, &Tensor::from_slice(&[3f32, 4.0], &[2]), 0.0, &nan).unwrap();
        assert_eq!(nan.data::<f32>().unwrap(), [3.0, 4.0]);
        assert!(axpby(1.0, &tx, 0.0, &Tensor::zeros(DType::I64, &[37])).is_err());
    }
}
