//! The task matrix and what is computed from it.
//!
//! `rows[k][i]` is the score on task i after the k-th trained task; row 0 is before any training. Undefined values
//! are null, never 0. Definitions: Lopez-Paz & Ranzato 2017 (bwt, fwt), Chaudhry et al. 2018 (forgetting).

use serde::{Deserialize, Serialize};

/// Scores after each task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskMatrix {
    /// Names of all declared tasks: the columns.
    pub tasks: Vec<String>,
    /// Metric of the entries.
    pub metric: String,
    /// Larger is better.
    pub maximize: bool,
    /// Later tasks bring classes that earlier ones lack; then `fwt` is undefined.
    pub class_incremental: bool,
    /// Column that was trained before each row but row 0.
    pub trained: Vec<usize>,
    /// Row 0 first.
    pub rows: Vec<Vec<Option<f64>>>,
    /// Evaluated rows by task.
    pub counts: Vec<u64>,
    /// Classes that a prediction may choose from: `all`, or those of the row's `task`.
    pub mask: String,
    /// The same under the other mask, in streams whose tasks have their own classes.
    pub also: Option<MaskedRows>,
    /// `scenario.train_classes`: classes of a row's softmax in training.
    pub train_classes: String,
}

/// Scores under another evaluation mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskedRows {
    /// `all` or `task`.
    pub mask: String,
    /// As [`TaskMatrix::rows`].
    pub rows: Vec<Vec<Option<f64>>>,
}

/// R\[k\]\[i\]: score on task i after the k-th task; T trained tasks; equal weight per task.
const DEFINITIONS: [(&str, &str); 7] = [
    ("rows", "R[0] before any training, R[k] after the k-th task's probes and passes"),
    ("average_accuracy", "mean_i R[T][i]"),
    ("anytime_accuracy", "mean_k mean_{i<=k} R[k][i]"),
    ("learning_accuracy", "mean_i R[i][i]"),
    ("bwt", "mean_{i<T} (R[T][i] - R[i][i])"),
    ("forgetting", "mean_{i<T} (max_{i<=k<T} R[k][i] - R[T][i])"),
    ("fwt", "mean_{i>1} (R[i-1][i] - R[0][i]); null where unseen classes cannot score"),
];

fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let values: Option<Vec<f64>> = values.into_iter().collect();
    let values = values?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl TaskMatrix {
    /// The matrix under the other mask, if there is one.
    pub fn other(&self) -> Option<Self> {
        let also = self.also.clone()?;
        Some(Self { mask: also.mask, rows: also.rows, also: None, ..self.clone() })
    }

    /// The file `eval/task-matrix.json`: everything here, with the summary of each mask and what its names mean.
    pub fn to_json(&self) -> serde_json::Value {
        let summary = |m: &Self| -> serde_json::Map<String, serde_json::Value> {
            m.summary().into_iter().map(|(n, v)| (n, serde_json::json!(v))).collect()
        };
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["summary"] = summary(self).into();
        if let Some(other) = self.other() {
            json["also"]["summary"] = summary(&other).into();
        }
        json["definitions"] = DEFINITIONS
            .iter()
            .map(|(name, text)| ((*name).to_owned(), serde_json::json!(text)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        json
    }

    fn at(&self, row: usize, task: usize) -> Option<f64> {
        *self.rows.get(row)?.get(task)?
    }

    /// Row right after `task` was trained last.
    fn own_row(&self, task: usize) -> Option<usize> {
        self.trained.iter().rposition(|t| *t == task).map(|k| k + 1)
    }

    /// Summary by name; equal weight per trained task. With T trained tasks, the last row being T:
    ///
    /// `average_accuracy` mean R\[T\]\[i\]; `anytime_accuracy` mean over k of the mean over tasks trained so far;
    /// `learning_accuracy` mean R\[i\]\[i\]; `bwt` mean over all but the last of R\[T\]\[i\] - R\[i\]\[i\];
    /// `forgetting` mean over all but the last of max over k of R\[k\]\[i\] - R\[T\]\[i\]; `fwt` mean over all but
    /// the first of R\[i-1\]\[i\] - R\[0\]\[i\].
    pub fn summary(&self) -> Vec<(String, Option<f64>)> {
        let mut order: Vec<usize> = Vec::new();
        for task in &self.trained {
            if !order.contains(task) {
                order.push(*task);
            }
        }
        let last = self.rows.len().saturating_sub(1);
        let sign = if self.maximize { 1.0 } else { -1.0 };
        let before_last = order.split_last().map_or(&[][..], |(_, before)| before);
        let own = |task: usize| self.own_row(task).and_then(|k| self.at(k, task));
        let minus = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
        let anytime = (1..=last).map(|k| {
            let seen = order.iter().filter(|t| self.trained[..k].contains(t));
            mean(seen.map(|t| self.at(k, *t)))
        });
        let best_before = |task: usize| {
            let first = self.trained.iter().position(|t| *t == task).map_or(1, |k| k + 1);
            let values = (first..last).filter_map(|k| self.at(k, task)).map(|v| sign * v);
            values.reduce(f64::max)
        };
        let forgotten =
            before_last.iter().map(|t| minus(best_before(*t), self.at(last, *t).map(|v| sign * v)));
        let forward = order.iter().skip(1).map(|t| {
            let first = self.trained.iter().position(|x| x == t)?;
            minus(self.at(first, *t), self.at(0, *t))
        });
        // Classes that were never seen score 0 there by construction.
        let unseen_classes = self.class_incremental && self.mask == "all";
        vec![
            ("average_accuracy".into(), mean(order.iter().map(|t| self.at(last, *t)))),
            ("anytime_accuracy".into(), mean(anytime)),
            ("learning_accuracy".into(), mean(order.iter().map(|t| own(*t)))),
            ("bwt".into(), mean(before_last.iter().map(|t| minus(self.at(last, *t), own(*t))))),
            ("forgetting".into(), mean(forgotten)),
            ("fwt".into(), if unseen_classes { None } else { mean(forward) }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f64]], trained: &[usize]) -> TaskMatrix {
        TaskMatrix {
            tasks: (0..rows[0].len()).map(|i| format!("t{i}")).collect(),
            metric: "accuracy".into(),
            maximize: true,
            class_incremental: false,
            trained: trained.to_vec(),
            rows: rows.iter().map(|r| r.iter().map(|v| Some(*v)).collect()).collect(),
            counts: vec![100; rows[0].len()],
            mask: "all".into(),
            also: None,
            train_classes: "all".into(),
        }
    }

    fn get(m: &TaskMatrix, name: &str) -> Option<f64> {
        m.summary().into_iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn three_tasks_by_hand() {
        let rows: [&[f64]; 4] =
            [&[0.1, 0.2, 0.3], &[0.9, 0.4, 0.3], &[0.95, 0.8, 0.5], &[0.7, 0.6, 0.9]];
        let m = matrix(&rows, &[0, 1, 2]);
        let close = |name: &str, want: f64| {
            let got = get(&m, name).unwrap();
            assert!((got - want).abs() < 1e-12, "{name}: {got}");
        };
        close("average_accuracy", (0.7 + 0.6 + 0.9) / 3.0);
        close("learning_accuracy", (0.9 + 0.8 + 0.9) / 3.0);
        close("anytime_accuracy", (0.9 + (0.95 + 0.8) / 2.0 + 2.2 / 3.0) / 3.0);
        close("bwt", ((0.7 - 0.9) + (0.6 - 0.8)) / 2.0);
        close("forgetting", ((0.95 - 0.7) + (0.8 - 0.6)) / 2.0);
        close("fwt", ((0.4 - 0.2) + (0.5 - 0.3)) / 2.0);
        let classes = TaskMatrix { class_incremental: true, ..m };
        assert_eq!(get(&classes, "fwt"), None);
        let inside = TaskMatrix { mask: "task".into(), ..classes };
        assert!((get(&inside, "fwt").unwrap() - 0.2).abs() < 1e-12);
    }

    #[test]
    fn one_task_and_missing_scores_are_undefined_not_zero() {
        let m = matrix(&[&[0.1], &[0.9]], &[0]);
        assert_eq!(get(&m, "average_accuracy"), Some(0.9));
        for name in ["bwt", "forgetting", "fwt"] {
            assert_eq!(get(&m, name), None, "{name}");
        }
        let mut gap = matrix(&[&[0.1, 0.1], &[0.9, 0.2], &[0.8, 0.7]], &[0, 1]);
        gap.rows[2][0] = None;
        assert_eq!(get(&gap, "average_accuracy"), None);
        assert_eq!(get(&gap, "learning_accuracy"), Some(0.8));
    }

    #[test]
    fn the_order_of_training_is_not_the_order_of_columns() {
        // Trained 1 then 0.
        let m = matrix(&[&[0.0, 0.0], &[0.3, 0.9], &[0.8, 0.5]], &[1, 0]);
        assert!((get(&m, "bwt").unwrap() + 0.4).abs() < 1e-12);
        assert!((get(&m, "fwt").unwrap() - 0.3).abs() < 1e-12);
    }

    #[test]
    fn a_loss_is_forgotten_when_it_rises() {
        let mut m = matrix(&[&[2.0, 2.0], &[0.5, 2.0], &[0.9, 0.4]], &[0, 1]);
        m.maximize = false;
        assert!((get(&m, "forgetting").unwrap() - 0.4).abs() < 1e-12);
    }
}
