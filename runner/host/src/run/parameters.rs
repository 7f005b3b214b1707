//! `student.params.NAME`: whether the student has that parameter, of a shape that the port takes.
//!
//! Only an active student knows its parameters, so this is asked where a run (or `validate`) looks at its surroundings,
//! for the stages that bind one, and before any of them trains.

use super::error::{RunResult, io_error, plugin_error};
use super::live::{Keys, STUDENT};
use super::random::Purpose;
use crate::diagnostic::{Diagnostic, Diagnostics, did_you_mean};
use crate::load::instance::{Param, Port};
use crate::load::wiring::{LoadedStage, Source};
use crate::load::{Instance, Loaded, codes};
use crate::plan::{Bound, Plan, StagePlan, TrainPlan};
use std::path::Path;

/// A port that reads a parameter.
struct Reader<'a> {
    context: String,
    port: Option<&'a Port>,
    parameter: &'a str,
    bound: Option<&'a Bound>,
    span: Option<crate::diagnostic::Span>,
}

/// Every port that reads a parameter which the student does not have, or which does not fit.
///
/// # Errors
/// The student cannot be activated.
pub(crate) fn check(
    plan: &Plan,
    loaded: &mut Loaded,
    first: usize,
    work: &Path,
) -> RunResult<Diagnostics> {
    let mut problems = Vec::new();
    for (stage, loaded) in plan.stages.iter().zip(&mut loaded.stages).skip(first) {
        let (Some(train), Some(loaded)) = (stage.training(), loaded) else { continue };
        if readers(stage, train, loaded).is_empty() {
            continue;
        }
        std::fs::create_dir_all(work).map_err(|e| io_error("create", work, &e))?;
        let keys = Keys { seed: plan.seed, stage: stage.index as u64 };
        let ctx = keys.ctx(Purpose::Activate, STUDENT, 0, 0);
        let params = loaded
            .student
            .activate(ctx, work)
            .and_then(|()| loaded.student.params())
            .map_err(|e| plugin_error(&e));
        if let Ok(params) = &params {
            let readers = readers(stage, train, loaded);
            problems.extend(readers.iter().filter_map(|r| judge(r, params)));
        }
        // The views of the parameters end before the student does.
        let result = params.map(drop);
        loaded.student.deactivate();
        result?;
    }
    Ok(problems)
}

fn judge(reader: &Reader<'_>, params: &[Param]) -> Option<Diagnostic> {
    let name = reader.parameter;
    let place = |problem: Diagnostic| {
        let span = reader.bound.and_then(|b| b.span.clone()).or_else(|| reader.span.clone());
        Some(problem.at(span).within(reader.context.clone()))
    };
    let Some(param) = params.iter().find(|p| p.name == name) else {
        let message = format!("the student has no parameter `{name}`");
        let known = params.iter().map(|p| p.name.as_str());
        let help = match did_you_mean(name, known.clone()) {
            Some(close) => format!("did you mean `student.params.{close}`?"),
            None => {
                let names: Vec<String> = known.take(12).map(|n| format!("`{n}`")).collect();
                format!("it has {}", names.join(", "))
            }
        };
        return place(Diagnostic::error(codes::NO_SUCH_SOURCE, message).help(help));
    };
    let port = reader.port?;
    let found = param.value.shape();
    let text = |shape: &[i64]| shape.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    if !fits(&port.shape, found) {
        let message = format!(
            "`student.params.{name}` [{}] does not fit port `{}` [{}]",
            text(found),
            port.name,
            port.shape
        );
        return place(Diagnostic::error(codes::SHAPES_DIFFER, message));
    }
    if !port.dtypes.contains(&param.value.dtype()) {
        let types: Vec<&str> = port.dtypes.iter().map(|t| t.name()).collect();
        let message = format!(
            "`student.params.{name}` is {}, port `{}` takes {}",
            param.value.dtype().name(),
            port.name,
            types.join(" or ")
        );
        return place(Diagnostic::error(codes::TYPES_DIFFER, message));
    }
    None
}

/// Whether a shape of numbers fits the one that a port writes: `V,H`, `V,768`, `*`.
fn fits(wanted: &str, found: &[i64]) -> bool {
    if matches!(wanted.trim(), "" | "*") {
        return true;
    }
    let axes: Vec<&str> = wanted.split(',').map(str::trim).collect();
    axes.len() == found.len()
        && axes.iter().zip(found).all(|(a, f)| a.parse::<i64>().map_or(true, |a| a == *f))
}

fn readers<'a>(
    stage: &StagePlan,
    train: &'a TrainPlan,
    loaded: &'a LoadedStage,
) -> Vec<Reader<'a>> {
    let mut readers = Vec::new();
    let mut add = |context: String, port, source: &'a Option<Source>, bound, span| {
        if let Some(Source::StudentParam(parameter)) = source {
            readers.push(Reader { context, port, parameter, bound, span });
        }
    };
    let within = |part: &str| format!("stage `{}`, {part}", stage.name);
    for term in &loaded.terms {
        let planned = term.planned.and_then(|i| train.loss.get(i));
        for (port, source) in term.instance.inputs().zip(&term.inputs) {
            let bound = planned.and_then(|p| p.inputs.get(&port.name));
            let span = planned.and_then(|p| p.span.clone());
            add(within(&format!("term `{}`", term.name)), Some(port), source, bound, span);
        }
    }
    for (teacher, planned) in loaded.teachers.iter().zip(train.teaching()) {
        for (port, source) in
            teacher.instance().into_iter().flat_map(Instance::inputs).zip(&teacher.inputs)
        {
            let bound = planned.inputs.get(&port.name);
            add(within(&planned.part()), Some(port), source, bound, None);
        }
    }
    for (scheduler, planned) in loaded.schedulers.iter().zip(&train.schedulers) {
        for (name, source) in &scheduler.inputs {
            let port = scheduler.instance.inputs().find(|p| p.name == *name);
            let bound = planned.inputs.get(name);
            let context = within(&format!("scheduler `{}`", scheduler.name));
            add(context, port, source, bound, planned.span.clone());
        }
    }
    readers
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn letters_take_any_size_and_numbers_their_own() {
        assert!(fits("V,H", &[10, 32]) && fits("10,H", &[10, 32]) && fits("*", &[1, 2, 3]));
        assert!(!fits("V,H", &[10]) && !fits("10,H", &[11, 32]));
    }
}
