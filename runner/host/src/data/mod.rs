//! Files to batches: formats, filters, tokens, order.
//!
//! Every reader reports file, row and column of what it cannot read. Rows are held in host memory; datasets that read
//! the same files share them. Labels are class numbers or -100; every number is finite.

mod column;
mod csv;
mod files;
mod filter;
mod idx;
mod jsonl;
mod npy;
mod open;
pub mod order;
mod parquet;
mod problem;
mod raw;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod tokenize;

pub use tokenize::TextEncoder;

use crate::diagnostic::Diagnostics;
use crate::plan::{Plan, Work};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Bits of a row id below the number of its source.
const SOURCE_SHIFT: u32 = 40;

/// The datasets of a plan that could be read.
pub struct Datasets {
    by_id: BTreeMap<String, Arc<Dataset>>,
    encoder: Option<Arc<TextEncoder>>,
}

/// A named set of rows in memory. Columns: those of `tensors`; `labels` (i64); `input_ids` and `attention_mask` (i64)
/// for text, with `token_type_ids` for pairs; always `row_ids` (i64): the number of the source (files and columns)
/// times 2^40 plus the row's position in the files, so filters and resuming do not change it and views of the same
/// rows share it.
pub struct Dataset {
    id: String,
    table: Arc<table::Table>,
    rows: Vec<usize>,
}

/// What a batch column looks like, for wiring.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnSpec {
    /// Batch column name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape of one row; -1 = differs from batch to batch (tokens).
    pub row_shape: Vec<i64>,
}

/// Some rows, ready for a model. Every column's first axis has `rows` entries.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// By name.
    pub columns: BTreeMap<String, Tensor>,
}

impl Datasets {
    /// Reads every dataset that a stage uses; problems of one do not hide those of another.
    pub fn open(plan: &Plan) -> (Self, Diagnostics) {
        Self::open_only(plan, &used(plan))
    }

    /// Reads these datasets of the plan; ids that it does not have are left out.
    pub fn open_only(plan: &Plan, ids: &BTreeSet<String>) -> (Self, Diagnostics) {
        let opened = open::open(plan, ids);
        (Self { by_id: opened.datasets, encoder: opened.encoder }, opened.problems)
    }

    /// One of them, `None` if it could not be read.
    pub fn get(&self, id: &str) -> Option<&Arc<Dataset>> {
        self.by_id.get(id)
    }

    /// All that could be read, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.by_id.values()
    }

    /// The tokenizer, if a dataset has text.
    pub fn encoder(&self) -> Option<&Arc<TextEncoder>> {
        self.encoder.as_ref()
    }

    /// Finds rows again by `row_ids`: the dataset and position of each. `None` for an unknown id. Of several views that
    /// hold a row, the first by id; their columns are the same.
    pub fn locate(&self, row_ids: &[i64]) -> Option<Vec<(Arc<Dataset>, usize)>> {
        row_ids
            .iter()
            .map(|id| {
                self.by_id.values().find_map(|set| Some((Arc::clone(set), set.position(*id)?)))
            })
            .collect()
    }
}

/// Ids that tasks and stages name.
fn used(plan: &Plan) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut task = |task: &crate::plan::TaskPlan| {
        ids.insert(task.train.clone());
        ids.extend(task.valid.clone());
    };
    plan.tasks.iter().for_each(&mut task);
    for stage in &plan.stages {
        if let Some(train) = stage.training() {
            train.tasks.iter().for_each(&mut task);
        }
    }
    for stage in &plan.stages {
        if let Work::Eval(eval) = &stage.work {
            ids.extend(eval.data.iter().cloned());
        }
    }
    ids
}

impl Dataset {
    /// Id in the pipeline.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Rows after all filters.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Its columns by name, `row_ids` included.
    pub fn columns(&self) -> Vec<ColumnSpec> {
        self.table.specs()
    }

    /// Distinct labels, sorted, -100 left out; empty without labels.
    pub fn classes(&self) -> Vec<i64> {
        let Some(labels) = &self.table.labels else { return Vec::new() };
        let set: BTreeSet<i64> =
            self.rows.iter().filter_map(|row| labels.values.get(*row)).copied().collect();
        set.into_iter().filter(|label| *label != column::IGNORED).collect()
    }

    /// SHA-256 of the files it was read from, hex, by path.
    pub fn hashes(&self) -> Vec<(PathBuf, String)> {
        self.table.hashes.as_ref().clone()
    }

    /// These rows, by position, in this order. Panics for a position that is not below [`Dataset::rows`]: a caller's
    /// bug.
    pub fn gather(&self, rows: &[usize]) -> Batch {
        let rows: Vec<usize> = rows.iter().map(|position| self.rows[*position]).collect();
        self.table.gather(&rows)
    }

    /// Row id of a position.
    pub fn row_id(&self, position: usize) -> Option<i64> {
        self.rows.get(position).map(|row| self.table.first_id + *row as i64)
    }

    /// Position of a row id, if the row is in this dataset.
    pub fn position(&self, row_id: i64) -> Option<usize> {
        let row = row_id.checked_sub(self.table.first_id)?;
        self.rows.binary_search(&usize::try_from(row).ok()?).ok()
    }
}
