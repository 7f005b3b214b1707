//! The life of a run: stages in order, each continued where the last process left it.
//!
//! A stage is done when its `state.json` says so; the first one that is not is continued from its newest whole
//! checkpoint, or from its beginning. A run that fails stays open for the next try.

use super::checkpoint::{Files, Store};
use super::error::{RunResult, bug, contract, io_error};
use super::event::{Event, EventSink};
use super::io::Io;
use super::live::{Keys, Live, TeacherKind};
use super::metrics::Metrics;
use super::models::{blend, overwrite};
use super::rundir::{
    Inputs, Opened, PluginRecord, RunDir, StageRecord, Status, open, read_stage, stage_dir,
    stage_hash, write_stage,
};
use super::stage::{Ended, Stage, finite};
use super::state::{Progress, misfit, tensors};
use super::vfs::RealFs;
use super::{Control, Failure, Outcome, RunError, RunOptions};
use crate::data::Datasets;
use crate::diagnostic::Diagnostic;
use crate::load::{Catalogue, Loaded, services};
use crate::plan::{FromStage, Gate, Plan, StagePlan, TeacherPlan, TrainPlan, Which, Work};
use crate::report::tensorboard;
use std::path::Path;
use std::time::Instant;

/// How one stage ended.
pub(crate) enum StageEnd {
    Done(StageRecord),
    Stopped { step: u64, reason: String },
}

/// Everything that the stages of a run share.
pub(crate) struct Session<'a, 's> {
    pub plan: &'a Plan,
    pub loaded: Loaded,
    pub datasets: &'a Datasets,
    pub catalogue: &'a Catalogue,
    pub dir: &'a Path,
    pub io: Io<'s>,
}

/// See [`super::run`].
///
/// # Errors
/// See [`Failure`].
pub(crate) fn run(
    plan: &Plan,
    loaded: Loaded,
    datasets: &Datasets,
    catalogue: &Catalogue,
    options: &RunOptions,
    control: &Control,
    sink: &mut dyn EventSink,
) -> RunResult<Outcome> {
    let started = Instant::now();
    let inputs = inputs_of(plan, &loaded, datasets, catalogue);
    let mut run = match open(plan, &inputs, options)? {
        Opened::Done(dir) => return Ok(Outcome::AlreadyDone { dir }),
        Opened::Run(run) => run,
    };
    let result =
        start(&mut run, plan, loaded, datasets, catalogue, options, control, sink, started);
    let (status, reason) = match &result {
        Ok(Outcome::Done { .. } | Outcome::AlreadyDone { .. }) => (Status::Done, None),
        Ok(Outcome::Stopped { reason, .. }) => (Status::Stopped, Some(reason.clone())),
        Ok(Outcome::StageReached { stage, .. }) => {
            (Status::Stopped, Some(format!("--until {stage}")))
        }
        Err(error) => (Status::Failed, Some(error.diagnostic.message.clone())),
    };
    let recorded = run.set_status(status, reason);
    run.release();
    let outcome = result?;
    recorded?;
    Ok(outcome)
}

#[expect(clippy::too_many_arguments, reason = "the parts of `run`, none of which belong together")]
fn start(
    run: &mut RunDir,
    plan: &Plan,
    loaded: Loaded,
    datasets: &Datasets,
    catalogue: &Catalogue,
    options: &RunOptions,
    control: &Control,
    sink: &mut dyn EventSink,
    started: Instant,
) -> RunResult<Outcome> {
    let dir = run.dir.clone();
    let metrics_path = dir.join("metrics.jsonl");
    let (first, _) = progress_of(plan, &dir);
    sink.event(&Event::RunStarted {
        name: plan.name.clone(),
        id: run.record.id.clone(),
        dir: dir.clone(),
        seed: plan.seed,
        device: format!("cpu, {} threads", options.threads.max(1)),
        resumed: run.continued.then(|| resumed_at(plan, &dir, first)).flatten(),
    });
    let metrics =
        Metrics::open_whole(&metrics_path).map_err(|e| io_error("open", &metrics_path, &e))?;
    let hash = run.record.resolved.clone();
    let inputs = Inputs { plugins: run.record.plugins.clone(), data: run.record.data.clone() };
    let io = Io {
        metrics,
        metrics_path,
        tensorboard: None,
        sink,
        control,
        vfs: &RealFs,
        resolved: hash,
        inputs: inputs.hash(),
        steps_done: 0,
        max_steps: options.max_steps,
        started,
        time_limit: options.time_limit,
    };
    let asked = control.clone();
    services::set_cancelled(Some(Box::new(move || asked.stop_requested().is_some())));
    // Numbers that plugins reported before this run belong to nobody.
    let _ = services::take_metrics();
    let mut session = Session { plan, loaded, datasets, catalogue, dir: &dir, io };
    let result = session.stages(first, options.until.as_deref());
    services::set_cancelled(None);
    result
}

