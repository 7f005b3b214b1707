//! Rows in memory, shared by the datasets that read the same files, and their way into batches.
//!
//! Every column of a table has the same number of rows; a dataset is a table, names for its columns, and positions.

use super::column::{Labels, Numbers, Texts};
use super::tokenize::{TextEncoder, Tokens};
use super::{Batch, ColumnSpec};
use crate::tensor::{DType, Tensor};
use std::path::PathBuf;
use std::sync::Arc;

/// A column as kept.
#[derive(Clone)]
pub(super) enum Stored {
    Numbers(Arc<Numbers>),
    Labels(Arc<Labels>),
    Texts(Arc<Texts>),
}

/// Tokens of a dataset's text.
#[derive(Clone)]
pub(super) struct Encoded {
    pub(super) tokens: Arc<Tokens>,
    pub(super) encoder: Arc<TextEncoder>,
}

/// What a dataset's rows are made of.
pub(super) struct Table {
    /// Entries of `tensors`.
    pub(super) numbers: Vec<(String, Arc<Numbers>)>,
    pub(super) labels: Option<Arc<Labels>>,
    pub(super) text: Option<Encoded>,
    /// Files and their SHA-256.
    pub(super) hashes: Arc<Vec<(PathBuf, String)>>,
    /// Row id of the first row of the files.
    pub(super) first_id: i64,
}

impl Table {
    pub(super) fn specs(&self) -> Vec<ColumnSpec> {
        let spec =
            |name: &str, dtype, row_shape| ColumnSpec { name: name.into(), dtype, row_shape };
        let mut specs: Vec<ColumnSpec> = self
            .numbers
            .iter()
            .map(|(name, column)| spec(name, column.dtype, dims(column)))
            .collect();
        if let Some(text) = &self.text {
            let width = text.encoder.fixed_width().map_or(-1, |w| w as i64);
            let names = ["input_ids", "attention_mask", "token_type_ids"];
            let count = if text.tokens.has_types() { 3 } else { 2 };
            specs.extend(
                names.into_iter().take(count).map(|name| spec(name, DType::I64, vec![width])),
            );
        }
        if self.labels.is_some() {
            specs.push(spec("labels", DType::I64, Vec::new()));
        }
        specs.push(spec("row_ids", DType::I64, Vec::new()));
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        specs
    }

    /// These rows of the files, in this order. Panics past the end: a caller's bug.
    pub(super) fn gather(&self, rows: &[usize]) -> Batch {
        let count = rows.len() as i64;
        let mut batch = Batch { rows: rows.len(), ..Batch::default() };
        for (name, column) in &self.numbers {
            let mut shape = vec![count];
            shape.extend(dims(column));
            let size = column.row_bytes();
            let tensor = Tensor::filled(column.dtype, &shape, |bytes| {
                for (to, row) in bytes.chunks_exact_mut(size.max(1)).zip(rows) {
                    to.copy_from_slice(&column.bytes[row * size..(row + 1) * size]);
                }
            });
            batch.columns.insert(name.clone(), tensor);
        }
        let mut integers = |name: &str, values: Vec<i64>| {
            batch.columns.insert(name.into(), Tensor::from_slice(&values, &[count]));
        };
        if let Some(labels) = &self.labels {
            integers("labels", rows.iter().map(|row| labels.values[*row]).collect());
        }
        integers("row_ids", rows.iter().map(|row| self.first_id + *row as i64).collect());
        if let Some(text) = &self.text {
            text.gather(rows, &mut batch);
        }
        batch
    }
}

fn dims(column: &Numbers) -> Vec<i64> {
    column.row_shape.iter().flatten().map(|d| *d as i64).collect()
}

impl Encoded {
    fn gather(&self, rows: &[usize], batch: &mut Batch) {
        let longest = rows.iter().map(|row| self.tokens.ids(*row).len()).max().unwrap_or(0);
        let width = self.encoder.width(longest);
        let shape = [rows.len() as i64, width as i64];
        let cells = rows.len() * width;
        let mut ids = vec![i64::from(self.encoder.pad_id()); cells];
        let mut mask = vec![0i64; cells];
        let mut types = self.tokens.has_types().then(|| vec![0i64; cells]);
        for (i, row) in rows.iter().enumerate() {
            let at = i * width;
            let tokens = self.tokens.ids(*row);
            for (j, id) in tokens.iter().enumerate() {
                ids[at + j] = i64::from(*id);
                mask[at + j] = 1;
            }
            if let (Some(types), Some(own)) = (&mut types, self.tokens.types(*row)) {
                for (to, from) in types[at..].iter_mut().zip(own) {
                    *to = i64::from(*from);
                }
            }
        }
        let columns = &mut batch.columns;
        columns.insert("input_ids".into(), Tensor::from_slice(&ids, &shape));
        columns.insert("attention_mask".into(), Tensor::from_slice(&mask, &shape));
        if let Some(types) = types {
            columns.insert("token_type_ids".into(), Tensor::from_slice(&types, &shape));
        }
    }
}
