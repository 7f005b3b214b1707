//! Which requests an event allows, and those that wait for the stage's loop.
//!
//! The list of knobs here is complete; an unknown key is an error.

use super::schedule::Flags;
use crate::load::instance::{Knob, Request, Schedule};
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::collections::{BTreeMap, VecDeque};

/// Rows to be trained on in a pass of their own.
#[derive(Clone, Debug)]
pub(crate) struct PendingPass {
    pub name: String,
    pub epochs: u64,
    pub columns: BTreeMap<String, Tensor>,
}

/// What schedulers asked for and the loop has to do.
#[derive(Default)]
pub(crate) struct Asked {
    pub flags: Flags,
    /// Groups that join this step: scheduler, group, columns.
    pub groups: Vec<(usize, String, BTreeMap<String, Tensor>)>,
    /// Ports with a row axis, for this step or batch.
    pub provided: BTreeMap<(usize, String), Tensor>,
    /// Rows to be mixed into the task's.
    pub union: Vec<BTreeMap<String, Tensor>>,
    pub passes: VecDeque<PendingPass>,
}

/// What one scheduler may ask for in one event.
pub(crate) struct Allowed<'a> {
    pub kind: u64,
    pub schedule: &'a Schedule,
    pub scheduler: &'a str,
    /// Output ports: name and row group.
    pub ports: &'a [(String, String)],
    /// Names of all terms of the stage.
    pub terms: &'a [String],
}

const BORDERS: u64 = abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END;
/// Probes and snapshots: neither inside a step nor inside another probe or an evaluation's batch.
const BETWEEN: u64 = BORDERS
    | abi::EVENT_STEP_END
    | abi::EVENT_PROBE_END
    | abi::EVENT_EVAL_BEGIN
    | abi::EVENT_EVAL_END;

