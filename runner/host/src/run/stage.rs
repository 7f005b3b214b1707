//! The loop of a training stage: tasks, passes, steps, evaluations, checkpoints.
//!
//! Goes from place to place (see [`Cursor`](super::state::Cursor)); between two places everything that matters is in
//! [`Live`] and [`Progress`], so a checkpoint can be written there and nowhere else.

use super::RunError;
use super::checkpoint::{Header, Keep, Store};
use super::classes::RowClasses;
use super::error::{RunResult, io_error};
use super::io::Io;
use super::live::Live;
use super::metrics::LineOf;
use super::rows::{RowSet, from_columns};
use super::schedule::{Flags, Shown, refuse};
use super::state::{BestStep, Phase, Progress};
use super::vfs::{RealFs, Vfs, replace};
use crate::data::{Dataset, Datasets};
use crate::load::services;
use crate::plan::{Every, Length, Plan, StagePlan, TaskPlan, TrainClasses, TrainPlan};
use crate::run::event::Event;
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// How the loop ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    /// The stage is done.
    Done,
    /// A checkpoint was written because of a request to stop.
    Stopped(String),
    /// Back to the last checkpoint, leaving out this step.
    RollBack(u64),
}

/// One training stage at work.
pub(crate) struct Stage<'a, 's> {
    pub live: Live<'a>,
    pub plan: &'a Plan,
    pub stage: &'a StagePlan,
    pub train: &'a TrainPlan,
    pub datasets: &'a Datasets,
    pub io: &'a mut Io<'s>,
    /// `stages/01-name`.
    pub dir: PathBuf,
    pub progress: Progress,
    /// Rows that schedulers mixed into the current task.
    pub unions: Vec<BTreeMap<String, Tensor>>,
    /// Order of the rows of (task, passes, epoch).
    pub order: Option<((usize, u64, u64), Vec<usize>)>,
    pub last_checkpoint: Instant,
    /// A new best: write a checkpoint at the next border.
    pub best_now: bool,
    pub written: Option<u64>,
    /// A step has begun and nothing that a checkpoint holds has changed yet.
    pub untouched: bool,
}

/// A plugin's call was cancelled.
pub(crate) const CANCELLED: &str = "LMB0406";

impl Stage<'_, '_> {
    /// Runs until the stage is done, a stop is asked for, or a step has to be taken back.
    ///
    /// # Errors
    /// What a plugin says, values that are not finite, I/O.
    pub fn run(&mut self) -> RunResult<Ended> {
        self.enter_task()?;
        loop {
            if self.progress.cursor.phase == Phase::Done {
                return Ok(Ended::Done);
            }
            self.live.now.tick = self.progress.cursor.tick;
            self.live.now.calls = 0;
            match self.advance() {
                Ok(None) => {}
                Ok(Some(step)) => return Ok(Ended::RollBack(step)),
                Err(error) => return self.cancelled(error),
            }
            self.progress.cursor.tick += 1;
            let flags = std::mem::take(&mut self.live.asked.flags);
            self.obey(flags)?;
            let done = self.progress.cursor.phase == Phase::Done;
            let stop = if done { None } else { self.io.stop_wanted() };
            if let Some(reason) = &stop {
                self.io.sink.event(&Event::Stopping { reason: reason.clone() });
            }
            if done || stop.is_some() || self.best_now || flags.checkpoint || self.checkpoint_due()
            {
                self.checkpoint()?;
            }
            if let Some(reason) = stop {
                return Ok(Ended::Stopped(reason));
            }
        }
    }

    /// A call that obeyed the request to stop, where nothing has changed since the last place: that place is kept, as
    /// after any other request. Elsewhere (and for other errors) the last checkpoint stands.
    fn cancelled(&mut self, error: RunError) -> RunResult<Ended> {
        let stop = self.io.control.stop_requested();
        let Some(reason) = stop.filter(|_| error.diagnostic.code == CANCELLED && self.untouched)
        else {
            return Err(error);
        };
        self.io.sink.event(&Event::Stopping { reason: reason.clone() });
        // What plugins said in the step that is left is said again when it is repeated.
        let _ = services::take_metrics();
        self.checkpoint()?;
        Ok(Ended::Stopped(reason))
    }

