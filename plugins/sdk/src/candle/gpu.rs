//! What the boundary needs of candle's CUDA half: the device of a step thread, addresses, a scalar.
//!
//! Invariant: this library works on a GPU's per-thread stream alone, which is the stream of the calls (limbeck.h, R10),
//! so nothing here waits for anything.

use crate::{Error, Result};
use candle_core::Device;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use limbeck_abi as abi;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// What candle plugins of this build can compute on.
pub const BUILT_FOR: &[i32] = &[abi::DL_CPU, abi::DL_CUDA];

/// GPU `ordinal`, opened once: a device of candle has its own cuBLAS handle and workspace.
pub(super) fn device(ordinal: i32) -> Result<Device> {
    static OPEN: Mutex<BTreeMap<i32, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    let opened = Device::new_cuda(ordinal.max(0) as usize).map_err(|error| {
        let message = format!(
            "GPU {ordinal}: {error}; candle needs the driver, cuBLAS, cuRAND and NVRTC of CUDA 13, in \
             LIMBECK_CUDA_LIB_DIR or where the system has libraries"
        );
        Error::device(message)
    })?;
    if let Device::Cuda(cuda) = &opened {
        // SAFETY: one stream (above), so there is nothing that events would order.
        unsafe { cuda.disable_event_tracking() };
    }
    open.insert(ordinal, opened.clone());
    Ok(opened)
}

/// Address of element `start`.
pub(super) fn address(storage: &CudaStorage, start: usize) -> candle_core::Result<*mut c_void> {
    let stream = storage.device().cuda_stream();
    macro_rules! pointer {
        ($slice:expr, $type:ty) => {
            $slice.device_ptr(&stream).0 as usize + start * size_of::<$type>()
        };
    }
    let address = match &storage.slice {
        CudaStorageSlice::F32(v) => pointer!(v, f32),
        CudaStorageSlice::F64(v) => pointer!(v, f64),
        CudaStorageSlice::F16(v) => pointer!(v, half::f16),
        CudaStorageSlice::BF16(v) => pointer!(v, half::bf16),
        CudaStorageSlice::I64(v) => pointer!(v, i64),
        CudaStorageSlice::I32(v) => pointer!(v, i32),
        CudaStorageSlice::U8(v) => pointer!(v, u8),
        CudaStorageSlice::U32(v) => pointer!(v, u32),
        _ => candle_core::bail!("address of an element type that does not cross the boundary"),
    };
    Ok(address as *mut c_void)
}

/// A 0 of f32 where `storage` is.
pub(super) fn zero(storage: &CudaStorage) -> candle_core::Result<CudaStorage> {
    let device = storage.device();
    Ok(CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(1)?, device.clone()))
}
