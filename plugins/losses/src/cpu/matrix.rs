//! Rows in somebody else's memory: read and written block by block in the kernel's arithmetic.
//!
//! The only file that touches raw tensor memory. Whoever makes a [`Matrix`] or an [`Output`] promises its
//! extent; after that every access is checked against it. A gradient is rounded once, to nearest even.

use super::STREAMED;
use super::isa::{self, Kernel};
use super::real::Real;
use half::{bf16, f16};
use std::marker::PhantomData;

/// Element types of floats at the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    F32,
    F64,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    first: *mut u8,
    float: Float,
    rows: usize,
    width: usize,
    row_stride: isize,
    column_stride: isize,
}

impl Place {
    /// Address of an element, checked; `len` more columns follow it.
    #[inline(always)]
    fn at<T>(&self, row: usize, column: usize, len: usize) -> *mut T {
        assert!(row < self.rows && column + len <= self.width, "row {row}, column {column}");
        let offset = row as isize * self.row_stride + column as isize * self.column_stride;
        self.first.cast::<T>().wrapping_offset(offset)
    }
}

/// Rows to read.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    place: Place,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: only read, by the promise made to `Matrix::new`.
unsafe impl Send for Matrix<'_> {}
// SAFETY: as above.
unsafe impl Sync for Matrix<'_> {}

macro_rules! slice_type {
    ($($t:ty => $float:ident),*) => {$(
        impl<'a> From<(&'a [$t], usize)> for Matrix<'a> {
            /// Contiguous rows of the given width.
            fn from((data, width): (&'a [$t], usize)) -> Self {
                let first = data.as_ptr().cast_mut().cast();
                let rows = data.len().checked_div(width).unwrap_or(0);
                // SAFETY: `rows` rows of `width` lie in the slice.
                unsafe { Self::new(first, Float::$float, [rows, width], [width as isize, 1]) }
            }
        }
        impl<'a> From<(&'a mut [$t], usize)> for Output<'a> {
            /// Contiguous rows of the given width, to be overwritten.
            fn from((data, width): (&'a mut [$t], usize)) -> Self {
                let rows = data.len().checked_div(width).unwrap_or(0);
                let first = data.as_mut_ptr().cast();
                // SAFETY: `rows` rows of `width` lie in the slice, which is lent mutably.
                unsafe { Self::new(first, Float::$float, [rows, width], [width as isize, 1], false) }
            }
        }
    )*};
}
slice_type! { f32 => F32, f64 => F64, f16 => F16, bf16 => Bf16 }

macro_rules! with_type {
    ($float:expr, $t:ident => $body:expr) => {
        match $float {
            Float::F32 => {
                type $t = f32;
                $body
            }
            Float::F64 => {
                type $t = f64;
                $body
            }
            Float::F16 => {
                type $t = f16;
                $body
            }
            Float::Bf16 => {
                type $t = bf16;
                $body
            }
        }
    };
}

/// Conversion between an element type and an arithmetic.
trait Convert<A>: Copy {
    fn widen(self) -> A;
    fn round(x: A) -> Self;
}

macro_rules! convert {
    ($($t:ty, $a:ty, $widen:expr, $round:expr;)*) => {$(
        impl Convert<$a> for $t {
            #[inline(always)]
            fn widen(self) -> $a { ($widen)(self) }
            #[inline(always)]
            fn round(x: $a) -> Self { ($round)(x) }
        }
    )*};
}
convert! {
    f32, f32, |x| x, |x| x;
    f64, f32, |x| x as f32, f64::from;
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, widen_bf16, round_bf16;
    f32, f64, f64::from, |x| x as f32;
    f64, f64, |x| x, |x| x;
    f16, f64, f16::to_f64, f16::from_f64;
    bf16, f64, bf16::to_f64, bf16::from_f64;
}

#[inline(always)]
fn widen_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// To nearest even without a branch; NaN stays NaN.
#[inline(always)]
fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
}

