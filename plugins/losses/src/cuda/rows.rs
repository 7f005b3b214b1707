//! From the views of a call to the arguments of a kernel: place, type and layout are checked, nothing is read.

use super::arguments::{Column, Matrix, Rows, type_number};
use super::plan::{Layout, is_taken};
use super::session::Session;
use limbeck_sdk::{DType, Error, GradView, LossCall, Result, abi};
use std::ffi::c_void;

/// A matrix of floats on the device with what the choice of a kernel needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub matrix: Matrix,
    pub layout: Layout,
    pub rows: usize,
    pub columns: usize,
}

impl Session {
    fn check_place(&self, device: abi::DLDevice, name: &str) -> Result<()> {
        let here = device.device_type == abi::DL_CUDA && device.device_id == self.device.ordinal();
        if here {
            return Ok(());
        }
        let message = format!("not in the memory of GPU {}", self.device.ordinal());
        Err(Error::invalid_argument(message).tensor(name))
    }

    /// Input `name`, which must be bound, as a matrix.
    pub fn matrix(&self, call: &LossCall<'_>, name: &str) -> Result<Found> {
        let absent = || Error::invalid_argument(format!("`{name}` is absent")).tensor(name);
        let view = call.inputs().named(name)?.ok_or_else(absent)?;
        self.check_place(view.device(), name)?;
        found(view.as_ptr().cast_mut(), view.dtype(), view.shape(), view.strides(), name)
    }

    /// A gradient of the size of `of`.
    pub fn grad(&self, grad: &GradView<'_>, of: &Found) -> Result<Found> {
        self.check_place(grad.device(), grad.name())?;
        let to = found(grad.as_mut_ptr(), grad.dtype(), grad.shape(), grad.strides(), grad.name())?;
        let error = |message: String| Err(Error::invalid_argument(message).tensor(grad.name()));
        if !is_taken(grad.dtype()) {
            let message = format!("kernels write f32, f16 and bf16, not {}", grad.dtype().name());
            return Err(Error::unsupported(message).tensor(grad.name()));
        }
        if (to.rows, to.columns) != (of.rows, of.columns) {
            return error(format!("gradient {:?} for [{}, {}]", grad.shape(), of.rows, of.columns));
        }
        if overlap(&to, of) && to.layout != of.layout {
            return error("a gradient over its input needs its place, type and strides".to_owned());
        }
        Ok(to)
    }

    /// Input `name` as a vector, if it is bound.
    pub fn column(&self, call: &LossCall<'_>, name: &str) -> Result<Column> {
        let Some(view) = call.inputs().named(name)? else { return Ok(Column::ABSENT) };
        self.check_place(view.device(), name)?;
        let (Some(dtype), [_], [stride]) =
            (type_number(view.dtype()), view.shape(), view.strides())
        else {
            let message = format!("{} {:?} is no vector", view.dtype().name(), view.shape());
            return Err(Error::unsupported(message).tensor(name));
        };
        if view.elements() > 0 && !(view.as_ptr() as usize).is_multiple_of(view.dtype().bytes()) {
            return Err(Error::invalid_argument("misaligned").tensor(name));
        }
        // A vector of nothing still is bound.
        let data = if view.as_ptr().is_null() { NOWHERE } else { view.as_ptr() };
        Ok(Column { data, stride: *stride, dtype, reserved: 0 })
    }

    /// Which rows count.
    pub fn rows(&self, call: &LossCall<'_>, count: usize) -> Result<Rows> {
        Ok(Rows {
            count: count as i64,
            labels: self.column(call, "labels")?,
            mask: self.column(call, "row_mask")?,
            weights: self.column(call, "row_weights")?,
        })
    }

    /// A scalar output of a call (limbeck.h, lmb_loss_call.value, .metrics); NULL if it is not wanted.
    pub(super) fn scalar(&self, tensor: *const abi::Tensor) -> Result<*mut c_void> {
        if tensor.is_null() {
            return Err(Error::invalid_argument("the buffer of the value is NULL"));
        }
        // SAFETY: a host buffer lent for the call.
        let Some(to) = unsafe { GradView::from_abi(&*tensor) }? else {
            return Ok(std::ptr::null_mut());
        };
        self.check_place(to.device(), to.name())?;
        if to.dtype() != DType::F32 || to.elements() != 1 {
            let message = format!("{} {:?} is not one f32", to.dtype().name(), to.shape());
            return Err(Error::invalid_argument(message).tensor(to.name()));
        }
        Ok(to.as_mut_ptr())
    }
}

/// Never read: there are no rows.
const NOWHERE: *const c_void = std::ptr::dangling::<u128>().cast();

fn found(
    data: *mut c_void,
    dtype: DType,
    shape: &[i64],
    strides: &[i64],
    name: &str,
) -> Result<Found> {
    let (Some(number), [rows, columns], [row, column]) = (type_number(dtype), shape, strides)
    else {
        let message = format!("{} {shape:?} is no matrix", dtype.name());
        return Err(Error::unsupported(message).tensor(name));
    };
    let elements = rows * columns;
    if elements > 0 && (data.is_null() || !(data as usize).is_multiple_of(dtype.bytes())) {
        return Err(Error::invalid_argument("NULL or misaligned").tensor(name));
    }
    let layout = Layout { address: data as usize, row: *row, column: *column, dtype };
    let matrix = Matrix { data, row: *row, column: *column, dtype: number, reserved: 0 };
    Ok(Found { matrix, layout, rows: (*rows).max(0) as usize, columns: (*columns).max(0) as usize })
}

/// Whether two matrices share a byte of their extents.
fn overlap(a: &Found, b: &Found) -> bool {
    let extent = |m: &Found| {
        let reach = |count: usize, stride: i64| (count.max(1) as i64 - 1) * stride;
        let (rows, columns) = (reach(m.rows, m.layout.row), reach(m.columns, m.layout.column));
        let bytes = m.layout.dtype.bytes() as i64;
        let first = m.layout.address as i64 + (rows.min(0) + columns.min(0)) * bytes;
        let last = m.layout.address as i64 + (rows.max(0) + columns.max(0) + 1) * bytes;
        (first, last)
    };
    let ((a_first, a_last), (b_first, b_last)) = (extent(a), extent(b));
    a.rows * a.columns > 0 && a_first < b_last && b_first < a_last
}
