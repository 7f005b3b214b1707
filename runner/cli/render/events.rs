//! What happens in a run, as lines, bars or JSON.
//!
//! Results of stages are answers (stdout); progress, warnings and stops are not (stderr).

use super::{Renderer, bars, stderr, stdout, table};
use crate::args::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use limbeck_host::run::event::{Event, EventSink};
use limbeck_host::run::matrix::TaskMatrix;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Time between lines of plain progress.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// Weight of the newest step in the shown rows per second.
const RATE_DECAY: f64 = 0.9;

/// Shows a run.
pub struct RunView {
    renderer: Renderer,
    name_width: usize,
    stage: StageView,
    bar: Option<ProgressBar>,
    checkpoint: Option<(u64, Instant)>,
    /// Of the running stage, so far.
    matrix: Option<Box<TaskMatrix>>,
    on_started: Box<dyn FnMut(&std::path::Path)>,
}

/// The stage being run.
struct StageView {
    label: String,
    evaluated: String,
    last_line: Instant,
    last_step: Instant,
    rows_per_second: f64,
    seconds_per_step: f64,
}

impl RunView {
    /// `stage_names` align the columns; `on_started` hears of the run directory.
    pub fn new(
        renderer: Renderer,
        stage_names: &[&str],
        on_started: Box<dyn FnMut(&std::path::Path)>,
    ) -> Self {
        let name_width = stage_names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
        let now = Instant::now();
        let stage = StageView {
            label: String::new(),
            evaluated: String::new(),
            last_line: now,
            last_step: now,
            rows_per_second: 0.0,
            seconds_per_step: 0.0,
        };
        Self { renderer, name_width, stage, bar: None, checkpoint: None, matrix: None, on_started }
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn label(&self, index: usize, count: usize, name: &str) -> String {
        format!("[{}/{count}] {name:<width$}", index + 1, width = self.name_width)
    }

    fn start_stage(&mut self, label: String, total: u64) {
        self.finish();
        let now = Instant::now();
        self.stage = StageView {
            label,
            evaluated: String::new(),
            last_line: now,
            last_step: now,
            rows_per_second: 0.0,
            seconds_per_step: 0.0,
        };
        if self.renderer.progress == Progress::Bar && total > 0 {
            let style = ProgressStyle::with_template("{prefix}  {bar:24} step {pos}/{len}  {msg}");
            let bar = bars().add(ProgressBar::new(total));
            // The template is a constant with known keys.
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(self.stage.label.clone());
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, step: u64, total: u64, values: &[(String, f64)], rows: usize) {
        let elapsed = self.stage.last_step.elapsed().as_secs_f64().max(1e-9);
        self.stage.last_step = Instant::now();
        let blend = |old: f64, new: f64| {
            if old == 0.0 { new } else { RATE_DECAY * old + (1.0 - RATE_DECAY) * new }
        };
        self.stage.rows_per_second = blend(self.stage.rows_per_second, rows as f64 / elapsed);
        self.stage.seconds_per_step = blend(self.stage.seconds_per_step, elapsed);
        let due = self.renderer.progress == Progress::Plain
            && self.stage.last_line.elapsed() >= PLAIN_EVERY;
        if self.bar.is_none() && !due {
            return;
        }
        let left = self.stage.seconds_per_step * total.saturating_sub(step) as f64;
        let message = format!(
            "{}{}  {} rows/s  eta {}",
            losses(values),
            self.stage.evaluated,
            table::thousands(self.stage.rows_per_second as u64),
            table::duration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)),
        );
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(message);
        } else {
            self.stage.last_line = Instant::now();
            stderr(&format!("{}  step {step}/{total}  {message}", self.stage.label));
        }
    }

    fn started(
        &mut self,
        name: &str,
        id: &str,
        seed: u64,
        device: &str,
        resumed: Option<&(String, u64)>,
    ) {
        if let Some((stage, step)) = resumed {
            stdout(&format!("continuing {} at step {step} of stage `{stage}`", short_id(id)));
        } else {
            stdout(&format!("run {name}/{id}   seed {seed}   {device}"));
        }
    }

    fn text(&mut self, event: &Event) {
        match event {
            Event::RunStarted { name, id, seed, device, resumed, .. } => {
                self.started(name, id, *seed, device, resumed.as_ref());
            }
            Event::StageStarted { index, count, name, total_steps } => {
                self.start_stage(self.label(*index, *count, name), *total_steps);
            }
            Event::TaskStarted { name, index, count } => {
                self.renderer.note(&format!(
                    "{}  task {}/{count} {name}",
                    self.stage.label,
                    index + 1
                ));
            }
            Event::Step { step, total, values, rows } => self.step(*step, *total, values, *rows),
            Event::Evaluated { metrics, .. } => self.stage.evaluated = metric_list(metrics),
            Event::CheckpointWritten { step, bytes, .. } => {
                tracing::debug!(step, bytes, "checkpoint written");
                if let Some((_, since)) = self.checkpoint.take() {
                    let took = table::duration(since.elapsed());
                    self.renderer.note(&format!("wrote checkpoint step-{step:07} in {took}"));
                }
            }
            Event::StageFinished { name: _, steps, metrics, exported, .. } => {
                self.finish();
                let what = match exported {
                    Some(path) => format!("  {}", path.display()),
                    None => {
                        format!("{:>7} steps{}", table::thousands(*steps), recorded(metrics))
                    }
                };
                stdout(&format!("{}{what}", self.stage.label));
                if let Some(matrix) = self.matrix.take() {
                    stdout(&super::matrix::text(&matrix));
                }
            }
            // Told after each task; shown once, at the end of the stage.
            Event::TaskMatrix(matrix) => self.matrix = Some(matrix.clone()),
            Event::Warning(problem) => self.renderer.problem(problem),
            Event::Stopping { reason } => {
                self.finish();
                self.checkpoint = Some((0, Instant::now()));
                self.renderer
                    .note(&format!("{reason}: finishing the step, writing a checkpoint ..."));
            }
        }
    }
}

