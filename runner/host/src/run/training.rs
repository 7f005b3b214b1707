//! One training stage over as many attempts as it takes: a step that is taken back starts the next one.
//!
//! An attempt goes on from the newest whole checkpoint; none of its state outlives it but what a checkpoint holds.

use super::RunError;
use super::capture::cache_dir;
use super::checkpoint::{Files, Store};
use super::error::{RunResult, bug, contract};
use super::event::Event;
use super::live::{Keys, Live, TeacherKind};
use super::models::{blend, overwrite};
use super::rundir::{StageRecord, Status, read_stage, stage_dir, stage_hash, write_stage};
use super::safetensors::{Named, to_bytes};
use super::session::{Session, StageEnd, progress_of};
use super::stage::{CANCELLED, Ended, Stage, finite};
use super::state::{Progress, misfit, tensors};
use super::vfs::RealFs;
use crate::cache::Cache;
use crate::diagnostic::Diagnostic;
use crate::load::services;
use crate::load::wiring::{CachedTeacher, LoadedStage, LoadedTeacher, same_stream};
use crate::plan::{
    CacheAt, FromStage, Plan, StagePlan, TeacherPlan, Teaching, TrainPlan, Which, Work,
};
use std::path::Path;
use std::time::Instant;

impl Session<'_, '_> {
    /// From where the last process left it to its end or a stop.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn train(&mut self, stage: &StagePlan, train: &TrainPlan) -> RunResult<StageEnd> {
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
                Err(error) if error.diagnostic.code == CANCELLED => {
                    let Some(reason) = self.io.control.stop_requested() else { return Err(error) };
                    let steps = Store::new(&RealFs, dir.join("ckpt")).steps().unwrap_or_default();
                    let step = steps.first().copied().unwrap_or(0);
                    return Ok(StageEnd::Stopped { step, reason });
                }
                other => other?,
            };
            match attempt {
                (Ended::Done, progress) => {
                    let mut metrics = progress.metrics;
                    let told =
                        progress.told.into_iter().map(|(n, v)| (n, finite(f64::from_bits(v))));
                    metrics.extend(told);
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
        open_caches(self.plan, self.dir, loaded)?;
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
            untouched: false,
        };
        let files = checkpoint.as_ref().map(|c| &c.files);
        let prepared = prepare(&mut at_work, &models, files);
        // An attempt that goes on prepares once more: what plugins say meanwhile belongs to no step.
        let _ = services::take_metrics();
        let result = prepared.and_then(|()| at_work.run());
        let Stage { live, progress, .. } = at_work;
        live.deactivate();
        let context = format!("stage `{}`, step {}", stage.name, progress.cursor.step);
        Ok((result.map_err(|e| e.within(context))?, progress))
    }

    /// Files of the earlier stages that this one starts from.
    fn models_for(&self, train: &TrainPlan) -> RunResult<Models> {
        let student = train.student_from.as_ref();
        let mut schedulers = Vec::new();
        for (s, scheduler) in train.schedulers.iter().enumerate() {
            if let Some(from) = &scheduler.from {
                schedulers.push((s, student_of(self.plan, self.dir, from)?));
            }
        }
        // Rows of another stream mean other tasks.
        let goes_on =
            |from: &&FromStage| train.is_stream && same_stream(self.plan, from.plan(self.plan));
        let matrix = student.filter(goes_on).map(|from| {
            let dir = stage_dir(from.dir(self.dir), &from.plan(self.plan).stages[from.stage]);
            std::fs::read(dir.join("eval").join("task-matrix.json")).unwrap_or_default()
        });
        Ok(Models {
            student: student.map(|f| student_of(self.plan, self.dir, f)).transpose()?,
            teachers: teachers_for(self.plan, self.dir, train)?,
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
                let loaded = self.loaded.stages.get(stage.index).and_then(Option::as_ref);
                let loaded = loaded.and_then(|l| l.schedulers.iter().find(|l| l.name == s.name));
                let definition = loaded.map(|l| l.schedule.definition.clone());
                serde_json::json!({
                    "name": s.name, "plugin": s.plugin.id, "version": version, "with": with,
                    "definition": definition,
                })
            })
            .collect();
        let json = serde_json::json!({"schedulers": schedulers});
        super::stage::write_json(&dir.join("eval"), "method.json", &json)
    }
}

/// Files of the stages whose students teach, by teacher.
///
/// # Errors
/// See [`student_of`].
pub(crate) fn teachers_for(
    plan: &Plan,
    run: &Path,
    train: &TrainPlan,
) -> RunResult<Vec<Option<Files>>> {
    let files = |teacher: Teaching<'_>| match teacher.plan {
        TeacherPlan::Stage { from, .. } => student_of(plan, run, from).map(Some),
        _ => Ok(None),
    };
    train.teaching().into_iter().map(files).collect()
}

/// Gives teachers the parameters of the students that they are.
///
/// # Errors
/// Files that do not fit (65); what a plugin says.
pub(crate) fn fill_teachers(live: &mut Live<'_>, teachers: &[Option<Files>]) -> RunResult<()> {
    for (i, files) in teachers.iter().enumerate() {
        let Some(files) = files else { continue };
        let model = tensors(files, "model.safetensors")?;
        let params = live.teacher_params.get(i).map_or(&[][..], Vec::as_slice);
        overwrite(params, &model, "").map_err(|e| misfit("model.safetensors", e))?;
        live.teacher_changed(i)?;
    }
    Ok(())
}

