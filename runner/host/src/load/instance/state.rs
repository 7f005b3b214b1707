//! `state_save` and `state_load`: what a plugin keeps beside its parameters; and the text of its `config.json`.
//!
//! The bytes are the plugin's own; the host stores them whole and hands them back in pieces.

use super::core::context;
use super::{CallCtx, Instance, PluginError};
use limbeck_abi as abi;
use serde_json::{Map, Value as Json};
use std::ffi::c_void;
use std::mem::offset_of;

impl Instance {
    /// State beyond `params()`; `None` if the plugin has none.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn state_save(&mut self, ctx: CallCtx) -> Result<Option<Vec<u8>>, PluginError> {
        self.core.need_active("state_save")?;
        let Some(save) = self.core.plugin().state_save else { return Ok(None) };
        let ctx = context(ctx, self.device);
        let mut bytes: Vec<u8> = Vec::new();
        let writer = abi::Writer { this: std::ptr::from_mut(&mut bytes).cast(), write };
        // SAFETY: [step], active; writer and buffer alive during the call.
        self.core.call("state_save", ctx.step, |p, e| unsafe { save(p, &ctx, &writer, e) })?;
        Ok(Some(bytes))
    }

    /// Restores it. After a failure the instance is fit for `deactivate` only.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn state_load(&mut self, ctx: CallCtx, bytes: &[u8]) -> Result<(), PluginError> {
        self.core.need_active("state_load")?;
        let Some(load) = self.core.plugin().state_load else {
            let text = "the plugin keeps no state";
            return Err(self.core.error("state_load", abi::STATUS_UNSUPPORTED, text));
        };
        let ctx = context(ctx, self.device);
        let mut rest = bytes;
        let reader = abi::Reader { this: std::ptr::from_mut(&mut rest).cast(), read };
        // SAFETY: [step], active; reader and bytes alive during the call.
        self.core.call("state_load", ctx.step, |p, e| unsafe { load(p, &ctx, &reader, e) })
    }
}

impl Instance {
    /// The `config.json` of a Hugging Face folder of the model; `None` if it has no such form.
    ///
    /// # Errors
    /// What the plugin said; a text that is no JSON object.
    pub fn folder_config(&self) -> Result<Option<Map<String, Json>>, PluginError> {
        let table = self.core.table(abi::FOLDER_ID, &[offset_of!(abi::Folder, config)])?;
        let Some(table): Option<*const abi::Folder> = table else { return Ok(None) };
        // SAFETY: checked by `table`; alive until `destroy`.
        let config = unsafe { (*table).config };
        let mut bytes: Vec<u8> = Vec::new();
        let writer = abi::Writer { this: std::ptr::from_mut(&mut bytes).cast(), write };
        // SAFETY: [main]; writer and buffer alive during the call.
        self.core.call("config", 0, |p, e| unsafe { config(p, &writer, e) })?;
        let parsed = serde_json::from_slice::<Map<String, Json>>(&bytes);
        parsed.map(Some).map_err(|e| self.core.broke("config", format!("no JSON object: {e}")))
    }
}

unsafe extern "C" fn write(this: *mut c_void, buf: *const c_void, n: u64) -> i64 {
    if n == 0 {
        return 0;
    }
    if buf.is_null() || n > i64::MAX as u64 {
        return -1;
    }
    // SAFETY: the vector that `state_save` lent for this call.
    let bytes = unsafe { &mut *this.cast::<Vec<u8>>() };
    if bytes.try_reserve(n as usize).is_err() {
        return -1;
    }
    // SAFETY: R5: `n` readable bytes.
    bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(buf.cast(), n as usize) });
    n as i64
}

unsafe extern "C" fn read(this: *mut c_void, buf: *mut c_void, n: u64) -> i64 {
    // SAFETY: the slice that `state_load` lent for this call.
    let rest = unsafe { &mut *this.cast::<&[u8]>() };
    let n = rest.len().min(usize::try_from(n).unwrap_or(usize::MAX));
    if n == 0 {
        return 0;
    }
    if buf.is_null() {
        return -1;
    }
    // SAFETY: R5: room for `n` bytes at `buf`; `n` is at most what is left.
    unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), buf.cast(), n) };
    *rest = rest.get(n..).unwrap_or_default();
    n as i64
}
