//! All that a stage needs to go on bit for bit, as the files of a checkpoint.
//!
//! No generator state: order of data and random keys follow from the place. Values are written as they are in
//! memory; numbers in `state.json` survive exactly.

use super::RunError;
use super::checkpoint::Files;
use super::error::{RunResult, bug, plugin_error};
use super::live::{Live, SCHEDULER, STUDENT, TERM, TeacherKind};
use super::matrix::TaskMatrix;
use super::models::{named, overwrite};
use super::random::Purpose;
use super::request::PendingPass;
use super::safetensors::{Named, from_bytes, to_bytes};
use crate::diagnostic::Diagnostic;
use crate::load::Instance;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// What a stage does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Row 0 of the task matrix.
    Start,
    /// TASK_BEGIN.
    Begin,
    /// Steps of the task.
    Train,
    /// TASK_END.
    End,
    /// Evaluation after the task.
    Final,
    /// Nothing.
    Done,
}

/// Where a stage is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Position in the stage's tasks.
    pub task: usize,
    /// What comes next; passes that wait come before it.
    pub phase: Phase,
    /// Steps done of the task, or of the pass if one is going on.
    pub done: u64,
    /// Passes finished so far.
    pub passes: u64,
    /// Optimizer steps of the stage.
    pub step: u64,
    /// Rounds of the stage's loop.
    pub tick: u64,
}

/// A checkpoint that counts as best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BestStep {
    pub step: u64,
    pub value: f64,
}

/// Early stopping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Patience {
    pub best: Option<f64>,
    pub without: u64,
}

/// A waiting pass; its columns are tensors `pass/<i>/<column>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PassRecord {
    pub name: String,
    pub epochs: u64,
}

/// A knob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KnobRecord {
    pub key: String,
    pub scheduler: usize,
    pub value: f64,
}

/// `state.json` of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub version: u32,
    pub stage: String,
    pub cursor: Cursor,
    /// Updates since the moments were cleared.
    pub optimizer_t: u64,
    /// Best first.
    pub best: Vec<BestStep>,
    pub patience: Patience,
    /// Steps that were not finite, in all and in a row.
    pub non_finite: u64,
    pub non_finite_in_a_row: u64,
    /// Steps left out after a roll-back.
    pub left_out: Vec<u64>,
    pub knobs: Vec<KnobRecord>,
    /// Which snapshots were taken: `scheduler/name`.
    pub snapshots: Vec<String>,
    pub passes: Vec<PassRecord>,
    /// Sets of rows mixed into the task.
    pub unions: usize,
    pub matrix: Option<TaskMatrix>,
    /// Final metrics so far.
    pub metrics: Vec<(String, Option<f64>)>,
    /// Numbers of plugins that no line holds yet, as bits: they may be NaN.
    pub told: Vec<(String, u64)>,
}

impl Progress {
    /// The beginning of a stage.
    pub fn new(stage: &str) -> Self {
        Self {
            version: 1,
            stage: stage.to_owned(),
            cursor: Cursor { task: 0, phase: Phase::Start, done: 0, passes: 0, step: 0, tick: 0 },
            optimizer_t: 0,
            best: Vec::new(),
            patience: Patience::default(),
            non_finite: 0,
            non_finite_in_a_row: 0,
            left_out: Vec::new(),
            knobs: Vec::new(),
            snapshots: Vec::new(),
            passes: Vec::new(),
            unions: 0,
            matrix: None,
            metrics: Vec::new(),
            told: Vec::new(),
        }
    }
}

/// A checkpoint whose files do not fit the stage.
pub(crate) fn misfit(file: &str, reason: impl std::fmt::Display) -> RunError {
    let message = format!("{file} of the checkpoint does not fit the stage: {reason}");
    RunError::new(Diagnostic::error("LMB0709", message))
}

/// Tensors of one file of a checkpoint; empty if there is no such file.
///
/// # Errors
/// Not a safetensors file.
pub(crate) fn tensors(files: &Files, name: &str) -> RunResult<Named> {
    files.get(name).map_or(Ok(Named::new()), |b| from_bytes(b).map_err(|e| misfit(name, e)))
}

fn group_by_index(named: Named, prefix: &str) -> BTreeMap<usize, BTreeMap<String, Tensor>> {
    let mut groups: BTreeMap<usize, BTreeMap<String, _>> = BTreeMap::new();
    for (name, tensor) in named {
        let place = name.strip_prefix(prefix).and_then(|rest| rest.split_once('/'));
        if let Some((index, column)) = place
            && let Ok(index) = index.parse()
        {
            groups.entry(index).or_default().insert(column.to_owned(), tensor);
        }
    }
    groups
}

