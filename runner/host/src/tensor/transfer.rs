//! Tensors between the CPU and devices.
//!
//! Refuses gaps where a device takes part. A copy is ordered by the device's stream; only one to the CPU waits.

use super::{DType, Memory, Tensor, contiguous_strides};
use crate::device::{self, DeviceError, DeviceMemory};
use limbeck_abi as abi;
use std::sync::Arc;

impl Tensor {
    /// Zeros in the memory of a device, the CPU among them.
    ///
    /// # Errors
    /// No room there.
    pub fn zeros_on(
        device: abi::DLDevice,
        dtype: DType,
        shape: &[i64],
    ) -> Result<Self, DeviceError> {
        if device == abi::DLDevice::CPU {
            return Ok(Self::zeros(dtype, shape));
        }
        let tensor = Self::garbage_on(device, dtype, shape)?;
        // SAFETY: fresh memory of that many bytes.
        unsafe { device::clear(device, tensor.data, tensor.bytes()) }?;
        Ok(tensor)
    }

    fn garbage_on(device: abi::DLDevice, dtype: DType, shape: &[i64]) -> Result<Self, DeviceError> {
        let elements: i64 = shape.iter().product();
        let memory = DeviceMemory::new(device, elements as usize * dtype.bytes())?;
        Ok(Self {
            data: memory.address(),
            memory: Arc::new(Memory::Device(memory)),
            dtype,
            device,
            shape: shape.to_vec(),
            strides: contiguous_strides(shape),
        })
    }

    /// The same elements in the memory of `device`: itself if they lie there, else a copy.
    ///
    /// # Errors
    /// Gaps between the elements, unless both are the CPU; no room; what the driver says.
    pub fn to(&self, device: abi::DLDevice) -> Result<Self, DeviceError> {
        if self.device == device {
            return Ok(self.clone());
        }
        if device == abi::DLDevice::CPU {
            let copy = Self::zeros(self.dtype, &self.shape);
            copy.copy_from(self)?;
            return Ok(copy);
        }
        let source = self.contiguous().unwrap_or_else(|| self.clone());
        let copy = Self::garbage_on(device, self.dtype, &self.shape)?;
        copy.copy_from(&source)?;
        Ok(copy)
    }

    /// As [`Tensor::to`], for what a call reads: host memory of the host is copied once, whatever views of it are asked
    /// for, and must not be written any more.
    ///
    /// # Errors
    /// As [`Tensor::to`].
    pub fn brought_to(&self, device: abi::DLDevice) -> Result<Self, DeviceError> {
        let Memory::Host(memory, twin) = &*self.memory else { return self.to(device) };
        if device == abi::DLDevice::CPU {
            return Ok(self.clone());
        }
        let twin = match twin.get() {
            Some(twin) if twin.device == device => twin,
            Some(_) => return self.to(device),
            None => {
                let whole = Self::garbage_on(device, DType::U8, &[memory.layout.size() as i64])?;
                let bytes = (abi::DLDevice::CPU, memory.data.as_ptr().cast_const().cast());
                // SAFETY: both hold as many bytes.
                unsafe { device::transfer((device, whole.data), bytes, memory.layout.size()) }?;
                twin.get_or_init(|| whole)
            }
        };
        let offset = self.data as usize - memory.data.as_ptr() as usize;
        Ok(Self {
            memory: Arc::clone(&twin.memory),
            data: twin.data.wrapping_byte_add(offset),
            device,
            ..self.clone()
        })
    }

    /// Overwrites the elements with another tensor's, across devices.
    ///
    /// # Errors
    /// Unequal shapes or types; gaps; what the driver says.
    pub fn copy_from(&self, from: &Self) -> Result<(), DeviceError> {
        let refuse =
            |message: String| Err(DeviceError { status: abi::STATUS_UNSUPPORTED, message });
        if self.dtype != from.dtype || self.shape != from.shape {
            return refuse(format!("{from:?} does not fit {self:?}"));
        }
        if !self.is_contiguous() || !from.is_contiguous() {
            return refuse(format!("gaps between the elements of {self:?}"));
        }
        if self.data == from.data {
            return Ok(());
        }
        if self.device == abi::DLDevice::CPU && from.device == abi::DLDevice::CPU {
            // SAFETY: both hold `bytes()` bytes; `copy` allows overlap.
            unsafe {
                std::ptr::copy(from.data.cast::<u8>(), self.data.cast::<u8>(), self.bytes());
            }
            return Ok(());
        }
        // SAFETY: contiguous, of equal size; different addresses of different tensors do not overlap.
        unsafe {
            device::transfer(
                (self.device, self.data),
                (from.device, from.data.cast_const()),
                self.bytes(),
            )
        }
    }

    /// Overwrites every element with 0.
    ///
    /// # Errors
    /// Gaps; what the driver says.
    pub fn clear(&self) -> Result<(), DeviceError> {
        if self.device == abi::DLDevice::CPU {
            if self.is_contiguous() {
                // SAFETY: the session's thread is the only one that writes host tensors between plugin calls.
                unsafe { self.raw_mut() }.fill(0);
                return Ok(());
            }
        } else if self.is_contiguous() {
            // SAFETY: contiguous memory of that device.
            return unsafe { device::clear(self.device, self.data, self.bytes()) };
        }
        let message = format!("gaps between the elements of {self:?}");
        Err(DeviceError { status: abi::STATUS_UNSUPPORTED, message })
    }
}
