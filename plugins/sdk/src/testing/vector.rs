//! `lmb.vector/1` on the CPU, for the mock host: plain loops, arithmetic in f32, results that repeat.

use crate::{Error, GradView, Result, View};
use limbeck_abi as abi;

pub(super) static TABLE: abi::Vector = abi::Vector {
    struct_size: abi::struct_size::<abi::Vector>(),
    device_type: 0,
    reserved: 0,
    axpby,
    mul,
    dot,
    adamw: None,
};

/// The values of entry `i`.
///
/// # Safety
/// `list` has more than `i` valid entries.
unsafe fn values(list: *const abi::Tensor, i: usize) -> Result<Vec<f32>> {
    // SAFETY: the caller's promise.
    match unsafe { View::from_abi(&*list.add(i)) }? {
        Some(view) => view.to_vec::<f32>(),
        None => Err(Error::invalid_argument("an absent entry")),
    }
}

/// # Safety
/// As [`values`]; the entry is writable.
unsafe fn put(list: *const abi::Tensor, i: usize, new: &[f32]) -> Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { GradView::from_abi(&*list.add(i)) }? {
        Some(mut view) => {
            // SAFETY: as above.
            if unsafe { (*list.add(i)).flags } & abi::TENSOR_READ_ONLY != 0 {
                return Err(Error::invalid_argument("written although read-only"));
            }
            view.put_zeros()?;
            view.put(1.0, new)
        }
        None => Err(Error::invalid_argument("an absent entry")),
    }
}

fn status(outcome: Result<()>) -> abi::Status {
    outcome.map_or_else(|e| e.status(), |()| abi::STATUS_OK)
}

unsafe extern "C" fn axpby(
    _: *const abi::Vector,
    _: *const abi::Ctx,
    n: u64,
    a: f64,
    x: *const abi::Tensor,
    b: f64,
    y: *const abi::Tensor,
    _: *mut abi::Error,
) -> abi::Status {
    let (a32, b32) = (a as f32, b as f32);
    status((0..n as usize).try_for_each(|i| {
        // SAFETY: lists of n entries (limbeck.h, lmb_vector).
        let mut new = unsafe { values(y, i) }?;
        // SAFETY: as above; a = 0 does not read x.
        let xs = if a == 0.0 { vec![0.0; new.len()] } else { unsafe { values(x, i) }? };
        for (y, x) in new.iter_mut().zip(xs) {
            *y = if b == 0.0 { a32 * x } else { a32 * x + b32 * *y };
        }
        // SAFETY: as above.
        unsafe { put(y, i, &new) }
    }))
}

unsafe extern "C" fn mul(
    _: *const abi::Vector,
    _: *const abi::Ctx,
    n: u64,
    a: f64,
    x: *const abi::Tensor,
    y: *const abi::Tensor,
    b: f64,
    z: *const abi::Tensor,
    _: *mut abi::Error,
) -> abi::Status {
    let (a, b) = (a as f32, b as f32);
    status((0..n as usize).try_for_each(|i| {
        // SAFETY: lists of n entries (limbeck.h, lmb_vector).
        let (xs, ys, mut new) = unsafe { (values(x, i)?, values(y, i)?, values(z, i)?) };
        for (z, (x, y)) in new.iter_mut().zip(xs.iter().zip(ys)) {
            *z = if b == 0.0 { a * x * y } else { a * x * y + b * *z };
        }
        // SAFETY: as above.
        unsafe { put(z, i, &new) }
    }))
}

unsafe extern "C" fn dot(
    _: *const abi::Vector,
    _: *const abi::Ctx,
    n: u64,
    x: *const abi::Tensor,
    y: *const abi::Tensor,
    out: *mut f64,
    _: *mut abi::Error,
) -> abi::Status {
    let mut sum = 0.0;
    let outcome = (0..n as usize).try_for_each(|i| {
        // SAFETY: lists of n entries (limbeck.h, lmb_vector).
        let (xs, ys) = unsafe { (values(x, i)?, values(y, i)?) };
        sum += xs.iter().zip(ys).map(|(x, y)| f64::from(*x) * f64::from(y)).sum::<f64>();
        Ok(())
    });
    // SAFETY: the plugin's out-parameter.
    unsafe { out.write(sum) };
    status(outcome)
}
