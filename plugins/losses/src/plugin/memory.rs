//! From the tensors of a call to the matrices of the kernels.
//!
//! The place where the promises of `cpu::matrix` are made: type, device, alignment and extent are checked
//! here, lifetime and exclusiveness are those of the contract (R5).

use crate::cpu::matrix::Float;
use crate::cpu::{Matrix, Output, Pool, Slot};
use limbeck_sdk::{DType, Error, GradView, LossCall, Result, View, abi};
use std::ops::Range;

fn float(dtype: DType, name: &str) -> Result<Float> {
    match dtype {
        DType::F32 => Ok(Float::F32),
        DType::F64 => Ok(Float::F64),
        DType::F16 => Ok(Float::F16),
        DType::BF16 => Ok(Float::Bf16),
        other => Err(Error::unsupported(format!("{} is no float", other.name())).tensor(name)),
    }
}

fn align(float: Float) -> usize {
    match float {
        Float::F64 => align_of::<f64>(),
        Float::F32 => align_of::<f32>(),
        Float::F16 | Float::Bf16 => align_of::<u16>(),
    }
}

/// A matrix `[N, V]`, or a vector `[V]` as one row.
pub fn matrix<'a>(view: &View<'a>) -> Result<Matrix<'a>> {
    // Checks type, place and alignment.
    view.rows()?;
    let float = float(view.dtype(), view.name())?;
    let (size, stride) = layout(view.shape(), view.strides(), view.name())?;
    // SAFETY: checked above; R5 keeps the memory alive for the call, and only the gradient that
    // GRAD_MAY_ALIAS allows is written into it.
    Ok(unsafe { Matrix::new(view.as_ptr().cast(), float, size, stride) })
}

/// Where a gradient of `rows` × `width` goes.
pub fn output<'a>(grad: &GradView<'a>, rows: usize, width: usize, add: bool) -> Result<Output<'a>> {
    let float = float(grad.dtype(), grad.name())?;
    let (size, stride) = layout(grad.shape(), grad.strides(), grad.name())?;
    if size != [rows, width] {
        let message = format!("gradient {:?} for [{rows}, {width}]", grad.shape());
        return Err(Error::invalid_argument(message).tensor(grad.name()));
    }
    if grad.device() != abi::DLDevice::CPU {
        return Err(Error::unsupported("not in host memory").tensor(grad.name()));
    }
    if rows * width > 0 && !(grad.as_mut_ptr() as usize).is_multiple_of(align(float)) {
        return Err(Error::invalid_argument("misaligned").tensor(grad.name()));
    }
    let add = add || grad.accumulate();
    // SAFETY: checked above; the host lends the buffer for the call to this plugin alone
    // (limbeck.h, lmb_loss_call.grads), and the kernels give each row one writer.
    Ok(unsafe { Output::new(grad.as_mut_ptr().cast(), float, size, stride, add) })
}

fn layout(shape: &[i64], strides: &[i64], name: &str) -> Result<([usize; 2], [isize; 2])> {
    let size = |d: i64| d.max(0) as usize;
    match (shape, strides) {
        ([v], [s]) => Ok(([1, size(*v)], [0, *s as isize])),
        ([n, v], [r, s]) => Ok(([size(*n), size(*v)], [*r as isize, *s as isize])),
        _ => Err(Error::invalid_argument(format!("{shape:?} is no matrix")).tensor(name)),
    }
}

/// The host's pool.
pub struct HostPool<'a, 'b>(pub &'a LossCall<'b>);

impl Pool for HostPool<'_, '_> {
    type Error = Error;
    fn workers(&self) -> usize {
        self.0.host().num_threads()
    }
    fn run(
        &self,
        n: usize,
        grain: usize,
        body: &(dyn Fn(Range<usize>, usize) + Sync),
    ) -> Result<()> {
        self.0.parallel_for(n, grain, body)
    }
}

/// Runs `f` with one slot a row and the rest of the workspace: slots on the heap if the host lent too little.
pub fn with_slots<R>(
    call: &LossCall<'_>,
    rows: usize,
    f: impl FnOnce(&mut [Slot], &mut [u8]) -> R,
) -> R {
    let (start, bytes) = call.workspace();
    let slots = start.cast::<Slot>();
    let used = slot_bytes(rows);
    if (bytes as usize) < used || start.is_null() || !slots.is_aligned() {
        return f(&mut vec![Slot::default(); rows], &mut []);
    }
    for n in 0..rows {
        // SAFETY: inside the workspace, checked above (limbeck.h, lmb_loss_call.workspace).
        unsafe { slots.add(n).write(Slot::default()) };
    }
    // SAFETY: just written; the workspace is this call's alone.
    let slots = unsafe { std::slice::from_raw_parts_mut(slots, rows) };
    // SAFETY: as above, past the slots; bytes of any content.
    let rest = unsafe { std::slice::from_raw_parts_mut(start.add(used), bytes as usize - used) };
    f(slots, rest)
}

/// Bytes of the slots of so many rows; what follows them is aligned for any register.
pub const fn slot_bytes(rows: usize) -> usize {
    (rows * size_of::<Slot>()).next_multiple_of(64)
}
