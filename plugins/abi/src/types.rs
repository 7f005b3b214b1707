//! Basic types: status codes, strings, values, tensors, parameters, ports. All FROZEN.

use crate::{DLDataType, DLDevice, DLTensor};
use core::ffi::c_void;
use core::marker::{PhantomData, PhantomPinned};

/// `lmb_status`: 0 is success, see the `STATUS_*` constants; unknown codes read as [`STATUS_INTERNAL`].
pub type Status = i32;
/// `LMB_OK`.
pub const STATUS_OK: Status = 0;
/// `LMB_CANCELLED`.
pub const STATUS_CANCELLED: Status = 1;
/// `LMB_INVALID_ARGUMENT`.
pub const STATUS_INVALID_ARGUMENT: Status = 2;
/// `LMB_INVALID_CONFIG`.
pub const STATUS_INVALID_CONFIG: Status = 3;
/// `LMB_INVALID_STATE`.
pub const STATUS_INVALID_STATE: Status = 4;
/// `LMB_NOT_FOUND`.
pub const STATUS_NOT_FOUND: Status = 5;
/// `LMB_UNSUPPORTED`.
pub const STATUS_UNSUPPORTED: Status = 6;
/// `LMB_OUT_OF_MEMORY`.
pub const STATUS_OUT_OF_MEMORY: Status = 7;
/// `LMB_DEVICE`.
pub const STATUS_DEVICE: Status = 8;
/// `LMB_IO`.
pub const STATUS_IO: Status = 9;
/// `LMB_BAD_DATA`.
pub const STATUS_BAD_DATA: Status = 10;
/// `LMB_NON_FINITE`.
pub const STATUS_NON_FINITE: Status = 11;
/// `LMB_INTERNAL`.
pub const STATUS_INTERNAL: Status = 12;
/// `LMB_PANIC`.
pub const STATUS_PANIC: Status = 13;

/// `lmb_str`: UTF-8, not NUL-terminated; `{NULL, 0}` is the empty string.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// First byte, may be NULL when `len` is 0.
    pub ptr: *const u8,
    /// Bytes.
    pub len: u64,
}

// SAFETY: a `Str` is a pointer and a length; what it points to follows R5, like any borrow at this boundary.
unsafe impl Send for Str {}
// SAFETY: as above; the bytes are never written through it.
unsafe impl Sync for Str {}

impl Str {
    /// The empty string.
    pub const EMPTY: Self = Self { ptr: core::ptr::null(), len: 0 };

    /// Borrows `text`; the caller keeps it alive as long as the contract asks.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() as u64 }
    }

    /// The bytes.
    ///
    /// # Safety
    /// `ptr` points to `len` readable bytes that outlive `'a`, or `len` is 0.
    pub const unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 || self.ptr.is_null() {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len as usize) }
    }

    /// The text, or `None` if it is not UTF-8.
    ///
    /// # Safety
    /// As [`Str::bytes`].
    pub const unsafe fn text<'a>(self) -> Option<&'a str> {
        // SAFETY: the caller's promise.
        match core::str::from_utf8(unsafe { self.bytes() }) {
            Ok(text) => Some(text),
            Err(_) => None,
        }
    }
}

/// `LMB_VALUE_BOOL`.
pub const VALUE_BOOL: i32 = 1;
/// `LMB_VALUE_I64`.
pub const VALUE_I64: i32 = 2;
/// `LMB_VALUE_F64`.
pub const VALUE_F64: i32 = 3;
/// `LMB_VALUE_STR`.
pub const VALUE_STR: i32 = 4;

/// The union inside [`Value`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union ValueData {
    /// `VALUE_BOOL` (0 or 1) and `VALUE_I64`.
    pub i: i64,
    /// `VALUE_F64`.
    pub f: f64,
    /// `VALUE_STR`.
    pub s: Str,
}

/// `lmb_value`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Value {
    /// A `VALUE_*` constant.
    pub kind: i32,
    /// 0.
    pub reserved: i32,
    /// Read the member that `kind` names.
    pub u: ValueData,
}