/// The first stage that is not done, and the length of the metrics before it.
fn progress_of(plan: &Plan, dir: &Path) -> (usize, u64) {
    let mut offset = 0;
    for (i, stage) in plan.stages.iter().enumerate() {
        match read_stage(&stage_dir(dir, stage)) {
            Some(record) if record.status == Status::Done => offset = record.metrics_offset,
            _ => return (i, offset),
        }
    }
    (plan.stages.len(), offset)
}

fn resumed_at(plan: &Plan, dir: &Path, first: usize) -> Option<(String, u64)> {
    let stage = plan.stages.get(first)?;
    let store = Store::new(&RealFs, stage_dir(dir, stage).join("ckpt"));
    let step = store.steps().ok()?.first().copied().unwrap_or(0);
    (first > 0 || step > 0).then(|| (stage.name.clone(), step))
}

/// Plugins and data that the run rests on.
fn inputs_of(plan: &Plan, loaded: &Loaded, datasets: &Datasets, catalogue: &Catalogue) -> Inputs {
    let mut inputs = Inputs::default();
    for stage in loaded.stages.iter().flatten() {
        let models = std::iter::once(&stage.student).chain(&stage.teacher);
        let losses = stage.terms.iter().map(|t| &t.instance);
        let schedulers = stage.schedulers.iter().map(|s| &s.instance);
        for instance in models.chain(losses).chain(schedulers) {
            if let Some(info) = catalogue.find(instance.id()) {
                let record = PluginRecord {
                    version: info.version.clone(),
                    sha256: info.sha256.clone(),
                    library: info.library.clone(),
                };
                inputs.plugins.insert(info.id.clone(), record);
            }
        }
    }
    for dataset in plan.datasets.keys().filter_map(|id| datasets.get(id)) {
        inputs.data.extend(dataset.hashes());
    }
    inputs
}

impl Session<'_, '_> {
    fn open_tensorboard(&mut self) {
        if !self.plan.tensorboard {
            return;
        }
        match tensorboard::Writer::open(&self.dir.join("tb"), &self.io.metrics_path) {
            Ok(writer) => self.io.tensorboard = Some(writer),
            Err(problem) => self.io.sink.event(&Event::Warning(problem)),
        }
    }

    fn stages(&mut self, first: usize, until: Option<&str>) -> RunResult<Outcome> {
        let plan = self.plan;
        // A gate that was missed before is still missed.
        for stage in &plan.stages[..first] {
            if let Some(record) = read_stage(&stage_dir(self.dir, stage)) {
                check_gates(stage, &record)?;
            }
            if until == Some(&stage.name) {
                let (dir, stage) = (self.dir.to_owned(), stage.name.clone());
                return Ok(Outcome::StageReached { dir, stage });
            }
        }
        for stage in &plan.stages[first..] {
            let dir = self.dir.to_owned();
            if let (Some(reason), true) = (self.io.stop_wanted(), stage.index > first) {
                return Ok(Outcome::Stopped { dir, stage: stage.name.clone(), step: 0, reason });
            }
            let total_steps = self.total_steps(stage);
            self.io.sink.event(&Event::StageStarted {
                index: stage.index,
                count: plan.stages.len(),
                name: stage.name.clone(),
                total_steps,
            });
            if stage.training().is_none() {
                self.reopen_metrics(progress_of(plan, self.dir).1)?;
            }
            let end = match &stage.work {
                Work::Train(train) => self.train(stage, train)?,
                Work::Eval(eval) => StageEnd::Done(self.eval_stage(stage, eval)?),
                Work::Export(export) => StageEnd::Done(self.export_stage(stage, export)?),
            };
            match end {
                StageEnd::Stopped { step, reason } => {
                    return Ok(Outcome::Stopped { dir, stage: stage.name.clone(), step, reason });
                }
                StageEnd::Done(record) => self.stage_done(stage, &record)?,
            }
            if until == Some(&stage.name) {
                return Ok(Outcome::StageReached { dir, stage: stage.name.clone() });
            }
        }
        Ok(Outcome::Done { dir: self.dir.to_owned() })
    }

