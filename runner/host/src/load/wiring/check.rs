//! What must hold for a wired stage as a whole: no cycle, one owner of each thing, datasets that serve every input.

use super::{LoadedStage, LoadedTerm, Source};
use crate::data::{ColumnSpec, Dataset, Datasets};
use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::load::codes;
use crate::load::create::place;
use crate::plan::{Metric, StagePlan, TrainPlan};
use limbeck_abi as abi;
use std::collections::BTreeSet;

/// Fills in the lists of outputs that somebody binds, sorted.
pub(super) fn wanted(stage: &mut LoadedStage, teacher_is_student: bool) {
    let (mut student, mut teacher) = (BTreeSet::new(), BTreeSet::new());
    let mut snapshots = vec![BTreeSet::new(); stage.snapshots.len()];
    for source in sources(stage) {
        match source {
            Source::Student(name) => drop(student.insert(name.clone())),
            Source::Teacher(name) if teacher_is_student => drop(student.insert(name.clone())),
            Source::Teacher(name) => drop(teacher.insert(name.clone())),
            Source::Snapshot { snapshot, output } => {
                if let Some(outputs) = snapshots.get_mut(*snapshot) {
                    outputs.insert(output.clone());
                }
            }
            _ => {}
        }
    }
    stage.student_wanted = student.into_iter().collect();
    stage.teacher_wanted = teacher.into_iter().collect();
    for (snapshot, outputs) in stage.snapshots.iter_mut().zip(snapshots) {
        snapshot.wanted = outputs.into_iter().collect();
    }
}

/// Every source that is bound anywhere in the stage.
fn sources(stage: &LoadedStage) -> impl Iterator<Item = &Source> {
    let teachers = stage.teachers.iter().flat_map(|t| &t.inputs);
    let models = stage.student_inputs.iter().chain(teachers).flatten();
    let terms = stage.terms.iter().flat_map(|t| t.inputs.iter().flatten());
    let schedulers = stage
        .schedulers
        .iter()
        .flat_map(|s| s.inputs.iter().filter_map(|(_, source)| source.as_ref()));
    models.chain(terms).chain(schedulers)
}

/// Models that need each other's output of the same step.
pub(super) fn cycles(stage: &LoadedStage, teacher_is_student: bool) -> Diagnostics {
    let teachers: Vec<&Option<Source>> = stage.teachers.iter().flat_map(|t| &t.inputs).collect();
    let own: Vec<&Option<Source>> = stage.student_inputs.iter().collect();
    let reads = |inputs: &[&Option<Source>], student: bool| {
        inputs.iter().copied().flatten().any(|source| match source {
            Source::Student(_) => student,
            Source::Teacher(_) => student == teacher_is_student,
            _ => false,
        })
    };
    let mut paths = Vec::new();
    if reads(&own, true) {
        paths.push("student -> student");
    }
    if reads(&teachers, false) {
        paths.push("teacher -> teacher");
    }
    if reads(&own, false) && reads(&teachers, true) {
        paths.push("student -> teacher -> student");
    }
    let problem = |path| {
        Diagnostic::error(codes::CYCLE, format!("models wait for each other: {path}"))
            .help("one of them must read batch columns only")
    };
    paths.into_iter().map(problem).collect()
}

/// `agreement` with a teacher that gives no logits, such as a cache of the largest ones alone.
pub(super) fn agreement(train: &TrainPlan, loaded: &LoadedStage) -> Option<Diagnostic> {
    let measured = train.eval.metrics.contains(&Metric::Agreement);
    let teaches = !loaded.teachers.is_empty();
    (measured && teaches && loaded.teacher_output("logits").is_none()).then(|| {
        let message = "`agreement` needs the teacher's `logits`, which it does not give";
        let problem = Diagnostic::error(codes::NO_SUCH_SOURCE, message);
        if loaded.teachers.iter().any(|t| t.cache().is_some()) {
            problem.help("capture them too (`outputs: [logits]`), or leave `agreement` out of `eval.metrics`")
        } else {
            problem.help("leave `agreement` out of `eval.metrics`")
        }
    })
}

/// Two schedulers that claim the same thing, or both replace the evaluation scores.
pub(super) fn claims(stage: &StagePlan, train: &TrainPlan, loaded: &LoadedStage) -> Diagnostics {
    let scores = |i: usize| {
        let scheduler = loaded.schedulers.get(i);
        scheduler.is_some_and(|s| s.instance.outputs().any(|p| p.name == "eval.scores"))
    };
    let claims =
        |i: usize, bit: u64| loaded.schedulers.get(i).is_some_and(|s| s.schedule.claims & bit != 0);
    let things: [(&str, &dyn Fn(usize) -> bool); 3] = [
        ("the task's rows", &|i| claims(i, abi::CLAIM_DATA)),
        ("the student's weights", &|i| claims(i, abi::CLAIM_STUDENT)),
        ("the scores of evaluations", &scores),
    ];
    let mut problems = Vec::new();
    for (what, owns) in things {
        let mut owners = (0..loaded.schedulers.len()).filter(|i| owns(*i));
        let Some(first) = owners.next().and_then(|i| train.schedulers.get(i)) else { continue };
        for second in owners.filter_map(|i| train.schedulers.get(i)) {
            let text =
                format!("schedulers `{}` and `{}` both want {what}", first.name, second.name);
            let problem = Diagnostic::error(codes::CLAIMS, text)
                .note(format!(
                    "the first is {}",
                    place(&first.plugin.id, first.plugin.id_span.as_ref())
                ))
                .help("leave one of them out");
            let context = format!("stage `{}`, scheduler `{}`", stage.name, second.name);
            problems.push(problem.at(second.span.clone()).within(context));
        }
    }
    problems
}

