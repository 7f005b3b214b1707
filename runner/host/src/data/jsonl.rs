//! Reads files with one JSON object a line.
//!
//! Only the wanted keys are decoded; nesting of others costs no stack. Blank lines are skipped. A list of numbers may
//! be nested (rows of an image) and is read flat. Refuses lines that are no object, keys that stand twice, and lines
//! beyond 64 MiB.

use super::column::{Builder, Request};
use super::files::{self, unreadable};
use super::problem::{CellError, Problems, listed, shown, span};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::plan::Column;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

const LONGEST_LINE: u64 = 64 << 20;

/// Appends at most `limit` rows of a file to `columns`, one per request.
pub(super) fn read(
    path: &Path,
    requests: &[Request],
    columns: &mut [Builder],
    limit: u64,
    problems: &mut Problems,
) {
    let mut keys = Vec::new();
    for request in requests {
        match request.column() {
            Some(Column::Name(name)) => keys.push(name.as_str()),
            _ => {
                problems.push(by_position(request, "a field of a JSON object"));
                return;
            }
        }
    }
    let mut reader = match files::open(path) {
        Ok(opened) => opened.reader,
        Err(problem) => {
            problems.push(problem);
            return;
        }
    };
    if let Err(problem) = super::csv::check_encoding(path, &mut reader) {
        problems.push(problem);
        return;
    }
    let mut text = Vec::new();
    let (mut line, mut row) = (0, 0);
    while row < limit {
        text.clear();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text) {
            Ok(0) => return,
            Ok(n) if n as u64 == LONGEST_LINE => {
                problems.push(Diagnostic::error("LMB0509", "line of more than 64 MiB").at(span(
                    path,
                    line + 1,
                    1,
                    1,
                )));
                return;
            }
            Ok(_) => line += 1,
            Err(error) => {
                problems.push(unreadable(path, &error));
                return;
            }
        }
        let content =
            if line == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text) } else { &text };
        let content = content.trim_ascii_end();
        if content.is_empty() {
            continue;
        }
        let at = Place { path, line, row };
        if !at.take(content, &keys, columns, problems) {
            return;
        }
        row += 1;
    }
}

/// A request by position in a format whose columns have names.
pub(super) fn by_position(request: &Request, what: &str) -> Diagnostic {
    Diagnostic::error("LMB0517", format!("`{}` must name {what}, not a position", request.target()))
        .help("write the name of the field")
}

struct Place<'a> {
    path: &'a Path,
    line: u64,
    row: u64,
}

impl Place<'_> {
    /// Adds a row to every column. `false`: stop reading.
    fn take(
        &self,
        text: &[u8],
        keys: &[&str],
        columns: &mut [Builder],
        problems: &mut Problems,
    ) -> bool {
        let mut json = serde_json::Deserializer::from_slice(text);
        let parsed =
            RowSeed { keys }.deserialize(&mut json).and_then(|row| json.end().map(|()| row));
        let row = match parsed {
            Ok(row) => row,
            Err(error) => {
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                let column = String::from_utf8_lossy(text.get(..error.column()).unwrap_or(text))
                    .chars()
                    .count();
                return problems.push(
                    Diagnostic::error("LMB0509", format!("broken JSON: {message}"))
                        .at(span(self.path, self.line, column.max(1), 1))
                        .within(format!("row {}", self.row)),
                );
            }
        };
        for ((key, cell), column) in keys.iter().zip(&row.cells).zip(columns) {
            let result = match cell {
                Some(cell) => cell.push(column),
                None => Err(absent(key, text)),
            };
            if let Err(error) = result {
                let (at, length) = key_place(text, key);
                let span = span(self.path, self.line, at, length);
                if !problems.push(error.at(span, self.row, &format!("`{key}`"))) {
                    return false;
                }
            }
        }
        true
    }
}

