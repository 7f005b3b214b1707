//! Files to batches: formats, filters, tokens, order.
//!
//! Every reader reports file, row and column of what it cannot read. Rows are held in host memory; datasets that read
//! the same files share them. Labels are class numbers or -100; every number is finite.

mod change;
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
mod token_cache;
mod tokenize;

pub(crate) use table::TOKEN_COLUMNS;
pub use tokenize::TextEncoder;

use crate::diagnostic::Diagnostics;
use crate::plan::{Plan, Work};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bits of a row id below the number of its source.
const SOURCE_SHIFT: u32 = 40;

/// Row id of the first row of the files that hold a row.
pub(crate) fn first_id(row_id: i64) -> i64 {
    row_id >> SOURCE_SHIFT << SOURCE_SHIFT
}

/// The datasets of a plan that could be read.
pub struct Datasets {
    by_id: BTreeMap<String, Arc<Dataset>>,
}

/// What becomes of the texts of datasets that are opened.
#[derive(Clone, Copy, Debug, Default)]
pub enum Tokenize<'a> {
    /// They are tokenised.
    #[default]
    Always,
    /// They are tokenised, or read from this directory, where tokens of the same files, columns and tokenizer were
    /// kept.
    Cached(&'a Path),
    /// They are left alone: columns are known, batches of them cannot be had.
    Never,
}

/// A named set of rows in memory. Columns: those of `tensors`; `labels` (i64); `input_ids` and `attention_mask` (i64)
/// for text, with `token_type_ids` for pairs, again as `NAME_input_ids` for each of `texts`; always `row_ids` (i64): the number of the source (files and columns)
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
    /// Set for tokens: columns with an equal entry are padded to one length.
    pub tokenizer: Option<String>,
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
    pub fn open(plan: &Plan, tokenize: Tokenize<'_>) -> (Self, Diagnostics) {
        Self::open_only(plan, &used(plan), tokenize)
    }

    /// Reads these datasets of the plan; ids that it does not have are left out.
    pub fn open_only(
        plan: &Plan,
        ids: &BTreeSet<String>,
        tokenize: Tokenize<'_>,
    ) -> (Self, Diagnostics) {
        let (by_id, problems) = open::open(plan, ids, tokenize);
        (Self { by_id }, problems)
    }

    /// One of them, `None` if it could not be read.
    pub fn get(&self, id: &str) -> Option<&Arc<Dataset>> {
        self.by_id.get(id)
    }

    /// All that could be read, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.by_id.values()
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
        match &stage.work {
            Work::Eval(eval) => ids.extend(eval.data.iter().cloned()),
            Work::Capture(capture) => ids.extend(capture.data.iter().cloned()),
            Work::Train(_) | Work::Export(_) => {}
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

    /// Tokens of a row's longest text, by position; 0 without texts.
    pub fn length(&self, position: usize) -> usize {
        self.rows.get(position).map_or(0, |row| self.table.length(*row))
    }

    /// Tokens of a row in this batch column, by position; `None` if it is no column of tokens.
    pub fn length_in(&self, column: &str, position: usize) -> Option<usize> {
        self.table.length_in(column, *self.rows.get(position)?)
    }

    /// The tokenizer whose ids stand in a batch column.
    pub fn encoder(&self, column: &str) -> Option<&Arc<TextEncoder>> {
        let ids = |text: &&table::Encoded| {
            column.strip_prefix(&text.prefix).is_some_and(|c| c == table::TOKEN_COLUMNS[0])
        };
        self.table.texts.iter().find(ids).map(|text| &text.encoder)
    }

    /// Says what its rows are read from: equal for equal files (by SHA-256), columns and tokenizers, whatever rows of
    /// the files it keeps and whatever their labels. Hex.
    pub fn source(&self) -> &str {
        &self.table.source
    }

    /// Places of its rows in the files, ascending.
    pub fn places(&self) -> &[usize] {
        &self.rows
    }

    /// Row id of the first row of the files.
    pub fn first_id(&self) -> i64 {
        self.table.first_id
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
