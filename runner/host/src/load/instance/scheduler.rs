//! Calls of a scheduler: what it declares, and events.
//!
//! Views of parameters and gradients are READ_ONLY except where the header lets a scheduler write.

use super::core::context;
use super::requests::{Collector, table};
use super::{
    CallCtx, Event, Group, Instance, Param, PluginError, Port, Request, Schedule, SchedulerTerm,
};
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::borrow::Cow;

/// A tensor of an event; `None`: absent.
type Shown = (String, Option<Tensor>);

/// More groups, terms or snapshots than any real scheduler declares.
const MAX_ENTRIES: u64 = 1024;

impl Instance {
    fn scheduler(&self, call: &'static str) -> Result<&abi::Scheduler, PluginError> {
        match self.tables.scheduler {
            // SAFETY: the table lives until `destroy`; checked in `Tables::ask`.
            Some(table) => Ok(unsafe { &*table }),
            None => Err(self.core.error(call, abi::STATUS_UNSUPPORTED, "no lmb.scheduler/1")),
        }
    }

    /// What a scheduler declares.
    ///
    /// # Errors
    /// What the plugin said, or how the lists break the contract.
    pub fn schedule(&mut self) -> Result<Schedule, PluginError> {
        let plan = self.scheduler("plan")?.plan;
        let mut raw = abi::Schedule {
            struct_size: abi::struct_size::<abi::Schedule>(),
            events: 0,
            claims: 0,
            groups: std::ptr::null(),
            num_groups: 0,
            terms: std::ptr::null(),
            num_terms: 0,
            snapshots: std::ptr::null(),
            num_snapshots: 0,
            definition: abi::Str::EMPTY,
        };
        // SAFETY: [main]; the place for the result is alive during the call.
        self.core.call("plan", 0, |p, e| unsafe { plan(p, &mut raw, e) })?;
        // SAFETY: what `plan` filled is plugin memory until `destroy`.
        let schedule =
            unsafe { copy_schedule(&raw) }.map_err(|text| self.core.broke("plan", text))?;
        check(&schedule).map_err(|text| self.core.broke("plan", text))?;
        Ok(schedule)
    }

    /// Shows an event; gives the requests that were filed, in order, checked against `allow`.
    ///
    /// # Errors
    /// What the plugin said; its requests are dropped then.
    pub fn on_event(
        &mut self,
        ctx: CallCtx,
        event: &Event<'_>,
        allow: &dyn Fn(&Request) -> Result<(), String>,
    ) -> Result<Vec<Request>, PluginError> {
        self.core.need_active("on_event")?;
        let on_event = self.scheduler("on_event")?.on_event;
        let ctx = context(ctx, self.device);
        let tensors = self.shown(event)?;
        let event = &Event { tensors: &tensors, ..*event };
        let (result, filed) = with_event(&ctx, event, allow, |raw, requests| {
            // SAFETY: [step], active; every list and the request object live during the call.
            self.core.call("on_event", ctx.step, |p, e| unsafe { on_event(p, raw, requests, e) })
        });
        result.map(|()| filed)
    }

    /// The tensors of an event in the memory that their ports want; columns without a port of their own stay on the CPU.
    fn shown<'a>(&self, event: &Event<'a>) -> Result<Cow<'a, [Shown]>, PluginError> {
        let cpu = abi::DLDevice::CPU;
        if self.device == cpu {
            return Ok(Cow::Borrowed(event.tensors));
        }
        let one = |(name, tensor): &Shown| {
            let port = self.inputs().find(|p| p.name == *name);
            let place = if port.is_none_or(Port::is_host_memory) { cpu } else { self.device };
            let brought = tensor.as_ref().map(|t| t.brought_to(place)).transpose();
            let brought = brought.map_err(|e| {
                self.core.error("on_event", e.status, format!("`{name}`: {}", e.message))
            })?;
            Ok((name.clone(), brought))
        };
        event.tensors.iter().map(one).collect::<Result<_, _>>().map(Cow::Owned)
    }
}

