//! What is going to happen, as plain data. Later phases read it and never change it.

use crate::diagnostic::{Diagnostics, Span};
use crate::tensor::DType;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A whole pipeline.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The pipeline file as the user named it.
    pub file: PathBuf,
    /// Directory of the pipeline file; relative inputs start here.
    pub base_dir: PathBuf,
    /// `name`.
    pub name: String,
    /// `description`.
    pub description: Option<String>,
    /// `seed`; `random` has been drawn.
    pub seed: u64,
    /// Refuse plugins and kernels that are not bit-reproducible.
    pub deterministic: bool,
    /// `device`.
    pub device: DeviceChoice,
    /// `datasets`, by id.
    pub datasets: BTreeMap<String, DatasetPlan>,
    /// `tokenizer`.
    pub tokenizer: Option<TokenizerPlan>,
    /// `plugins`: libraries off the search path.
    pub plugins: Vec<PinnedPlugin>,
    /// `trackers` holds `tensorboard`.
    pub tensorboard: bool,
    /// Top-level `tasks`, in order: the columns of the task matrix.
    pub tasks: Vec<TaskPlan>,
    /// Stages in order.
    pub stages: Vec<StagePlan>,
    /// The resolved pipeline: defaults filled in, `--set` applied; written to `resolved.yaml` and hashed.
    pub resolved: Json,
    /// Origin of each resolved value: path -> `pipeline.yaml:12:5`, `default`, `--set`, `top level`.
    pub origins: BTreeMap<String, String>,
    /// The text of the pipeline file.
    pub text: String,
    /// Warnings of document and plan.
    pub warnings: Diagnostics,
}

impl Plan {
    /// `scenario.kind`, read from the resolved pipeline.
    pub fn scenario(&self) -> Scenario {
        match self.resolved.pointer("/scenario/kind").and_then(Json::as_str) {
            Some("class") => Scenario::Class,
            _ => Scenario::Domain,
        }
    }
}

/// `device: auto | cpu | cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A usable GPU, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device.
    Cuda(u32),
}

/// `scenario.kind`: how the classes of a stream's tasks relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The same classes in each task; the default.
    Domain,
    /// New classes in each task; the output layer knows all of them from the start.
    Class,
}

/// `uses` and `with`: a plugin and its settings as written (schema defaults are filled in by the load phase).
#[derive(Clone, Debug)]
pub struct PluginUse {
    /// Plugin id, e.g. `limbeck.mlp`.
    pub id: String,
    /// Place of the id.
    pub id_span: Option<Span>,
    /// Settings, an object.
    pub with: Json,
    /// Place of the settings object, or of the entry if there is none.
    pub with_span: Option<Span>,
    /// Places of keys and values inside `with`, by JSON Pointer (`/hidden/0`).
    pub spans: BTreeMap<String, KeySpan>,
}

/// Places of one setting.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySpan {
    /// Of the key (of the value inside a list).
    pub key: Option<Span>,
    /// Of the value.
    pub value: Option<Span>,
}

/// `plugins[]`.
#[derive(Clone, Debug)]
pub struct PinnedPlugin {
    /// Id it must offer.
    pub id: String,
    /// Absolute or relative to the pipeline file, resolved.
    pub path: PathBuf,
    /// semver requirement as written.
    pub version: Option<String>,
    /// Place.
    pub span: Option<Span>,
}

/// A named set of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetPlan {
    /// Its id.
    pub id: String,
    /// Place of its entry.
    pub span: Option<Span>,
    /// File format.
    pub format: Format,
    /// Files after resolution against the pipeline's directory; globs not expanded yet.
    pub paths: Vec<PathBuf>,
    /// Column (or pair of columns) of text, tokenised to `input_ids` and `attention_mask`.
    pub text: Option<TextColumns>,
    /// Column of the class, becomes `labels`.
    pub label: Option<Column>,
    /// Tensors by batch column name, e.g. `pixel_values`.
    pub tensors: BTreeMap<String, TensorPlan>,
    /// Half-open range of rows, before the other filters.
    pub rows: Option<(u64, u64)>,
    /// Keep only these classes.
    pub classes: Option<Vec<i64>>,
    /// At most so many rows, after the other filters.
    pub limit: Option<u64>,
    /// Labels that mean "ignore" in the data; read as -100.
    pub ignore_label: Option<i64>,
}

