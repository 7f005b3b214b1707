//! What a session writes and tells beside checkpoints, and when it has to stop.

use super::Control;
use super::error::{RunResult, io_error};
use super::event::{Event, EventSink};
use super::metrics::{LineOf, Metrics};
use super::vfs::Vfs;
use crate::report::tensorboard;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Outlets of a session.
pub(crate) struct Io<'s> {
    pub metrics: Metrics,
    pub metrics_path: PathBuf,
    /// A mirror of the metrics; never decides anything.
    pub tensorboard: Option<tensorboard::Writer>,
    pub sink: &'s mut dyn EventSink,
    pub control: &'s Control,
    pub vfs: &'s dyn Vfs,
    /// Hash of the resolved pipeline.
    pub resolved: String,
    /// Hash of plugins and data.
    pub inputs: String,
    /// Optimizer steps of this process.
    pub steps_done: u64,
    pub max_steps: Option<u64>,
    pub started: Instant,
    pub time_limit: Option<Duration>,
}

impl Io<'_> {
    /// Appends a line to the metrics.
    ///
    /// # Errors
    /// I/O.
    pub fn line(&mut self, of: LineOf<'_>, values: &[(String, f64)]) -> RunResult<()> {
        self.metrics.line(of, values).map_err(|e| io_error("write", &self.metrics_path, &e))?;
        let Some(writer) = &mut self.tensorboard else { return Ok(()) };
        let mut row = serde_json::Map::new();
        row.insert("stage".into(), of.stage.into());
        row.insert("task".into(), of.task.into());
        row.insert("step".into(), of.step.into());
        if let Some(eval) = of.eval {
            row.insert("eval".into(), eval.into());
        }
        row.extend(values.iter().map(|(name, value)| (name.clone(), (*value).into())));
        if let Err(problem) = writer.row(&row.into()) {
            self.sink.event(&Event::Warning(problem));
            self.tensorboard = None;
        }
        Ok(())
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// I/O.
    pub fn flush(&mut self) -> RunResult<()> {
        if let Some(writer) = &mut self.tensorboard {
            // A mirror: its failure is told with the next row.
            let _ = writer.flush();
        }
        self.metrics.flush().map_err(|e| io_error("write", &self.metrics_path, &e))
    }

    /// Makes the metrics durable; gives their length.
    ///
    /// # Errors
    /// I/O.
    pub fn sync(&mut self) -> RunResult<u64> {
        self.flush()?;
        self.metrics.sync().map_err(|e| io_error("sync", &self.metrics_path, &e))
    }

    /// Why to stop at this border, if at all.
    pub fn stop_wanted(&self) -> Option<String> {
        if let Some(reason) = self.control.stop_requested() {
            return Some(reason);
        }
        if self.max_steps.is_some_and(|max| self.steps_done >= max) {
            return Some("step limit".into());
        }
        self.time_limit
            .filter(|limit| self.started.elapsed() >= *limit)
            .map(|_| "time limit".into())
    }
}
