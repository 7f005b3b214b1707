//! `stages`: order, names, kinds, references to earlier stages; `capture`, `eval` and `export` stages.
//!
//! Every stage gets an entry even when it is broken, so that positions and later references stay right.

use super::defaults::{STAGE_KEYS, Taken, stage_fields};
use super::evaluation;
use super::fork::Runs;
use super::teacher;
use super::top::{Top, help_among, report_double};
use super::training;
use super::values::{check_name, out_of_range, refuse_later, resolve_path};
use super::{
    CapturePlan, EvalPlan, ExportPlan, FromStage, StagePlan, TeacherPlan, TopK, TrainPlan, Which,
    Work,
};
use crate::diagnostic::{Diagnostic, Span};
use crate::document::{Bounds, Document, Fields, Node, Sink, Value, text_of};
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::Arc;

/// What the reading of one stage may look at.
pub struct Around<'a> {
    pub sink: &'a Sink,
    pub top: &'a Top,
    pub base: &'a Path,
    /// Stages before this one.
    pub done: &'a [StagePlan],
    /// Names of all stages.
    pub names: &'a [Option<String>],
    /// Other runs.
    pub runs: &'a Runs,
}

impl<'a> Around<'a> {
    /// Position of this stage.
    pub fn index(&self) -> usize {
        self.done.len()
    }

    /// An earlier stage by name; reports what is wrong with the reference.
    pub fn earlier(&self, name: &str, span: &Span) -> Option<usize> {
        let found = self.names.iter().position(|n| n.as_deref() == Some(name));
        match found {
            Some(index) if index < self.index() => Some(index),
            Some(index) => {
                let message = if index == self.index() {
                    format!("stage `{name}` refers to itself")
                } else {
                    format!("stage `{name}` comes later")
                };
                self.sink.report(
                    Diagnostic::error("LMB0202", message)
                        .at(span.clone())
                        .help("stages run in order and refer only to earlier ones"),
                );
                None
            }
            None => {
                let names: Vec<&str> =
                    self.names.iter().take(self.index()).filter_map(|n| n.as_deref()).collect();
                let problem =
                    Diagnostic::error("LMB0201", format!("no stage `{name}`")).at(span.clone());
                self.sink.report(help_among(
                    problem,
                    name,
                    &names,
                    "no stage stands before this one",
                ));
                None
            }
        }
    }

    /// Whether nothing could be said about an earlier stage, since its `kind` is wrong.
    pub fn is_broken(&self, stage: usize) -> bool {
        self.done.get(stage).is_some_and(|s| s.resolved.is_null())
    }

