//! What is wrong, where, and what to do about it.
//!
//! Data only: the program renders it. Codes are `LMB` + four digits, explained in `runner/docs/errors.md`.

pub mod codes;

use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// A stretch of a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// File as the user named it.
    pub file: Arc<PathBuf>,
    /// Line.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub length: usize,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The run goes on.
    Warning,
    /// The run does not start, or stops.
    Error,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// `LMB0101`. The first two digits are the series of `ux`: 01 document and settings, 02 plan and wiring,
    /// 03 plugin files and trust, 04 plugin at run time, 05 data, 06 numerics, 07 storage, 08 device, 09 bug.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// One sentence with the offending value, lower case, no full stop.
    pub message: String,
    /// Place in the pipeline (or data) file.
    pub span: Option<Span>,
    /// Words after the place: ``stage `distill`, term `kl` ``.
    pub context: Option<String>,
    /// Causes and facts.
    pub notes: Vec<String>,
    /// Remedy.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without place.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            span: None,
            context: None,
            notes: Vec::new(),
            help: None,
        }
    }

    /// A warning without place.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// Adds the place.
    #[must_use]
    pub fn at(mut self, span: impl Into<Option<Span>>) -> Self {
        self.span = span.into();
        self
    }

    /// Adds the words after the place.
    #[must_use]
    pub fn within(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Adds a cause or fact.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds the remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Whether it stops the run.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Problems of one phase, in any order; at least one is an error when it stands in an `Err`.
pub type Diagnostics = Vec<Diagnostic>;

/// Sorts by place (placeless ones last), errors and warnings alike, and drops exact doubles.
pub fn sort(problems: &mut Diagnostics) {
    problems.sort_by(|a, b| {
        let key = |d: &Diagnostic| d.span.as_ref().map_or((usize::MAX, 0), |s| (s.line, s.column));
        key(a).cmp(&key(b)).then(a.code.cmp(b.code)).then(a.message.cmp(&b.message))
    });
    problems.dedup();
}

/// The closest of `known` to `found`, if close enough to be a typing slip.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(found, k), k))
        .filter(|(distance, k)| *distance <= 1 + k.chars().count().min(found.chars().count()) / 3)
        .min()
        .map(|(_, k)| k)
}