/// `lmb_kv`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Kv {
    /// Name.
    pub key: Str,
    /// Value.
    pub value: Value,
}

macro_rules! opaque {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            _data: [u8; 0],
            _marker: PhantomData<(*mut u8, PhantomPinned)>,
        }
    };
}
opaque! {
    /// `lmb_error`: host object, alive for the call it is passed to.
    Error
}
opaque! {
    /// `lmb_tape`: plugin object, made by a forward and consumed by one backward.
    Tape
}

/// `lmb_stream`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Device of the stream.
    pub device: DLDevice,
    /// `CUstream` on CUDA (2 = the per-thread stream), NULL on the CPU.
    pub handle: *mut c_void,
}

/// `LMB_TENSOR_READ_ONLY`.
pub const TENSOR_READ_ONLY: u64 = 1 << 0;
/// `LMB_TENSOR_ACCUMULATE`.
pub const TENSOR_ACCUMULATE: u64 = 1 << 1;
/// `LMB_TENSOR_SHAPE_ONLY`.
pub const TENSOR_SHAPE_ONLY: u64 = 1 << 2;
/// `LMB_TENSOR_ABSENT`.
pub const TENSOR_ABSENT: u64 = 1 << 3;

/// `lmb_tensor`: a named view.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Port or parameter name.
    pub name: Str,
    /// The view; garbage if [`TENSOR_ABSENT`].
    pub t: DLTensor,
    /// `TENSOR_*` bits.
    pub flags: u64,
    /// 0.
    pub reserved: u64,
}

/// `LMB_PARAM_TRAINABLE`.
pub const PARAM_TRAINABLE: u64 = 1 << 0;
/// `LMB_PARAM_NO_DECAY`.
pub const PARAM_NO_DECAY: u64 = 1 << 1;

/// `lmb_param`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Name and view.
    pub value: Tensor,
    /// Canonical name when several names share one buffer, else empty.
    pub tied_to: Str,
    /// Host-owned parameters only: how the host initialises it.
    pub init: Str,
    /// `PARAM_*` bits.
    pub flags: u64,
    /// 0.
    pub reserved: u64,
}

/// `LMB_PORT_OUTPUT`.
pub const PORT_OUTPUT: u64 = 1 << 0;
/// `LMB_PORT_OPTIONAL`.
pub const PORT_OPTIONAL: u64 = 1 << 1;
/// `LMB_PORT_DIFFERENTIABLE`.
pub const PORT_DIFFERENTIABLE: u64 = 1 << 2;
/// `LMB_PORT_GRAD_MAY_ALIAS`.
pub const PORT_GRAD_MAY_ALIAS: u64 = 1 << 3;
/// `LMB_PORT_CONSTANT`.
pub const PORT_CONSTANT: u64 = 1 << 4;
/// `LMB_PORT_HOST_MEMORY`.
pub const PORT_HOST_MEMORY: u64 = 1 << 5;

/// `lmb_port`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// R12.
    pub name: Str,
    /// Symbols and numbers, `"B,T,V"`; `"*"` matches anything.
    pub shape: Str,
    /// Scheduler outputs: the row group whose rows the first axis counts.
    pub rows: Str,
    /// One line for people.
    pub doc: Str,
    /// Accepted (input) or possible (output) element types.
    pub dtypes: *const DLDataType,
    /// Entries of `dtypes`.
    pub num_dtypes: u64,
    /// `PORT_*` bits.
    pub flags: u64,
    /// 0.
    pub reserved: u64,
}

// SAFETY: a port is plain data whose pointers follow R5 and are only read.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

const _: () = {
    assert!(size_of::<Str>() == 16);
    assert!(size_of::<Value>() == 24);
    assert!(size_of::<Kv>() == 40);
    assert!(size_of::<Stream>() == 16);
    assert!(size_of::<Tensor>() == 80);
    assert!(size_of::<Param>() == 128);
    assert!(size_of::<Port>() == 96);
};