    fn total_steps(&self, stage: &StagePlan) -> u64 {
        let Some(train) = stage.training() else { return 0 };
        let per_step = (train.batch_size.max(1) * train.accumulate.max(1)).max(1);
        let steps = train.tasks.iter().map(|t| match train.length {
            crate::plan::Length::Steps(steps) => steps,
            crate::plan::Length::Epochs(epochs) => {
                let rows = self.datasets.get(&t.train).map_or(0, |d| d.rows());
                epochs * rows.div_ceil(per_step).max(1) as u64
            }
        });
        steps.sum()
    }

    fn stage_done(&mut self, stage: &StagePlan, record: &StageRecord) -> RunResult<()> {
        write_stage(&stage_dir(self.dir, stage), record)?;
        let metrics =
            record.metrics.iter().map(|(n, v)| (n.clone(), v.unwrap_or(f64::NAN))).collect();
        self.io.sink.event(&Event::StageFinished {
            index: stage.index,
            name: stage.name.clone(),
            steps: record.steps,
            metrics,
            exported: record.exported.clone(),
        });
        check_gates(stage, record)
    }

    fn train(&mut self, stage: &StagePlan, train: &TrainPlan) -> RunResult<StageEnd> {
        let dir = stage_dir(self.dir, stage);
        let begin = progress_of(self.plan, self.dir).1;
        if read_stage(&dir).is_none() {
            let record = StageRecord {
                status: Status::Running,
                resolved: stage_hash(stage),
                steps: 0,
                metrics_offset: begin,
                metrics: Vec::new(),
                exported: None,
            };
            write_stage(&dir, &record)?;
        }
        // Steps taken back, which the checkpoint that the run went back to does not know.
        let mut left_out: Vec<u64> = Vec::new();
        loop {
            let attempt = match self.attempt(stage, train, &dir, begin, &left_out) {
                // A plugin obeyed the request to stop inside a long call; the last checkpoint stands.
                Err(error) if error.diagnostic.code == "LMB0406" => {
                    let Some(reason) = self.io.control.stop_requested() else { return Err(error) };
                    return Ok(StageEnd::Stopped { step: 0, reason });
                }
                other => other?,
            };
            match attempt {
                (Ended::Done, progress) => {
                    let mut metrics = progress.metrics;
                    metrics.extend(progress.matrix.map_or(Vec::new(), |m| m.summary()));
                    let record = StageRecord {
                        status: Status::Done,
                        resolved: stage_hash(stage),
                        steps: progress.cursor.step,
                        metrics_offset: self.io.sync()?,
                        metrics,
                        exported: None,
                    };
                    self.write_evaluation(stage, train, &dir, &record)?;
                    return Ok(StageEnd::Done(record));
                }
                (Ended::Stopped(reason), progress) => {
                    return Ok(StageEnd::Stopped { step: progress.cursor.step, reason });
                }
                (Ended::RollBack(step), _) => left_out.push(step),
            }
        }
    }

    /// From the newest checkpoint (or the beginning) to the end, a stop, or a step that is taken back.
    fn attempt(
        &mut self,
        stage: &StagePlan,
        train: &TrainPlan,
        dir: &Path,
        begin: u64,
        left_out: &[u64],
    ) -> RunResult<(Ended, Progress)> {
        let store = Store::new(&RealFs, dir.join("ckpt"));
        store.clean()?;
        let mut warnings = Vec::new();
        let checkpoint = store.newest(&mut warnings);
        warnings.into_iter().for_each(|w| self.io.sink.event(&Event::Warning(w)));
        let checkpoint = checkpoint?;
        let offset = checkpoint.as_ref().map_or(begin, |c| c.manifest.metrics_offset);
        self.reopen_metrics(offset)?;
        let mut progress = match &checkpoint {
            Some(checkpoint) => read_progress(&checkpoint.files)?,
            None => Progress::new(&stage.name),
        };
        for step in left_out {
            if !progress.left_out.contains(step) {
                progress.left_out.push(*step);
            }
        }
        let models = self.models_for(train)?;
        let Some(Some(loaded)) = self.loaded.stages.get_mut(stage.index) else {
            return Err(bug(format!("stage `{}` was not loaded", stage.name)));
        };
        let keys = Keys { seed: self.plan.seed, stage: stage.index as u64 };
        let live = Live::activate(loaded, train, self.datasets, keys, &dir.join("work"))?;
        let mut at_work = Stage {
            live,
            plan: self.plan,
            stage,
            train,
            datasets: self.datasets,
            io: &mut self.io,
            dir: dir.to_owned(),
            progress,
            unions: Vec::new(),
            order: None,
            last_checkpoint: Instant::now(),
            best_now: false,
            written: None,
        };
        let files = checkpoint.as_ref().map(|c| &c.files);
        let result = prepare(&mut at_work, &models, files).and_then(|()| at_work.run());
        let Stage { live, progress, .. } = at_work;
        live.deactivate();
        let context = format!("stage `{}`, step {}", stage.name, progress.cursor.step);
        Ok((result.map_err(|e| e.within(context))?, progress))
    }