/// Every dataset of the stage must serve the inputs that were wired to the first one's columns.
pub(super) fn datasets(
    stage: &StagePlan,
    train: &TrainPlan,
    data: &Datasets,
    loaded: &LoadedStage,
) -> Diagnostics {
    let columns = |inputs: &mut dyn Iterator<Item = &Source>| -> BTreeSet<String> {
        let column = |source: &Source| match source {
            // The host makes it; no dataset has it.
            Source::Batch(name) if name == super::ROW_CLASSES => None,
            Source::Batch(name) => Some(name.clone()),
            _ => None,
        };
        inputs.filter_map(column).collect()
    };
    let teachers = loaded.teachers.iter().flat_map(|t| &t.inputs);
    let models = columns(&mut loaded.student_inputs.iter().chain(teachers).flatten());
    let terms = columns(&mut loaded.terms.iter().flat_map(|t| t.inputs.iter().flatten()));
    let all: BTreeSet<String> = models.union(&terms).cloned().collect();
    let first = train.tasks.iter().find_map(|t| data.get(&t.train));
    let Some(reference) = first.map(|d| d.columns()) else { return Vec::new() };
    let context = |what: &str| format!("stage `{}`, {what}", stage.name);
    let mut problems = Vec::new();
    for task in &train.tasks {
        let uses = [
            (Some(&task.train), &all, "training data"),
            (task.valid.as_ref(), &models, "evaluation data"),
        ];
        for (id, needed, what) in uses {
            let Some(dataset) = id.and_then(|id| data.get(id)) else { continue };
            problems.extend(missing_columns(
                dataset,
                needed,
                &reference,
                task.span.as_ref(),
                &context(what),
            ));
        }
        if let Some(dataset) = data.get(&task.train) {
            problems.extend(labels(
                dataset,
                train,
                loaded,
                task.span.as_ref(),
                &context("training data"),
            ));
        }
    }
    problems
}

fn missing_columns(
    dataset: &Dataset,
    needed: &BTreeSet<String>,
    reference: &[ColumnSpec],
    span: Option<&Span>,
    context: &str,
) -> Diagnostics {
    let own = dataset.columns();
    let mut problems = Vec::new();
    for name in needed {
        let wanted = reference.iter().find(|c| c.name == *name);
        let problem = match (own.iter().find(|c| c.name == *name), wanted) {
            (None, _) => {
                let text = format!(
                    "dataset `{}` has no column `{name}`, which the stage reads",
                    dataset.id()
                );
                Diagnostic::error(codes::NO_SUCH_SOURCE, text)
            }
            (Some(found), Some(wanted)) if found.row_shape != wanted.row_shape => {
                let text = format!(
                    "column `{name}` of dataset `{}` has rows of shape {:?}, the stage's first dataset {:?}",
                    dataset.id(),
                    found.row_shape,
                    wanted.row_shape
                );
                Diagnostic::error(codes::SHAPES_DIFFER, text)
            }
            (Some(found), Some(wanted)) if found.dtype != wanted.dtype => {
                let (id, found, wanted) = (dataset.id(), found.dtype.name(), wanted.dtype.name());
                let text = format!(
                    "column `{name}` of dataset `{id}` is {found}, in the stage's first dataset {wanted}"
                );
                Diagnostic::error(codes::TYPES_DIFFER, text)
            }
            _ => continue,
        };
        problems.push(problem.at(span.cloned()).within(context));
    }
    problems
}

/// A label that no logit stands for would fail in the first batch that holds it.
fn labels(
    dataset: &Dataset,
    train: &TrainPlan,
    loaded: &LoadedStage,
    span: Option<&Span>,
    context: &str,
) -> Option<Diagnostic> {
    let highest = dataset.classes().last().copied()?;
    let reads_labels =
        |term: &LoadedTerm| term.inputs.contains(&Some(Source::Batch("labels".into())));
    let width = loaded.terms.iter().filter(|t| reads_labels(t)).find_map(|term| {
        let reads_logits = |s: &Source| matches!(s, Source::Student(name) if name == "logits");
        term.inputs.iter().flatten().any(reads_logits).then_some(())?;
        let logits = loaded.student.outputs().find(|p| p.name == "logits")?;
        logits.shape.rsplit(',').next()?.trim().parse::<i64>().ok()
    })?;
    if highest < width {
        return None;
    }
    let text = format!(
        "dataset `{}` holds label {highest}, the student has {width} classes (0..{})",
        dataset.id(),
        width - 1
    );
    let student = place(&train.student.id, train.student.id_span.as_ref());
    let problem = Diagnostic::error(codes::DATASET, text)
        .note(format!("the student is {student}"))
        .help("give the student more classes, or leave rows out with the dataset's `classes`");
    Some(problem.at(span.cloned()).within(context))
}
