//! The entries of `stages`, and what they take from earlier ones.

use super::{CapturePlan, Gate, Metric, OtherRun, PluginUse, TeacherPlan, TrainPlan};
use crate::diagnostic::Span;
use serde_json::Value as Json;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Plugins of a training or `capture` stage.
    pub fn plugin_uses(&self) -> Vec<&PluginUse> {
        match &self.work {
            Work::Train(train) => train.plugin_uses().collect(),
            Work::Capture(capture) => capture.plugin().into_iter().collect(),
            Work::Eval(_) | Work::Export(_) => Vec::new(),
        }
    }

    /// Stages of other runs that it goes on from.
    pub fn forks(&self) -> Vec<&FromStage> {
        fn of_teacher(plan: &TeacherPlan) -> Option<&FromStage> {
            match plan {
                TeacherPlan::Stage { from, .. } => Some(from),
                _ => None,
            }
        }
        let named: Vec<&FromStage> = match &self.work {
            Work::Train(train) => {
                let teachers = train.teaching().into_iter().filter_map(|t| of_teacher(t.plan));
                let schedulers = train.schedulers.iter().filter_map(|s| s.from.as_ref());
                train.student_from.iter().chain(teachers).chain(schedulers).collect()
            }
            Work::Capture(capture) => of_teacher(&capture.teacher).into_iter().collect(),
            Work::Eval(_) | Work::Export(_) => Vec::new(),
        };
        named.into_iter().filter(|from| from.run.is_some()).collect()
    }

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
    /// `capture`.
    Capture(Box<CapturePlan>),
    /// `eval`.
    Eval(EvalPlan),
    /// `export`.
    Export(ExportPlan),
}

/// `{from: STAGE, run, which}`.
#[derive(Clone, Debug, PartialEq)]
pub struct FromStage {
    /// Index of a training stage: an earlier one, or one of `run`.
    pub stage: usize,
    /// Another run that the stage is of.
    pub run: Option<Arc<OtherRun>>,
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
    /// The EMA teacher at the end of the stage.
    Ema,
}

/// An `eval` stage.
#[derive(Clone, Debug)]
pub struct EvalPlan {
    /// Whose student, or whose students as an ensemble (each stage once); plugins and settings are in those stages'
    /// plans.
    pub models: Vec<FromStage>,
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
