//! Plan to live, wired instances. Opens libraries; touches no device, reads no weights, starts no threads.

pub mod catalogue;
pub(crate) mod codes;
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
pub fn load(_plan: &Plan, _catalogue: &Catalogue, _data: &Datasets) -> Result<Loaded, Diagnostics> {
    todo!()
}
