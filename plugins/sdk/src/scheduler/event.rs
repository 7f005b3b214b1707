//! What a scheduler is shown.
//!
//! Everything is borrowed for the one call.

use crate::views::{GradView, View, Views, raw_slice, text};
use crate::{Context, Error, Host, Random, Result};
use limbeck_abi as abi;

/// What a scheduler is shown.
pub struct Event<'a> {
    raw: &'a abi::Event,
    context: Context<'a>,
}

impl<'a> Event<'a> {
    /// # Safety
    /// R5: `raw` and all it points to live for `'a`.
    pub(crate) unsafe fn from_abi(raw: *const abi::Event, host: Host) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the event is NULL"));
        }
        // SAFETY: the caller's promise.
        let raw: &'a abi::Event = unsafe { &*raw };
        // SAFETY: the caller's promise.
        Ok(Self { raw, context: unsafe { Context::from_abi(raw.ctx, host) }? })
    }
    /// One of `limbeck_abi::EVENT_*`.
    pub fn kind(&self) -> u64 {
        self.raw.kind
    }
    /// Context: step, stream, host.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }
    /// The stream of draws of one use inside this event.
    pub fn rng(&self, name: &str) -> Random {
        self.context.rng(name)
    }
    /// Name of the task.
    pub fn task(&self) -> &'a str {
        // SAFETY: R5, R6.
        unsafe { text(self.raw.task) }
    }
    /// Its place in the stream, from 0.
    pub fn task_index(&self) -> u64 {
        self.raw.task_index
    }
    /// 0: not known.
    pub fn num_tasks(&self) -> u64 {
        self.raw.num_tasks
    }
    /// Pass over the task's rows.
    pub fn epoch(&self) -> u64 {
        self.raw.epoch
    }
    /// `""` = ordinary training, else the name of a pass or probe.
    pub fn phase(&self) -> &'a str {
        // SAFETY: R5, R6.
        unsafe { text(self.raw.phase) }
    }
    /// FORWARD: the row group shown; `""` = the fresh rows.
    pub fn group(&self) -> &'a str {
        // SAFETY: R5, R6.
        unsafe { text(self.raw.group) }
    }
    /// All tensors shown: bound input ports; `batch.*` gives every column under its own name.
    pub fn tensors(&self) -> Views<'a> {
        // SAFETY: `from_abi` promised the lifetime.
        unsafe { Views::from_abi(self.raw.tensors, self.raw.num_tensors) }
    }
    /// A tensor by name; `None` if unbound or empty.
    ///
    /// # Errors
    /// An unknown element type.
    pub fn tensor(&self, name: &str) -> Result<Option<View<'a>>> {
        self.tensors().named(name)
    }
    /// A tensor that the event must show.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is missing.
    pub fn required(&self, name: &str) -> Result<View<'a>> {
        self.tensor(name)?.ok_or_else(|| {
            Error::invalid_argument(format!("the event does not show `{name}`")).tensor(name)
        })
    }
    /// The student's parameters (and buffers).
    pub fn params(&self) -> &'a [abi::Param] {
        // SAFETY: as above.
        unsafe { raw_slice(self.raw.params, self.raw.num_params) }
    }
    /// The step's gradients, one f32 tensor per parameter (ABSENT for buffers and tied ones); `None` if not shown.
    pub fn grads(&self) -> Option<&'a [abi::Tensor]> {
        self.grads_at(0)
    }
    /// The gradients of an OWN_GRAD group.
    pub fn group_grads(&self, group: &str) -> Option<&'a [abi::Tensor]> {
        let index = self.grad_sets().iter().skip(1).position(|g| {
            // SAFETY: R5, R6.
            unsafe { text(g.group) == group }
        })?;
        self.grads_at(index + 1)
    }
    fn grad_sets(&self) -> &'a [abi::Grads] {
        // SAFETY: as above.
        unsafe { raw_slice(self.raw.grads, self.raw.num_grads) }
    }
    fn grads_at(&self, i: usize) -> Option<&'a [abi::Tensor]> {
        let set = self.grad_sets().get(i)?;
        // SAFETY: one gradient per parameter (limbeck.h, lmb_grads).
        Some(unsafe { raw_slice(set.grads, self.raw.num_params) })
    }
    /// The gradient of parameter `i`, writable at PENALTY and PROJECT.
    ///
    /// # Errors
    /// An unknown element type.
    pub fn grad_mut(&mut self, i: usize) -> Result<Option<GradView<'a>>> {
        match self.grads().and_then(|grads| grads.get(i)) {
            // SAFETY: a host buffer lent for the event; `&mut self` keeps safe code from holding two at once.
            Some(tensor) => unsafe { GradView::from_abi(tensor) },
            None => Ok(None),
        }
    }
    /// Metrics of a step or an evaluation that are numbers.
    pub fn metrics(&self) -> Vec<(&'a str, f64)> {
        // SAFETY: as above.
        let kvs = unsafe { raw_slice(self.raw.metrics, self.raw.num_metrics) };
        let number = |v: &abi::Value| match v.kind {
            // SAFETY: the kind names the member.
            abi::VALUE_F64 => Some(unsafe { v.u.f }),
            // SAFETY: the kind names the member.
            abi::VALUE_I64 | abi::VALUE_BOOL => Some(unsafe { v.u.i } as f64),
            _ => None,
        };
        // SAFETY: R5, R6.
        kvs.iter().filter_map(|kv| Some((unsafe { text(kv.key) }, number(&kv.value)?))).collect()
    }
    /// The struct of the contract.
    pub fn abi(&self) -> &'a abi::Event {
        self.raw
    }
}
