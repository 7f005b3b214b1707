//! Metrics: `eval`, `best`, `stop_if`, `gates`.
//!
//! A metric that something waits for must be measured, and must be measurable: labels for accuracy, a teacher for
//! agreement, a stream for the numbers of the task matrix.

use super::stages::Around;
use super::values::every;
use super::{Best, EvalSettings, Every, Gate, Metric, StopIf};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::document::{Bounds, Fields, Node, Sink, listed, wrong_type};
use serde_json::{Value as Json, json};

const KNOWN: [&str; 9] = [
    "accuracy",
    "macro_f1",
    "f1",
    "nll",
    "agreement",
    "loss",
    "recall.CLASS",
    "precision.CLASS",
    "ema.METRIC",
];
/// Numbers of the task matrix.
const MATRIX: [&str; 6] =
    ["average_accuracy", "anytime_accuracy", "learning_accuracy", "bwt", "forgetting", "fwt"];

impl Metric {
    /// Reads `accuracy`, `recall.3`, `ema.accuracy`.
    pub fn parse(name: &str) -> Option<Self> {
        let class = |text: &str| text.parse::<i64>().ok().filter(|c| *c >= 0);
        Some(match name {
            "accuracy" => Self::Accuracy,
            "macro_f1" => Self::MacroF1,
            "f1" => Self::F1,
            "nll" => Self::Nll,
            "agreement" => Self::Agreement,
            "loss" => Self::Loss,
            _ => match name.split_once('.')? {
                ("recall", c) => Self::Recall(class(c)?),
                ("precision", c) => Self::Precision(class(c)?),
                ("ema", of) => {
                    let of = Self::parse(of).filter(|of| of.is_of_a_model())?;
                    Self::Ema(Box::new(of))
                }
                _ => return None,
            },
        })
    }

    /// Whether a larger value is better.
    pub fn is_maximized(&self) -> bool {
        match self {
            Self::Ema(of) => of.is_maximized(),
            other => !matches!(other, Self::Nll | Self::Loss),
        }
    }

    /// Whether a model and labels are enough for it: neither teacher nor loss terms.
    pub fn is_of_a_model(&self) -> bool {
        !matches!(self, Self::Agreement | Self::Loss | Self::Ema(_))
    }

    fn needs_labels(&self) -> bool {
        !matches!(self, Self::Agreement | Self::Loss)
    }
}

/// `metrics`, without doubles.
pub fn metrics(fields: &Fields, default: Vec<Metric>) -> Vec<Metric> {
    let Some(field) = fields.field("metrics") else {
        fields.keep("metrics", default.iter().map(Metric::name).collect(), None);
        return default;
    };
    let mut out: Vec<Metric> = Vec::new();
    for node in fields.list("metrics") {
        let Some(metric) = metric(fields.sink, node) else { continue };
        if !out.contains(&metric) {
            out.push(metric);
        }
    }
    fields.keep("metrics", out.iter().map(Metric::name).collect(), Some(field));
    out
}

fn metric(sink: &Sink, node: &Node) -> Option<Metric> {
    let Some(name) = node.text() else {
        wrong_type(sink, "metrics", "text", node);
        return None;
    };
    let metric = Metric::parse(name);
    if metric.is_none() {
        unknown_metric(sink, name, node, &KNOWN);
    }
    metric
}

fn unknown_metric(sink: &Sink, name: &str, node: &Node, known: &[&str]) {
    let problem = Diagnostic::error("LMB0206", format!("unknown metric {}", node.describe()))
        .at(node.span.clone());
    sink.report(match did_you_mean(name, known.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help(format!("known: {}", listed(known))),
    });
}

/// What a stage offers to metrics beside its student.
#[derive(Clone, Copy, Default)]
pub struct Taught {
    /// A teacher, to agree with.
    pub by_teacher: bool,
    /// The teacher is a moving copy of the student.
    pub by_copy: bool,
}