    /// The training part of an earlier stage.
    pub fn training(&self, stage: usize) -> Option<&'a TrainPlan> {
        self.done.get(stage).and_then(StagePlan::training)
    }

    /// The training part of a stage that a reference names, and the reference.
    pub fn trained<'f>(&'f self, from: &'f FromStage) -> Option<(&'f FromStage, &'f TrainPlan)> {
        let trained = match &from.run {
            None => self.training(from.stage),
            Some(run) => run.plan.stages.get(from.stage).and_then(StagePlan::training),
        };
        trained.map(|trained| (from, trained))
    }

    /// `{from: STAGE, which}` without `run`.
    pub fn read_own(&self, part: &Fields) -> Option<FromStage> {
        if let Some(field) = part.field("run") {
            part.text("run");
            self.sink.report(
                Diagnostic::error("LMB0113", "a stage of another run is measured and exported by that run")
                    .at(field.key_span.clone())
                    .help("`limbeck eval RUN`, `limbeck export RUN`; or go on from it here: `student: {from: STAGE, run: …}`"),
            );
            return None;
        }
        self.read_from(part)
    }

    /// `{from: STAGE, run, which}`, a stage that trains, with a best student if asked for.
    pub fn read_from(&self, part: &Fields) -> Option<FromStage> {
        let others = [("best", Which::Best), ("ema", Which::Ema)];
        let which = part.choice_or_first("which", ("last", Which::Last), &others);
        let name = part.text("from");
        let (stage, run) = self.origin(part)?;
        let (name, field) = (name?, part.field("from")?);
        let from = FromStage { stage, run, which, span: Some(field.node.span.clone()) };
        let Some((_, training)) = self.trained(&from) else {
            self.sink.report(
                Diagnostic::error("LMB0207", format!("stage `{name}` trains no student"))
                    .at(field.node.span.clone())
                    .help("name a stage of kind `train` or `distill`"),
            );
            return None;
        };
        match which {
            Which::Last => {}
            Which::Best => self.check_best(&name, training, part),
            Which::Ema => self.check_copy(&name, training, part),
        }
        Some(from)
    }

    fn check_copy(&self, name: &str, training: &TrainPlan, part: &Fields) {
        if !matches!(training.teacher, Some(TeacherPlan::Ema { .. })) {
            let span = part.field("which").map_or(&part.span, |f| &f.node.span);
            self.sink.report(
                Diagnostic::error("LMB0207", format!("stage `{name}` has no EMA of its student"))
                    .at(span.clone())
                    .help("one with `teacher: {ema: {decay: …}}` has"),
            );
        }
    }

    fn check_best(&self, name: &str, training: &TrainPlan, part: &Fields) {
        let span = part.field("which").map_or(&part.span, |f| &f.node.span);
        if training.eval.best.is_none() || training.checkpoint.keep_best == 0 {
            self.sink.report(
                Diagnostic::error("LMB0207", format!("stage `{name}` keeps no best student"))
                    .at(span.clone())
                    .help("give it `eval: {…, best: {metric: accuracy}}` and `checkpoint.keep_best` above 0"),
            );
        } else if training.is_stream {
            self.sink.report(
                Diagnostic::warning(
                    "LMB0222",
                    format!(
                        "the best student of `{name}` is picked by the score on the task at hand"
                    ),
                )
                .at(span.clone())
                .help("in a stream that rewards forgetting: `which: last` is the usual choice"),
            );
        }
    }
}

/// Rows per call of a captured plugin, where nobody says more.
const CAPTURE_BATCH: usize = 32;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Train,
    Distill,
    Capture,
    Eval,
    Export,
}

/// Reads all stages.
pub fn read(
    top_fields: &Fields,
    document: &Document,
    top: &Top,
    sink: &Sink,
    runs: &Runs,
) -> Vec<StagePlan> {
    let nodes = top_fields.list("stages");
    if nodes.is_empty()
        && !top_fields.field("stages").is_some_and(|f| !matches!(f.node.value, Value::List(_)))
    {
        top_fields
            .missing("stages", "a list of stages, for example `- {name: teacher, kind: train, …}`");
    }
    let names: Vec<Option<String>> =
        nodes.iter().map(|n| n.get("name").and_then(|n| n.text()).map(str::to_owned)).collect();
    let taken = Taken::default();
    let mut done: Vec<StagePlan> = Vec::new();
    for node in nodes {
        let base = &document.base_dir;
        let around = Around { sink, top, base, done: &done, names: &names, runs };
        let stage = read_stage(&around, node, top_fields, &taken);
        done.push(stage);
    }
    let base = &document.base_dir;
    let around = Around { sink, top, base, done: &done, names: &names, runs };
    check_unused_defaults(&around, top_fields, &taken);
    done
}

/// A default that every stage replaces can hold mistakes too.
fn check_unused_defaults(around: &Around, top: &Fields, taken: &Taken) {
    let unused = top.all().iter().filter(|f| STAGE_KEYS.contains(&&*f.key) && &*f.key != "tasks");
    let unused: Vec<_> = unused.filter(|f| !taken.contains(&f.key)).cloned().collect();
    if unused.is_empty() || around.done.is_empty() {
        return;
    }
    let scratch = Sink::default();
    let inner = Around { sink: &scratch, ..*around };
    let fields =
        Fields::over(&scratch, unused, top.span.clone(), String::new(), "the pipeline".into());
    training::read_present(&inner, &fields);
    for problem in scratch.take().0 {
        around.sink.report(problem);
    }
}

