//! Conditions of a finished stage, checked again when its run is continued.

use super::RunError;
use super::error::RunResult;
use super::rundir::StageRecord;
use super::stage::finite;
use crate::diagnostic::Diagnostic;
use crate::plan::{Gate, StagePlan, Work};

fn gates_of(stage: &StagePlan) -> &[Gate] {
    match &stage.work {
        Work::Train(train) => &train.gates,
        Work::Eval(eval) => &eval.gates,
        Work::Capture(_) | Work::Export(_) => &[],
    }
}

/// An undefined metric misses its gate.
///
/// # Errors
/// The first gate that is missed (79).
pub(crate) fn check_gates(stage: &StagePlan, record: &StageRecord) -> RunResult<()> {
    for gate in gates_of(stage) {
        let value = record.metrics.iter().find(|(n, _)| *n == gate.metric).and_then(|(_, v)| *v);
        let value = value.and_then(finite);
        let met = value.is_some_and(|v| {
            gate.min.is_none_or(|min| v >= min) && gate.max.is_none_or(|max| v <= max)
        });
        if met {
            continue;
        }
        let found = value.map_or("undefined".to_owned(), |v| format!("{v:.4}"));
        let limit = match (gate.min, gate.max) {
            (Some(min), Some(max)) => format!("between {min} and {max}"),
            (Some(min), None) => format!("at least {min}"),
            (None, Some(max)) => format!("at most {max}"),
            (None, None) => "defined".into(),
        };
        let message = format!("gate missed: `{}` is {found}, must be {limit}", gate.metric);
        let diagnostic = Diagnostic::error("LMB0602", message)
            .at(gate.span.clone())
            .within(format!("stage `{}`", stage.name));
        return Err(RunError::new(diagnostic));
    }
    Ok(())
}