/// Calls `f` with an event and a requests object as the contract has them; gives what `f` gave and what was filed.
pub(crate) fn with_event<T>(
    ctx: &abi::Ctx,
    event: &Event<'_>,
    allow: &dyn Fn(&Request) -> Result<(), String>,
    f: impl FnOnce(&abi::Event, &abi::Requests) -> T,
) -> (T, Vec<Request>) {
    let tensors: Vec<abi::Tensor> =
        event.tensors.iter().map(|(name, t)| tensor_view(name, t.as_ref())).collect();
    let params: Vec<abi::Param> =
        event.params.iter().map(|p| param_view(p, event.params_writable)).collect();
    let writes_grads = event.kind & (abi::EVENT_PENALTY | abi::EVENT_PROJECT) != 0;
    let grads: Vec<Vec<abi::Tensor>> = event
        .grads
        .iter()
        .enumerate()
        .map(|(i, (_, list))| grad_views(event.params, list, writes_grads && i == 0))
        .collect();
    let groups: Vec<abi::Grads> = event
        .grads
        .iter()
        .zip(&grads)
        .map(|((name, _), list)| abi::Grads { group: abi::Str::new(name), grads: list.as_ptr() })
        .collect();
    let metrics: Vec<abi::Kv> =
        event.metrics.iter().map(|(name, value)| number(name, *value)).collect();
    let raw = abi::Event {
        struct_size: abi::struct_size::<abi::Event>(),
        kind: event.kind,
        ctx,
        task: abi::Str::new(event.task),
        task_index: event.task_index,
        num_tasks: event.num_tasks,
        epoch: event.epoch,
        phase: abi::Str::new(event.phase),
        group: abi::Str::new(event.group),
        tensors: tensors.as_ptr(),
        num_tensors: tensors.len() as u64,
        params: params.as_ptr(),
        num_params: params.len() as u64,
        grads: groups.as_ptr(),
        num_grads: groups.len() as u64,
        metrics: metrics.as_ptr(),
        num_metrics: metrics.len() as u64,
    };
    let mut collector = Collector::new(allow);
    let requests = table(&mut collector);
    let result = f(&raw, &requests);
    (result, collector.into_filed())
}

fn tensor_view(name: &str, tensor: Option<&Tensor>) -> abi::Tensor {
    tensor.map_or_else(|| crate::tensor::absent(name), |t| t.view(name, abi::TENSOR_READ_ONLY))
}

fn param_view(param: &Param, writable: bool) -> abi::Param {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    abi::Param {
        value: param.value.view(&param.name, bit(!writable, abi::TENSOR_READ_ONLY)),
        tied_to: abi::Str::new(param.tied_to.as_deref().unwrap_or_default()),
        init: abi::Str::EMPTY,
        flags: bit(param.trainable, abi::PARAM_TRAINABLE)
            | bit(param.no_decay, abi::PARAM_NO_DECAY),
        reserved: 0,
    }
}

fn grad_views(params: &[Param], grads: &[Tensor], writable: bool) -> Vec<abi::Tensor> {
    let flags = if writable { 0 } else { abi::TENSOR_READ_ONLY };
    let names = params.iter().map(|p| p.name.as_str()).chain(std::iter::repeat(""));
    names.zip(grads).map(|(name, g)| g.view(name, flags)).collect()
}

fn number(name: &str, value: f64) -> abi::Kv {
    let value = abi::Value { kind: abi::VALUE_F64, reserved: 0, u: abi::ValueData { f: value } };
    abi::Kv { key: abi::Str::new(name), value }
}

/// # Safety
/// `list` is NULL or has `count` entries.
unsafe fn entries<'a, T>(what: &str, list: *const T, count: u64) -> Result<&'a [T], String> {
    match count {
        0 => Ok(&[]),
        _ if list.is_null() || count > MAX_ENTRIES => Err(format!("{count} {what} at {list:?}")),
        // SAFETY: the caller's promise.
        _ => Ok(unsafe { std::slice::from_raw_parts(list, count as usize) }),
    }
}

