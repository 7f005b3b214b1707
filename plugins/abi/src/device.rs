//! `lmb.device/1`: the memory of one kind of device, offered by a module to the host.
//!
//! Everywhere the context's `stream.device` is the device meant; memory is bytes, ordered by the stream.

use crate::{Ctx, Error, Status, Str};
use core::ffi::c_void;

/// Id of the device memory interface.
pub const DEVICE_ID: &str = "lmb.device/1";

/// Bytes between two addresses: destination, source, number.
pub type TransferFn = unsafe extern "C" fn(
    *const Device,
    *const Ctx,
    dst: *mut c_void,
    src: *const c_void,
    bytes: u64,
    *mut Error,
) -> Status;

/// `lmb_device`.
#[repr(C)]
pub struct Device {
    /// R3.
    pub struct_size: u64,
    /// `DLDeviceType`.
    pub device_type: i32,
    /// 0.
    pub reserved: i32,
    /// \[any\] How many there are; [`crate::STATUS_DEVICE`] with the reason if none.
    pub count: unsafe extern "C" fn(*const Device, *const Ctx, num: *mut u32, *mut Error) -> Status,
    /// \[any\] Name and bytes of memory.
    pub describe: unsafe extern "C" fn(
        *const Device,
        *const Ctx,
        name: *mut Str,
        bytes: *mut u64,
        *mut Error,
    ) -> Status,
    /// \[step\] Makes the primary context current on this thread.
    pub open: unsafe extern "C" fn(*const Device, *const Ctx, *mut Error) -> Status,
    /// \[step\] 256-byte aligned garbage.
    pub alloc: unsafe extern "C" fn(
        *const Device,
        *const Ctx,
        bytes: u64,
        out: *mut *mut c_void,
        *mut Error,
    ) -> Status,
    /// \[step\] What is in the stream already may still use it.
    pub free: unsafe extern "C" fn(*const Device, *const Ctx, memory: *mut c_void),
    /// \[step\] Every byte = 0.
    pub clear: unsafe extern "C" fn(
        *const Device,
        *const Ctx,
        dst: *mut c_void,
        bytes: u64,
        *mut Error,
    ) -> Status,
    /// \[step\] From CPU memory, which is free when the call returns.
    pub upload: TransferFn,
    /// \[step\] To CPU memory; blocks.
    pub download: TransferFn,
    /// \[step\] On the device.
    pub copy: TransferFn,
}

// SAFETY: a static table of functions that state their own thread rules.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

const _: () = assert!(size_of::<Device>() == 88);
