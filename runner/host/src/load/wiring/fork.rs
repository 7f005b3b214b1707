//! Stages of other runs: whether what they left can go on here.
//!
//! Parameters and states belong to a version of their plugins, tokens to a tokenizer, a scheduler's counters and the
//! task matrix to a stream. Shapes and classes are compared where the stage is wired, as for any other student.

use super::{LoadedStage, Source};
use crate::data::{Dataset, Datasets};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::load::catalogue::Catalogue;
use crate::load::codes;
use crate::plan::{FromStage, OtherRun, Plan, PluginUse, StagePlan, TeacherPlan, TrainPlan};
use std::path::PathBuf;

/// What a stage takes from other runs: plugin, reference, part of the stage.
fn taken(train: &TrainPlan) -> Vec<(&PluginUse, &FromStage, String)> {
    let student = train.student_from.iter().map(|f| (&train.student, f, "student".to_owned()));
    let teachers = train.teaching().into_iter().filter_map(|t| match t.plan {
        TeacherPlan::Stage { from, student } => Some((student, from, t.part())),
        _ => None,
    });
    let schedulers = train.schedulers.iter().filter_map(|s| {
        s.from.as_ref().map(|from| (&s.plugin, from, format!("scheduler `{}`", s.name)))
    });
    student.chain(teachers).chain(schedulers).collect()
}

/// Plugins of other versions, schedulers of other streams.
pub(super) fn check(
    plan: &Plan,
    catalogue: &Catalogue,
    stage: &StagePlan,
    train: &TrainPlan,
) -> Diagnostics {
    let mut problems = Vec::new();
    for (plugin, from, part) in taken(train) {
        let Some(run) = &from.run else { continue };
        let context = format!("stage `{}`, {part}", stage.name);
        let mut refuse =
            |problem: Diagnostic| problems.push(problem.at(from.span.clone()).within(&*context));
        if let Some(problem) = version(catalogue, plugin, from) {
            refuse(problem);
        }
        if part.starts_with("scheduler") && !same_stream(plan, &run.plan) {
            let message = format!("the scheduler of run `{}` has seen another stream", run.written);
            refuse(
                Diagnostic::error(codes::SCENARIO, message)
                    .note(format!("its tasks: {}", stream(&run.plan)))
                    .note(format!("here: {}", stream(plan)))
                    .help("declare the same `tasks` and `scenario` in both, or leave the scheduler out"),
            );
        }
    }
    problems
}

/// A plugin of another version than the run had that `from` names.
pub(super) fn version(
    catalogue: &Catalogue,
    plugin: &PluginUse,
    from: &FromStage,
) -> Option<Diagnostic> {
    let run = from.run.as_ref()?;
    let (then, now) = (run.versions.get(&plugin.id)?, &catalogue.find(&plugin.id)?.version);
    (then != now).then(|| {
        let (id, name) = (&plugin.id, &run.written);
        let message = format!("run `{name}` was trained with `{id}` {then}, here it is {now}");
        Diagnostic::error(codes::PIN_UNMET, message)
            .at(from.span.clone())
            .help("what a version left is only for that version: use it, or train the stage again")
    })
}

/// Whether rows of one run's task matrix mean the same in the other's.
pub(crate) fn same_stream(one: &Plan, other: &Plan) -> bool {
    one.scenario() == other.scenario()
        && one.train_classes() == other.train_classes()
        && one.tasks.iter().map(|t| &t.name).eq(other.tasks.iter().map(|t| &t.name))
}

fn stream(plan: &Plan) -> String {
    let names: Vec<&str> = plan.tasks.iter().map(|t| t.name.as_str()).collect();
    format!("{} ({})", names.join(", "), plan.scenario().name())
}

/// Models of other runs that read tokens of another tokenizer.
pub(super) fn tokenizers(train: &TrainPlan, data: &Datasets, loaded: &LoadedStage) -> Diagnostics {
    let dataset = train.tasks.iter().find_map(|t| data.get(&t.train));
    let Some(dataset) = dataset else { return Vec::new() };
    let mut problems = Vec::new();
    let mut judge = |from: &FromStage, inputs: &[Option<Source>]| {
        let Some(run) = &from.run else { return };
        for column in inputs.iter().flatten() {
            let Source::Batch(column) = column else { continue };
            problems.extend(tokenizer(run, dataset, column).map(|p| p.at(from.span.clone())));
        }
    };
    if let Some(from) = &train.student_from {
        judge(from, &loaded.student_inputs);
    }
    for (teacher, planned) in loaded.teachers.iter().zip(train.teaching()) {
        if let TeacherPlan::Stage { from, .. } = planned.plan {
            judge(from, &teacher.inputs);
        }
    }
    problems
}

fn tokenizer(run: &OtherRun, dataset: &Dataset, column: &str) -> Option<Diagnostic> {
    let here = dataset.encoder(column)?;
    let prefix = column.strip_suffix(crate::data::TOKEN_COLUMNS[0])?;
    let plan = match prefix.strip_suffix('_') {
        Some(name) => run.plan.tokenizers.get(name),
        None => run.plan.tokenizer.as_ref(),
    };
    let file =
        plan.map(|p| if p.path.is_dir() { p.path.join("tokenizer.json") } else { p.path.clone() });
    let hash = |file: &PathBuf| {
        let bytes = std::fs::read(file).ok()?;
        Some(crate::run::checkpoint::sha256(&bytes))
    };
    let there = file.as_ref().and_then(hash);
    if there.as_deref() == Some(here.sha256()) {
        return None;
    }
    let theirs = file.map_or("none".to_owned(), |f| f.display().to_string());
    let message = format!("run `{}` read `{column}` of another tokenizer", run.written);
    Some(
        Diagnostic::error(codes::TOKENIZERS, message)
            .note(format!("its tokenizer: {theirs}"))
            .note(format!("here: {}", here.file().display()))
            .help("ids mean other words: use the tokenizer that it was trained with"),
    )
}
