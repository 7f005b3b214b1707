//! A `train` or `distill` stage: data, length, optimizer and what goes with it.
//!
//! Refuses what cannot train: no loss, no rows, both or neither of `epochs` and `steps`.

use super::evaluation;
use super::slots;
use super::stages::Around;
use super::teacher;
use super::top::{Top, help_among, report_double};
use super::values::{amount_of, every, later, out_of_range};
use super::{
    CheckpointPlan, DeviceChoice, Every, Length, LrCurve, LrSchedulePlan, NonFiniteAction,
    NonFinitePlan, OptimizerKind, OptimizerPlan, TaskPlan, TeacherPlan, TrainPlan, Warmup,
};
use crate::diagnostic::{Diagnostic, Span};
use crate::document::amount::Amount;
use crate::document::{Bounds, Fields, Value, count_of, number_of, text_of};
use crate::tensor::DType;
use serde_json::{Value as Json, json};
use std::time::Duration;

/// Reads the stage; the order here is the order of the resolved pipeline.
pub fn read(around: &Around, fields: &Fields, distill: bool) -> TrainPlan {
    let (tasks, is_stream) = tasks(around, fields);
    let student = slots::student(around, fields);
    check_teacher_key(fields, distill);
    let (teacher, teacher_inputs) =
        if distill { teacher::teacher(around, fields) } else { Default::default() };
    let loss = slots::loss(fields);
    let schedulers = slots::schedulers(around, fields, &student);
    let is_list = fields.field("loss").is_none_or(|f| matches!(f.node.value, Value::List(_)));
    if loss.is_empty() && schedulers.is_empty() && is_list {
        fields.missing("loss", "for example `loss: [{uses: limbeck.ce}]`");
    }
    let Batching { size: batch_size, accumulate, shuffle, bucket } = batch(fields);
    let length = length(fields);
    let optimizer = optimizer(fields);
    let lr_schedule = lr_schedule(fields);
    let dtype = dtype(around.top, fields);
    let valid: Vec<&str> = tasks.iter().filter_map(|t| t.valid.as_deref()).collect();
    // One that is wrong was told of.
    let taught = evaluation::Taught {
        by_teacher: teacher.is_some() || fields.field("teacher").is_some(),
        by_copy: matches!(teacher, Some(TeacherPlan::Ema { .. })),
    };
    let eval = evaluation::settings(around, fields, &valid, taught);
    let checkpoint = checkpoint(fields);
    let on_nonfinite = on_nonfinite(fields);
    let stop_if = evaluation::stop_if(fields, &eval);
    let gates = evaluation::gates(fields, &eval.metrics, is_stream);
    TrainPlan {
        distill,
        student: student.plugin,
        student_from: student.from,
        teacher,
        teacher_inputs,
        student_inputs: student.inputs,
        loss,
        schedulers,
        tasks,
        is_stream,
        batch_size,
        accumulate,
        shuffle,
        bucket,
        length,
        optimizer,
        lr_schedule,
        dtype,
        eval,
        checkpoint,
        on_nonfinite,
        stop_if,
        gates,
    }
}

/// Checks only the parts that are there: defaults that no stage took.
pub fn read_present(around: &Around, fields: &Fields) {
    let has = |key| fields.field(key).is_some();
    if has("data") {
        own_data(around, fields);
    }
    if has("student") {
        slots::student(around, fields);
    }
    teacher::teacher(around, fields);
    slots::loss(fields);
    if has("batch") {
        batch(fields);
    }
    if has("epochs") || has("steps") {
        length(fields);
    }
    if has("optimizer") {
        optimizer(fields);
    }
    lr_schedule(fields);
    checkpoint(fields);
    on_nonfinite(fields);
}

fn check_teacher_key(fields: &Fields, distill: bool) {
    match (fields.field("teacher"), distill) {
        (None, true) => fields.sink.report(
            Diagnostic::error("LMB0203", format!("{} distils and has no `teacher`", fields.what))
                .at(fields.field("kind").map_or(&fields.span, |f| &f.node.span).clone())
                .help("give it a `teacher`, or write `kind: train`"),
        ),
        (Some(field), false) => fields.sink.report(
            Diagnostic::error(
                "LMB0203",
                format!("{} trains without a teacher and names one", fields.what),
            )
            .at(field.key_span.clone())
            .help("write `kind: distill`, or remove `teacher`"),
        ),
        _ => {}
    }
}

