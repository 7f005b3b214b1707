//! Exit codes. Part of the interface: scripts and schedulers decide by them whether to try again.
//!
//! Those of errors follow from their diagnostic codes (see `limbeck_host::diagnostic::codes`); the ones that the program
//! itself decides on stand here. `limbeck help run` lists all.

use limbeck_host::diagnostic::{Diagnostic, codes};

/// Done, or done before.
pub const DONE: u8 = 0;
/// Wrong command line.
pub const USAGE: u8 = 2;
/// An input is missing.
pub const MISSING_INPUT: u8 = 66;
/// A bug in Limbeck; see CRASH.txt.
pub const BUG: u8 = 70;
/// Stopped by request, signal or limit with a checkpoint written: the same command continues.
pub const STOPPED: u8 = 75;
/// A plugin broke its contract.
pub const PLUGIN_BROKE: u8 = 76;
/// Pipeline error.
pub const PIPELINE: u8 = 78;

/// The code for problems found before a run: that of the first error by series, so that a pipeline to mend is not
/// reported as a missing file.
pub fn of_problems<'a>(problems: impl IntoIterator<Item = &'a Diagnostic>) -> u8 {
    let errors = problems.into_iter().filter(|d| d.is_error());
    errors.min_by_key(|d| d.code).map_or(DONE, of_code)
}

/// The registered exit code. Warnings are registered with 0; as an error, such a code is a pipeline error.
fn of_code(problem: &Diagnostic) -> u8 {
    match codes::exit(problem.code) {
        DONE => PIPELINE,
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registered_code_ends_with_a_documented_exit_code() {
        let known = [0, 2, 65, 66, 69, 70, 73, 74, 75, 76, 77, 78, 79];
        for code in codes::CODES {
            assert!(known.contains(&code.exit), "{code:?}");
        }
        assert_eq!(of_code(&Diagnostic::error("LMB0117", "x")), MISSING_INPUT);
        assert_eq!(of_code(&Diagnostic::error("LMB0220", "x")), PIPELINE);
    }
}
