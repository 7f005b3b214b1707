//! One optimizer step inside the loop of a stage: rows, events, gradient, update, record.
//!
//! Values that are not finite are always recorded; whether the step is left out, the run stops or goes back is the
//! pipeline's choice.

use super::RunError;
use super::error::{RunResult, bug};
use super::lr::factor;
use super::metrics::LineOf;
use super::rows::{RowSet, concat_batches, from_columns};
use super::schedule::{Shown, refuse};
use super::stage::{Stage, joined};
use super::state::Phase;
use super::step::StepValues;
use crate::data::Batch;
use crate::data::order::{EpochKey, bucketed, epoch_order};
use crate::diagnostic::Diagnostic;
use crate::plan::{Every, NonFiniteAction};
use crate::run::event::Event;
use limbeck_abi as abi;

/// Place of a step in its task or pass.
#[derive(Clone, Copy)]
struct Place {
    /// Steps before it.
    done: u64,
    /// Steps in all.
    total: u64,
    epoch: u64,
}

impl Stage<'_, '_> {
    /// A step of ordinary training.
    ///
    /// # Errors
    /// As [`Stage::run`].
    pub fn train_step(&mut self) -> RunResult<Option<u64>> {
        let done = self.progress.cursor.done;
        let place = Place { done, total: self.task_steps(), epoch: self.epoch_of(done) };
        let rows = self.live.task_rows.take().ok_or_else(|| bug("a step outside any task"))?;
        let micro = self.fresh_rows(&rows, place);
        self.live.task_rows = Some(rows);
        if let Some(back) = self.step(micro?, place)? {
            return Ok(Some(back));
        }
        self.progress.cursor.done += 1;
        let (done, total) = (self.progress.cursor.done, place.total);
        if done >= total {
            self.progress.cursor.phase = Phase::End;
        } else if self.evaluation_due(done) {
            self.evaluate_task()?;
        }
        Ok(None)
    }

    fn evaluation_due(&self, done: u64) -> bool {
        match self.train.eval.every {
            Every::Steps(n) => done.is_multiple_of(n.max(1)),
            Every::Epochs(n) => {
                let rows = self.live.task_rows.as_ref().map_or(0, RowSet::len);
                done.is_multiple_of(n.max(1) * self.epoch_steps(rows))
            }
            Every::Time(_) | Every::End => false,
        }
    }

    /// A step of the pass at the head of the queue.
    ///
    /// # Errors
    /// As [`Stage::run`].
    pub fn pass_step(&mut self) -> RunResult<Option<u64>> {
        let Some(pass) = self.live.asked.passes.front().cloned() else { return Ok(None) };
        let rows = from_columns(&pass.columns, self.datasets)
            .map_err(|e| refuse("", format!("pass `{}`: {e}", pass.name)))?;
        let each = self.epoch_steps(rows.len());
        let total = if rows.len() == 0 { 0 } else { pass.epochs * each };
        let done = self.progress.cursor.done;
        if done < total {
            let place = Place { done, total, epoch: done / each };
            let micro = self.fresh_rows(&rows, place)?;
            self.live.now.phase.clone_from(&pass.name);
            let back = self.step(micro, place)?;
            self.live.now.phase.clear();
            if back.is_some() {
                return Ok(back);
            }
            self.progress.cursor.done += 1;
        }
        if self.progress.cursor.done >= total {
            self.live.asked.passes.pop_front();
            self.progress.cursor.passes += 1;
            self.progress.cursor.done = 0;
            self.order = None;
        }
        Ok(None)
    }

    /// Micro-batches of a step, by the order of its epoch.
    fn fresh_rows(&mut self, rows: &RowSet, place: Place) -> RunResult<Vec<Batch>> {
        let cursor = &self.progress.cursor;
        let pass = if self.live.asked.passes.is_empty() { 0 } else { cursor.passes + 1 };
        let wanted = (cursor.task, pass, place.epoch);
        if self.order.as_ref().is_none_or(|(of, _)| *of != wanted) {
            let keys = self.live.keys;
            let epoch = EpochKey {
                seed: keys.seed,
                stage: keys.stage,
                task: cursor.task as u64,
                epoch: place.epoch,
                pass,
            };
            let mut order = epoch_order(rows.len(), self.train.shuffle, epoch);
            if self.train.bucket > 0 {
                let (size, window) = (self.train.batch_size, self.train.bucket);
                order = bucketed(order, size, window, |row| rows.length(row), epoch);
            }
            self.order = Some((wanted, order));
        }
        let Some((_, order)) = &self.order else { return Err(bug("no order of rows")) };
        let size = self.train.batch_size.max(1);
        let per_step = size * self.train.accumulate.max(1);
        let step = (place.done % self.epoch_steps(rows.len())) as usize;
        let from = (step * per_step).min(order.len());
        let to = (from + per_step).min(order.len());
        order[from..to].chunks(size).map(|places| rows.gather(places)).collect()
    }

