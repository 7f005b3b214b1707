//! Makes [`RunError`]s: code, place.
//!
//! Every failed plugin call is attributed to plugin, call, stage and step here and nowhere else.

use super::RunError;
use crate::device::DeviceError;
use crate::diagnostic::Diagnostic;
use crate::load::instance::PluginError;
use limbeck_abi as abi;
use std::io;
use std::path::Path;

/// Result of a part of a run.
pub(crate) type RunResult<T> = Result<T, RunError>;

impl RunError {
    /// An error; what it is about is said by its code.
    pub fn new(diagnostic: Diagnostic) -> Self {
        Self { diagnostic: Box::new(diagnostic) }
    }

    /// Adds words after the place, unless there are some.
    #[must_use]
    pub fn within(mut self, context: impl Into<String>) -> Self {
        self.diagnostic.context.get_or_insert_with(|| context.into());
        self
    }
}

/// A file operation that failed.
pub(crate) fn io_error(doing: &str, path: &Path, error: &io::Error) -> RunError {
    let (code, help) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ("LMB0701", "free some space, then give the same command")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ("LMB0711", "give a writable place with `--runs`")
        }
        _ => ("LMB0702", "the last checkpoint is intact; give the same command again"),
    };
    let message = format!("cannot {doing} {}: {error}", path.display());
    RunError::new(Diagnostic::error(code, message).help(help))
}

/// A plugin call that failed.
pub(crate) fn plugin_error(error: &PluginError) -> RunError {
    let mut diagnostic = error.diagnostic();
    if error.status == abi::STATUS_OUT_OF_MEMORY && diagnostic.help.is_none() {
        diagnostic = diagnostic.help("make `batch.size` smaller and `batch.accumulate` larger");
    }
    RunError::new(diagnostic)
}

impl From<DeviceError> for RunError {
    fn from(error: DeviceError) -> Self {
        let problem = Diagnostic::error("LMB0802", error.message);
        Self::new(if error.status == abi::STATUS_OUT_OF_MEMORY {
            problem.help("make `batch.size` smaller and `batch.accumulate` larger")
        } else {
            problem
        })
    }
}

/// A plugin that answered, but not what it had promised.
pub(crate) fn contract(plugin: &str, message: impl std::fmt::Display) -> RunError {
    let message = format!("plugin `{plugin}` broke its contract: {message}");
    RunError::new(Diagnostic::error("LMB0402", message))
}

/// Something that cannot happen.
pub(crate) fn bug(message: impl Into<String>) -> RunError {
    let diagnostic = Diagnostic::error("LMB0901", message)
        .help("this is a bug in Limbeck; report it with the pipeline and this message");
    RunError::new(diagnostic)
}
