//! Schedulers: they watch a stream of tasks and steer the training of one student by filing requests.
//!
//! A scheduler runs no model. What it needs it declares in [`Schedule`], so that the run is wired before it starts.

use crate::views::{Column, GradView, View, Views, raw_slice, text};
use crate::{Context, Error, Host, Ports, Random, Result, Settings};
use limbeck_abi as abi;
use std::io::{Read, Write};

/// A scheduler plugin. Exported by `limbeck_sdk::export! { scheduler MyScheduler }`.
pub trait Scheduler: Send + Sized + 'static {
    /// Plugin id.
    const ID: &'static str;
    /// One line for `limbeck plugin list`.
    const SUMMARY: &'static str = "";
    /// `scenario.class`, `scenario.domain`, `scenario.task`, `scenario.online`, `deterministic`.
    const FEATURES: &'static [&'static str] = &["deterministic"];
    /// `limbeck_abi::DL_*` device types of the student it can steer.
    const DEVICES: &'static [i32] = &[abi::DL_CPU];
    /// Offers `save` and `load`.
    const STATE: bool = false;
    /// Settings: what stands under `with`.
    type Config: Settings;

    /// \[main\] Cheap. Refuse settings with [`Error::config`].
    ///
    /// # Errors
    /// Settings out of range.
    fn new(config: Self::Config, host: &Host) -> Result<Self>;
    /// What it wants to see (inputs) and supplies (outputs).
    fn ports(&self) -> Ports;
    /// \[main\] Pure: events, row groups, terms, snapshots, claims.
    ///
    /// # Errors
    /// None that a correct scheduler has.
    fn plan(&self) -> Result<Schedule>;
    /// \[step\] Gets what is slow or large.
    ///
    /// # Errors
    /// The host may try again.
    fn activate(&mut self, _activation: &crate::Activation<'_>) -> Result<()> {
        Ok(())
    }
    /// \[step\] Releases all that `activate` and events got; what stays is in the state.
    fn deactivate(&mut self) {}
    /// \[step\] One event. Requests are carried out, in order, after it returned `Ok`; dropped otherwise.
    ///
    /// # Errors
    /// The stage fails.
    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()>;
    /// \[step\] Writes buffers, vectors, counters: all that is needed to go on bit for bit.
    ///
    /// # Errors
    /// What the writer says.
    fn save(&mut self, _context: &Context<'_>, _to: &mut dyn Write) -> Result<()> {
        Err(Error::unsupported("this scheduler has no state"))
    }
    /// \[step\] Reads it.
    ///
    /// # Errors
    /// Malformed bytes.
    fn load(&mut self, _context: &Context<'_>, _from: &mut dyn Read) -> Result<()> {
        Err(Error::unsupported("this scheduler has no state"))
    }
}

/// A row group: rows that join a step beside the fresh ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    name: String,
    max_rows: u64,
    flags: u64,
}

impl Group {
    /// A group whose rows only the scheduler's own terms count; `max_rows` bounds one step.
    pub fn new(name: impl Into<String>, max_rows: u64) -> Self {
        Self { name: name.into(), max_rows, flags: 0 }
    }
    /// The pipeline's own terms count these rows too.
    #[must_use]
    pub fn join(mut self) -> Self {
        self.flags |= abi::GROUP_JOIN;
        self
    }
    /// Forwarded apart, for the sake of batch statistics.
    #[must_use]
    pub fn own_pass(mut self) -> Self {
        self.flags |= abi::GROUP_OWN_PASS;
        self
    }
    /// Own normalizer and gradient, shown at BACKWARD.
    #[must_use]
    pub fn own_grad(mut self) -> Self {
        self.flags |= abi::GROUP_OWN_GRAD;
        self
    }
}

/// A loss that the host adds to the objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    name: String,
    loss: String,
    config: String,
    rows: String,
    inputs: Vec<(String, String)>,
    weight: f64,
}

