//! Reads columns of Parquet files: numbers, booleans, strings, lists of numbers (nested ones flat).
//!
//! Columns are top-level fields with one leaf. Refuses nulls, structs, INT96, decimals, and columns of different length.
//! Decoded values may not exceed [`files::expansion_limit`] of the file; a panic of the decoder is an error like others.

use super::column::{Builder, Request, column_name};
use super::files;
use super::jsonl::by_position;
use super::problem::{CellError, Problems, listed};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::plan::{Column, TensorColumns};
use parquet::basic::{ConvertedType, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Rows decoded at a time.
const BATCH: usize = 4096;

/// Appends at most `limit` rows of a file to `columns`, one per request.
pub(super) fn read(
    path: &Path,
    requests: &[Request],
    columns: &mut [Builder],
    limit: u64,
    problems: &mut Problems,
) {
    let length = match files::open(path) {
        Ok(opened) => opened.length,
        Err(problem) => {
            problems.push(problem);
            return;
        }
    };
    let Some(length) = length else {
        problems.push(
            broken(path, "it is compressed as a whole")
                .help("Parquet compresses inside; give the file itself"),
        );
        return;
    };
    let mut source = Source { path, requests, problems, left: files::expansion_limit(length) };
    // The decoder has assertions that hostile files reach.
    let result = catch_unwind(AssertUnwindSafe(|| source.file(columns, limit)));
    let problem = match result {
        Ok(Ok(())) => return,
        Ok(Err(Stop::Enough)) => return,
        Ok(Err(Stop::Broken(why))) => broken(path, &why),
        Err(_) => broken(path, "the decoder failed on it"),
    };
    problems.push(problem);
}

fn broken(path: &Path, why: &str) -> Diagnostic {
    Diagnostic::error("LMB0510", format!("cannot read Parquet file `{}`: {why}", path.display()))
}

/// Why reading ended early.
enum Stop {
    /// Problems were reported.
    Enough,
    /// The file itself.
    Broken(String),
}

impl From<ParquetError> for Stop {
    fn from(error: ParquetError) -> Self {
        Self::Broken(error.to_string())
    }
}

struct Source<'a> {
    path: &'a Path,
    requests: &'a [Request],
    problems: &'a mut Problems,
    left: u64,
}

