//! Scripted events for a scheduler under test, and the requests that it files.
//!
//! The requests object refuses what the event does not allow, as the host does.

use super::{MockInstance, Slot, context, error_set};
use crate::views::{raw_slice, text};
use crate::{Column, Error, Result, View};
use limbeck_abi as abi;
use std::ffi::c_void;

/// A request, copied.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A knob, as text.
    Set(String, String),
    /// Rows: mode, name, epochs, columns.
    Rows(i32, String, u32, Vec<Column>),
    /// A probe: name, model, term, columns, max_rows, batch_rows.
    Probe(String, String, String, Vec<Column>, u64, u64),
    /// A snapshot and its decay.
    Snapshot(String, f64),
    /// A restore.
    Restore(String),
    /// A value of an output port.
    Provide(Column),
}

/// A declared term.
#[derive(Clone, Debug, PartialEq)]
pub struct MockTerm {
    /// Name.
    pub name: String,
    /// Loss plugin.
    pub loss: String,
    /// Settings.
    pub config: String,
    /// Row group.
    pub rows: String,
    /// Port to source.
    pub inputs: Vec<(String, String)>,
    /// Weight.
    pub weight: f64,
}

/// What a scheduler declared.
#[derive(Clone, Debug, PartialEq)]
pub struct MockSchedule {
    /// `EVENT_*` mask.
    pub events: u64,
    /// `CLAIM_*` mask.
    pub claims: u64,
    /// Name, max_rows, flags.
    pub groups: Vec<(String, u64, u64)>,
    /// Terms.
    pub terms: Vec<MockTerm>,
    /// Snapshots.
    pub snapshots: Vec<String>,
    /// JSON for the run's record.
    pub definition: String,
}

/// Gradients of one row group: `None` is ABSENT.
pub type MockGrads = (String, Vec<Option<Column>>);

/// An event to show.
#[derive(Clone, Debug, Default)]
pub struct MockEvent {
    /// One `EVENT_*` bit.
    pub kind: u64,
    /// Optimizer step.
    pub step: u64,
    /// Key of the call.
    pub rng_key: [u64; 2],
    /// Task name and index; number of tasks.
    pub task: (String, u64, u64),
    /// Pass over the task's rows.
    pub epoch: u64,
    /// `""`: ordinary training.
    pub phase: String,
    /// `""`: the fresh rows.
    pub group: String,
    /// Named views.
    pub tensors: Vec<Column>,
    /// The student's parameters; names are the columns'.
    pub params: Vec<Column>,
    /// Gradient sets; written in place by PENALTY and PROJECT.
    pub grads: Vec<MockGrads>,
    /// Metrics.
    pub metrics: Vec<(String, f64)>,
}

impl MockEvent {
    /// An event of a kind at a step, with a key made of both.
    pub fn new(kind: u64, step: u64) -> Self {
        let rng_key = [step.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 5, kind];
        Self { kind, step, rng_key, ..Self::default() }
    }
    /// Of a task.
    #[must_use]
    pub fn task(mut self, name: &str, index: u64) -> Self {
        self.task = (name.to_owned(), index, 0);
        self
    }
    /// Shows a tensor.
    #[must_use]
    pub fn tensor(mut self, column: Column) -> Self {
        self.tensors.push(column);
        self
    }
    /// In an epoch.
    #[must_use]
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }
    /// Of a row group.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = group.to_owned();
        self
    }
    /// Of a pass or probe.
    #[must_use]
    pub fn phase(mut self, phase: &str) -> Self {
        self.phase = phase.to_owned();
        self
    }
}

