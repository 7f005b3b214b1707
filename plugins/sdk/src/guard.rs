//! The shell around every instance: lifecycle checks, panic guard, poisoning, error reporting.
//!
//! Invariant: no unwind leaves a trampoline (R7), and after a caught panic only `destroy` does anything (R11).

use crate::ports::PortTable;
use crate::{Activation, Context, Error, Host, Ports, Result};
use limbeck_abi as abi;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};

/// A plugin of any kind, as the shell sees it.
pub(crate) trait Body: Send + Sized + 'static {
    const STATE: bool;
    fn interface(id: &str) -> *const c_void;
    fn ports(&self) -> Result<Ports>;
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()>;
    fn deactivate(&mut self);
    fn save(&mut self, context: &Context<'_>, to: &mut dyn Write) -> Result<()>;
    fn load(&mut self, context: &Context<'_>, from: &mut dyn Read) -> Result<()>;
}

const CREATED: u8 = 0;
const ACTIVE: u8 = 1;
/// A failed `state_load`: fit only for `deactivate`.
const SPOILT: u8 = 2;
const POISONED: u8 = 3;

/// When a call is legal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    Inactive,
    Active,
}

/// One instance. `base` is first, so that the host's pointer is ours.
#[repr(C)]
pub(crate) struct Shell<B> {
    base: abi::Plugin,
    pub(crate) host: Host,
    state: AtomicU8,
    ports: OnceLock<PortTable>,
    body: Mutex<B>,
}

impl<B: Body> Shell<B> {
    /// Gives an instance to the host; `destroy` frees it.
    pub(crate) fn into_raw(host: Host, body: B) -> *const abi::Plugin {
        let base = abi::Plugin {
            struct_size: abi::struct_size::<abi::Plugin>(),
            this: std::ptr::null_mut(),
            get_interface: get_interface::<B>,
            ports: ports::<B>,
            activate: activate::<B>,
            deactivate: deactivate::<B>,
            state_save: B::STATE.then_some(state_save::<B>),
            state_load: B::STATE.then_some(state_load::<B>),
            destroy: destroy::<B>,
        };
        let shell = Self {
            base,
            host,
            state: AtomicU8::new(CREATED),
            ports: OnceLock::new(),
            body: Mutex::new(body),
        };
        Box::into_raw(Box::new(shell)).cast_const().cast()
    }

    fn is(&self, when: When) -> Result<()> {
        let state = self.state.load(Ordering::Acquire);
        let legal = match when {
            When::Always => state != POISONED,
            When::Inactive => state == CREATED,
            When::Active => state == ACTIVE,
        };
        if legal {
            return Ok(());
        }
        Err(Error::invalid_state(match state {
            CREATED => "the instance is not active",
            ACTIVE => "the instance is active already",
            SPOILT => "a state failed to load; deactivate the instance",
            _ => "the instance panicked before; destroy it",
        }))
    }

    /// The ports, asked once.
    pub(crate) fn port_table(&self, body: &B) -> Result<&PortTable> {
        if let Some(table) = self.ports.get() {
            return Ok(table);
        }
        let table = PortTable::new(body.ports()?);
        Ok(self.ports.get_or_init(|| table))
    }
}

/// Runs `f` on the instance behind `plugin`, with every check and guard.
///
/// # Safety
/// `plugin` was made by [`Shell::into_raw`] for the same `B` and is not destroyed.
pub(crate) unsafe fn enter<B: Body>(
    plugin: *const abi::Plugin,
    error: *mut abi::Error,
    when: When,
    f: impl FnOnce(&mut B, &Shell<B>) -> Result<()>,
) -> abi::Status {
    if plugin.is_null() {
        return abi::STATUS_INVALID_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    let shell = unsafe { &*plugin.cast::<Shell<B>>() };
    let outer = SLOT.replace(error);
    let outcome = guarded(|| {
        shell.is(when)?;
        match shell.body.try_lock() {
            Ok(mut body) => f(&mut body, shell),
            Err(TryLockError::WouldBlock) => Err(Error::invalid_state("calls overlap")),
            Err(TryLockError::Poisoned(_)) => {
                Err(Error::invalid_state("the instance panicked before"))
            }
        }
    });
    SLOT.set(outer);
    let Err(failure) = outcome else { return abi::STATUS_OK };
    if failure.status() == abi::STATUS_PANIC {
        shell.state.store(POISONED, Ordering::Release);
    }
    report(shell.host, error, &failure)
}

/// Runs `f`; a panic becomes an error with the panic's text and place.
pub(crate) fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    let depth = INSIDE.replace(INSIDE.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    INSIDE.set(depth);
    outcome.unwrap_or_else(|panic| Err(panic_error(&*panic)))
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".into());
    let error = Error::new(abi::STATUS_PANIC, format!("panic: {text}"));
    match PLACE.take() {
        Some(place) => error.note("place", place),
        None => error,
    }
}

/// Fills the host's slot.
pub(crate) fn report(host: Host, error: *mut abi::Error, failure: &Error) -> abi::Status {
    if !error.is_null() {
        let table = host.abi();
        if !failure.is_reported() {
            let message = abi::Str::new(failure.message());
            // SAFETY: [any]; the slot is alive for the call, texts are copied by the host.
            unsafe { (table.error_set)(error, failure.status(), message) };
        }
        for (key, value) in failure.notes() {
            // SAFETY: as above.
            unsafe { (table.error_note)(error, abi::Str::new(key), abi::Str::new(value)) };
        }
    }
    failure.status()
}

/// The slot of the plugin call that is running on this thread, or NULL.
pub(crate) fn current_slot() -> *mut abi::Error {
    SLOT.get()
}

thread_local! {
    static SLOT: Cell<*mut abi::Error> = const { Cell::new(std::ptr::null_mut()) };
    /// How many guards this thread is inside of.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    /// Where the last panic inside a guard happened.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics inside guards silent (their text goes through the error slot) and remembers their place. Each library
/// has its own hook, so the host's is not touched.
pub(crate) fn install_panic_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if INSIDE.get() == 0 {
            return previous(info);
        }
        PLACE.set(info.location().map(ToString::to_string));
    }));
}

