//! Work on students that are trained: `eval` and `export` stages, `limbeck eval`, `limbeck export`.
//!
//! Uses the instance of the stage that trained the student; the run directory is read, never changed, outside a run.

use super::RunError;
use super::checkpoint::Files;
use super::error::{RunResult, bug, plugin_error};
use super::evaluate::{Alone, Judge, Values, evaluate_alone};
use super::live::{Keys, Live, STUDENT, copy_of};
use super::metrics::LineOf;
use super::models::overwrite;
use super::random::Purpose;
use super::rundir::{StageRecord, Status, read_stage, stage_dir, stage_hash};
use super::session::Session;
use super::stage::{dataset, finite, write_json};
use super::state::{misfit, tensors};
use super::training::{fill_teachers, open_caches, read_progress, student_of, teachers_for};
use crate::data::{Datasets, TOKEN_COLUMNS};
use crate::diagnostic::Diagnostic;
use crate::load::Instance;
use crate::load::Loaded;
use crate::load::wiring::{LoadedStage, Source};
use crate::plan::{
    CacheAt, EvalPlan, ExportPlan, FromStage, MemberPlan, Metric, Plan, PluginUse, Scenario,
    StagePlan, TeacherPlan, TrainPlan, Which,
};
use crate::report::hf;
use crate::run::event::Event;
use crate::tensor::DType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Calls `f` with the active student of a stage, as `from` asks for it, its parameters in f32 as they were trained.
fn with_student<T>(
    plan: &Plan,
    loaded: &mut Loaded,
    run: &Path,
    from: &FromStage,
    f: impl FnOnce(&mut Instance, &[Option<Source>], Keys) -> RunResult<T>,
) -> RunResult<T> {
    let files = student_of(plan, run, from)?;
    let Some(Some(stage)) = loaded.stages.get_mut(from.stage) else {
        return Err(bug(format!("stage `{}` was not loaded", plan.stages[from.stage].name)));
    };
    let keys = Keys { seed: plan.seed, stage: from.stage as u64 };
    let LoadedStage { student, student_inputs, .. } = stage;
    let in_training = student.set_param_dtype(DType::F32);
    let with = |student: &mut Instance| f(student, student_inputs, keys);
    let result = activated(student, Some(&files), keys, STUDENT, with);
    student.set_param_dtype(in_training);
    result
}

/// Calls `f` with a model that is active meanwhile; `files`: of the checkpoint whose student it becomes.
pub(crate) fn activated<T>(
    model: &mut Instance,
    files: Option<&Files>,
    keys: Keys,
    slot: u64,
    f: impl FnOnce(&mut Instance) -> RunResult<T>,
) -> RunResult<T> {
    let work = std::env::temp_dir().join(format!("limbeck-{}-model", std::process::id()));
    let result = awake(model, files, keys, slot, &work).and_then(|()| f(model));
    sleep(model);
    // Best effort: it is a temporary directory.
    let _ = std::fs::remove_dir_all(&work);
    result
}

/// Activates a model, as the student of a checkpoint if there are files of one.
fn awake(
    model: &mut Instance,
    files: Option<&Files>,
    keys: Keys,
    slot: u64,
    work: &Path,
) -> RunResult<()> {
    std::fs::create_dir_all(work).map_err(|e| super::error::io_error("create", work, &e))?;
    let ctx = keys.ctx(Purpose::Activate, slot, 0, 0);
    model.activate(ctx, work).map_err(|e| plugin_error(&e))?;
    let Some(files) = files else { return Ok(()) };
    let params = model.params().map_err(|e| plugin_error(&e))?;
    let values = tensors(files, "model.safetensors")?;
    overwrite(&params, &values, "").map_err(|e| misfit("model.safetensors", e))?;
    let ctx = keys.ctx(Purpose::State, slot, 0, 0);
    model.params_changed(ctx).map_err(|e| plugin_error(&e))?;
    let state = files.get("plugins/student.bin");
    state.map_or(Ok(()), |bytes| model.state_load(ctx, bytes)).map_err(|e| plugin_error(&e))
}

