//! Schedulers: they watch a stream of tasks and steer the training of one student by filing requests.
//!
//! A scheduler runs no model. What it needs it declares in [`Schedule`], so that the run is wired before it starts.

mod event;
mod request;

pub use event::Event;
pub use request::{Knob, Probe, Requests};

use crate::{Context, Error, Host, Ports, Result, Settings};
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
    /// `limbeck_abi::DL_*` device types of the student it can steer. The tensors of an event lie in CPU memory, parameters
    /// and gradients where the student is: `limbeck_sdk::vector` computes with those on any device.
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
    /// For the run's record, a JSON object: whose gradients importance is taken of and by what it is normalised, the factors
    /// of a penalty, what a buffer keeps and when. A strength means nothing without it.
    fn definition(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
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
    definition: Box<str>,
}

// SAFETY: plain owned data; the pointers lead into the table itself.
unsafe impl Send for ScheduleTable {}

impl ScheduleTable {
    pub(crate) fn new(schedule: Schedule, definition: &serde_json::Value) -> Self {
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
        let definition = if definition.is_null() { String::new() } else { definition.to_string() };
        let definition = definition.into_boxed_str();
        let (_schedule, _inputs) = (schedule, inputs);
        Self { _schedule, _inputs, events, claims, groups, terms, snapshots, definition }
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
        unsafe {
            (*out).events = self.events;
            (*out).claims = self.claims;
            (*out).groups = self.groups.as_ptr();
            (*out).num_groups = self.groups.len() as u64;
            (*out).terms = self.terms.as_ptr();
            (*out).num_terms = self.terms.len() as u64;
            (*out).snapshots = self.snapshots.as_ptr();
            (*out).num_snapshots = self.snapshots.len() as u64;
            if abi::has!(out, abi::Schedule, definition) {
                (*out).definition = abi::Str::new(&self.definition);
            }
        }
        Ok(())
    }
}

fn kv_str(key: &str, value: &str) -> abi::Kv {
    abi::Kv { key: abi::Str::new(key), value: Knob::Str(value).abi() }
}
