//! The life of a run: stages in order, each continued where the last process left it.
//!
//! A stage is done when its `state.json` says so; the first one that is not is continued from its newest whole
//! checkpoint, or from its beginning. A run that fails stays open for the next try.

use super::checkpoint::{Store, sha256};
use super::error::{RunResult, io_error};
use super::event::{Event, EventSink};
use super::gates::check_gates;
use super::io::Io;
use super::metrics::Metrics;
use super::parameters;
use super::rundir::{
    Inputs, Opened, PluginRecord, RunDir, StageRecord, Status, drawn_before, open, read_stage,
    stage_dir, write_stage,
};
use super::vfs::RealFs;
use super::watch::{Patience, Watch};
use super::{Control, Outcome, RunError, RunOptions};
use crate::cache;
use crate::data::Datasets;
use crate::device;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::load::instance::show_calls;
use crate::load::place::Place;
use crate::load::wiring::LoadedTeacher;
use crate::load::{self, Catalogue, Loaded, services};
use crate::plan::{CacheAt, Plan, StagePlan, Work};
use crate::report::tensorboard;
use std::path::{Path, PathBuf};
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
/// See [`RunError`].
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
    let drawn = drawn_before(plan, options).map(|seed| plan.with_seed(seed));
    let plan = drawn.as_ref().unwrap_or(plan);
    let inputs = inputs_of(plan, &loaded, datasets, catalogue)?;
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
    let mut loaded = loaded;
    let place = loaded.settle(plan.device).map_err(RunError::new)?;
    if let Some(then) = run.set_device(device::name(place.device))? {
        let message = format!("begun on {then}, continued on {}", device::name(place.device));
        let warning = Diagnostic::warning("LMB0803", message).note(
            "from here on it agrees with a run without a stop up to rounding, not to the bit",
        );
        sink.event(&Event::Warning(warning));
    }
    place.warning(plan).into_iter().for_each(|w| sink.event(&Event::Warning(w)));
    sink.event(&Event::RunStarted {
        name: plan.name.clone(),
        id: run.record.id.clone(),
        dir: dir.clone(),
        seed: plan.seed,
        device: device_text(&place, options.threads),
        resumed: run.continued.then(|| resumed_at(plan, &dir, first)).flatten(),
    });
    let unfit = parameters::check(plan, &mut loaded, first, &dir.join("work"))?;
    if let Some(problem) = unfit.into_iter().next() {
        return Err(RunError::new(problem));
    }
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
    let _shown = show_calls(control.calls());
    let _watch = Watch::begin(control, options.notices.as_ref(), Patience::default());
    let asked = control.clone();
    services::set_cancelled(Some(Box::new(move || asked.stop_requested().is_some())));
    // Numbers that plugins reported before this run belong to nobody.
    let _ = services::take_metrics();
    let mut session = Session { plan, loaded, datasets, catalogue, dir: &dir, io };
    let result = session.stages(first, options.until.as_deref());
    services::set_cancelled(None);
    result
}

/// `cpu, 2 threads`, `cuda:0 (NVIDIA H100 80GB HBM3, 79.6 GiB)`; with the reason if a build for GPUs uses none.
fn device_text(place: &Place, threads: usize) -> String {
    match &place.why_not {
        _ if place.gpu.is_some() => place.to_string(),
        Some(why) if device::is_served() => {
            format!("{place}, {} threads; no GPU: {why}", threads.max(1))
        }
        _ => format!("{place}, {} threads", threads.max(1)),
    }
}

/// The first stage that is not done, and the length of the metrics before it.
pub(crate) fn progress_of(plan: &Plan, dir: &Path) -> (usize, u64) {
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
///
/// # Errors
/// An input file that cannot be read (66), or is not the one in the lock (77).
fn inputs_of(
    plan: &Plan,
    loaded: &Loaded,
    datasets: &Datasets,
    catalogue: &Catalogue,
) -> RunResult<Inputs> {
    let first = |problems: Diagnostics| match problems.into_iter().next() {
        Some(problem) => Err(RunError::new(problem)),
        None => Ok(()),
    };
    let mut inputs = Inputs::default();
    for info in loaded.instances().filter_map(|i| catalogue.find(i.id())) {
        let record = PluginRecord {
            version: info.version.clone(),
            sha256: info.sha256.clone(),
            library: info.library.clone(),
            unlocked: catalogue.unlocked().contains(&info.id),
        };
        inputs.plugins.insert(info.id.clone(), record);
    }
    let teachers = loaded.stages.iter().flatten().flat_map(|stage| &stage.teachers);
    for cache in teachers.filter_map(LoadedTeacher::cache) {
        // Holds the hashes of its shards. A cache of this run is made by this run.
        if let CacheAt::Dir(dir) = &cache.at
            && let Ok(bytes) = std::fs::read(dir.join(cache::FILE_NAME))
        {
            inputs.data.insert(dir.join(cache::FILE_NAME), sha256(&bytes));
        }
    }
    for dataset in plan.datasets.keys().filter_map(|id| datasets.get(id)) {
        inputs.data.extend(dataset.hashes());
    }
    let files = match load::inputs::read(plan, catalogue) {
        Ok(files) => files,
        Err(problems) => return first(problems).map(|()| inputs),
    };
    let lock = plan.base_dir.join(load::lock::FILE_NAME);
    // One that does not read was refused when the plugins were found.
    first(load::inputs::verify(&load::lock::Lock::load(&lock).unwrap_or_default(), &files))?;
    for input in files {
        let of = |(name, digest): (String, load::lock::Digest)| {
            let path = if input.path.is_dir() { input.path.join(name) } else { input.path.clone() };
            (path, digest.sha256)
        };
        inputs.data.extend(input.files.into_iter().map(of));
    }
    let base = real(&plan.base_dir);
    let data = std::mem::take(&mut inputs.data);
    inputs.data = data.into_iter().map(|(path, hash)| (below(&base, &path), hash)).collect();
    Ok(inputs)
}

/// A file's one name, whatever the path that leads to it and the directory that the program runs in: below the
/// pipeline's directory relative to that, else absolute.
fn below(base: &Path, path: &Path) -> PathBuf {
    let path = real(path);
    path.strip_prefix(base).map(Path::to_owned).unwrap_or(path)
}

fn real(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
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
                Work::Capture(capture) => self.capture_stage(stage, capture)?,
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

    /// Cuts the metrics at an offset and goes on from there.
    ///
    /// # Errors
    /// They cannot be opened (74).
    pub fn reopen_metrics(&mut self, offset: u64) -> RunResult<()> {
        self.io.flush()?;
        let path = self.io.metrics_path.clone();
        self.io.metrics = Metrics::open(&path, offset).map_err(|e| io_error("open", &path, &e))?;
        self.open_tensorboard();
        Ok(())
    }

    /// A plugin's settings with the schema's defaults.
    pub fn settings(&self, plugin: &crate::plan::PluginUse) -> serde_json::Value {
        let filled = self.catalogue.check_settings(&plugin.id, &plugin.with);
        filled.unwrap_or_else(|_| plugin.with.clone())
    }
}