impl Term {
    /// A term of weight 1 on the fresh rows, with the loss's default settings and sources.
    pub fn new(name: impl Into<String>, loss: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            loss: loss.into(),
            config: "{}".into(),
            rows: String::new(),
            inputs: Vec::new(),
            weight: 1.0,
        }
    }
    /// Settings of the loss.
    #[must_use]
    pub fn config(mut self, config: &serde_json::Value) -> Self {
        self.config = config.to_string();
        self
    }
    /// Row group; `"*"` is all rows of the pass.
    #[must_use]
    pub fn rows(mut self, group: impl Into<String>) -> Self {
        self.rows = group.into();
        self
    }
    /// Binds a port of the loss: a batch column, `student.logits`, `<snapshot>.logits`, `self.<own output port>`.
    #[must_use]
    pub fn input(mut self, port: impl Into<String>, source: impl Into<String>) -> Self {
        self.inputs.push((port.into(), source.into()));
        self
    }
    /// Initial weight; while 0 the term is not computed.
    #[must_use]
    pub fn weight(mut self, weight: f64) -> Self {
        self.weight = weight;
        self
    }
}

/// What a scheduler declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    events: u64,
    claims: u64,
    groups: Vec<Group>,
    terms: Vec<Term>,
    snapshots: Vec<String>,
}

impl Schedule {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Wants to see these events (`limbeck_abi::EVENT_*`, or'ed).
    #[must_use]
    pub fn events(mut self, mask: u64) -> Self {
        self.events |= mask;
        self
    }
    /// Claims (`limbeck_abi::CLAIM_*`, or'ed); each has one owner in a stage.
    #[must_use]
    pub fn claims(mut self, mask: u64) -> Self {
        self.claims |= mask;
        self
    }
    /// Adds a row group.
    #[must_use]
    pub fn group(mut self, group: Group) -> Self {
        self.groups.push(group);
        self
    }
    /// Adds a term.
    #[must_use]
    pub fn term(mut self, term: Term) -> Self {
        self.terms.push(term);
        self
    }
    /// Adds a frozen student that this scheduler takes.
    #[must_use]
    pub fn snapshot(mut self, name: impl Into<String>) -> Self {
        self.snapshots.push(name.into());
        self
    }
}

/// [`Schedule`] with the arrays of the contract, at fixed addresses.
pub(crate) struct ScheduleTable {
    _schedule: Box<Schedule>,
    _inputs: Vec<Box<[abi::Kv]>>,
    events: u64,
    claims: u64,
    groups: Box<[abi::Group]>,
    terms: Box<[abi::Term]>,
    snapshots: Box<[abi::Str]>,
}

// SAFETY: plain owned data; the pointers lead into the table itself.
unsafe impl Send for ScheduleTable {}

impl ScheduleTable {
    pub(crate) fn new(schedule: Schedule) -> Self {
        let schedule = Box::new(schedule);
        let groups = schedule.groups.iter().map(|g| abi::Group {
            name: abi::Str::new(&g.name),
            max_rows: g.max_rows,
            flags: g.flags,
            reserved: 0,
        });
        let groups = groups.collect();
        let inputs: Vec<Box<[abi::Kv]>> = schedule
            .terms
            .iter()
            .map(|t| t.inputs.iter().map(|(k, v)| kv_str(k, v)).collect())
            .collect();
        let terms = schedule.terms.iter().zip(&inputs).map(|(t, inputs)| abi::Term {
            name: abi::Str::new(&t.name),
            loss: abi::Str::new(&t.loss),
            config_json: abi::Str::new(&t.config),
            rows: abi::Str::new(&t.rows),
            inputs: inputs.as_ptr(),
            num_inputs: inputs.len() as u64,
            weight: t.weight,
            reserved: 0,
        });
        let terms = terms.collect();
        let snapshots = schedule.snapshots.iter().map(|s| abi::Str::new(s)).collect();
        let (events, claims) = (schedule.events, schedule.claims);
        Self { _schedule: schedule, _inputs: inputs, events, claims, groups, terms, snapshots }
    }

