//! `limbeck run FILE`.

use super::inputs::{self, Inputs};
use super::{Answer, Shell, unknown};
use crate::args::{LimitArgs, RunArgs};
use crate::render::calls::CallView;
use crate::render::events::{RunView, short_id};
use crate::render::table;
use crate::{exit, logs, signals, startup};
use limbeck_host::run::watch::Notices;
use limbeck_host::run::{Control, Outcome, RunOptions};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs a pipeline or continues its unfinished run.
///
/// # Errors
/// Whatever stops it.
pub fn run(args: &RunArgs, shell: &Shell) -> Answer {
    let plan = inputs::plan_file(&args.pipeline.file, &args.pipeline.set)?;
    let options = RunOptions {
        fresh: args.fresh,
        sets: args.pipeline.set.clone(),
        ..options(shell, &args.limits)
    };
    start(inputs::open(plan, shell, inputs::Texts::Read)?, &options, shell)
}

/// What `run` and `resume` have in common.
pub fn options(shell: &Shell, limits: &LimitArgs) -> RunOptions {
    RunOptions {
        runs_dir: shell.global.runs.clone(),
        until: limits.until.clone(),
        max_steps: limits.max_steps,
        time_limit: limits.time_limit,
        threads: startup::threads(shell.global.threads),
        command: std::env::args().collect(),
        ..RunOptions::default()
    }
}

/// Carries out the run and says how it ended.
///
/// # Errors
/// See [`limbeck_host::run::RunError`].
pub fn start(inputs: Inputs, options: &RunOptions, shell: &Shell) -> Answer {
    let Inputs { plan, datasets, catalogue, loaded } = inputs;
    let stages = || plan.stages.iter().map(|s| s.name.as_str());
    if let Some(until) = options.until.as_deref().filter(|until| !stages().any(|s| s == *until)) {
        return Err(unknown("stage", until, stages()));
    }
    let control = Control::default();
    signals::listen(control.clone());
    let names: Vec<&str> = plan.stages.iter().map(|s| s.name.as_str()).collect();
    let on_started = |dir: &Path| {
        startup::set_run_dir(dir.to_owned());
        logs::also_into(dir);
    };
    let calls = CallView::new(shell.renderer);
    let notices = Some(Notices::new(move |notice| calls.notice(notice)));
    let options = &RunOptions { notices, ..options.clone() };
    let mut view = RunView::new(shell.renderer, &names, Box::new(on_started));
    let begin = Instant::now();
    let result =
        limbeck_host::run::run(&plan, loaded, &datasets, &catalogue, options, &control, &mut view);
    view.finish();
    Ok(ended(&result?, begin, shell))
}

/// The end of a run's id if that names one run, else the whole id.
fn id_of(dir: &Path) -> &str {
    let id = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let short = short_id(id);
    let siblings = dir.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    let same = siblings.into_iter().flatten().flatten();
    let others = same.filter(|e| e.file_name().to_string_lossy().ends_with(short)).count();
    if others > 1 { id } else { short }
}

/// Says how the run ended; gives the exit code.
fn ended(outcome: &Outcome, begin: Instant, shell: &Shell) -> u8 {
    let peak = peak_bytes();
    let took = table::duration(begin.elapsed());
    let memory = peak.map_or(String::new(), |p| format!(", {} of memory at most", table::bytes(p)));
    let tell = |dir: &PathBuf, state: &str, text: String, code: u8| {
        let value = json!({
            "type": "run_finished", "outcome": state, "dir": dir, "exit": code,
            "seconds": begin.elapsed().as_secs_f64(), "peak_bytes": peak,
        });
        shell.renderer.answer(&text, &value);
        code
    };
    match outcome {
        Outcome::Done { dir } => {
            let runs =
                dir.parent().and_then(Path::parent).filter(|runs| *runs != Path::new("runs"));
            let runs = runs.map_or(String::new(), |runs| format!(" --runs {}", runs.display()));
            let text = format!("done in {took}{memory}.  Next: limbeck eval {}{runs}", id_of(dir));
            tell(dir, "done", text, exit::DONE)
        }
        Outcome::AlreadyDone { dir } => {
            let text = format!("already done: {}   (--fresh runs it anew)", dir.display());
            tell(dir, "already_done", text, exit::DONE)
        }
        Outcome::StageReached { dir, stage } => {
            let text = format!(
                "stage `{stage}` is done, in {took}. Continue: the same command without --until"
            );
            tell(dir, "stage_reached", text, exit::DONE)
        }
        Outcome::Stopped { dir, stage, step, reason } => {
            let text = format!(
                "stopped at step {step} of stage `{stage}`: {reason} (exit {}). Continue: the same command, or  \
                 limbeck resume {}",
                exit::STOPPED,
                id_of(dir)
            );
            tell(dir, "stopped", text, exit::STOPPED)
        }
    }
}

/// Most memory that the process held, where the system tells it.
fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let size = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = size.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