impl MockInstance {
    /// What the scheduler declares.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn schedule(&self) -> Result<MockSchedule> {
        let table: &abi::Scheduler = self.interface(abi::SCHEDULER_ID)?;
        // SAFETY: all fields may be zero.
        let mut out: abi::Schedule = unsafe { std::mem::zeroed() };
        out.struct_size = abi::struct_size::<abi::Schedule>();
        let mut slot = Slot::default();
        // SAFETY: [main]; everything outlives the call.
        let status = unsafe { (table.plan)(self.plugin, &mut out, slot.as_abi()) };
        slot.outcome(status)?;
        // SAFETY: plugin memory until destroy; R6.
        Ok(unsafe {
            MockSchedule {
                events: out.events,
                claims: out.claims,
                groups: raw_slice(out.groups, out.num_groups)
                    .iter()
                    .map(|g| (text(g.name).to_owned(), g.max_rows, g.flags))
                    .collect(),
                terms: raw_slice(out.terms, out.num_terms).iter().map(|t| term(t)).collect(),
                snapshots: raw_slice(out.snapshots, out.num_snapshots)
                    .iter()
                    .map(|s| text(*s).to_owned())
                    .collect(),
                definition: text(out.definition).to_owned(),
            }
        })
    }

    /// Shows an event; gives the requests, which are dropped if the event fails.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn event(&self, event: &mut MockEvent) -> Result<Vec<Request>> {
        let table: &abi::Scheduler = self.interface(abi::SCHEDULER_ID)?;
        let ctx = context(self.host, event.step, event.rng_key);
        let tensors: Vec<abi::Tensor> = event.tensors.iter().map(Column::abi).collect();
        let params: Vec<abi::Param> = event.params.iter().map(param).collect();
        let writable = event.kind & (abi::EVENT_PENALTY | abi::EVENT_PROJECT) != 0;
        let flags = if writable { 0 } else { abi::TENSOR_READ_ONLY };
        let lists: Vec<Vec<abi::Tensor>> =
            event.grads.iter_mut().map(|(_, g)| grads(g, flags)).collect();
        let sets: Vec<abi::Grads> = event
            .grads
            .iter()
            .zip(&lists)
            .map(|((name, _), list)| abi::Grads {
                group: abi::Str::new(name),
                grads: list.as_ptr(),
            })
            .collect();
        let metrics: Vec<abi::Kv> = event
            .metrics
            .iter()
            .map(|(k, v)| abi::Kv { key: abi::Str::new(k), value: crate::Knob::F64(*v).abi() })
            .collect();
        let raw = abi::Event {
            struct_size: abi::struct_size::<abi::Event>(),
            kind: event.kind,
            ctx: &ctx,
            task: abi::Str::new(&event.task.0),
            task_index: event.task.1,
            num_tasks: event.task.2,
            epoch: event.epoch,
            phase: abi::Str::new(&event.phase),
            group: abi::Str::new(&event.group),
            tensors: tensors.as_ptr(),
            num_tensors: tensors.len() as u64,
            params: params.as_ptr(),
            num_params: params.len() as u64,
            grads: sets.as_ptr(),
            num_grads: sets.len() as u64,
            metrics: metrics.as_ptr(),
            num_metrics: metrics.len() as u64,
        };
        let mut filed = Filed { kind: event.kind, requests: Vec::new() };
        let requests = requests(&mut filed);
        let mut slot = Slot::default();
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe { (table.on_event)(self.plugin, &raw, &requests, slot.as_abi()) };
        slot.outcome(status)?;
        Ok(filed.requests)
    }
}

fn param(column: &Column) -> abi::Param {
    abi::Param {
        value: abi::Tensor { flags: abi::TENSOR_READ_ONLY, ..column.abi() },
        tied_to: abi::Str::EMPTY,
        init: abi::Str::EMPTY,
        flags: abi::PARAM_TRAINABLE,
        reserved: 0,
    }
}

fn grads(list: &mut [Option<Column>], flags: u64) -> Vec<abi::Tensor> {
    let tensor = |g: &mut Option<Column>| match g {
        Some(column) => abi::Tensor { flags, ..column.abi_mut() },
        None => super::model::tensors(&[None], 0)[0],
    };
    list.iter_mut().map(tensor).collect()
}

/// # Safety
/// R5, R6.
unsafe fn term(t: &abi::Term) -> MockTerm {
    // SAFETY: the caller's promise; inputs are text.
    unsafe {
        let inputs = raw_slice(t.inputs, t.num_inputs);
        MockTerm {
            name: text(t.name).to_owned(),
            loss: text(t.loss).to_owned(),
            config: text(t.config_json).to_owned(),
            rows: text(t.rows).to_owned(),
            inputs: inputs
                .iter()
                .map(|kv| (text(kv.key).to_owned(), text(kv.value.u.s).to_owned()))
                .collect(),
            weight: t.weight,
        }
    }
}

struct Filed {
    kind: u64,
    requests: Vec<Request>,
}

fn requests(filed: &mut Filed) -> abi::Requests {
    abi::Requests {
        struct_size: abi::struct_size::<abi::Requests>(),
        this: std::ptr::from_mut(filed).cast(),
        set,
        rows,
        probe,
        snapshot,
        restore,
        provide,
    }
}