impl Source<'_> {
    fn file(&mut self, columns: &mut [Builder], limit: u64) -> Result<(), Stop> {
        let file = File::open(self.path).map_err(|e| Stop::Broken(e.to_string()))?;
        let reader = SerializedFileReader::new(file)?;
        let leaves = self.leaves(reader.metadata().file_metadata().schema_descr())?;
        let mut row = 0;
        for group in 0..reader.num_row_groups() {
            if row >= limit {
                return Ok(());
            }
            let group = reader.get_row_group(group)?;
            let rows = u64::try_from(group.metadata().num_rows())
                .map_err(|_| Stop::Broken("a row group has a negative number of rows".into()))?;
            let mut readers = Vec::new();
            for leaf in leaves.iter().flatten() {
                readers.push((leaf, group.get_column_reader(leaf.index)?));
            }
            let end = (row + rows).min(limit);
            while row < end {
                let wanted = (end - row).min(BATCH as u64) as usize;
                let mut decoded = Vec::with_capacity(readers.len());
                for (leaf, reader) in &mut readers {
                    decoded.push(self.decode(leaf, reader, wanted)?);
                }
                self.take(&leaves, &decoded, columns, row, wanted)?;
                row += wanted as u64;
            }
        }
        Ok(())
    }

    /// The leaf columns of each request.
    fn leaves(&mut self, schema: &SchemaDescriptor) -> Result<Vec<Vec<Leaf>>, Stop> {
        let mut found = Vec::new();
        let mut complete = true;
        for request in self.requests {
            match request_leaves(self.path, schema, request) {
                Ok(leaves) => found.push(leaves),
                Err(problem) => {
                    complete = false;
                    self.problems.push(*problem);
                }
            }
        }
        if complete { Ok(found) } else { Err(Stop::Enough) }
    }

    fn decode(
        &mut self,
        leaf: &Leaf,
        reader: &mut ColumnReader,
        rows: usize,
    ) -> Result<Decoded, Stop> {
        let unsigned = leaf.unsigned;
        let decoded = match reader {
            ColumnReader::BoolColumnReader(r) => leaf.numbers(r, rows, |v| f64::from(u8::from(v))),
            ColumnReader::Int32ColumnReader(r) if unsigned => {
                leaf.numbers(r, rows, |v| f64::from(v as u32))
            }
            ColumnReader::Int32ColumnReader(r) => leaf.numbers(r, rows, f64::from),
            ColumnReader::Int64ColumnReader(r) if unsigned => {
                leaf.numbers(r, rows, |v| v as u64 as f64)
            }
            ColumnReader::Int64ColumnReader(r) => leaf.numbers(r, rows, |v| v as f64),
            ColumnReader::FloatColumnReader(r) => leaf.numbers(r, rows, f64::from),
            ColumnReader::DoubleColumnReader(r) => leaf.numbers(r, rows, |v| v),
            ColumnReader::ByteArrayColumnReader(r) => leaf.texts(r, rows, |v: ByteArray| v),
            ColumnReader::FixedLenByteArrayColumnReader(r) => {
                leaf.texts(r, rows, |v: FixedLenByteArray| v.into())
            }
            ColumnReader::Int96ColumnReader(_) => {
                Err(Stop::Broken(format!("column `{}` has type INT96", leaf.name)))
            }
        }?;
        let used = match &decoded.values {
            Values::Numbers(values) => values.len() as u64 * 8,
            Values::Texts(values) => values.iter().map(|t| t.len() as u64 + 24).sum(),
        };
        self.left = self
            .left
            .checked_sub(used)
            .ok_or_else(|| Stop::Broken("its content is more than 100 times its size".into()))?;
        Ok(decoded)
    }

    /// Adds decoded rows to the columns.
    fn take(
        &mut self,
        leaves: &[Vec<Leaf>],
        decoded: &[Decoded],
        columns: &mut [Builder],
        first: u64,
        rows: usize,
    ) -> Result<(), Stop> {
        let mut rest = decoded;
        let mut numbers = Vec::new();
        for (own, column) in leaves.iter().zip(columns) {
            let (mine, others) = rest.split_at(own.len());
            rest = others;
            for row in 0..rows {
                if let Err(error) = push(mine, row, column, &mut numbers) {
                    let name = own.get(error.cell).or(own.first()).map_or("?", |l| l.name.as_str());
                    let problem = error.inside(self.path, first + row as u64, &format!("`{name}`"));
                    if !self.problems.push(problem) {
                        return Err(Stop::Enough);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Pushes one row of a request: one leaf's value or list, or one value of each of several leaves.
fn push(
    decoded: &[Decoded],
    row: usize,
    column: &mut Builder,
    numbers: &mut Vec<f64>,
) -> Result<(), CellError> {
    numbers.clear();
    for (cell, leaf) in decoded.iter().enumerate() {
        let at = |error: CellError| CellError { cell, ..error };
        if leaf.nulls.binary_search(&row).is_ok() {
            return Err(at(CellError::new("LMB0518", "the value is null")));
        }
        match &leaf.values {
            Values::Numbers(values) => numbers.extend_from_slice(leaf.row(values, row)),
            Values::Texts(values) => {
                let [text] = leaf.row(values, row) else {
                    return Err(at(CellError::new("LMB0509", "a list of texts, expected one")));
                };
                return match column {
                    Builder::Numbers(_) => Err(at(CellError::new(
                        "LMB0506",
                        format!("text `{}`, expected numbers", super::problem::shown(text.data())),
                    ))),
                    column => column.push_text(text.data()),
                };
            }
        }
    }
    match column {
        Builder::Numbers(column) => column.push(numbers),
        column => match numbers.as_slice() {
            [one] => column.push_number(*one),
            several => column.push_numbers(several),
        },
    }
}

/// One leaf column.
struct Leaf {
    index: usize,
    name: String,
    max_def: i16,
    /// Definition level from which an element of a list exists, null or not.
    element_def: i16,
    is_list: bool,
    unsigned: bool,
}

fn request_leaves(
    path: &Path,
    schema: &SchemaDescriptor,
    request: &Request,
) -> Result<Vec<Leaf>, Box<Diagnostic>> {
    let fields = schema.root_schema().get_fields();
    let by_index = |index: usize| {
        if index < fields.len() {
            return leaf(path, schema, index);
        }
        let message = format!(
            "no column {index} in `{}`: it has {}, counted from 0",
            path.display(),
            fields.len()
        );
        Err(Box::new(Diagnostic::error("LMB0505", message)))
    };
    let column = match request {
        Request::Numbers { tensor, .. } => match &tensor.columns {
            Some(TensorColumns::Range(first, last)) => {
                return (*first..=*last).map(by_index).collect();
            }
            Some(TensorColumns::Named(column)) => column,
            None => return Err(Box::new(by_position(request, "a column"))),
        },
        Request::Label { column, .. } | Request::Text { column } => column,
    };
    let name = match column {
        Column::Index(index) => return Ok(vec![by_index(*index)?]),
        Column::Name(name) => name,
    };
    let known = || fields.iter().map(|f| f.name());
    match fields.iter().position(|f| f.name() == name) {
        Some(index) => Ok(vec![leaf(path, schema, index)?]),
        None => {
            let mut problem = Diagnostic::error(
                "LMB0505",
                format!(
                    "no column {} in `{}`; it has {}",
                    column_name(column),
                    path.display(),
                    listed(known())
                ),
            );
            problem.help = did_you_mean(name, known()).map(|n| format!("did you mean `{n}`?"));
            Err(Box::new(problem))
        }
    }
}

fn leaf(path: &Path, schema: &SchemaDescriptor, field: usize) -> Result<Leaf, Box<Diagnostic>> {
    let mut own = (0..schema.num_columns()).filter(|i| schema.get_column_root_idx(*i) == field);
    let name = schema.root_schema().get_fields().get(field).map_or("?", |f| f.name()).to_owned();
    let (Some(index), None) = (own.next(), own.next()) else {
        let message =
            format!("column `{name}` of `{}` is a struct of several fields", path.display());
        return Err(Box::new(Diagnostic::error("LMB0505", message)));
    };
    let descriptor = schema.column(index);
    if is_decimal(&descriptor) {
        let message = format!("column `{name}` of `{}` has a decimal type", path.display());
        return Err(Box::new(Diagnostic::error("LMB0505", message).help("store it as a float")));
    }
    Ok(Leaf {
        index,
        name,
        max_def: descriptor.max_def_level(),
        element_def: descriptor.repeated_ancestor_def_level(),
        is_list: descriptor.max_rep_level() > 0,
        unsigned: is_unsigned(&descriptor),
    })
}

fn is_decimal(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::DECIMAL
        || matches!(column.logical_type_ref(), Some(LogicalType::Decimal(_)))
}

fn is_unsigned(column: &ColumnDescriptor) -> bool {
    use ConvertedType as C;
    matches!(column.converted_type(), C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64)
        || matches!(column.logical_type_ref(), Some(LogicalType::Integer(int)) if !int.is_signed)
}

/// Some rows of a leaf.
struct Decoded {
    values: Values,
    /// End of each row's values.
    ends: Vec<usize>,
    /// Rows that hold a null, ascending.
    nulls: Vec<usize>,
}

enum Values {
    Numbers(Vec<f64>),
    Texts(Vec<ByteArray>),
}

impl Decoded {
    fn row<'a, T>(&self, values: &'a [T], row: usize) -> &'a [T] {
        let from = row.checked_sub(1).and_then(|r| self.ends.get(r)).copied().unwrap_or(0);
        let to = self.ends.get(row).copied().unwrap_or(from);
        values.get(from..to).unwrap_or_default()
    }
}

impl Leaf {
    fn numbers<T: DataType>(
        &self,
        reader: &mut ColumnReaderImpl<T>,
        rows: usize,
        convert: impl Fn(T::T) -> f64,
    ) -> Result<Decoded, Stop> {
        let (values, ends, nulls) = self.records(reader, rows)?;
        Ok(Decoded {
            values: Values::Numbers(values.into_iter().map(convert).collect()),
            ends,
            nulls,
        })
    }

    fn texts<T: DataType>(
        &self,
        reader: &mut ColumnReaderImpl<T>,
        rows: usize,
        convert: impl Fn(T::T) -> ByteArray,
    ) -> Result<Decoded, Stop> {
        let (values, ends, nulls) = self.records(reader, rows)?;
        Ok(Decoded {
            values: Values::Texts(values.into_iter().map(convert).collect()),
            ends,
            nulls,
        })
    }

    /// Values without nulls, end of each row, rows with a null.
    #[expect(clippy::type_complexity, reason = "taken apart at once by the two callers above")]
    fn records<T: DataType>(
        &self,
        reader: &mut ColumnReaderImpl<T>,
        rows: usize,
    ) -> Result<(Vec<T::T>, Vec<usize>, Vec<usize>), Stop> {
        let (mut values, mut defs, mut reps) = (Vec::new(), Vec::new(), Vec::new());
        let (records, _, levels) =
            reader.read_records(rows, Some(&mut defs), Some(&mut reps), &mut values)?;
        if records != rows {
            return Err(Stop::Broken(format!("column `{}` ends before the others", self.name)));
        }
        let (mut ends, mut nulls, mut count) = (Vec::with_capacity(rows), Vec::new(), 0);
        for level in 0..levels {
            let starts = !self.is_list || reps.get(level).is_none_or(|rep| *rep == 0);
            if starts && level > 0 {
                ends.push(count);
            }
            match defs.get(level) {
                Some(def) if *def < self.max_def => {
                    let is_empty_list = self.is_list && *def + 1 == self.element_def;
                    if !is_empty_list && nulls.last() != Some(&ends.len()) {
                        nulls.push(ends.len());
                    }
                }
                _ => count += 1,
            }
        }
        if levels > 0 {
            ends.push(count);
        }
        if ends.len() != rows || count != values.len() {
            return Err(Stop::Broken(format!("column `{}` has contradictory levels", self.name)));
        }
        Ok((values, ends, nulls))
    }
}