fn sleep(model: &mut Instance) {
    if model.is_active() {
        model.deactivate();
    }
}

/// What is to be measured.
struct Rows<'a> {
    datasets: &'a Datasets,
    ids: &'a [String],
    batch_size: usize,
}

/// How rows of a dataset are judged: those of a task of a stream with its own classes, as in the run.
fn judge(plan: &Plan, train: &TrainPlan, datasets: &Datasets, id: &str) -> RunResult<Judge> {
    let scenario = plan.scenario();
    let task = plan.tasks.iter().find(|t| t.valid.as_deref() == Some(id));
    let Some(task) = task.filter(|_| train.is_stream && scenario.splits_classes()) else {
        return Ok(Judge::default());
    };
    let classes = Some(dataset(datasets, &task.train)?.classes());
    Ok(Judge { classes, task_is_known: scenario == Scenario::Task })
}

/// Metrics by dataset of a stage's student, or of several as an ensemble, as the run itself would give them: a scheduler
/// that decides the class of the one student decides here too, and its teacher is there to agree with.
fn measure(
    plan: &Plan,
    loaded: &mut Loaded,
    run: &Path,
    models: &[FromStage],
    rows: &Rows<'_>,
    metrics: &[Metric],
) -> RunResult<Vec<(String, Values)>> {
    if let [from] = models {
        let stage = loaded.stages.get(from.stage).and_then(Option::as_ref);
        let scores = |s: &crate::load::wiring::LoadedScheduler| {
            s.schedule.events & limbeck_abi::EVENT_EVAL_BATCH != 0
        };
        let is_scored = stage.is_some_and(|stage| stage.schedulers.iter().any(scores));
        if is_scored || !metrics.iter().all(Metric::is_of_a_model) {
            return measure_in_stage(plan, loaded, run, from, rows, metrics);
        }
    }
    let first = models.first().ok_or_else(|| bug("nothing to measure"))?;
    let train = training(plan, first.stage)?;
    let files: Vec<(usize, Files)> = models
        .iter()
        .map(|from| Ok((from.stage, student_of(plan, run, from)?)))
        .collect::<RunResult<_>>()?;
    let work = std::env::temp_dir().join(format!("limbeck-{}-models", std::process::id()));
    let mut students: Vec<(Alone<'_>, &Files)> = Vec::new();
    for (index, stage) in loaded.stages.iter_mut().enumerate() {
        let own = files.iter().find(|(of, _)| *of == index);
        if let (Some((_, files)), Some(stage)) = (own, stage) {
            let keys = Keys { seed: plan.seed, stage: index as u64 };
            let LoadedStage { student, student_inputs: sources, .. } = stage;
            students.push((Alone { student, sources, keys }, files));
        }
    }
    if students.len() != models.len() {
        return Err(bug("a stage of an ensemble was not loaded"));
    }
    let result = (|| {
        for (i, (alone, files)) in students.iter_mut().enumerate() {
            let work = work.join(i.to_string());
            awake(alone.student, Some(files), alone.keys, STUDENT, &work)?;
        }
        let one = |id: &String| {
            let data = dataset(rows.datasets, id)?;
            let judge = judge(plan, train, rows.datasets, id)?;
            let mut students: Vec<_> = students.iter_mut().map(|(alone, _)| alone).collect();
            let size = rows.batch_size;
            let values = evaluate_alone(&mut students, &data, metrics, size, &judge)?;
            Ok((id.clone(), values))
        };
        rows.ids.iter().map(one).collect()
    })();
    students.iter_mut().for_each(|(alone, _)| sleep(alone.student));
    // Best effort: it is a temporary directory.
    let _ = std::fs::remove_dir_all(&work);
    result
}

/// Metrics of a stage's student with teacher, terms and schedulers around it.
fn measure_in_stage(
    plan: &Plan,
    loaded: &mut Loaded,
    run: &Path,
    from: &FromStage,
    rows: &Rows<'_>,
    metrics: &[Metric],
) -> RunResult<Vec<(String, Values)>> {
    let train = training(plan, from.stage)?;
    let files = student_of(plan, run, from)?;
    let progress = read_progress(&files)?;
    let Some(Some(stage)) = loaded.stages.get_mut(from.stage) else {
        return Err(bug(format!("stage `{}` was not loaded", plan.stages[from.stage].name)));
    };
    open_caches(plan, run, stage)?;
    let teachers = teachers_for(plan, run, train)?;
    let keys = Keys { seed: plan.seed, stage: from.stage as u64 };
    let work = std::env::temp_dir().join(format!("limbeck-{}-stage", std::process::id()));
    let mut live = Live::activate(stage, train, rows.datasets, keys, &work)?;
    let result = (|| {
        fill_teachers(&mut live, &teachers)?;
        live.restore_files(&files, &progress)?;
        let one = |id: &String| {
            live.judge = judge(plan, train, rows.datasets, id)?;
            Ok((id.clone(), live.evaluate(&*dataset(rows.datasets, id)?, metrics)?))
        };
        rows.ids.iter().map(one).collect()
    })();
    live.deactivate();
    // Best effort: it is a temporary directory.
    let _ = std::fs::remove_dir_all(&work);
    result
}

fn training(plan: &Plan, stage: usize) -> RunResult<&TrainPlan> {
    let found = plan.stages.get(stage).and_then(StagePlan::training);
    found.ok_or_else(|| {
        let diagnostic = Diagnostic::error("LMB0207", "that stage trains no student")
            .help("name a stage of kind `train` or `distill`");
        RunError::new(diagnostic)
    })
}

impl Session<'_, '_> {
    /// An `eval` stage.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn eval_stage(&mut self, stage: &StagePlan, eval: &EvalPlan) -> RunResult<StageRecord> {
        let dir = stage_dir(self.dir, stage);
        let rows = Rows { datasets: self.datasets, ids: &eval.data, batch_size: eval.batch_size };
        let all =
            measure(self.plan, &mut self.loaded, self.dir, &eval.models, &rows, &eval.metrics)?;
        let mut metrics = Vec::new();
        for (id, values) in all {
            let of = LineOf { stage: &stage.name, task: "", step: 0, eval: Some(&id) };
            self.io.line(of, &values)?;
            let json: serde_json::Map<String, serde_json::Value> =
                values.iter().map(|(n, v)| (n.clone(), serde_json::json!(finite(*v)))).collect();
            write_json(&dir.join("eval"), &format!("{id}.json"), &json.into())?;
            let told = Event::Evaluated { step: 0, data: id.clone(), metrics: values.clone() };
            self.io.sink.event(&told);
            for (name, value) in values {
                // With several datasets, names alone would be ambiguous; the first also goes by its plain name.
                if eval.data.first() == Some(&id) {
                    metrics.push((name.clone(), finite(value)));
                }
                if eval.data.len() > 1 {
                    metrics.push((format!("{id}.{name}"), finite(value)));
                }
            }
        }
        Ok(StageRecord {
            status: Status::Done,
            resolved: stage_hash(stage),
            steps: 0,
            metrics_offset: self.io.sync()?,
            metrics,
            exported: None,
        })
    }

    /// An `export` stage.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn export_stage(
        &mut self,
        stage: &StagePlan,
        export: &ExportPlan,
    ) -> RunResult<StageRecord> {
        let out = stage_dir(self.dir, stage).join("out");
        let train = training(self.plan, export.model.stage)?;
        let settings = self.settings(&train.student);
        let mut exported = out.clone();
        write_model(self.plan, &mut self.loaded, self.dir, &export.model, settings.clone(), &out)?;
        if let Some(to) = &export.to {
            write_model(self.plan, &mut self.loaded, self.dir, &export.model, settings, to)?;
            exported.clone_from(to);
        }
        Ok(StageRecord {
            status: Status::Done,
            resolved: stage_hash(stage),
            steps: 0,
            metrics_offset: self.io.sync()?,
            metrics: Vec::new(),
            exported: Some(exported),
        })
    }
}