impl<'a> Matrix<'a> {
    /// Rows at `first`, sizes and strides in elements.
    ///
    /// # Safety
    /// All elements that sizes and strides span are readable, aligned and, but for an [`Output`] of the same
    /// kernel, unwritten for `'a`.
    pub unsafe fn new(
        first: *const u8,
        float: Float,
        size: [usize; 2],
        stride: [isize; 2],
    ) -> Self {
        let [rows, width] = size;
        let [row_stride, column_stride] = stride;
        let first = first.cast_mut();
        Self {
            place: Place { first, float, rows, width, row_stride, column_stride },
            life: PhantomData,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.place.rows
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.place.width
    }

    /// Element type.
    pub fn float(&self) -> Float {
        self.place.float
    }

    /// `len` columns of `row` from `column` on where they lie, if they lie side by side as `A`.
    #[inline(always)]
    pub fn slice<A: Real>(&self, row: usize, column: usize, len: usize) -> Option<&'a [A]>
    where
        Self: Load<A>,
    {
        if self.place.float != <Self as Load<A>>::FLOAT || self.place.column_stride != 1 {
            return None;
        }
        let from = self.place.at::<A>(row, column, len);
        // SAFETY: `at` checked the extent that `new` was promised.
        Some(unsafe { std::slice::from_raw_parts(from, len) })
    }

    /// Reads `out.len()` columns of `row` from `column` on.
    pub fn load<A: Real>(&self, row: usize, column: usize, out: &mut [A])
    where
        Self: Load<A>,
    {
        isa::run(Fetch { matrix: self, row, column, out });
    }
}

/// A conversion of a block: a function of its own for each instruction set, not a copy in every kernel.
struct Fetch<'f, 'a, A> {
    matrix: &'f Matrix<'a>,
    row: usize,
    column: usize,
    out: &'f mut [A],
}

impl<'a, A> Kernel for Fetch<'_, 'a, A>
where
    Matrix<'a>: Load<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        self.matrix.load_into(self.row, self.column, self.out);
    }
}

/// As [`Fetch`], the other way.
struct Put<'f, 'a, A> {
    output: &'f Output<'a>,
    row: usize,
    column: usize,
    values: &'f [A],
}

impl<'a, A> Kernel for Put<'_, 'a, A>
where
    Output<'a>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        self.output.store_from(self.row, self.column, self.values);
    }
}

/// Reading in the arithmetic `A`.
pub trait Load<A> {
    /// The element type that is `A` itself.
    const FLOAT: Float;
    fn load_into(&self, row: usize, column: usize, out: &mut [A]);
}

/// Writing from the arithmetic `A`.
pub trait Store<A> {
    fn store_from(&self, row: usize, column: usize, values: &[A]);
}

macro_rules! access {
    ($a:ty, $float:ident) => {
        impl Load<$a> for Matrix<'_> {
            const FLOAT: Float = Float::$float;
            #[inline(always)]
            fn load_into(&self, row: usize, column: usize, out: &mut [$a]) {
                with_type!(self.place.float, T => {
                    let from = self.place.at::<T>(row, column, out.len());
                    if self.place.column_stride == 1 {
                        // SAFETY: `at` checked the extent that `new` was promised.
                        let from = unsafe { std::slice::from_raw_parts(from, out.len()) };
                        for (out, x) in out.iter_mut().zip(from) {
                            *out = x.widen();
                        }
                    } else {
                        for (k, out) in out.iter_mut().enumerate() {
                            let at = from.wrapping_offset(k as isize * self.place.column_stride);
                            // SAFETY: as above.
                            *out = unsafe { *at }.widen();
                        }
                    }
                })
            }
        }

        impl Store<$a> for Output<'_> {
            #[inline(always)]
            fn store_from(&self, row: usize, column: usize, values: &[$a]) {
                with_type!(self.place.float, T => {
                    let to = self.place.at::<T>(row, column, values.len());
                    let stride = self.place.column_stride;
                    if stride == 1 && !self.accumulate {
                        // SAFETY: `at` checked the extent; `new` was promised one writer per row.
                        let to = unsafe { std::slice::from_raw_parts_mut(to, values.len()) };
                        for (to, x) in to.iter_mut().zip(values) {
                            *to = Convert::<$a>::round(*x);
                        }
                        return;
                    }
                    for (k, x) in values.iter().enumerate() {
                        let at = to.wrapping_offset(k as isize * stride);
                        // SAFETY: as above; read only when accumulating into initialised memory.
                        let old = if self.accumulate { Convert::<$a>::widen(unsafe { *at }) } else { 0.0 };
                        // SAFETY: as above.
                        unsafe { *at = Convert::<$a>::round(if self.accumulate { old + *x } else { *x }) };
                    }
                })
            }
        }
    };
}
access!(f32, F32);
access!(f64, F64);

