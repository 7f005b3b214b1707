//! What the tables of this library have in common: a call of the contract, its failures and panics as a status.

use limbeck_sdk::{Error, Result, abi};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The module's `get_interface`.
pub fn interface(id: &str) -> *const std::ffi::c_void {
    match id {
        abi::VECTOR_ID => (&raw const super::vector::TABLE).cast(),
        abi::DEVICE_ID => (&raw const super::memory::TABLE).cast(),
        _ => std::ptr::null(),
    }
}

/// Runs `body`; failures and panics become a status. `table` names the interface.
///
/// # Safety
/// `ctx` is a context of the contract, `error` a slot of its host or NULL.
pub unsafe fn run(
    table: &str,
    ctx: *const abi::Ctx,
    error: *mut abi::Error,
    body: impl FnOnce(&abi::Ctx) -> Result<()>,
) -> abi::Status {
    // SAFETY: the caller's promise.
    let ctx = unsafe { &*ctx };
    let outcome = catch_unwind(AssertUnwindSafe(|| body(ctx)))
        .unwrap_or_else(|_| Err(Error::new(abi::STATUS_PANIC, format!("a panic in {table}"))));
    let Err(failure) = outcome else { return abi::STATUS_OK };
    if !error.is_null() && !ctx.host.is_null() {
        // SAFETY: the host's table and its slot, alive for the call.
        unsafe {
            let host = &*ctx.host;
            (host.error_set)(error, failure.status(), abi::Str::new(failure.message()));
            for (key, value) in failure.notes() {
                (host.error_note)(error, abi::Str::new(key), abi::Str::new(value));
            }
        }
    }
    failure.status()
}
