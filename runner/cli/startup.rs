//! What must happen before the first thread: allocator, thread counts, panic hook; then the big stack.
//!
//! Everything here is process-wide, so plugins profit too.

use std::ffi::CString;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

/// Stack of the thread that runs a command: models record deep graphs. Touched pages only are paid for.
const STACK: usize = 256 << 20;

/// Keeps large blocks inside the heap: models free and take the same big intermediates each step, and giving them back
/// to the kernel in between costs a page fault per 4 KiB (2,054,347 faults before, 10,241 after, on a 12 + 40 MiB loop).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn tune_allocator() {
    // SAFETY: plain numbers; called before any other thread exists. A refusal (0) only leaves the default.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Other C libraries have no such knobs.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn tune_allocator() {}

/// Size of the pool: `--threads`, else every core.
pub fn threads(asked: Option<u16>) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, NonZero::get);
    asked.map_or_else(all, usize::from)
}

/// Tells the pools inside plugins (each library has its own) how many threads to take, and builds the host's.
pub fn limit_pools(threads: usize) {
    // From `main`, before any other thread exists: it sets the environment.
    let threads = limbeck_host::load::services::init(threads);
    // Fails only if a pool exists already, which then has the size above.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("limbeck-pool-{i}"))
        .build_global();
}

static RUN_DIR: Mutex<Option<PathBuf>> = Mutex::new(None);
static COMMAND: Mutex<String> = Mutex::new(String::new());

/// Path of CRASH.txt for the signal handler, NUL-terminated, never freed.
static CRASH_FILE: AtomicPtr<libc::c_char> = AtomicPtr::new(std::ptr::null_mut());

/// Where a crash report goes from now on.
pub fn set_run_dir(dir: PathBuf) {
    use std::os::unix::ffi::OsStrExt as _;
    if let Ok(path) = CString::new(dir.join("CRASH.txt").as_os_str().as_bytes()) {
        CRASH_FILE.store(path.into_raw(), Ordering::Release);
    }
    *RUN_DIR.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir);
}

/// Makes a panic leave a report in the run directory, and says one line on stderr.
pub fn install_panic_hook(command: String) {
    *COMMAND.lock().unwrap_or_else(PoisonError::into_inner) = command;
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = message_of(info.payload());
        let report = format!(
            "limbeck {} stopped because of a bug in itself.\n\nmessage: {text}\nplace:   {place}\nthread:  {}\n\
             command: {}\n\n{}\n",
            env!("CARGO_PKG_VERSION"),
            std::thread::current().name().unwrap_or("unnamed"),
            COMMAND.lock().unwrap_or_else(PoisonError::into_inner),
            std::backtrace::Backtrace::force_capture(),
        );
        let dir = RUN_DIR.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let written =
            dir.map(|d| d.join("CRASH.txt")).filter(|f| std::fs::write(f, &report).is_ok());
        crate::render::crash(&text, &place, written.as_deref());
    }));
}

fn message_of(payload: &dyn std::any::Any) -> String {
    let literal = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    literal
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".to_owned())
}

/// Signals that a broken plugin (or Limbeck) dies of.
const FATAL: [(i32, &str); 5] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGABRT, "SIGABRT"),
];

/// Makes a fatal signal leave CRASH.txt with the plugin, function and step that was running. The process then dies of
/// the signal as it would have.
pub fn report_fatal_signals() {
    for (signal, _) in FATAL {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        let handler: extern "C" fn(i32) = on_fatal;
        // SAFETY: a zeroed `sigaction` is valid; the handler only makes async-signal-safe calls and reads a
        // thread-local without destructor. SA_ONSTACK: Rust gives its threads a signal stack.
        unsafe {
            let action = &mut *action.as_mut_ptr();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
            libc::sigaction(signal, action, std::ptr::null_mut());
        }
    }
}

/// Text on a descriptor; partial writes are accepted, since nothing better can be done.
fn put(descriptor: i32, text: &str) {
    // SAFETY: `write` is async-signal-safe; the bytes live.
    unsafe { libc::write(descriptor, text.as_ptr().cast(), text.len()) };
}

fn put_number(descriptor: i32, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    put(descriptor, std::str::from_utf8(&digits[at..]).unwrap_or("?"));
}

extern "C" fn on_fatal(signal: i32) {
    let name = FATAL.iter().find(|(s, _)| *s == signal).map_or("a signal", |(_, name)| name);
    let running = limbeck_host::load::instance::current_call();
    let file = CRASH_FILE.load(Ordering::Acquire);
    let mut places = [2, -1];
    if !file.is_null() {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
        // SAFETY: `open` is async-signal-safe; the path is NUL-terminated and never freed.
        places[1] = unsafe { libc::open(file, flags, 0o644) };
    }
    for descriptor in places.into_iter().filter(|d| *d >= 0) {
        put(descriptor, if descriptor == 2 { "fatal: " } else { "" });
        match running {
            Some((plugin, call, step)) => {
                put(descriptor, "plugin `");
                put(descriptor, plugin);
                put(descriptor, "` died of ");
                put(descriptor, name);
                put(descriptor, " in ");
                put(descriptor, call);
                put(descriptor, " at step ");
                put_number(descriptor, step);
            }
            None => {
                put(descriptor, "limbeck died of ");
                put(descriptor, name);
            }
        }
        put(descriptor, "\n");
    }
    // SAFETY: async-signal-safe; the handler was reset, so this ends the process as the system would.
    unsafe { libc::raise(signal) };
}

/// Leaves CRASH.txt for a second signal that ends the process in the middle of a plugin call.
pub fn report_killed(signal: &str, running: Option<(&str, &str, u64)>) {
    let Some((plugin, call, step)) = running else { return };
    let report = format!(
        "ended at once by a second {signal}: plugin `{plugin}` was in {call} at step {step}\n"
    );
    crate::render::stderr(report.trim_end());
    let dir = RUN_DIR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(dir) = dir {
        // The process ends now; what could not be written was printed.
        let _ = std::fs::write(dir.join("CRASH.txt"), report);
    }
}

/// Runs `work` on a thread with a big stack. `None`: it panicked, and the hook has reported it.
pub fn on_big_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("limbeck".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(handle) => handle.join().ok(),
            Err(_) => None,
        }
    })
}
