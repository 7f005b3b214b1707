//! One live instance; the only calls through a plugin's tables.
//!
//! Keeps the lifecycle create, ports, activate, kind calls, deactivate, destroy; refuses calls out of order and calls
//! on a poisoned instance before they reach the plugin. Checks what a plugin gives back.

mod core;
mod error;
mod forward;
mod loss;
mod marker;
mod params;
mod ports;
mod requests;
mod scheduler;
mod state;
#[cfg(test)]
mod tests;
mod types;

pub use self::core::Tape;
pub(crate) use self::core::{check_table, live_instances};
pub use error::{PluginError, meaning};
pub use marker::current_call;
pub(crate) use marker::{
    Running, Shown, adopt as adopt_call, enter as mark_call, show as show_calls,
};
pub(crate) use scheduler::{copy_schedule, with_event};
pub use types::*;

use self::core::{Core, context};
use super::catalogue::PluginKind;
use crate::tensor::DType;
use limbeck_abi as abi;
use std::borrow::Cow;
use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One live plugin instance.
///
/// Calls are legal only in the order of the lifecycle; after LMB_PANIC the instance is poisoned and every call but
/// `destroy` (drop) fails at once. [main] and [step] calls come from one thread: the session's.
pub struct Instance {
    core: Arc<Core>,
    kind: PluginKind,
    ports: Vec<Port>,
    tables: Tables,
    device: abi::DLDevice,
    param_dtype: DType,
    scratch: Scratch,
    loss: loss::LossState,
    param_names: Vec<String>,
}

/// The tables that the instance offers; they live until `destroy`.
#[derive(Clone, Copy)]
struct Tables {
    teacher: Option<*const abi::Teacher>,
    student: Option<*const abi::Student>,
    loss: Option<*const abi::Loss>,
    scheduler: Option<*const abi::Scheduler>,
}

/// Argument lists, kept so that a call allocates nothing.
#[derive(Default)]
struct Scratch {
    inputs: Vec<abi::Tensor>,
    grads: Vec<abi::Tensor>,
    params: Vec<abi::Tensor>,
    param_grads: Vec<abi::Tensor>,
    wanted: Vec<abi::Str>,
    outputs: Vec<*mut abi::DLManagedTensorVersioned>,
}

// SAFETY: the raw pointers are the plugin's tables (see `Core`) and argument lists that are rebuilt by every call.
unsafe impl Send for Instance {}

static ACTIVATIONS: AtomicU64 = AtomicU64::new(1);

impl Instance {
    /// Takes over what a module's `create` gave, asks for its tables and ports.
    ///
    /// # Safety
    /// `plugin` comes from a successful `create` of a library that is never unloaded, and nobody else owns it.
    pub(crate) unsafe fn adopt(
        plugin: *const abi::Plugin,
        id: &'static str,
        version: &'static str,
        kind: PluginKind,
    ) -> Result<Self, PluginError> {
        let broke = |text: String| {
            let mut error = PluginError::new((id, version), "create", abi::STATUS_INTERNAL, text);
            error.notes.push(("contract".into(), "create".into()));
            error
        };
        if plugin.is_null() {
            return Err(broke("success without an instance".into()));
        }
        let mandatory = [
            offset_of!(abi::Plugin, get_interface),
            offset_of!(abi::Plugin, ports),
            offset_of!(abi::Plugin, activate),
            offset_of!(abi::Plugin, deactivate),
            offset_of!(abi::Plugin, destroy),
        ];
        // SAFETY: R3, the caller's promise.
        unsafe { check_table::<abi::Plugin>(plugin.cast(), &mandatory) }.map_err(broke)?;
        // SAFETY: checked just now.
        let core = Arc::new(unsafe { Core::new(plugin, id, version) });
        if core.plugin().state_save.is_some() != core.plugin().state_load.is_some() {
            return Err(core.broke("create", "state_save and state_load come both or neither"));
        }
        let tables = Tables::ask(&core, kind)?;
        let ports = ports::ask(&core)?;
        let loss = loss::LossState::new(&ports);
        Ok(Self {
            core,
            kind,
            ports,
            tables,
            device: abi::DLDevice::CPU,
            param_dtype: DType::F32,
            scratch: Scratch::default(),
            loss,
            param_names: Vec::new(),
        })
    }

