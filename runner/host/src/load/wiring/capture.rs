//! A `capture` stage: creates its teacher and wires it to batch columns.

use super::bind::{Binder, Consumer};
use super::cached::port;
use super::ends::{Ends, TEACHER};
use super::shape::Shapes;
use super::{Source, fork, tokens};
use crate::cache::TOP_K;
use crate::data::{Datasets, TOKEN_COLUMNS};
use crate::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean};
use crate::load::catalogue::{Catalogue, PluginKind};
use crate::load::create::{create, place};
use crate::load::instance::Port;
use crate::load::{Instance, codes};
use crate::plan::{CapturePlan, Plan, StagePlan, TeacherPlan, TopK};

/// A teacher that is going to be captured.
pub struct LoadedCapture {
    /// A teacher plugin, or a student as a frozen copy.
    pub teacher: Instance,
    /// Source of each of its input ports: batch columns.
    pub inputs: Vec<Option<Source>>,
    /// What the cache will offer.
    pub outputs: Vec<Port>,
    /// Outputs of the teacher that are asked for.
    pub wanted: Vec<String>,
    /// Batch column whose tokens it reads, if it reads tokens.
    pub tokens: Option<String>,
    /// See [`CapturePlan::topk`].
    pub topk: Option<TopK>,
    /// Dataset ids.
    pub data: Vec<String>,
}

/// Creates and wires a `capture` stage.
///
/// # Errors
/// All problems of its plugin, settings and connections.
pub(crate) fn capture(
    plan: &Plan,
    catalogue: &Catalogue,
    data: &Datasets,
    stage: &StagePlan,
    capture: &CapturePlan,
) -> Result<LoadedCapture, Diagnostics> {
    let context = format!("stage `{}`, teacher", stage.name);
    let kind = match &capture.teacher {
        TeacherPlan::Plugin(_) => PluginKind::Teacher,
        _ => PluginKind::Student,
    };
    let Some(plugin) = capture.plugin() else { return Err(Vec::new()) };
    let teacher = create(plan, catalogue, plugin, kind, &context)?;
    let mut problems = Vec::new();
    if let TeacherPlan::Stage { from, student } = &capture.teacher {
        problems.extend(fork::version(catalogue, student, from).map(|p| p.within(context.clone())));
    }
    let mut shapes = Shapes::default();
    let mut inputs: Option<Vec<Option<Source>>> = None;
    for dataset in capture.data.iter().filter_map(|id| data.get(id)) {
        let span = plan.datasets.get(dataset.id()).and_then(|d| d.span.as_ref());
        let ends = Ends {
            columns: Some(dataset.columns()),
            student: Vec::new(),
            teacher: None,
            members: Vec::new(),
            teacher_is_student: false,
            schedulers: Vec::new(),
            batch_place: format!("dataset {}", place(dataset.id(), span)),
            student_place: String::new(),
            teacher_place: String::new(),
        };
        let consumer = Consumer {
            context: context.clone(),
            span: plugin.id_span.clone(),
            plugin: &plugin.id,
            ports: teacher.inputs().collect(),
            rebound: capture.inputs.clone(),
            layers: None,
            own: None,
            scope: TEACHER,
            has_vocab: false,
        };
        let binder = Binder { ends: &ends, shapes: &mut shapes, problems: &mut problems };
        let wires = bind_all(binder, &consumer);
        let found = tokens::check(&teacher, &wires, dataset);
        problems.extend(
            found.into_iter().map(|d| d.at(plugin.id_span.clone()).within(context.clone())),
        );
        match &inputs {
            Some(first) if *first != wires && problems.is_empty() => {
                let message = format!(
                    "dataset `{}` does not have the columns that the teacher reads of the first",
                    dataset.id()
                );
                let problem = Diagnostic::error(codes::DATASET, message);
                problems.push(problem.at(stage.span.clone()).within(context.clone()));
            }
            _ => inputs = Some(wires),
        }
    }
    let (outputs, wanted) =
        offered(&teacher, capture, stage.span.as_ref(), &context, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let inputs = inputs.unwrap_or_default();
    let tokens = inputs.iter().flatten().find_map(|source| match source {
        Source::Batch(column) if column.ends_with(TOKEN_COLUMNS[0]) => Some(column.clone()),
        _ => None,
    });
    let (topk, data) = (capture.topk, capture.data.clone());
    Ok(LoadedCapture { teacher, inputs, outputs, wanted, tokens, topk, data })
}

fn bind_all(mut binder: Binder<'_>, consumer: &Consumer<'_>) -> Vec<Option<Source>> {
    binder.bind(consumer).into_iter().map(|wire| wire.map(|w| w.source)).collect()
}

/// Ports of the cache, and outputs to ask the teacher for.
fn offered(
    teacher: &Instance,
    capture: &CapturePlan,
    span: Option<&Span>,
    context: &str,
    problems: &mut Diagnostics,
) -> (Vec<Port>, Vec<String>) {
    let mut refuse = |code, message: String, help: String| {
        let problem = Diagnostic::error(code, message).help(help);
        problems.push(problem.at(span.cloned()).within(context.to_owned()));
    };
    let of_topk = capture.topk.map(|_| "logits".to_owned());
    let mut wanted: Vec<String> = capture.outputs.iter().cloned().chain(of_topk).collect();
    let mut outputs = Vec::new();
    for name in &wanted {
        let Some(found) = teacher.outputs().find(|p| p.name == *name) else {
            let known = || teacher.outputs().map(|p| p.name.as_str());
            let help = match did_you_mean(name, known()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("it has {}", known().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("`{}` has no output `{name}`", teacher.id());
            refuse(codes::NO_SUCH_SOURCE, message, help);
            continue;
        };
        let axes: Vec<&str> = found.shape.split(',').map(str::trim).collect();
        let open = |axis: &&&str| axis.parse::<i64>().is_err();
        // Beside the row axis one more may be open: tokens.
        if !matches!(axes.first(), Some(&("B" | "N"))) || axes.iter().skip(2).any(|a| open(&a)) {
            let message = format!("output `{name}` [{}] cannot be captured", found.shape);
            let help = "rows, then sizes that are known; the second axis may count tokens";
            refuse(codes::SHAPES_DIFFER, message, help.into());
            continue;
        }
        if capture.outputs.contains(name) {
            outputs.push(port(name, &found.shape));
        }
        let (true, Some(topk)) = (name == "logits", capture.topk) else { continue };
        let width = axes.last().and_then(|a| a.parse::<usize>().ok()).unwrap_or(0);
        if topk.k > width {
            let message = format!("`topk.k` is {}, the teacher has {width} logits", topk.k);
            refuse(codes::OUT_OF_RANGE, message, "give a smaller `k`".into());
        }
        let rows = axes.get(..axes.len() - 1).unwrap_or_default().join(",");
        let kept = format!("{rows},{}", topk.k);
        outputs.extend(TOP_K.into_iter().zip([&kept, &kept, &rows]).map(|(n, s)| port(n, s)));
    }
    wanted.sort();
    wanted.dedup();
    (outputs, wanted)
}