fn write_model(
    plan: &Plan,
    loaded: &mut Loaded,
    run: &Path,
    from: &FromStage,
    settings: serde_json::Value,
    to: &Path,
) -> RunResult<()> {
    let train = training(plan, from.stage)?;
    let stage = &plan.stages[from.stage];
    let model = with_student(plan, loaded, run, from, |student, inputs, _| {
        let params = student.params().map_err(|e| plugin_error(&e))?;
        let mut parameters = Vec::new();
        let mut tied = BTreeMap::new();
        for param in &params {
            match &param.tied_to {
                Some(canonical) => {
                    tied.insert(param.name.clone(), canonical.clone());
                }
                None => parameters.push((param.name.clone(), copy_of(&param.value)?)),
            }
        }
        Ok(hf::ExportedModel {
            plugin: student.id().to_owned(),
            version: student.version().to_owned(),
            settings,
            config: student.folder_config().map_err(|e| plugin_error(&e))?,
            parameters,
            tied,
            metrics: metrics_of(plan, run, from.stage, from.which),
            data: data_of(plan, train),
            pipeline_name: plan.name.clone(),
            description: plan.description.clone(),
            pipeline_text: plan.text.clone(),
            stage: stage.name.clone(),
            seed: plan.seed,
            teacher: train.teacher.as_ref().map(|t| teacher_info(plan, run, t)),
            tokenizer: tokenizer_of(plan, inputs),
        })
    })?;
    hf::export(to, &model).map_err(RunError::new)
}

