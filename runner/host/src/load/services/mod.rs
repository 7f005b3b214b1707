//! The `lmb_host` table: what plugins may ask of the host.
//!
//! One immutable table for the whole process. Refuses nothing by itself: every function checks its arguments and
//! reports through the caller's error slot. No function here calls into a plugin except `parallel_for`'s body.

mod log;
mod memory;
mod pool;
mod slot;
pub mod vector;

pub use memory::{copy_strided, fail_allocations_after, failed_allocations, live_bytes};
pub use pool::{init, num_threads, parallel_ranges};
pub(crate) use slot::{ErrorSlot, report};

use limbeck_abi as abi;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError, RwLock};

/// The table that every plugin gets.
pub fn host() -> &'static abi::Host {
    &HOST
}

static HOST: abi::Host = abi::Host {
    struct_size: abi::struct_size::<abi::Host>(),
    abi_major: abi::ABI_MAJOR,
    abi_minor: abi::ABI_MINOR,
    this: std::ptr::null_mut(),
    version: abi::Str::new(env!("CARGO_PKG_VERSION")),
    get_interface,
    error_set: slot::error_set,
    error_note: slot::error_note,
    log_enabled: log::log_enabled,
    log: log::log,
    progress,
    cancelled,
    metric,
    num_threads: pool::num_threads_c,
    parallel_for: pool::parallel_for,
    tensor_alloc: memory::tensor_alloc,
    tensor_copy: memory::tensor_copy,
};

/// Progress of a long call: done, total (0 = unknown), what.
pub type Progress = dyn Fn(u64, u64, &str) + Send + Sync;
/// Whether the run was asked to stop.
pub type Cancelled = dyn Fn() -> bool + Send + Sync;

static PROGRESS: RwLock<Option<Box<Progress>>> = RwLock::new(None);
static CANCELLED: RwLock<Option<Box<Cancelled>>> = RwLock::new(None);
static METRICS: Mutex<Vec<(String, f64)>> = Mutex::new(Vec::new());

/// Numbers kept between two [`take_metrics`]; a plugin in a loop must not eat memory.
const MAX_METRICS: usize = 65_536;

/// Who is told about progress; must not call plugins.
pub fn set_progress(sink: Option<Box<Progress>>) {
    *PROGRESS.write().unwrap_or_else(PoisonError::into_inner) = sink;
}

/// Who is asked whether to stop; must not call plugins and must be quick.
pub fn set_cancelled(source: Option<Box<Cancelled>>) {
    *CANCELLED.write().unwrap_or_else(PoisonError::into_inner) = source;
}

/// Numbers that plugins reported through `lmb_host.metric` since the last call, in order.
pub fn take_metrics() -> Vec<(String, f64)> {
    std::mem::take(&mut *METRICS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a callback's body; a panic becomes `fallback`, since none may cross into a plugin (R7).
fn guard<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        tracing::error!(target: "limbeck::host", "a host service panicked");
        fallback
    })
}

unsafe extern "C" fn get_interface(_: *const abi::Host, id: abi::Str) -> *const c_void {
    guard(std::ptr::null(), || {
        // SAFETY: R5, R6: the plugin's string lives until the call returns.
        match unsafe { id.text() } {
            Some(abi::VECTOR_ID) => std::ptr::from_ref(vector::table()).cast(),
            _ => std::ptr::null(),
        }
    })
}

unsafe extern "C" fn progress(
    _: *const abi::Host,
    _: *const abi::Ctx,
    done: u64,
    total: u64,
    what: abi::Str,
) {
    guard((), || {
        // SAFETY: R5, R6.
        let what = unsafe { slot::lossy(what) };
        if let Some(sink) = &*PROGRESS.read().unwrap_or_else(PoisonError::into_inner) {
            sink(done, total, &what);
        }
    });
}

unsafe extern "C" fn cancelled(_: *const abi::Host, _: *const abi::Ctx) -> c_int {
    guard(0, || {
        let source = CANCELLED.read().unwrap_or_else(PoisonError::into_inner);
        c_int::from(source.as_ref().is_some_and(|asked| asked()))
    })
}

unsafe extern "C" fn metric(_: *const abi::Host, _: *const abi::Ctx, name: abi::Str, value: f64) {
    guard((), || {
        // SAFETY: R5, R6.
        let name = unsafe { slot::lossy(name) }.into_owned();
        let mut metrics = METRICS.lock().unwrap_or_else(PoisonError::into_inner);
        if metrics.len() < MAX_METRICS {
            metrics.push((name, value));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_handed_over_once() {
        // SAFETY: the table's functions take borrowed strings.
        unsafe { (host().metric)(host(), std::ptr::null(), abi::Str::new("own.ratio"), 0.5) };
        let taken = take_metrics();
        assert!(taken.contains(&("own.ratio".into(), 0.5)), "{taken:?}");
        assert!(!take_metrics().iter().any(|(name, _)| name == "own.ratio"));
    }

    #[test]
    fn an_unknown_interface_is_null_and_the_vector_table_is_not() {
        // SAFETY: as above.
        let get = |id| unsafe { (host().get_interface)(host(), abi::Str::new(id)) };
        assert!(get("lmb.vector/2").is_null());
        assert!(!get(abi::VECTOR_ID).is_null());
    }

    #[test]
    fn a_plugin_sees_a_stop_request() {
        // SAFETY: the call reads no pointer.
        let asked = || unsafe { (host().cancelled)(host(), std::ptr::null()) };
        assert_eq!(asked(), 0);
        // Only for this thread: other tests run beside it.
        let this = std::thread::current().id();
        set_cancelled(Some(Box::new(move || std::thread::current().id() == this)));
        assert_eq!(asked(), 1);
        set_cancelled(None);
    }
}