/// Files `request` if the event is one of `allowed`.
///
/// # Safety
/// `this` is a [`Filed`], `error` a slot of the mock host.
unsafe fn file(
    this: *mut c_void,
    error: *mut abi::Error,
    allowed: u64,
    request: Result<Request>,
) -> abi::Status {
    // SAFETY: the caller's promise.
    let filed = unsafe { &mut *this.cast::<Filed>() };
    let request = match filed.kind & allowed {
        0 => Err(Error::invalid_state("this event does not allow the request")),
        _ => request,
    };
    match request {
        Ok(request) => {
            filed.requests.push(request);
            abi::STATUS_OK
        }
        Err(e) => {
            // SAFETY: the caller's promise.
            unsafe { error_set(error, e.status(), abi::Str::new(e.message())) };
            e.status()
        }
    }
}

/// # Safety
/// R5: `num` valid tensors.
unsafe fn columns(tensors: *const abi::Tensor, num: u64) -> Result<Vec<Column>> {
    let mut out = Vec::new();
    // SAFETY: the caller's promise.
    for tensor in unsafe { raw_slice(tensors, num) } {
        // SAFETY: the caller's promise.
        if let Some(view) = unsafe { View::from_abi(tensor) }? {
            out.push(Column::from_view(&view)?);
        }
    }
    let rows = |c: &Column| c.shape().first().copied();
    if out.windows(2).any(|w| rows(&w[0]) != rows(&w[1])) {
        return Err(Error::invalid_argument("columns of different length"));
    }
    Ok(out)
}

const ANY: u64 = u64::MAX;
/// Between steps, not in a probe or an evaluation batch.
const PROBING: u64 = abi::EVENT_TASK_BEGIN
    | abi::EVENT_STEP_END
    | abi::EVENT_TASK_END
    | abi::EVENT_PROBE_END
    | abi::EVENT_EVAL_BEGIN
    | abi::EVENT_EVAL_END;

unsafe extern "C" fn set(
    this: *mut c_void,
    key: abi::Str,
    value: *const abi::Value,
    error: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R5, R6; the kind names the member.
    unsafe {
        let value = &*value;
        let shown = match value.kind {
            abi::VALUE_F64 => format!("{}", value.u.f),
            abi::VALUE_STR => text(value.u.s).to_owned(),
            _ => format!("{}", value.u.i),
        };
        file(this, error, ANY, Ok(Request::Set(text(key).to_owned(), shown)))
    }
}

unsafe extern "C" fn rows(
    this: *mut c_void,
    raw: *const abi::Rows,
    error: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R5, R6.
    unsafe {
        let raw = &*raw;
        let allowed = match raw.mode {
            abi::ROWS_STEP => abi::EVENT_STEP_BEGIN,
            abi::ROWS_UNION => abi::EVENT_TASK_BEGIN,
            _ => abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END,
        };
        let columns = columns(raw.columns, raw.num_columns);
        let request =
            columns.map(|c| Request::Rows(raw.mode, text(raw.name).to_owned(), raw.epochs, c));
        file(this, error, allowed, request)
    }
}

unsafe extern "C" fn probe(
    this: *mut c_void,
    raw: *const abi::Probe,
    error: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R5, R6.
    unsafe {
        let raw = &*raw;
        let name = |s: abi::Str| text(s).to_owned();
        let request = columns(raw.columns, raw.num_columns).map(|c| {
            let (max, batch) = (raw.max_rows, raw.batch_rows);
            Request::Probe(name(raw.name), name(raw.model), name(raw.term), c, max, batch)
        });
        file(this, error, PROBING, request)
    }
}

unsafe extern "C" fn snapshot(
    this: *mut c_void,
    name: abi::Str,
    decay: f64,
    error: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R6.
    unsafe { file(this, error, PROBING, Ok(Request::Snapshot(text(name).to_owned(), decay))) }
}

unsafe extern "C" fn restore(
    this: *mut c_void,
    name: abi::Str,
    error: *mut abi::Error,
) -> abi::Status {
    let allowed = abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END | abi::EVENT_PROBE_END;
    // SAFETY: R6.
    unsafe { file(this, error, allowed, Ok(Request::Restore(text(name).to_owned()))) }
}

unsafe extern "C" fn provide(
    this: *mut c_void,
    value: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R5.
    unsafe {
        let request = match columns(value, 1) {
            Ok(mut columns) if columns.len() == 1 => Ok(Request::Provide(columns.remove(0))),
            Ok(_) => Err(Error::invalid_argument("an absent value")),
            Err(e) => Err(e),
        };
        file(this, error, ANY, request)
    }
}
