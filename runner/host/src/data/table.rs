//! Rows in memory, shared by the datasets that read the same files, and their way into batches.
//!
//! Every column of a table has the same number of rows; a dataset is a table, names for its columns, and positions.

use super::change::Change;
use super::column::{Labels, Numbers, Texts};
use super::tokenize::{TextEncoder, Tokens};
use super::{Batch, ColumnSpec};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Batch columns of a text; the last for pairs only.
pub(crate) const TOKEN_COLUMNS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

/// A column as kept.
#[derive(Clone)]
pub(super) enum Stored {
    Numbers(Arc<Numbers>),
    Labels(Arc<Labels>),
    Texts(Arc<Texts>),
}

/// A text column of a dataset and its tokens.
#[derive(Clone)]
pub(super) struct Encoded {
    /// Begins the names of its batch columns: empty, or `big_`.
    pub(super) prefix: String,
    /// `None` in a survey, which has no batches of it.
    pub(super) tokens: Option<Arc<Tokens>>,
    pub(super) has_pair: bool,
    pub(super) encoder: Arc<TextEncoder>,
}

/// An entry of `tensors`.
pub(super) struct NumberColumn {
    pub(super) name: String,
    pub(super) values: Arc<Numbers>,
    /// Applied on the way into a batch, so that datasets of the same files share their values.
    pub(super) change: Option<Change>,
}

/// What a dataset's rows are made of.
pub(super) struct Table {
    /// Entries of `tensors`.
    pub(super) numbers: Vec<NumberColumn>,
    pub(super) labels: Option<Arc<Labels>>,
    pub(super) texts: Vec<Encoded>,
    /// Says what is read: equal for equal files, columns and tokenizers, whatever rows are kept.
    pub(super) source: String,
    /// Files and their SHA-256.
    pub(super) hashes: Arc<Vec<(PathBuf, String)>>,
    /// Row id of the first row of the files.
    pub(super) first_id: i64,
}

impl Table {
    pub(super) fn specs(&self) -> Vec<ColumnSpec> {
        let spec = |name: &str, dtype, row_shape| ColumnSpec {
            name: name.into(),
            dtype,
            row_shape,
            tokenizer: None,
        };
        let mut specs: Vec<ColumnSpec> = self
            .numbers
            .iter()
            .map(|column| spec(&column.name, column.values.dtype, dims(&column.values)))
            .collect();
        for text in &self.texts {
            let width = text.encoder.fixed_width().map_or(-1, |w| w as i64);
            let count = if text.has_pair { 3 } else { 2 };
            specs.extend(TOKEN_COLUMNS.into_iter().take(count).map(|name| ColumnSpec {
                tokenizer: Some(text.prefix.clone()),
                ..spec(&format!("{}{name}", text.prefix), DType::I64, vec![width])
            }));
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
        for NumberColumn { name, values: column, change } in &self.numbers {
            let mut shape = vec![count];
            shape.extend(dims(column));
            let size = column.row_bytes();
            let tensor = Tensor::filled(column.dtype, &shape, |bytes| {
                for (to, row) in bytes.chunks_exact_mut(size.max(1)).zip(rows) {
                    let from = &column.bytes[row * size..(row + 1) * size];
                    match change {
                        Some(change) => change.apply(from, to),
                        None => to.copy_from_slice(from),
                    }
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
        for text in &self.texts {
            text.gather(rows, &mut batch.columns);
        }
        batch
    }

    /// Tokens of a row's longest text; 0 without texts.
    pub(super) fn length(&self, row: usize) -> usize {
        let tokens = self.texts.iter().filter_map(|text| text.tokens.as_ref());
        tokens.map(|tokens| tokens.ids(row).len()).max().unwrap_or(0)
    }

    /// Tokens of a row in a batch column, if that is a column of tokens.
    pub(super) fn length_in(&self, column: &str, row: usize) -> Option<usize> {
        let of = |text: &&Encoded| {
            column.strip_prefix(&text.prefix).is_some_and(|name| TOKEN_COLUMNS.contains(&name))
        };
        let tokens = self.texts.iter().find(of)?.tokens.as_ref()?;
        Some(tokens.ids(row).len())
    }
}

fn dims(column: &Numbers) -> Vec<i64> {
    column.row_shape.iter().flatten().map(|d| *d as i64).collect()
}

impl Encoded {
    fn gather(&self, rows: &[usize], columns: &mut BTreeMap<String, Tensor>) {
        let Some(tokens) = &self.tokens else { return };
        let longest = rows.iter().map(|row| tokens.ids(*row).len()).max().unwrap_or(0);
        let width = self.encoder.width(longest);
        let shape = [rows.len() as i64, width as i64];
        let cells = rows.len() * width;
        let mut ids = vec![i64::from(self.encoder.pad_id()); cells];
        let mut mask = vec![0i64; cells];
        let mut types = self.has_pair.then(|| vec![0i64; cells]);
        for (i, row) in rows.iter().enumerate() {
            let at = i * width;
            for (j, id) in tokens.ids(*row).iter().enumerate() {
                ids[at + j] = i64::from(*id);
                mask[at + j] = 1;
            }
            if let (Some(types), Some(own)) = (&mut types, tokens.types(*row)) {
                for (to, from) in types[at..].iter_mut().zip(own) {
                    *to = i64::from(*from);
                }
            }
        }
        for (name, values) in TOKEN_COLUMNS.into_iter().zip([Some(ids), Some(mask), types]) {
            if let Some(values) = values {
                let name = format!("{}{name}", self.prefix);
                columns.insert(name, Tensor::from_slice(&values, &shape));
            }
        }
    }
}
