//! A student's parameters, read and written in place.
//!
//! The list is fixed while active. Refuses unnamed or doubled parameters, ties to nothing, and other memory than the
//! instance's device.

use super::core::context;
use super::{CallCtx, Instance, Param, PluginError};
use crate::tensor::Tensor;
use limbeck_abi as abi;

/// More parameters than any real model has.
const MAX_PARAMS: u64 = 1 << 20;

impl Instance {
    /// A student's parameters and buffers; addresses hold until `deactivate`.
    ///
    /// # Errors
    /// What the plugin said, or how the list breaks the contract.
    pub fn params(&mut self) -> Result<Vec<Param>, PluginError> {
        self.core.need_active("params")?;
        let params = self.student("params")?.params;
        let (mut list, mut count) = (std::ptr::null(), 0u64);
        // SAFETY: [step], active; places alive during the call.
        self.core.call("params", 0, |p, e| unsafe { params(p, &mut list, &mut count, e) })?;
        if count > MAX_PARAMS || (count > 0 && list.is_null()) {
            return Err(self.core.broke("params", format!("{count} parameters at {list:?}")));
        }
        let mut owned: Vec<Param> = Vec::with_capacity(count as usize);
        for i in 0..count as usize {
            // SAFETY: `list` has `count` entries, plugin memory until `deactivate`.
            let param = unsafe { &*list.add(i) };
            // SAFETY: as above; addresses hold until `deactivate`, as this function's doc tells its caller.
            let param = unsafe { copy(param) }
                .map_err(|text| self.core.broke("params", format!("parameter {i}: {text}")))?;
            owned.push(param);
        }
        check(&owned).map_err(|text| self.core.broke("params", text))?;
        self.param_names = owned.iter().map(|p| p.name.clone()).collect();
        Ok(owned)
    }

    /// Fills `param_names` if nobody asked for the parameters yet.
    pub(super) fn know_params(&mut self) -> Result<(), PluginError> {
        if self.param_names.is_empty() {
            self.params()?;
        }
        Ok(())
    }

    /// The host wrote parameters.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn params_changed(&mut self, ctx: CallCtx) -> Result<(), PluginError> {
        self.core.need_active("params_changed")?;
        let Some(changed) = self.student("params_changed")?.params_changed else { return Ok(()) };
        let ctx = context(ctx, self.device);
        // SAFETY: [step], active; the context lives during the call.
        self.core.call("params_changed", ctx.step, |p, e| unsafe { changed(p, &ctx, e) })
    }
}

/// # Safety
/// A parameter of an active instance.
unsafe fn copy(param: &abi::Param) -> Result<Param, String> {
    // SAFETY: R6.
    let name = unsafe { param.value.name.text() }.ok_or("name is not UTF-8")?;
    // SAFETY: R6.
    let tied_to = unsafe { param.tied_to.text() }.ok_or("tied_to is not UTF-8")?;
    if name.is_empty() {
        return Err("no name".into());
    }
    // SAFETY: addresses hold until `deactivate`.
    let value = unsafe { Tensor::borrowed(&param.value.t) }
        .ok_or_else(|| format!("`{name}` is not a valid tensor"))?;
    if value.device() == abi::DLDevice::CPU && !value.is_contiguous() {
        return Err(format!("`{name}` is not contiguous"));
    }
    Ok(Param {
        name: name.to_owned(),
        value,
        tied_to: (!tied_to.is_empty()).then(|| tied_to.to_owned()),
        trainable: param.flags & abi::PARAM_TRAINABLE != 0,
        no_decay: param.flags & abi::PARAM_NO_DECAY != 0,
    })
}

fn check(params: &[Param]) -> Result<(), String> {
    let mut names = std::collections::HashMap::with_capacity(params.len());
    for param in params {
        if names.insert(param.name.as_str(), param).is_some() {
            return Err(format!("parameter `{}` twice", param.name));
        }
    }
    for param in params {
        let Some(canonical) = &param.tied_to else { continue };
        let Some(other) = names.get(canonical.as_str()) else {
            return Err(format!("`{}` is tied to `{canonical}`, which does not exist", param.name));
        };
        if other.tied_to.is_some() || other.value.address() != param.value.address() {
            return Err(format!(
                "`{}` is tied to `{canonical}` but shares no memory with it",
                param.name
            ));
        }
    }
    Ok(())
}
