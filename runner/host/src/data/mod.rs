//! Files to batches: formats, filters, tokens, order.
//!
//! Every reader reports file, row and column of what it cannot read. Rows are held in host memory.

use crate::diagnostic::Diagnostics;
use crate::plan::Plan;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The datasets of a plan that could be read.
pub struct Datasets {
    by_id: BTreeMap<String, Arc<Dataset>>,
}

/// A named set of rows in memory. Columns: those of `tensors`, `labels`, `input_ids` and `attention_mask` for text,
/// and always `row_ids` (i64, unique in the run: dataset file position, stable over resume and filters).
pub struct Dataset {}

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

#[expect(unused_variables, clippy::todo, reason = "skeleton")]
impl Datasets {
    /// Reads every dataset that a stage uses; problems of one do not hide those of another.
    pub fn open(plan: &Plan) -> (Self, Diagnostics) {
        todo!()
    }

    /// One of them, `None` if it could not be read.
    pub fn get(&self, id: &str) -> Option<&Arc<Dataset>> {
        self.by_id.get(id)
    }

    /// Finds rows again by `row_ids`: the dataset and position of each. `None` for an unknown id.
    pub fn locate(&self, row_ids: &[i64]) -> Option<Vec<(Arc<Dataset>, usize)>> {
        todo!()
    }
}

#[expect(clippy::todo, reason = "skeleton")]
impl Dataset {
    /// Id in the pipeline.
    pub fn id(&self) -> &str {
        todo!()
    }
    /// Rows after all filters.
    pub fn rows(&self) -> usize {
        todo!()
    }
    /// Its columns, `row_ids` included.
    pub fn columns(&self) -> Vec<ColumnSpec> {
        todo!()
    }
    /// Distinct labels, sorted, -100 left out; empty without labels.
    pub fn classes(&self) -> Vec<i64> {
        todo!()
    }
    /// SHA-256 of the files it was read from, hex, by path.
    pub fn hashes(&self) -> Vec<(std::path::PathBuf, String)> {
        todo!()
    }
    /// These rows, by position, in this order.
    pub fn gather(&self, _rows: &[usize]) -> Batch {
        todo!()
    }
}
