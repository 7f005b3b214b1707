//! Tensors at the boundary: borrowed views with their checks, gradient buffers, and owned tensors to hand out.
//!
//! A view never outlives its call (R5) and gives a slice only after type, place and layout were checked.

use crate::{Error, Result};
use half::{bf16, f16};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::marker::PhantomData;

/// Element types that cross the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit unsigned integer.
    U8,
    /// 32-bit unsigned integer.
    U32,
}

impl DType {
    /// The floating-point types, in the order in which plugins prefer them.
    pub const FLOATS: &'static [DType] = &[DType::F32, DType::BF16, DType::F16, DType::F64];

    /// As DLPack writes it.
    pub const fn dl(self) -> abi::DLDataType {
        match self {
            Self::F32 => abi::DLDataType::F32,
            Self::F64 => abi::DLDataType::F64,
            Self::F16 => abi::DLDataType::F16,
            Self::BF16 => abi::DLDataType::BF16,
            Self::I64 => abi::DLDataType::I64,
            Self::I32 => abi::DLDataType::I32,
            Self::U8 => abi::DLDataType::U8,
            Self::U32 => abi::DLDataType::U32,
        }
    }

    /// From DLPack; `None` for types that this SDK does not know.
    pub fn from_dl(dl: abi::DLDataType) -> Option<Self> {
        [Self::F32, Self::F64, Self::F16, Self::BF16, Self::I64, Self::I32, Self::U8, Self::U32]
            .into_iter()
            .find(|t| t.dl() == dl)
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        self.dl().bytes()
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    /// `f32`, `bf16`, `i64`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::U32 => "u32",
        }
    }
}

/// Rust types that are elements of tensors.
pub trait Element: Copy + Send + Sync + Default + 'static {
    /// Their [`DType`].
    const DTYPE: DType;
    /// Widened; exact for every type but large integers.
    fn to_f64(self) -> f64;
    /// Rounded to nearest.
    fn from_f64(value: f64) -> Self;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident, $to:expr, $from:expr;)*) => {$(
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
            fn to_f64(self) -> f64 { ($to)(self) }
            fn from_f64(value: f64) -> Self { ($from)(value) }
        }
    )*};
}
element! {
    f32 => F32, f64::from, |v| v as f32;
    f64 => F64, |v| v, |v| v;
    f16 => F16, f16::to_f64, f16::from_f64;
    bf16 => BF16, bf16::to_f64, bf16::from_f64;
    i64 => I64, |v| v as f64, |v| v as i64;
    i32 => I32, f64::from, |v| v as i32;
    u8 => U8, f64::from, |v| v as u8;
    u32 => U32, f64::from, |v| v as u32;
}

/// Runs `$body` with `$t` bound to the Rust type of `$dtype`.
macro_rules! with_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::DType::F16 => {
                type $t = ::half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $t = ::half::bf16;
                $body
            }
            $crate::DType::I64 => {
                type $t = i64;
                $body
            }
            $crate::DType::I32 => {
                type $t = i32;
                $body
            }
            $crate::DType::U8 => {
                type $t = u8;
                $body
            }
            $crate::DType::U32 => {
                type $t = u32;
                $body
            }
        }
    };
}

pub(crate) use with_dtype;

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

/// Facts of a tensor, shared by [`View`] and [`GradView`].
#[derive(Clone, Copy)]
struct Raw<'a> {
    name: &'a str,
    dtype: DType,
    device: abi::DLDevice,
    shape: &'a [i64],
    strides: &'a [i64],
    data: *mut c_void,
    flags: u64,
}

impl<'a> Raw<'a> {
    /// # Safety
    /// R5: `tensor` and what it points to live for `'a`.
    unsafe fn new(tensor: &'a abi::Tensor) -> Result<Self> {
        // SAFETY: the caller's promise.
        let name = unsafe { text(tensor.name) };
        let dl = &tensor.t;
        let dtype = DType::from_dl(dl.dtype).ok_or_else(|| {
            Error::unsupported(format!("element type {:?}", dl.dtype)).tensor(name)
        })?;
        let ndim = usize::try_from(dl.ndim)
            .map_err(|_| Error::invalid_argument("negative number of dimensions").tensor(name))?;
        let list = |p: *mut i64| {
            if ndim == 0 || p.is_null() {
                return &[][..];
            }
            // SAFETY: DLPack: `ndim` sizes and strides; strides are never NULL (limbeck.h).
            unsafe { std::slice::from_raw_parts(p.cast_const(), ndim) }
        };
        let (shape, strides) = (list(dl.shape), list(dl.strides));
        if shape.len() != ndim
            || (strides.len() != ndim && tensor.flags & abi::TENSOR_SHAPE_ONLY == 0)
        {
            return Err(Error::invalid_argument("shape or strides are NULL").tensor(name));
        }
        let data = dl.data.wrapping_byte_add(dl.byte_offset as usize);
        Ok(Self { name, dtype, device: dl.device, shape, strides, data, flags: tensor.flags })
    }