fn absent(key: &str, text: &[u8]) -> CellError {
    let object: BTreeMap<String, IgnoredAny> = serde_json::from_slice(text).unwrap_or_default();
    let known = || object.keys().map(String::as_str);
    let error =
        CellError::new("LMB0505", format!("no key `{key}`; the object has {}", listed(known())));
    match did_you_mean(key, known()) {
        Some(close) => error.help(format!("did you mean `{close}`?")),
        None => error,
    }
}

/// Column and length of `"key"` in a line; the line's start if it is not there as written.
fn key_place(text: &[u8], key: &str) -> (usize, usize) {
    let text = String::from_utf8_lossy(text);
    match text.find(&format!("\"{key}\"")) {
        Some(at) => (text.get(..at).map_or(0, |t| t.chars().count()) + 1, key.chars().count() + 2),
        None => (1, 1),
    }
}

/// A wanted value.
#[derive(Clone)]
enum Cell {
    Null,
    Whole(i64),
    Number(f64),
    Text(String),
    Numbers(Vec<f64>),
    Object,
}

impl Cell {
    fn push(&self, column: &mut Builder) -> Result<(), CellError> {
        match (self, column) {
            (Self::Null, _) => Err(CellError::new("LMB0518", "the value is null")),
            (Self::Whole(value), Builder::Labels(labels)) => labels.push(*value),
            (Self::Whole(value), column) => column.push_number(*value as f64),
            (Self::Number(value), column) => column.push_number(*value),
            (Self::Text(text), Builder::Numbers(_)) => Err(CellError::new(
                "LMB0506",
                format!("text \"{}\", expected numbers", shown(text.as_bytes())),
            )),
            (Self::Text(text), column) => column.push_text(text.as_bytes()),
            (Self::Numbers(values), column) => column.push_numbers(values),
            (Self::Object, _) => {
                Err(CellError::new("LMB0509", "an object, expected text or numbers"))
            }
        }
    }
}

struct Row {
    cells: Vec<Option<Cell>>,
}

struct RowSeed<'a> {
    keys: &'a [&'a str],
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_> {
    type Value = Row;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Row, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = Row;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        let mut row = Row { cells: self.keys.iter().map(|_| None).collect() };
        while let Some(wanted) = map.next_key_seed(KeySeed(self.keys))? {
            let Some(first) = wanted else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if row.cells.get(first).is_some_and(Option::is_some) {
                return Err(A::Error::custom(format!("key `{}` stands twice", self.keys[first])));
            }
            let cell = map.next_value_seed(CellSeed)?;
            // One key may serve several requests (a text that is also its own pair).
            for (slot, key) in row.cells.iter_mut().zip(self.keys).skip(first + 1) {
                if *key == self.keys[first] {
                    *slot = Some(cell.clone());
                }
            }
            row.cells[first] = Some(cell);
        }
        Ok(row)
    }
}

/// The first request for a key, if there is one.
struct KeySeed<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|k| *k == key))
    }
}

struct CellSeed;

impl<'de> DeserializeSeed<'de> for CellSeed {
    type Value = Cell;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cell, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CellSeed {
    type Value = Cell;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("text, a number or numbers")
    }

    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Cell, E> {
        Ok(Cell::Whole(i64::from(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell::Whole(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Cell, E> {
        Ok(i64::try_from(value).map_or(Cell::Number(value as f64), Cell::Whole))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
        Ok(Cell::Number(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Cell, E> {
        Ok(Cell::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Cell, E> {
        Ok(Cell::Text(value))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Cell::Object)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Cell, A::Error> {
        let mut values = Vec::new();
        while seq.next_element_seed(Flat(&mut values))?.is_some() {}
        Ok(Cell::Numbers(values))
    }
}

/// A number, or a list of such, appended.
struct Flat<'a>(&'a mut Vec<f64>);

impl<'de> DeserializeSeed<'de> for Flat<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flat<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.push(value as f64);
        Ok(())
    }
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.push(value as f64);
        Ok(())
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.push(value);
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Flat(self.0))?.is_some() {}
        Ok(())
    }
}