    /// One place further. Gives the step to be taken back, if there is one.
    fn advance(&mut self) -> RunResult<Option<u64>> {
        if !self.live.asked.passes.is_empty() {
            return self.pass_step();
        }
        match self.progress.cursor.phase {
            Phase::Start => self.start()?,
            Phase::Begin => self.begin_task()?,
            Phase::Train => {
                if self.progress.cursor.done >= self.task_steps() {
                    self.progress.cursor.phase = Phase::End;
                } else {
                    return self.train_step();
                }
            }
            Phase::End => self.end_task()?,
            Phase::Final => self.finish_task()?,
            Phase::Done => {}
        }
        Ok(None)
    }

    /// Requests that concern the loop.
    fn obey(&mut self, flags: Flags) -> RunResult<()> {
        let training = self.progress.cursor.phase == Phase::Train;
        if flags.eval && training {
            self.evaluate_task()?;
        }
        if (flags.task_end || flags.stop) && training {
            self.progress.cursor.phase = Phase::End;
        }
        if flags.stop {
            // The remaining tasks are left out.
            self.progress.cursor.task = self.progress.cursor.task.max(self.train.tasks.len() - 1);
        }
        Ok(())
    }

    /// The task at hand.
    pub fn task(&self) -> &TaskPlan {
        &self.train.tasks[self.progress.cursor.task.min(self.train.tasks.len() - 1)]
    }

    /// A dataset that the plan names.
    ///
    /// # Errors
    /// It was not read: a bug.
    pub fn dataset(&self, id: &str) -> RunResult<Arc<Dataset>> {
        dataset(self.datasets, id)
    }

    /// Puts the current task's rows and names in place; after a resume too.
    fn enter_task(&mut self) -> RunResult<()> {
        let task = self.task().clone();
        let mut rows = RowSet::All(self.dataset(&task.train)?);
        for columns in &self.unions {
            let more = from_columns(columns, self.datasets);
            rows = rows.join(more.map_err(|e| refuse("", e))?);
        }
        let stream = self.plan.tasks.iter().position(|t| t.name == task.name);
        let now = &mut self.live.now;
        now.task_index = if self.train.is_stream { stream.unwrap_or(0) as u64 } else { 0 };
        now.num_tasks = if self.train.is_stream { self.plan.tasks.len() as u64 } else { 1 };
        now.task.clone_from(&task.name);
        now.step = self.progress.cursor.step;
        self.live.task_rows = Some(rows);
        self.judge(&task.train)?;
        self.open_classes(stream)
    }

    /// The classes of the tasks so far count in softmaxes that are narrowed to them.
    fn open_classes(&mut self, current: Option<usize>) -> RunResult<()> {
        let mode = self.plan.train_classes();
        if !self.train.is_stream || mode == TrainClasses::All {
            return Ok(());
        }
        if self.live.bound.row_classes.is_none() {
            let ids = self.plan.tasks.iter().map(|t| &t.train);
            let classes = ids.map(|id| Ok(self.dataset(id)?.classes()));
            let classes = classes.collect::<RunResult<Vec<_>>>()?;
            let width = crate::load::wiring::width(&self.live.loaded.student).unwrap_or(0);
            let own = RowClasses::new(mode, &classes, usize::try_from(width).unwrap_or(0));
            self.live.bound.row_classes = Some(own);
        }
        let trained = self.progress.matrix.iter().flat_map(|m| m.trained.iter().copied());
        if let Some(own) = &mut self.live.bound.row_classes {
            own.see(trained.chain(current));
        }
        Ok(())
    }

    fn start(&mut self) -> RunResult<()> {
        if self.train.is_stream && self.progress.matrix.as_ref().is_none_or(|m| m.rows.is_empty()) {
            let mut matrix = self.progress.matrix.take().unwrap_or_else(|| self.new_matrix());
            self.matrix_row("before", &mut matrix)?;
            self.progress.matrix = Some(matrix);
        }
        self.progress.cursor.phase = Phase::Begin;
        Ok(())
    }

    fn begin_task(&mut self) -> RunResult<()> {
        self.unions.clear();
        self.order = None;
        self.enter_task()?;
        self.live.now.epoch = 0;
        self.live.optimizer.reset()?;
        let task = self.task().clone();
        if self.train.is_stream {
            let (index, count) = (self.progress.cursor.task, self.train.tasks.len());
            self.io.sink.event(&Event::TaskStarted { name: task.name.clone(), index, count });
        }
        let classes = self.dataset(&task.train)?.classes();
        let tensors = if classes.is_empty() {
            Vec::new()
        } else {
            let tensor = Tensor::from_slice(&classes, &[classes.len() as i64]);
            vec![("task.classes".to_owned(), Some(tensor))]
        };
        let shown = Shown { params: true, tensors, ..Shown::kind(abi::EVENT_TASK_BEGIN) };
        self.live.dispatch_all(&shown)?;
        self.unions = std::mem::take(&mut self.live.asked.union);
        if !self.unions.is_empty() {
            self.enter_task()?;
        }
        self.progress.cursor.done = 0;
        self.progress.cursor.phase = Phase::Train;
        Ok(())
    }

