//! How a stage trains: rows per step, optimizer, learning rate, checkpoints.

use super::{
    Bound, EvalSettings, Every, FromStage, Gate, MemberPlan, PluginUse, SchedulerPlan, StopIf,
    TaskPlan, TeacherPlan, TermPlan,
};
use crate::tensor::DType;
use std::collections::BTreeMap;

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
    /// Batches per window in which rows of like length are put together; 0: none are.
    pub bucket: usize,
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
        let teachers = self.teacher.iter().flat_map(TeacherPlan::plugins);
        std::iter::once(&self.student)
            .chain(teachers)
            .chain(self.loss.iter().map(|t| &t.plugin))
            .chain(self.schedulers.iter().map(|s| &s.plugin))
    }

    /// The models that teach: none (for `self` too), one, or the members of an ensemble.
    pub fn teaching(&self) -> Vec<Teaching<'_>> {
        match &self.teacher {
            None | Some(TeacherPlan::SelfOutputs) => Vec::new(),
            Some(TeacherPlan::Ensemble { members, .. }) => {
                members.iter().map(MemberPlan::teaching).collect()
            }
            Some(plan) => vec![Teaching { name: "", plan, inputs: &self.teacher_inputs }],
        }
    }
}

/// A model that teaches.
#[derive(Clone, Copy, Debug)]
pub struct Teaching<'a> {
    /// Its name in the ensemble; empty if it is the only one.
    pub name: &'a str,
    /// What it is.
    pub plan: &'a TeacherPlan,
    /// Input port -> source, when rebound.
    pub inputs: &'a BTreeMap<String, Bound>,
}

impl MemberPlan {
    fn teaching(&self) -> Teaching<'_> {
        Teaching { name: &self.name, plan: &self.teacher, inputs: &self.inputs }
    }
}

impl Teaching<'_> {
    /// What messages call it: `teacher`, `` teacher `gen1` ``.
    pub fn part(&self) -> String {
        if self.name.is_empty() { "teacher".to_owned() } else { format!("teacher `{}`", self.name) }
    }
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
