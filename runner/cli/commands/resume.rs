//! `limbeck resume RUN`.

use super::{Answer, Shell, inputs, run};
use crate::args::ResumeArgs;
use limbeck_host::run::RunOptions;

/// Continues exactly one run.
///
/// # Errors
/// No such run; changed inputs without `--accept-changes`; whatever stops the run.
pub fn resume(args: &ResumeArgs, shell: &Shell) -> Answer {
    let (described, plan) = inputs::of_run(&args.run, shell)?;
    let options = RunOptions {
        resume: Some(described.dir),
        accept_changes: args.accept_changes,
        sets: described.record.sets,
        ..run::options(shell, &args.limits)
    };
    run::start(inputs::open(plan, shell, inputs::Texts::Read)?, &options, shell)
}
