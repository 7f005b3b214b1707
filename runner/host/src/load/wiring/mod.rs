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
mod ensemble;
mod fork;
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

pub(crate) use ensemble::measured;
pub(crate) use fork::same_stream;
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
    /// The models that teach: none (for `{self: true}` too), one, or the members of an ensemble.
    pub teachers: Vec<LoadedTeacher>,
    /// `logits` of an ensemble: the logarithm of its members' mean probabilities.
    pub ensemble: Option<Port>,
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

/// A model that teaches.
pub struct LoadedTeacher {
    /// Its name in an ensemble; else empty.
    pub name: String,
    /// What gives its outputs.
    pub model: TeacherModel,
    /// Source of each of its input ports; none for a cache.
    pub inputs: Vec<Option<Source>>,
}

/// What gives a teacher's outputs.
pub enum TeacherModel {
    /// A teacher plugin, or a frozen copy of a student (`{from}`, `{ema}`).
    Instance(Instance),
    /// `{cache: …}`.
    Cache(CachedTeacher),
}

impl LoadedTeacher {
    /// Its instance, unless it is a cache.
    pub fn instance(&self) -> Option<&Instance> {
        match &self.model {
            TeacherModel::Instance(instance) => Some(instance),
            TeacherModel::Cache(_) => None,
        }
    }

    /// See [`Self::instance`].
    pub fn instance_mut(&mut self) -> Option<&mut Instance> {
        match &mut self.model {
            TeacherModel::Instance(instance) => Some(instance),
            TeacherModel::Cache(_) => None,
        }
    }

    /// The cache, if it is one.
    pub fn cache(&self) -> Option<&CachedTeacher> {
        match &self.model {
            TeacherModel::Instance(_) => None,
            TeacherModel::Cache(cache) => Some(cache),
        }
    }

    /// See [`Self::cache`].
    pub fn cache_mut(&mut self) -> Option<&mut CachedTeacher> {
        match &mut self.model {
            TeacherModel::Instance(_) => None,
            TeacherModel::Cache(cache) => Some(cache),
        }
    }

    /// Its outputs.
    pub fn outputs(&self) -> Vec<&Port> {
        match &self.model {
            TeacherModel::Instance(instance) => instance.outputs().collect(),
            TeacherModel::Cache(cache) => cache.ports.iter().collect(),
        }
    }

    /// One of them.
    pub fn output(&self, name: &str) -> Option<&Port> {
        self.outputs().into_iter().find(|p| p.name == name)
    }
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
    /// An output of the teacher; of a member of an ensemble as `MEMBER.OUTPUT`.
    pub fn teacher_output(&self, name: &str) -> Option<&Port> {
        let Some(mean) = &self.ensemble else { return self.teachers.first()?.output(name) };
        if name == mean.name {
            return Some(mean);
        }
        let (member, output) = name.split_once('.')?;
        self.teachers.iter().find(|t| t.name == member)?.output(output)
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
