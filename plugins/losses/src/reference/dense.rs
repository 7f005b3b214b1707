//! Row-wise logit losses over a whole call: which columns and rows take part, and the sum.
//!
//! Refuses unequal widths under `strict`, labels out of range and on a removed column. Invariant: removed
//! columns and uncounted rows keep a gradient of exactly 0.

use super::divergence::{Row, compare, sigmoid};
use super::softmax::{dead, log_softmax, times};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::settings::{Bce, CrossEntropy, Dense, Divergence, NonFinite, Vocab};

/// Columns of the student that take part, and for each whether the teacher has it.
pub struct Columns {
    kept: Vec<(usize, bool)>,
}

impl Columns {
    pub fn new(
        inputs: &Inputs,
        vocab: Vocab,
        student: usize,
        teacher: usize,
    ) -> Result<Self, Refusal> {
        if vocab == Vocab::Strict && student != teacher {
            return Err(Refusal::Shape(format!(
                "`student.logits` has {student} columns, `teacher.logits` has {teacher}"
            )));
        }
        let width = match vocab {
            Vocab::StudentTail => student,
            _ => student.min(teacher),
        };
        let mask = inputs.get("class_mask");
        if let Some(mask) = mask.filter(|mask| mask.data.len() != student) {
            let found = mask.data.len();
            return Err(Refusal::Shape(format!(
                "`class_mask` has {found} entries, `student.logits` has {student} columns"
            )));
        }
        let kept = (0..width).filter(|&v| mask.is_none_or(|mask| mask.data[v] != 0.0));
        Ok(Self { kept: kept.map(|v| (v, v < teacher)).collect() })
    }

    /// Those that `row_classes` leaves in one row.
    fn of_row(&self, mask: Option<&[f64]>) -> Self {
        let kept = self.kept.iter().copied();
        Self { kept: kept.filter(|(v, _)| mask.is_none_or(|mask| mask[*v] != 0.0)).collect() }
    }

    pub fn student(&self, row: &[f64]) -> Vec<f64> {
        self.kept.iter().map(|&(v, _)| row[v]).collect()
    }

    pub fn teacher(&self, row: &[f64]) -> Vec<f64> {
        let absent = f64::NEG_INFINITY;
        self.kept.iter().map(|&(v, has)| if has { row[v] } else { absent }).collect()
    }

    pub fn position(&self, class: usize) -> Option<usize> {
        self.kept.iter().position(|&(v, _)| v == class)
    }

    pub fn scatter(&self, grad: &[f64], factor: f64, into: &mut [f64]) {
        for (&(v, _), g) in self.kept.iter().zip(grad) {
            into[v] += factor * g;
        }
    }
}

/// Adds the counted rows of a call up.
pub struct Sum {
    outcome: Outcome,
    normalizer: f64,
    non_finite: NonFinite,
}

impl Sum {
    pub fn new(normalizer: f64, non_finite: NonFinite) -> Self {
        Self { outcome: Outcome::default(), normalizer, non_finite }
    }

    pub fn dead_row(&mut self) {
        self.outcome.dead_rows += 1.0 / self.normalizer;
    }

    /// Adds a row; true if its gradient is to be written.
    pub fn row(&mut self, value: f64, weight: f64, keeps_gradient: bool) -> bool {
        if value.is_finite() {
            self.outcome.value += weight * value / self.normalizer;
            return true;
        }
        self.outcome.nonfinite_rows += 1.0 / self.normalizer;
        if self.non_finite == NonFinite::ZeroAndCount {
            return false;
        }
        self.outcome.value += weight * value / self.normalizer;
        keeps_gradient || value != f64::INFINITY
    }

