//! Models run on the rows of a pass: student, teacher, snapshots.
//!
//! Only outputs that somebody binds are asked for. A teacher is not run on rows whose outputs stand in already.

use super::RunError;
use super::bind::Input;
use super::error::{RunResult, bug, contract, plugin_error};
use super::live::{Live, SNAPSHOT, STUDENT};
use super::pass::{Pass, PassOut, Sources, slice_rows};
use super::random::Purpose;
use super::rows::concat;
use crate::data::first_id;
use crate::diagnostic::Diagnostic;
use crate::load::instance::{ForwardFlags, Tape};
use crate::load::wiring::CachedTeacher;
use crate::tensor::Tensor;

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Training behavior, recorded if there is something to flow back.
    Train {
        /// Record for parameter gradients.
        record: bool,
    },
    /// Evaluation behavior.
    Look {
        /// Record for parameter gradients (probes).
        record: bool,
    },
}

impl Mode {
    fn flags(self) -> ForwardFlags {
        match self {
            Self::Train { record } => {
                ForwardFlags { train: true, param_grad: record, input_grad: false }
            }
            Self::Look { record } => {
                ForwardFlags { train: false, param_grad: record, input_grad: false }
            }
        }
    }
}

/// Outputs asked for, by position.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub student: Vec<usize>,
    pub teacher: Vec<usize>,
    pub snapshots: bool,
}

/// Outputs of a cached teacher for rows `[from, to)` of a pass.
pub(crate) fn read_teacher<'n>(
    teacher: &CachedTeacher,
    pass: &Pass,
    outputs: impl Iterator<Item = &'n str>,
    (from, to): (usize, usize),
) -> RunResult<Vec<Tensor>> {
    let fail = |why: String| {
        let diagnostic = Diagnostic::error("LMB0520", format!("teacher cache: {why}"));
        RunError::new(diagnostic)
    };
    let cache = teacher.open.as_ref().ok_or_else(|| bug("the teacher cache is not open"))?;
    let ids = pass.batch.columns.get("row_ids").and_then(|ids| ids.data::<i64>());
    let ids = ids.and_then(|ids| ids.get(from..to));
    let ids = ids.ok_or_else(|| fail("rows that a scheduler stored are in no cache".into()))?;
    let mut places = Vec::with_capacity(ids.len());
    for id in ids {
        let first = first_id(*id);
        let source = teacher.sources.iter().find(|(of, _)| *of == first);
        let source = source.and_then(|(_, source)| {
            cache.manifest.sources.iter().position(|s| s.source == *source)
        });
        places.push((source.ok_or_else(|| fail(format!("no row {id}")))?, id - first));
    }
    let column = cache.manifest.tokens.as_ref().and_then(|c| pass.batch.columns.get(c));
    let width = column.and_then(|c| c.shape().get(1)).map(|w| *w as usize);
    outputs.map(|output| cache.gather(output, &places, width).map_err(fail)).collect()
}