    fn reopen_metrics(&mut self, offset: u64) -> RunResult<()> {
        self.io.flush()?;
        let path = self.io.metrics_path.clone();
        self.io.metrics = Metrics::open(&path, offset).map_err(|e| io_error("open", &path, &e))?;
        self.open_tensorboard();
        Ok(())
    }

    /// Files of the earlier stages that this one starts from.
    fn models_for(&self, train: &TrainPlan) -> RunResult<Models> {
        let student = train.student_from.as_ref();
        let teacher = match &train.teacher {
            Some(TeacherPlan::Stage { from, .. }) => Some(from),
            _ => None,
        };
        let mut schedulers = Vec::new();
        for (s, scheduler) in train.schedulers.iter().enumerate() {
            if let Some(stage) = scheduler.from {
                let from = FromStage { stage, which: Which::Last, span: None };
                schedulers.push((s, student_of(self.plan, self.dir, &from)?));
            }
        }
        let matrix = student.filter(|_| train.is_stream).map(|from| {
            let dir = stage_dir(self.dir, &self.plan.stages[from.stage]);
            std::fs::read(dir.join("eval").join("task-matrix.json")).unwrap_or_default()
        });
        Ok(Models {
            student: student.map(|f| student_of(self.plan, self.dir, f)).transpose()?,
            teacher: teacher.map(|f| student_of(self.plan, self.dir, f)).transpose()?,
            schedulers,
            matrix,
        })
    }

    /// `eval/final.json` and `eval/method.json`.
    fn write_evaluation(
        &self,
        stage: &StagePlan,
        train: &TrainPlan,
        dir: &Path,
        record: &StageRecord,
    ) -> RunResult<()> {
        let metrics: serde_json::Map<String, serde_json::Value> =
            record.metrics.iter().map(|(n, v)| (n.clone(), serde_json::json!(v))).collect();
        let json =
            serde_json::json!({"stage": stage.name, "steps": record.steps, "metrics": metrics});
        super::stage::write_json(&dir.join("eval"), "final.json", &json)?;
        if train.schedulers.is_empty() {
            return Ok(());
        }
        let schedulers: Vec<serde_json::Value> = train
            .schedulers
            .iter()
            .map(|s| {
                let with = self.settings(&s.plugin);
                let version = self.catalogue.find(&s.plugin.id).map(|p| p.version.clone());
                serde_json::json!({"name": s.name, "plugin": s.plugin.id, "version": version, "with": with})
            })
            .collect();
        let json = serde_json::json!({"schedulers": schedulers});
        super::stage::write_json(&dir.join("eval"), "method.json", &json)
    }

    /// A plugin's settings with the schema's defaults.
    pub fn settings(&self, plugin: &crate::plan::PluginUse) -> serde_json::Value {
        let filled = self.catalogue.check_settings(&plugin.id, &plugin.with);
        filled.unwrap_or_else(|_| plugin.with.clone())
    }
}

/// Files of earlier stages.
struct Models {
    student: Option<Files>,
    teacher: Option<Files>,
    schedulers: Vec<(usize, Files)>,
    matrix: Option<Vec<u8>>,
}

fn read_progress(files: &Files) -> RunResult<Progress> {
    let bytes = files.get("state.json").map_or(&[][..], Vec::as_slice);
    serde_json::from_slice(bytes).map_err(|e| misfit("state.json", e))
}