    /// One optimizer step. Gives the step to be taken back, if the policy says so.
    fn step(&mut self, micro: Vec<Batch>, place: Place) -> RunResult<Option<u64>> {
        let fresh: usize = micro.iter().map(|b| b.rows).sum();
        self.live.now.epoch = place.epoch;
        self.live.now.step = self.progress.cursor.step;
        let number = self.progress.cursor.step + 1;
        if self.progress.left_out.contains(&number) {
            // It was not finite when it was taken back, and still counts as such.
            self.progress.non_finite += 1;
            self.progress.non_finite_in_a_row += 1;
            self.progress.cursor.step = number;
            return self.record(number, &[("skipped".into(), 1.0)], place, fresh).map(|()| None);
        }
        self.step_begin(&micro)?;
        if std::mem::take(&mut self.live.asked.flags.skip) {
            self.live.asked.groups.clear();
            self.live.asked.provided.clear();
            self.progress.cursor.step = number;
            return self.record(number, &[("skipped".into(), 1.0)], place, fresh).map(|()| None);
        }
        // Schedulers saw the step begin, and buffers follow what the student sees.
        self.untouched =
            self.live.loaded.schedulers.is_empty() && self.live.params.iter().all(|p| p.trainable);
        let passes = self.live.assemble(micro)?;
        let given = self.live.gradients(&passes).map_err(|e| self.located(e, number))?;
        self.untouched = false;
        self.gradient_events()?;
        let norm = self.live.optimizer.grad_norm()?;
        let lr = self.train.optimizer.lr
            * factor(&self.train.lr_schedule, place.done, place.total)
            * self.live.knobs.lr;
        let mut values = vec![("loss".to_owned(), given.objective)];
        values.extend(given.values.iter().cloned());
        values.push(("lr".into(), lr));
        values.push(("grad_norm".into(), norm));
        self.progress.cursor.step = number;
        if given.objective.is_finite() && norm.is_finite() {
            self.progress.non_finite_in_a_row = 0;
            self.live.optimizer.update(lr, norm)?;
            self.live.now.step = number;
            self.live.student_stepped()?;
            self.live.follow_student()?;
        } else {
            values.push(("skipped".into(), 1.0));
            if let Some(back) = self.not_finite(number, &given, norm, &values)? {
                return Ok(Some(back));
            }
        }
        let shown =
            Shown { params: true, metrics: values.clone(), ..Shown::kind(abi::EVENT_STEP_END) };
        self.live.dispatch_all(&shown)?;
        self.record(number, &values, place, fresh)?;
        Ok(None)
    }

    fn located(&self, error: RunError, step: u64) -> RunError {
        error.within(format!("stage `{}`, step {step}", self.stage.name))
    }

    fn step_begin(&mut self, micro: &[Batch]) -> RunResult<()> {
        if !self.live.anyone_listens(abi::EVENT_STEP_BEGIN) {
            return Ok(());
        }
        let whole = concat_batches(&micro.iter().collect::<Vec<_>>())?;
        for s in 0..self.live.loaded.schedulers.len() {
            if self.live.listens(s, abi::EVENT_STEP_BEGIN) {
                let tensors = self.live.step_columns(s, &whole)?;
                let shown = Shown { tensors, ..Shown::kind(abi::EVENT_STEP_BEGIN) };
                self.live.dispatch(s, &shown)?;
            }
        }
        Ok(())
    }

