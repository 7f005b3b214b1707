//! Owned tensors in host memory: columns of rows, values to provide.
//!
//! Always contiguous and aligned for every element type.

use super::{DType, Element, View, contiguous_strides};
use crate::{Error, Result};
use limbeck_abi as abi;

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
