//! Plan to live, wired instances. Opens libraries; touches no device, reads no weights, starts no threads.

pub mod catalogue;
pub(crate) mod codes;
mod create;
pub mod inputs;
pub mod instance;
pub mod library;
pub mod lock;
pub mod manifest;
pub mod services;
mod settings;
pub mod staging;
#[cfg(test)]
pub(crate) mod testing;
pub mod wiring;

pub use catalogue::{Catalogue, SearchPath};
pub use instance::Instance;

use crate::data::Datasets;
use crate::diagnostic::Diagnostics;
use crate::plan::Plan;

/// A plan whose plugins are created and wired, none activated.
pub struct Loaded {
    /// One per stage of the plan; `None` for stages without plugins of their own (eval, export use the model stage's).
    pub stages: Vec<Option<wiring::LoadedStage>>,
    /// Problems that do not stop the run.
    pub warnings: Diagnostics,
}

/// Creates every instance of the plan, checks `with` against the schemas, wires ports.
///
/// # Errors
/// All problems found, each with its place in the pipeline.
pub fn load(plan: &Plan, catalogue: &Catalogue, data: &Datasets) -> Result<Loaded, Diagnostics> {
    let mut loaded = Loaded { stages: Vec::with_capacity(plan.stages.len()), warnings: Vec::new() };
    let mut problems: Diagnostics = Vec::new();
    for stage in &plan.stages {
        let Some(train) = stage.training() else {
            loaded.stages.push(None);
            continue;
        };
        match wiring::stage(plan, catalogue, data, stage, train) {
            Ok((stage, mut warnings)) => {
                loaded.stages.push(Some(stage));
                loaded.warnings.append(&mut warnings);
            }
            Err(mut found) => problems.append(&mut found),
        }
    }
    if problems.is_empty() {
        crate::diagnostic::sort(&mut loaded.warnings);
        return Ok(loaded);
    }
    problems.append(&mut loaded.warnings);
    crate::diagnostic::sort(&mut problems);
    Err(problems)
}