/// `format` of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, `.gz` too; header detected by a non-number in the first row.
    Csv,
    /// A JSON object a line, `.gz` too.
    Jsonl,
    /// IDX (MNIST): one file per tensor or label.
    Idx,
    /// Parquet.
    Parquet,
    /// NumPy arrays, `.npy`.
    Npy,
    /// A text a line.
    Text,
}

/// A column by name or by position (0-based).
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// By header, key or field name; for IDX and NPY a file path relative to the pipeline.
    Name(String),
    /// By position.
    Index(usize),
}

/// `text`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextColumns {
    /// First segment.
    pub column: Column,
    /// Second segment.
    pub pair: Option<Column>,
}

/// `tensors.NAME`.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// First and last column, inclusive; or one named column that holds a list; `None`: all (IDX, NPY).
    pub columns: Option<TensorColumns>,
    /// Shape of one row; default `[number of values]`.
    pub shape: Option<Vec<usize>>,
    /// Values are multiplied by it.
    pub scale: f64,
    /// Element type in the batch.
    pub dtype: DType,
    /// Place of the entry.
    pub span: Option<Span>,
}

/// Where a tensor's values lie.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorColumns {
    /// `[first, last]`, inclusive, 0-based.
    Range(usize, usize),
    /// A column (CSV, one value; JSONL and Parquet, a list of numbers), or a file (IDX, NPY).
    Named(Column),
}

/// `tokenizer`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerPlan {
    /// Directory with `tokenizer.json`, or that file.
    pub path: PathBuf,
    /// Tokens at most; longer texts are cut.
    pub max_length: usize,
    /// Pad to the batch's longest (else to `max_length`).
    pub pad_longest: bool,
    /// Place.
    pub span: Option<Span>,
}

/// One task of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskPlan {
    /// Its name; `""` when the stage has `data` instead of `tasks`.
    pub name: String,
    /// Dataset id of the training rows.
    pub train: String,
    /// Dataset id of the evaluation rows.
    pub valid: Option<String>,
    /// Place.
    pub span: Option<Span>,
}

/// One stage.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// Position, 0-based.
    pub index: usize,
    /// `name`.
    pub name: String,
    /// Place of the stage's entry.
    pub span: Option<Span>,
    /// What it does.
    pub work: Work,
    /// The resolved stage, as in [`Plan::resolved`].
    pub resolved: Json,
}

impl StagePlan {
    /// `01-teacher`: its folder in the run directory.
    pub fn folder(&self) -> String {
        format!("{:02}-{}", self.index + 1, self.name)
    }

    /// The training part, if it trains.
    pub fn training(&self) -> Option<&TrainPlan> {
        match &self.work {
            Work::Train(train) => Some(train),
            _ => None,
        }
    }
}

/// `kind` and what belongs to it.
#[derive(Clone, Debug)]
pub enum Work {
    /// `train` and `distill`.
    Train(Box<TrainPlan>),
    /// `eval`.
    Eval(EvalPlan),
    /// `export`.
    Export(ExportPlan),
}

/// A `train` or `distill` stage.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    /// Whether `kind: distill` was written.
    pub distill: bool,
    /// The model that is trained. For `{from}` the plugin and settings are those of that stage's student.
    pub student: PluginUse,
    /// Weights to start from.
    pub student_from: Option<FromStage>,
    /// What teaches.
    pub teacher: Option<TeacherPlan>,
    /// Teacher input port -> source, when rebound.
    pub teacher_inputs: BTreeMap<String, Bound>,
    /// Student input port -> source, when rebound.
    pub student_inputs: BTreeMap<String, Bound>,
    /// Loss terms of the pipeline.
    pub loss: Vec<TermPlan>,
    /// Schedulers, in order of their events.
    pub schedulers: Vec<SchedulerPlan>,
    /// The stream; one unnamed task when the stage has `data`.
    pub tasks: Vec<TaskPlan>,
    /// Every declared task is evaluated after each task (a task matrix exists).
    pub is_stream: bool,
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub accumulate: usize,
    /// Fresh permutation each epoch.
    pub shuffle: bool,
    /// How long each task is trained.
    pub length: Length,
    /// Optimizer.
    pub optimizer: OptimizerPlan,
    /// Learning-rate curve over each task.
    pub lr_schedule: LrSchedulePlan,
    /// Parameter and activation type asked for.
    pub dtype: DType,
    /// Evaluation.
    pub eval: EvalSettings,
    /// Checkpoints.
    pub checkpoint: CheckpointPlan,
    /// What to do with NaN and infinity.
    pub on_nonfinite: NonFinitePlan,
    /// Early stop.
    pub stop_if: Option<StopIf>,
    /// Conditions checked at the end of the stage.
    pub gates: Vec<Gate>,
}