    /// Plugin id.
    pub fn id(&self) -> &str {
        self.core.id
    }

    /// Plugin version.
    pub fn version(&self) -> &str {
        self.core.version
    }

    /// What it was created as.
    pub fn kind(&self) -> PluginKind {
        self.kind
    }

    /// Its ports, asked once.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Input ports in order.
    pub fn inputs(&self) -> impl Iterator<Item = &Port> {
        self.ports().iter().filter(|p| !p.is_output())
    }

    /// Output ports in order.
    pub fn outputs(&self) -> impl Iterator<Item = &Port> {
        self.ports().iter().filter(|p| p.is_output())
    }

    /// Whether it offers the interface.
    pub fn offers(&self, interface: &str) -> bool {
        match interface {
            abi::TEACHER_ID => self.tables.teacher.is_some(),
            abi::STUDENT_ID => self.tables.student.is_some(),
            abi::LOSS_ID => self.tables.loss.is_some(),
            abi::SCHEDULER_ID => self.tables.scheduler.is_some(),
            // SAFETY: [any]; the id lives during the call.
            _ => !unsafe {
                (self.core.plugin().get_interface)(self.core.as_ptr(), abi::Str::new(interface))
            }
            .is_null(),
        }
    }

    /// The raw object, for the conformance checker.
    pub fn as_ptr(&self) -> *const abi::Plugin {
        self.core.as_ptr()
    }

    /// The device of the next `activate`; the CPU unless set.
    pub fn set_device(&mut self, device: abi::DLDevice) {
        self.device = device;
    }

    /// Where it computes.
    pub fn device(&self) -> abi::DLDevice {
        self.device
    }

    /// Type of a student's trainable parameters after the next `activate` on another device than the CPU; f32 unless
    /// set. Gives the one before.
    pub fn set_param_dtype(&mut self, dtype: DType) -> DType {
        std::mem::replace(&mut self.param_dtype, dtype)
    }

    /// Inputs in the memory that their ports want, to be held until the call returned.
    fn bring<'a>(
        &self,
        call: &'static str,
        inputs: &'a [Option<crate::tensor::Tensor>],
    ) -> Result<Cow<'a, [Option<crate::tensor::Tensor>]>, PluginError> {
        let cpu = abi::DLDevice::CPU;
        if self.device == cpu && inputs.iter().flatten().all(|t| t.device() == cpu) {
            return Ok(Cow::Borrowed(inputs));
        }
        let one = |(port, input): (&Port, &Option<crate::tensor::Tensor>)| {
            let place = if port.is_host_memory() { cpu } else { self.device };
            let brought = input.as_ref().map(|t| t.brought_to(place)).transpose();
            brought.map_err(|e| {
                let text = format!("input `{}`: {}", port.name, e.message);
                self.core.error(call, e.status, text)
            })
        };
        self.inputs().zip(inputs).map(one).collect::<Result<_, _>>().map(Cow::Owned)
    }

    /// Whether a panic made it unusable.
    pub fn is_poisoned(&self) -> bool {
        self.core.is_poisoned()
    }

    /// Gets all that is slow or large.
    ///
    /// # Errors
    /// What the plugin said; INVALID_STATE if it is active already.
    pub fn activate(&mut self, ctx: CallCtx, work_dir: &Path) -> Result<(), PluginError> {
        if self.is_active() {
            return Err(self.core.error("activate", abi::STATUS_INVALID_STATE, "activate twice"));
        }
        let ctx = context(ctx, self.device);
        let is_cpu = self.device == abi::DLDevice::CPU;
        let param_dtype = if is_cpu { DType::F32 } else { self.param_dtype };
        let work_dir = work_dir.to_string_lossy();
        let call = abi::Activate {
            struct_size: abi::struct_size::<abi::Activate>(),
            ctx: &ctx,
            work_dir: abi::Str::new(&work_dir),
            rank: 0,
            world_size: 1,
            param_dtype: param_dtype.dl(),
            reserved: 0,
        };
        let activate = self.core.plugin().activate;
        // SAFETY: [step], not active, arguments alive during the call.
        self.core.call("activate", ctx.step, |p, e| unsafe { activate(p, &call, e) })?;
        self.core.set_activation(ACTIVATIONS.fetch_add(1, Ordering::Relaxed));
        Ok(())
    }

    /// Whether it is active.
    pub fn is_active(&self) -> bool {
        self.core.is_active()
    }

    /// Releases what `activate` got. No tensor or tape of it may be alive.
    pub fn deactivate(&mut self) {
        if !self.is_active() {
            return;
        }
        self.core.set_activation(0);
        self.loss.forget();
        self.param_names.clear();
        if !self.is_poisoned() {
            let _mark = marker::enter(self.core.id, "deactivate", 0);
            // SAFETY: [step], active until now, not poisoned.
            unsafe { (self.core.plugin().deactivate)(self.core.as_ptr()) };
        }
    }

    fn input_count(&self) -> usize {
        self.inputs().count()
    }

    fn check_inputs(&self, call: &'static str, found: usize) -> Result<(), PluginError> {
        let wanted = self.input_count();
        if found == wanted {
            return Ok(());
        }
        let text = format!("{found} inputs for {wanted} input ports");
        Err(self.core.error(call, abi::STATUS_INVALID_ARGUMENT, text))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.deactivate();
    }
}