    fn elements(&self) -> usize {
        self.shape.iter().map(|d| (*d).max(0) as usize).product()
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.elements() == 0
            || self.shape.iter().zip(self.strides).rev().all(|(d, s)| {
                let ok = *d == 1 || *s == expected;
                expected *= d;
                ok
            })
    }

    fn check<T: Element>(&self) -> Result<()> {
        if self.flags & abi::TENSOR_SHAPE_ONLY != 0 {
            return Err(Error::invalid_state("only the shape is known here").tensor(self.name));
        }
        if self.dtype != T::DTYPE {
            let message = format!("expected {}, got {}", T::DTYPE.name(), self.dtype.name());
            return Err(Error::unsupported(message).tensor(self.name));
        }
        if self.device != abi::DLDevice::CPU {
            return Err(Error::unsupported("not in host memory").tensor(self.name));
        }
        if self.elements() > 0 && !(self.data as usize).is_multiple_of(align_of::<T>()) {
            return Err(Error::invalid_argument("misaligned").tensor(self.name));
        }
        Ok(())
    }

    fn check_contiguous<T: Element>(&self) -> Result<()> {
        self.check::<T>()?;
        if !self.is_contiguous() {
            let message = format!("not contiguous: strides {:?} of {:?}", self.strides, self.shape);
            return Err(Error::unsupported(message).tensor(self.name));
        }
        Ok(())
    }

    /// As a matrix of rows: (rows, width, row stride, column stride). The last axis is the width; a vector has width 1.
    fn as_rows(&self) -> Result<(usize, usize, isize, isize)> {
        if self.flags & abi::TENSOR_SHAPE_ONLY != 0 {
            return Err(Error::invalid_state("only the shape is known here").tensor(self.name));
        }
        let size = |d: i64| d.max(0) as usize;
        match (self.shape, self.strides) {
            ([], _) => Ok((1, 1, 0, 0)),
            ([n], [s]) => Ok((size(*n), 1, *s as isize, 0)),
            ([leading @ .., v], [leading_strides @ .., s]) => {
                let rows = leading.iter().map(|d| size(*d)).product();
                let row_stride = leading_strides.last().copied().unwrap_or(0);
                let mut expected = row_stride;
                for (d, stride) in leading.iter().zip(leading_strides).rev() {
                    if *d != 1 && *stride != expected && rows > 1 {
                        let message =
                            format!("rows of {:?} with strides {:?}", self.shape, self.strides);
                        return Err(Error::unsupported(message).tensor(self.name));
                    }
                    expected *= d;
                }
                Ok((rows, size(*v), row_stride as isize, *s as isize))
            }
            _ => {
                Err(Error::invalid_argument("shape and strides differ in length").tensor(self.name))
            }
        }
    }
}

/// A tensor that the caller lends for one call.
#[derive(Clone, Copy)]
pub struct View<'a> {
    raw: Raw<'a>,
    abi: &'a abi::Tensor,
}

// SAFETY: a view is only read, and R5 keeps its memory alive and unwritten for the call; [pool] bodies end before it.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} {} {:?})", self.name(), self.dtype().name(), self.shape())
    }
}