/// Puts models, schedulers and progress in place before the loop.
fn prepare(stage: &mut Stage<'_, '_>, models: &Models, files: Option<&Files>) -> RunResult<()> {
    if let Some(files) = &models.student {
        let model = tensors(files, "model.safetensors")?;
        overwrite(&stage.live.params, &model, "").map_err(|e| misfit("model.safetensors", e))?;
        stage.live.student_stepped()?;
    }
    if let Some(files) = &models.teacher {
        let model = tensors(files, "model.safetensors")?;
        let params = &stage.live.teacher_params;
        overwrite(params, &model, "").map_err(|e| misfit("model.safetensors", e))?;
        stage.live.teacher_changed()?;
    }
    stage.live.optimizer.parameters_changed()?;
    stage.live.keep_initial();
    if matches!(stage.live.teacher, TeacherKind::Ema(_)) {
        blend(&stage.live.params, &stage.live.teacher_params, 0.0)
            .map_err(|e| contract(stage.live.loaded.student.id(), e))?;
        stage.live.teacher_changed()?;
    }
    if let Some(files) = files {
        let progress = stage.progress.clone();
        stage.unions = stage.live.restore_files(files, &progress)?;
        return Ok(());
    }
    for (s, files) in &models.schedulers {
        stage.live.carry_on(*s, files)?;
    }
    if let Some(bytes) = &models.matrix
        && stage.progress.matrix.is_none()
        && let Ok(serde_json::Value::Object(mut object)) = serde_json::from_slice(bytes)
    {
        object.remove("summary");
        object.remove("mask");
        stage.progress.matrix = serde_json::from_value(object.into()).ok();
    }
    Ok(())
}

/// The checkpoint of a stage that holds the student asked for.
///
/// # Errors
/// The stage has no whole checkpoint (65), or none yet (66).
pub(crate) fn student_of(plan: &Plan, run: &Path, from: &FromStage) -> RunResult<Files> {
    let stage = &plan.stages[from.stage];
    let store = Store::new(&RealFs, stage_dir(run, stage).join("ckpt"));
    let newest = store.newest(&mut Vec::new())?.ok_or_else(|| {
        let message = format!("stage `{}` has no checkpoint yet", stage.name);
        RunError::new(
            Failure::MissingInput,
            Diagnostic::error("LMB0710", message).at(from.span.clone()),
        )
    })?;
    if from.which == Which::Last {
        return Ok(newest.files);
    }
    let best = read_progress(&newest.files)?.best.first().map(|b| b.step);
    match best {
        None => Ok(newest.files),
        Some(step) if step == newest.manifest.step => Ok(newest.files),
        Some(step) => store.load(step).map(|c| c.files).map_err(|reason| {
            let message =
                format!("the best checkpoint of stage `{}` is not whole: {reason}", stage.name);
            RunError::new(Failure::Malformed, Diagnostic::error("LMB0705", message))
        }),
    }
}

fn gates_of(stage: &StagePlan) -> &[Gate] {
    match &stage.work {
        Work::Train(train) => &train.gates,
        Work::Eval(eval) => &eval.gates,
        Work::Export(_) => &[],
    }
}

/// Conditions of a finished stage; an undefined metric misses its gate.
fn check_gates(stage: &StagePlan, record: &StageRecord) -> RunResult<()> {
    for gate in gates_of(stage) {
        let value = record.metrics.iter().find(|(n, _)| *n == gate.metric).and_then(|(_, v)| *v);
        let value = value.and_then(finite);
        let met = value.is_some_and(|v| {
            gate.min.is_none_or(|min| v >= min) && gate.max.is_none_or(|max| v <= max)
        });
        if met {
            continue;
        }
        let found = value.map_or("undefined".to_owned(), |v| format!("{v:.4}"));
        let limit = match (gate.min, gate.max) {
            (Some(min), Some(max)) => format!("between {min} and {max}"),
            (Some(min), None) => format!("at least {min}"),
            (None, Some(max)) => format!("at most {max}"),
            (None, None) => "defined".into(),
        };
        let message = format!("gate missed: `{}` is {found}, must be {limit}", gate.metric);
        let diagnostic = Diagnostic::error("LMB0602", message)
            .at(gate.span.clone())
            .within(format!("stage `{}`", stage.name));
        return Err(RunError::new(Failure::Diverged, diagnostic));
    }
    Ok(())
}