/// Whether the rows can be measured so.
pub fn check_metrics(
    around: &Around,
    fields: &Fields,
    metrics: &[Metric],
    datasets: &[&str],
    taught: Taught,
) {
    let nodes = fields.field("metrics").map(|f| f.node.items()).unwrap_or_default();
    let span_of = |metric: &Metric| {
        let node = nodes.iter().find(|n| n.text().and_then(Metric::parse).as_ref() == Some(metric));
        node.map_or(&fields.span, |n| &n.span).clone()
    };
    let sets: Vec<_> = datasets.iter().filter_map(|id| around.top.datasets.get(*id)).collect();
    for metric in metrics {
        let report = |code, message: String, help: String| {
            around.sink.report(Diagnostic::error(code, message).at(span_of(metric)).help(help));
        };
        let name = metric.name();
        if let Some(set) = sets.iter().find(|s| metric.needs_labels() && s.label.is_none()) {
            report(
                "LMB0209",
                format!("`{name}` needs labels, dataset `{}` has no `label`", set.id),
                "name the column: `label: COLUMN`".into(),
            );
        }
        if matches!(metric, Metric::Ema(_)) && !taught.by_copy {
            report(
                "LMB0206",
                format!("`{name}` needs a teacher that follows the student"),
                "give the stage `teacher: {ema: {decay: …}}`; an `eval` stage names the copy with `which: ema`".into(),
            );
        }
        if *metric == Metric::Agreement && !taught.by_teacher {
            report(
                "LMB0206",
                "`agreement` needs a teacher".into(),
                "remove it, or use `kind: distill`".into(),
            );
        }
        let of = if let Metric::Ema(of) = metric { of } else { metric };
        if let Metric::Recall(class) | Metric::Precision(class) = of {
            let kept = |c: &Vec<i64>| c.contains(class);
            if !sets.is_empty() && sets.iter().all(|s| s.classes.as_ref().is_some_and(|c| !kept(c)))
            {
                report(
                    "LMB0206",
                    format!("`{name}`: no evaluation row can be of class {class}"),
                    "the datasets keep other `classes`".into(),
                );
            }
        }
    }
}

/// What is measured of the student is measured of its moving copy too.
fn with_copy(mut metrics: Vec<Metric>, taught: Taught) -> Vec<Metric> {
    if taught.by_copy {
        let of_model = metrics.iter().filter(|m| m.is_of_a_model()).cloned();
        let copies: Vec<Metric> = of_model.map(|m| Metric::Ema(Box::new(m))).collect();
        for copy in copies {
            if !metrics.contains(&copy) {
                metrics.push(copy);
            }
        }
    }
    metrics
}

/// `eval` of a training stage.
pub fn settings(around: &Around, fields: &Fields, valid: &[&str], taught: Taught) -> EvalSettings {
    let labelled =
        valid.iter().all(|id| around.top.datasets.get(*id).is_none_or(|d| d.label.is_some()));
    let default = match (valid.is_empty(), labelled) {
        (true, _) => Vec::new(),
        (false, true) => vec![Metric::Accuracy],
        (false, false) => vec![Metric::Loss],
    };
    let names = |metrics: &[Metric]| metrics.iter().map(Metric::name).collect::<Vec<String>>();
    let Some(part) = fields.part("eval") else {
        let metrics = with_copy(default, taught);
        fields.keep("eval", json!({"every": "end", "metrics": names(&metrics)}), None);
        return EvalSettings { every: Every::End, metrics, best: None };
    };
    let every = every(&part, "every", Every::End, false);
    let metrics = metrics(&part, default);
    check_metrics(around, &part, &metrics, valid, taught);
    let metrics = with_copy(metrics, taught);
    part.keep("metrics", json!(names(&metrics)), part.field("metrics"));
    let best = best(&part, &metrics);
    let written = fields.field("eval").is_some_and(|f| !f.inherited);
    if let (true, true, Some(field)) = (valid.is_empty(), written, fields.field("eval")) {
        around.sink.report(
            Diagnostic::error(
                "LMB0102",
                format!("{} is evaluated and has no `valid` rows", fields.what),
            )
            .at(field.key_span.clone())
            .help("give `data` a `valid`, or remove `eval`"),
        );
    }
    fields.keep_part("eval", part.finish());
    EvalSettings { every, metrics, best }
}

fn best(part: &Fields, metrics: &[Metric]) -> Option<Best> {
    let best = part.part("best")?;
    let metric = measured(&best, metrics);
    let maximize = match &metric {
        Some(metric) if best.field("mode").is_none() => {
            let mode = if metric.is_maximized() { "max" } else { "min" };
            best.keep("mode", Json::from(mode), None);
            metric.is_maximized()
        }
        _ => best.choice("mode", &[("max", true), ("min", false)]).unwrap_or(true),
    };
    part.keep_part("best", best.finish());
    metric.map(|m| Best { metric: m.name(), maximize })
}