/// Where the tokenizer lies whose ids the student reads.
fn tokenizer_of(plan: &Plan, inputs: &[Option<Source>]) -> Option<PathBuf> {
    let prefix = inputs.iter().flatten().find_map(|source| match source {
        Source::Batch(column) => column.strip_suffix(TOKEN_COLUMNS[0]),
        _ => None,
    })?;
    let found = match prefix.strip_suffix('_') {
        Some(name) => plan.tokenizers.get(name),
        None => plan.tokenizer.as_ref(),
    };
    found.map(|tokenizer| tokenizer.path.clone())
}

/// Datasets and names of their files.
fn data_of(plan: &Plan, train: &TrainPlan) -> Vec<String> {
    let line = |what: &str, id: &str| {
        let files = plan.datasets.get(id).map(|d| d.paths.as_slice()).unwrap_or_default();
        let name =
            |p: &PathBuf| format!("`{}`", p.file_name().unwrap_or_default().to_string_lossy());
        let files: Vec<String> = files.iter().map(name).collect();
        format!("{what} on `{id}`: {}", files.join(", "))
    };
    let of_task = |task: &crate::plan::TaskPlan| {
        let valid = task.valid.as_ref().map(|id| line("measured", id));
        std::iter::once(line("trained", &task.train)).chain(valid)
    };
    train.tasks.iter().flat_map(of_task).collect()
}

/// Final metrics of a stage, under the name of the rows they were measured on. Those of its best student are not kept.
fn metrics_of(plan: &Plan, run: &Path, stage: usize, which: Which) -> Vec<(String, Values)> {
    let stage = &plan.stages[stage];
    let Some(record) = read_stage(&stage_dir(run, stage)) else { return Vec::new() };
    let of_model = |name: String| match which {
        Which::Last => Some(name),
        Which::Ema => name.strip_prefix("ema.").map(str::to_owned),
        Which::Best => None,
    };
    let named = record.metrics.into_iter().filter_map(|(n, v)| Some((of_model(n)?, v?)));
    let values: Values = named.collect();
    let data = stage.training().and_then(|t| t.tasks.last()).and_then(|t| t.valid.clone());
    if values.is_empty() { Vec::new() } else { vec![(data.unwrap_or_default(), values)] }
}