    pub fn finish(mut self, grads: impl IntoIterator<Item = (&'static str, Array)>) -> Outcome {
        self.outcome.grads =
            grads.into_iter().map(|(name, grad)| (name.to_owned(), grad)).collect();
        self.outcome
    }
}

pub fn evaluate(dense: &Dense, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let (s, t) = (required(inputs, "student.logits")?, required(inputs, "teacher.logits")?);
    same_dim(0, ("student.logits", s), ("teacher.logits", t))?;
    let (width, teacher_width) = (s.dim(1), t.dim(1));
    if dense.narrow_teacher && teacher_width > width {
        return Err(Refusal::Shape(format!(
            "the teacher's {teacher_width} units are more than the student's {width}"
        )));
    }
    if dense.divergence.needs_labels() {
        required(inputs, "labels")?;
        if width < 2 {
            return Err(Refusal::Shape("a decoupled loss needs two columns".into()));
        }
    }
    let uld = dense.divergence == Divergence::Uld;
    let columns = match uld {
        true => None,
        false => Some(Columns::new(inputs, dense.vocab, width, teacher_width)?),
    };
    let rows = Rows::new(inputs, s.dim(0))?;
    let mut sum = Sum::new(normalizer, dense.non_finite);
    let mut grad = Array::zeros_like(s);
    for n in rows.counted() {
        let label = rows.label(n, width)?;
        let weight = rows.weight(n);
        if weight == 0.0 {
            continue;
        }
        let factor = dense.softening.factor / dense.softening.student * weight / normalizer;
        let keeps = dense.divergence.keeps_gradient_of_infinite_row();
        let Some(columns) = &columns else {
            if dead(s.row(n)) || dead(t.row(n)) {
                sum.dead_row();
                continue;
            }
            let row = compare(dense.divergence, dense.softening, s.row(n), t.row(n), None);
            if sum.row(dense.softening.factor * row.value, weight, keeps) {
                for (into, g) in grad.row_mut(n).iter_mut().zip(&row.grad) {
                    *into += factor * g;
                }
            }
            continue;
        };
        let label = match (dense.divergence.needs_labels(), label) {
            (true, Some(class)) => Some(kept_label(columns, class, n)?),
            _ => None,
        };
        let (s_kept, t_kept) = (columns.student(s.row(n)), columns.teacher(t.row(n)));
        if dead(&s_kept) || dead(&t_kept) {
            sum.dead_row();
            continue;
        }
        let row = compare_live(dense, &s_kept, &t_kept, label);
        // sym_kl zeroes its own gradient where only one of its halves is finite.
        let keeps = keeps || matches!(dense.divergence, Divergence::SymKl { .. });
        if sum.row(dense.softening.factor * row.value, weight, keeps) {
            columns.scatter(&row.grad, factor, grad.row_mut(n));
        }
    }
    Ok(sum.finish([("student.logits", grad)]))
}

fn kept_label(columns: &Columns, class: usize, n: usize) -> Result<usize, Refusal> {
    let removed = || Refusal::Data(format!("row {n}: label {class} is on a removed column"));
    columns.position(class).ok_or_else(removed)
}

/// Compares after columns that are −inf on both sides have left, where they would count in a mean.
fn compare_live(dense: &Dense, s: &[f64], t: &[f64], label: Option<usize>) -> Row {
    let mean =
        matches!(dense.divergence, Divergence::LogitMse | Divergence::BceKd | Divergence::LogitStd);
    if !mean {
        return compare(dense.divergence, dense.softening, s, t, label);
    }
    let inf = f64::NEG_INFINITY;
    let live: Vec<usize> = (0..s.len()).filter(|&v| s[v] != inf || t[v] != inf).collect();
    let pick = |z: &[f64]| live.iter().map(|&v| z[v]).collect::<Vec<f64>>();
    let row = compare(dense.divergence, dense.softening, &pick(s), &pick(t), label);
    let mut grad = vec![0.0; s.len()];
    for (&v, g) in live.iter().zip(&row.grad) {
        grad[v] = *g;
    }
    Row { value: row.value, grad }
}

/// Mean over kept columns of softplus(s_v) − s_v·1[v = y]; a label on a removed column makes every target 0.
///
/// Source: Rebuffi et al. 2017 (arXiv 1611.07725), equation 1.
pub fn binary(bce: &Bce, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let s = required(inputs, "student.logits")?;
    required(inputs, "labels")?;
    let rows = Rows::new(inputs, s.dim(0))?;
    let columns = Columns::new(inputs, Vocab::Strict, s.dim(1), s.dim(1))?;
    let mut sum = Sum::new(normalizer, bce.non_finite);
    let mut grad = Array::zeros_like(s);
    for n in rows.counted() {
        let class = rows.label(n, s.dim(1))?.unwrap_or(0);
        let weight = rows.weight(n);
        if weight == 0.0 {
            continue;
        }
        let z = columns.student(s.row(n));
        let live = z.iter().filter(|&&v| v != f64::NEG_INFINITY).count() as f64;
        if live == 0.0 {
            sum.dead_row();
            continue;
        }
        let label = columns.position(class);
        let (mut value, mut row) = (0.0, vec![0.0; z.len()]);
        for (v, &x) in
            z.iter().enumerate().filter(|(v, x)| **x != f64::NEG_INFINITY || label == Some(*v))
        {
            let target = if label == Some(v) { 1.0 } else { 0.0 };
            value += (x.max(0.0) + (-x.abs()).exp().ln_1p() - times(target, x)) / live;
            row[v] = (sigmoid(x) - target) / live;
        }
        if sum.row(value, weight, true) {
            columns.scatter(&row, weight / normalizer, grad.row_mut(n));
        }
    }
    Ok(sum.finish([("student.logits", grad)]))
}

/// −Σ y′ ln softmax(s), y′ = (1−ε)e_y + ε/V over live columns.
pub fn cross_entropy(
    ce: &CrossEntropy,
    inputs: &Inputs,
    normalizer: f64,
) -> Result<Outcome, Refusal> {
    let s = required(inputs, "student.logits")?;
    required(inputs, "labels")?;
    let rows = Rows::new(inputs, s.dim(0))?;
    let all = Columns::new(inputs, Vocab::Strict, s.dim(1), s.dim(1))?;
    let own = inputs.get("row_classes");
    let mut sum = Sum::new(normalizer, ce.non_finite);
    let mut grad = Array::zeros_like(s);
    for n in rows.counted() {
        let class = rows.label(n, s.dim(1))?.unwrap_or(0);
        let columns = all.of_row(own.map(|mask| mask.row(n)));
        let label = kept_label(&columns, class, n)?;
        let weight = rows.weight(n);
        if weight == 0.0 {
            continue;
        }
        let z = columns.student(s.row(n));
        if dead(&z) {
            sum.dead_row();
            continue;
        }
        let lq = log_softmax(&z, 1.0);
        let live = z.iter().filter(|&&v| v != f64::NEG_INFINITY).count() as f64;
        let target = |v: usize| {
            let share = if z[v] == f64::NEG_INFINITY { 0.0 } else { ce.smoothing / live };
            share + if v == label { 1.0 - ce.smoothing } else { 0.0 }
        };
        let value = (0..z.len()).map(|v| times(target(v), -lq[v])).sum();
        let row: Vec<f64> = (0..z.len()).map(|v| lq[v].exp() - target(v)).collect();
        if sum.row(value, weight, true) {
            columns.scatter(&row, weight / normalizer, grad.row_mut(n));
        }
    }
    Ok(sum.finish([("student.logits", grad)]))
}
