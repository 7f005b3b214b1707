//! Tensors that a model hands out: DLPack managed tensors whose owner stays this library.
//!
//! The host calls the deleter once; an [`Output`] that never left frees itself.

use crate::views::contiguous_strides;
use crate::{DType, Element, Error, Result};
use limbeck_abi as abi;
use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;

/// What a managed tensor owns.
struct Manager {
    shape: Vec<i64>,
    strides: Vec<i64>,
    _owner: Box<dyn Any>,
}

/// A contiguous tensor to hand out.
#[derive(Debug)]
pub struct Output {
    managed: NonNull<abi::DLManagedTensorVersioned>,
}

// SAFETY: the owner is only dropped on the step thread (limbeck.h: deleters on [step]); the rest is plain data.
unsafe impl Send for Output {}

impl Output {
    /// Takes over `values`, without a copy.
    ///
    /// # Errors
    /// INTERNAL if their number does not fit `shape`.
    pub fn from_vec<T: Element>(values: Vec<T>, shape: &[usize]) -> Result<Self> {
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::internal(format!("{} values for shape {shape:?}", values.len())));
        }
        let data = values.as_ptr().cast_mut().cast();
        // SAFETY: the vector is moved, not its heap memory, and lives in the owner.
        Ok(unsafe { Self::from_raw(data, T::DTYPE, abi::DLDevice::CPU, shape, Box::new(values)) })
    }

    /// Hands out memory that `owner` keeps alive.
    ///
    /// # Safety
    /// `data` points to contiguous elements of `dtype` on `device`, valid and unchanged until `owner` is dropped.
    pub unsafe fn from_raw(
        data: *mut c_void,
        dtype: DType,
        device: abi::DLDevice,
        shape: &[usize],
        owner: Box<dyn Any>,
    ) -> Self {
        let shape: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let strides = contiguous_strides(&shape);
        let manager = Box::into_raw(Box::new(Manager { shape, strides, _owner: owner }));
        // SAFETY: just made.
        let (shape, strides) = unsafe { (&mut (*manager).shape, &mut (*manager).strides) };
        let tensor = abi::DLManagedTensorVersioned {
            version: abi::DLPackVersion { major: 1, minor: 1 },
            manager_ctx: manager.cast(),
            deleter: Some(delete),
            flags: 0,
            dl_tensor: abi::DLTensor {
                data,
                device,
                ndim: shape.len() as i32,
                dtype: dtype.dl(),
                shape: shape.as_mut_ptr(),
                strides: strides.as_mut_ptr(),
                byte_offset: 0,
            },
        };
        Self { managed: NonNull::from(Box::leak(Box::new(tensor))) }
    }

    /// Gives the tensor away; its deleter must be called once.
    pub fn into_raw(self) -> *mut abi::DLManagedTensorVersioned {
        let pointer = self.managed.as_ptr();
        std::mem::forget(self);
        pointer
    }

    /// Sizes.
    pub fn shape(&self) -> &[i64] {
        // SAFETY: `from_raw` made the tensor with `ndim` sizes; it is alive with `self`.
        unsafe {
            let dl = &self.managed.as_ref().dl_tensor;
            std::slice::from_raw_parts(dl.shape, dl.ndim as usize)
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: not given away, so this is the one call.
        unsafe { delete(self.managed.as_ptr()) }
    }
}

unsafe extern "C" fn delete(tensor: *mut abi::DLManagedTensorVersioned) {
    // R7: a panic of the owner's drop must not leave; what it left undone leaks.
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: made by `from_raw`, deleted once (limbeck.h, lmb_forward.outputs).
        unsafe {
            let tensor = Box::from_raw(tensor);
            drop(Box::from_raw(tensor.manager_ctx.cast::<Manager>()));
        }
    });
}
