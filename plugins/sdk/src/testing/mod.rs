//! A host for authors' own tests: every service of `lmb_host`, faults on request, and a gradient check for losses.
//!
//! Calls go through the real tables of the contract, so a plugin that passes here meets the same checks in a run.

mod gradcheck;
mod instance;
mod model;
mod scheduler;
mod vector;

pub use gradcheck::{LossCase, LossOutcome, gradcheck_loss};
pub use instance::{MockInstance, MockTape};
pub use model::{Flags, MockParam};
pub use scheduler::{MockEvent, MockGrads, MockSchedule, MockTerm, Request};

use crate::export::PluginEntry;
use crate::views::text;
use crate::{Error, Host, Loss, Result, Scheduler, Student, Teacher};
use limbeck_abi as abi;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a mock host has seen and how it behaves.
#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    threads: AtomicU64,
    /// Number of the allocation that fails, from 0; -1: none.
    fail_alloc: AtomicI64,
    allocations: AtomicI64,
    live: Arc<AtomicI64>,
    logs: Mutex<Vec<LogRecord>>,
    metrics: Mutex<BTreeMap<String, f64>>,
    progress: Mutex<Vec<(u64, u64, String)>>,
}

/// A record that a plugin logged.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// `limbeck_abi::LEVEL_*`.
    pub level: i32,
    /// Module.
    pub target: String,
    /// Text.
    pub message: String,
    /// Names of its fields.
    pub fields: Vec<String>,
    /// Parent.
    pub span: u64,
}

/// A host in memory. Tables live until the process ends, as those of a real host do.
pub struct MockHost {
    host: Host,
    state: &'static State,
}

impl Default for MockHost {
    fn default() -> Self {
        Self::new()
    }
}

impl MockHost {
    /// A host with two threads that refuses nothing.
    pub fn new() -> Self {
        let state: &'static State = Box::leak(Box::default());
        state.threads.store(2, Ordering::Relaxed);
        state.fail_alloc.store(-1, Ordering::Relaxed);
        let table: &'static abi::Host = Box::leak(Box::new(table(state)));
        // SAFETY: leaked, so alive and unchanged until the process ends.
        Self { host: unsafe { Host::from_abi(table) }, state }
    }

    /// The handle that plugins get.
    pub fn host(&self) -> Host {
        self.host
    }
    /// Size of the pool.
    pub fn set_threads(&self, threads: usize) {
        self.state.threads.store(threads as u64, Ordering::Relaxed);
    }
    /// What `cancelled()` answers.
    pub fn cancel(&self, cancelled: bool) {
        self.state.cancelled.store(cancelled, Ordering::Relaxed);
    }
    /// Makes allocation number `n` (from 0, counted from now) fail; `None`: all succeed.
    pub fn fail_allocation(&self, n: Option<u64>) {
        self.state.allocations.store(0, Ordering::Relaxed);
        self.state.fail_alloc.store(n.map_or(-1, |n| n as i64), Ordering::Relaxed);
    }
    /// Allocations that the plugin has not freed.
    pub fn live_allocations(&self) -> i64 {
        self.state.live.load(Ordering::Relaxed)
    }
    /// All records so far. Only forwarded if this host was the first in the process to initialise a library.
    pub fn logs(&self) -> Vec<LogRecord> {
        lock(&self.state.logs).clone()
    }
    /// The last value of each metric.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        lock(&self.state.metrics).clone()
    }
    /// All progress reports.
    pub fn progress(&self) -> Vec<(u64, u64, String)> {
        lock(&self.state.progress).clone()
    }

    /// Creates an instance from an entry as `export!` makes it.
    ///
    /// # Errors
    /// Settings that the plugin refuses.
    pub fn create(&self, entry: &PluginEntry, config: &str) -> Result<MockInstance> {
        let plugin = crate::guard::guarded(|| entry.create(self.host, config))?;
        Ok(MockInstance::new(self.host, plugin))
    }
    /// Creates a loss.
    ///
    /// # Errors
    /// Settings that the plugin refuses.
    pub fn loss<T: Loss>(&self, config: &str) -> Result<MockInstance> {
        self.create(&PluginEntry::loss::<T>(), config)
    }
    /// Creates a teacher.
    ///
    /// # Errors
    /// Settings that the plugin refuses.
    pub fn teacher<T: Teacher>(&self, config: &str) -> Result<MockInstance> {
        self.create(&PluginEntry::teacher::<T>(), config)
    }
    /// Creates a student.
    ///
    /// # Errors
    /// Settings that the plugin refuses.
    pub fn student<T: Student>(&self, config: &str) -> Result<MockInstance> {
        self.create(&PluginEntry::student::<T>(), config)
    }
    /// Creates a scheduler.
    ///
    /// # Errors
    /// Settings that the plugin refuses.
    pub fn scheduler<T: Scheduler>(&self, config: &str) -> Result<MockInstance> {
        self.create(&PluginEntry::scheduler::<T>(), config)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error slot.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    status: abi::Status,
    message: String,
    notes: Vec<(String, String)>,
}

