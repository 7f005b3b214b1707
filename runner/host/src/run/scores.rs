//! Metrics of predictions against labels and against a teacher.
//!
//! Rows with label -100 do not count. A metric without a defined value (recall of a class that does not occur) is
//! NaN here and null in files, never 0.

use crate::plan::Metric;
use std::collections::BTreeMap;

/// Running counts over the rows of an evaluation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scores {
    /// Counted rows.
    pub rows: u64,
    correct: u64,
    nll: f64,
    classes: usize,
    /// (right, predicted, labelled) by class.
    by_class: BTreeMap<i64, (u64, u64, u64)>,
    agreed: u64,
    compared: u64,
}

/// Index of the largest value, the first of equals; `None` if one is NaN.
pub(crate) fn argmax(row: &[f64]) -> Option<i64> {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        if *value > row[best] {
            best = i;
        }
    }
    (!row.is_empty()).then_some(best as i64)
}

/// `ln sum exp(z) - z[label]`, in f64.
fn cross_entropy(row: &[f64], label: usize) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|z| (z - top).exp()).sum();
    top + sum.ln() - row[label]
}

impl Scores {
    /// Adds rows. `logits` and `scores` (which decide the class) are `[N, V]`, `labels` `[N]`.
    ///
    /// # Errors
    /// Sizes that do not agree, a label outside the classes; in words.
    pub fn add(
        &mut self,
        logits: &[f64],
        scores: &[f64],
        labels: Option<&[i64]>,
        teacher: Option<&[f64]>,
        classes: usize,
    ) -> Result<(), String> {
        if classes == 0 || !logits.len().is_multiple_of(classes) {
            return Err(format!("{} logits for {classes} classes", logits.len()));
        }
        let rows = logits.len() / classes;
        self.classes = classes;
        if scores.len() != logits.len() {
            return Err(format!("{} scores for {rows} rows of {classes}", scores.len()));
        }
        if let Some(labels) = labels
            && labels.len() != rows
        {
            return Err(format!("{} labels for {rows} rows of logits", labels.len()));
        }
        let teacher = teacher.filter(|t| t.len().is_multiple_of(rows.max(1)));
        for i in 0..rows {
            let row = &scores[i * classes..(i + 1) * classes];
            let label = labels.map(|l| l[i]);
            if label == Some(-100) {
                continue;
            }
            let predicted = argmax(row);
            if let Some(label) = label {
                let Some(place) = usize::try_from(label).ok().filter(|l| *l < classes) else {
                    return Err(format!("label {label} is not one of the {classes} classes"));
                };
                self.nll += cross_entropy(&logits[i * classes..(i + 1) * classes], place);
                self.count(label, predicted);
            }
            if let Some(teacher) = teacher {
                let width = teacher.len() / rows;
                self.compared += 1;
                let same = argmax(&teacher[i * width..(i + 1) * width]) == predicted;
                self.agreed += u64::from(same && predicted.is_some());
            }
        }
        Ok(())
    }

    fn count(&mut self, label: i64, predicted: Option<i64>) {
        self.rows += 1;
        self.by_class.entry(label).or_default().2 += 1;
        if let Some(predicted) = predicted {
            self.by_class.entry(predicted).or_default().1 += 1;
            if predicted == label {
                self.correct += 1;
                self.by_class.entry(label).or_default().0 += 1;
            }
        }
    }

    /// Value of a metric; NaN if it is undefined.
    pub fn value(&self, metric: &Metric) -> f64 {
        let share = |part: u64, of: u64| if of == 0 { f64::NAN } else { part as f64 / of as f64 };
        let class = |c: &i64| self.by_class.get(c).copied().unwrap_or_default();
        match metric {
            Metric::Accuracy => share(self.correct, self.rows),
            Metric::Recall(c) => share(class(c).0, class(c).2),
            Metric::Precision(c) => share(class(c).0, class(c).1),
            Metric::Nll if self.rows == 0 => f64::NAN,
            Metric::Nll => self.nll / self.rows as f64,
            Metric::F1 if self.classes == 2 => f1(class(&1)),
            Metric::F1 | Metric::MacroF1 => {
                let all: Vec<f64> = self.by_class.values().map(|c| f1(*c)).collect();
                if all.is_empty() { f64::NAN } else { all.iter().sum::<f64>() / all.len() as f64 }
            }
            Metric::Agreement => share(self.agreed, self.compared),
            // Of other things than these predictions.
            Metric::Loss | Metric::Ema(_) => f64::NAN,
        }
    }
}

/// `2 TP / (predicted + labelled)`; 0 when a class was predicted or labelled but never right.
fn f1((right, predicted, labelled): (u64, u64, u64)) -> f64 {
    let sum = predicted + labelled;
    if sum == 0 { f64::NAN } else { 2.0 * right as f64 / sum as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_hot(classes: &[i64], width: usize) -> Vec<f64> {
        classes
            .iter()
            .flat_map(|c| (0..width).map(|v| if v as i64 == *c { 3.0 } else { 0.0 }))
            .collect()
    }

    #[test]
    fn metrics_agree_with_a_table_by_hand() {
        // labels 0 0 1 1 2 and one ignored; predictions 0 1 1 1 0.
        let logits = one_hot(&[0, 1, 1, 1, 0, 2], 3);
        let teacher = one_hot(&[0, 0, 1, 1, 0, 2], 3);
        let labels = [0, 0, 1, 1, 2, -100];
        let mut scores = Scores::default();
        scores.add(&logits, &logits, Some(&labels), Some(&teacher), 3).unwrap();
        let value = |m| scores.value(&m);
        assert_eq!(value(Metric::Accuracy), 0.6);
        assert_eq!(value(Metric::Recall(0)), 0.5);
        assert_eq!(value(Metric::Recall(2)), 0.0);
        assert!(value(Metric::Recall(7)).is_nan());
        assert!((value(Metric::Precision(1)) - 2.0 / 3.0).abs() < 1e-15);
        assert!(value(Metric::Precision(2)).is_nan());
        assert!((value(Metric::MacroF1) - (0.5 + 0.8 + 0.0) / 3.0).abs() < 1e-15);
        assert_eq!(value(Metric::Agreement), 0.8);
        let all = (3f64.exp() + 2.0).ln();
        assert!((value(Metric::Nll) - (3.0 * (all - 3.0) + 2.0 * all) / 5.0).abs() < 1e-12);
    }

    #[test]
    fn two_classes_use_the_f1_of_class_one() {
        let logits = one_hot(&[1, 1, 0, 0], 2);
        let mut scores = Scores::default();
        scores.add(&logits, &logits, Some(&[1, 0, 0, 1]), None, 2).unwrap();
        assert_eq!(scores.value(&Metric::F1), 0.5);
        assert!(scores.value(&Metric::Agreement).is_nan());
    }

    #[test]
    fn odd_input_is_refused_and_nan_is_never_right() {
        let mut scores = Scores::default();
        assert!(
            scores
                .add(&[0.0; 4], &[0.0; 4], Some(&[2, 0]), None, 2)
                .unwrap_err()
                .contains("label 2")
        );
        assert!(scores.add(&[0.0; 3], &[0.0; 3], None, None, 2).is_err());
        let mut scores = Scores::default();
        scores.add(&[f64::NAN, 1.0], &[f64::NAN, 1.0], Some(&[1]), None, 2).unwrap();
        assert_eq!(scores.value(&Metric::Accuracy), 0.0);
        assert!(Scores::default().value(&Metric::Accuracy).is_nan());
    }
}
