//! Plugins of a training stage: student, loss terms, schedulers.
//!
//! Settings under `with` belong to the plugins and pass through; the one exception is `layers` of a loss term.
//! `{from: STAGE}` is replaced by that stage's plugin and settings.

use super::stages::Around;
use super::top::report_double;
use super::values::{check_name, inputs, integers, later, map_entries, plugin_use};
use super::{Bound, FromStage, PluginUse, Reduction, RowsChoice, SchedulerPlan, TermPlan, Which};
use crate::diagnostic::Diagnostic;
use crate::document::{Bounds, Fields, Node, Value};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names that metrics use for themselves.
const RESERVED_TERMS: [&str; 8] =
    ["loss", "lr", "grad_norm", "step", "stage", "task", "epoch", "time"];

/// The trained model.
pub struct Student {
    pub plugin: PluginUse,
    pub from: Option<FromStage>,
    pub inputs: BTreeMap<String, Bound>,
}

/// Stands in for a plugin that was reported.
pub fn no_plugin() -> PluginUse {
    PluginUse {
        id: String::new(),
        id_span: None,
        with: Json::Object(Map::new()),
        with_span: None,
        spans: BTreeMap::new(),
        base: None,
    }
}

/// `student`.
pub fn student(around: &Around, fields: &Fields) -> Student {
    let mut student = Student { plugin: no_plugin(), from: None, inputs: BTreeMap::new() };
    let Some(part) = fields.part("student") else {
        fields.missing(
            "student",
            "for example `student: {uses: limbeck.mlp, with: {…}}` or `{from: STAGE}`",
        );
        return student;
    };
    one_of(&part, &["uses", "from"]);
    if part.field("from").is_some() {
        if let Some(field) = part.field("with") {
            around.sink.report(
                Diagnostic::error(
                    "LMB0113",
                    "a student `{from: …}` has the settings of that stage's student",
                )
                .at(field.key_span.clone())
                .help("remove `with`"),
            );
        }
        student.from = around.read_from(&part);
        if let Some((from, origin)) = student.from.as_ref().and_then(|f| around.trained(f)) {
            student.plugin = from.taken(&origin.student);
            student.inputs = origin.student_inputs.clone();
        }
    } else if part.field("uses").is_some() {
        student.plugin = plugin_use(&part, "limbeck.mlp");
    }
    if part.field("inputs").is_some() {
        student.inputs = inputs(&part);
    }
    fields.keep_part("student", part.finish());
    student
}