impl<'a> View<'a> {
    /// `None` if the tensor is ABSENT.
    ///
    /// # Safety
    /// R5: `tensor` and what it points to live for `'a` and are not written meanwhile.
    ///
    /// # Errors
    /// An unknown element type, or a malformed shape.
    pub unsafe fn from_abi(tensor: &'a abi::Tensor) -> Result<Option<Self>> {
        if tensor.flags & abi::TENSOR_ABSENT != 0 {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let raw = unsafe { Raw::new(tensor) }?;
        Ok(Some(Self { raw, abi: tensor }))
    }

    /// Name of the port or parameter.
    pub fn name(&self) -> &'a str {
        self.raw.name
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.raw.dtype
    }
    /// Sizes; -1 is not known yet (only in `plan` and `params`).
    pub fn shape(&self) -> &'a [i64] {
        self.raw.shape
    }
    /// Strides in elements.
    pub fn strides(&self) -> &'a [i64] {
        self.raw.strides
    }
    /// Where it lives.
    pub fn device(&self) -> abi::DLDevice {
        self.raw.device
    }
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.raw.elements()
    }
    /// Size of the first axis; 1 for a scalar.
    pub fn num_rows(&self) -> usize {
        self.shape().first().map_or(1, |d| (*d).max(0) as usize)
    }
    /// Whether there is no data yet.
    pub fn is_shape_only(&self) -> bool {
        self.raw.flags & abi::TENSOR_SHAPE_ONLY != 0
    }
    /// Whether it must not be written.
    pub fn is_read_only(&self) -> bool {
        self.raw.flags & abi::TENSOR_READ_ONLY != 0
    }
    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.raw.is_contiguous()
    }
    /// Address of the first element, on whatever device.
    pub fn as_ptr(&self) -> *const c_void {
        self.raw.data
    }
    /// The struct of the contract.
    pub fn abi(&self) -> &'a abi::Tensor {
        self.abi
    }

    /// The elements.
    ///
    /// # Errors
    /// UNSUPPORTED unless of type `T`, in host memory and contiguous.
    pub fn slice<T: Element>(&self) -> Result<&'a [T]> {
        self.raw.check_contiguous::<T>()?;
        if self.elements() == 0 {
            return Ok(&[]);
        }
        // SAFETY: checked type, place, alignment and layout; R5 keeps the memory for `'a`.
        Ok(unsafe { std::slice::from_raw_parts(self.raw.data.cast(), self.elements()) })
    }

    /// The elements as rows of any stride and any type, read as f64: the last axis is the row, axes before it count
    /// rows. A vector has rows of one element.
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory.
    pub fn rows(&self) -> Result<Rows<'a>> {
        with_dtype!(self.dtype(), T => self.raw.check::<T>())?;
        let (rows, width, row_stride, column_stride) = self.raw.as_rows()?;
        Ok(Rows {
            data: self.raw.data,
            dtype: self.dtype(),
            rows,
            width,
            row_stride,
            column_stride,
            life: PhantomData,
        })
    }

    /// Rows of type `T` with unit column stride, for kernels.
    ///
    /// # Errors
    /// UNSUPPORTED unless of type `T`, in host memory, and each row contiguous.
    pub fn typed_rows<T: Element>(&self) -> Result<TypedRows<'a, T>> {
        self.raw.check::<T>()?;
        let (rows, width, row_stride, column_stride) = self.raw.as_rows()?;
        if width > 1 && column_stride != 1 {
            return Err(Error::unsupported("rows are not contiguous").tensor(self.name()));
        }
        Ok(TypedRows { data: self.raw.data.cast(), rows, width, row_stride, life: PhantomData })
    }

    /// A contiguous copy of all elements, converted.
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype() == T::DTYPE && self.is_contiguous() {
            return Ok(self.slice::<T>()?.to_vec());
        }
        with_dtype!(self.dtype(), S => {
            self.raw.check::<S>()?;
            let mut out = Vec::with_capacity(self.elements());
            for_each_offset(self.shape(), self.strides(), |offset| {
                // SAFETY: checked place and type; offsets stay inside the view's shape and strides.
                out.push(T::from_f64(unsafe { *self.raw.data.cast::<S>().offset(offset) }.to_f64()));
            });
            Ok(out)
        })
    }

    /// A contiguous copy of all elements as bytes, in the view's own type.
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        with_dtype!(self.dtype(), T => self.raw.check::<T>())?;
        let size = self.dtype().bytes();
        let mut out = Vec::with_capacity(self.elements() * size);
        for_each_offset(self.shape(), self.strides(), |offset| {
            let at = self.raw.data.cast::<u8>().wrapping_offset(offset * size as isize);
            // SAFETY: checked place; `size` bytes of one element inside the view.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(at, size) });
        });
        Ok(out)
    }
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

/// A matrix of any element type, read as f64.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: *const c_void,
    dtype: DType,
    rows: usize,
    width: usize,
    row_stride: isize,
    column_stride: isize,
    life: PhantomData<&'a [u8]>,
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
    data: *const T,
    rows: usize,
    width: usize,
    row_stride: isize,
    life: PhantomData<&'a [T]>,
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

