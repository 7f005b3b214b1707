//! The host's thread pool and `parallel_for`.
//!
//! The calling thread is worker 0 and the pool holds the others, so `n` threads compute, not `n + 1`. Ranges depend on
//! `n` and `grain` only, never on the number of threads: a body that keeps one partial result per range repeats bit
//! for bit at any thread count. Refuses nested use.

use super::super::instance::{adopt_call, current_call};
use super::slot::report;
use limbeck_abi as abi;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ranges of one call at most; enough to balance 64 threads, few enough to cost nothing.
const MAX_RANGES: usize = 256;

static THREADS: OnceLock<usize> = OnceLock::new();
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Fixes the number of computing threads (0: one per core) and tells the libraries' own pools by
/// `RAYON_NUM_THREADS` and `CANDLE_NUM_THREADS`. Call once, first thing in `main`, before any thread starts and before
/// the first library is opened. Later calls change nothing. Returns the number in force.
pub fn init(threads: usize) -> usize {
    let wanted = match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n.min(1024),
    };
    let mut first = false;
    let threads = *THREADS.get_or_init(|| {
        first = true;
        wanted
    });
    if first {
        for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            #[expect(
                clippy::disallowed_methods,
                reason = "plugins' pools are sized by it when they load"
            )]
            // SAFETY: the caller's promise above: no other thread runs that could read the environment.
            unsafe {
                std::env::set_var(name, threads.to_string());
            }
        }
    }
    threads
}

/// Computing threads, the caller's included. Without [`init`] (in tests): one per core, environment untouched.
pub fn num_threads() -> usize {
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// The other threads; `None` if there are none.
fn pool() -> Option<&'static ThreadPool> {
    let build = || {
        let others = num_threads().checked_sub(1).filter(|n| *n > 0)?;
        let named =
            ThreadPoolBuilder::new().num_threads(others).thread_name(|i| format!("pool-{}", i + 1));
        named
            .build()
            .inspect_err(|e| tracing::error!(target: "limbeck::host", error = %e, "no thread pool, going on with one thread"))
            .ok()
    };
    POOL.get_or_init(build).as_ref()
}

/// Number of ranges for `n` items of which at least `grain` go together.
fn num_ranges(n: usize, grain: usize) -> usize {
    (n / grain.max(1)).clamp(1, MAX_RANGES)
}

/// The `i`th of `count` even ranges over `0..n`.
fn range(n: usize, count: usize, i: usize) -> Range<usize> {
    let at = |i: usize| (n as u128 * i as u128 / count as u128) as usize;
    at(i)..at(i + 1)
}

/// Runs `body(range, worker)` over `0..n` in ranges of at least `grain` (one shorter range if `n < grain`) and waits.
/// Inside a body: runs serially on the calling thread, as worker 0.
pub fn parallel_ranges(n: usize, grain: usize, body: &(dyn Fn(Range<usize>, usize) + Sync)) {
    if n == 0 {
        return;
    }
    let count = num_ranges(n, grain);
    let workers = num_threads().min(count);
    let nested = INSIDE.with(Cell::get);
    let others = if workers > 1 && !nested { pool() } else { None };
    let Some(others) = others else {
        let _inside = Inside::enter();
        (0..count).for_each(|i| body(range(n, count, i), 0));
        return;
    };
    let next = AtomicUsize::new(0);
    let running = current_call();
    let work = |worker: usize| {
        let _inside = Inside::enter();
        let _mark = adopt_call(running);
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            body(range(n, count, i), worker);
        }
    };
    let work = &work;
    others.in_place_scope(|scope| {
        for worker in 1..workers {
            scope.spawn(move |_| work(worker));
        }
        work(0);
    });
}

/// Marks the thread as inside a body; restores on drop, also while unwinding.
struct Inside(bool);

impl Inside {
    fn enter() -> Self {
        Self(INSIDE.replace(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

pub(super) unsafe extern "C" fn num_threads_c(_: *const abi::Host) -> u32 {
    super::guard(1, || num_threads() as u32)
}

struct Body {
    run: abi::RangeFn,
    user: *mut c_void,
}
// SAFETY: `lmb_range_fn` is [pool]: the plugin promises that `run(user, ..)` may be called from any pool thread at once.
unsafe impl Sync for Body {}

pub(super) unsafe extern "C" fn parallel_for(
    _: *const abi::Host,
    n: u64,
    grain: u64,
    run: abi::RangeFn,
    user: *mut c_void,
    error: *mut abi::Error,
) -> abi::Status {
    if INSIDE.with(Cell::get) {
        // SAFETY: R8: the slot of the running call or NULL.
        return unsafe {
            report(error, abi::STATUS_INVALID_STATE, "parallel_for inside a parallel_for body")
        };
    }
    let body = Body { run, user };
    let body = &body;
    let whole = || {
        parallel_ranges(n as usize, grain as usize, &move |range, worker| {
            // SAFETY: R5: `user` lives until this call returns, and all ranges end before.
            unsafe { (body.run)(body.user, range.start as u64, range.end as u64, worker as u32) };
        });
        abi::STATUS_OK
    };
    match super::guard(abi::STATUS_PANIC, whole) {
        abi::STATUS_OK => abi::STATUS_OK,
        // SAFETY: as above.
        status => unsafe { report(error, status, "a parallel_for body panicked") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn ranges_cover_everything_once_and_respect_the_grain() {
        for (n, grain) in [(0, 1), (1, 1), (10, 3), (1000, 1), (5, 100), (100_003, 64)] {
            let seen = Mutex::new(Vec::new());
            parallel_ranges(n, grain, &|r, worker| {
                assert!(worker < num_threads());
                seen.lock().unwrap().push(r);
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort_by_key(|r| r.start);
            assert_eq!(seen.iter().map(ExactSizeIterator::len).sum::<usize>(), n);
            assert!(seen.windows(2).all(|w| w[0].end == w[1].start));
            assert!(seen.iter().all(|r| r.len() >= grain.min(n)), "{n} {grain} {seen:?}");
        }
    }

    #[test]
    fn a_nested_call_of_a_plugin_is_refused_and_of_the_host_runs_serially() {
        unsafe extern "C" fn nothing(_: *mut c_void, _: u64, _: u64, _: u32) {}
        let sum = AtomicUsize::new(0);
        parallel_ranges(4, 1, &|_, _| {
            // SAFETY: the body reads nothing.
            let status = unsafe {
                parallel_for(
                    std::ptr::null(),
                    8,
                    1,
                    nothing,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
            assert_eq!(status, abi::STATUS_INVALID_STATE);
            parallel_ranges(8, 1, &|r, _| {
                sum.fetch_add(r.len(), Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 32);
    }

    #[test]
    fn a_panicking_host_body_leaves_the_pool_usable() {
        let caught =
            std::panic::catch_unwind(|| parallel_ranges(100, 1, &|r, _| assert!(!r.contains(&50))));
        assert!(caught.is_err());
        assert!(!INSIDE.with(Cell::get));
        parallel_ranges(100, 1, &|_, _| {});
    }
}