unsafe extern "C" fn get_interface<B: Body>(_: *const abi::Plugin, id: abi::Str) -> *const c_void {
    // SAFETY: R6.
    B::interface(unsafe { crate::views::text(id) })
}

unsafe extern "C" fn ports<B: Body>(
    plugin: *const abi::Plugin,
    out: *mut *const abi::Port,
    num: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut B, shell: &Shell<B>| {
        let table = shell.port_table(body)?;
        // SAFETY: the host's out-parameters; the table lives until `destroy`.
        unsafe { give(out, table.abi.as_ptr()) }?;
        // SAFETY: as above.
        unsafe { give(num, table.abi.len() as u64) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Always, f) }
}

/// Writes an out-parameter.
///
/// # Safety
/// `out` is NULL or writable.
pub(crate) unsafe fn give<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(Error::invalid_argument("an out-parameter is NULL"));
    }
    // SAFETY: the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

unsafe extern "C" fn activate<B: Body>(
    plugin: *const abi::Plugin,
    activation: *const abi::Activate,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut B, shell: &Shell<B>| {
        // SAFETY: R5.
        let activation = unsafe { Activation::from_abi(activation, shell.host) }?;
        let _span = crate::log::enter(activation.abi().span);
        // Ports are needed by every later call; asking here keeps those infallible.
        shell.port_table(body)?;
        body.activate(&activation).inspect_err(|_| body.deactivate())?;
        shell.state.store(ACTIVE, Ordering::Release);
        Ok(())
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Inactive, f) }
}

unsafe extern "C" fn deactivate<B: Body>(plugin: *const abi::Plugin) {
    if plugin.is_null() {
        return;
    }
    // SAFETY: the host passes a live instance of this table.
    let shell = unsafe { &*plugin.cast::<Shell<B>>() };
    let state = shell.state.load(Ordering::Acquire);
    if state != ACTIVE && state != SPOILT {
        return;
    }
    let outcome = guarded(|| {
        shell.body.lock().unwrap_or_else(PoisonError::into_inner).deactivate();
        Ok(())
    });
    let next = if outcome.is_ok() { CREATED } else { POISONED };
    shell.state.store(next, Ordering::Release);
}

unsafe extern "C" fn state_save<B: Body>(
    plugin: *const abi::Plugin,
    ctx: *const abi::Ctx,
    writer: *const abi::Writer,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut B, shell: &Shell<B>| {
        // SAFETY: R5.
        let context = unsafe { Context::from_abi(ctx, shell.host) }?;
        let _span = crate::log::enter(context.abi().span);
        // SAFETY: R5.
        let mut writer = unsafe { crate::state::HostWriter::from_abi(writer) }?;
        body.save(&context, &mut writer)
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn state_load<B: Body>(
    plugin: *const abi::Plugin,
    ctx: *const abi::Ctx,
    reader: *const abi::Reader,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut B, shell: &Shell<B>| {
        // SAFETY: R5.
        let context = unsafe { Context::from_abi(ctx, shell.host) }?;
        let _span = crate::log::enter(context.abi().span);
        // SAFETY: R5.
        let mut reader = unsafe { crate::state::HostReader::from_abi(reader) }?;
        body.load(&context, &mut reader)
            .inspect_err(|_| shell.state.store(SPOILT, Ordering::Release))
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn destroy<B: Body>(plugin: *const abi::Plugin) {
    if plugin.is_null() {
        return;
    }
    let _ = guarded(|| {
        // SAFETY: made by `into_raw`, destroyed once (limbeck.h, lmb_plugin.destroy).
        drop(unsafe { Box::from_raw(plugin.cast::<Shell<B>>().cast_mut()) });
        Ok(())
    });
}
