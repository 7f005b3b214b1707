//! What a library exports.

use crate::{Error, Host, Plugin, Status, Str};
use core::ffi::c_void;

/// `LMB_KIND_TEACHER`.
pub const KIND_TEACHER: i32 = 1;
/// `LMB_KIND_STUDENT`.
pub const KIND_STUDENT: i32 = 2;
/// `LMB_KIND_LOSS`.
pub const KIND_LOSS: i32 = 3;
/// `LMB_KIND_SCHEDULER`.
pub const KIND_SCHEDULER: i32 = 4;

/// `lmb_descriptor`: plugin memory, unchanged while the process lives.
#[repr(C)]
pub struct Descriptor {
    /// R3.
    pub struct_size: u64,
    /// A `KIND_*` constant.
    pub kind: i32,
    /// 0.
    pub reserved: i32,
    /// `[a-z0-9.-]`, unique in a run.
    pub id: Str,
    /// semver.
    pub version: Str,
    /// One line.
    pub summary: Str,
    /// SPDX expression.
    pub license: Str,
    /// JSON Schema 2020-12 with defaults; closed.
    pub config_schema: Str,
    /// Bit `1 << DLDeviceType`.
    pub device_mask: u64,
    /// `deterministic`, `piecewise`, ...
    pub features: *const Str,
    /// Entries of `features`.
    pub num_features: u64,
    /// Host interface ids it cannot do without.
    pub requires_host: *const Str,
    /// Entries of `requires_host`.
    pub num_requires_host: u64,
}

// SAFETY: immutable data for the life of the process.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

/// `lmb_module`: static plugin memory.
#[repr(C)]
pub struct Module {
    /// R3.
    pub struct_size: u64,
    /// ABI major it was compiled against.
    pub abi_major: u32,
    /// ABI minor it was compiled against.
    pub abi_minor: u32,
    /// Compiler, SDK version, commit.
    pub build_info: Str,
    /// \[main\] Optional; once per process.
    pub init: Option<unsafe extern "C" fn(*const Host, *mut Error) -> Status>,
    /// \[main\] Optional; after the last `destroy()`.
    pub deinit: Option<unsafe extern "C" fn()>,
    /// \[any\] NULL past the last.
    pub descriptor: unsafe extern "C" fn(index: u64) -> *const Descriptor,
    /// \[any\] Optional.
    pub get_interface: Option<unsafe extern "C" fn(id: Str) -> *const c_void>,
    /// \[main\] Cheap: no device, no threads, no large files.
    pub create: unsafe extern "C" fn(
        *const Host,
        id: Str,
        config_json: Str,
        out: *mut *const Plugin,
        *mut Error,
    ) -> Status,
}

// SAFETY: immutable data for the life of the process.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// `lmb_module_v1`, the entry. `None` (NULL): cannot run on this host.
pub type Entry = unsafe extern "C" fn(*const Host) -> *const Module;

const _: () = {
    assert!(size_of::<Descriptor>() == 136);
    assert!(size_of::<Module>() == 72);
};