/// A host buffer that receives a gradient (or another output) of a call.
#[derive(Clone, Copy)]
pub struct GradView<'a> {
    raw: Raw<'a>,
}

// SAFETY: plain memory that R5 lends for the call; methods that write from several threads are `unsafe` or take rows.
unsafe impl Send for GradView<'_> {}
// SAFETY: as above.
unsafe impl Sync for GradView<'_> {}

impl std::fmt::Debug for GradView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GradView({} {} {:?})", self.name(), self.dtype().name(), self.shape())
    }
}

impl<'a> GradView<'a> {
    /// `None` if the gradient is not wanted (ABSENT).
    ///
    /// # Safety
    /// R5: `tensor` and what it points to live for `'a`; nobody else touches the elements meanwhile.
    ///
    /// # Errors
    /// An unknown element type, or a malformed shape.
    pub unsafe fn from_abi(tensor: &'a abi::Tensor) -> Result<Option<Self>> {
        if tensor.flags & abi::TENSOR_ABSENT != 0 {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        Ok(Some(Self { raw: unsafe { Raw::new(tensor) }? }))
    }

    /// Name of the port or parameter.
    pub fn name(&self) -> &'a str {
        self.raw.name
    }
    /// Element type; may differ from the input's.
    pub fn dtype(&self) -> DType {
        self.raw.dtype
    }
    /// Sizes.
    pub fn shape(&self) -> &'a [i64] {
        self.raw.shape
    }
    /// Strides in elements.
    pub fn strides(&self) -> &'a [i64] {
        self.raw.strides
    }
    /// Where it lives.
    pub fn device(&self) -> abi::DLDevice {
        self.raw.device
    }
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.raw.elements()
    }
    /// Add to the buffer; otherwise overwrite all of it.
    pub fn accumulate(&self) -> bool {
        self.raw.flags & abi::TENSOR_ACCUMULATE != 0
    }
    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.raw.is_contiguous()
    }
    /// Address of the first element, on whatever device.
    pub fn as_mut_ptr(&self) -> *mut c_void {
        self.raw.data
    }
    /// Rows, width, row stride, column stride (in elements), as [`View::rows`] sees a matrix.
    ///
    /// # Errors
    /// UNSUPPORTED if the leading axes do not flatten.
    pub fn layout(&self) -> Result<(usize, usize, isize, isize)> {
        self.raw.as_rows()
    }

    /// The elements, writable. The borrow of `self` keeps safe code from holding two.
    ///
    /// # Errors
    /// UNSUPPORTED unless of type `T`, in host memory and contiguous.
    pub fn slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.raw.check_contiguous::<T>()?;
        if self.elements() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: checked type, place, alignment, layout; `from_abi` promises that nobody else touches it.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.raw.data.cast(), self.elements()) })
    }

    /// Row `i` as a slice, for kernels that write rows from several threads.
    ///
    /// # Safety
    /// No two live slices are of the same row, and the input whose memory this may alias is not read after.
    ///
    /// # Errors
    /// UNSUPPORTED unless of type `T`, in host memory, each row contiguous; INVALID_ARGUMENT if there is no row `i`.
    #[expect(
        clippy::mut_from_ref,
        reason = "rows are disjoint; the caller promises one slice a row"
    )]
    pub unsafe fn row_mut<T: Element>(&self, i: usize) -> Result<&mut [T]> {
        self.raw.check::<T>()?;
        let (rows, width, row_stride, column_stride) = self.raw.as_rows()?;
        if i >= rows {
            return Err(Error::invalid_argument(format!("row {i} of {rows}")).tensor(self.name()));
        }
        if width == 0 {
            return Ok(&mut []);
        }
        if width > 1 && column_stride != 1 {
            return Err(Error::unsupported("rows are not contiguous").tensor(self.name()));
        }
        // SAFETY: checked type, place, index and unit stride; uniqueness is the caller's promise.
        Ok(unsafe {
            let start = self.raw.data.cast::<T>().offset(i as isize * row_stride);
            std::slice::from_raw_parts_mut(start, width)
        })
    }

    /// Writes (or, with ACCUMULATE, adds) `scale * values` to row `i`, in the buffer's own type.
    ///
    /// # Safety
    /// As [`GradView::row_mut`].
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory; INVALID_ARGUMENT if row or width do not fit.
    pub unsafe fn put_row(&self, i: usize, scale: f64, values: &[f64]) -> Result<()> {
        with_dtype!(self.dtype(), T => self.raw.check::<T>())?;
        let (rows, width, row_stride, column_stride) = self.raw.as_rows()?;
        if i >= rows || width != values.len() {
            let message = format!("row {i} of {} values into {:?}", values.len(), self.shape());
            return Err(Error::invalid_argument(message).tensor(self.name()));
        }
        let add = self.accumulate();
        with_dtype!(self.dtype(), T => {
            let start = self.raw.data.cast::<T>().wrapping_offset(i as isize * row_stride);
            for (j, value) in values.iter().enumerate() {
                let at = start.wrapping_offset(j as isize * column_stride);
                // SAFETY: checked type, place and indices; uniqueness is the caller's promise.
                unsafe {
                    let old = if add { (*at).to_f64() } else { 0.0 };
                    *at = T::from_f64(old + scale * value);
                }
            }
        });
        Ok(())
    }

    /// Writes (or, with ACCUMULATE, adds) `scale * values`, row-major over all elements.
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory; INVALID_ARGUMENT if the number of values differs.
    pub fn put<S: Element>(&mut self, scale: f64, values: &[S]) -> Result<()> {
        if values.len() != self.elements() {
            let message = format!("{} values into {:?}", values.len(), self.shape());
            return Err(Error::invalid_argument(message).tensor(self.name()));
        }
        let add = self.accumulate();
        with_dtype!(self.dtype(), T => {
            self.raw.check::<T>()?;
            let mut values = values.iter();
            for_each_offset(self.shape(), self.strides(), |offset| {
                let Some(value) = values.next() else { return };
                // SAFETY: checked type and place; offsets stay inside; `&mut self` and `from_abi` rule out aliases.
                unsafe {
                    let at = self.raw.data.cast::<T>().offset(offset);
                    let old = if add { (*at).to_f64() } else { 0.0 };
                    *at = T::from_f64(old + scale * value.to_f64());
                }
            });
        });
        Ok(())
    }

    /// Exact zeros; nothing with ACCUMULATE.
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory.
    pub fn put_zeros(&mut self) -> Result<()> {
        if self.accumulate() {
            return Ok(());
        }
        with_dtype!(self.dtype(), T => {
            self.raw.check::<T>()?;
            for_each_offset(self.shape(), self.strides(), |offset| {
                // SAFETY: as in `put`.
                unsafe { *self.raw.data.cast::<T>().offset(offset) = T::default() }
            });
        });
        Ok(())
    }
}

