//! Plan to live, wired instances. Opens libraries; touches no device, reads no weights, starts no threads.

pub mod catalogue;
pub(crate) mod codes;
mod create;
pub mod inputs;
pub mod instance;
pub mod library;
pub mod lock;
pub mod manifest;
pub mod place;
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
use crate::plan::{Plan, Work};

/// A plan whose plugins are created and wired, none activated.
pub struct Loaded {
    /// One per stage of the plan; `None` for stages without plugins of their own (eval, export use the model stage's).
    pub stages: Vec<Option<wiring::LoadedStage>>,
    /// One per stage; `None` for those that capture nothing.
    pub captures: Vec<Option<wiring::LoadedCapture>>,
    /// A plugin of the plan that does not compute on GPUs.
    pub only_on_cpu: Option<String>,
    /// Problems that do not stop the run.
    pub warnings: Diagnostics,
}

/// Creates every instance of the plan, checks `with` against the schemas, wires ports.
///
/// # Errors
/// All problems found, each with its place in the pipeline.
pub fn load(plan: &Plan, catalogue: &Catalogue, data: &Datasets) -> Result<Loaded, Diagnostics> {
    let mut loaded = Loaded {
        stages: Vec::new(),
        captures: Vec::new(),
        only_on_cpu: None,
        warnings: Vec::new(),
    };
    let mut problems: Diagnostics = Vec::new();
    for stage in &plan.stages {
        let (mut trains, mut captures) = (None, None);
        match &stage.work {
            Work::Train(train) => {
                match wiring::stage(plan, catalogue, data, stage, train, &loaded.captures) {
                    Ok((stage, mut warnings)) => {
                        trains = Some(stage);
                        loaded.warnings.append(&mut warnings);
                    }
                    Err(mut found) => problems.append(&mut found),
                }
            }
            Work::Capture(capture) => {
                match wiring::capture(plan, catalogue, data, stage, capture) {
                    Ok(capture) => captures = Some(capture),
                    Err(mut found) => problems.append(&mut found),
                }
            }
            Work::Eval(_) | Work::Export(_) => {}
        }
        loaded.stages.push(trains);
        loaded.captures.push(captures);
    }
    for stage in &plan.stages {
        if let Work::Eval(eval) = &stage.work {
            problems.append(&mut wiring::measured(plan, &loaded, stage, eval));
        }
    }
    if problems.is_empty() {
        let on_gpus = |id: &str| {
            catalogue.find(id).is_some_and(|i| i.device_mask & (1 << limbeck_abi::DL_CUDA) != 0)
        };
        let first = loaded.instances().map(Instance::id).find(|id| !on_gpus(id));
        let first = first.map(str::to_owned);
        loaded.only_on_cpu = first;
        crate::diagnostic::sort(&mut loaded.warnings);
        return Ok(loaded);
    }
    problems.append(&mut loaded.warnings);
    crate::diagnostic::sort(&mut problems);
    Err(problems)
}
