//! Makes [`RunError`]s: class, code, place.
//!
//! Every failed plugin call is attributed to plugin, call, stage and step here and nowhere else.

use super::{Failure, RunError};
use crate::diagnostic::Diagnostic;
use crate::load::instance::PluginError;
use limbeck_abi as abi;
use std::io;
use std::path::Path;

/// Result of a part of a run.
pub(crate) type RunResult<T> = Result<T, RunError>;

impl RunError {
    /// An error of a class.
    pub fn new(failure: Failure, diagnostic: Diagnostic) -> Self {
        Self { failure, diagnostic: Box::new(diagnostic) }
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
    let (failure, code, help) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (Failure::Io, "LMB0701", "free some space, then give the same command")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (Failure::OutputBusy, "LMB0702", "give a writable place with `--runs`")
        }
        _ => (Failure::Io, "LMB0702", "the last checkpoint is intact; give the same command again"),
    };
    let message = format!("cannot {doing} {}: {error}", path.display());
    RunError::new(failure, Diagnostic::error(code, message).help(help))
}

/// A plugin call that failed.
pub(crate) fn plugin_error(error: &PluginError) -> RunError {
    let failure = match error.status {
        abi::STATUS_BAD_DATA => Failure::Malformed,
        abi::STATUS_NOT_FOUND => Failure::MissingInput,
        abi::STATUS_DEVICE | abi::STATUS_OUT_OF_MEMORY => Failure::DeviceUnavailable,
        abi::STATUS_IO => Failure::Io,
        abi::STATUS_NON_FINITE => Failure::Diverged,
        _ => Failure::PluginBroke,
    };
    let mut diagnostic = error.diagnostic();
    if error.status == abi::STATUS_OUT_OF_MEMORY && diagnostic.help.is_none() {
        diagnostic = diagnostic.help("make `batch.size` smaller and `batch.accumulate` larger");
    }
    RunError::new(failure, diagnostic)
}

/// A plugin that answered, but not what it had promised.
pub(crate) fn contract(plugin: &str, message: impl std::fmt::Display) -> RunError {
    let message = format!("plugin `{plugin}` broke its contract: {message}");
    RunError::new(Failure::PluginBroke, Diagnostic::error("LMB0402", message))
}

/// Something that cannot happen.
pub(crate) fn bug(message: impl Into<String>) -> RunError {
    let diagnostic = Diagnostic::error("LMB0901", message)
        .help("this is a bug in Limbeck; report it with the pipeline and this message");
    RunError::new(Failure::Bug, diagnostic)
}