/// # Safety
/// R6.
unsafe fn text(what: &str, s: abi::Str) -> Result<String, String> {
    // SAFETY: the caller's promise.
    unsafe { s.text() }.map(str::to_owned).ok_or_else(|| format!("{what} is not UTF-8"))
}

/// # Safety
/// Filled by a successful `plan` of a live instance.
pub(crate) unsafe fn copy_schedule(raw: &abi::Schedule) -> Result<Schedule, String> {
    let mut schedule = Schedule { events: raw.events, claims: raw.claims, ..Schedule::default() };
    // SAFETY: the caller's promise.
    for group in unsafe { entries("groups", raw.groups, raw.num_groups) }? {
        // SAFETY: R6.
        let name = unsafe { text("a group's name", group.name) }?;
        schedule.groups.push(Group { name, max_rows: group.max_rows, flags: group.flags });
    }
    // SAFETY: the caller's promise.
    for term in unsafe { entries("terms", raw.terms, raw.num_terms) }? {
        // SAFETY: as above.
        schedule.terms.push(unsafe { copy_term(term) }?);
    }
    // SAFETY: the caller's promise.
    for name in unsafe { entries("snapshots", raw.snapshots, raw.num_snapshots) }? {
        // SAFETY: R6.
        schedule.snapshots.push(unsafe { text("a snapshot's name", *name) }?);
    }
    // SAFETY: R6.
    let definition = unsafe { text("the definition", raw.definition) }?;
    if !definition.is_empty() {
        schedule.definition = serde_json::from_str(&definition)
            .map_err(|e| format!("the definition is no JSON: {e}"))?;
    }
    Ok(schedule)
}

/// # Safety
/// A term of a live scheduler.
unsafe fn copy_term(term: &abi::Term) -> Result<SchedulerTerm, String> {
    // SAFETY: R6.
    let (name, loss) =
        unsafe { (text("a term's name", term.name)?, text("a term's loss", term.loss)?) };
    // SAFETY: R6.
    let (config, rows) = unsafe {
        (text("a term's settings", term.config_json)?, text("a term's rows", term.rows)?)
    };
    let config = match config.trim() {
        "" => serde_json::Value::Object(serde_json::Map::new()),
        json => serde_json::from_str(json)
            .map_err(|e| format!("term `{name}`: settings are not JSON: {e}"))?,
    };
    let mut inputs = Vec::new();
    // SAFETY: the caller's promise.
    for kv in unsafe { entries("inputs of a term", term.inputs, term.num_inputs) }? {
        if kv.value.kind != abi::VALUE_STR {
            return Err(format!("term `{name}`: an input's source is not a string"));
        }
        // SAFETY: R6; `kind` says that the string was written.
        inputs.push(unsafe { (text("an input port", kv.key)?, text("a source", kv.value.u.s)?) });
    }
    Ok(SchedulerTerm { name, loss, config, rows, inputs, weight: term.weight })
}

fn check(schedule: &Schedule) -> Result<(), String> {
    let names = |what: &str, names: Vec<&str>| {
        let mut seen = std::collections::BTreeSet::new();
        match names.into_iter().find(|n| n.is_empty() || !seen.insert(*n)) {
            Some(name) => Err(format!("{what} `{name}` is empty or twice")),
            None => Ok(()),
        }
    };
    names("group", schedule.groups.iter().map(|g| g.name.as_str()).collect())?;
    names("term", schedule.terms.iter().map(|t| t.name.as_str()).collect())?;
    names("snapshot", schedule.snapshots.iter().map(String::as_str).collect())?;
    if schedule
        .snapshots
        .iter()
        .any(|s| s == "init" || s == "student" || s == "teacher" || s == "self")
    {
        return Err("a snapshot has a reserved name".into());
    }
    for term in &schedule.terms {
        let known = term.rows.is_empty()
            || term.rows == "*"
            || schedule.groups.iter().any(|g| g.name == term.rows);
        if !known {
            return Err(format!(
                "term `{}` sees row group `{}`, which is not declared",
                term.name, term.rows
            ));
        }
        if !term.weight.is_finite() {
            return Err(format!("term `{}` has weight {}", term.name, term.weight));
        }
    }
    Ok(())
}