impl Live<'_> {
    fn snapshot_key(&self, i: usize) -> String {
        let snapshot = &self.loaded.snapshots[i];
        format!("{}/{}", self.loaded.schedulers[snapshot.scheduler].name, snapshot.name)
    }

    fn loss_tensors(&self) -> Named {
        let params = self.bound.terms.iter().flat_map(|t| &t.params);
        params.map(|p| (p.name.clone(), p.value.clone())).collect()
    }

    /// Copies of the student and what schedulers gave.
    fn extra_tensors(&self, unions: &[BTreeMap<String, Tensor>]) -> Named {
        let mut extra = Named::new();
        if matches!(self.teacher, TeacherKind::Ema(_)) {
            extra.extend(named(self.teacher_copy(), "ema/"));
        }
        for (i, snapshot) in self.snapshots.iter().enumerate().filter(|(_, s)| s.taken) {
            extra.extend(named(&snapshot.params, &format!("snapshot/{}/", self.snapshot_key(i))));
        }
        for ((s, port), tensor) in &self.provided {
            let name = format!("provided/{}/{port}", self.loaded.schedulers[*s].name);
            extra.insert(name, tensor.clone());
        }
        for (i, columns) in unions.iter().enumerate() {
            extra.extend(columns.iter().map(|(n, t)| (format!("union/{i}/{n}"), t.clone())));
        }
        for (i, pass) in self.asked.passes.iter().enumerate() {
            extra.extend(pass.columns.iter().map(|(n, t)| (format!("pass/{i}/{n}"), t.clone())));
        }
        extra
    }

    /// The files of a checkpoint.
    ///
    /// # Errors
    /// What a plugin says; tensors that are not in CPU memory.
    pub fn save(
        &mut self,
        progress: &mut Progress,
        unions: &[BTreeMap<String, Tensor>],
    ) -> RunResult<Files> {
        progress.optimizer_t = self.optimizer.t;
        progress.knobs = self
            .knobs
            .set
            .iter()
            .map(|(key, (scheduler, value))| KnobRecord {
                key: key.clone(),
                scheduler: *scheduler,
                value: *value,
            })
            .collect();
        progress.snapshots = (0..self.snapshots.len())
            .filter(|i| self.snapshots[*i].taken)
            .map(|i| self.snapshot_key(i))
            .collect();
        progress.passes = self
            .asked
            .passes
            .iter()
            .map(|p| PassRecord { name: p.name.clone(), epochs: p.epochs })
            .collect();
        progress.unions = unions.len();
        let mut files = Files::new();
        let mut put = |name: &str, tensors: &Named| -> RunResult<()> {
            let bytes = to_bytes(tensors).map_err(|e| bug(format!("{name}: {e}")))?;
            files.insert(name.to_owned(), bytes);
            Ok(())
        };
        put("model.safetensors", &named(&self.exact, ""))?;
        put("optim.safetensors", &self.optimizer.save())?;
        put("loss.safetensors", &self.loss_tensors())?;
        let extra = self.extra_tensors(unions);
        if !extra.is_empty() {
            put("extra.safetensors", &extra)?;
        }
        let (keys, step) = (self.keys, progress.cursor.step);
        for (slot, instance, place) in self.stateful() {
            let ctx = place_ctx(keys, place, step);
            if let Some(bytes) = instance.state_save(ctx).map_err(|e| plugin_error(&e))? {
                files.insert(format!("plugins/{slot}.bin"), bytes);
            }
        }
        let json = serde_json::to_vec_pretty(progress).map_err(|e| bug(e.to_string()))?;
        files.insert("state.json".into(), json);
        Ok(files)
    }

    /// Slots whose bytes a checkpoint holds, with their places in random keys.
    fn stateful(&mut self) -> Vec<(String, &mut Instance, u64)> {
        let loaded = &mut *self.loaded;
        let mut all = vec![("student".to_owned(), &mut loaded.student, STUDENT)];
        for (i, term) in loaded.terms.iter_mut().enumerate() {
            all.push((format!("loss-{i}"), &mut term.instance, TERM + i as u64));
        }
        for (i, scheduler) in loaded.schedulers.iter_mut().enumerate() {
            let slot = format!("scheduler-{}", scheduler.name);
            all.push((slot, &mut scheduler.instance, SCHEDULER + i as u64));
        }
        all
    }

    /// Takes a checkpoint's files back into freshly activated instances.
    ///
    /// # Errors
    /// Files that do not fit the stage (65); what a plugin says.
    pub fn restore_files(
        &mut self,
        files: &Files,
        progress: &Progress,
    ) -> RunResult<Vec<BTreeMap<String, Tensor>>> {
        let model = tensors(files, "model.safetensors")?;
        overwrite(&self.exact, &model, "").map_err(|e| misfit("model.safetensors", e))?;
        let moments = tensors(files, "optim.safetensors")?;
        self.optimizer
            .load(&moments, progress.optimizer_t)
            .map_err(|e| misfit("optim.safetensors", e))?;
        let saved = tensors(files, "loss.safetensors")?;
        for param in self.bound.terms.iter().flat_map(|t| &t.params) {
            let value = saved.get(&param.name);
            let value = value.ok_or_else(|| misfit("loss.safetensors", &param.name))?;
            super::optimizer::copy_exact(value, &param.value)
                .map_err(|e| misfit("loss.safetensors", e))?;
        }
        for knob in &progress.knobs {
            self.knobs.set.insert(knob.key.clone(), (knob.scheduler, knob.value));
        }
        self.apply_knobs()?;
        let extra = tensors(files, "extra.safetensors")?;
        self.restore_copies(&extra, &progress.snapshots)?;
        let mut passes = group_by_index(extra.clone(), "pass/");
        self.asked.passes = VecDeque::new();
        for (i, pass) in progress.passes.iter().enumerate() {
            let columns = passes.remove(&i).unwrap_or_default();
            self.asked.passes.push_back(PendingPass {
                name: pass.name.clone(),
                epochs: pass.epochs,
                columns,
            });
        }
        self.restore_plugins(files, progress.cursor.step)?;
        self.student_changed()?;
        Ok(group_by_index(extra, "union/").into_values().collect())
    }

    /// Snapshots, EMA and provided ports from `extra.safetensors`, of this stage or of an earlier one.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn restore_copies(&mut self, extra: &Named, taken: &[String]) -> RunResult<()> {
        let file = "extra.safetensors";
        if matches!(self.teacher, TeacherKind::Ema(_))
            && extra.keys().any(|k| k.starts_with("ema/"))
        {
            let part = extra.iter().filter(|(k, _)| k.starts_with("ema/"));
            let part: Named = part.map(|(k, t)| (k.clone(), t.clone())).collect();
            overwrite(self.teacher_copy(), &part, "ema/").map_err(|e| misfit(file, e))?;
            self.teacher_changed(0)?;
        }
        for i in 0..self.snapshots.len() {
            let key = self.snapshot_key(i);
            if !taken.contains(&key) {
                continue;
            }
            let prefix = format!("snapshot/{key}/");
            overwrite(&self.snapshots[i].params, extra, &prefix).map_err(|e| misfit(file, e))?;
            self.snapshots[i].taken = true;
            let ctx = place_ctx(self.keys, 3, i as u64);
            let instance = &mut self.loaded.snapshots[i].instance;
            instance.params_changed(ctx).map_err(|e| plugin_error(&e))?;
        }
        for (s, scheduler) in self.loaded.schedulers.iter().enumerate() {
            let prefix = format!("provided/{}/", scheduler.name);
            for (name, tensor) in extra {
                if let Some(port) = name.strip_prefix(&prefix) {
                    self.provided.insert((s, port.to_owned()), tensor.clone());
                }
            }
        }
        Ok(())
    }

    fn restore_plugins(&mut self, files: &Files, step: u64) -> RunResult<()> {
        let keys = self.keys;
        for (slot, instance, place) in self.stateful() {
            let ctx = place_ctx(keys, place, step);
            if let Some(bytes) = files.get(&format!("plugins/{slot}.bin")) {
                instance.state_load(ctx, bytes).map_err(|e| plugin_error(&e))?;
            }
        }
        Ok(())
    }

    /// State of a scheduler that goes on from an earlier stage, with its snapshots, ports and knobs.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn carry_on(&mut self, s: usize, files: &Files) -> RunResult<()> {
        let name = self.loaded.schedulers[s].name.clone();
        if let Some(bytes) = files.get(&format!("plugins/scheduler-{name}.bin")) {
            let ctx = place_ctx(self.keys, SCHEDULER + s as u64, 0);
            let instance = &mut self.loaded.schedulers[s].instance;
            instance.state_load(ctx, bytes).map_err(|e| plugin_error(&e))?;
        }
        let before: Progress =
            serde_json::from_slice(files.get("state.json").map_or(&[], Vec::as_slice))
                .map_err(|e| misfit("state.json", e))?;
        let mine = format!("{name}/");
        let taken: Vec<String> =
            before.snapshots.into_iter().filter(|key| key.starts_with(&mine)).collect();
        let extra = tensors(files, "extra.safetensors")?;
        let wanted = |k: &str| {
            k.starts_with(&format!("snapshot/{mine}")) || k.starts_with(&format!("provided/{mine}"))
        };
        let extra: Named = extra.into_iter().filter(|(k, _)| wanted(k)).collect();
        self.restore_copies(&extra, &taken)?;
        for knob in before.knobs.into_iter().filter(|k| k.scheduler == s) {
            self.knobs.set.insert(knob.key, (s, knob.value));
        }
        self.apply_knobs()
    }
}

fn place_ctx(keys: super::live::Keys, place: u64, step: u64) -> crate::load::instance::CallCtx {
    keys.ctx(Purpose::State, place, step, 0)
}
