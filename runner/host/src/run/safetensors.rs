//! Tensors by name to the bytes of a safetensors file, and back.
//!
//! Names are sorted, so equal tensors give equal bytes. Reading refuses headers that overlap, overflow or point
//! outside the file (the `safetensors` crate's checks) and element types that the host does not know.

use crate::device::DeviceError;
use crate::tensor::{DType, Tensor};
use safetensors::tensor::{Dtype as FileType, SafeTensors, View};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Tensors by name.
pub type Named = BTreeMap<String, Tensor>;

/// Why bytes or tensors were refused.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The tensor cannot be written: it has gaps.
    #[error("tensor `{0}` is not contiguous")]
    Layout(String),
    /// It could not be fetched from its device.
    #[error(transparent)]
    Device(DeviceError),
    /// The bytes are no safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(String),
    /// An element type the host does not know.
    #[error("tensor `{name}` has element type {found}")]
    ElementType {
        /// Tensor.
        name: String,
        /// Type as the file says it.
        found: String,
    },
}

const fn file_type(dtype: DType) -> FileType {
    match dtype {
        DType::F32 => FileType::F32,
        DType::F64 => FileType::F64,
        DType::F16 => FileType::F16,
        DType::BF16 => FileType::BF16,
        DType::I64 => FileType::I64,
        DType::I32 => FileType::I32,
        DType::U8 => FileType::U8,
        DType::U32 => FileType::U32,
    }
}

/// A tensor of a file, fetched from its device when its turn comes.
struct Entry<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
    failed: &'a RefCell<Option<DeviceError>>,
}

impl View for Entry<'_> {
    fn dtype(&self) -> FileType {
        file_type(self.tensor.dtype())
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if let Some(bytes) = self.tensor.raw() {
            return Cow::Borrowed(bytes);
        }
        match self.tensor.to(limbeck_abi::DLDevice::CPU) {
            Ok(here) => Cow::Owned(here.raw().unwrap_or_default().to_vec()),
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                Cow::Owned(vec![0; self.tensor.bytes()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes()
    }
}

/// The file's bytes; tensors on a device are fetched one by one.
///
/// # Errors
/// [`TensorFileError::Layout`], [`TensorFileError::Device`].
pub fn to_bytes(tensors: &Named) -> Result<Vec<u8>, TensorFileError> {
    let failed = RefCell::new(None);
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if !tensor.is_contiguous() {
            return Err(TensorFileError::Layout(name.clone()));
        }
        let shape = tensor.shape().iter().map(|d| *d as usize).collect();
        entries.push((name.as_str(), Entry { tensor, shape, failed: &failed }));
    }
    let bytes = safetensors::tensor::serialize(entries, None)
        .map_err(|e| TensorFileError::Format(e.to_string()))?;
    failed.into_inner().map_or(Ok(bytes), |error| Err(TensorFileError::Device(error)))
}

/// The tensors of a file, copied.
///
/// # Errors
/// [`TensorFileError::Format`], [`TensorFileError::ElementType`].
pub fn from_bytes(bytes: &[u8]) -> Result<Named, TensorFileError> {
    let file =
        SafeTensors::deserialize(bytes).map_err(|e| TensorFileError::Format(e.to_string()))?;
    let mut tensors = Named::new();
    for (name, view) in file.iter() {
        let dtype =
            DType::ALL.into_iter().find(|d| file_type(*d) == view.dtype()).ok_or_else(|| {
                TensorFileError::ElementType {
                    name: name.to_owned(),
                    found: format!("{:?}", view.dtype()),
                }
            })?;
        let shape: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
        let tensor = Tensor::zeros(dtype, &shape);
        if view.data().len() != tensor.bytes() {
            return Err(TensorFileError::Format(format!(
                "tensor `{name}` has the wrong number of bytes"
            )));
        }
        // SAFETY: fresh memory, not shared yet.
        unsafe { tensor.raw_mut() }.copy_from_slice(view.data());
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_survives_and_bytes_repeat() {
        let mut tensors = Named::new();
        for dtype in DType::ALL {
            let tensor = Tensor::zeros(dtype, &[2, 3]);
            // SAFETY: not shared.
            unsafe { tensor.raw_mut() }.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8);
            tensors.insert(format!("t.{}", dtype.name()), tensor);
        }
        tensors.insert("scalar".into(), Tensor::from_slice(&[1.5f64], &[]));
        tensors.insert("empty".into(), Tensor::zeros(DType::F32, &[0, 4]));
        let bytes = to_bytes(&tensors).unwrap();
        assert_eq!(bytes, to_bytes(&tensors).unwrap());
        let read = from_bytes(&bytes).unwrap();
        assert_eq!(read.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!(read[name].shape(), tensor.shape(), "{name}");
            assert_eq!(read[name].raw(), tensor.raw(), "{name}");
        }
    }

    #[test]
    fn cut_and_flipped_files_never_panic() {
        let tensors = Named::from([("a".into(), Tensor::from_slice(&[1f32, 2.0], &[2]))]);
        let bytes = to_bytes(&tensors).unwrap();
        for cut in 0..bytes.len() {
            assert!(from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0xff;
            let _ = from_bytes(&flipped);
        }
    }
}
