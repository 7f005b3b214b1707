//! `lmb_requests`: what a scheduler files during one event, checked at once and copied.
//!
//! Lives for one `on_event`. Refuses unknown knobs, malformed tensors and what the caller's `allow` forbids now.

use super::super::services::{copy_strided, report};
use super::{Knob, Request};
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Knobs without a name of their own after a `/`.
const KNOBS: [&str; 7] =
    ["lr", "optimizer.reset", "step.skip", "eval", "checkpoint", "task.end", "stop"];
/// Knobs followed by a parameter glob or a term name.
const PREFIXES: [&str; 3] = ["lr/", "weight/", "freeze/"];

pub(super) struct Collector<'a> {
    allow: &'a dyn Fn(&Request) -> Result<(), String>,
    filed: Vec<Request>,
}

type Refusal = (abi::Status, String);

fn invalid(text: impl Into<String>) -> Refusal {
    (abi::STATUS_INVALID_ARGUMENT, text.into())
}

impl<'a> Collector<'a> {
    pub fn new(allow: &'a dyn Fn(&Request) -> Result<(), String>) -> Self {
        Self { allow, filed: Vec::new() }
    }

    pub fn into_filed(self) -> Vec<Request> {
        self.filed
    }
}

/// The C object over a collector, which must outlive it.
pub(super) fn table(collector: &mut Collector<'_>) -> abi::Requests {
    abi::Requests {
        struct_size: abi::struct_size::<abi::Requests>(),
        this: std::ptr::from_mut(collector).cast(),
        set,
        rows,
        probe,
        snapshot,
        restore,
        provide,
    }
}

/// Files what `make` gives, or reports why not. A panic in the host does not reach the plugin (R7).
///
/// # Safety
/// `this` is the collector of the running `on_event`.
unsafe fn file(
    this: *mut c_void,
    error: *mut abi::Error,
    make: impl FnOnce() -> Result<Request, Refusal>,
) -> abi::Status {
    // SAFETY: the caller's promise; [step], so nobody else holds it.
    let collector = unsafe { &mut *this.cast::<Collector<'_>>() };
    let checked = || {
        let request = make()?;
        (collector.allow)(&request).map_err(|text| (abi::STATUS_INVALID_STATE, text))?;
        Ok(request)
    };
    match catch_unwind(AssertUnwindSafe(checked)) {
        Ok(Ok(request)) => {
            collector.filed.push(request);
            abi::STATUS_OK
        }
        // SAFETY: R8: the slot of the running call or NULL.
        Ok(Err((status, text))) => unsafe { report(error, status, &text) },
        // SAFETY: as above.
        Err(_) => unsafe {
            report(error, abi::STATUS_INTERNAL, "the host panicked over a request")
        },
    }
}

/// # Safety
/// R6.
unsafe fn text(what: &str, s: abi::Str) -> Result<String, Refusal> {
    // SAFETY: the caller's promise.
    unsafe { s.text() }.map(str::to_owned).ok_or_else(|| invalid(format!("{what} is not UTF-8")))
}

/// A contiguous copy of a plugin's view.
///
/// # Safety
/// R5.
unsafe fn copy(view: &abi::Tensor) -> Result<(String, Tensor), Refusal> {
    // SAFETY: the caller's promise.
    let name = unsafe { text("a tensor's name", view.name) }?;
    // SAFETY: as above.
    let source = unsafe { Tensor::borrowed(&view.t) }
        .ok_or_else(|| invalid(format!("`{name}` is not a valid tensor")))?;
    let owned = Tensor::zeros(source.dtype(), source.shape());
    copy_strided(&owned, &source).map_err(|e| (e.status, e.message))?;
    Ok((name, owned))
}

/// # Safety
/// R5: `list` has `count` entries.
unsafe fn columns(list: *const abi::Tensor, count: u64) -> Result<Vec<(String, Tensor)>, Refusal> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if list.is_null() || count > 4096 {
        return Err(invalid(format!("{count} columns at {list:?}")));
    }
    // SAFETY: the caller's promise.
    let list = unsafe { std::slice::from_raw_parts(list, count as usize) };
    // SAFETY: the caller's promise.
    let columns = list.iter().map(|t| unsafe { copy(t) }).collect::<Result<Vec<_>, _>>()?;
    let rows = columns.first().map_or(0, |(_, t)| t.rows());
    if let Some((name, t)) = columns.iter().find(|(_, t)| t.rows() != rows || t.shape().is_empty())
    {
        return Err(invalid(format!(
            "column `{name}` has {} rows, the first has {rows}",
            t.rows()
        )));
    }
    let twice = columns
        .iter()
        .enumerate()
        .find(|(i, (name, _))| columns.iter().take(*i).any(|(n, _)| n == name));
    match twice {
        Some((_, (name, _))) => Err(invalid(format!("column `{name}` twice"))),
        None => Ok(columns),
    }
}