impl EventSink for RunView {
    fn event(&mut self, event: &Event) {
        if let Event::RunStarted { dir, .. } = event {
            (self.on_started)(dir);
        }
        if !self.renderer.is_json() {
            self.text(event);
        } else if let Event::Warning(problem) = event {
            self.renderer.problem(problem);
        } else {
            stdout(&as_json(event).to_string());
        }
    }
}

/// `5f3a9c1e` of `20261123T160412Z-5f3a9c1e`.
pub fn short_id(id: &str) -> &str {
    id.rsplit('-').next().unwrap_or(id)
}

/// `loss 0.412 (kl 0.301 ce 0.082)`; rates and norms are left to the metrics file.
fn losses(values: &[(String, f64)]) -> String {
    let of = |wanted: &str| values.iter().find(|(name, _)| name == wanted).map(|(_, v)| *v);
    let terms: Vec<String> = values
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "loss" | "lr" | "grad_norm"))
        .map(|(name, value)| format!("{name} {}", number(*value)))
        .collect();
    let total = of("loss").map(|v| format!("loss {}", number(v))).unwrap_or_default();
    if terms.len() > 1 { format!("{total} ({})", terms.join(" ")) } else { total }
}

/// [`metric_list`] of a stage's record, which holds no value for one that is undefined.
fn recorded(metrics: &[(String, f64)]) -> String {
    let text = |value: f64| if value.is_nan() { "-".to_owned() } else { number(value) };
    metrics.iter().map(|(name, value)| format!("  {name} {}", text(*value))).collect()
}

fn metric_list(metrics: &[(String, f64)]) -> String {
    metrics.iter().map(|(name, value)| format!("  {name} {}", number(*value))).collect()
}

/// Three decimals, or powers of ten where they would hide the value.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-3..1e5).contains(&size) {
        format!("{value:.3}")
    } else {
        format!("{value:.2e}")
    }
}

fn pairs(values: &[(String, f64)]) -> Value {
    values
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn as_json(event: &Event) -> Value {
    match event {
        Event::RunStarted { name, id, dir, seed, device, resumed } => json!({
            "type": "run_started", "name": name, "id": id, "dir": dir, "seed": seed, "device": device,
            "resumed": resumed.as_ref().map(|(stage, step)| json!({"stage": stage, "step": step})),
        }),
        Event::StageStarted { index, count, name, total_steps } => json!({
            "type": "stage_started", "index": index, "count": count, "stage": name, "total_steps": total_steps,
        }),
        Event::TaskStarted { name, index, count } => {
            json!({"type": "task_started", "task": name, "index": index, "count": count})
        }
        Event::Step { step, total, values, rows } => {
            json!({"type": "step", "step": step, "total": total, "values": pairs(values), "rows": rows})
        }
        Event::Evaluated { step, data, metrics } => {
            json!({"type": "evaluated", "step": step, "data": data, "metrics": pairs(metrics)})
        }
        Event::CheckpointWritten { step, path, bytes } => {
            json!({"type": "checkpoint_written", "step": step, "path": path, "bytes": bytes})
        }
        Event::StageFinished { index, name, steps, metrics, exported } => json!({
            "type": "stage_finished", "index": index, "stage": name, "steps": steps, "metrics": pairs(metrics),
            "exported": exported,
        }),
        Event::TaskMatrix(matrix) => {
            let mut json = matrix.to_json();
            json["type"] = "task_matrix".into();
            json
        }
        Event::Warning(problem) => super::diagnostic::json(problem),
        Event::Stopping { reason } => json!({"type": "stopping", "reason": reason}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_line_names_the_loss_and_its_terms() {
        let values = [("loss", 0.412), ("kl", 0.301), ("ce", 0.082), ("lr", 1e-4)];
        let values: Vec<(String, f64)> =
            values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        assert_eq!(losses(&values), "loss 0.412 (kl 0.301 ce 0.082)");
        assert_eq!(losses(&values[..2]), "loss 0.412");
    }

    #[test]
    fn an_undefined_number_of_a_finished_stage_is_a_dash() {
        let metrics = [("accuracy".to_owned(), 0.5), ("fwt".to_owned(), f64::NAN)];
        assert_eq!(recorded(&metrics), "  accuracy 0.500  fwt -");
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        assert_eq!(number(0.000_031), "3.10e-5");
        assert_eq!(number(0.0), "0.000");
        assert_eq!(number(f64::NAN), "NaN");
    }

    #[test]
    fn the_short_id_is_the_random_part() {
        assert_eq!(short_id("20261123T160412Z-5f3a9c1e"), "5f3a9c1e");
    }
}
