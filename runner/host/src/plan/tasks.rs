//! `tasks`: a list of tasks over datasets, or a generator that makes tasks of one dataset.
//!
//! A generator's datasets are the dataset with a filter or a transformation of their own: `DATASET.TASK`. The resolved
//! pipeline keeps the generator as it was written.

use super::top::{Top, help_among, report_double};
use super::values::{check_name, out_of_range};
use super::{DatasetPlan, TaskPlan, Transform};
use crate::diagnostic::{Diagnostic, Span};
use crate::document::{Bounds, Field, Fields, Value, number_of};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

/// Most tasks of a generator.
const MOST: u64 = 1000;

/// Tasks, with the datasets that a generator adds, and the ids of those it takes.
#[derive(Default)]
pub struct Tasks {
    pub tasks: Vec<TaskPlan>,
    pub made: BTreeMap<String, DatasetPlan>,
    pub taken: Vec<String>,
}

/// Reads `tasks`.
pub fn read(fields: &Fields, top: &Top) -> Tasks {
    match fields.field("tasks") {
        Some(field) if matches!(field.node.value, Value::Map(_)) => generated(fields, top),
        _ => Tasks { tasks: listed(fields, top), ..Tasks::default() },
    }
}

fn listed(fields: &Fields, top: &Top) -> Vec<TaskPlan> {
    let mut out: Vec<TaskPlan> = Vec::new();
    let mut json = Vec::new();
    for node in fields.list("tasks") {
        let label = node.get("name").and_then(|n| n.text()).unwrap_or("?").to_owned();
        let part = fields.below(node, &format!("tasks.{label}"), format!("task `{label}`"), false);
        let name = part.need_text("name", "for example `{name: books, train: …, valid: …}`");
        if let Some(field) = part.field("name") {
            if !name.is_empty() {
                check_name(fields.sink, "a task name", &name, &field.node.span, false);
            }
            if out.iter().any(|t| t.name == name) {
                report_double(fields.sink, &format!("task `{name}`"), &field.node.span);
            }
        }
        let (train, valid) = sides(&part, top);
        json.push(part.finish());
        out.push(TaskPlan { name, train, valid: Some(valid), span: Some(node.span.clone()) });
    }
    if !json.is_empty() {
        fields.keep_part("tasks", Json::Array(json));
    }
    out
}

/// `train` and `valid`.
fn sides(part: &Fields, top: &Top) -> (String, String) {
    let train = part.need_text("train", "the id of a dataset");
    let valid =
        part.need_text("valid", "the id of a dataset: every task is evaluated after each task");
    for (key, id) in [("train", &train), ("valid", &valid)] {
        if let (Some(field), false) = (part.field(key), id.is_empty()) {
            top.check_dataset(part.sink, id, &field.node.span);
        }
    }
    (train, valid)
}

/// What makes one task of a dataset.
enum Change {
    Classes(Vec<i64>),
    Transform(Transform),
    Nothing,
}

fn generated(fields: &Fields, top: &Top) -> Tasks {
    let mut out = Tasks::default();
    let Some(part) = fields.part("tasks") else { return out };
    let (train, valid) = sides(&part, top);
    let span = part.field("train").map(|f| f.node.span.clone());
    let place = span.clone().unwrap_or_else(|| part.span.clone());
    let (changes, tensor) = match (
        part.field("split"),
        part.field("permuted"),
        part.field("rotated"),
    ) {
        (Some(field), None, None) => (split(&part, field), None),
        (None, Some(field), None) => (permuted(&part, field), tensor(&part)),
        (None, None, Some(field)) => (rotated(&part, field), tensor(&part)),
        _ => {
            let message =
                "`tasks` as a mapping makes tasks by one of `split`, `permuted`, `rotated`";
            part.sink.report(Diagnostic::error("LMB0102", message).at(part.span.clone()).help(
                "for example `{split: [[0, 1], [2, 3]], train: DATASET, valid: DATASET}`; a list names tasks one by one",
            ));
            (Vec::new(), None)
        }
    };
    fields.keep_part("tasks", part.finish());
    for (name, change) in changes {
        let mut make = |base: &str| {
            let id = format!("{base}.{name}");
            if let Some(base) = top.datasets.get(base) {
                let made = DatasetPlan { id: id.clone(), ..base.clone() };
                out.made.insert(id.clone(), changed(made, &change, tensor.as_deref()));
            }
            id
        };
        let (train, valid) = (make(&train), make(&valid));
        if out.tasks.iter().any(|t| t.name == name) {
            report_double(fields.sink, &format!("task `{name}`"), &place);
        }
        out.tasks.push(TaskPlan { name, train, valid: Some(valid), span: span.clone() });
    }
    check(fields, top, &train, &valid, tensor.as_deref(), &span, &out);
    out.taken = vec![train, valid];
    out
}