fn read_stage(around: &Around, node: &Arc<Node>, top: &Fields, taken: &Taken) -> StagePlan {
    let written = around.names.get(around.index()).cloned().flatten();
    let label = written.clone().unwrap_or_else(|| format!("#{}", around.index()));
    let kind_text = node.get("kind").and_then(|n| n.text());
    let distill = kind_text == Some("distill");
    let trains = distill || kind_text == Some("train");
    let what = format!("stage `{}`", crate::document::shorten(&label));
    // Reports a stage that is no mapping.
    let own = Fields::new(around.sink, node, format!("stages.{label}"), what.clone());
    let fields = if trains {
        let all = stage_fields(node, top.all(), distill, taken);
        Fields::over(around.sink, all, node.span.clone(), format!("stages.{label}"), what)
    } else {
        own
    };
    let name = fields.need_text("name", "for example `name: distill`");
    if let Some(field) = fields.field("name").filter(|_| !name.is_empty()) {
        check_name(around.sink, "a stage name", &name, &field.node.span, true);
        if around.done.iter().any(|s| s.name == name) {
            report_double(around.sink, &format!("stage `{name}`"), &field.node.span);
        }
    }
    let kind = kind(&fields);
    refuse_later(&fields);
    let work = match kind {
        Some(Kind::Train | Kind::Distill) => {
            Work::Train(Box::new(training::read(around, &fields, kind == Some(Kind::Distill))))
        }
        Some(Kind::Capture) => Work::Capture(Box::new(read_capture(around, &fields))),
        Some(Kind::Eval) => Work::Eval(read_eval(around, &fields)),
        Some(Kind::Export) => Work::Export(read_export(around, &fields)),
        // The kind decides which keys are known: without one there is nothing more to say.
        None => Work::Export(ExportPlan { model: nowhere(), to: None }),
    };
    let resolved = if kind.is_some() { fields.finish() } else { Json::Null };
    StagePlan { index: around.index(), name, span: Some(node.span.clone()), work, resolved }
}

/// Stands in for a reference that was reported.
fn nowhere() -> FromStage {
    FromStage { stage: 0, run: None, which: Which::Last, span: None }
}

fn kind(fields: &Fields) -> Option<Kind> {
    if fields.field("kind").is_none() {
        fields.missing("kind", "one of `train`, `distill`, `capture`, `eval`, `export`");
        return None;
    }
    fields.choice(
        "kind",
        &[
            ("train", Kind::Train),
            ("distill", Kind::Distill),
            ("capture", Kind::Capture),
            ("eval", Kind::Eval),
            ("export", Kind::Export),
        ],
    )
}

/// `model: {from, which}`.
fn model(around: &Around, fields: &Fields) -> FromStage {
    let Some(part) = fields.part("model") else {
        fields.missing("model", "for example `model: {from: distill}`");
        return nowhere();
    };
    if part.field("from").is_none() {
        part.missing("from", "the name of an earlier stage");
    }
    let model = around.read_own(&part);
    fields.keep_part("model", part.finish());
    model.unwrap_or_else(nowhere)
}

/// `model` of an `eval` stage: `{from, which}` or `{ensemble: [{from, which}, …]}`.
fn models(around: &Around, fields: &Fields) -> Vec<FromStage> {
    let ensemble = fields.part("model").filter(|part| part.field("ensemble").is_some());
    let Some(part) = ensemble else { return vec![model(around, fields)] };
    if let Some(field) = part.field("from") {
        around.sink.report(
            Diagnostic::error("LMB0113", "`model` names a stage and an ensemble")
                .at(field.key_span.clone())
                .help("give exactly one of `from`, `ensemble`"),
        );
    }
    let students = teacher::students(around, &part);
    fields.keep_part("model", part.finish());
    if students.is_empty() { vec![nowhere()] } else { students }
}

fn read_eval(around: &Around, fields: &Fields) -> EvalPlan {
    let models = models(around, fields);
    let data = eval_data(around, fields);
    let trained = models.first().and_then(|model| around.training(model.stage));
    let metrics = evaluation::metrics(fields, Vec::new());
    if fields.field("metrics").is_none() {
        fields.missing("metrics", "for example `metrics: [accuracy]`");
    }
    let datasets: Vec<&str> = data.iter().map(String::as_str).collect();
    let by_teacher = models.len() == 1 && trained.is_some_and(|t| t.teacher.is_some());
    let taught = evaluation::Taught { by_teacher, by_copy: false };
    evaluation::check_metrics(around, fields, &metrics, &datasets, taught);
    let gates = evaluation::gates(fields, &metrics, false);
    let batch_size = batch_size(fields, trained.map_or(1, |t| t.batch_size));
    EvalPlan { models, data, metrics, gates, batch_size }
}

