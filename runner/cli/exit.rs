//! Exit codes. Part of the interface: scripts and schedulers decide by them whether to try again.

use limbeck_host::diagnostic::Diagnostic;
use limbeck_host::run::Failure;

/// Done, or done before.
pub const DONE: u8 = 0;
/// Wrong command line.
pub const USAGE: u8 = 2;
/// Data or checkpoint malformed.
pub const MALFORMED: u8 = 65;
/// An input is missing.
pub const MISSING_INPUT: u8 = 66;
/// The device is unavailable. Worth a retry.
pub const DEVICE: u8 = 69;
/// A bug in Limbeck; see CRASH.txt.
pub const BUG: u8 = 70;
/// Output cannot be created, or the run belongs to another process. Worth a retry after cleaning.
pub const OUTPUT_BUSY: u8 = 73;
/// I/O error or full disk.
pub const IO: u8 = 74;
/// Stopped by request, signal or limit with a checkpoint written: the same command continues.
pub const STOPPED: u8 = 75;
/// A plugin broke its contract.
pub const PLUGIN_BROKE: u8 = 76;
/// A plugin is not locked, changed, or lies in an unsafe place.
pub const UNTRUSTED: u8 = 77;
/// Pipeline error.
pub const PIPELINE: u8 = 78;
/// Diverged, or a gate was missed.
pub const DIVERGED: u8 = 79;

/// The code of a failed run.
pub fn of_failure(failure: Failure) -> u8 {
    match failure {
        Failure::Malformed => MALFORMED,
        Failure::MissingInput => MISSING_INPUT,
        Failure::DeviceUnavailable => DEVICE,
        Failure::Bug => BUG,
        Failure::OutputBusy => OUTPUT_BUSY,
        Failure::Io => IO,
        Failure::PluginBroke => PLUGIN_BROKE,
        Failure::Untrusted => UNTRUSTED,
        Failure::Pipeline => PIPELINE,
        Failure::Diverged => DIVERGED,
    }
}

/// The code for problems found before a run: that of the first error by series, so that a pipeline to mend is not
/// reported as a missing file.
pub fn of_problems<'a>(problems: impl IntoIterator<Item = &'a Diagnostic>) -> u8 {
    let errors = problems.into_iter().filter(|d| d.is_error());
    errors.min_by_key(|d| d.code).map_or(DONE, of_code)
}

/// The code of one diagnostic code; see `runner/docs/errors.md`.
fn of_code(problem: &Diagnostic) -> u8 {
    match problem.code {
        // A pipeline file or a run that is not there.
        "LMB0117" | "LMB0706" => return MISSING_INPUT,
        _ => {}
    }
    match problem.code.get(3..5) {
        Some("01" | "02") => PIPELINE,
        Some("03") => UNTRUSTED,
        Some("04") => PLUGIN_BROKE,
        Some("05") => MALFORMED,
        Some("06") => DIVERGED,
        Some("07") => IO,
        Some("08") => DEVICE,
        _ => BUG,
    }
}