/// The stream of a stage and whether it is one.
fn tasks(around: &Around, fields: &Fields) -> (Vec<TaskPlan>, bool) {
    let declared = &around.top.tasks;
    if fields.field("tasks").is_some() {
        if let Some(data) = fields.field("data") {
            around.sink.report(
                Diagnostic::error("LMB0113", "`data` and `tasks` exclude each other")
                    .at(data.key_span.clone())
                    .help("keep one: `tasks` for a stream, `data` for one set of rows"),
            );
        }
        return (named_tasks(around, fields), true);
    }
    let own = fields.field("data").is_some_and(|f| !f.inherited);
    if own || (declared.is_empty() && fields.field("data").is_some()) {
        return (own_data(around, fields), false);
    }
    if declared.is_empty() && around.top.has_tasks {
        // What is wrong with them was told.
    } else if declared.is_empty() {
        fields.missing(
            "data",
            "for example `data: {train: rows, valid: other-rows}`, or `tasks` for a stream",
        );
    } else if around.top.has_data && fields.field("data").is_some() {
        around.sink.report(
            Diagnostic::error(
                "LMB0113",
                format!("{} could take the default `data` or all `tasks`", fields.what),
            )
            .at(fields.span.clone())
            .help("give the stage its own `data` or `tasks`"),
        );
    }
    fields.keep("tasks", declared.iter().map(|t| t.name.as_str()).collect(), None);
    for task in declared {
        for id in std::iter::once(&task.train).chain(&task.valid) {
            check_text(around, id, task.span.as_ref().unwrap_or(&fields.span));
        }
    }
    (declared.clone(), true)
}

fn named_tasks(around: &Around, fields: &Fields) -> Vec<TaskPlan> {
    let declared = &around.top.tasks;
    let mut out: Vec<TaskPlan> = Vec::new();
    let nodes = fields.list("tasks");
    if let (true, Some(field)) = (nodes.is_empty(), fields.field("tasks"))
        && matches!(field.node.value, Value::List(_))
    {
        out_of_range(around.sink, "tasks", "at least one task", &field.node);
    }
    for node in nodes {
        let Some(name) = text_of(around.sink, "tasks", node) else { continue };
        let Some(task) = declared.iter().find(|t| t.name == name) else {
            let names: Vec<&str> = declared.iter().map(|t| t.name.as_str()).collect();
            let problem = Diagnostic::error("LMB0201", format!("task `{name}` is not declared"))
                .at(node.span.clone());
            around.sink.report(help_among(
                problem,
                &name,
                &names,
                "declare it in `tasks` at top level",
            ));
            continue;
        };
        if out.iter().any(|t| t.name == name) {
            report_double(around.sink, &format!("task `{name}`"), &node.span);
        }
        for id in std::iter::once(&task.train).chain(&task.valid) {
            check_text(around, id, &node.span);
        }
        out.push(TaskPlan { span: Some(node.span.clone()), ..task.clone() });
    }
    let names: Vec<&str> = out.iter().map(|t| t.name.as_str()).collect();
    fields.keep("tasks", json!(names), fields.field("tasks"));
    out
}

fn own_data(around: &Around, fields: &Fields) -> Vec<TaskPlan> {
    let Some(part) = fields.part("data") else { return Vec::new() };
    let train = part.need_text("train", "the id of a dataset");
    let valid = part.text("valid");
    for (key, id) in [("train", Some(&train)), ("valid", valid.as_ref())] {
        let (Some(id), Some(field)) = (id, part.field(key)) else { continue };
        if !id.is_empty() && around.top.check_dataset(around.sink, id, &field.node.span) {
            check_text(around, id, &field.node.span);
        }
    }
    part.know("unlabelled");
    if let Some(field) = part.field("unlabelled") {
        later(around.sink, "`data.unlabelled`", &field.key_span);
    }
    let span = Some(part.span.clone());
    fields.keep_part("data", part.finish());
    vec![TaskPlan { name: String::new(), train, valid, span }]
}

/// A dataset of texts needs their tokenizers.
pub fn check_text(around: &Around, id: &str, span: &Span) {
    let Some(dataset) = around.top.datasets.get(id) else { return };
    let known: Vec<&str> = around.top.tokenizers.keys().map(String::as_str).collect();
    for name in dataset.texts.keys().filter(|name| !known.contains(&name.as_str())) {
        let problem = Diagnostic::error(
            "LMB0209",
            format!("dataset `{id}` has a text for tokenizer `{name}`, which is not declared"),
        );
        let otherwise = format!("add `tokenizers: {{{name}: {{path: …}}}}` at top level");
        around.sink.report(help_among(problem.at(span.clone()), name, &known, &otherwise));
    }
    if dataset.text.is_some() && around.top.tokenizer.is_none() {
        around.sink.report(
            Diagnostic::error(
                "LMB0209",
                format!("dataset `{id}` holds text and there is no `tokenizer`"),
            )
            .at(span.clone())
            .help("add `tokenizer: {path: …}` at top level"),
        );
    }
}

