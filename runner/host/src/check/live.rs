//! A created instance, called through its raw tables in any order, legal or not.

use super::{Miss, fail};
use crate::load::instance::check_table;
use crate::load::services::{self, ErrorSlot};
use limbeck_abi as abi;
use std::mem::offset_of;

/// An instance that this guard destroys.
pub struct Live {
    plugin: *const abi::Plugin,
    active: bool,
}

/// A context with this key.
pub fn ctx(key: [u64; 2]) -> abi::Ctx {
    abi::Ctx {
        struct_size: abi::struct_size::<abi::Ctx>(),
        host: services::host(),
        stream: abi::Stream { device: abi::DLDevice::CPU, handle: std::ptr::null_mut() },
        step: 0,
        micro_step: 0,
        rng_key: key,
        span: 0,
    }
}

impl Live {
    /// Takes over what `create` gave.
    ///
    /// # Safety
    /// `plugin` comes from a successful `create` and nobody else destroys it.
    pub unsafe fn new(plugin: *const abi::Plugin) -> Result<Self, Miss> {
        if plugin.is_null() {
            return Err(fail("an instance from a successful create", "NULL"));
        }
        let mandatory = [
            offset_of!(abi::Plugin, get_interface),
            offset_of!(abi::Plugin, ports),
            offset_of!(abi::Plugin, activate),
            offset_of!(abi::Plugin, deactivate),
            offset_of!(abi::Plugin, destroy),
        ];
        // SAFETY: R3, the caller's promise.
        unsafe { check_table::<abi::Plugin>(plugin.cast(), &mandatory) }
            .map_err(|found| fail("a whole lmb_plugin table (R3, R4)", found))?;
        Ok(Self { plugin, active: false })
    }

    /// The raw object.
    pub fn as_ptr(&self) -> *const abi::Plugin {
        self.plugin
    }

    /// Its table.
    pub fn table(&self) -> &abi::Plugin {
        // SAFETY: checked in `new`, alive until the drop.
        unsafe { &*self.plugin }
    }

    /// Ends ownership without `destroy`.
    pub fn into_raw(self) -> *const abi::Plugin {
        let plugin = self.plugin;
        std::mem::forget(self);
        plugin
    }

    /// A table by interface id.
    pub fn interface<T>(&self, id: &str) -> Option<*const T> {
        // SAFETY: [any]; the id lives during the call.
        let table = unsafe { (self.table().get_interface)(self.plugin, abi::Str::new(id)) };
        (!table.is_null()).then_some(table.cast())
    }

    /// Ports as the plugin gives them.
    ///
    /// # Errors
    /// The call failed.
    pub fn ports(&self) -> Result<&[abi::Port], Miss> {
        let slot = ErrorSlot::default();
        let (mut out, mut num) = (std::ptr::null(), 0);
        // SAFETY: [main]; out-parameters live during the call.
        let status =
            unsafe { (self.table().ports)(self.plugin, &raw mut out, &raw mut num, slot.as_ptr()) };
        match status {
            abi::STATUS_OK => {}
            abi::STATUS_NOT_FOUND | abi::STATUS_IO => {
                let said = super::subject::told(status, slot);
                return Err(Miss::Skip(format!("no ports: {said}; give settings with --with")));
            }
            _ => return Err(fail("ports to succeed", super::subject::told(status, slot))),
        }
        if num == 0 {
            return Ok(&[]);
        }
        if out.is_null() || num > 4096 {
            return Err(fail("a list of ports", format!("{num} at {out:?}")));
        }
        // SAFETY: plugin memory of `num` ports, unchanged until destroy (header).
        Ok(unsafe { std::slice::from_raw_parts(out, num as usize) })
    }

    /// Calls `activate`, legal or not.
    pub(super) fn try_activate(&mut self, work_dir: &std::path::Path) -> (abi::Status, ErrorSlot) {
        let ctx = ctx([7, 11]);
        let dir = work_dir.to_string_lossy();
        let call = abi::Activate {
            struct_size: abi::struct_size::<abi::Activate>(),
            ctx: &raw const ctx,
            work_dir: abi::Str::new(&dir),
            rank: 0,
            world_size: 1,
            param_dtype: abi::DLDataType::F32,
            reserved: 0,
        };
        let slot = ErrorSlot::default();
        // SAFETY: [step]; arguments live during the call. A second call must be refused by the plugin.
        let status =
            unsafe { (self.table().activate)(self.plugin, &raw const call, slot.as_ptr()) };
        self.active |= status == abi::STATUS_OK;
        (status, slot)
    }

    /// Calls `activate`.
    ///
    /// # Errors
    /// It refused. IO and NOT_FOUND are skips: files that are not here.
    pub fn activate(&mut self) -> Result<(), Miss> {
        let dir = std::env::temp_dir();
        let (status, slot) = self.try_activate(&dir);
        match status {
            abi::STATUS_OK => Ok(()),
            abi::STATUS_NOT_FOUND | abi::STATUS_IO => {
                let said = super::subject::told(status, slot);
                Err(Miss::Skip(format!("not activated: {said}; give settings with --with")))
            }
            _ => Err(fail("activate to succeed", super::subject::told(status, slot))),
        }
    }

    /// Calls `deactivate` if active.
    pub fn deactivate(&mut self) {
        if std::mem::take(&mut self.active) {
            // SAFETY: [step], active.
            unsafe { (self.table().deactivate)(self.plugin) };
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.deactivate();
        // SAFETY: [main], not active, once.
        unsafe { (self.table().destroy)(self.plugin) };
    }
}
