//! Forward and backward passes of teachers and students.
//!
//! Every output is checked (present, known element type, device, non-negative shape) before the host touches it; what
//! a failed call may have left behind is not read.

use super::core::{Tape, context};
use super::ports::{SpecViews, fits};
use super::{
    CallCtx, ForwardFlags, ForwardOut, GradOut, Instance, PluginError, grad_view, input_views,
};
use crate::tensor::{Tensor, TensorSpec};
use limbeck_abi as abi;
use std::sync::Arc;

impl Instance {
    fn teacher(&self, call: &'static str) -> Result<&abi::Teacher, PluginError> {
        match self.tables.teacher {
            // SAFETY: the table lives until `destroy`; checked in `Tables::ask`.
            Some(table) => Ok(unsafe { &*table }),
            None => Err(self.core.error(call, abi::STATUS_UNSUPPORTED, "no lmb.teacher/1")),
        }
    }

    pub(super) fn student(&self, call: &'static str) -> Result<&abi::Student, PluginError> {
        match self.tables.student {
            // SAFETY: as in `teacher`.
            Some(table) => Ok(unsafe { &*table }),
            None => Err(self.core.error(call, abi::STATUS_UNSUPPORTED, "no lmb.student/1")),
        }
    }

    /// Bytes held and extra bytes at the peak, if the plugin tells.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn estimate(
        &self,
        inputs: &[Option<TensorSpec>],
    ) -> Result<Option<(u64, u64)>, PluginError> {
        self.check_inputs("estimate", inputs.len())?;
        let Some(estimate) = self.teacher("estimate")?.estimate else { return Ok(None) };
        let views = SpecViews::new(self.inputs(), inputs);
        let (list, count) = (views.tensors.as_ptr(), views.tensors.len() as u64);
        let (mut held, mut peak) = (0, 0);
        // SAFETY: [main]; lists and places alive during the call.
        let run = |p, e| unsafe { estimate(p, list, count, &mut held, &mut peak, e) };
        self.core.call("estimate", 0, run)?;
        Ok(Some((held, peak)))
    }

    /// Runs the model. `inputs` has one entry per input port.
    ///
    /// # Errors
    /// What the plugin said, or how its outputs break the contract.
    pub fn forward(
        &mut self,
        ctx: CallCtx,
        flags: ForwardFlags,
        inputs: &[Option<Tensor>],
        wanted: &[String],
    ) -> Result<ForwardOut, PluginError> {
        self.core.need_active("forward")?;
        self.check_inputs("forward", inputs.len())?;
        self.check_wanted(wanted)?;
        let forward = self.teacher("forward")?.forward;
        let records = flags.param_grad || flags.input_grad;
        let release = if records { Some(self.student("forward")?.tape_release) } else { None };
        let ctx = context(ctx, self.device);
        let inputs = self.bring("forward", inputs)?;
        input_views(&self.ports, &inputs, &mut self.scratch.inputs);
        self.scratch.wanted.clear();
        self.scratch.wanted.extend(wanted.iter().map(|w| abi::Str::new(w)));
        self.scratch.outputs.clear();
        self.scratch.outputs.resize(wanted.len(), std::ptr::null_mut());
        let mut tape: *mut abi::Tape = std::ptr::null_mut();
        let call = abi::Forward {
            struct_size: abi::struct_size::<abi::Forward>(),
            ctx: &ctx,
            flags: flag(flags.train, abi::FORWARD_TRAIN)
                | flag(flags.param_grad, abi::FORWARD_PARAM_GRAD)
                | flag(flags.input_grad, abi::FORWARD_INPUT_GRAD),
            inputs: self.scratch.inputs.as_ptr(),
            num_inputs: inputs.len() as u64,
            wanted: self.scratch.wanted.as_ptr(),
            num_wanted: wanted.len() as u64,
            outputs: self.scratch.outputs.as_mut_ptr(),
            tape: if records { &mut tape } else { std::ptr::null_mut() },
        };
        // SAFETY: [step], active; lists and places alive during the call.
        self.core.call("forward", ctx.step, |p, e| unsafe { forward(p, &call, e) })?;
        let tape = release.map(|release| Tape::new(tape, release, Arc::clone(&self.core)));
        let outputs = self.take_outputs(wanted)?;
        if tape.as_ref().is_some_and(Tape::is_null) {
            return Err(self.core.broke("forward", "a gradient flag was set and no tape given"));
        }
        Ok(ForwardOut { outputs, tape })
    }

    fn check_wanted(&self, wanted: &[String]) -> Result<(), PluginError> {
        match wanted.iter().find(|w| !self.outputs().any(|p| p.name == **w)) {
            None => Ok(()),
            Some(name) => {
                let text = format!("no output port `{name}`");
                Err(self.core.error("forward", abi::STATUS_INVALID_ARGUMENT, text))
            }
        }
    }

    /// Wraps all outputs first, so that none leaks when one is bad.
    fn take_outputs(&mut self, wanted: &[String]) -> Result<Vec<Tensor>, PluginError> {
        let wrapped: Vec<Option<Tensor>> = self
            .scratch
            .outputs
            .drain(..)
            // SAFETY: `lmb_forward.outputs`: the host calls each deleter once; the session drops them on [step].
            .map(|raw| unsafe { from_plugin(raw) })
            .collect();
        let mut outputs = Vec::with_capacity(wanted.len());
        for (name, tensor) in wanted.iter().zip(wrapped) {
            let Some(tensor) = tensor else {
                return Err(self.core.broke(
                    "forward",
                    format!("output `{name}` is missing or not a valid tensor"),
                ));
            };
            let port = self.outputs().find(|p| p.name == *name);
            if let Some(port) = port {
                self.check_output(port, &tensor)?;
            }
            outputs.push(tensor);
        }
        Ok(outputs)
    }

    fn check_output(&self, port: &super::Port, tensor: &Tensor) -> Result<(), PluginError> {
        let name = &port.name;
        if !port.dtypes.contains(&tensor.dtype()) {
            let found = tensor.dtype().name();
            return Err(self.core.broke(
                "forward",
                format!("output `{name}` is {found}, which its port does not list"),
            ));
        }
        let cpu = abi::DLDevice::CPU;
        if tensor.device() != self.device && tensor.device() != cpu {
            let text = format!(
                "output `{name}` is on {:?}, the instance on {:?}",
                tensor.device(),
                self.device
            );
            return Err(self.core.broke("forward", text));
        }
        if !fits(&port.shape, tensor.shape()) {
            let text = format!(
                "output `{name}` has shape {:?}, its port says [{}]",
                tensor.shape(),
                port.shape
            );
            return Err(self.core.broke("forward", text));
        }
        Ok(())
    }

    /// Cotangents (by output name) to gradients. `param_grads`: one per parameter (tied ones `None`), or empty.
    ///
    /// # Errors
    /// What the plugin said. The tape is consumed in any case.
    pub fn backward(
        &mut self,
        ctx: CallCtx,
        tape: Tape,
        cotangents: &[(String, Tensor)],
        param_grads: &[Option<GradOut>],
        input_grads: &[Option<GradOut>],
    ) -> Result<(), PluginError> {
        self.core.need_active("backward")?;
        let backward = self.student("backward")?.backward;
        if !tape.belongs_to(&self.core) {
            let text = "the tape is of another instance or activation";
            return Err(self.core.error("backward", abi::STATUS_INVALID_ARGUMENT, text));
        }
        if !input_grads.is_empty() {
            self.check_inputs("backward", input_grads.len())?;
        }
        if !param_grads.is_empty() {
            self.know_params()?;
            if param_grads.len() != self.param_names.len() {
                let text = format!(
                    "{} gradients for {} parameters",
                    param_grads.len(),
                    self.param_names.len()
                );
                return Err(self.core.error("backward", abi::STATUS_INVALID_ARGUMENT, text));
            }
        }
        let ctx = context(ctx, self.device);
        let s = &mut self.scratch;
        s.inputs.clear();
        s.inputs.extend(cotangents.iter().map(|(name, t)| t.view(name, abi::TENSOR_READ_ONLY)));
        s.param_grads.clear();
        s.param_grads.extend(
            self.param_names.iter().zip(param_grads).map(|(n, g)| grad_view(n, g.as_ref())),
        );
        s.grads.clear();
        let ports = self.ports.iter().filter(|p| !p.is_output());
        s.grads.extend(ports.zip(input_grads).map(|(p, g)| grad_view(&p.name, g.as_ref())));
        let call = abi::Backward {
            struct_size: abi::struct_size::<abi::Backward>(),
            ctx: &ctx,
            tape: tape.consume(),
            cotangents: s.inputs.as_ptr(),
            num_cotangents: s.inputs.len() as u64,
            param_grads: s.param_grads.as_ptr(),
            num_params: s.param_grads.len() as u64,
            input_grads: s.grads.as_ptr(),
            num_inputs: s.grads.len() as u64,
        };
        // SAFETY: [step], active; the tape is this instance's; lists alive during the call.
        self.core.call("backward", ctx.step, |p, e| unsafe { backward(p, &call, e) })
    }
}

fn flag(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

/// Wraps one output; `None` if it is NULL, of an unknown DLPack major, or not a valid tensor. Runs the deleter of
/// what it refuses.
///
/// # Safety
/// NULL, or a managed tensor that the plugin handed over.
unsafe fn from_plugin(raw: *mut abi::DLManagedTensorVersioned) -> Option<Tensor> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: the caller's promise; the version is the first field in every DLPack major.
    let major = unsafe { (*raw).version.major };
    // SAFETY: as above; a struct of another major has its deleter where version 1 has it, by DLPack's own rule.
    let tensor = unsafe { Tensor::from_managed(raw) };
    tensor.filter(|_| major == 1)
}
