//! The task matrix of a stage at work: its rows, how its evaluations judge, where it is written.

use super::error::RunResult;
use super::evaluate::Judge;
use super::matrix::{MaskedRows, TaskMatrix};
use super::metrics::LineOf;
use super::stage::{Stage, finite, write_json};
use crate::plan::{Metric, Scenario, TaskPlan};
use crate::run::event::Event;

impl Stage<'_, '_> {
    fn matrix_metric(&self) -> (Metric, bool) {
        let metrics = &self.train.eval.metrics;
        let named = self.train.eval.best.as_ref().and_then(|b| {
            metrics.iter().find(|m| m.name() == b.metric).map(|m| (m.clone(), b.maximize))
        });
        named.unwrap_or_else(|| {
            let first = metrics.first().cloned().unwrap_or(Metric::Accuracy);
            let maximize = first.is_maximized();
            (first, maximize)
        })
    }

    /// One without rows.
    pub fn new_matrix(&self) -> TaskMatrix {
        let (metric, maximize) = self.matrix_metric();
        let data = |t: &TaskPlan| t.valid.as_ref().and_then(|v| self.datasets.get(v));
        let classes: Vec<Vec<i64>> =
            self.plan.tasks.iter().map(|t| data(t).map_or(Vec::new(), |d| d.classes())).collect();
        let scenario = self.plan.scenario();
        let judge = Judge { task_is_known: scenario == Scenario::Task, classes: None };
        let (mask, other) = judge.masks();
        TaskMatrix {
            tasks: self.plan.tasks.iter().map(|t| t.name.clone()).collect(),
            metric: metric.name(),
            maximize,
            class_incremental: classes.windows(2).any(|w| w[1].iter().any(|c| !w[0].contains(c))),
            trained: Vec::new(),
            rows: Vec::new(),
            mask: mask.to_owned(),
            also: (scenario.splits_classes())
                .then(|| MaskedRows { mask: other.to_owned(), rows: Vec::new() }),
            train_classes: self.plan.train_classes().name().to_owned(),
            counts: self
                .plan
                .tasks
                .iter()
                .map(|t| data(t).map_or(0, |d| d.rows() as u64))
                .collect(),
        }
    }

    /// Scores on every declared task, as a row of the matrix.
    ///
    /// # Errors
    /// What a plugin says, I/O.
    pub fn matrix_row(&mut self, after: &str, matrix: &mut TaskMatrix) -> RunResult<()> {
        let (metric, _) = self.matrix_metric();
        let name = metric.name();
        let (task, index) = (self.live.now.task.clone(), self.live.now.task_index);
        let current = if after == "before" { None } else { Some(after.to_owned()) };
        let (mut row, mut masked) = (Vec::new(), Vec::new());
        let also = matrix.also.as_ref().map(|also| format!("{}.{name}", also.mask));
        for (i, other) in self.plan.tasks.iter().enumerate() {
            let Some(valid) = &other.valid else {
                row.push(None);
                masked.push(None);
                continue;
            };
            // Schedulers are told which task is evaluated.
            (self.live.now.task, self.live.now.task_index) = (other.name.clone(), i as u64);
            self.judge(&other.train)?;
            let values = self.measure(valid, &other.name)?;
            if current.as_ref() == Some(&other.name) {
                self.progress.metrics =
                    values.iter().map(|(n, v)| (n.clone(), finite(*v))).collect();
            }
            let score = |wanted: &str| {
                values.iter().find(|(n, _)| n == wanted).and_then(|(_, v)| finite(*v))
            };
            row.push(score(&name));
            masked.push(also.as_deref().and_then(score));
        }
        (self.live.now.task, self.live.now.task_index) = (task, index);
        let own = self.task().train.clone();
        self.judge(&own)?;
        matrix.rows.push(row);
        if let Some(also) = &mut matrix.also {
            also.rows.push(masked);
        }
        Ok(())
    }

    /// Evaluations from here on are of a task with these training rows.
    ///
    /// # Errors
    /// Rows that were not read: a bug.
    pub fn judge(&mut self, train: &str) -> RunResult<()> {
        let splits = self.train.is_stream && self.plan.scenario().splits_classes();
        self.live.judge.task_is_known = self.plan.scenario() == Scenario::Task;
        self.live.judge.classes = if splits { Some(self.dataset(train)?.classes()) } else { None };
        Ok(())
    }

    /// Into the stage's folder, the metrics and to whoever watches.
    ///
    /// # Errors
    /// I/O.
    pub fn write_matrix(&mut self, matrix: &TaskMatrix) -> RunResult<()> {
        write_json(&self.dir.join("eval"), "task-matrix.json", &matrix.to_json())?;
        self.io.sink.event(&Event::TaskMatrix(Box::new(matrix.clone())));
        let defined = matrix.summary().into_iter().filter_map(|(name, value)| Some((name, value?)));
        let values: Vec<(String, f64)> = defined.collect();
        let (step, task) = (self.progress.cursor.step, &self.live.now.task);
        let of = LineOf { stage: &self.stage.name, task, step, eval: Some("stream") };
        self.io.line(of, &values)?;
        self.io.flush()
    }
}