/// `batch`.
struct Batching {
    size: usize,
    accumulate: usize,
    shuffle: bool,
    bucket: usize,
}

fn batch(fields: &Fields) -> Batching {
    let Some(part) = fields.part("batch") else {
        fields.missing("batch", "for example `batch: {size: 32}`");
        return Batching { size: 1, accumulate: 1, shuffle: true, bucket: 0 };
    };
    if part.field("size").is_none() {
        part.missing("size", "rows of a micro-batch, for example `size: 32`");
    }
    let size = part.count("size", 1).unwrap_or(1);
    let accumulate = part.count_or("accumulate", 1, 1);
    let shuffle = part.flag_or("shuffle", true);
    let bucket = part.count_or("bucket", 0, 0);
    fields.keep_part("batch", part.finish());
    Batching {
        size: size as usize,
        accumulate: accumulate as usize,
        shuffle,
        bucket: bucket as usize,
    }
}

fn length(fields: &Fields) -> Length {
    let counted = |key: &'static str| {
        let field = fields.field(key)?;
        let count = count_of(fields.sink, key, &field.node, 1).unwrap_or(1);
        fields.keep(key, json!(count), Some(field));
        Some(count)
    };
    match (fields.field("epochs"), fields.field("steps")) {
        (Some(_), Some(steps)) => {
            counted("epochs");
            counted("steps");
            fields.sink.report(
                Diagnostic::error("LMB0113", "`epochs` and `steps` exclude each other")
                    .at(steps.key_span.clone())
                    .help("keep one"),
            );
            Length::Steps(1)
        }
        (None, Some(_)) => Length::Steps(counted("steps").unwrap_or(1)),
        (Some(_), None) => Length::Epochs(counted("epochs").unwrap_or(1)),
        (None, None) => {
            fields.missing("epochs", "give `epochs: N` or `steps: N`");
            Length::Epochs(1)
        }
    }
}

#[derive(Clone, Copy)]
enum Rule {
    Adamw,
    Sgd,
}

fn optimizer(fields: &Fields) -> OptimizerPlan {
    let fallback = OptimizerKind::Sgd { momentum: 0.0 };
    let Some(part) = fields.part("optimizer") else {
        fields.missing("optimizer", "for example `optimizer: {kind: adamw, lr: 1e-3}`");
        return OptimizerPlan { kind: fallback, lr: 1.0, weight_decay: 0.0, clip_norm: None };
    };
    if part.field("kind").is_none() {
        part.missing("kind", "one of `adamw`, `sgd`");
    }
    let rule = part.choice("kind", &[("adamw", Rule::Adamw), ("sgd", Rule::Sgd)]);
    if part.field("lr").is_none() {
        part.missing("lr", "the peak learning rate, for example `lr: 1e-3`");
    }
    let lr = part.number("lr", Bounds::POSITIVE).unwrap_or(1.0);
    for key in ["betas", "eps", "momentum"] {
        part.know(key);
    }
    let (kind, default_decay) = match rule {
        Some(Rule::Adamw) => {
            misplaced(&part, &["momentum"], "sgd");
            let (beta1, beta2) = betas(&part);
            (
                OptimizerKind::Adamw {
                    beta1,
                    beta2,
                    eps: part.number_or("eps", Bounds::POSITIVE, 1e-8),
                },
                0.01,
            )
        }
        Some(Rule::Sgd) => {
            misplaced(&part, &["betas", "eps"], "adamw");
            (OptimizerKind::Sgd { momentum: part.number_or("momentum", Bounds::DECAY, 0.0) }, 0.0)
        }
        None => (fallback, 0.0),
    };
    let weight_decay = part.number_or("weight_decay", Bounds::NOT_NEGATIVE, default_decay);
    let clip_norm = part.number("clip_norm", Bounds::POSITIVE);
    fields.keep_part("optimizer", part.finish());
    OptimizerPlan { kind, lr, weight_decay, clip_norm }
}

