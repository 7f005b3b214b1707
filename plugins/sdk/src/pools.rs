//! Threads: the host's pool for losses and schedulers, and the limit on rayon for libraries with models.
//!
//! No panic leaves a body (R7): it is caught, the other ranges finish, and the call fails.

use crate::{Error, Host, Result};
use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, Once, PoisonError};

struct Job<'a> {
    body: &'a (dyn Fn(Range<usize>, usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

unsafe extern "C" fn run_range(user: *mut c_void, begin: u64, end: u64, worker: u32) {
    // SAFETY: `parallel_for` passes its job, which outlives the blocking call.
    let job = unsafe { &*user.cast_const().cast::<Job<'_>>() };
    let run = || (job.body)(begin as usize..end as usize, worker as usize);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        job.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

impl Host {
    /// \[main\] or \[step\]. Runs `body(range, worker)` over `[0, n)` on the host's pool, in ranges of at least `grain`,
    /// and blocks; `worker` is below [`Host::num_threads`]. Not nestable. The ranges may be cut anywhere, so results
    /// must not depend on them.
    ///
    /// A panic of the body goes on in the caller, whose guard turns it into `LMB_PANIC`.
    ///
    /// # Errors
    /// What the host says.
    pub fn parallel_for(
        &self,
        n: usize,
        grain: usize,
        body: impl Fn(Range<usize>, usize) + Sync,
    ) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let job = Job { body: &body, panic: Mutex::new(None) };
        let user = (&raw const job).cast_mut().cast();
        let outcome = self.call(|host, error| {
            // SAFETY: the host blocks until every range ran, so `job` outlives them (limbeck.h, parallel_for).
            unsafe {
                (host.parallel_for)(host, n as u64, grain.max(1) as u64, run_range, user, error)
            }
        });
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
        outcome.map_err(|e: Error| e.context("parallel loop"))
    }
}

/// Sizes this library's rayon pool: the host's number for libraries with models (candle's matmul uses it), one thread
/// for others. Called by the first activation, as `init` may start no threads; later calls change nothing.
pub fn limit_rayon(host: &Host, models: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let threads = if models { host.num_threads() } else { 1 };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(16 << 20)
            .thread_name(|i| format!("limbeck-plugin-{i}"));
        // Fails only if something built the pool before; its size is then what the environment said.
        if let Err(error) = pool.build_global() {
            tracing::debug!(%error, "the thread pool of this library was built before");
        }
    });
}