impl Live<'_> {
    /// Everything that a training step needs.
    pub fn wanted_in_training(&self) -> Wanted {
        Wanted {
            student: self.bound.student_wanted.clone(),
            teacher: self.bound.teacher_wanted.clone(),
            snapshots: true,
        }
    }

    /// Tensors of a consumer's ports for rows `[from, to)`.
    ///
    /// # Errors
    /// Rows that lack a column.
    pub fn inputs(
        &self,
        of: &[Input],
        pass: &Pass,
        out: &PassOut,
        (from, to): (usize, usize),
    ) -> RunResult<Vec<Option<Tensor>>> {
        let sources = Sources {
            bound: &self.bound,
            pass,
            out,
            params: &self.params,
            provided: &self.provided,
        };
        of.iter().map(|input| sources.get(input, from, to)).collect()
    }

    /// Student, teacher and snapshots on one pass. `micro` tells calls of one step apart.
    ///
    /// # Errors
    /// What a plugin says; rows that lack a column.
    pub fn forward(
        &mut self,
        pass: &Pass,
        mode: Mode,
        wanted: &Wanted,
        micro: u64,
    ) -> RunResult<(PassOut, Option<Tape>)> {
        let rows = pass.batch.rows;
        let mut out = PassOut::default();
        let inputs = self.inputs(&self.bound.student_inputs, pass, &out, (0, rows))?;
        let names: Vec<String> =
            wanted.student.iter().map(|i| self.bound.student_outputs[*i].clone()).collect();
        let ctx = self.keys.ctx(Purpose::Forward, STUDENT, self.now.step, micro);
        let given = self
            .loaded
            .student
            .forward(ctx, mode.flags(), &inputs, &names)
            .map_err(|e| plugin_error(&e))?;
        out.student = vec![None; self.bound.student_outputs.len()];
        for (place, tensor) in wanted.student.iter().zip(given.outputs) {
            if self.bound.student_rows[*place] && !tensor.rows().is_multiple_of(rows.max(1)) {
                let name = &self.bound.student_outputs[*place];
                let message =
                    format!("output `{name}` has shape {:?} for {rows} rows", tensor.shape());
                return Err(contract(self.loaded.student.id(), message));
            }
            out.student[*place] = Some(tensor);
        }
        self.teach(pass, &wanted.teacher, micro, &mut out)?;
        if wanted.snapshots {
            self.recall(pass, micro, &mut out)?;
        }
        Ok((out, given.tape))
    }

    /// The teacher's outputs, with those that stand in.
    fn teach(
        &mut self,
        pass: &Pass,
        wanted: &[usize],
        micro: u64,
        out: &mut PassOut,
    ) -> RunResult<()> {
        out.teacher = vec![None; self.bound.teacher_outputs.len()];
        if wanted.is_empty() || self.loaded.teachers.is_empty() {
            return Ok(());
        }
        let covered = |from: usize, to: usize| {
            wanted.iter().all(|i| {
                let there = pass.stand_ins.get(&self.bound.teacher_outputs[*i]);
                there.is_some_and(|s| s.iter().any(|s| s.from <= from && to <= s.to))
            })
        };
        // Stretches of neighbors that need the teacher, or do not.
        let mut stretches: Vec<(usize, usize, bool)> = Vec::new();
        for segment in &pass.segments {
            let skip = !pass.stand_ins.is_empty() && covered(segment.from, segment.to);
            match stretches.last_mut() {
                Some(last) if last.2 == skip && !skip => last.1 = segment.to,
                _ => stretches.push((segment.from, segment.to, skip)),
            }
        }
        let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); wanted.len()];
        for (from, to, skip) in stretches {
            let given = if skip {
                Vec::new()
            } else {
                self.ask_teacher(pass, wanted, (from, to), micro, out)?
            };
            for (k, place) in wanted.iter().enumerate() {
                let name = &self.bound.teacher_outputs[*place];
                let own = pass.stand_ins.get(name).and_then(|s| {
                    s.iter()
                        .find(|s| s.from <= from && to <= s.to)
                        .map(|s| slice_rows(&s.tensor, s.to - s.from, from - s.from, to - s.from))
                });
                if let Some(tensor) = own.or_else(|| given.get(k).cloned()) {
                    parts[k].push(tensor);
                }
            }
        }
        for (place, parts) in wanted.iter().zip(parts) {
            out.teacher[*place] = match parts.as_slice() {
                [] => None,
                [one] => Some(one.clone()),
                several => {
                    let several: Vec<&Tensor> = several.iter().collect();
                    let name = &self.bound.teacher_outputs[*place];
                    let joined = concat(&several, false)
                        .map_err(|e| contract("teacher", format!("output `{name}`: {e}")))?;
                    Some(joined)
                }
            };
        }
        Ok(())
    }

    /// Outputs of the snapshots that were taken and that somebody binds.
    fn recall(&mut self, pass: &Pass, micro: u64, out: &mut PassOut) -> RunResult<()> {
        out.snapshots = vec![Vec::new(); self.snapshots.len()];
        for i in 0..self.snapshots.len() {
            let wanted = self.loaded.snapshots[i].wanted.clone();
            if self.snapshots[i].taken && !wanted.is_empty() {
                out.snapshots[i] = self.ask_snapshot(i, pass, &wanted, micro)?;
            }
        }
        Ok(())
    }

    /// Outputs of one snapshot.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn ask_snapshot(
        &mut self,
        i: usize,
        pass: &Pass,
        wanted: &[String],
        micro: u64,
    ) -> RunResult<Vec<Tensor>> {
        let none = PassOut::default();
        let range = (0, pass.batch.rows);
        let inputs = self.inputs(&self.bound.student_inputs, pass, &none, range)?;
        let ctx = self.keys.ctx(Purpose::Forward, SNAPSHOT + i as u64, self.now.step, micro);
        let instance = &mut self.loaded.snapshots[i].instance;
        let given = instance
            .forward(ctx, ForwardFlags::default(), &inputs, wanted)
            .map_err(|e| plugin_error(&e))?;
        Ok(given.outputs)
    }

    /// Tensors of a scheduler's ports for rows `[from, to)`.
    ///
    /// # Errors
    /// Rows that lack a column.
    pub fn ports_of(
        &self,
        scheduler: usize,
        pass: &Pass,
        out: &PassOut,
        range: (usize, usize),
    ) -> RunResult<Vec<(String, Option<Tensor>)>> {
        let inputs = &self.bound.schedulers[scheduler];
        let tensors = self.inputs(inputs, pass, out, range)?;
        Ok(inputs.iter().map(|i| i.name.clone()).zip(tensors).collect())
    }
}