fn teacher_info(plan: &Plan, run: &Path, teacher: &TeacherPlan) -> hf::TeacherInfo {
    let (description, metrics) = match teacher {
        TeacherPlan::Plugin(plugin) => (plugin.id.clone(), Vec::new()),
        TeacherPlan::Stage { from, .. } => {
            let (plan, run) = (from.plan(plan), from.dir(run));
            let name = &plan.stages[from.stage].name;
            let whose =
                from.run.as_ref().map_or(String::new(), |r| format!(" of run {}", r.written));
            (format!("stage {name}{whose}"), metrics_of(plan, run, from.stage, from.which))
        }
        TeacherPlan::Ema { decay } => (format!("EMA of the student, decay {decay}"), Vec::new()),
        TeacherPlan::SelfOutputs => ("the student itself".to_owned(), Vec::new()),
        TeacherPlan::Ensemble { members, .. } => {
            let of = |m: &MemberPlan| teacher_info(plan, run, &m.teacher).description;
            let members: Vec<String> = members.iter().map(of).collect();
            (format!("ensemble of {}", members.join(", ")), Vec::new())
        }
        TeacherPlan::Cache(cache) => match &cache.at {
            CacheAt::Stage(stage) => {
                (format!("cache of stage {}", plan.stages[*stage].name), Vec::new())
            }
            CacheAt::Dir(dir) => (format!("cache {}", dir.display()), Vec::new()),
        },
    };
    hf::TeacherInfo { description, parameters: None, metrics }
}

/// See [`super::evaluate`].
///
/// # Errors
/// See [`RunError`].
pub(crate) fn evaluate(
    plan: &Plan,
    mut loaded: Loaded,
    datasets: &Datasets,
    run: &Path,
    from: &FromStage,
    data: Option<&str>,
) -> RunResult<Vec<(String, Values)>> {
    let train = training(plan, from.stage)?;
    loaded.settle(plan.device).map_err(RunError::new)?;
    let mut ids: Vec<String> = match data {
        Some(id) => vec![id.to_owned()],
        None if train.is_stream => plan.tasks.iter().filter_map(|t| t.valid.clone()).collect(),
        None => train.tasks.iter().filter_map(|t| t.valid.clone()).collect(),
    };
    ids.dedup();
    // A cache may lack the rows of another dataset, and `which: ema` measures the copy under the plain names.
    let stage = loaded.stages.get(from.stage).and_then(Option::as_ref);
    let cached = stage.is_some_and(|s| s.teachers.iter().any(|t| t.cache().is_some()));
    let alone = from.which == Which::Ema || (cached && data.is_some());
    let measured = |m: &&Metric| !alone || m.is_of_a_model();
    let mut metrics: Vec<Metric> = train.eval.metrics.iter().filter(measured).cloned().collect();
    if metrics.is_empty() {
        metrics.push(Metric::Accuracy);
    }
    let rows = Rows { datasets, ids: &ids, batch_size: train.batch_size };
    measure(plan, &mut loaded, run, std::slice::from_ref(from), &rows, &metrics)
}

/// See [`super::export`].
///
/// # Errors
/// See [`RunError`].
pub(crate) fn export(
    plan: &Plan,
    mut loaded: Loaded,
    run: &Path,
    from: &FromStage,
    to: &Path,
) -> RunResult<()> {
    let student: &PluginUse = &training(plan, from.stage)?.student;
    let settings = student.with.clone();
    write_model(plan, &mut loaded, run, from, settings, to)
}

/// Where a command finds a stage's student.
pub(crate) fn place(stage: usize, which: Which) -> FromStage {
    FromStage { stage, run: None, which, span: None }
}
