//! What a scheduler asks for.
//!
//! Requests are checked at once, copied by the host, and carried out after the event.

use crate::{Column, Error, Host, Result};
use limbeck_abi as abi;

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
