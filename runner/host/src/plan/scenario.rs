//! `scenario`: how the tasks of a stream relate, and over which classes a student is trained.
//!
//! Knows no data: whether tasks share a class is found when rows are there.

use super::Plan;
use crate::diagnostic::Diagnostic;
use crate::document::Fields;
use serde_json::Value as Json;

/// `scenario.kind`: how the classes of a stream's tasks relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The same classes in each task; the default.
    Domain,
    /// New classes in each task; the student is to tell all of them apart.
    Class,
    /// New classes in each task; the task of a row is known when it is classified.
    Task,
}

impl Scenario {
    /// As the pipeline writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Domain => "domain",
            Self::Class => "class",
            Self::Task => "task",
        }
    }

    /// Whether each class belongs to one task.
    pub fn splits_classes(self) -> bool {
        self != Self::Domain
    }
}

/// `scenario.train_classes`: over which classes a row's softmax goes in training. Obeyed by losses with a port
/// `row_classes`; written into the task matrix, since results depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainClasses {
    /// All columns.
    All,
    /// Classes of the tasks so far.
    Seen,
    /// Classes of the row's own task.
    Task,
}

impl TrainClasses {
    /// As the pipeline writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Seen => "seen",
            Self::Task => "task",
        }
    }
}

impl Plan {
    /// `scenario.kind`, read from the resolved pipeline.
    pub fn scenario(&self) -> Scenario {
        match self.resolved.pointer("/scenario/kind").and_then(Json::as_str) {
            Some("class") => Scenario::Class,
            Some("task") => Scenario::Task,
            _ => Scenario::Domain,
        }
    }

    /// `scenario.train_classes`; left out: the row's own task where the task is known, else all.
    pub fn train_classes(&self) -> TrainClasses {
        match self.resolved.pointer("/scenario/train_classes").and_then(Json::as_str) {
            Some("seen") => TrainClasses::Seen,
            Some("task") => TrainClasses::Task,
            _ => TrainClasses::All,
        }
    }
}

/// Reads `scenario`.
pub(super) fn read(fields: &Fields) {
    let Some(part) = fields.part("scenario") else { return };
    let kinds = [("class", Scenario::Class), ("task", Scenario::Task)];
    let kind = part.choice_or_first("kind", ("domain", Scenario::Domain), &kinds);
    let classes = match (part.field("train_classes"), kind) {
        (None, Scenario::Task) => {
            part.keep("train_classes", Json::from("task"), None);
            TrainClasses::Task
        }
        _ => part.choice_or_first(
            "train_classes",
            ("all", TrainClasses::All),
            &[("seen", TrainClasses::Seen), ("task", TrainClasses::Task)],
        ),
    };
    if let (Scenario::Domain, TrainClasses::Seen | TrainClasses::Task, Some(field)) =
        (kind, classes, part.field("train_classes"))
    {
        let message =
            format!("`train_classes: {}` needs tasks with their own classes", classes.name());
        fields.sink.report(Diagnostic::error("LMB0113", message).at(field.node.span.clone()).help(
            "write `kind: class` or `kind: task`; in `domain` all tasks have the same classes",
        ));
    }
    fields.keep_part("scenario", part.finish());
}