/// `batch: {size}` of a stage that does not train.
fn batch_size(fields: &Fields, default: usize) -> usize {
    let Some(batch) = fields.part("batch") else {
        fields.keep("batch", json!({ "size": default }), None);
        return default;
    };
    let size = batch.count_or("size", 1, default as u64);
    fields.keep_part("batch", batch.finish());
    size as usize
}

fn read_capture(around: &Around, fields: &Fields) -> CapturePlan {
    let (teacher, inputs) = teacher::captured_teacher(around, fields);
    let data = eval_data(around, fields);
    let topk = topk(fields);
    let outputs = outputs(around.sink, fields, topk.is_some());
    let default = match &teacher {
        Some(TeacherPlan::Stage { from, .. }) => {
            around.trained(from).map_or(CAPTURE_BATCH, |(_, t)| t.batch_size)
        }
        _ => CAPTURE_BATCH,
    };
    let batch_size = batch_size(fields, default);
    let to = fields.text("to").map(|to| resolve_path(around.base, &to));
    CapturePlan {
        teacher: teacher.unwrap_or(TeacherPlan::SelfOutputs),
        inputs,
        data,
        outputs,
        topk,
        batch_size,
        to,
    }
}

fn topk(fields: &Fields) -> Option<TopK> {
    let part = fields.part("topk")?;
    if part.field("k").is_none() {
        part.missing("k", "entries kept of each row, for example `k: 16`");
    }
    let k = part.count("k", 1).unwrap_or(1);
    let temperature = part.number_or("temperature", Bounds::POSITIVE, 1.0);
    fields.keep_part("topk", part.finish());
    Some(TopK { k: k as usize, temperature })
}

/// `outputs`, by default the logits (nothing beside `topk`).
fn outputs(sink: &Sink, fields: &Fields, has_topk: bool) -> Vec<String> {
    let Some(field) = fields.field("outputs") else {
        let default: &[&str] = if has_topk { &[] } else { &["logits"] };
        fields.keep("outputs", json!(default), None);
        return default.iter().map(|name| (*name).to_owned()).collect();
    };
    let mut names: Vec<String> = Vec::new();
    for node in fields.list("outputs") {
        let Some(name) = text_of(sink, "outputs", node) else { continue };
        if names.contains(&name) {
            report_double(sink, &format!("output `{name}`"), &node.span);
        }
        names.push(name);
    }
    if names.is_empty() && !has_topk {
        out_of_range(sink, "outputs", "at least one output, or `topk`", &field.node);
    }
    fields.keep("outputs", json!(names), Some(field));
    names
}

fn eval_data(around: &Around, fields: &Fields) -> Vec<String> {
    let Some(field) = fields.field("data") else {
        fields.missing("data", "the id of a dataset, or a list of ids");
        return Vec::new();
    };
    let nodes: Vec<&Arc<Node>> = match &field.node.value {
        Value::List(items) => items.iter().collect(),
        _ => vec![&field.node],
    };
    let mut ids: Vec<String> = Vec::new();
    for node in nodes {
        let Some(id) = text_of(around.sink, "data", node) else { continue };
        around.top.check_dataset(around.sink, &id, &node.span);
        training::check_text(around, &id, &node.span);
        if ids.contains(&id) {
            report_double(around.sink, &format!("dataset `{id}`"), &node.span);
        }
        ids.push(id);
    }
    fields.keep("data", json!(ids), Some(field));
    ids
}

fn read_export(around: &Around, fields: &Fields) -> ExportPlan {
    let model = model(around, fields);
    fields.choice_or_first("format", ("hf", ()), &[]);
    let to = fields.text("to").map(|to| resolve_path(around.base, &to));
    ExportPlan { model, to }
}