    fn end_task(&mut self) -> RunResult<()> {
        self.live.now.epoch = self.epoch_of(self.progress.cursor.done.saturating_sub(1));
        self.live.dispatch_all(&Shown { params: true, ..Shown::kind(abi::EVENT_TASK_END) })?;
        self.progress.cursor.done = 0;
        self.progress.cursor.phase = Phase::Final;
        Ok(())
    }

    /// Evaluation after the task's probes and passes, then the next task.
    fn finish_task(&mut self) -> RunResult<()> {
        if self.train.is_stream {
            let name = self.task().name.clone();
            let place = self.plan.tasks.iter().position(|t| t.name == name).unwrap_or(0);
            let mut matrix = self.progress.matrix.take().unwrap_or_else(|| self.new_matrix());
            self.matrix_row(&name, &mut matrix)?;
            let score = matrix.rows.last().and_then(|row| row.get(place).copied()).flatten();
            matrix.trained.push(place);
            self.write_matrix(&matrix)?;
            self.progress.matrix = Some(matrix);
            if let Some(score) = score {
                self.consider_best(score);
            }
        } else {
            self.evaluate_task()?;
        }
        self.progress.cursor.done = 0;
        if self.progress.cursor.task + 1 < self.train.tasks.len() {
            self.progress.cursor.task += 1;
            self.progress.cursor.phase = Phase::Begin;
        } else {
            self.progress.cursor.phase = Phase::Done;
        }
        Ok(())
    }

    /// Evaluates the current task's validation rows and looks whether they are the best so far.
    pub fn evaluate_task(&mut self) -> RunResult<()> {
        let Some(valid) = self.task().valid.clone() else { return Ok(()) };
        let values = self.measure(&valid, &valid)?;
        self.progress.metrics = values.iter().map(|(n, v)| (n.clone(), finite(*v))).collect();
        if let Some(best) = &self.train.eval.best
            && let Some((_, value)) = values.iter().find(|(n, _)| *n == best.metric)
        {
            self.consider_best(*value);
        }
        if let Some(stop) = &self.train.stop_if
            && let Some((_, value)) = values.iter().find(|(n, _)| *n == stop.metric)
        {
            let sign = if stop.maximize { 1.0 } else { -1.0 };
            let patience = &mut self.progress.patience;
            if patience.best.is_none_or(|best| sign * value > sign * best) {
                (patience.best, patience.without) = (finite(*value).or(patience.best), 0);
            } else {
                patience.without += 1;
            }
            if patience.without > stop.patience && self.progress.cursor.phase == Phase::Train {
                self.progress.cursor.phase = Phase::End;
            }
        }
        Ok(())
    }

    /// Metrics on a dataset, written and told under `name`.
    ///
    /// # Errors
    /// What a plugin says, I/O.
    pub fn measure(&mut self, dataset: &str, name: &str) -> RunResult<Vec<(String, f64)>> {
        let dataset = self.dataset(dataset)?;
        let metrics = self.train.eval.metrics.clone();
        let values = self.live.evaluate(&dataset, &metrics)?;
        let step = self.progress.cursor.step;
        let all = joined(&values, self.told());
        let of =
            LineOf { stage: &self.stage.name, task: &self.live.now.task, step, eval: Some(name) };
        self.io.line(of, &all)?;
        self.io.flush()?;
        let told = Event::Evaluated { step, data: name.to_owned(), metrics: values.clone() };
        self.io.sink.event(&told);
        Ok(values)
    }

    fn consider_best(&mut self, value: f64) {
        let Some(best) = &self.train.eval.best else { return };
        if !value.is_finite() {
            return;
        }
        let sign = if best.maximize { 1.0 } else { -1.0 };
        let better = self.progress.best.first().is_none_or(|b| sign * value > sign * b.value);
        let room = self.progress.best.len() < self.train.checkpoint.keep_best.max(1);
        let worst = self.progress.best.last().is_some_and(|b| sign * value > sign * b.value);
        if !(better || room || worst) {
            return;
        }
        let step = self.progress.cursor.step;
        self.progress.best.retain(|b| b.step != step);
        self.progress.best.push(BestStep { step, value });
        // Equal values: the earlier step stays in front.
        self.progress.best.sort_by(|a, b| {
            (sign * b.value).total_cmp(&(sign * a.value)).then(a.step.cmp(&b.step))
        });
        self.progress.best.truncate(self.train.checkpoint.keep_best.max(1));
        self.best_now = true;
    }

