//! Tensors that the caller lends to be read.
//!
//! A view never outlives its call (R5).

use super::raw::Raw;
use super::{DType, Element, Rows, TypedRows, for_each_offset, raw_slice, text, with_dtype};
use crate::{Error, Result};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::marker::PhantomData;

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
