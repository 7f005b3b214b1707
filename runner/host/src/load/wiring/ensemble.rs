//! Ensembles: whether their members can be one model.
//!
//! Each member gives `logits` over the same classes; a mean over anything else means nothing.

use super::LoadedTeacher;
use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::load::instance::Port;
use crate::load::{Loaded, codes};
use crate::plan::{EvalPlan, Plan, StagePlan};

/// A member: its name, its outputs, its place.
struct Member<'a> {
    name: &'a str,
    outputs: Vec<&'a Port>,
    span: Option<Span>,
    /// It is a cache, which can be captured with other outputs.
    cached: bool,
}

/// `logits` of a stage's ensemble.
///
/// # Errors
/// A member without logits, or with other classes than the first.
pub(super) fn mean(
    teachers: &[LoadedTeacher],
    spans: &[Option<Span>],
) -> Result<Port, Diagnostics> {
    let members = teachers.iter().zip(spans).map(|(teacher, span)| Member {
        name: &teacher.name,
        outputs: teacher.outputs(),
        span: span.clone(),
        cached: teacher.cache().is_some(),
    });
    common(&members.collect::<Vec<_>>())
}

/// Problems of the ensemble that an `eval` stage measures.
pub(crate) fn measured(
    plan: &Plan,
    loaded: &Loaded,
    stage: &StagePlan,
    eval: &EvalPlan,
) -> Diagnostics {
    let mut members = Vec::new();
    for from in &eval.models {
        let student = loaded.stages.get(from.stage).and_then(Option::as_ref).map(|s| &s.student);
        // One whose stage is broken was told of.
        let Some(student) = student else { return Vec::new() };
        let name = plan.stages.get(from.stage).map_or("", |s| s.name.as_str());
        let (outputs, span) = (student.outputs().collect(), from.span.clone());
        members.push(Member { name, outputs, span, cached: false });
    }
    if members.len() < 2 {
        return Vec::new();
    }
    let context = format!("stage `{}`, model", stage.name);
    let within = |problem: Diagnostic| problem.within(context.clone());
    common(&members).map_or_else(|found| found.into_iter().map(within).collect(), |_| Vec::new())
}

fn common(members: &[Member<'_>]) -> Result<Port, Diagnostics> {
    let mut problems = Vec::new();
    let mut first: Option<(&str, &Port)> = None;
    for member in members {
        let found = member.outputs.iter().find(|p| p.name == "logits");
        let Some(logits) = found else {
            let message = format!("member `{}` of the ensemble gives no `logits`", member.name);
            let help = if member.cached {
                "capture them: `outputs: [logits]`"
            } else {
                "an ensemble is the mean of its members' probabilities"
            };
            let problem = Diagnostic::error(codes::NO_SUCH_SOURCE, message).help(help);
            problems.push(problem.at(member.span.clone()));
            continue;
        };
        match first {
            None => first = Some((member.name, logits)),
            Some((name, other)) if !agree(&other.shape, &logits.shape) => {
                let message = format!(
                    "member `{}` of the ensemble gives logits [{}], `{name}` [{}]",
                    member.name, logits.shape, other.shape
                );
                let problem = Diagnostic::error(codes::SHAPES_DIFFER, message)
                    .help("give every member the same classes");
                problems.push(problem.at(member.span.clone()));
            }
            Some(_) => {}
        }
    }
    match first {
        Some((_, port)) if problems.is_empty() => Ok(port.clone()),
        _ => Err(problems),
    }
}

/// As many axes, and no two numbers that differ.
fn agree(one: &str, other: &str) -> bool {
    let axes = |shape: &str| -> Vec<Option<i64>> {
        shape.split(',').map(|axis| axis.trim().parse().ok()).collect()
    };
    let (one, other) = (axes(one), axes(other));
    let differ = |(a, b): (&Option<i64>, &Option<i64>)| a.is_some() && b.is_some() && a != b;
    one.len() == other.len() && !one.iter().zip(&other).any(differ)
}