impl TrainPlan {
    /// Every plugin that the stage names, in the order student, teacher, terms, schedulers.
    pub fn plugin_uses(&self) -> impl Iterator<Item = &PluginUse> {
        let teacher = match &self.teacher {
            Some(TeacherPlan::Plugin(plugin) | TeacherPlan::Stage { student: plugin, .. }) => {
                Some(plugin)
            }
            _ => None,
        };
        std::iter::once(&self.student)
            .chain(teacher)
            .chain(self.loss.iter().map(|t| &t.plugin))
            .chain(self.schedulers.iter().map(|s| &s.plugin))
    }
}

/// `{from: STAGE, which}`.
#[derive(Clone, Debug, PartialEq)]
pub struct FromStage {
    /// Index of an earlier training stage.
    pub stage: usize,
    /// Which of its students.
    pub which: Which,
    /// Place.
    pub span: Option<Span>,
}

/// `which`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The student at the end of the stage.
    Last,
    /// The student with the best metric.
    Best,
}

/// `teacher`.
#[derive(Clone, Debug)]
pub enum TeacherPlan {
    /// A teacher plugin.
    Plugin(PluginUse),
    /// A student trained by an earlier stage, frozen. `student` is that stage's plugin and settings.
    Stage {
        /// Which one.
        from: FromStage,
        /// Its plugin.
        student: PluginUse,
    },
    /// `decay*copy + (1-decay)*student` after each step; starts as the student.
    Ema {
        /// In `[0, 1)`.
        decay: f64,
    },
    /// This step's own outputs, no gradient.
    SelfOutputs,
}

/// A source as written in `inputs`, parsed by the wiring: `labels`, `teacher.logits`, `student.params.NAME`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Text.
    pub source: String,
    /// Place.
    pub span: Option<Span>,
}

/// `reduction` of a term: chooses the normaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Counted items.
    TokenMean,
    /// Row weight 1/length, normaliser = number of sequences.
    SeqMean,
    /// Examples (size of the first axis of the batch).
    BatchMean,
    /// 1.
    Sum,
}

/// One entry of `loss`.
#[derive(Clone, Debug)]
pub struct TermPlan {
    /// Unique in the stage.
    pub name: String,
    /// Plugin; its `with` does not hold the host's own `layers` key.
    pub plugin: PluginUse,
    /// Pairs [student layer, teacher layer] of `with.layers`; the term is the mean over them.
    pub layers: Option<Vec<(usize, usize)>>,
    /// Factor in the objective.
    pub weight: f64,
    /// Normaliser.
    pub reduction: Reduction,
    /// Rows it sees.
    pub rows: RowsChoice,
    /// Loss port -> source, when rebound.
    pub inputs: BTreeMap<String, Bound>,
    /// Place of the entry.
    pub span: Option<Span>,
}

/// `rows` of a term.
#[derive(Clone, Debug, PartialEq)]
pub enum RowsChoice {
    /// Fresh rows and groups marked JOIN (the default).
    FreshAndJoined,
    /// Only the fresh rows.
    Fresh,
    /// Every row of the pass.
    All,
    /// A row group, `scheduler.group` or `group`.
    Group(String),
}

/// One scheduler of a stage.
#[derive(Clone, Debug)]
pub struct SchedulerPlan {
    /// Unique in the stage.
    pub name: String,
    /// Plugin.
    pub plugin: PluginUse,
    /// Stage whose scheduler of the same name hands over its state.
    pub from: Option<usize>,
    /// Weights of its terms that the pipeline overrides.
    pub term_weights: BTreeMap<String, f64>,
    /// Input port -> source, when rebound.
    pub inputs: BTreeMap<String, Bound>,
    /// Place.
    pub span: Option<Span>,
}

/// `epochs` or `steps`, per task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Passes over the task's rows.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
}

