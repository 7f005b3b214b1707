//! YAML text to the document as written, with the place of every key and value.
//!
//! [`load`] reads a file within budgets, resolves merge keys, applies `--set`. It opens no other file and knows no
//! stage: what keys mean is the plan's business. The one YAML reader is [`guard`]; its tree carries places, so that
//! every later message has one. Refuses text that is not UTF-8.

pub mod amount;
pub mod guard;
mod merge;
mod node;
mod reader;
mod scalar;
mod set;

pub(crate) use node::shorten;
pub use node::{Entry, Node, Value};
pub(crate) use reader::{Field, Fields, Sink};
pub(crate) use scalar::{Bounds, choice_of, count_of, listed, number_of, text_of, wrong_type};

use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pipeline as its author wrote it, `--set` applied.
#[derive(Clone, Debug)]
pub struct Document {
    /// File as the user named it.
    pub file: Arc<PathBuf>,
    /// Relative inputs start here.
    pub base_dir: PathBuf,
    /// Text of the file.
    pub text: String,
    /// Content, merge keys resolved.
    pub root: Arc<Node>,
}

/// Reads a pipeline file and applies `--set` entries (`PATH=VALUE`).
///
/// # Errors
/// Every problem of the text; paths of `sets` that lead nowhere.
pub fn load(path: &Path, sets: &[String]) -> Result<Document, Diagnostics> {
    load_in(path, None, sets)
}

/// [`load`], but relative inputs start at `base_dir`: for the copy of a pipeline that a run keeps.
///
/// # Errors
/// As [`load`].
pub fn load_in<'a>(
    path: &Path,
    base_dir: impl Into<Option<&'a Path>>,
    sets: &[String],
) -> Result<Document, Diagnostics> {
    let bytes = read_bounded(path).map_err(|problem| vec![*problem])?;
    let text = decode(&bytes, path).map_err(|problem| vec![*problem])?;
    let mut document = parse(path, &text, sets)?;
    if let Some(base_dir) = base_dir.into() {
        document.base_dir = base_dir.to_owned();
    }
    Ok(document)
}

/// [`load`] for text that is already in memory; `path` names it in messages and gives the base directory.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: &str, sets: &[String]) -> Result<Document, Diagnostics> {
    let file = Arc::new(path.to_owned());
    if text.len() > guard::MAX_BYTES {
        return Err(vec![too_large(path)]);
    }
    let written = guard::read(text, &file, 1, 1)?;
    if !matches!(written.value, Value::Map(_)) {
        return Err(vec![
            Diagnostic::error(
                "LMB0103",
                format!("a pipeline is a mapping, found {}", written.describe()),
            )
            .at(written.span.clone())
            .help("start with `version: 1` and `name: …`"),
        ]);
    }
    let mut problems = Vec::new();
    let root = set::apply(merge::resolve(&written, &mut problems), sets, &mut problems);
    if !problems.is_empty() {
        crate::diagnostic::sort(&mut problems);
        return Err(problems);
    }
    let base_dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok(Document { file, base_dir, text: text.to_owned(), root })
}

/// At most one byte more than the limit is read: a device or a huge file costs nothing.
fn read_bounded(path: &Path) -> Result<Vec<u8>, Box<Diagnostic>> {
    let unreadable = |error: &std::io::Error| {
        let problem = Diagnostic::error(
            "LMB0117",
            format!("cannot read pipeline `{}`: {error}", path.display()),
        );
        Box::new(match error.kind() {
            std::io::ErrorKind::NotFound => {
                problem.help("check the path; relative paths start at the working directory")
            }
            _ => problem,
        })
    };
    let file = std::fs::File::open(path).map_err(|e| unreadable(&e))?;
    let mut bytes = Vec::new();
    file.take(guard::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| unreadable(&e))?;
    if bytes.len() > guard::MAX_BYTES { Err(Box::new(too_large(path))) } else { Ok(bytes) }
}

fn too_large(path: &Path) -> Diagnostic {
    let span = Span { file: Arc::new(path.to_owned()), line: 1, column: 1, length: 1 };
    Diagnostic::error("LMB0108", "the file is larger than 1 MiB")
        .at(span)
        .help("a pipeline is settings, not data: put data into a dataset file")
}

/// UTF-8, with or without a byte-order mark.
fn decode(bytes: &[u8], path: &Path) -> Result<String, Box<Diagnostic>> {
    let at = |line, column| Span { file: Arc::new(path.to_owned()), line, column, length: 1 };
    let wide = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..]);
    if wide {
        return Err(Box::new(
            Diagnostic::error("LMB0104", "the file is UTF-16 or UTF-32")
                .at(at(1, 1))
                .help("save it as UTF-8"),
        ));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let valid =
                String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
            let line = valid.matches('\n').count() + 1;
            let column = valid.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
            Err(Box::new(
                Diagnostic::error("LMB0104", "the file is not UTF-8 text")
                    .at(at(line, column))
                    .help("save it as UTF-8"),
            ))
        }
    }
}

#[cfg(test)]
mod tests;
