//! The row loop behind `LossCall::sum_rows`.
//!
//! Values are summed in row order whatever the number of threads, so equal inputs give equal bits.

use crate::views::GradView;
use crate::{Error, LossCall, Ports, Result};
use std::sync::Mutex;

/// Rows a thread takes at once at least, so that small batches are not torn up.
const ELEMENTS_PER_RANGE: usize = 4096;

pub(crate) fn sum(
    call: &LossCall<'_>,
    ports: &Ports,
    f: &(dyn Fn(usize, &mut [Vec<f64>]) -> f64 + Sync),
) -> Result<()> {
    let (mut rows, mut widths, mut grads) = (None, Vec::new(), Vec::new());
    for (k, port) in ports.inputs().enumerate() {
        let view = call.input(k)?;
        if let (None, true, Some(view)) = (rows, port.has_row_axis(), &view) {
            rows = Some(view.rows()?.len());
        }
        let wanted = port.is_differentiable() && view.is_some();
        widths.push(if wanted { call.rows(k)?.width() } else { 0 });
        grads.push(if wanted { call.grad(k)? } else { None });
    }
    let rows = rows.ok_or_else(|| Error::internal("no input has a row axis (N or B)"))?;
    check_layout(&grads, rows, &widths)?;
    let counted = call.counted()?;
    let values = SharedValues::new(rows);
    let failure = Mutex::new(None);
    let width: usize = widths.iter().sum::<usize>().max(1);
    call.parallel_for(rows, (ELEMENTS_PER_RANGE / width).max(1), |range, _| {
        let mut scratch: Vec<Vec<f64>> = widths.iter().map(|w| vec![0.0; *w]).collect();
        for i in range {
            scratch.iter_mut().for_each(|g| g.fill(0.0));
            let weight = counted.weight(i);
            let value = weight.map_or(0.0, |w| w * f(i, &mut scratch));
            // SAFETY: ranges are disjoint, so this is the only access to entry i.
            unsafe { values.set(i, value) };
            let scale = weight.unwrap_or(0.0) * call.grad_factor();
            for (grad, values) in grads.iter().zip(&scratch) {
                let Some(grad) = grad else { continue };
                // Selection, not multiplication: an uncounted row adds nothing, and is exactly zero otherwise.
                if weight.is_none() && grad.accumulate() {
                    continue;
                }
                // SAFETY: rows are disjoint; this row's inputs were read by `f` before.
                if let Err(error) = unsafe { grad.put_row(i, scale, values) } {
                    *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(error);
                }
            }
        }
    })?;
    if let Some(error) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    call.set_value(values.into_vec().iter().sum::<f64>() / call.normalizer())
}

fn check_layout(grads: &[Option<GradView<'_>>], rows: usize, widths: &[usize]) -> Result<()> {
    for (grad, width) in grads.iter().zip(widths) {
        let Some(grad) = grad else { continue };
        let (grad_rows, grad_width, ..) = grad.layout()?;
        if (grad_rows, grad_width) != (rows, *width) {
            let message = format!("gradient {:?} for {rows} rows of {width}", grad.shape());
            return Err(Error::invalid_argument(message).tensor(grad.name()));
        }
    }
    Ok(())
}

/// A vector whose entries are written by different threads.
struct SharedValues(Vec<std::cell::UnsafeCell<f64>>);

// SAFETY: `set` promises that no two threads touch one entry.
unsafe impl Sync for SharedValues {}

impl SharedValues {
    fn new(n: usize) -> Self {
        Self((0..n).map(|_| std::cell::UnsafeCell::new(0.0)).collect())
    }
    /// # Safety
    /// No other access to entry `i` is going on.
    unsafe fn set(&self, i: usize, value: f64) {
        // SAFETY: the caller's promise.
        unsafe { *self.0[i].get() = value }
    }
    fn into_vec(self) -> Vec<f64> {
        self.0.into_iter().map(std::cell::UnsafeCell::into_inner).collect()
    }
}
