//! What happened, for progress bars, logs and trackers. The session tells; it never prints.

use std::path::PathBuf;

/// One happening.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run directory is ours.
    RunStarted {
        /// Pipeline name.
        name: String,
        /// `20261123T160412Z-5f3a9c1e`.
        id: String,
        /// Run directory.
        dir: PathBuf,
        /// Seed.
        seed: u64,
        /// `cpu, 2 threads`.
        device: String,
        /// Continued from a checkpoint: stage name and step.
        resumed: Option<(String, u64)>,
    },
    /// A stage begins.
    StageStarted {
        /// 0-based.
        index: usize,
        /// Stages in all.
        count: usize,
        /// Name.
        name: String,
        /// Optimizer steps, 0 if none.
        total_steps: u64,
    },
    /// A task of a stream begins.
    TaskStarted {
        /// Name.
        name: String,
        /// 0-based.
        index: usize,
        /// Tasks in all.
        count: usize,
    },
    /// An optimizer step is done.
    Step {
        /// Step of the stage, from 1.
        step: u64,
        /// Steps of the stage.
        total: u64,
        /// `loss`, then each term's unweighted value, `lr`, `grad_norm`.
        values: Vec<(String, f64)>,
        /// Fresh rows in the step.
        rows: usize,
    },
    /// An evaluation is done.
    Evaluated {
        /// Step of the stage.
        step: u64,
        /// Dataset or task.
        data: String,
        /// Metrics.
        metrics: Vec<(String, f64)>,
    },
    /// A checkpoint is on disk.
    CheckpointWritten {
        /// Step.
        step: u64,
        /// Folder.
        path: PathBuf,
        /// Bytes.
        bytes: u64,
    },
    /// A stage is done.
    StageFinished {
        /// 0-based.
        index: usize,
        /// Name.
        name: String,
        /// Steps.
        steps: u64,
        /// Final metrics.
        metrics: Vec<(String, f64)>,
        /// Where an export went.
        exported: Option<PathBuf>,
    },
    /// The task matrix so far.
    TaskMatrix(Box<super::matrix::TaskMatrix>),
    /// Something to tell that does not stop the run.
    Warning(crate::diagnostic::Diagnostic),
    /// A stop was asked for; the step is being finished and saved.
    Stopping {
        /// Why: `SIGINT`, `time limit`, ...
        reason: String,
    },
}

/// Receives events on the session's thread; must be quick.
pub trait EventSink {
    /// Takes one.
    fn event(&mut self, event: &Event);
}