fn changed(mut dataset: DatasetPlan, change: &Change, tensor: Option<&str>) -> DatasetPlan {
    match change {
        Change::Classes(classes) => dataset.classes = Some(classes.clone()),
        Change::Transform(transform) => {
            for (name, plan) in &mut dataset.tensors {
                if tensor.is_none_or(|wanted| wanted == name) {
                    plan.transform = Some(*transform);
                }
            }
        }
        Change::Nothing => {}
    }
    dataset
}

/// What only shows once the datasets are known.
fn check(
    fields: &Fields,
    top: &Top,
    train: &str,
    valid: &str,
    tensor: Option<&str>,
    span: &Option<Span>,
    made: &Tasks,
) {
    let report = |problem: Diagnostic, help: &str| {
        fields.sink.report(problem.at(span.clone()).help(help.to_owned()));
    };
    // One dataset without is enough to say it.
    for dataset in [train, valid].iter().filter_map(|id| top.datasets.get(*id)) {
        let names: Vec<&str> = dataset.tensors.keys().map(String::as_str).collect();
        let plans = || made.made.values().flat_map(|d| d.tensors.values());
        if made.made.values().any(|d| d.classes != dataset.classes) && dataset.label.is_none() {
            let message = format!("dataset `{}` is split by class and has no `label`", dataset.id);
            let help = "name the column of the class: `label: COLUMN`";
            return report(Diagnostic::error("LMB0209", message), help);
        }
        if let Some(wanted) = tensor.filter(|wanted| !names.contains(wanted)) {
            let message = format!("dataset `{}` has no tensor `{wanted}`", dataset.id);
            let problem = Diagnostic::error("LMB0201", message).at(span.clone());
            let problem = help_among(problem, wanted, &names, "add it to `tensors`");
            return fields.sink.report(problem);
        }
        if tensor.is_none() && names.len() != 1 && plans().any(|t| t.transform.is_some()) {
            let message = format!("dataset `{}` has {} tensors", dataset.id, names.len());
            return report(
                Diagnostic::error("LMB0102", message),
                "say which changes: `tensor: NAME`",
            );
        }
    }
}

fn tensor(part: &Fields) -> Option<String> {
    part.text("tensor")
}

/// `split: [[0, 1], [2, 3]]`: classes of each task.
fn split(part: &Fields, field: &Field) -> Vec<(String, Change)> {
    let mut tasks = Vec::new();
    let mut json = Vec::new();
    if !matches!(field.node.value, Value::List(_)) {
        part.wrong_type("split", "a list of lists of classes", &field.node);
        return tasks;
    }
    for node in field.node.items() {
        let Some(classes) = super::values::integers(part.sink, "split", node, None) else { break };
        if classes.is_empty() || classes.iter().any(|c| *c < 0) {
            out_of_range(part.sink, "split", "lists of class numbers, 0 or more", node);
            continue;
        }
        let words: Vec<String> = classes.iter().map(i64::to_string).collect();
        json.push(json!(classes));
        tasks.push((format!("split-{}", words.join("-")), Change::Classes(classes)));
    }
    part.keep("split", Json::Array(json), Some(field));
    tasks
}

/// `permuted: 10`: the first task as it is, then one permutation of the values for each.
fn permuted(part: &Fields, field: &Field) -> Vec<(String, Change)> {
    let count = part.count("permuted", 1).unwrap_or(0);
    if count > MOST {
        out_of_range(part.sink, "permuted", &format!("at most {MOST} tasks"), &field.node);
        return Vec::new();
    }
    let change =
        |n| if n == 0 { Change::Nothing } else { Change::Transform(Transform::Permute(n)) };
    (0..count).map(|n| (format!("permuted-{n}"), change(n))).collect()
}

/// `rotated: [0, 15, 30]`: degrees of each task.
fn rotated(part: &Fields, field: &Field) -> Vec<(String, Change)> {
    let mut tasks = Vec::new();
    let mut json = Vec::new();
    if !matches!(field.node.value, Value::List(_)) {
        part.wrong_type("rotated", "a list of degrees", &field.node);
        return tasks;
    }
    for node in field.node.items() {
        let Some(degrees) = number_of(part.sink, "rotated", node, Bounds::FINITE) else { continue };
        let change = if degrees == 0.0 {
            Change::Nothing
        } else {
            Change::Transform(Transform::Rotate(degrees))
        };
        json.push(json!(degrees));
        tasks.push((format!("rotated-{degrees}"), change));
    }
    part.keep("rotated", Json::Array(json), Some(field));
    tasks
}
