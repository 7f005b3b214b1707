//! What is going to happen, as plain data. Later phases read it and never change it.

mod capture;
mod data;
mod evaluation;
mod fork;
mod slots;
mod stage;
mod training;

pub use capture::{CacheAt, CachePlan, CapturePlan, TopK};
pub use data::{
    Column, DatasetPlan, Format, TensorColumns, TensorPlan, TextColumns, TokenizerPlan, Transform,
};
pub use evaluation::{Best, EvalSettings, Every, Gate, Metric, StopIf};
pub use fork::OtherRun;
pub use slots::{
    Bound, KeySpan, MAX_MEMBERS, MemberPlan, PluginUse, Reduction, RowsChoice, SchedulerPlan,
    TeacherPlan, TermPlan,
};
pub use stage::{EvalPlan, ExportPlan, FromStage, StagePlan, TaskPlan, Which, Work};
pub use training::{
    CheckpointPlan, Length, LrCurve, LrSchedulePlan, NonFiniteAction, NonFinitePlan, OptimizerKind,
    OptimizerPlan, Teaching, TrainPlan, Warmup,
};

use crate::diagnostic::{Diagnostics, Span};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;

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
    /// `seed: random` was written: an unfinished run of the pipeline goes on with the seed that it drew.
    pub seed_is_drawn: bool,
    /// Refuse plugins and kernels that are not bit-reproducible.
    pub deterministic: bool,
    /// `device`.
    pub device: DeviceChoice,
    /// `datasets`, by id.
    pub datasets: BTreeMap<String, DatasetPlan>,
    /// `tokenizer`: of `text`.
    pub tokenizer: Option<TokenizerPlan>,
    /// `tokenizers`, by name: of `texts`.
    pub tokenizers: BTreeMap<String, TokenizerPlan>,
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
    /// The same plan with another seed.
    #[must_use]
    pub fn with_seed(&self, seed: u64) -> Self {
        let mut plan = Self { seed, ..self.clone() };
        if let Some(written) = plan.resolved.get_mut("seed") {
            *written = seed.into();
        }
        plan
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
