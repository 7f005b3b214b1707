//! Host buffers that receive gradients and other outputs.
//!
//! Every `put` obeys ACCUMULATE and the buffer's own element type.

use super::raw::Raw;
use super::{DType, Element, for_each_offset, with_dtype};
use crate::{Error, Result};
use limbeck_abi as abi;
use std::ffi::c_void;

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
    /// The struct of the contract, valid as long as the call.
    pub fn abi(&self) -> abi::Tensor {
        abi::Tensor {
            name: abi::Str::new(self.raw.name),
            t: abi::DLTensor {
                data: self.raw.data,
                device: self.raw.device,
                ndim: self.raw.shape.len() as i32,
                dtype: self.raw.dtype.dl(),
                shape: self.raw.shape.as_ptr().cast_mut(),
                strides: self.raw.strides.as_ptr().cast_mut(),
                byte_offset: 0,
            },
            flags: self.raw.flags,
            reserved: 0,
        }
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