    /// BACKWARD (all see the gradient of the loss terms alone), then every penalty, then every projection.
    fn gradient_events(&mut self) -> RunResult<()> {
        for kind in [abi::EVENT_BACKWARD, abi::EVENT_PENALTY, abi::EVENT_PROJECT] {
            if !self.live.anyone_listens(kind) {
                continue;
            }
            let mut grads = vec![(String::new(), self.live.grads.shown.clone())];
            let own = self.live.own_grads.iter();
            grads.extend(own.map(|((_, name), set)| (name.clone(), set.shown.clone())));
            let shown = Shown { params: true, grads, ..Shown::kind(kind) };
            for s in 0..self.live.loaded.schedulers.len() {
                if !self.live.listens(s, kind) {
                    continue;
                }
                // Names of groups are local: a scheduler sees the step's gradient and its own groups'.
                let mine = std::iter::once(true)
                    .chain(self.live.own_grads.iter().map(|((owner, _), _)| *owner == s));
                let grads = shown.grads.iter().zip(mine).filter(|(_, m)| *m);
                let grads = grads.map(|(g, _)| g.clone()).collect();
                self.live.dispatch(s, &Shown { params: true, grads, ..Shown::kind(kind) })?;
            }
        }
        Ok(())
    }

    /// The policy for a step that is not finite. Gives the step to be taken back.
    fn not_finite(
        &mut self,
        step: u64,
        given: &StepValues,
        norm: f64,
        values: &[(String, f64)],
    ) -> RunResult<Option<u64>> {
        self.progress.non_finite += 1;
        self.progress.non_finite_in_a_row += 1;
        let policy = self.train.on_nonfinite;
        let row = self.progress.non_finite_in_a_row;
        let terms: Vec<String> = given
            .values
            .iter()
            .filter(|(_, v)| !v.is_finite())
            .map(|(n, v)| format!("term {n} = {v}"))
            .collect();
        let cause = if terms.is_empty() { format!("norm = {norm}") } else { terms.join(", ") };
        let what = if given.objective.is_finite() { "gradient" } else { "loss" };
        let context = format!("stage `{}`, step {step}", self.stage.name);
        let stop = policy.action == NonFiniteAction::Stop || row > policy.max_consecutive;
        if stop {
            self.io.line(
                LineOf { stage: &self.stage.name, task: &self.live.now.task, step, eval: None },
                values,
            )?;
            self.io.flush()?;
            let mut diagnostic =
                Diagnostic::error("LMB0601", format!("non-finite {what} at step {step} ({cause})"))
                    .within(context)
                    .help("lower `optimizer.lr`, set `optimizer.clip_norm`, or see `on_nonfinite`");
            if policy.action != NonFiniteAction::Stop {
                diagnostic = diagnostic.note(format!(
                    "{row} in a row, `max_consecutive` is {}",
                    policy.max_consecutive
                ));
            }
            return Err(RunError::new(diagnostic));
        }
        let done = match policy.action {
            NonFiniteAction::Rollback => "back to the last checkpoint",
            _ => "step skipped",
        };
        let message = format!(
            "non-finite {what} at step {step} ({cause}); {done}, {row} of {} in a row",
            policy.max_consecutive
        );
        let warning = Diagnostic::warning("LMB0601", message).within(context);
        self.io.sink.event(&Event::Warning(warning));
        Ok((policy.action == NonFiniteAction::Rollback).then_some(step))
    }

    fn record(
        &mut self,
        step: u64,
        values: &[(String, f64)],
        place: Place,
        rows: usize,
    ) -> RunResult<()> {
        let all = joined(values, self.told());
        let of = LineOf { stage: &self.stage.name, task: &self.live.now.task, step, eval: None };
        self.io.line(of, &all)?;
        self.io.steps_done += 1;
        let total = step + place.total.saturating_sub(place.done + 1) + self.steps_after();
        self.io.sink.event(&Event::Step { step, total, values: values.to_vec(), rows });
        Ok(())
    }

    /// Steps of the tasks behind the current one, as far as known.
    fn steps_after(&self) -> u64 {
        let behind = self.train.tasks.iter().skip(self.progress.cursor.task + 1);
        behind.map(|t| self.planned_steps(t)).sum()
    }

    /// Steps of a task without what schedulers add.
    pub fn planned_steps(&self, task: &crate::plan::TaskPlan) -> u64 {
        match self.train.length {
            crate::plan::Length::Steps(steps) => steps,
            crate::plan::Length::Epochs(epochs) => {
                let rows = self.datasets.get(&task.train).map_or(0, |d| d.rows());
                epochs * self.epoch_steps(rows)
            }
        }
    }
}
