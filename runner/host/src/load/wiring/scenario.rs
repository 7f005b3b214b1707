//! What a stream asks of its tasks and schedulers: classes of one task only, schedulers that know the scenario, and
//! buffers with room for every class.
//!
//! A plugin says that a setting must be at least the number of classes by the format `at-least-classes` in its schema;
//! 0 turns such a setting off.

use super::LoadedStage;
use crate::data::Datasets;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::load::catalogue::Catalogue;
use crate::load::codes;
use crate::plan::{Plan, StagePlan, TrainPlan};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

/// A setting that must be at least the number of classes.
const AT_LEAST_CLASSES: &str = "at-least-classes";

/// Columns of the student's logits, if its ports tell.
pub(crate) fn width(student: &crate::load::Instance) -> Option<i64> {
    let logits = student.outputs().find(|p| p.name == "logits")?;
    logits.shape.rsplit(',').next()?.trim().parse().ok()
}

/// All of it, for one stage.
pub(super) fn check(
    plan: &Plan,
    catalogue: &Catalogue,
    data: &Datasets,
    stage: &StagePlan,
    train: &TrainPlan,
    loaded: &LoadedStage,
) -> Diagnostics {
    let mut problems = Vec::new();
    if train.is_stream {
        problems.extend(shared_classes(plan, data, stage, train));
        problems.extend(unfit_schedulers(plan, catalogue, stage, train));
    }
    problems.extend(small_buffers(plan, catalogue, data, stage, train));
    if plan.scenario().splits_classes() && train.is_stream && width(&loaded.student).is_none() {
        let message = format!(
            "`scenario: {{kind: {}}}` needs a student that says how many classes its logits have",
            plan.scenario().name()
        );
        let context = format!("stage `{}`, student", stage.name);
        let problem = Diagnostic::error(codes::SHAPES_DIFFER, message);
        problems.push(problem.at(train.student.id_span.clone()).within(context));
    }
    problems
}

/// A class in two tasks, or a task without classes, where each class is to belong to one task.
fn shared_classes(
    plan: &Plan,
    data: &Datasets,
    stage: &StagePlan,
    train: &TrainPlan,
) -> Diagnostics {
    let scenario = plan.scenario();
    if !scenario.splits_classes() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let mut owner: BTreeMap<i64, &str> = BTreeMap::new();
    for task in &plan.tasks {
        let Some(rows) = data.get(&task.train) else { continue };
        let ours = train.tasks.iter().find(|t| t.name == task.name);
        let mut report = |message: String, help: &str| {
            // Reported by the stage that trains the task, at the place where the task is declared.
            if ours.is_some() {
                let context = format!("stage `{}`, task `{}`", stage.name, task.name);
                let problem = Diagnostic::error(codes::SCENARIO, message).help(help);
                problems.push(problem.at(task.span.clone()).within(context));
            }
        };
        let classes = rows.classes();
        if classes.is_empty() {
            let message = format!(
                "task `{}` has no labels, `kind: {}` needs classes",
                task.name,
                scenario.name()
            );
            report(message, "name the column of the class: `label: COLUMN`, or use `kind: domain`");
        }
        for class in classes {
            if let Some(other) = owner.insert(class, &task.name) {
                let message =
                    format!("class {class} is in task `{other}` and in task `{}`", task.name);
                report(message, "give each class to one task, or use `scenario: {kind: domain}`");
            }
        }
    }
    problems
}

/// Schedulers that do not say that they know this scenario.
fn unfit_schedulers(
    plan: &Plan,
    catalogue: &Catalogue,
    stage: &StagePlan,
    train: &TrainPlan,
) -> Diagnostics {
    let name = plan.scenario().name();
    let feature = format!("scenario.{name}");
    let mut problems = Vec::new();
    for scheduler in &train.schedulers {
        let Some(info) = catalogue.find(&scheduler.plugin.id) else { continue };
        if info.features.contains(&feature) {
            continue;
        }
        let known: Vec<&str> =
            info.features.iter().filter_map(|f| f.strip_prefix("scenario.")).collect();
        let message = format!("`{}` does not know streams of `kind: {name}`", scheduler.plugin.id);
        let help = match known.as_slice() {
            [] => "it promises no scenario; see `limbeck plugin info`".to_owned(),
            known => format!("it knows {}", known.join(", ")),
        };
        let context = format!("stage `{}`, scheduler `{}`", stage.name, scheduler.name);
        let problem = Diagnostic::error(codes::SCENARIO, message).help(help);
        problems.push(problem.at(scheduler.plugin.id_span.clone()).within(context));
    }
    problems
}

/// Settings of format `at-least-classes` below the number of classes that the stream has.
fn small_buffers(
    plan: &Plan,
    catalogue: &Catalogue,
    data: &Datasets,
    stage: &StagePlan,
    train: &TrainPlan,
) -> Diagnostics {
    let tasks = if train.is_stream { &plan.tasks } else { &train.tasks };
    let classes: BTreeSet<i64> =
        tasks.iter().filter_map(|t| data.get(&t.train)).flat_map(|d| d.classes()).collect();
    let count = classes.len() as u64;
    let mut problems = Vec::new();
    for scheduler in train.schedulers.iter().filter(|s| s.from.is_none()) {
        let plugin = &scheduler.plugin;
        let Some(info) = catalogue.find(&plugin.id) else { continue };
        let properties = info.schema.get("properties").and_then(Json::as_object);
        for (key, schema) in properties.into_iter().flatten() {
            let format = schema.get("format").and_then(Json::as_str);
            let value = plugin.with.get(key).and_then(Json::as_u64);
            let Some(value) = value.filter(|v| *v > 0 && *v < count) else { continue };
            if format != Some(AT_LEAST_CLASSES) {
                continue;
            }
            let message =
                format!("`{key}` {value} is below the {count} classes of the stream's tasks");
            let span = plugin.spans.get(&format!("/{key}")).and_then(|s| s.value.clone());
            let context = format!("stage `{}`, scheduler `{}`", stage.name, scheduler.name);
            let problem = Diagnostic::error(codes::SMALL_BUFFER, message)
                .help(format!("at least one row per class: {count}; 0 keeps none"));
            problems.push(problem.at(span.or_else(|| plugin.with_span.clone())).within(context));
        }
    }
    problems
}