    /// Fills what the host may read; fields that the host's version lacks are left alone (R3).
    ///
    /// # Safety
    /// `out` is the host's struct, writable.
    pub(crate) unsafe fn fill(&self, out: *mut abi::Schedule) -> Result<()> {
        if out.is_null() || !abi::has!(out, abi::Schedule, num_snapshots) {
            return Err(Error::invalid_argument("the schedule to fill is too small"));
        }
        // SAFETY: the caller's promise; the size was checked.
        let out = unsafe { &mut *out };
        out.events = self.events;
        out.claims = self.claims;
        out.groups = self.groups.as_ptr();
        out.num_groups = self.groups.len() as u64;
        out.terms = self.terms.as_ptr();
        out.num_terms = self.terms.len() as u64;
        out.snapshots = self.snapshots.as_ptr();
        out.num_snapshots = self.snapshots.len() as u64;
        Ok(())
    }
}

fn kv_str(key: &str, value: &str) -> abi::Kv {
    abi::Kv { key: abi::Str::new(key), value: Knob::Str(value).abi() }
}

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

/// Value of a knob.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Knob<'a> {
    /// Boolean.
    Bool(bool),
    /// Integer.
    I64(i64),
    /// Float.
    F64(f64),
    /// Text.
    Str(&'a str),
}

impl Knob<'_> {
    /// The struct of the contract; text stays borrowed.
    pub fn abi(&self) -> abi::Value {
        let (kind, u) = match self {
            Self::Bool(b) => (abi::VALUE_BOOL, abi::ValueData { i: i64::from(*b) }),
            Self::I64(i) => (abi::VALUE_I64, abi::ValueData { i: *i }),
            Self::F64(f) => (abi::VALUE_F64, abi::ValueData { f: *f }),
            Self::Str(s) => (abi::VALUE_STR, abi::ValueData { s: abi::Str::new(s) }),
        };
        abi::Value { kind, reserved: 0, u }
    }
}
impl From<bool> for Knob<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<f64> for Knob<'_> {
    fn from(value: f64) -> Self {
        Self::F64(value)
    }
}
impl From<i64> for Knob<'_> {
    fn from(value: i64) -> Self {
        Self::I64(value)
    }
}
impl<'a> From<&'a str> for Knob<'a> {
    fn from(value: &'a str) -> Self {
        Self::Str(value)
    }
}

/// An extra look at some rows: changes no parameter, no statistics, no later draw.
#[derive(Clone, Debug, Default)]
pub struct Probe<'a> {
    /// Phase of its events.
    pub name: &'a str,
    /// `student`, a teacher stage or a snapshot.
    pub model: &'a str,
    /// Gradient of a declared term, `*` of the pipeline's terms; `""` = forward only.
    pub term: &'a str,
    /// Columns as in [`Requests::rows_step`]; none = this task's training rows.
    pub columns: &'a [Column],
    /// 0 = all, else a random subset.
    pub max_rows: u64,
    /// 0 = the stage's batch; 1 = gradients per example.
    pub batch_rows: u64,
}

/// Where a scheduler files what it wants done. Arguments are checked at once and copied.
pub struct Requests<'a> {
    raw: &'a abi::Requests,
    host: Host,
}