/// Exactly one of these keys must be there.
pub fn one_of(part: &Fields, keys: &[&'static str]) {
    let present: Vec<_> = keys.iter().filter_map(|k| part.field(k)).collect();
    let listed = crate::document::listed(keys);
    match present.as_slice() {
        [_] => {}
        [] if part.is_broken() => {}
        [] => part.sink.report(
            Diagnostic::error("LMB0102", format!("{} names no model", part.what))
                .at(part.span.clone())
                .help(format!("give exactly one of {listed}")),
        ),
        [_, second, ..] => part.sink.report(
            Diagnostic::error("LMB0113", format!("{} names more than one model", part.what))
                .at(second.key_span.clone())
                .help(format!("give exactly one of {listed}")),
        ),
    }
}

/// `loss`.
pub fn loss(fields: &Fields) -> Vec<TermPlan> {
    let Some(field) = fields.field("loss") else { return Vec::new() };
    let mut terms: Vec<TermPlan> = Vec::new();
    let mut json = Vec::new();
    for (index, node) in fields.list("loss").iter().enumerate() {
        let (name, explicit) = name_of(node, index);
        let part =
            fields.below(node, &format!("loss.{name}"), format!("term `{name}`"), field.inherited);
        let term = term(&part, &name, explicit);
        if terms.iter().any(|t| t.name == name) {
            report_double(
                fields.sink,
                &format!("term `{name}`"),
                term.span.as_ref().unwrap_or(&node.span),
            );
        }
        terms.push(term);
        json.push(part.finish());
    }
    fields.keep_part("loss", Json::Array(json));
    terms
}

/// `name`, else the last part of the id; whether it was written.
fn name_of(node: &Node, index: usize) -> (String, bool) {
    let own = node.get("name").and_then(|n| n.text()).filter(|n| !n.is_empty());
    let last = || node.get("uses").and_then(|n| n.text()).and_then(|id| id.rsplit('.').next());
    match own {
        Some(name) => (name.to_owned(), true),
        None => (
            last().filter(|l| !l.is_empty()).map_or_else(|| index.to_string(), str::to_owned),
            false,
        ),
    }
}

/// Reads `name` where it is written and records it where it is not.
fn keep_name(part: &Fields, what: &str, name: &str, explicit: bool) {
    if part.text("name").is_none() {
        part.keep("name", Json::from(name), None);
    }
    if let Some(field) = part.field("name").filter(|_| explicit) {
        check_name(part.sink, what, name, &field.node.span, false);
    }
    if RESERVED_TERMS.contains(&name) {
        part.sink.report(
            Diagnostic::error("LMB0114", format!("`{name}` is a name that metrics use"))
                .at(part.field("name").map_or(&part.span, |f| &f.node.span).clone())
                .help("give it another `name`"),
        );
    }
}

fn term(part: &Fields, name: &str, explicit: bool) -> TermPlan {
    keep_name(part, "a term name", name, explicit);
    let span = part
        .field("name")
        .or_else(|| part.field("uses"))
        .map_or(&part.span, |f| &f.node.span)
        .clone();
    let mut plugin = plugin_use(part, "limbeck.kl");
    let layers = layers(part, &mut plugin);
    let weight = part.number_or("weight", Bounds::FINITE, 1.0);
    if weight < 0.0 {
        let message = format!("the weight of `{name}` is negative: its loss is driven up");
        let span = part.field("weight").map(|field| field.node.span.clone());
        part.sink.report(Diagnostic::warning("LMB0224", message).at(span));
    }
    let reduction = part.choice_or_first(
        "reduction",
        ("token_mean", Reduction::TokenMean),
        &[
            ("seq_mean", Reduction::SeqMean),
            ("batchmean", Reduction::BatchMean),
            ("sum", Reduction::Sum),
        ],
    );
    match part.field("view") {
        Some(field) if field.node.text() == Some("adversarial") => {
            later(part.sink, "`view: adversarial`", &field.node.span);
        }
        _ => part.choice_or_first("view", ("clean", ()), &[]),
    }
    let rows = rows(part);
    let inputs = inputs(part);
    TermPlan {
        name: name.to_owned(),
        plugin,
        layers,
        weight,
        reduction,
        rows,
        inputs,
        span: Some(span),
    }
}

fn rows(part: &Fields) -> RowsChoice {
    let Some(field) = part.field("rows") else { return RowsChoice::FreshAndJoined };
    let Some(text) = part.text("rows") else { return RowsChoice::FreshAndJoined };
    match text.as_str() {
        "fresh" => RowsChoice::Fresh,
        "all" => RowsChoice::All,
        "unlabelled" => {
            later(part.sink, "`rows: unlabelled`", &field.node.span);
            RowsChoice::Fresh
        }
        group => {
            let good = group.split('.').all(|p| !p.is_empty()) && group.split('.').count() <= 2;
            if !good {
                part.sink.report(
                    Diagnostic::error("LMB0114", format!("`{group}` names no rows"))
                        .at(field.node.span.clone())
                        .help("`fresh`, `all`, or a row group: `GROUP` or `SCHEDULER.GROUP`"),
                );
            }
            RowsChoice::Group(text)
        }
    }
}

/// Takes the host's own key `layers` out of a term's settings.
fn layers(part: &Fields, plugin: &mut PluginUse) -> Option<Vec<(usize, usize)>> {
    let node = part.field("with")?.node.get("layers")?.clone();
    if let Json::Object(with) = &mut plugin.with {
        with.shift_remove("layers");
    }
    let help = "pairs of layers: `layers: [[student, teacher], …]`, 0 is the embedding output";
    let pair = |node: &Arc<Node>| {
        let pair = integers(part.sink, "layers", node, Some(2))?;
        match pair[..] {
            [s, t] => Some((usize::try_from(s).ok()?, usize::try_from(t).ok()?)),
            _ => None,
        }
    };
    if !matches!(&node.value, Value::List(items) if !items.is_empty()) {
        part.sink.report(
            Diagnostic::error(
                "LMB0103",
                format!("`layers` must be a list of pairs, found {}", node.describe()),
            )
            .at(node.span.clone())
            .help(help),
        );
        return None;
    }
    let mut pairs = Vec::new();
    for item in node.items() {
        match pair(item) {
            Some(pair) => pairs.push(pair),
            None if item.items().iter().any(|n| matches!(n.value, Value::Int(i, _) if i < 0)) => {
                super::values::out_of_range(part.sink, "layers", "layer numbers from 0", item);
            }
            None => {}
        }
    }
    Some(pairs)
}

/// `scheduler`: one mapping, a list, or `{from: STAGE}`.
pub fn schedulers(around: &Around, fields: &Fields, student: &Student) -> Vec<SchedulerPlan> {
    let Some(field) = fields.field("scheduler") else {
        warn_dropped(around, fields, student);
        return Vec::new();
    };
    let inherited = field.inherited;
    if let Value::List(items) = &field.node.value {
        let mut plans: Vec<SchedulerPlan> = Vec::new();
        let mut json = Vec::new();
        for (index, node) in items.iter().enumerate() {
            let (name, _) = name_of(node, index);
            let part = fields.below(
                node,
                &format!("scheduler.{name}"),
                format!("scheduler `{name}`"),
                inherited,
            );
            plans.push(own_scheduler(&part, node, index));
            if plans.iter().filter(|p| p.name == name).count() > 1 {
                report_double(around.sink, &format!("scheduler `{name}`"), &node.span);
            }
            json.push(part.finish());
        }
        fields.keep_part("scheduler", Json::Array(json));
        return plans;
    }
    let part = fields.below(&field.node, "scheduler", "`scheduler`", inherited);
    let plans = if part.field("from").is_some() {
        handed_on(around, &part, student)
    } else {
        vec![own_scheduler(&part, &field.node, 0)]
    };
    fields.keep_part("scheduler", part.finish());
    plans
}

fn own_scheduler(part: &Fields, node: &Arc<Node>, index: usize) -> SchedulerPlan {
    let (name, explicit) = name_of(node, index);
    keep_name(part, "a scheduler name", &name, explicit);
    let plugin = plugin_use(part, "limbeck.er");
    let term_weights = term_weights(part);
    SchedulerPlan {
        name,
        plugin,
        from: None,
        term_weights,
        inputs: inputs(part),
        span: Some(node.span.clone()),
    }
}

/// `terms: {NAME: {weight}}`.
fn term_weights(part: &Fields) -> BTreeMap<String, f64> {
    let Some(field) = part.field("terms") else { return BTreeMap::new() };
    let mut weights = BTreeMap::new();
    let mut json = Map::new();
    for entry in map_entries(part.sink, "terms", &field.node) {
        let what = format!("term `{}`", entry.key);
        let inner = part.below(&entry.node, &format!("terms.{}", entry.key), what, field.inherited);
        if inner.field("weight").is_none() {
            inner.missing("weight", "for example `{weight: 0}`");
        }
        if let Some(weight) = inner.number("weight", Bounds::FINITE) {
            weights.insert(entry.key.to_string(), weight);
        }
        json.insert(entry.key.to_string(), inner.finish());
    }
    part.keep_part("terms", Json::Object(json));
    weights
}

/// `{from: STAGE, run}`: that stage's schedulers, their state carried on.
fn handed_on(around: &Around, part: &Fields, student: &Student) -> Vec<SchedulerPlan> {
    let mut weights = term_weights(part);
    let Some(field) = part.field("from") else { return Vec::new() };
    let Some((stage, run)) = around.origin(part) else { return Vec::new() };
    let span = Some(field.node.span.clone());
    let from = FromStage { stage, run, which: Which::Last, span };
    let name = field.node.text().unwrap_or_default();
    let origin = around.trained(&from).map(|(_, t)| t.schedulers.as_slice()).unwrap_or_default();
    if origin.is_empty() {
        around.sink.report(
            Diagnostic::error("LMB0207", format!("stage `{name}` has no scheduler"))
                .at(field.node.span.clone())
                .help("name the stage whose scheduler goes on"),
        );
    } else if !student.from.as_ref().is_some_and(|f| f.stage == from.stage && f.run == from.run) {
        let run = from.run.as_ref().map_or(String::new(), |run| format!(", run: {}", run.written));
        around.sink.report(
            Diagnostic::error("LMB0208", format!("the scheduler of `{name}` belongs to that stage's student"))
                .at(field.node.span.clone())
                .help(format!("write `student: {{from: {name}{run}}}` too: buffers and importances belong to its weights")),
        );
    }
    let single = origin.len() == 1;
    let plans = origin.iter().map(|o| {
        let prefix = format!("{}.", o.name);
        let own = |key: &str| {
            key.strip_prefix(&prefix).map(str::to_owned).or_else(|| single.then(|| key.to_owned()))
        };
        let mut mine = BTreeMap::new();
        weights.retain(|key, weight| {
            own(key).map(|key| mine.insert(key, *weight)).is_none() && !single
        });
        SchedulerPlan {
            plugin: from.taken(&o.plugin),
            from: Some(from.clone()),
            term_weights: mine,
            span: Some(part.span.clone()),
            ..o.clone()
        }
    });
    let plans: Vec<SchedulerPlan> = plans.collect();
    if let (Some(left), false) = (weights.keys().next(), origin.is_empty()) {
        around.sink.report(
            Diagnostic::error("LMB0201", format!("no scheduler for term `{left}`"))
                .at(part.field("terms").map_or(&part.span, |f| &f.node.span).clone())
                .help("with several schedulers a term is `SCHEDULER.TERM`"),
        );
    }
    plans
}

fn warn_dropped(around: &Around, fields: &Fields, student: &Student) {
    let Some(from) = &student.from else { return };
    if around.trained(from).is_none_or(|(_, t)| t.schedulers.is_empty()) {
        return;
    }
    let name = fields.part("student").and_then(|s| s.text("from")).unwrap_or_default();
    around.sink.report(
        Diagnostic::warning(
            "LMB0221",
            format!("the scheduler state of stage `{name}` is dropped here"),
        )
        .at(fields.span.clone())
        .help(format!(
            "write `scheduler: {{from: {name}}}` (and its `run`, if it has one) to carry it on"
        )),
    );
}
