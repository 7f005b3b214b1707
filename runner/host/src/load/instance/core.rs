//! The plugin object behind an instance and its tapes: identity, life, and the way every call goes.
//!
//! Destroys the plugin when the last owner drops. After LMB_PANIC nothing but that follows (R11).

use super::super::services::ErrorSlot;
use super::{CallCtx, PluginError, marker};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Instances that are not destroyed yet.
pub(crate) fn live_instances() -> usize {
    LIVE.load(Ordering::Relaxed)
}

pub(super) struct Core {
    plugin: *const abi::Plugin,
    pub id: &'static str,
    pub version: &'static str,
    poisoned: AtomicBool,
    /// 0 while not active, else the number of the activation; tapes of an earlier one are dead.
    activation: AtomicU64,
}

// SAFETY: R9: [main] calls on one instance never overlap and [step] calls come from one thread; the owner of the
// `Instance` (`&mut self` on every call that is not [any]) sees to both.
unsafe impl Send for Core {}
// SAFETY: as above; shared references make [any] calls and read atomics only.
unsafe impl Sync for Core {}

impl Core {
    /// Takes over a created plugin.
    ///
    /// # Safety
    /// `plugin` is what `create` gave, checked to hold every field of 1.0.
    pub unsafe fn new(plugin: *const abi::Plugin, id: &'static str, version: &'static str) -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Self {
            plugin,
            id,
            version,
            poisoned: AtomicBool::new(false),
            activation: AtomicU64::new(0),
        }
    }

    pub fn plugin(&self) -> &abi::Plugin {
        // SAFETY: alive until `destroy`, which only `drop` calls; checked size (see `new`).
        unsafe { &*self.plugin }
    }

    pub fn as_ptr(&self) -> *const abi::Plugin {
        self.plugin
    }

    pub fn is_active(&self) -> bool {
        self.activation.load(Ordering::Relaxed) != 0
    }

    pub fn activation(&self) -> u64 {
        self.activation.load(Ordering::Relaxed)
    }

    pub fn set_activation(&self, number: u64) {
        self.activation.store(number, Ordering::Relaxed);
    }

    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    pub fn error(
        &self,
        call: &'static str,
        status: abi::Status,
        text: impl Into<String>,
    ) -> PluginError {
        PluginError::new((self.id, self.version), call, status, text)
    }

    /// The plugin did what the header forbids.
    pub fn broke(&self, call: &'static str, text: impl Into<String>) -> PluginError {
        let mut error = self.error(call, abi::STATUS_INTERNAL, text);
        error.notes.push(("contract".into(), call.into()));
        error
    }

    pub fn need_active(&self, call: &'static str) -> Result<(), PluginError> {
        if self.is_active() {
            return Ok(());
        }
        Err(self.error(call, abi::STATUS_INVALID_STATE, format!("{call} before activate")))
    }

    /// One fallible call. Poisons after a panic.
    pub fn call(
        &self,
        name: &'static str,
        step: u64,
        run: impl FnOnce(*const abi::Plugin, *mut abi::Error) -> abi::Status,
    ) -> Result<(), PluginError> {
        if self.is_poisoned() {
            let text = "the instance is unusable since it panicked";
            return Err(self.error(name, abi::STATUS_INVALID_STATE, text));
        }
        let slot = ErrorSlot::default();
        let status = {
            let _mark = marker::enter(self.id, name, step);
            run(self.plugin, slot.as_ptr())
        };
        if status == abi::STATUS_OK {
            return Ok(());
        }
        if status == abi::STATUS_PANIC {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        Err(PluginError::from_slot((self.id, self.version), name, status, slot))
    }

    /// A table by interface id, checked to hold every field of 1.0; `None` if not offered.
    pub fn table<T>(&self, id: &str, mandatory: &[usize]) -> Result<Option<*const T>, PluginError> {
        let plugin = self.plugin();
        // SAFETY: [any]; the id lives during the call.
        let table = unsafe { (plugin.get_interface)(self.plugin, abi::Str::new(id)) };
        if table.is_null() {
            return Ok(None);
        }
        // SAFETY: a growable struct (R3) that lives until `destroy`.
        unsafe { check_table::<T>(table, mandatory) }
            .map_err(|text| self.broke("get_interface", format!("{id}: {text}")))?;
        Ok(Some(table.cast()))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let _mark = marker::enter(self.id, "destroy", 0);
        // SAFETY: [main], not active (`Instance::drop` deactivates; a poisoned one is only destroyed).
        unsafe { (self.plugin().destroy)(self.plugin) };
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Checks that a table has the fields of 1.0 and that the mandatory functions at these offsets are not NULL (R4).
///
/// # Safety
/// `table` points to a growable struct of the plugin.
pub(crate) unsafe fn check_table<T>(
    table: *const c_void,
    mandatory: &[usize],
) -> Result<(), String> {
    if table.align_offset(8) != 0 {
        return Err("misaligned table".into());
    }
    // SAFETY: R3: `struct_size` is the first field.
    let size = unsafe { *table.cast::<u64>() };
    if size < size_of::<T>() as u64 {
        return Err(format!("struct_size is {size}, 1.0 needs {}", size_of::<T>()));
    }
    for offset in mandatory {
        // SAFETY: the offset lies inside the struct, whose size was checked; pointers are 8 bytes (R1).
        let function = unsafe { *table.byte_add(*offset).cast::<usize>() };
        if function == 0 {
            return Err(format!("the mandatory function at offset {offset} is NULL"));
        }
    }
    Ok(())
}

/// The context of one call.
pub(super) fn context(ctx: CallCtx, device: abi::DLDevice) -> abi::Ctx {
    abi::Ctx {
        step: ctx.step,
        micro_step: ctx.micro_step,
        rng_key: ctx.rng_key,
        ..crate::device::context(device)
    }
}

/// A plugin's record of one forward pass, released on drop if no backward consumed it.
///
/// Must drop before the instance is deactivated; a later drop leaves it to the plugin, for its memory is gone.
pub struct Tape {
    raw: *mut abi::Tape,
    activation: u64,
    release: unsafe extern "C" fn(*const abi::Plugin, *mut abi::Tape),
    core: Arc<Core>,
}

// SAFETY: R9: [step]; the session keeps tapes on its thread.
unsafe impl Send for Tape {}

impl Tape {
    pub(super) fn new(
        raw: *mut abi::Tape,
        release: unsafe extern "C" fn(*const abi::Plugin, *mut abi::Tape),
        core: Arc<Core>,
    ) -> Self {
        Self { raw, activation: core.activation(), release, core }
    }

    /// Whether this instance made it, in this activation.
    pub(super) fn belongs_to(&self, core: &Arc<Core>) -> bool {
        Arc::ptr_eq(&self.core, core) && self.activation == core.activation()
    }

    pub(super) fn is_null(&self) -> bool {
        self.raw.is_null()
    }

    /// Gives it away to a backward.
    pub(super) fn consume(mut self) -> *mut abi::Tape {
        std::mem::replace(&mut self.raw, std::ptr::null_mut())
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        let alive = self.activation == self.core.activation() && !self.core.is_poisoned();
        if !self.raw.is_null() && alive {
            let _mark = marker::enter(self.core.id, "tape_release", 0);
            // SAFETY: [step], active, made by this instance, not consumed.
            unsafe { (self.release)(self.core.as_ptr(), self.raw) };
        }
    }
}
