//! The contract of `include/limbeck.h` in Rust: same names without the `lmb_` prefix, same layout, no behaviour.
//!
//! The header is the contract and holds the comments; this crate only mirrors it, with compile-time asserts on every
//! size and a test that compares every offset with a C compiler's. It has no dependencies.
#![no_std]
#![warn(missing_docs)]

mod device;
mod dlpack;
mod instance;
mod module;
mod scheduler;
mod service;
mod types;

pub use device::*;
pub use dlpack::*;
pub use instance::*;
pub use module::*;
pub use scheduler::*;
pub use service::*;
pub use types::*;

/// Major version of the ABI; also part of the entry symbol's name.
pub const ABI_MAJOR: u32 = 1;
/// Minor version of the ABI.
pub const ABI_MINOR: u32 = 0;
/// Name of the entry symbol, NUL-terminated for `dlsym`.
pub const ENTRY_SYMBOL: &[u8] = b"lmb_module_v1\0";
/// ELF section that holds the manifest.
pub const MANIFEST_SECTION: &str = ".lmb_manifest";
/// First bytes of the manifest section.
pub const MANIFEST_MAGIC: &[u8; 8] = b"LMBMANI1";

/// `LMB_HAS`: whether the struct behind `$ptr`, written by an older or newer peer, holds `$field`.
#[macro_export]
macro_rules! has {
    ($ptr:expr, $type:ty, $field:ident) => {{
        let pointer: *const $type = $ptr;
        let end =
            ::core::mem::offset_of!($type, $field) + $crate::field_size(|s: &$type| &s.$field);
        // SAFETY: `struct_size` is the first field of every growable struct (R3).
        unsafe { *pointer.cast::<u64>() >= end as u64 }
    }};
}

/// Size of the field that `get` picks; used by [`has!`].
#[doc(hidden)]
pub const fn field_size<S, F>(_get: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// `struct_size` of a growable struct as this crate knows it.
pub const fn struct_size<T>() -> u64 {
    size_of::<T>() as u64
}