fn misplaced(part: &Fields, keys: &[&'static str], owner: &str) {
    for field in keys.iter().filter_map(|k| part.field(k)) {
        part.sink.report(
            Diagnostic::error("LMB0113", format!("`{}` belongs to `kind: {owner}`", field.key))
                .at(field.key_span.clone())
                .help("remove it, or change `kind`"),
        );
    }
}

fn betas(part: &Fields) -> (f64, f64) {
    let defaults = [0.9, 0.999];
    let Some(field) = part.field("betas") else {
        part.keep("betas", json!(defaults), None);
        return (defaults[0], defaults[1]);
    };
    let Value::List(items) = &field.node.value else {
        part.wrong_type("betas", "a list of two numbers", &field.node);
        return (defaults[0], defaults[1]);
    };
    if items.len() != 2 {
        out_of_range(part.sink, "betas", "two numbers, at least 0 and below 1", &field.node);
    }
    let read: Vec<f64> = items
        .iter()
        .zip(defaults)
        .map(|(n, default)| number_of(part.sink, "betas", n, Bounds::DECAY).unwrap_or(default))
        .collect();
    part.keep("betas", json!(read), Some(field));
    (read.first().copied().unwrap_or(defaults[0]), read.get(1).copied().unwrap_or(defaults[1]))
}

fn lr_schedule(fields: &Fields) -> LrSchedulePlan {
    let mut plan = LrSchedulePlan { kind: LrCurve::Constant, warmup: Warmup::Steps(0) };
    let Some(part) = fields.part("lr_schedule") else {
        fields.keep("lr_schedule", json!({"kind": "constant", "warmup": "0 steps"}), None);
        return plan;
    };
    plan.kind = part.choice_or_first(
        "kind",
        ("constant", LrCurve::Constant),
        &[("linear", LrCurve::Linear), ("cosine", LrCurve::Cosine)],
    );
    match part.field("warmup") {
        None => part.keep("warmup", json!("0 steps"), None),
        Some(field) => {
            let (warmup, text) =
                match amount_of(part.sink, "warmup", &field.node, "6%` or `100 steps") {
                    Some(amount @ Amount::Steps(n)) => (Warmup::Steps(n), amount.to_string()),
                    Some(amount @ Amount::Percent(p)) if (0.0..=1.0).contains(&p) => {
                        (Warmup::Fraction(p), amount.to_string())
                    }
                    None => (plan.warmup, String::new()),
                    Some(_) => {
                        out_of_range(part.sink, "warmup", "steps or 0% to 100%", &field.node);
                        (plan.warmup, String::new())
                    }
                };
            plan.warmup = warmup;
            part.keep("warmup", Json::from(text), Some(field));
        }
    }
    fields.keep_part("lr_schedule", part.finish());
    plan
}

fn dtype(top: &Top, fields: &Fields) -> DType {
    let dtype = fields.choice_or_first("dtype", ("f32", DType::F32), &[("bf16", DType::BF16)]);
    // `auto` is judged when there is a device.
    if dtype == DType::BF16 && top.device == DeviceChoice::Cpu {
        let span = fields.field("dtype").map_or(&fields.span, |f| &f.node.span);
        fields.sink.report(
            Diagnostic::warning("LMB0223", "`dtype: bf16` is f32 on the CPU")
                .at(span.clone())
                .help("write `dtype: f32` to say what runs"),
        );
        return DType::F32;
    }
    dtype
}

fn checkpoint(fields: &Fields) -> CheckpointPlan {
    let default = Every::Time(Duration::from_secs(600));
    let Some(part) = fields.part("checkpoint") else {
        fields.keep("checkpoint", json!({"every": "10 min", "keep_last": 2, "keep_best": 1}), None);
        return CheckpointPlan { every: default, keep_last: 2, keep_best: 1 };
    };
    let every = every(&part, "every", default, true);
    let keep_last = part.count_or("keep_last", 1, 2) as usize;
    let keep_best = part.count_or("keep_best", 0, 1) as usize;
    fields.keep_part("checkpoint", part.finish());
    CheckpointPlan { every, keep_last, keep_best }
}

fn on_nonfinite(fields: &Fields) -> NonFinitePlan {
    let stop = NonFiniteAction::Stop;
    let Some(part) = fields.part("on_nonfinite") else {
        fields.keep("on_nonfinite", json!({"action": "stop", "max_consecutive": 5}), None);
        return NonFinitePlan { action: stop, max_consecutive: 5 };
    };
    let action = part.choice_or_first(
        "action",
        ("stop", stop),
        &[("skip", NonFiniteAction::Skip), ("rollback", NonFiniteAction::Rollback)],
    );
    let max_consecutive = part.count_or("max_consecutive", 1, 5);
    fields.keep_part("on_nonfinite", part.finish());
    NonFinitePlan { action, max_consecutive }
}