impl Slot {
    pub(crate) fn as_abi(&mut self) -> *mut abi::Error {
        std::ptr::from_mut(self).cast()
    }
    /// The outcome of a call with this slot.
    pub(crate) fn outcome(self, status: abi::Status) -> Result<()> {
        if status == abi::STATUS_OK {
            return Ok(());
        }
        if self.status != abi::STATUS_OK && self.status != status {
            let message = format!("returned {status}, put {} into the slot", self.status);
            return Err(Error::internal(message));
        }
        let error = Error::new(status, self.message);
        Err(self.notes.into_iter().fold(error, |e, (k, v)| e.note(k, v)))
    }
}

fn table(state: &'static State) -> abi::Host {
    abi::Host {
        struct_size: abi::struct_size::<abi::Host>(),
        abi_major: abi::ABI_MAJOR,
        abi_minor: abi::ABI_MINOR,
        this: std::ptr::from_ref(state).cast_mut().cast(),
        version: abi::Str::new("mock"),
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

/// # Safety
/// `host` is a table of this module.
unsafe fn state<'a>(host: *const abi::Host) -> &'a State {
    // SAFETY: made by `table` from a leaked state.
    unsafe { &*(*host).this.cast::<State>() }
}

unsafe extern "C" fn get_interface(_: *const abi::Host, id: abi::Str) -> *const c_void {
    // SAFETY: R6.
    match unsafe { text(id) } {
        abi::VECTOR_ID => std::ptr::from_ref(&vector::TABLE).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn error_set(error: *mut abi::Error, status: abi::Status, message: abi::Str) {
    // SAFETY: the slots that this host passes are `Slot`s.
    if let Some(slot) = unsafe { error.cast::<Slot>().as_mut() } {
        slot.status = status;
        // SAFETY: R6.
        slot.message = unsafe { text(message) }.to_owned();
    }
}

unsafe extern "C" fn error_note(error: *mut abi::Error, key: abi::Str, value: abi::Str) {
    // SAFETY: as above.
    if let Some(slot) = unsafe { error.cast::<Slot>().as_mut() } {
        // SAFETY: R6.
        slot.notes.push(unsafe { (text(key).to_owned(), text(value).to_owned()) });
    }
}

unsafe extern "C" fn log_enabled(_: *const abi::Host, _: i32, _: abi::Str) -> i32 {
    1
}

unsafe extern "C" fn log(host: *const abi::Host, record: *const abi::Log) {
    // SAFETY: R5.
    let (state, record) = unsafe { (state(host), &*record) };
    // SAFETY: R5, R6.
    let fields = unsafe { crate::views::raw_slice(record.fields, record.num_fields) };
    // SAFETY: R6.
    let record = unsafe {
        LogRecord {
            level: record.level,
            target: text(record.target).to_owned(),
            message: text(record.message).to_owned(),
            fields: fields.iter().map(|kv| text(kv.key).to_owned()).collect(),
            span: record.span,
        }
    };
    lock(&state.logs).push(record);
}

unsafe extern "C" fn progress(
    host: *const abi::Host,
    _: *const abi::Ctx,
    done: u64,
    total: u64,
    what: abi::Str,
) {
    // SAFETY: R6 and a table of this module.
    let (state, what) = unsafe { (state(host), text(what).to_owned()) };
    lock(&state.progress).push((done, total, what));
}

unsafe extern "C" fn cancelled(host: *const abi::Host, _: *const abi::Ctx) -> i32 {
    // SAFETY: a table of this module.
    i32::from(unsafe { state(host) }.cancelled.load(Ordering::Relaxed))
}

unsafe extern "C" fn metric(
    host: *const abi::Host,
    _: *const abi::Ctx,
    name: abi::Str,
    value: f64,
) {
    // SAFETY: R6 and a table of this module.
    let (state, name) = unsafe { (state(host), text(name).to_owned()) };
    lock(&state.metrics).insert(name, value);
}

unsafe extern "C" fn num_threads(host: *const abi::Host) -> u32 {
    // SAFETY: a table of this module.
    unsafe { state(host) }.threads.load(Ordering::Relaxed) as u32
}

unsafe extern "C" fn parallel_for(
    host: *const abi::Host,
    n: u64,
    grain: u64,
    f: abi::RangeFn,
    user: *mut c_void,
    _: *mut abi::Error,
) -> abi::Status {
    struct User(*mut c_void);
    // SAFETY: the plugin's body is made for several threads (limbeck.h, parallel_for).
    unsafe impl Sync for User {}
    impl User {
        fn get(&self) -> *mut c_void {
            self.0
        }
    }
    // SAFETY: a table of this module.
    let threads = unsafe { num_threads(host) }.max(1);
    let user = User(user);
    let ranges = n.div_ceil(grain.max(1)).clamp(1, u64::from(threads));
    let size = n.div_ceil(ranges);
    std::thread::scope(|scope| {
        for worker in 0..ranges {
            let (begin, end) = (worker * size, ((worker + 1) * size).min(n));
            let user = &user;
            if begin < end {
                // SAFETY: the body runs once per range, inside the blocking call.
                scope.spawn(move || unsafe { f(user.get(), begin, end, worker as u32) });
            }
        }
    });
    abi::STATUS_OK
}

unsafe extern "C" fn tensor_alloc(
    host: *const abi::Host,
    request: *const abi::Alloc,
    out: *mut *mut abi::DLManagedTensorVersioned,
    error: *mut abi::Error,
) -> abi::Status {
    /// Counts itself.
    struct Live(Arc<AtomicI64>, #[expect(dead_code, reason = "held for its drop")] Vec<u64>);
    impl Drop for Live {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    // SAFETY: R5.
    let (state, request) = unsafe { (state(host), &*request) };
    let number = state.allocations.fetch_add(1, Ordering::Relaxed);
    if number == state.fail_alloc.load(Ordering::Relaxed) {
        let message = abi::Str::new("out of memory (asked for by the test)");
        // SAFETY: a slot of this host.
        unsafe { error_set(error, abi::STATUS_OUT_OF_MEMORY, message) };
        return abi::STATUS_OUT_OF_MEMORY;
    }
    let Some(dtype) = crate::DType::from_dl(request.dtype) else { return abi::STATUS_UNSUPPORTED };
    // SAFETY: R5: `ndim` sizes.
    let shape = unsafe { crate::views::raw_slice(request.shape, request.ndim as u64) };
    let shape: Vec<usize> = shape.iter().map(|d| *d as usize).collect();
    let bytes = shape.iter().product::<usize>() * dtype.bytes();
    // All ones: a NaN in every float type, so that reading before writing shows.
    let words = vec![u64::MAX; bytes.div_ceil(8)];
    let data = words.as_ptr().cast_mut().cast();
    state.live.fetch_add(1, Ordering::Relaxed);
    let owner = Box::new(Live(state.live.clone(), words));
    // SAFETY: `owner` keeps the words; the out-parameter is the plugin's.
    unsafe {
        let output = crate::Output::from_raw(data, dtype, abi::DLDevice::CPU, &shape, owner);
        out.write(output.into_raw());
    }
    abi::STATUS_OK
}

unsafe extern "C" fn tensor_copy(
    _: *const abi::Host,
    _: *const abi::Ctx,
    dst: *const abi::Tensor,
    src: *const abi::Tensor,
    _: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R5; the plugin passes two valid tensors.
    let copied = unsafe { copy_tensor(&*dst, &*src) };
    copied.map_or_else(|e| e.status(), |()| abi::STATUS_OK)
}

/// # Safety
/// Both tensors are valid CPU tensors.
unsafe fn copy_tensor(dst: &abi::Tensor, src: &abi::Tensor) -> Result<()> {
    // SAFETY: the caller's promise.
    let (to, from) = unsafe { (crate::GradView::from_abi(dst)?, crate::View::from_abi(src)?) };
    let (Some(mut to), Some(from)) = (to, from) else {
        return Err(Error::invalid_argument("absent"));
    };
    if to.shape() != from.shape() || to.dtype() != from.dtype() {
        return Err(Error::invalid_argument("shapes or types differ"));
    }
    crate::views::with_dtype!(from.dtype(), T => to.put(1.0, &from.to_vec::<T>()?))
}

/// A context that lives for one call.
pub(crate) fn context(host: Host, step: u64, rng_key: [u64; 2]) -> abi::Ctx {
    abi::Ctx {
        struct_size: abi::struct_size::<abi::Ctx>(),
        host: host.abi(),
        stream: abi::Stream { device: abi::DLDevice::CPU, handle: std::ptr::null_mut() },
        step,
        micro_step: 0,
        rng_key,
        span: 7,
    }
}