/// Opens the caches that teach in the stage.
///
/// # Errors
/// One that cannot be used (65).
pub(crate) fn open_caches(plan: &Plan, run: &Path, loaded: &mut LoadedStage) -> RunResult<()> {
    let caches = loaded.teachers.iter_mut().filter_map(LoadedTeacher::cache_mut);
    caches.filter(|c| c.open.is_none()).try_for_each(|cache| open_cache(plan, run, cache))
}

fn open_cache(plan: &Plan, run: &Path, cache: &mut CachedTeacher) -> RunResult<()> {
    let dir = match &cache.at {
        CacheAt::Dir(dir) => dir.clone(),
        CacheAt::Stage(index) => match plan.stages.get(*index) {
            Some(stage @ StagePlan { work: Work::Capture(capture), .. }) => {
                cache_dir(run, stage, capture)
            }
            _ => return Err(bug("a cache of a stage that captures nothing")),
        },
    };
    let opened = Cache::open(&dir).map_err(|(file, why)| {
        let message = format!("teacher cache: cannot use {}: {why}", file.display());
        RunError::new(Diagnostic::error("LMB0520", message))
    })?;
    cache.open = Some(opened);
    Ok(())
}

/// Files of earlier stages.
struct Models {
    student: Option<Files>,
    teachers: Vec<Option<Files>>,
    schedulers: Vec<(usize, Files)>,
    matrix: Option<Vec<u8>>,
}

pub(crate) fn read_progress(files: &Files) -> RunResult<Progress> {
    let bytes = files.get("state.json").map_or(&[][..], Vec::as_slice);
    serde_json::from_slice(bytes).map_err(|e| misfit("state.json", e))
}

/// Puts models, schedulers and progress in place before the loop.
fn prepare(stage: &mut Stage<'_, '_>, models: &Models, files: Option<&Files>) -> RunResult<()> {
    // "init" is the student as built, not as another stage left it.
    stage.live.keep_initial()?;
    if let Some(files) = &models.student {
        let model = tensors(files, "model.safetensors")?;
        overwrite(&stage.live.exact, &model, "").map_err(|e| misfit("model.safetensors", e))?;
        stage.live.student_changed()?;
    }
    fill_teachers(&mut stage.live, &models.teachers)?;
    if matches!(stage.live.teacher, TeacherKind::Ema(_)) {
        blend(&stage.live.exact, stage.live.teacher_copy(), 0.0)
            .map_err(|e| contract(stage.live.loaded.student.id(), e))?;
        stage.live.teacher_changed(0)?;
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
        stage.progress.matrix = serde_json::from_value(object.into()).ok();
    }
    Ok(())
}

/// The checkpoint of a stage that holds the student asked for.
///
/// # Errors
/// The stage has no whole checkpoint (65), or none yet (66).
pub(crate) fn student_of(plan: &Plan, run: &Path, from: &FromStage) -> RunResult<Files> {
    let (plan, run) = (from.plan(plan), from.dir(run));
    let stage = &plan.stages[from.stage];
    let store = Store::new(&RealFs, stage_dir(run, stage).join("ckpt"));
    let newest = store.newest(&mut Vec::new())?.ok_or_else(|| {
        let message = format!("stage `{}` has no checkpoint yet", stage.name);
        RunError::new(Diagnostic::error("LMB0710", message).at(from.span.clone()))
    })?;
    match from.which {
        Which::Last => return Ok(newest.files),
        Which::Ema => return copy_of_student(newest.files, stage),
        Which::Best => {}
    }
    let best = read_progress(&newest.files)?.best.first().map(|b| b.step);
    match best {
        None => {
            let message = format!("stage `{}` has no best checkpoint", stage.name);
            let help = "`eval: {best: {metric: …}}` keeps one from its first evaluation on; or take the last";
            Err(RunError::new(
                Diagnostic::error("LMB0710", message).at(from.span.clone()).help(help),
            ))
        }
        Some(step) if step == newest.manifest.step => Ok(newest.files),
        Some(step) => store.load(step).map(|c| c.files).map_err(|reason| {
            let message =
                format!("the best checkpoint of stage `{}` is not whole: {reason}", stage.name);
            RunError::new(Diagnostic::error("LMB0705", message))
        }),
    }
}

/// The files with the EMA of the student in its place.
fn copy_of_student(mut files: Files, stage: &StagePlan) -> RunResult<Files> {
    let extra = tensors(&files, "extra.safetensors")?;
    let copied =
        |(name, tensor): (String, _)| Some((name.strip_prefix("ema/")?.to_owned(), tensor));
    let copy: Named = extra.into_iter().filter_map(copied).collect();
    if copy.is_empty() {
        let message = format!("stage `{}` has no EMA of its student", stage.name);
        let problem =
            Diagnostic::error("LMB0207", message).help("one with `teacher: {ema: {decay: …}}` has");
        return Err(RunError::new(problem));
    }
    let bytes = to_bytes(&copy).map_err(|e| bug(format!("the EMA: {e}")))?;
    files.insert("model.safetensors".into(), bytes);
    Ok(files)
}
