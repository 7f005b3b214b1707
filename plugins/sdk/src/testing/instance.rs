//! An instance under test: the lifecycle, through the tables.

use super::{Slot, context};
use crate::views::{raw_slice, text};
use crate::{DType, Error, Host, Result};
use limbeck_abi as abi;
use std::ffi::c_void;

/// A live instance; destroyed on drop.
pub struct MockInstance {
    pub(super) host: Host,
    pub(super) plugin: *const abi::Plugin,
    active: bool,
}

/// A tape of a student's forward pass; release it or give it to `backward`.
#[derive(Debug)]
pub struct MockTape(pub(super) *mut abi::Tape);

impl MockInstance {
    pub(super) fn new(host: Host, plugin: *const abi::Plugin) -> Self {
        Self { host, plugin, active: false }
    }

    /// The pointer of the contract.
    pub fn as_abi(&self) -> *const abi::Plugin {
        self.plugin
    }

    fn table(&self) -> &abi::Plugin {
        // SAFETY: created, not destroyed.
        unsafe { &*self.plugin }
    }

    pub(super) fn interface<T>(&self, id: &str) -> Result<&T> {
        // SAFETY: [any]; an interface lives until destroy.
        let found = unsafe { (self.table().get_interface)(self.plugin, abi::Str::new(id)) };
        // SAFETY: the id names the type.
        unsafe { found.cast::<T>().as_ref() }
            .ok_or_else(|| Error::not_found(format!("the instance does not offer {id}")))
    }

    /// Whether it offers an interface.
    pub fn offers(&self, id: &str) -> bool {
        self.interface::<c_void>(id).is_ok()
    }

    /// Names of the ports, inputs then outputs.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn port_names(&self) -> Result<(Vec<String>, Vec<String>)> {
        let ports = self.ports()?;
        // SAFETY: R6; ports live until destroy.
        let name = |p: &abi::Port| unsafe { text(p.name) }.to_owned();
        let (outputs, inputs): (Vec<_>, Vec<_>) =
            ports.iter().partition(|p| p.flags & abi::PORT_OUTPUT != 0);
        Ok((inputs.into_iter().map(name).collect(), outputs.into_iter().map(name).collect()))
    }

    pub(super) fn ports(&self) -> Result<Vec<abi::Port>> {
        let (mut out, mut num, mut slot) = (std::ptr::null(), 0, Slot::default());
        // SAFETY: [main]; out-parameters outlive the call.
        let status =
            unsafe { (self.table().ports)(self.plugin, &mut out, &mut num, slot.as_abi()) };
        slot.outcome(status)?;
        // SAFETY: plugin memory until destroy.
        Ok(unsafe { raw_slice(out, num) }.to_vec())
    }

    /// Activates with a key for initial weights.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn activate(&mut self, rng_key: [u64; 2]) -> Result<()> {
        self.activate_in(DType::F32, rng_key)
    }

    /// As [`Self::activate`], for a student whose trainable parameters are of that type.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn activate_in(&mut self, param_dtype: DType, rng_key: [u64; 2]) -> Result<()> {
        let (ctx, mut slot) = (context(self.host, 0, rng_key), Slot::default());
        let directory = std::env::temp_dir().display().to_string();
        let activation = abi::Activate {
            struct_size: abi::struct_size::<abi::Activate>(),
            ctx: &ctx,
            work_dir: abi::Str::new(&directory),
            rank: 0,
            world_size: 1,
            param_dtype: param_dtype.dl(),
            reserved: 0,
        };
        // SAFETY: [step]; the activation outlives the call.
        let status = unsafe { (self.table().activate)(self.plugin, &activation, slot.as_abi()) };
        slot.outcome(status)?;
        self.active = true;
        Ok(())
    }

    /// Deactivates.
    pub fn deactivate(&mut self) {
        // SAFETY: [step].
        unsafe { (self.table().deactivate)(self.plugin) };
        self.active = false;
    }

    /// The state, moved seven bytes at a time.
    ///
    /// # Errors
    /// What the plugin says; UNSUPPORTED if it has no state.
    pub fn state_save(&self) -> Result<Vec<u8>> {
        unsafe extern "C" fn write(this: *mut c_void, buf: *const c_void, n: u64) -> i64 {
            let n = n.min(7);
            // SAFETY: `this` is the vector below, `buf` has n bytes.
            unsafe {
                let bytes = raw_slice(buf.cast::<u8>(), n);
                (*this.cast::<Vec<u8>>()).extend_from_slice(bytes);
            }
            n as i64
        }
        let save = self.table().state_save.ok_or_else(|| Error::unsupported("no state"))?;
        let (mut bytes, mut slot) = (Vec::new(), Slot::default());
        let writer = abi::Writer { this: std::ptr::from_mut::<Vec<u8>>(&mut bytes).cast(), write };
        let ctx = context(self.host, 0, [0, 0]);
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe { save(self.plugin, &ctx, &writer, slot.as_abi()) };
        slot.outcome(status)?;
        Ok(bytes)
    }

    /// Restores a state, moved five bytes at a time.
    ///
    /// # Errors
    /// What the plugin says; UNSUPPORTED if it has no state.
    pub fn state_load(&self, bytes: &[u8]) -> Result<()> {
        unsafe extern "C" fn read(this: *mut c_void, buf: *mut c_void, n: u64) -> i64 {
            // SAFETY: `this` is the slice below, `buf` has room for n bytes.
            unsafe {
                let rest = &mut *this.cast::<&[u8]>();
                let n = (n.min(5) as usize).min(rest.len());
                std::ptr::copy_nonoverlapping(rest.as_ptr(), buf.cast::<u8>(), n);
                *rest = &rest[n..];
                n as i64
            }
        }
        let load = self.table().state_load.ok_or_else(|| Error::unsupported("no state"))?;
        let (mut rest, mut slot) = (bytes, Slot::default());
        let reader = abi::Reader { this: std::ptr::from_mut::<&[u8]>(&mut rest).cast(), read };
        let ctx = context(self.host, 0, [0, 0]);
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe { load(self.plugin, &ctx, &reader, slot.as_abi()) };
        slot.outcome(status)
    }
}

impl Drop for MockInstance {
    fn drop(&mut self) {
        if self.active {
            self.deactivate();
        }
        // SAFETY: created, destroyed once.
        unsafe { (self.table().destroy)(self.plugin) };
    }
}
