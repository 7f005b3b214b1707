//! Ports to sources: names, symbolic shapes, element types.
//!
//! Every mismatch is reported with the places of both ends, before anything is allocated. A stage that comes out of
//! here has a source for each required port, and each source exists.

mod bind;
mod cached;
mod capture;
mod check;
mod connect;
mod ends;
mod rows;
mod scenario;
mod shape;
mod stage;
#[cfg(test)]
mod tests;
mod tokens;

pub use capture::LoadedCapture;
pub(crate) use capture::capture;

use super::instance::{Port, Schedule};
use super::{Catalogue, Instance};
use crate::data::Datasets;
use crate::diagnostic::Diagnostics;
use crate::plan::{CacheAt, Plan, StagePlan, TrainPlan};

/// Creates and wires a training stage; gives its warnings too.
///
/// # Errors
/// All problems of its plugins, settings and connections.
pub(crate) fn stage(
    plan: &Plan,
    catalogue: &Catalogue,
    data: &Datasets,
    stage: &StagePlan,
    train: &TrainPlan,
    captures: &[Option<LoadedCapture>],
) -> Result<(LoadedStage, Diagnostics), Diagnostics> {
    let problems = Vec::new();
    stage::Builder { plan, catalogue, data, stage, train, captures, problems }.build()
}

pub(crate) use scenario::width;

/// Batch column that the host makes: `[N, V]`, 0 where a column is no class of the row's task (or of the tasks so far).
pub(crate) const ROW_CLASSES: &str = "row_classes";

/// Where an input comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A batch column.
    Batch(String),
    /// An output of the student.
    Student(String),
    /// A parameter of the student.
    StudentParam(String),
    /// An output of the teacher (of the student itself for `self`).
    Teacher(String),
    /// An output of a scheduler's snapshot.
    Snapshot {
        /// Position in [`LoadedStage::snapshots`].
        snapshot: usize,
        /// Output port.
        output: String,
    },
    /// A tensor that a scheduler supplies.
    Scheduler {
        /// Position in [`LoadedStage::schedulers`].
        scheduler: usize,
        /// Its output port.
        port: String,
    },
}

/// A training stage, created and wired.
pub struct LoadedStage {
    /// The student.
    pub student: Instance,
    /// Source of each of its input ports.
    pub student_inputs: Vec<Option<Source>>,
    /// The teacher instance: a teacher plugin, or a frozen copy of a student (`{from}`, `{ema}`). `None` without a
    /// teacher, for `{self: true}` and for `{cache}`.
    pub teacher: Option<Instance>,
    /// `teacher: {cache: …}`.
    pub cache: Option<CachedTeacher>,
    /// Source of each of its input ports.
    pub teacher_inputs: Vec<Option<Source>>,
    /// Student outputs that a consumer binds, sorted.
    pub student_wanted: Vec<String>,
    /// Teacher outputs that a consumer binds, sorted.
    pub teacher_wanted: Vec<String>,
    /// The pipeline's terms (expanded over `layers`), then the schedulers'.
    pub terms: Vec<LoadedTerm>,
    /// Schedulers.
    pub schedulers: Vec<LoadedScheduler>,
    /// Frozen students that schedulers take, in declared order.
    pub snapshots: Vec<LoadedSnapshot>,
}

/// A teacher whose outputs are read.
pub struct CachedTeacher {
    /// Outputs.
    pub ports: Vec<Port>,
    /// Where it lies.
    pub at: CacheAt,
    /// The stage's rows: row id of the first row of some files, [`crate::data::Dataset::source`] of these.
    pub sources: Vec<(i64, String)>,
    /// Temperature of its top-k entries.
    pub temperature: Option<f64>,
    /// Opened when the stage starts.
    pub(crate) open: Option<crate::cache::Cache>,
}

impl LoadedStage {
    /// An output of the teacher, instance or cache.
    pub fn teacher_output(&self, name: &str) -> Option<&Port> {
        let of_instance = self.teacher.iter().flat_map(Instance::outputs);
        of_instance.chain(self.cache.iter().flat_map(|c| &c.ports)).find(|p| p.name == name)
    }
}

/// A loss term.
pub struct LoadedTerm {
    /// Metric name: `kl`, `derpp.logit-mse` for a scheduler's.
    pub name: String,
    /// Index into the plan's `loss`; `None` for a scheduler's term.
    pub planned: Option<usize>,
    /// Scheduler that declared it.
    pub scheduler: Option<usize>,
    /// The loss. One instance per layer pair.
    pub instance: Instance,
    /// Source of each input port.
    pub inputs: Vec<Option<Source>>,
    /// Initial weight; a term over k layer pairs has k entries of weight/k.
    pub weight: f64,
    /// Rows.
    pub rows: TermRows,
    /// Normaliser.
    pub reduction: crate::plan::Reduction,
}

/// Rows that a term sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TermRows {
    /// Fresh rows and joined groups.
    FreshAndJoined,
    /// Fresh rows.
    Fresh,
    /// Everything of the pass.
    All,
    /// One group of one scheduler.
    Group {
        /// Scheduler.
        scheduler: usize,
        /// Local group name.
        group: String,
    },
}

/// A scheduler.
pub struct LoadedScheduler {
    /// Name in the stage.
    pub name: String,
    /// Instance.
    pub instance: Instance,
    /// What it declared.
    pub schedule: Schedule,
    /// Port name and source of each input port (`batch.*` expanded to every column).
    pub inputs: Vec<(String, Option<Source>)>,
}

/// A frozen student of a scheduler.
pub struct LoadedSnapshot {
    /// Owner.
    pub scheduler: usize,
    /// Local name.
    pub name: String,
    /// Second instance of the student's plugin and settings.
    pub instance: Instance,
    /// Outputs that a consumer binds.
    pub wanted: Vec<String>,
}