impl<'a> Requests<'a> {
    /// # Safety
    /// R5: `raw` lives for `'a`.
    pub(crate) unsafe fn from_abi(raw: *const abi::Requests, host: Host) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the requests are NULL"));
        }
        // SAFETY: the caller's promise.
        Ok(Self { raw: unsafe { &*raw }, host })
    }

    fn call(&self, what: &str, f: impl FnOnce(*mut abi::Error) -> abi::Status) -> Result<()> {
        self.host.call(|_, error| f(error)).map_err(|e| e.context(what))
    }

    /// A knob, kept until set again (`lr`, `lr/<glob>`, `weight/<term>`, `freeze/<glob>`), or done once
    /// (`optimizer.reset`, `step.skip`, `eval`, `checkpoint`, `task.end`, `stop`).
    ///
    /// # Errors
    /// A knob that is unknown or not allowed in this event.
    pub fn set<'k>(&self, key: &str, value: impl Into<Knob<'k>>) -> Result<()> {
        let value = value.into().abi();
        self.call(key, |error| {
            // SAFETY: [step], inside on_event; arguments outlive the call.
            unsafe { (self.raw.set)(self.raw.this, abi::Str::new(key), &value, error) }
        })
    }

    /// From STEP_BEGIN: these rows join the step as row group `group`. A column `row_ids` makes the host read the rows
    /// again; otherwise every batch column is needed. More columns are own output ports of the group.
    ///
    /// # Errors
    /// Columns that do not fit, or the wrong event.
    pub fn rows_step(&self, group: &str, columns: &[Column]) -> Result<()> {
        self.rows(abi::ROWS_STEP, 0, group, columns)
    }
    /// From TASK_BEGIN: mix these rows into the task's training rows.
    ///
    /// # Errors
    /// As [`Requests::rows_step`]; needs `CLAIM_DATA`.
    pub fn rows_union(&self, columns: &[Column]) -> Result<()> {
        self.rows(abi::ROWS_UNION, 0, "", columns)
    }
    /// From TASK_BEGIN or TASK_END: train `epochs` epochs on exactly these rows, as phase `phase`.
    ///
    /// # Errors
    /// As [`Requests::rows_step`]; needs `CLAIM_DATA`.
    pub fn rows_pass(&self, phase: &str, epochs: u32, columns: &[Column]) -> Result<()> {
        self.rows(abi::ROWS_PASS, epochs, phase, columns)
    }
    fn rows(&self, mode: i32, epochs: u32, name: &str, columns: &[Column]) -> Result<()> {
        let tensors: Vec<abi::Tensor> = columns.iter().map(Column::abi).collect();
        let rows = abi::Rows {
            struct_size: abi::struct_size::<abi::Rows>(),
            mode,
            epochs,
            name: abi::Str::new(name),
            columns: tensors.as_ptr(),
            num_columns: tensors.len() as u64,
        };
        self.call("rows", |error| {
            // SAFETY: as `set`.
            unsafe { (self.raw.rows)(self.raw.this, &rows, error) }
        })
    }

    /// Files a probe. Not between STEP_BEGIN and STEP_END, not from PROBE or EVAL_BATCH.
    ///
    /// # Errors
    /// The wrong event, an unknown model or term.
    pub fn probe(&self, probe: &Probe<'_>) -> Result<()> {
        let tensors: Vec<abi::Tensor> = probe.columns.iter().map(Column::abi).collect();
        let raw = abi::Probe {
            struct_size: abi::struct_size::<abi::Probe>(),
            name: abi::Str::new(probe.name),
            model: abi::Str::new(probe.model),
            term: abi::Str::new(probe.term),
            columns: tensors.as_ptr(),
            num_columns: tensors.len() as u64,
            max_rows: probe.max_rows,
            batch_rows: probe.batch_rows,
        };
        self.call("probe", |error| {
            // SAFETY: as `set`.
            unsafe { (self.raw.probe)(self.raw.this, &raw, error) }
        })
    }

    /// Frozen student `name` = `decay * itself + (1 - decay) * student`; 0 copies.
    ///
    /// # Errors
    /// The wrong event, or an undeclared name.
    pub fn snapshot(&self, name: &str, decay: f64) -> Result<()> {
        self.call("snapshot", |error| {
            // SAFETY: as `set`.
            unsafe { (self.raw.snapshot)(self.raw.this, abi::Str::new(name), decay, error) }
        })
    }
    /// Student = snapshot; optimizer state is cleared. From TASK_BEGIN, TASK_END, PROBE_END.
    ///
    /// # Errors
    /// The wrong event, or an undeclared name; needs `CLAIM_STUDENT`.
    pub fn restore(&self, name: &str) -> Result<()> {
        self.call("restore", |error| {
            // SAFETY: as `set`.
            unsafe { (self.raw.restore)(self.raw.this, abi::Str::new(name), error) }
        })
    }
    /// Value of an own output port without row group.
    ///
    /// # Errors
    /// An undeclared port, or sizes that do not fit.
    pub fn provide(&self, value: &Column) -> Result<()> {
        let tensor = value.abi();
        self.call("provide", |error| {
            // SAFETY: as `set`.
            unsafe { (self.raw.provide)(self.raw.this, &tensor, error) }
        })
    }
}