impl Tables {
    fn ask(core: &Core, kind: PluginKind) -> Result<Self, PluginError> {
        let tables = Self {
            teacher: core.table(abi::TEACHER_ID, &[offset_of!(abi::Teacher, forward)])?,
            student: core.table(
                abi::STUDENT_ID,
                &[
                    offset_of!(abi::Student, params),
                    offset_of!(abi::Student, backward),
                    offset_of!(abi::Student, tape_release),
                ],
            )?,
            loss: core.table(
                abi::LOSS_ID,
                &[offset_of!(abi::Loss, plan), offset_of!(abi::Loss, compute)],
            )?,
            scheduler: core.table(
                abi::SCHEDULER_ID,
                &[offset_of!(abi::Scheduler, plan), offset_of!(abi::Scheduler, on_event)],
            )?,
        };
        let missing = match kind {
            PluginKind::Teacher => tables.teacher.is_none().then_some(abi::TEACHER_ID),
            PluginKind::Student if tables.student.is_none() => Some(abi::STUDENT_ID),
            PluginKind::Student => tables.teacher.is_none().then_some(abi::TEACHER_ID),
            PluginKind::Loss => tables.loss.is_none().then_some(abi::LOSS_ID),
            PluginKind::Scheduler => tables.scheduler.is_none().then_some(abi::SCHEDULER_ID),
        };
        match missing {
            None => Ok(tables),
            Some(id) => {
                Err(core.broke("get_interface", format!("a {} must offer {id}", kind.name())))
            }
        }
    }
}

/// Views of inputs into `out`, absent ones marked, in port order.
fn input_views(
    ports: &[Port],
    inputs: &[Option<crate::tensor::Tensor>],
    out: &mut Vec<abi::Tensor>,
) {
    out.clear();
    let ports = ports.iter().filter(|p| !p.is_output());
    out.extend(ports.zip(inputs).map(|(port, input)| match input {
        Some(tensor) => tensor.view(&port.name, abi::TENSOR_READ_ONLY),
        None => crate::tensor::absent(&port.name),
    }));
}

/// View of a gradient buffer; an unwanted one is absent.
fn grad_view(name: &str, grad: Option<&GradOut>) -> abi::Tensor {
    match grad {
        Some(g) => g.buffer.view(name, if g.accumulate { abi::TENSOR_ACCUMULATE } else { 0 }),
        None => crate::tensor::absent(name),
    }
}