unsafe extern "C" fn set(
    this: *mut c_void,
    key: abi::Str,
    value: *const abi::Value,
    error: *mut abi::Error,
) -> abi::Status {
    let make = || {
        // SAFETY: R5, R6.
        let key = unsafe { text("a knob", key) }?;
        let known = KNOBS.contains(&key.as_str())
            || PREFIXES.iter().any(|p| key.len() > p.len() && key.starts_with(p));
        if !known {
            let all = KNOBS.join(", ");
            return Err((
                abi::STATUS_NOT_FOUND,
                format!("unknown knob `{key}` (known: {all}, lr/…, weight/…, freeze/…)"),
            ));
        }
        // SAFETY: R5: NULL or a value that lives during the call.
        let knob = match unsafe { value.as_ref() } {
            None => Knob::Bool(true),
            // SAFETY: as above.
            Some(value) => unsafe { knob(value) }?,
        };
        Ok(Request::Set(key, knob))
    };
    // SAFETY: `this` comes from `table`, used inside its call.
    unsafe { file(this, error, make) }
}

/// # Safety
/// R5, R6.
unsafe fn knob(value: &abi::Value) -> Result<Knob, Refusal> {
    // SAFETY: `kind` names the member that was written.
    unsafe {
        Ok(match value.kind {
            abi::VALUE_BOOL => Knob::Bool(value.u.i != 0),
            abi::VALUE_I64 => Knob::I64(value.u.i),
            abi::VALUE_F64 => Knob::F64(value.u.f),
            abi::VALUE_STR => Knob::Str(text("a knob's value", value.u.s)?),
            kind => return Err(invalid(format!("a value of kind {kind}"))),
        })
    }
}

unsafe extern "C" fn rows(
    this: *mut c_void,
    rows: *const abi::Rows,
    error: *mut abi::Error,
) -> abi::Status {
    let make = || {
        if rows.is_null() || !abi::has!(rows, abi::Rows, num_columns) {
            return Err(invalid("incomplete lmb_rows"));
        }
        // SAFETY: R3, R5: checked size, alive during the call.
        let rows = unsafe { &*rows };
        if !(abi::ROWS_STEP..=abi::ROWS_PASS).contains(&rows.mode) {
            return Err(invalid(format!("rows of mode {}", rows.mode)));
        }
        // SAFETY: R5, R6.
        let (name, columns) =
            unsafe { (text("a name", rows.name)?, columns(rows.columns, rows.num_columns)?) };
        if columns.is_empty() {
            return Err(invalid("rows without columns"));
        }
        Ok(Request::Rows { mode: rows.mode, epochs: rows.epochs, name, columns })
    };
    // SAFETY: as in `set`.
    unsafe { file(this, error, make) }
}

unsafe extern "C" fn probe(
    this: *mut c_void,
    probe: *const abi::Probe,
    error: *mut abi::Error,
) -> abi::Status {
    let make = || {
        if probe.is_null() || !abi::has!(probe, abi::Probe, batch_rows) {
            return Err(invalid("incomplete lmb_probe"));
        }
        // SAFETY: R3, R5.
        let probe = unsafe { &*probe };
        // SAFETY: R5, R6.
        let (name, model) = unsafe { (text("a name", probe.name)?, text("a model", probe.model)?) };
        // SAFETY: R5, R6.
        let (term, columns) =
            unsafe { (text("a term", probe.term)?, columns(probe.columns, probe.num_columns)?) };
        Ok(Request::Probe {
            name,
            model,
            term,
            columns,
            max_rows: probe.max_rows,
            batch_rows: probe.batch_rows,
        })
    };
    // SAFETY: as in `set`.
    unsafe { file(this, error, make) }
}

unsafe extern "C" fn snapshot(
    this: *mut c_void,
    name: abi::Str,
    decay: f64,
    error: *mut abi::Error,
) -> abi::Status {
    let make = || {
        if !(0.0..=1.0).contains(&decay) {
            return Err(invalid(format!("a decay of {decay}")));
        }
        // SAFETY: R6.
        Ok(Request::Snapshot(unsafe { text("a snapshot", name) }?, decay))
    };
    // SAFETY: as in `set`.
    unsafe { file(this, error, make) }
}

unsafe extern "C" fn restore(
    this: *mut c_void,
    name: abi::Str,
    error: *mut abi::Error,
) -> abi::Status {
    // SAFETY: R6.
    let make = || Ok(Request::Restore(unsafe { text("a snapshot", name) }?));
    // SAFETY: as in `set`.
    unsafe { file(this, error, make) }
}

unsafe extern "C" fn provide(
    this: *mut c_void,
    tensor: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    let make = || {
        // SAFETY: R5.
        let tensor = unsafe { tensor.as_ref() }.ok_or_else(|| invalid("NULL tensor"))?;
        // SAFETY: R5.
        let (name, tensor) = unsafe { copy(tensor) }?;
        Ok(Request::Provide(name, tensor))
    };
    // SAFETY: as in `set`.
    unsafe { file(this, error, make) }
}
