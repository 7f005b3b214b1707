//! Matrices row by row: of any element type as f64, or of one type as slices.
//!
//! Made by a view after its checks; an index out of range is a bug of the plugin and panics.

use super::{DType, Element, with_dtype};
use std::ffi::c_void;
use std::marker::PhantomData;

/// A matrix of any element type, read as f64.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub(super) data: *const c_void,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) row_stride: isize,
    pub(super) column_stride: isize,
    pub(super) life: PhantomData<&'a [u8]>,
}

// SAFETY: only read, alive for the call (R5).
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }
    /// Row `i`. Panics if there is none: a bug of the plugin.
    pub fn row(&self, i: usize) -> Row<'a> {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        Row { rows: *self, row: i as isize * self.row_stride }
    }
}

/// One row of [`Rows`]; iterate it, or take single elements.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    rows: Rows<'a>,
    row: isize,
}

impl Row<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows.width
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rows.width == 0
    }
    /// Element `j`. Panics if there is none: a bug of the plugin.
    pub fn get(&self, j: usize) -> f64 {
        assert!(j < self.rows.width, "element {j} of {}", self.rows.width);
        let offset = self.row + j as isize * self.rows.column_stride;
        with_dtype!(self.rows.dtype, T => {
            // SAFETY: `View::rows` checked type and place, the assert above and `Rows::row` the index.
            unsafe { *self.rows.data.cast::<T>().offset(offset) }.to_f64()
        })
    }
    /// All elements.
    pub fn to_vec(&self) -> Vec<f64> {
        self.into_iter().collect()
    }
}

impl<'a> IntoIterator for Row<'a> {
    type Item = f64;
    type IntoIter = RowIter<'a>;
    fn into_iter(self) -> RowIter<'a> {
        RowIter { row: self, next: 0 }
    }
}

/// Iterator of a [`Row`].
#[derive(Clone)]
pub struct RowIter<'a> {
    row: Row<'a>,
    next: usize,
}

impl Iterator for RowIter<'_> {
    type Item = f64;
    fn next(&mut self) -> Option<f64> {
        let j = self.next;
        self.next += 1;
        (j < self.row.len()).then(|| self.row.get(j))
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.row.len().saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for RowIter<'_> {}

/// A matrix of one element type whose rows are slices.
#[derive(Clone, Copy)]
pub struct TypedRows<'a, T> {
    pub(super) data: *const T,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) row_stride: isize,
    pub(super) life: PhantomData<&'a [T]>,
}

// SAFETY: only read, alive for the call (R5).
unsafe impl<T: Sync> Send for TypedRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for TypedRows<'_, T> {}

impl<'a, T> TypedRows<'a, T> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }
    /// Row `i`. Panics if there is none: a bug of the plugin.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        if self.width == 0 {
            return &[];
        }
        // SAFETY: `View::typed_rows` checked type, place and unit stride; the assert checked the index.
        unsafe {
            let start = self.data.offset(i as isize * self.row_stride);
            std::slice::from_raw_parts(start, self.width)
        }
    }
}