/// `metric`, one of those that are measured.
fn measured(part: &Fields, metrics: &[Metric]) -> Option<Metric> {
    let name = part.need_text("metric", "one of those under `eval.metrics`");
    let node = part.field("metric")?.node.clone();
    let found = metrics.iter().find(|m| m.name() == name).cloned();
    if found.is_none() && !name.is_empty() {
        not_measured(part.sink, &name, &node, metrics, &[]);
    }
    found
}

fn not_measured(sink: &Sink, name: &str, node: &Node, metrics: &[Metric], more: &[&str]) {
    let names: Vec<String> = metrics.iter().map(Metric::name).collect();
    let known: Vec<&str> = names.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let problem =
        Diagnostic::error("LMB0206", format!("metric {} is not measured", node.describe()))
            .at(node.span.clone());
    sink.report(match did_you_mean(name, known.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None if Metric::parse(name).is_some() => {
            problem.help(format!("add `{name}` to `metrics` under `eval`"))
        }
        None => problem.help(format!("measured: {}", listed(&known))),
    });
}

/// `stop_if`.
pub fn stop_if(fields: &Fields, eval: &EvalSettings) -> Option<StopIf> {
    let part = fields.part("stop_if")?;
    let metric = measured(&part, &eval.metrics);
    if part.field("patience").is_none() {
        part.missing("patience", "evaluations without improvement that are allowed");
    }
    let patience = part.count("patience", 1).unwrap_or(1);
    if eval.every == Every::End {
        part.sink.report(
            Diagnostic::error(
                "LMB0206",
                "`stop_if` waits for evaluations, and there is only the one at the end",
            )
            .at(part.span.clone())
            .help("give `eval` an `every`, for example `every: 1 epochs`"),
        );
    }
    fields.keep_part("stop_if", part.finish());
    let metric = metric?;
    let best = eval.best.as_ref().filter(|b| b.metric == metric.name());
    let maximize = best.map_or_else(|| metric.is_maximized(), |b| b.maximize);
    Some(StopIf { metric: metric.name(), patience, maximize })
}

/// `gates`.
pub fn gates(fields: &Fields, metrics: &[Metric], is_stream: bool) -> Vec<Gate> {
    let Some(field) = fields.field("gates") else { return Vec::new() };
    let mut out = Vec::new();
    let mut json = Vec::new();
    for (index, node) in fields.list("gates").iter().enumerate() {
        let part = fields.below(node, &format!("gates.{index}"), "a gate", field.inherited);
        out.push(gate(&part, metrics, is_stream));
        json.push(part.finish());
    }
    fields.keep_part("gates", Json::Array(json));
    out
}

fn gate(part: &Fields, metrics: &[Metric], is_stream: bool) -> Gate {
    let metric = part.need_text("metric", "for example `{metric: accuracy, min: 0.9}`");
    if let Some(field) = part.field("metric").filter(|_| !metric.is_empty()) {
        let of_matrix = MATRIX.contains(&metric.as_str());
        if of_matrix && !is_stream {
            part.sink.report(
                Diagnostic::error(
                    "LMB0206",
                    format!("`{metric}` is a number of the task matrix, the stage has no tasks"),
                )
                .at(field.node.span.clone())
                .help("use a metric of `eval.metrics`, or give the stage `tasks`"),
            );
        } else if !of_matrix && !metrics.iter().any(|m| m.name() == metric) {
            not_measured(
                part.sink,
                &metric,
                &field.node,
                metrics,
                if is_stream { &MATRIX } else { &[] },
            );
        }
    }
    let min = part.number("min", Bounds::FINITE);
    let max = part.number("max", Bounds::FINITE);
    match (min, max) {
        (None, None) if part.field("min").is_none() && part.field("max").is_none() => {
            part.missing("min", "give `min`, `max` or both");
        }
        (Some(low), Some(high)) if low > high => part.sink.report(
            Diagnostic::error("LMB0105", format!("`min` {low} is above `max` {high}"))
                .at(part.field("min").map_or(&part.span, |f| &f.node.span).clone())
                .help("no value can pass this gate"),
        ),
        _ => {}
    }
    Gate { metric, min, max, span: Some(part.span.clone()) }
}
