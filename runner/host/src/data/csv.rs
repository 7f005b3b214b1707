//! Reads comma-separated files.
//!
//! The first row is a header if one of its fields is neither a number nor empty. Quoted fields may hold commas, quotes
//! (doubled) and line ends. Refuses rows of another length than the first; each problem has the field's line and column.

use super::column::{Builder, Request, column_name, number, parse_number};
use super::files::{self, unreadable};
use super::problem::{CellError, Problems, listed, span};
use crate::diagnostic::{Diagnostic, Span, did_you_mean};
use crate::plan::{Column, TensorColumns};
use csv::{ByteRecord, ErrorKind, Position, ReaderBuilder};
use std::io::{BufRead, Read};
use std::path::Path;

/// Fields of a request in one file, inclusive.
struct Fields {
    first: usize,
    last: usize,
}

/// Appends at most `limit` rows of a file to `columns`, one per request.
pub(super) fn read(
    path: &Path,
    requests: &[Request],
    columns: &mut [Builder],
    limit: u64,
    problems: &mut Problems,
) {
    let mut opened = match files::open(path) {
        Ok(opened) => opened,
        Err(problem) => {
            problems.push(problem);
            return;
        }
    };
    if let Err(problem) = check_encoding(path, &mut opened.reader) {
        problems.push(problem);
        return;
    }
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(1 << 18)
        .from_reader(opened.reader);
    let mut record = ByteRecord::new();
    let mut table: Option<Table> = None;
    let mut row = 0;
    while row < limit {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                problems.push(failed(path, &error));
                return;
            }
        }
        let start = record.position().cloned().unwrap_or_else(Position::new);
        let Some(table) = &table else {
            let header = is_header(&record);
            match Table::new(path, &record, header, requests) {
                Ok(new) => {
                    if !header {
                        let more =
                            new.take(path, &record, &start, row, requests, columns, problems);
                        row += 1;
                        if !more {
                            return;
                        }
                    }
                    table = Some(new);
                }
                Err(found) => {
                    found.into_iter().for_each(|problem| {
                        problems.push(problem);
                    });
                    return;
                }
            }
            continue;
        };
        if !table.take(path, &record, &start, row, requests, columns, problems) {
            return;
        }
        row += 1;
    }
}

/// UTF-16 looks like a file of one column and many NUL characters.
pub(super) fn check_encoding(path: &Path, reader: &mut dyn BufRead) -> Result<(), Diagnostic> {
    let start = reader.fill_buf().map_err(|e| unreadable(path, &e))?;
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        return Err(Diagnostic::error("LMB0504", "the file is UTF-16, expected UTF-8")
            .at(span(path, 1, 1, 1))
            .help("save it as UTF-8"));
    }
    Ok(())
}

fn is_header(record: &ByteRecord) -> bool {
    record.iter().any(|field| !field.trim_ascii().is_empty() && parse_number(field).is_none())
}

fn failed(path: &Path, error: &csv::Error) -> Diagnostic {
    match error.kind() {
        ErrorKind::Io(error) => unreadable(path, error),
        _ => Diagnostic::error("LMB0509", format!("cannot read `{}`: {error}", path.display())),
    }
}

/// Where the requests lie in one file.
struct Table {
    width: usize,
    names: Vec<String>,
    fields: Vec<Fields>,
}

impl Table {
    fn new(
        path: &Path,
        first: &ByteRecord,
        header: bool,
        requests: &[Request],
    ) -> Result<Self, Vec<Diagnostic>> {
        let names: Vec<String> = if header {
            first.iter().map(|f| String::from_utf8_lossy(f.trim_ascii()).into_owned()).collect()
        } else {
            Vec::new()
        };
        let mut table = Self { width: first.len(), names, fields: Vec::new() };
        let mut problems = Vec::new();
        for request in requests {
            match table.find(request) {
                Ok(fields) => table.fields.push(fields),
                Err((message, help)) => {
                    let mut problem = Diagnostic::error("LMB0505", message)
                        .at(span(path, 1, 1, 1))
                        .within(format!("wanted for `{}`", request.target()));
                    problem.help = help;
                    problems.push(problem);
                }
            }
        }
        if problems.is_empty() { Ok(table) } else { Err(problems) }
    }

    fn find(&self, request: &Request) -> Result<Fields, (String, Option<String>)> {
        let range = |first: usize, last: usize| {
            if last < self.width && first <= last {
                return Ok(Fields { first, last });
            }
            let help = (self.width == 1).then(|| "are the fields separated by commas?".to_owned());
            let count = self.width;
            Err((format!("no column {last}: the file has {count}, counted from 0"), help))
        };
        match request {
            Request::Numbers { tensor, .. } => match &tensor.columns {
                None => range(0, self.width.saturating_sub(1)),
                Some(TensorColumns::Range(first, last)) => range(*first, *last),
                Some(TensorColumns::Named(column)) => self.one(column, range),
            },
            Request::Label { column, .. } | Request::Text { column } => self.one(column, range),
        }
    }

