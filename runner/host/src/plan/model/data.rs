//! Named sets of rows and how their texts become tokens.

use crate::diagnostic::Span;
use crate::tensor::DType;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A named set of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetPlan {
    /// Its id.
    pub id: String,
    /// Place of its entry.
    pub span: Option<Span>,
    /// File format.
    pub format: Format,
    /// Files after resolution against the pipeline's directory; globs not expanded yet.
    pub paths: Vec<PathBuf>,
    /// Column (or pair of columns) of text, tokenised to `input_ids` and `attention_mask`.
    pub text: Option<TextColumns>,
    /// Further texts, by tokenizer: those of `big` become `big_input_ids` and `big_attention_mask`.
    pub texts: BTreeMap<String, TextColumns>,
    /// Column of the class, becomes `labels`.
    pub label: Option<Column>,
    /// Tensors by batch column name, e.g. `pixel_values`.
    pub tensors: BTreeMap<String, TensorPlan>,
    /// Half-open range of rows, before the other filters.
    pub rows: Option<(u64, u64)>,
    /// Keep only these classes.
    pub classes: Option<Vec<i64>>,
    /// At most so many rows, after the other filters.
    pub limit: Option<u64>,
    /// Labels that mean "ignore" in the data; read as -100.
    pub ignore_label: Option<i64>,
}

/// `format` of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, `.gz` too; header detected by a non-number in the first row.
    Csv,
    /// A JSON object a line, `.gz` too.
    Jsonl,
    /// IDX (MNIST): one file per tensor or label.
    Idx,
    /// Parquet.
    Parquet,
    /// NumPy arrays, `.npy`.
    Npy,
    /// A text a line.
    Text,
}

/// A column by name or by position (0-based).
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// By header, key or field name; for IDX and NPY a file path relative to the pipeline.
    Name(String),
    /// By position.
    Index(usize),
}

/// `text`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextColumns {
    /// First segment.
    pub column: Column,
    /// Second segment.
    pub pair: Option<Column>,
}

/// `tensors.NAME`.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// First and last column, inclusive; or one named column that holds a list; `None`: all (IDX, NPY).
    pub columns: Option<TensorColumns>,
    /// Shape of one row; default `[number of values]`.
    pub shape: Option<Vec<usize>>,
    /// Values are multiplied by it.
    pub scale: f64,
    /// Element type in the batch.
    pub dtype: DType,
    /// What happens to a row's values on their way into a batch.
    pub transform: Option<Transform>,
    /// Place of the entry.
    pub span: Option<Span>,
}

/// `tensors.NAME.permute` and `.rotate`: one fixed change of every row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transform {
    /// The values of a row in another order, drawn from this number alone.
    Permute(u64),
    /// An image turned about its centre by so many degrees against the clock; 0 comes in at the corners.
    Rotate(f64),
}

/// Where a tensor's values lie.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorColumns {
    /// `[first, last]`, inclusive, 0-based.
    Range(usize, usize),
    /// A column (CSV, one value; JSONL and Parquet, a list of numbers), or a file (IDX, NPY).
    Named(Column),
}

/// `tokenizer`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerPlan {
    /// Directory with `tokenizer.json`, or that file.
    pub path: PathBuf,
    /// Tokens at most; longer texts are cut.
    pub max_length: usize,
    /// Pad to the batch's longest (else to `max_length`).
    pub pad_longest: bool,
    /// Place.
    pub span: Option<Span>,
}
