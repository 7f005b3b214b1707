//! Tensors at the boundary: borrowed views with their checks, gradient buffers, and owned tensors to hand out.
//!
//! A view never outlives its call (R5) and gives a slice only after type, place and layout were checked.

mod column;
mod dtype;
mod grad;
mod raw;
mod rows;
mod view;

pub use column::Column;
pub(crate) use dtype::with_dtype;
pub use dtype::{DType, Element};
pub use grad::GradView;
pub use rows::{Row, RowIter, Rows, TypedRows};
pub use view::{View, Views};

use limbeck_abi as abi;

/// `text` of the contract as a string slice; empty if it is not UTF-8.
///
/// # Safety
/// R5, R6: the bytes live for `'a`.
pub(crate) unsafe fn text<'a>(text: abi::Str) -> &'a str {
    // SAFETY: the caller's promise.
    unsafe { text.text() }.unwrap_or_default()
}

/// Row-major strides of `shape`, in elements.
pub(crate) fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

/// Calls `f` with the element offset of every index in row-major order.
pub(crate) fn for_each_offset(shape: &[i64], strides: &[i64], mut f: impl FnMut(isize)) {
    if shape.iter().any(|d| *d <= 0) {
        return;
    }
    let Some((width, outer)) = shape.split_last() else {
        f(0);
        return;
    };
    let mut index = vec![0i64; outer.len()];
    loop {
        let base: i64 = index.iter().zip(strides).map(|(i, s)| i * s).sum();
        let step = strides[outer.len()];
        (0..*width).for_each(|j| f((base + j * step) as isize));
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < outer[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// A slice of `num` entries; empty if `num` is 0, whatever the pointer.
///
/// # Safety
/// R5: `num` entries that live for `'a`.
pub(crate) unsafe fn raw_slice<'a, T>(pointer: *const T, num: u64) -> &'a [T] {
    if num == 0 || pointer.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, num as usize) }
}
