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

/// The reference of all diagnostic codes; each paragraph begins `**LMB0101** title (78).`
const REFERENCE: &str = include_str!("../docs/errors.md");

/// The exit code that the reference gives for a diagnostic. Warnings stand there with 0; as an error, such a code is
/// a pipeline error.
fn of_code(problem: &Diagnostic) -> u8 {
    let start = format!("**{}** ", problem.code);
    let paragraph = REFERENCE.lines().find_map(|l| l.strip_prefix(start.as_str()));
    let number = paragraph.and_then(|p| p.split_once(" (")?.1.split_once(')')?.0.parse().ok());
    match number {
        Some(DONE) => PIPELINE,
        Some(code) => code,
        None => BUG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_reference_has_an_exit_code() {
        let known = [0, 65, 66, 69, 70, 73, 74, 75, 76, 77, 78, 79];
        let mut seen = 0;
        for line in REFERENCE.lines().filter(|l| l.starts_with("**LMB")) {
            let code: &'static str = line[2..9].to_owned().leak();
            let exit = of_code(&Diagnostic::error(code, "x"));
            let documented =
                line.split_once(" (").and_then(|(_, rest)| rest.split_once(')')).unwrap().0;
            assert!(known.contains(&documented.parse::<u8>().unwrap()), "{line}");
            assert!(exit == PIPELINE || exit.to_string() == documented, "{line}");
            seen += 1;
        }
        assert!(seen > 50, "saw only {seen}");
        assert_eq!(of_code(&Diagnostic::error("LMB0117", "x")), MISSING_INPUT);
    }
}
