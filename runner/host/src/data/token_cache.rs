//! Token ids of whole datasets, kept on disk.
//!
//! A file is named after everything that decides its content, so it is never out of date. What cannot be read is made
//! again, what cannot be written is not kept: the cache changes how long a run takes, never what it computes.

use super::column::Request;
use super::open::Text;
use super::tokenize::{TextEncoder, Tokens};
use crate::diagnostic::Diagnostic;
use crate::run::checkpoint::sha256;
use crate::run::safetensors;
use crate::run::vfs::{RealFs, replace};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Raised when the form of the files changes.
const FORMAT: u32 = 1;

/// Decides, with tokenizer and rows, what the tokens are.
pub(super) struct Key<'a> {
    /// Data files and their SHA-256.
    pub files: &'a [(PathBuf, String)],
    /// Columns that are read from them.
    pub columns: &'a [Request],
    pub text: &'a Text,
}

impl Key<'_> {
    /// Name of the file for these rows.
    pub fn file(&self, encoder: &TextEncoder, rows: &BTreeSet<usize>) -> String {
        let (_, text, pair) = self.text;
        let mut key = format!("{FORMAT} {}\n", encoder.fingerprint());
        for (_, hash) in self.files {
            key.push_str(hash);
            key.push('\n');
        }
        for column in std::iter::once(*text).chain(*pair) {
            key.push_str(&format!("{:?}\n", self.columns.get(column)));
        }
        for row in rows {
            key.push_str(&format!("{row} "));
        }
        format!("{}.safetensors", sha256(key.as_bytes()))
    }
}

/// The tokens of a file of `dir`, else those that `make` makes, which are kept.
///
/// # Errors
/// Those of `make`.
pub(super) fn read_or_make(
    dir: &Path,
    file: &str,
    rows: usize,
    has_pair: bool,
    make: impl FnOnce() -> Result<Tokens, Diagnostic>,
) -> Result<Tokens, Diagnostic> {
    let path = dir.join(file);
    let kept = std::fs::read(&path).ok().and_then(|bytes| safetensors::from_bytes(&bytes).ok());
    if let Some(tokens) = kept.and_then(|named| Tokens::from_tensors(&named, rows, has_pair)) {
        tracing::debug!(path = %path.display(), "tokens read");
        return Ok(tokens);
    }
    let tokens = make()?;
    let written = safetensors::to_bytes(&tokens.to_tensors())
        .map_err(|e| e.to_string())
        .and_then(|bytes| keep(dir, &path, &bytes).map_err(|e| e.to_string()));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), error, "tokens not kept");
    }
    Ok(tokens)
}

fn keep(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    replace(&RealFs, path, bytes)
}
