//! The checked facts of a `lmb_tensor`, shared by the views that read and those that write.
//!
//! No slice is made here; every check that one needs is.

use super::{DType, Element, text};
use crate::{Error, Result};
use limbeck_abi as abi;
use std::ffi::c_void;

/// Facts of a tensor, shared by [`View`] and [`GradView`].
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: DType,
    pub(super) device: abi::DLDevice,
    pub(super) shape: &'a [i64],
    pub(super) strides: &'a [i64],
    pub(super) data: *mut c_void,
    pub(super) flags: u64,
}

impl<'a> Raw<'a> {
    /// # Safety
    /// R5: `tensor` and what it points to live for `'a`.
    pub(super) unsafe fn new(tensor: &'a abi::Tensor) -> Result<Self> {
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

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().map(|d| (*d).max(0) as usize).product()
    }

    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.elements() == 0
            || self.shape.iter().zip(self.strides).rev().all(|(d, s)| {
                let ok = *d == 1 || *s == expected;
                expected *= d;
                ok
            })
    }

    pub(super) fn check<T: Element>(&self) -> Result<()> {
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

    pub(super) fn check_contiguous<T: Element>(&self) -> Result<()> {
        self.check::<T>()?;
        if !self.is_contiguous() {
            let message = format!("not contiguous: strides {:?} of {:?}", self.strides, self.shape);
            return Err(Error::unsupported(message).tensor(self.name));
        }
        Ok(())
    }

    /// As a matrix of rows: (rows, width, row stride, column stride). The last axis is the width; a vector has width 1.
    pub(super) fn as_rows(&self) -> Result<(usize, usize, isize, isize)> {
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
