//! Live instances to a trained student.

mod arith;
mod assemble;
mod bind;
mod capture;
#[cfg(test)]
mod capture_tests;
pub mod checkpoint;
mod classes;
mod ensemble;
mod error;
mod evaluate;
pub mod event;
mod forward;
mod gates;
mod gradient;
#[cfg(test)]
mod harness;
mod io;
mod live;
pub mod lr;
pub mod matrix;
pub mod metrics;
mod models;
mod offline;
mod optimizer;
mod owner;
mod parameters;
mod pass;
mod place;
mod probe;
pub mod random;
pub(crate) mod request;
pub(crate) mod rows;
pub mod rundir;
pub mod safetensors;
mod schedule;
mod scores;
mod session;
mod stage;
mod stage_matrix;
mod state;
mod step;
#[cfg(test)]
mod stream_tests;
mod topk;
mod train_step;
mod training;
pub mod vfs;
pub mod watch;

use crate::data::Datasets;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::load::instance::{Running, Shown};
use crate::load::{Catalogue, Loaded};
use crate::plan::{Plan, Which};
use event::EventSink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How a run is carried out (not what it computes).
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// `--runs`, default `./runs`.
    pub runs_dir: PathBuf,
    /// Start anew although an unfinished run of the same pipeline exists.
    pub fresh: bool,
    /// Continue exactly this run directory (`resume`).
    pub resume: Option<PathBuf>,
    /// Go on although a plugin or a data file changed since the checkpoint.
    pub accept_changes: bool,
    /// Stop after this stage.
    pub until: Option<String>,
    /// Stop (exit 75, checkpoint) after so many optimizer steps of this process.
    pub max_steps: Option<u64>,
    /// Stop (exit 75, checkpoint) after so long.
    pub time_limit: Option<Duration>,
    /// Size of the pool, recorded.
    pub threads: usize,
    /// The command line, recorded in `config/command.txt`.
    pub command: Vec<String>,
    /// `--set` entries, recorded so that `resume` can plan again.
    pub sets: Vec<String>,
    /// Who is told what happens inside a call that takes long.
    pub notices: Option<watch::Notices>,
}

/// A running session seen from other threads: asks it to stop, says in which plugin call it is. Cloned into signal
/// handlers.
#[derive(Clone, Debug, Default)]
pub struct Control {
    stop: Arc<std::sync::Mutex<Option<String>>>,
    calls: Arc<Shown>,
}

impl Control {
    /// Finish the step, write a checkpoint, stop. The first reason wins.
    pub fn request_stop(&self, reason: &str) {
        let mut stop = self.stop.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        stop.get_or_insert_with(|| reason.to_owned());
    }

    /// The reason, once asked.
    pub fn stop_requested(&self) -> Option<String> {
        self.stop.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Plugin id, call and step of the plugin call that the session is in.
    pub fn running_call(&self) -> Option<(&'static str, &'static str, u64)> {
        self.shown().1
    }

    /// The number of that call, other for each call, and the call.
    pub(crate) fn shown(&self) -> (u64, Running) {
        self.calls.get()
    }

    /// Where the session shows its calls.
    pub(crate) fn calls(&self) -> Arc<Shown> {
        Arc::clone(&self.calls)
    }
}

/// How a run ended without an error.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All stages are done.
    Done {
        /// Run directory.
        dir: PathBuf,
    },
    /// They were done before.
    AlreadyDone {
        /// Run directory.
        dir: PathBuf,
    },
    /// Stopped by request; a checkpoint is on disk. Exit 75.
    Stopped {
        /// Run directory.
        dir: PathBuf,
        /// Stage.
        stage: String,
        /// Step.
        step: u64,
        /// Signal, time limit, step limit.
        reason: String,
    },
    /// `--until` was reached.
    StageReached {
        /// Run directory.
        dir: PathBuf,
        /// Stage.
        stage: String,
    },
}

/// An error of a run. Its code decides the exit code, see [`crate::diagnostic::codes`].
#[derive(Clone, Debug)]
pub struct RunError {
    /// What to print.
    pub diagnostic: Box<Diagnostic>,
}

/// Problems of a loaded plan that only active students show: ports that read a parameter which is not there. `work` is a
/// folder that may be written to.
///
/// # Errors
/// A student that cannot be activated.
pub fn check_parameters(
    plan: &Plan,
    loaded: &mut Loaded,
    work: &Path,
) -> Result<Diagnostics, RunError> {
    parameters::check(plan, loaded, 0, work)
}

/// Trains, evaluates and exports as the plan says; continues an unfinished run of the same resolved pipeline.
/// Must be called on a thread with a large stack (64 MiB): models record deep graphs.
///
/// # Errors
/// See [`RunError`].
pub fn run(
    plan: &Plan,
    loaded: Loaded,
    datasets: &Datasets,
    catalogue: &Catalogue,
    options: &RunOptions,
    control: &Control,
    sink: &mut dyn EventSink,
) -> Result<Outcome, RunError> {
    session::run(plan, loaded, datasets, catalogue, options, control, sink)
}

/// Metrics by dataset: `(dataset, [(metric, value)])`.
pub type Measured = Vec<(String, Vec<(String, f64)>)>;

/// Metrics of a finished (or stopped) stage's student on a dataset: `limbeck eval`.
///
/// # Errors
/// See [`RunError`].
pub fn evaluate(
    plan: &Plan,
    loaded: Loaded,
    datasets: &Datasets,
    run_dir: &Path,
    stage: usize,
    which: Which,
    data: Option<&str>,
) -> Result<Measured, RunError> {
    offline::evaluate(plan, loaded, datasets, run_dir, &offline::place(stage, which), data)
}

/// The task matrix that a stage wrote last; `None` outside streams and before the first task ended.
pub fn task_matrix(plan: &Plan, run_dir: &Path, stage: usize) -> Option<matrix::TaskMatrix> {
    let dir = rundir::stage_dir(run_dir, plan.stages.get(stage)?);
    let bytes = std::fs::read(dir.join("eval").join("task-matrix.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes a stage's student as a Hugging Face directory: `limbeck export`.
///
/// # Errors
/// See [`RunError`].
pub fn export(
    plan: &Plan,
    loaded: Loaded,
    run_dir: &Path,
    stage: usize,
    which: Which,
    to: &Path,
) -> Result<(), RunError> {
    offline::export(plan, loaded, run_dir, &offline::place(stage, which), to)
}
