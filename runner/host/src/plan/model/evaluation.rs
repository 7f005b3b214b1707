//! What is measured and when, and what follows from it.

use crate::diagnostic::Span;
use std::time::Duration;

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
    /// A metric of the EMA teacher instead of the student, `ema.accuracy`.
    Ema(Box<Metric>),
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
            Self::Ema(of) => format!("ema.{}", of.name()),
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
