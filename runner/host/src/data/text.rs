//! Reads files with a text a line.
//!
//! Blank lines are no rows. Refuses what is not UTF-8, with line and column; such a file has no labels and no tensors.

use super::column::{Builder, Request};
use super::files::{self, unreadable};
use super::problem::{Problems, span};
use crate::diagnostic::Diagnostic;
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
    if let Some(other) = requests.iter().find(|r| !matches!(r, Request::Text { .. })) {
        problems.push(
            Diagnostic::error(
                "LMB0517",
                format!("format `text` has lines only, no column for `{}`", other.target()),
            )
            .help("use csv, jsonl or parquet"),
        );
        return;
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
    let mut bytes = Vec::new();
    let (mut line, mut row) = (0, 0);
    while row < limit {
        bytes.clear();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes) {
            Ok(0) => return,
            Ok(n) if n as u64 == LONGEST_LINE => {
                let problem = Diagnostic::error("LMB0509", "line of more than 64 MiB");
                problems.push(problem.at(span(path, line + 1, 1, 1)));
                return;
            }
            Ok(_) => line += 1,
            Err(error) => {
                problems.push(unreadable(path, &error));
                return;
            }
        }
        let start =
            if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
        let text = start.trim_ascii_end();
        if text.trim_ascii().is_empty() {
            continue;
        }
        match std::str::from_utf8(text) {
            Ok(text) => columns.iter_mut().for_each(|column| {
                if let Builder::Texts(texts) = column {
                    texts.push(text);
                }
            }),
            Err(error) => {
                let good = text.get(..error.valid_up_to()).unwrap_or_default();
                let column = String::from_utf8_lossy(good).chars().count() + 1;
                let problem = Diagnostic::error("LMB0504", "not UTF-8 text")
                    .at(span(path, line, column, 1))
                    .within(format!("row {row}"))
                    .help("save the file as UTF-8");
                if !problems.push(problem) {
                    return;
                }
            }
        }
        row += 1;
    }
}
