//! Document to plan: every default filled in, every reference resolved, every amount counted where it can be.
//!
//! Pure: opens no plugin, reads no data, writes nothing (two exceptions: `seed: random` is drawn here, and the pipelines
//! of other runs that this one goes on from are read). Collects every
//! problem instead of stopping at the first, sorted by place. A plan that is returned holds no stand-in value.

mod context;
mod dataset;
mod defaults;
pub mod estimate;
mod evaluation;
mod fork;
mod model;
mod scenario;
pub mod schema;
mod slots;
mod stages;
mod tasks;
mod teacher;
mod top;
mod training;
mod values;

pub use model::*;
pub use scenario::{Scenario, TrainClasses};

use crate::diagnostic::{self, Diagnostic, Diagnostics};
use crate::document::{Document, Fields, Sink};
use serde_json::{Map, Value as Json};

/// Plans a document.
///
/// # Errors
/// Every problem found, warnings among them, sorted by place.
pub fn plan(document: &Document) -> Result<Plan, Diagnostics> {
    plan_at(document, 0)
}

/// [`plan`] for the sake of so many other pipelines.
fn plan_at(document: &Document, depth: usize) -> Result<Plan, Diagnostics> {
    let sink = Sink::default();
    let fields = Fields::new(&sink, &document.root, String::new(), "the pipeline");
    let top = top::read(&fields, document);
    let stages = stages::read(&fields, document, &top, &sink, &fork::Runs::at(depth));
    values::refuse_later(&fields);
    for key in defaults::STAGE_KEYS {
        fields.know(key);
    }
    let top_json = finish_top(fields);
    top::report_unused(&top, &stages, &sink);

    let (mut problems, origins) = sink.take();
    context::add(&mut problems, &document.root);
    diagnostic::sort(&mut problems);
    if problems.iter().any(Diagnostic::is_error) {
        return Err(problems);
    }
    let mut resolved = top_json;
    resolved.insert("stages".into(), stages.iter().map(|s| s.resolved.clone()).collect());
    Ok(Plan {
        file: document.file.to_path_buf(),
        base_dir: document.base_dir.clone(),
        name: top.name,
        description: top.description,
        seed: top.seed,
        seed_is_drawn: top.seed_is_drawn,
        deterministic: top.deterministic,
        device: top.device,
        datasets: top.datasets,
        tokenizer: top.tokenizer,
        tokenizers: top.tokenizers,
        plugins: top.plugins,
        tensorboard: top.tensorboard,
        tasks: top.tasks,
        stages,
        resolved: Json::Object(resolved),
        origins,
        text: document.text.clone(),
        warnings: problems,
    })
}

/// Unknown top-level keys are reported; `x-…` keys are only a place for anchors.
fn finish_top(fields: Fields) -> Map<String, Json> {
    match fields.finish_except(|key| key.starts_with("x-")) {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
