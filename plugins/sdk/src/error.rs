//! What a plugin call can fail with: a status of the contract, a sentence, and notes that lead the user to the place.
//!
//! Knows no call and no kind. Every error carries a status other than `LMB_OK`.

use limbeck_abi as abi;
use std::fmt;
use std::path::Path;

/// Result of everything a plugin author writes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call: status, message (lower case, no full stop) and notes.
///
/// Notes with meaning to the host: `pointer` (JSON Pointer into the settings), `tensor`, `row`, `file`, `native_code`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    status: abi::Status,
    message: String,
    notes: Vec<(String, String)>,
    /// The host has filled the slot of the running call with a better text.
    reported: bool,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $status:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(abi::$status, message)
        }
    )*};
}

impl Error {
    /// An error with a status of the contract (`limbeck_abi::STATUS_*`) or a private one from `0x10000` on.
    pub fn new(status: abi::Status, message: impl Into<String>) -> Self {
        let status = if status == abi::STATUS_OK { abi::STATUS_INTERNAL } else { status };
        Self { status, message: message.into(), notes: Vec::new(), reported: false }
    }

    constructors! {
        /// The caller broke the contract: shapes that do not agree, a required input that is absent.
        invalid_argument => STATUS_INVALID_ARGUMENT;
        /// The call is not legal in this state.
        invalid_state => STATUS_INVALID_STATE;
        /// No such file, id or name.
        not_found => STATUS_NOT_FOUND;
        /// dtype, device or shape outside what was declared.
        unsupported => STATUS_UNSUPPORTED;
        /// The host may retry with a smaller micro-batch.
        out_of_memory => STATUS_OUT_OF_MEMORY;
        /// A driver or runtime failed.
        device => STATUS_DEVICE;
        /// A file or a batch is malformed.
        bad_data => STATUS_BAD_DATA;
        /// A value that must be finite is not; the host may skip the step.
        non_finite => STATUS_NON_FINITE;
        /// A bug of the plugin.
        internal => STATUS_INTERNAL;
    }

    /// `cancelled()` was seen; the instance stays usable.
    pub fn cancelled() -> Self {
        Self::new(abi::STATUS_CANCELLED, "cancelled")
    }

    /// A setting is wrong. `pointer` is a JSON Pointer into the settings (`/temperature`), shown as a YAML line.
    pub fn config(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(abi::STATUS_INVALID_CONFIG, message).note("pointer", pointer)
    }

    /// A file cannot be read or written.
    pub fn io(path: impl AsRef<Path>, source: &std::io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        let status = match source.kind() {
            std::io::ErrorKind::NotFound => abi::STATUS_NOT_FOUND,
            _ => abi::STATUS_IO,
        };
        Self::new(status, format!("cannot use `{path}`: {source}")).note("file", path)
    }

    /// A file is malformed.
    pub fn bad_file(path: impl AsRef<Path>, message: impl fmt::Display) -> Self {
        let path = path.as_ref().display().to_string();
        Self::new(abi::STATUS_BAD_DATA, format!("`{path}`: {message}")).note("file", path)
    }

    /// Adds a note.
    #[must_use]
    pub fn note(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.notes.push((key.into(), value.into()));
        self
    }

    /// Names the tensor it is about.
    #[must_use]
    pub fn tensor(self, name: impl Into<String>) -> Self {
        self.note("tensor", name)
    }

    /// Names the row it is about.
    #[must_use]
    pub fn row(self, row: usize) -> Self {
        self.note("row", row.to_string())
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        if self.reported {
            return self.note("while", doing.to_string());
        }
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The host refused a call and has put its text into the slot already.
    pub(crate) fn from_host(status: abi::Status, reported: bool) -> Self {
        Self { reported, ..Self::new(status, "the host refused the request") }
    }

    pub(crate) fn is_reported(&self) -> bool {
        self.reported
    }

    /// The status of the contract.
    pub fn status(&self) -> abi::Status {
        self.status
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The notes.
    pub fn notes(&self) -> &[(String, String)] {
        &self.notes
    }

    /// The value of the last note under `key`.
    pub fn find_note(&self, key: &str) -> Option<&str> {
        self.notes.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (key, value) in &self.notes {
            write!(f, " [{key}: {value}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(abi::STATUS_IO, error.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::bad_data(error.to_string())
    }
}

#[cfg(feature = "candle")]
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::internal(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_never_carries_ok() {
        assert_eq!(Error::new(abi::STATUS_OK, "x").status(), abi::STATUS_INTERNAL);
    }

    #[test]
    fn a_missing_file_is_not_found_and_names_the_file() {
        let error = Error::io("a/b", &std::io::Error::from(std::io::ErrorKind::NotFound));
        assert_eq!(error.status(), abi::STATUS_NOT_FOUND);
        assert_eq!(error.find_note("file"), Some("a/b"));
    }
}