    /// Steps of one epoch over `rows` rows.
    pub fn epoch_steps(&self, rows: usize) -> u64 {
        let batches = rows.div_ceil(self.train.batch_size.max(1));
        batches.div_ceil(self.train.accumulate.max(1)).max(1) as u64
    }

    fn task_rows(&self) -> usize {
        self.live.task_rows.as_ref().map_or(0, RowSet::len)
    }

    /// Steps of the current task.
    pub fn task_steps(&self) -> u64 {
        match self.train.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs * self.epoch_steps(self.task_rows()),
        }
    }

    /// Epoch of a step of the current task.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.epoch_steps(self.task_rows())
    }

    fn checkpoint_due(&self) -> bool {
        let cursor = &self.progress.cursor;
        match self.train.checkpoint.every {
            Every::Steps(n) => {
                cursor.phase == Phase::Train
                    && cursor.step > 0
                    && cursor.step.is_multiple_of(n.max(1))
                    && self.written != Some(cursor.step)
            }
            Every::Epochs(n) => {
                let steps = n.max(1) * self.epoch_steps(self.task_rows());
                cursor.phase == Phase::Train
                    && cursor.done > 0
                    && cursor.done.is_multiple_of(steps)
                    && self.written != Some(cursor.step)
            }
            Every::Time(interval) => self.last_checkpoint.elapsed() >= interval,
            Every::End => false,
        }
    }

    /// Writes a checkpoint of this place.
    ///
    /// # Errors
    /// What a plugin says, I/O.
    pub fn checkpoint(&mut self) -> RunResult<()> {
        self.progress.told = self.told().into_iter().map(|(n, v)| (n, v.to_bits())).collect();
        let files = self.live.save(&mut self.progress, &self.unions)?;
        // Words about saving are no numbers of the training.
        let _ = services::take_metrics();
        let metrics_offset = self.io.sync()?;
        let step = self.progress.cursor.step;
        let header = Header {
            step,
            metrics_offset,
            resolved: self.io.resolved.clone(),
            inputs: self.io.inputs.clone(),
        };
        let keep = Keep {
            last: self.train.checkpoint.keep_last,
            best: self.progress.best.iter().map(|b| b.step).collect(),
        };
        let store = Store::new(self.io.vfs, self.dir.join("ckpt"));
        let (path, bytes) = store.write(&header, &files, &keep)?;
        self.last_checkpoint = Instant::now();
        (self.best_now, self.written) = (false, Some(step));
        self.io.sink.event(&Event::CheckpointWritten { step, path, bytes });
        Ok(())
    }
}

impl Stage<'_, '_> {
    /// Numbers that plugins reported since the last line, in order.
    pub fn told(&mut self) -> Vec<(String, f64)> {
        let kept = std::mem::take(&mut self.progress.told);
        let kept = kept.into_iter().map(|(name, bits)| (name, f64::from_bits(bits)));
        kept.chain(services::take_metrics()).collect()
    }
}

/// The host's numbers, then those of plugins; the last value of a name counts.
pub(crate) fn joined(values: &[(String, f64)], told: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut all = values.to_vec();
    for (name, value) in told {
        match all.iter_mut().find(|(n, _)| *n == name) {
            Some(known) => known.1 = value,
            None => all.push((name, value)),
        }
    }
    all
}

/// A dataset that the plan names.
///
/// # Errors
/// It was not read: a bug of the phases before.
pub(crate) fn dataset(datasets: &Datasets, id: &str) -> RunResult<Arc<Dataset>> {
    let found = datasets.get(id).cloned();
    found.ok_or_else(|| super::error::bug(format!("dataset `{id}` was not read")))
}

/// The value, if it is one.
pub(crate) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Writes a JSON file as a whole.
///
/// # Errors
/// I/O.
pub(crate) fn write_json(
    dir: &std::path::Path,
    name: &str,
    json: &serde_json::Value,
) -> RunResult<()> {
    RealFs.create_dir_all(dir).map_err(|e| io_error("create", dir, &e))?;
    let path = dir.join(name);
    let bytes = serde_json::to_vec_pretty(json).unwrap_or_default();
    replace(&RealFs, &path, &bytes).map_err(|e| io_error("write", &path, &e))
}
