//! A host made by hand over the raw tables, for what the real host never does: other minors, odd calls.

use limbeck_abi as abi;
use std::ffi::c_void;

/// What `error_set` was told, behind the `lmb_error` pointer.
#[derive(Default, Debug)]
pub struct Slot {
    pub status: i32,
    pub message: String,
}

impl Slot {
    pub fn as_error(&mut self) -> *mut abi::Error {
        std::ptr::from_mut(self).cast()
    }
}

unsafe extern "C" fn get_interface(_: *const abi::Host, _: abi::Str) -> *const c_void {
    std::ptr::null()
}
unsafe extern "C" fn error_set(error: *mut abi::Error, status: abi::Status, message: abi::Str) {
    if !error.is_null() {
        // SAFETY: errors passed by this host are `Slot`s; R6 for the text.
        unsafe {
            let slot = &mut *error.cast::<Slot>();
            slot.status = status;
            slot.message = message.text().unwrap_or("(not UTF-8)").to_owned();
        }
    }
}
unsafe extern "C" fn error_note(_: *mut abi::Error, _: abi::Str, _: abi::Str) {}
unsafe extern "C" fn log_enabled(_: *const abi::Host, _: i32, _: abi::Str) -> i32 {
    0
}
unsafe extern "C" fn log(_: *const abi::Host, _: *const abi::Log) {}
unsafe extern "C" fn progress(
    _: *const abi::Host,
    _: *const abi::Ctx,
    _: u64,
    _: u64,
    _: abi::Str,
) {
}
unsafe extern "C" fn cancelled(_: *const abi::Host, _: *const abi::Ctx) -> i32 {
    0
}
unsafe extern "C" fn metric(_: *const abi::Host, _: *const abi::Ctx, _: abi::Str, _: f64) {}
unsafe extern "C" fn num_threads(_: *const abi::Host) -> u32 {
    1
}
unsafe extern "C" fn parallel_for(
    _: *const abi::Host,
    n: u64,
    _: u64,
    body: abi::RangeFn,
    user: *mut c_void,
    _: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the caller's body and user data belong together.
    unsafe { body(user, 0, n, 0) };
    abi::STATUS_OK
}
unsafe extern "C" fn tensor_alloc(
    _: *const abi::Host,
    _: *const abi::Alloc,
    _: *mut *mut abi::DLManagedTensorVersioned,
    _: *mut abi::Error,
) -> abi::Status {
    abi::STATUS_UNSUPPORTED
}
unsafe extern "C" fn tensor_copy(
    _: *const abi::Host,
    _: *const abi::Ctx,
    _: *const abi::Tensor,
    _: *const abi::Tensor,
    _: *mut abi::Error,
) -> abi::Status {
    abi::STATUS_UNSUPPORTED
}

/// A host of this minor; `struct_size` is that of `abi::Host` until the caller says otherwise.
pub fn host(minor: u32) -> abi::Host {
    abi::Host {
        struct_size: abi::struct_size::<abi::Host>(),
        abi_major: abi::ABI_MAJOR,
        abi_minor: minor,
        this: std::ptr::null_mut(),
        version: abi::Str::new("raw test host"),
        get_interface,
        error_set,
        error_note,
        log_enabled,
        log,
        progress,
        cancelled,
        metric,
        num_threads,
        parallel_for,
        tensor_alloc,
        tensor_copy,
    }
}

/// A context on the CPU.
pub fn ctx(host: *const abi::Host) -> abi::Ctx {
    abi::Ctx {
        struct_size: abi::struct_size::<abi::Ctx>(),
        host,
        stream: abi::Stream { device: abi::DLDevice::CPU, handle: std::ptr::null_mut() },
        step: 0,
        micro_step: 0,
        rng_key: [1, 2],
        span: 0,
    }
}

/// A contiguous CPU view; `shape` and `strides` are borrowed for the call.
pub fn view(
    name: &'static str,
    data: *mut c_void,
    shape: &[i64],
    strides: &[i64],
    flags: u64,
) -> abi::Tensor {
    abi::Tensor {
        name: abi::Str::new(name),
        t: abi::DLTensor {
            data,
            device: abi::DLDevice::CPU,
            ndim: shape.len() as i32,
            dtype: abi::DLDataType::F32,
            shape: shape.as_ptr().cast_mut(),
            strides: strides.as_ptr().cast_mut(),
            byte_offset: 0,
        },
        flags,
        reserved: 0,
    }
}