    fn one(
        &self,
        column: &Column,
        range: impl Fn(usize, usize) -> Result<Fields, (String, Option<String>)>,
    ) -> Result<Fields, (String, Option<String>)> {
        let name = match column {
            Column::Index(index) => return range(*index, *index),
            Column::Name(name) => name,
        };
        if self.names.is_empty() {
            return Err((
                format!(
                    "no column `{name}`: the first row holds only numbers, so the file has no header"
                ),
                Some("give the column's position, counted from 0".into()),
            ));
        }
        let mut found = self.names.iter().enumerate().filter(|(_, n)| *n == name).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (Some(index), None) => Ok(Fields { first: index, last: index }),
            (Some(first), Some(second)) => Err((
                format!("column `{name}` stands twice in the header, at {first} and {second}"),
                Some("give the column's position, counted from 0".into()),
            )),
            (None, _) => {
                let known = || self.names.iter().map(String::as_str);
                Err((
                    format!("no column `{name}`; the file has {}", listed(known())),
                    did_you_mean(name, known()).map(|n| format!("did you mean `{n}`?")),
                ))
            }
        }
    }

    /// Adds a row to every column. `false`: stop reading.
    #[expect(clippy::too_many_arguments, reason = "the reader's whole state, split by mutability")]
    fn take(
        &self,
        path: &Path,
        record: &ByteRecord,
        start: &Position,
        row: u64,
        requests: &[Request],
        columns: &mut [Builder],
        problems: &mut Problems,
    ) -> bool {
        if record.len() != self.width {
            return problems.push(
                Diagnostic::error(
                    "LMB0508",
                    format!("{} fields, but the first row has {}", record.len(), self.width),
                )
                .at(locate(path, start, 0))
                .within(format!("row {row}"))
                .help("a field that holds a comma or a quote must be quoted"),
            );
        }
        for ((fields, column), request) in self.fields.iter().zip(columns).zip(requests) {
            if let Err(error) = fields.push(record, column) {
                let field = fields.first + error.cell;
                let name = match self.names.get(field) {
                    Some(name) => format!("`{name}`"),
                    None => request.column().map_or_else(|| field.to_string(), column_name),
                };
                let place = locate(path, start, field);
                if !problems.push(error.at(place, row, &name)) {
                    return false;
                }
            }
        }
        true
    }
}

impl Fields {
    fn push(&self, record: &ByteRecord, column: &mut Builder) -> Result<(), CellError> {
        let field = |i| record.get(i).unwrap_or_default();
        match column {
            Builder::Numbers(numbers) => {
                let mut small = [0.0; 256];
                let count = self.last + 1 - self.first;
                let mut large = Vec::new();
                let values = match small.get_mut(..count) {
                    Some(values) => values,
                    None => {
                        large.resize(count, 0.0);
                        large.as_mut_slice()
                    }
                };
                for (i, value) in values.iter_mut().enumerate() {
                    *value =
                        number(field(self.first + i)).map_err(|e| CellError { cell: i, ..e })?;
                }
                numbers.push(values)
            }
            Builder::Labels(labels) => labels.push_text(field(self.first)),
            Builder::Texts(texts) => texts.push_bytes(field(self.first)),
        }
    }
}

/// The place of a field: reads the file again up to it, which only happens for a problem.
fn locate(path: &Path, start: &Position, field: usize) -> Span {
    let mut record = Vec::new();
    if let Ok(mut opened) = files::open(path) {
        let _ = std::io::copy(&mut (&mut opened.reader).take(start.byte()), &mut std::io::sink());
        let _ = opened.reader.take(1 << 20).read_to_end(&mut record);
    }
    let (line, column, length) = field_place(&record, field);
    span(path, start.line() + line, column, length)
}

/// Lines after the first, column in characters from 1, and length of a field of a raw record.
fn field_place(record: &[u8], field: usize) -> (u64, usize, usize) {
    let record = record.strip_prefix(b"\xef\xbb\xbf").unwrap_or(record);
    let text = String::from_utf8_lossy(record);
    // The reader skips empty lines, whose bytes still come before the record.
    let content = text.trim_start_matches(['\r', '\n']);
    let skipped = text.len() - content.len();
    let mut line = text.bytes().take(skipped).filter(|b| *b == b'\n').count() as u64;
    let (mut column, mut at, mut quoted) = (1, 0, false);
    let mut chars = content.chars();
    if field > 0 {
        for c in chars.by_ref() {
            column += 1;
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => at += 1,
                '\n' => (line, column) = (line + 1, 1),
                _ => {}
            }
            if at == field {
                break;
            }
        }
    }
    let rest = chars.as_str();
    let mut inside = false;
    let length = rest
        .chars()
        .take_while(|c| {
            inside ^= *c == '"';
            !(*c == '\n' || *c == '\r' || (*c == ',' && !inside))
        })
        .count();
    (line, column, length)
}
