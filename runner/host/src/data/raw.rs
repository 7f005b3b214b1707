//! Arrays in binary files: elements one after the other, the first axis is rows.
//!
//! What IDX and NPY share. A header's claim is compared with the file's length before anything is allocated; a
//! compressed file, whose length is not known, is read a row at a time.

use super::column::{Builder, IGNORED, Request};
use super::files::{Opened, unreadable};
use super::problem::Problems;
use crate::diagnostic::Diagnostic;
use crate::plan::{Column, TensorColumns};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Element type in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elem {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl Elem {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Appends the elements of `raw` to `out`.
    fn decode(self, raw: &[u8], big_endian: bool, out: &mut Vec<f64>) {
        macro_rules! each {
            ($type:ty, $cast:expr) => {
                out.extend(raw.as_chunks::<{ size_of::<$type>() }>().0.iter().map(|b| {
                    $cast(if big_endian {
                        <$type>::from_be_bytes(*b)
                    } else {
                        <$type>::from_le_bytes(*b)
                    })
                }))
            };
        }
        match self {
            Self::U8 => out.extend(raw.iter().map(|b| f64::from(*b))),
            Self::I8 => each!(i8, f64::from),
            Self::U16 => each!(u16, f64::from),
            Self::I16 => each!(i16, f64::from),
            Self::U32 => each!(u32, f64::from),
            Self::I32 => each!(i32, f64::from),
            Self::U64 => each!(u64, |v| v as f64),
            Self::I64 => each!(i64, |v| v as f64),
            Self::F16 => each!(half::f16, half::f16::to_f64),
            Self::F32 => each!(f32, f64::from),
            Self::F64 => each!(f64, |v| v),
        }
    }
}

/// What a header says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) elem: Elem,
    pub(super) big_endian: bool,
    /// At least one axis.
    pub(super) shape: Vec<u64>,
    /// Bytes before the first element.
    pub(super) offset: u64,
}

/// Reads the header of a format and leaves the reader at the first element.
pub(super) type ReadHeader = fn(&Path, &mut dyn Read) -> Result<Header, Diagnostic>;

/// Reads the files of every request, relative to `base`, into its column. `files` are those of the dataset's `path`.
pub(super) fn read(
    files: &[PathBuf],
    base: &Path,
    header: ReadHeader,
    requests: &[Request],
    columns: &mut [Builder],
    limit: u64,
    problems: &mut Problems,
) -> Vec<PathBuf> {
    let mut used = Vec::new();
    for (request, column) in requests.iter().zip(columns) {
        let own = match own_files(request, base) {
            Ok(own) => own,
            Err(found) => {
                found.into_iter().for_each(|problem| {
                    problems.push(problem);
                });
                continue;
            }
        };
        let own = own.unwrap_or_else(|| files.to_vec());
        let mut left = limit;
        for file in &own {
            match append(file, header, column, left, problems) {
                Some(rows) => left -= rows.min(left),
                None => break,
            }
        }
        used.extend(own);
    }
    used
}

/// Files that a request names itself.
fn own_files(request: &Request, base: &Path) -> Result<Option<Vec<PathBuf>>, Vec<Diagnostic>> {
    let by_range = matches!(request, Request::Numbers { tensor, .. } if matches!(tensor.columns, Some(TensorColumns::Range(..))));
    match request.column() {
        Some(Column::Name(name)) => super::files::expand(&[base.join(name)]).map(Some),
        None if !by_range => Ok(None),
        _ => Err(vec![super::jsonl::by_position(request, "a file")]),
    }
}

/// Appends one file; gives the rows read, `None` after a problem.
fn append(
    path: &Path,
    header: ReadHeader,
    column: &mut Builder,
    limit: u64,
    problems: &mut Problems,
) -> Option<u64> {
    let result = super::files::open(path).and_then(|mut opened| {
        let header = header(path, &mut opened.reader)?;
        check_length(path, &header, opened.length)?;
        Ok((opened, header))
    });
    match result {
        Ok((opened, header)) => rows(path, opened, &header, column, limit, problems),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}

/// `LMB0511` unless the file is as long as its header says.
fn check_length(path: &Path, header: &Header, length: Option<u64>) -> Result<(), Diagnostic> {
    let elements = header.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let bytes = elements
        .and_then(|n| n.checked_mul(header.elem.bytes() as u64))
        .and_then(|n| n.checked_add(header.offset));
    match (bytes, length) {
        (Some(claimed), Some(found)) if claimed != found => {
            Err(mismatch(path, header, &format!("{claimed} bytes"), found))
        }
        (None, found) => {
            Err(mismatch(path, header, "more bytes than can be counted", found.unwrap_or(0)))
        }
        _ => Ok(()),
    }
}

fn mismatch(path: &Path, header: &Header, claimed: &str, found: u64) -> Diagnostic {
    Diagnostic::error(
        "LMB0511",
        format!(
            "`{}` claims shape {:?} of {:?}, {claimed}, but has {found}",
            path.display(),
            header.shape,
            header.elem
        ),
    )
    .help("the file is cut off or no such array")
}

fn rows(
    path: &Path,
    opened: Opened,
    header: &Header,
    column: &mut Builder,
    limit: u64,
    problems: &mut Problems,
) -> Option<u64> {
    let (count, row_shape) = header.shape.split_first()?;
    let row_shape: Vec<usize> = row_shape.iter().map(|d| *d as usize).collect();
    if let Builder::Numbers(numbers) = &mut *column
        && numbers.row_shape.is_none()
    {
        numbers.row_shape = Some(if row_shape.is_empty() { vec![1] } else { row_shape.clone() });
    }
    if *count > 0 && row_shape.contains(&0) {
        problems.push(Diagnostic::error(
            "LMB0508",
            format!("`{}` has rows without values: shape {:?}", path.display(), header.shape),
        ));
        return None;
    }
    // Checked against the length of a plain file; a compressed one may lie, so nothing is reserved for it.
    let row_bytes = row_shape.iter().product::<usize>().saturating_mul(header.elem.bytes());
    let mut reader = opened.reader;
    let (mut raw, mut values) = (Vec::new(), Vec::new());
    let take = (*count).min(limit);
    for row in 0..take {
        raw.clear();
        values.clear();
        match (&mut reader).take(row_bytes as u64).read_to_end(&mut raw) {
            Ok(read) if read == row_bytes => {}
            Ok(_) => {
                problems.push(mismatch(path, header, "more rows", row * row_bytes as u64));
                return None;
            }
            Err(error) => {
                problems.push(unreadable(path, &error));
                return None;
            }
        }
        header.elem.decode(&raw, header.big_endian, &mut values);
        if let Err(error) = column.push_numbers(&values) {
            let cell = error.cell.to_string();
            if !problems.push(error.inside(path, row, &cell)) {
                return None;
            }
            // Keeps the rows of the columns in step, so that a bad label is not reported as a missing row too.
            if let Builder::Labels(labels) = column {
                labels.values.push(IGNORED);
            }
        }
    }
    if opened.length.is_none() && take == *count && !matches!(reader.read(&mut [0]), Ok(0)) {
        problems.push(Diagnostic::error(
            "LMB0511",
            format!("`{}` goes on after its {count} rows", path.display()),
        ));
        return None;
    }
    Some(take)
}

/// Fills `out` from a header.
pub(super) fn exact(path: &Path, reader: &mut dyn Read, out: &mut [u8]) -> Result<(), Diagnostic> {
    reader.read_exact(out).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Diagnostic::error("LMB0510", format!("`{}` ends inside its header", path.display()))
        }
        _ => unreadable(path, &error),
    })
}