/// `optimizer`.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerPlan {
    /// Rule.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled (AdamW) or added to the gradient (SGD).
    pub weight_decay: f64,
    /// Global norm above which gradients are scaled down.
    pub clip_norm: Option<f64>,
}

/// Update rule and its own settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerKind {
    /// Loshchilov & Hutter 2019.
    Adamw {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// With momentum (PyTorch's form: `v = mu v + g; p -= lr v`).
    Sgd {
        /// `mu`.
        momentum: f64,
    },
}

/// `lr_schedule`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedulePlan {
    /// Curve after warm-up.
    pub kind: LrCurve,
    /// Linear from 0.
    pub warmup: Warmup,
}

/// Curve of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrCurve {
    /// Stays.
    Constant,
    /// To 0 at the end of the task.
    Linear,
    /// Half a cosine to 0.
    Cosine,
}

/// Length of the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// Steps.
    Steps(u64),
    /// Part of the task's steps, 0 to 1.
    Fraction(f64),
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    /// Optimizer steps.
    Steps(u64),
    /// Epochs.
    Epochs(u64),
    /// Wall time (checkpoints only).
    Time(Duration),
    /// Only at the end.
    End,
}

/// `eval` of a training stage.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalSettings {
    /// How often; always at the end too.
    pub every: Every,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// What "best" means.
    pub best: Option<Best>,
}

/// One metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Unweighted mean of the classes' F1.
    MacroF1,
    /// Two classes: F1 of class 1; else macro.
    F1,
    /// Recall of one class, `recall.3`.
    Recall(i64),
    /// Precision of one class.
    Precision(i64),
    /// Mean cross-entropy of the labels.
    Nll,
    /// Share of rows where student and teacher choose the same class.
    Agreement,
    /// Mean of the stage's weighted loss terms on the evaluation rows.
    Loss,
}

impl Metric {
    /// As written in YAML and in metrics files.
    pub fn name(&self) -> String {
        match self {
            Self::Accuracy => "accuracy".into(),
            Self::MacroF1 => "macro_f1".into(),
            Self::F1 => "f1".into(),
            Self::Recall(class) => format!("recall.{class}"),
            Self::Precision(class) => format!("precision.{class}"),
            Self::Nll => "nll".into(),
            Self::Agreement => "agreement".into(),
            Self::Loss => "loss".into(),
        }
    }
}

/// `best`.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// Name of a metric that is measured.
    pub metric: String,
    /// Larger is better.
    pub maximize: bool,
}

/// `checkpoint`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CheckpointPlan {
    /// How often.
    pub every: Every,
    /// Newest ones kept.
    pub keep_last: usize,
    /// Best ones kept.
    pub keep_best: usize,
}

/// `on_nonfinite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinitePlan {
    /// What to do.
    pub action: NonFiniteAction,
    /// Consecutive ones before the run stops all the same.
    pub max_consecutive: u64,
}

/// `on_nonfinite.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFiniteAction {
    /// Stop the run (exit 79).
    Stop,
    /// Leave this step out.
    Skip,
    /// Go back to the last checkpoint and leave that step out.
    Rollback,
}

/// `stop_if`.
#[derive(Clone, Debug, PartialEq)]
pub struct StopIf {
    /// Metric that must improve.
    pub metric: String,
    /// Evaluations without improvement that are allowed.
    pub patience: u64,
    /// Larger is better.
    pub maximize: bool,
}

/// One of `gates`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// A metric of the final evaluation or of the task matrix.
    pub metric: String,
    /// Must be at least.
    pub min: Option<f64>,
    /// Must be at most.
    pub max: Option<f64>,
    /// Place.
    pub span: Option<Span>,
}

/// An `eval` stage.
#[derive(Clone, Debug)]
pub struct EvalPlan {
    /// Whose student; its plugin and settings are in that stage's plan.
    pub model: FromStage,
    /// Dataset ids.
    pub data: Vec<String>,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// Conditions.
    pub gates: Vec<Gate>,
    /// Rows per batch.
    pub batch_size: usize,
}

/// An `export` stage.
#[derive(Clone, Debug)]
pub struct ExportPlan {
    /// Whose student.
    pub model: FromStage,
    /// Where to, besides the stage's `out/`.
    pub to: Option<PathBuf>,
}
