//! Extra looks that schedulers ask for: forward only, or with the gradient of a term.
//!
//! Runs in evaluation mode with gradient buffers of its own: no parameter, statistic, moment or later random draw
//! changes.

use super::error::RunResult;
use super::forward::{Mode, Wanted};
use super::gradient::GradSet;
use super::live::{Keys, Live};
use super::pass::{Pass, PassOut};
use super::random::{Purpose, Random, key};
use super::rows::{RowSet, from_columns};
use super::schedule::{Shown, refuse};
use super::step::Terms;
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::collections::BTreeMap;

/// A probe as asked for.
pub(crate) struct Probe {
    pub name: String,
    pub model: String,
    pub term: String,
    pub columns: BTreeMap<String, Tensor>,
    pub max_rows: u64,
    pub batch_rows: u64,
}

/// Whose outputs the ports show.
#[derive(Clone, Copy)]
enum Looked {
    Student,
    Teacher,
    Snapshot(usize),
}

impl Live<'_> {
    /// Carries out a probe of scheduler `s`: PROBE for each batch, then PROBE_END.
    ///
    /// # Errors
    /// What a plugin says; a model or rows that do not exist.
    pub fn probe(&mut self, s: usize, probe: &Probe) -> RunResult<()> {
        let scheduler = self.loaded.schedulers[s].name.clone();
        self.depth += 1;
        if self.depth > 64 {
            return Err(refuse(&scheduler, "probes ask for probes without end"));
        }
        let looked = self.looked_at(s, &probe.model)?;
        let own = format!("{scheduler}.{}", probe.term);
        let own_exists = self.bound.terms.iter().any(|t| t.name == own);
        let terms = match probe.term.as_str() {
            "" => None,
            "*" => Some(Terms::Pipeline),
            _ if own_exists => Some(Terms::Only(&own)),
            name => Some(Terms::Only(name)),
        };
        if terms.is_some() && !matches!(looked, Looked::Student) {
            return Err(refuse(&scheduler, "only the student can be probed for gradients"));
        }
        let (rows, extra) = self.probe_rows(&scheduler, probe)?;
        let order = self.probe_order(rows.len(), probe.max_rows);
        let size = match probe.batch_rows {
            0 => self.train.batch_size,
            n => n as usize,
        };
        let phase = std::mem::replace(&mut self.now.phase, probe.name.clone());
        let keys = self.keys;
        // Own random stream: keys of a stage that does not exist, so no draw of training is shared.
        self.keys = Keys { stage: keys.stage + (1 << 32) + (self.now.tick << 33), ..keys };
        let device = self.loaded.student.device();
        let scratch = terms.map(|_| GradSet::new(&self.params, &self.bound.terms, device));
        let mut scratch = scratch.transpose()?;
        let mut result = Ok(());
        for (batch, places) in order.chunks(size.max(1)).enumerate() {
            let mut pass = Pass::fresh(rows.gather(places)?);
            for (port, tensor) in &extra {
                let to = pass.batch.rows;
                let picked = pick(tensor, places);
                let supplied = super::pass::Supplied { from: 0, to, tensor: picked };
                pass.supplied.insert((s, port.clone()), supplied);
            }
            result = self.probe_batch(s, &pass, looked, terms, scratch.as_mut(), batch as u64);
            if result.is_err() {
                break;
            }
        }
        self.keys = keys;
        result?;
        self.dispatch(s, &Shown { params: true, ..Shown::kind(abi::EVENT_PROBE_END) })?;
        self.now.phase = phase;
        self.depth -= 1;
        Ok(())
    }

    fn looked_at(&self, s: usize, model: &str) -> RunResult<Looked> {
        if model.is_empty() || model == "student" {
            return Ok(Looked::Student);
        }
        let snapshot =
            self.loaded.snapshots.iter().position(|n| n.scheduler == s && n.name == model);
        if let Some(i) = snapshot.filter(|i| self.snapshots[*i].taken) {
            return Ok(Looked::Snapshot(i));
        }
        if model == "teacher" && !self.loaded.teachers.is_empty() {
            return Ok(Looked::Teacher);
        }
        let scheduler = &self.loaded.schedulers[s].name;
        Err(refuse(scheduler, format!("probe of model `{model}`, which is not there (yet)")))
    }

    fn probe_rows(
        &self,
        scheduler: &str,
        probe: &Probe,
    ) -> RunResult<(RowSet, BTreeMap<String, Tensor>)> {
        if probe.columns.is_empty() {
            let rows = self.task_rows.clone();
            let rows = rows.ok_or_else(|| refuse(scheduler, "a probe outside any task"))?;
            return Ok((rows, BTreeMap::new()));
        }
        let ports: Vec<&str> = self
            .loaded
            .schedulers
            .iter()
            .filter(|s| s.name == scheduler)
            .flat_map(|s| s.instance.ports())
            .filter(|p| p.is_output())
            .map(|p| p.name.as_str())
            .collect();
        let (extra, columns): (BTreeMap<_, _>, BTreeMap<_, _>) =
            probe.columns.clone().into_iter().partition(|(name, _)| ports.contains(&name.as_str()));
        let rows = from_columns(&columns, self.datasets).map_err(|e| refuse(scheduler, e))?;
        Ok((rows, extra))
    }

    /// All rows in order, or a random subset in order of drawing.
    fn probe_order(&mut self, rows: usize, max: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..rows).collect();
        if max > 0 && max < rows as u64 {
            self.now.calls += 1;
            let parts = [self.keys.seed, self.keys.stage, self.now.tick, self.now.calls];
            Random::new(key(Purpose::Probe, &parts)).shuffle(&mut order);
            order.truncate(max as usize);
        }
        order
    }

    fn probe_batch(
        &mut self,
        s: usize,
        pass: &Pass,
        looked: Looked,
        terms: Option<Terms<'_>>,
        scratch: Option<&mut GradSet>,
        batch: u64,
    ) -> RunResult<()> {
        let mut wanted = self.wanted_in_training();
        let (out, tape) = match looked {
            Looked::Student => {
                let mode = Mode::Look { record: terms.is_some() };
                self.forward(pass, mode, &wanted, batch)?
            }
            Looked::Snapshot(i) => (self.snapshot_as_student(i, pass, &wanted, batch)?, None),
            Looked::Teacher => {
                wanted.snapshots = false;
                self.forward(pass, Mode::Look { record: false }, &wanted, batch)?
            }
        };
        let mut grads = Vec::new();
        if let (Some(terms), Some(scratch)) = (terms, scratch) {
            let counts = self.count(std::slice::from_ref(pass))?;
            scratch.begin(true)?;
            self.terms(pass, &out, &counts, terms, Some(scratch), batch)?;
            self.flow_back(tape, scratch, batch)?;
            scratch.finish()?;
            grads.push((String::new(), scratch.shown.clone()));
        }
        let tensors = self.ports_of(s, pass, &out, (0, pass.batch.rows))?;
        let shown = Shown { params: true, tensors, grads, ..Shown::kind(abi::EVENT_PROBE) };
        self.dispatch(s, &shown)
    }

    fn snapshot_as_student(
        &mut self,
        i: usize,
        pass: &Pass,
        wanted: &Wanted,
        batch: u64,
    ) -> RunResult<PassOut> {
        let names: Vec<String> =
            wanted.student.iter().map(|k| self.bound.student_outputs[*k].clone()).collect();
        let given = self.ask_snapshot(i, pass, &names, batch)?;
        let mut out = PassOut {
            student: vec![None; self.bound.student_outputs.len()],
            teacher: vec![None; self.bound.teacher_outputs.len()],
            snapshots: vec![Vec::new(); self.snapshots.len()],
        };
        for (place, tensor) in wanted.student.iter().zip(given) {
            out.student[*place] = Some(tensor);
        }
        Ok(out)
    }
}

/// These rows of a tensor, copied.
fn pick(tensor: &Tensor, rows: &[usize]) -> Tensor {
    let parts: Vec<Tensor> = rows.iter().map(|r| tensor.slice_rows(*r, *r + 1)).collect();
    let parts: Vec<&Tensor> = parts.iter().collect();
    super::rows::concat(&parts, false).unwrap_or_else(|_| tensor.slice_rows(0, 0))
}
