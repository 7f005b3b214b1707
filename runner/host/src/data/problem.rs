//! Collects what is wrong with data files.
//!
//! Series LMB05. A problem of a text file has its line and column; of a binary file, its row and column in words.
//! At most [`LIMIT`] problems of one dataset are kept: a file in the wrong format has one on every row.

use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use std::path::Path;
use std::sync::Arc;

/// Problems of one dataset before its files are given up.
pub(super) const LIMIT: usize = 10;

/// Problems of the datasets that read the same files.
pub(super) struct Problems {
    list: Diagnostics,
    origin: String,
    full: bool,
}

impl Problems {
    /// `ids`: the datasets that are being read; `span`: the entry of the first.
    pub(super) fn new(ids: &[&str], span: Option<&Span>) -> Self {
        let names = ids.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
        let plural = if ids.len() > 1 { "s" } else { "" };
        let place = span
            .map_or(String::new(), |s| format!(", {}:{}:{}", s.file.display(), s.line, s.column));
        Self { list: Vec::new(), origin: format!("dataset{plural} {names}{place}"), full: false }
    }

    /// Adds one. `false`: enough, stop reading.
    pub(super) fn push(&mut self, problem: Diagnostic) -> bool {
        if !self.full {
            self.list.push(problem.note(self.origin.clone()));
        }
        self.full = self.list.len() >= LIMIT;
        if self.full
            && let Some(last) = self.list.last_mut()
        {
            last.notes.push(format!("reading stopped after {LIMIT} problems"));
        }
        !self.full
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        !self.list.is_empty()
    }

    /// All of them.
    pub(super) fn into_list(self) -> Diagnostics {
        self.list
    }
}

/// A value that cannot be taken: the reader adds its place.
#[derive(Debug)]
pub(super) struct CellError {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) help: Option<String>,
    /// Position among the values of the row.
    pub(super) cell: usize,
}

impl CellError {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None, cell: 0 }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// As a problem at a place of a text file.
    pub(super) fn at(self, span: Span, row: u64, column: &str) -> Diagnostic {
        let mut problem = Diagnostic::error(self.code, self.message)
            .at(span)
            .within(format!("row {row}, column {column}"));
        problem.help = self.help;
        problem
    }

    /// As a problem in a binary file.
    pub(super) fn inside(self, file: &Path, row: u64, column: &str) -> Diagnostic {
        let mut problem = Diagnostic::error(
            self.code,
            format!("{}: row {row}, column {column}: {}", file.display(), self.message),
        );
        problem.help = self.help;
        problem
    }
}

/// A place in a text file.
pub(super) fn span(file: &Path, line: u64, column: usize, length: usize) -> Span {
    Span {
        file: Arc::new(file.to_path_buf()),
        line: usize::try_from(line).unwrap_or(usize::MAX),
        column,
        length: length.max(1),
    }
}

/// At most 40 characters of a value, without control characters.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out: String =
        text.chars().take(40).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(40).is_some() {
        out.push('…');
    }
    out
}

/// `a`, `b` and 3 more.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let mut out = names
        .iter()
        .take(12)
        .map(|n| format!("`{}`", shown(n.as_bytes())))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > 12 {
        out.push_str(&format!(" and {} more", names.len() - 12));
    }
    out
}