/// Rows to write.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    place: Place,
    accumulate: bool,
    life: PhantomData<&'a mut [u8]>,
}

// SAFETY: by the promise made to `Output::new`, no two threads write one row.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl Output<'_> {
    /// Rows at `first`, sizes and strides in elements; `accumulate`: add to what is there.
    ///
    /// # Safety
    /// All elements that sizes and strides span are writable and aligned (and initialised, to accumulate); each
    /// row has one writer at a time; a [`Matrix`] over the same memory is only read before its row is written.
    pub unsafe fn new(
        first: *mut u8,
        float: Float,
        size: [usize; 2],
        stride: [isize; 2],
        accumulate: bool,
    ) -> Self {
        let [rows, width] = size;
        let [row_stride, column_stride] = stride;
        let place = Place { first, float, rows, width, row_stride, column_stride };
        Self { place, accumulate, life: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.place.rows
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.place.width
    }

    /// The same place, added to.
    #[must_use]
    pub fn adding(self) -> Self {
        Self { accumulate: true, ..self }
    }

    /// Whether it is larger than the caches of a core.
    pub fn outgrows_caches(&self) -> bool {
        let bytes = with_type!(self.place.float, T => size_of::<T>());
        self.place.rows * self.place.width * bytes >= STREAMED
    }

    /// Whether it adds to what is there.
    pub fn accumulates(&self) -> bool {
        self.accumulate
    }

    /// `len` columns of `row` from `column` on, to be overwritten where they lie; `None` where they must be
    /// converted, added to or spread.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the result lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "rows are lent one writer each, by the caller's promise"
    )]
    #[inline(always)]
    pub unsafe fn slice<A: Real>(&self, row: usize, column: usize, len: usize) -> Option<&mut [A]>
    where
        for<'m> Matrix<'m>: Load<A>,
    {
        let same = self.place.float == <Matrix<'_> as Load<A>>::FLOAT;
        if !same || self.place.column_stride != 1 || self.accumulate {
            return None;
        }
        let to = self.place.at::<A>(row, column, len);
        // SAFETY: `at` checked the extent; `new` was promised one writer per row, the caller no reader.
        Some(unsafe { std::slice::from_raw_parts_mut(to, len) })
    }

    /// Writes (or adds) `values` from `column` on.
    pub fn store<A: Real>(&self, row: usize, column: usize, values: &[A])
    where
        Self: Store<A>,
    {
        isa::run(Put { output: self, row, column, values });
    }

    /// Leaves zeros from `column` on, or what was there when accumulating.
    pub fn zero(&self, row: usize, column: usize) {
        if self.accumulate {
            return;
        }
        with_type!(self.place.float, T => {
            let len = self.place.width - column;
            let first = self.place.at::<T>(row, column, len);
            for k in 0..len {
                let at = first.wrapping_offset(k as isize * self.place.column_stride);
                // SAFETY: `at` checked the extent; one writer per row. All floats have zero bits for 0.
                unsafe { std::ptr::write_bytes(at, 0, 1) };
            }
        })
    }
}