/// The inputs of a call, in the order of the input ports.
#[derive(Clone, Copy)]
pub struct Views<'a> {
    tensors: &'a [abi::Tensor],
}

// SAFETY: only read, alive for the call (R5).
unsafe impl Send for Views<'_> {}
// SAFETY: as above.
unsafe impl Sync for Views<'_> {}

impl<'a> Views<'a> {
    /// Views of `num` tensors.
    ///
    /// # Safety
    /// R5: the array and all it points to live for `'a`.
    pub unsafe fn from_abi(tensors: *const abi::Tensor, num: u64) -> Self {
        // SAFETY: the caller's promise.
        Self { tensors: unsafe { raw_slice(tensors, num) } }
    }

    /// Number of ports.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Input `i`; `None` if it is absent.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if there is no port `i`; UNSUPPORTED for an unknown element type.
    pub fn get(&self, i: usize) -> Result<Option<View<'a>>> {
        let tensor = self.tensors.get(i).ok_or_else(|| {
            Error::invalid_argument(format!("no input {i}, {} given", self.len()))
        })?;
        // SAFETY: `from_abi` promised the lifetime; inputs are READ_ONLY.
        unsafe { View::from_abi(tensor) }
    }

    /// Input `i`, which must be there.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is absent.
    pub fn required(&self, i: usize) -> Result<View<'a>> {
        self.get(i)?.ok_or_else(|| Error::invalid_argument(format!("input {i} is absent")))
    }

    /// The input of a name; `None` if absent or unknown.
    ///
    /// # Errors
    /// UNSUPPORTED for an unknown element type.
    pub fn named(&self, name: &str) -> Result<Option<View<'a>>> {
        // SAFETY: R5, R6.
        match self.tensors.iter().find(|t| unsafe { text(t.name) } == name) {
            // SAFETY: `from_abi` promised the lifetime.
            Some(tensor) => unsafe { View::from_abi(tensor) },
            None => Ok(None),
        }
    }

    /// The tensors of the contract.
    pub fn abi(&self) -> &'a [abi::Tensor] {
        self.tensors
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