impl Allowed<'_> {
    /// Checks one request.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub fn check(&self, request: &Request) -> Result<(), String> {
        match request {
            Request::Set(key, value) => self.knob(key, value),
            Request::Rows { mode, epochs, name, columns } => {
                self.rows(*mode, *epochs, name, columns)
            }
            Request::Probe { term, .. } => {
                self.when(BETWEEN, "probe")?;
                if self.schedule.events & abi::EVENT_PROBE == 0 {
                    return Err("a probe without PROBE among the events of plan()".into());
                }
                let own = format!("{}.{term}", self.scheduler);
                let known = term.is_empty() || term == "*";
                if known || self.terms.iter().any(|t| *t == own || t == term) {
                    return Ok(());
                }
                Err(format!("probe of unknown term `{term}`"))
            }
            Request::Snapshot(name, decay) => {
                self.when(BETWEEN, "snapshot")?;
                if !(0.0..=1.0).contains(decay) {
                    return Err(format!("snapshot decay {decay} is not in [0, 1]"));
                }
                self.declared(name)
            }
            Request::Restore(name) => {
                self.when(BORDERS | abi::EVENT_PROBE_END, "restore")?;
                self.claim(abi::CLAIM_STUDENT, "LMB_CLAIM_STUDENT")?;
                if name == "init" { Ok(()) } else { self.declared(name) }
            }
            Request::Provide(port, _) => match self.ports.iter().find(|(name, _)| name == port) {
                Some((_, rows)) if rows.is_empty() => Ok(()),
                Some((_, rows)) => {
                    Err(format!("port `{port}` belongs to row group `{rows}`: give it with rows()"))
                }
                None => Err(format!("no output port `{port}`")),
            },
        }
    }

    fn when(&self, events: u64, what: &str) -> Result<(), String> {
        if self.kind & events != 0 {
            return Ok(());
        }
        Err(format!("{what} is not allowed in this event"))
    }

    fn claim(&self, claim: u64, name: &str) -> Result<(), String> {
        if self.schedule.claims & claim != 0 {
            return Ok(());
        }
        Err(format!("needs the claim {name} in plan()"))
    }

    fn declared(&self, snapshot: &str) -> Result<(), String> {
        if self.schedule.snapshots.iter().any(|s| s == snapshot) {
            return Ok(());
        }
        Err(format!("snapshot `{snapshot}` is not declared in plan()"))
    }

    fn knob(&self, key: &str, value: &Knob) -> Result<(), String> {
        if matches!(value, Knob::Str(_)) {
            return Err(format!("knob `{key}` takes a number or a boolean"));
        }
        match key {
            "lr" | "optimizer.reset" | "eval" | "checkpoint" | "stop" => Ok(()),
            "step.skip" => {
                self.when(abi::EVENT_STEP_BEGIN, "`step.skip`")?;
                self.claim(abi::CLAIM_DATA, "LMB_CLAIM_DATA")
            }
            "task.end" => self.claim(abi::CLAIM_DATA, "LMB_CLAIM_DATA"),
            _ if key.starts_with("lr/") || key.starts_with("freeze/") => Ok(()),
            _ => {
                let term =
                    key.strip_prefix("weight/").ok_or_else(|| format!("unknown knob `{key}`"))?;
                let own = format!("{}.{term}", self.scheduler);
                if self.terms.iter().any(|t| *t == own || t == term) {
                    return Ok(());
                }
                Err(format!("weight of unknown term `{term}`"))
            }
        }
    }

    fn rows(
        &self,
        mode: i32,
        epochs: u32,
        name: &str,
        columns: &[(String, Tensor)],
    ) -> Result<(), String> {
        let rows = columns.first().map_or(0, |(_, t)| t.rows());
        if let Some((column, t)) = columns.iter().find(|(_, t)| t.rows() != rows) {
            return Err(format!("column `{column}` has {} rows, another {rows}", t.rows()));
        }
        match mode {
            abi::ROWS_STEP => {
                self.when(abi::EVENT_STEP_BEGIN, "rows(STEP)")?;
                let group = self.schedule.groups.iter().find(|g| g.name == name);
                let group = group.ok_or_else(|| format!("group `{name}` is not declared"))?;
                if rows as u64 > group.max_rows {
                    return Err(format!(
                        "{rows} rows exceed max_rows {} of `{name}`",
                        group.max_rows
                    ));
                }
                Ok(())
            }
            abi::ROWS_UNION => {
                self.when(abi::EVENT_TASK_BEGIN, "rows(UNION)")?;
                self.claim(abi::CLAIM_DATA, "LMB_CLAIM_DATA")
            }
            abi::ROWS_PASS => {
                self.when(BORDERS, "rows(PASS)")?;
                self.claim(abi::CLAIM_DATA, "LMB_CLAIM_DATA")?;
                if epochs == 0 || name.is_empty() {
                    return Err("a pass needs a name and at least one epoch".into());
                }
                Ok(())
            }
            _ => Err(format!("unknown rows mode {mode}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::instance::Group;

    fn schedule(claims: u64) -> Schedule {
        Schedule {
            events: abi::EVENT_STEP_BEGIN | abi::EVENT_PROBE,
            claims,
            groups: vec![Group { name: "rows".into(), max_rows: 2, flags: 0 }],
            terms: Vec::new(),
            snapshots: vec!["previous".into()],
            definition: serde_json::Value::Null,
        }
    }

    fn check(kind: u64, claims: u64, request: &Request) -> Result<(), String> {
        let allowed = Allowed {
            kind,
            schedule: &schedule(claims),
            scheduler: "er",
            ports: &[("mask".into(), String::new()), ("logits".into(), "rows".into())],
            terms: &["er.mse".into(), "ce".into()],
        };
        allowed.check(request)
    }

    fn rows(mode: i32, n: i64) -> Request {
        let ids = Tensor::from_slice(&vec![0i64; n as usize], &[n]);
        let columns = vec![("row_ids".to_owned(), ids)];
        Request::Rows { mode, epochs: 1, name: "rows".into(), columns }
    }

    #[test]
    fn requests_outside_their_events_and_claims_are_refused() {
        let (begin, step, forward) =
            (abi::EVENT_TASK_BEGIN, abi::EVENT_STEP_BEGIN, abi::EVENT_FORWARD);
        assert!(check(step, 0, &rows(abi::ROWS_STEP, 2)).is_ok());
        assert!(check(step, 0, &rows(abi::ROWS_STEP, 3)).unwrap_err().contains("max_rows 2"));
        assert!(check(forward, 0, &rows(abi::ROWS_STEP, 1)).is_err());
        assert!(check(begin, 0, &rows(abi::ROWS_UNION, 1)).unwrap_err().contains("CLAIM_DATA"));
        assert!(check(begin, abi::CLAIM_DATA, &rows(abi::ROWS_UNION, 1)).is_ok());
        assert!(check(abi::EVENT_TASK_END, abi::CLAIM_DATA, &rows(abi::ROWS_PASS, 1)).is_ok());
        assert!(check(begin, 0, &rows(9, 1)).is_err());
        assert!(check(forward, 0, &Request::Snapshot("previous".into(), 0.0)).is_err());
        assert!(check(begin, 0, &Request::Snapshot("previous".into(), 0.0)).is_ok());
        assert!(check(begin, 0, &Request::Snapshot("other".into(), 0.0)).is_err());
        assert!(check(begin, 0, &Request::Restore("init".into())).is_err());
        assert!(check(begin, abi::CLAIM_STUDENT, &Request::Restore("init".into())).is_ok());
    }

    #[test]
    fn knobs_are_a_closed_list() {
        let set = |key: &str, value| Request::Set(key.into(), value);
        let step = abi::EVENT_STEP_BEGIN;
        for key in ["lr", "weight/mse", "weight/ce", "freeze/*", "eval"] {
            assert!(check(step, 0, &set(key, Knob::F64(1.0))).is_ok(), "{key}");
        }
        for key in ["learning_rate", "weight/other", "step.skip", ""] {
            assert!(check(step, 0, &set(key, Knob::F64(1.0))).is_err(), "{key}");
        }
        assert!(check(step, abi::CLAIM_DATA, &set("step.skip", Knob::Bool(true))).is_ok());
        assert!(check(step, 0, &set("lr", Knob::Str("fast".into()))).is_err());
        let provide = |port: &str| Request::Provide(port.into(), Tensor::from_slice(&[1f32], &[1]));
        assert!(check(step, 0, &provide("mask")).is_ok());
        assert!(check(step, 0, &provide("logits")).unwrap_err().contains("row group"));
    }
}