/// An owned, contiguous tensor in host memory with a name: a column of rows, a value to provide, a state vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    name: String,
    dtype: DType,
    shape: Vec<i64>,
    strides: Vec<i64>,
    /// 8-byte words, so that every element type is aligned.
    words: Vec<u64>,
}

impl Column {
    /// A column of `values` with the given sizes.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the number of values does not fit.
    pub fn new<T: Element>(name: impl Into<String>, shape: &[i64], values: &[T]) -> Result<Self> {
        let bytes = size_of_val(values);
        // SAFETY: elements are plain data without padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), bytes) };
        Self::from_bytes(name, T::DTYPE, shape, bytes)
    }

    /// A column from raw little-endian bytes.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the number of bytes does not fit.
    pub fn from_bytes(
        name: impl Into<String>,
        dtype: DType,
        shape: &[i64],
        bytes: &[u8],
    ) -> Result<Self> {
        let name = name.into();
        let elements: i64 = shape.iter().product();
        if shape.iter().any(|d| *d < 0) || bytes.len() as i64 != elements * dtype.bytes() as i64 {
            let message = format!("{} bytes for {} {shape:?}", bytes.len(), dtype.name());
            return Err(Error::invalid_argument(message).tensor(name));
        }
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_ne_bytes(padded);
        }
        Ok(Self { name, dtype, shape: shape.to_vec(), strides: contiguous_strides(shape), words })
    }

    /// A copy of a view.
    ///
    /// # Errors
    /// UNSUPPORTED unless in host memory.
    pub fn from_view(view: &View<'_>) -> Result<Self> {
        Self::from_bytes(view.name(), view.dtype(), view.shape(), &view.to_bytes()?)
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Under another name.
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Sizes.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }
    /// The bytes of the elements.
    pub fn bytes(&self) -> &[u8] {
        let elements: i64 = self.shape.iter().product();
        // SAFETY: `from_bytes` made the words at least this long.
        unsafe {
            std::slice::from_raw_parts(
                self.words.as_ptr().cast(),
                elements as usize * self.dtype.bytes(),
            )
        }
    }
    /// The elements.
    ///
    /// # Errors
    /// UNSUPPORTED for another type.
    pub fn slice<T: Element>(&self) -> Result<&[T]> {
        if T::DTYPE != self.dtype {
            let message = format!("expected {}, got {}", T::DTYPE.name(), self.dtype.name());
            return Err(Error::unsupported(message).tensor(self.name.clone()));
        }
        let bytes = self.bytes();
        // SAFETY: words are 8-byte aligned and hold this many elements of this type.
        Ok(unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>())
        })
    }
    /// The elements, writable.
    ///
    /// # Errors
    /// UNSUPPORTED for another type.
    pub fn slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let len = self.slice::<T>()?.len();
        // SAFETY: as in `slice`, borrowed uniquely.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), len) })
    }

    /// The struct of the contract; valid while `self` is neither moved nor dropped.
    pub fn abi(&self) -> abi::Tensor {
        abi::Tensor {
            name: abi::Str::new(&self.name),
            t: abi::DLTensor {
                data: self.words.as_ptr().cast_mut().cast(),
                device: abi::DLDevice::CPU,
                ndim: self.shape.len() as i32,
                dtype: self.dtype.dl(),
                shape: self.shape.as_ptr().cast_mut(),
                strides: self.strides.as_ptr().cast_mut(),
                byte_offset: 0,
            },
            flags: 0,
            reserved: 0,
        }
    }

    /// The struct of the contract for a buffer that is written; valid while `self` is neither moved nor dropped.
    pub fn abi_mut(&mut self) -> abi::Tensor {
        let data = self.words.as_mut_ptr().cast();
        let tensor = self.abi();
        abi::Tensor { t: abi::DLTensor { data, ..tensor.t }, ..tensor }
    }

    /// Calls `f` with the column as a view.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn view<R>(&self, f: impl FnOnce(View<'_>) -> Result<R>) -> Result<R> {
        let tensor = self.abi();
        // SAFETY: `self` outlives the call.
        match unsafe { View::from_abi(&tensor) }? {
            Some(view) => f(view),
            None => Err(Error::internal("an owned column is never absent")),
        }
    }
}
