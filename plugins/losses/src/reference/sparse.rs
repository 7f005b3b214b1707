//! Forward KL against a teacher that kept only its top-k, losses.md section 2.
//!
//! Refuses indices out of range and duplicates, and raw logits without a tail where the tail is part of the
//! formula. Index −1 is an absent entry. p_r and q_r are the masses outside the kept set.

use super::dense::Sum;
use super::softmax::{dead, log_add_exp, log_softmax, log_sum_exp, times};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::settings::{Sparse, SparseMode, TopkValues};

const ABSENT: f64 = -1.0;

pub fn evaluate(sparse: &Sparse, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let s = required(inputs, "student.logits")?;
    let indices = required(inputs, "teacher.topk.indices")?;
    let values = required(inputs, "teacher.topk.values")?;
    same_dim(0, ("student.logits", s), ("teacher.topk.indices", indices))?;
    same_dim(0, ("teacher.topk.indices", indices), ("teacher.topk.values", values))?;
    same_dim(1, ("teacher.topk.indices", indices), ("teacher.topk.values", values))?;
    let tail = inputs.get("teacher.topk.tail");
    if let Some(tail) = tail {
        same_dim(0, ("student.logits", s), ("teacher.topk.tail", tail))?;
    }
    let needs_tail = sparse.mode == SparseMode::Tail && sparse.values == TopkValues::Logits;
    if needs_tail && tail.is_none() {
        let why = "raw logits need `teacher.topk.tail`: the mass outside the kept set is unknown";
        return Err(Refusal::Shape(why.into()));
    }
    let rows = Rows::new(inputs, s.dim(0))?;
    let mut sum = Sum::new(normalizer, sparse.non_finite);
    let mut grad = Array::zeros_like(s);
    for n in rows.counted() {
        rows.label(n, s.dim(1))?;
        let kept = kept_set(indices.row(n), s.dim(1), n)?;
        let weight = rows.weight(n);
        if weight == 0.0 {
            continue;
        }
        let teacher = teacher_row(sparse, &kept, values.row(n), tail.map(|tail| tail.data[n]));
        let Some((lp, lp_rest)) = teacher.filter(|_| !dead(s.row(n))) else {
            sum.dead_row();
            continue;
        };
        let lq = log_softmax(s.row(n), sparse.softening.student);
        let (value, row) = compare(sparse.mode, &kept, &lp, lp_rest, &lq);
        if sum.row(sparse.softening.factor * value, weight, true) {
            let factor = sparse.softening.factor / sparse.softening.student * weight / normalizer;
            for (into, g) in grad.row_mut(n).iter_mut().zip(row) {
                *into = factor * g;
            }
        }
    }
    Ok(sum.finish([("student.logits", grad)]))
}

/// Present entries: (place in the row of indices, column).
fn kept_set(indices: &[f64], width: usize, n: usize) -> Result<Vec<(usize, usize)>, Refusal> {
    let mut kept: Vec<(usize, usize)> = Vec::with_capacity(indices.len());
    for (place, &index) in indices.iter().enumerate() {
        if index == ABSENT {
            continue;
        }
        if !(index >= 0.0 && index < width as f64) {
            return Err(Refusal::Data(format!(
                "row {n}: top-k index {index} is outside 0..{width}"
            )));
        }
        let column = index as usize;
        if kept.iter().any(|&(_, other)| other == column) {
            return Err(Refusal::Data(format!("row {n}: top-k index {column} appears twice")));
        }
        kept.push((place, column));
    }
    Ok(kept)
}

/// ln p on the kept set and of the rest; `None` if the teacher has no live entry.
fn teacher_row(
    sparse: &Sparse,
    kept: &[(usize, usize)],
    values: &[f64],
    tail: Option<f64>,
) -> Option<(Vec<f64>, f64)> {
    let raw = sparse.values == TopkValues::Logits;
    let divisor = if raw { sparse.softening.teacher } else { 1.0 };
    let entries: Vec<f64> = kept.iter().map(|&(place, _)| values[place] / divisor).collect();
    let inside = log_sum_exp(&entries);
    let lp_of = |log_sum: f64| entries.iter().map(|x| x - log_sum).collect::<Vec<f64>>();
    if sparse.mode != SparseMode::Tail {
        return (inside != f64::NEG_INFINITY).then(|| (lp_of(inside), f64::NEG_INFINITY));
    }
    if raw {
        let tail = tail.unwrap_or(f64::NEG_INFINITY);
        let all = log_add_exp(inside, tail);
        return (all != f64::NEG_INFINITY).then(|| (lp_of(all), tail - all));
    }
    let rest = tail.unwrap_or_else(|| {
        let mass: f64 = entries.iter().map(|x| x.exp()).sum();
        if mass >= 1.0 { f64::NEG_INFINITY } else { (-mass).ln_1p() }
    });
    let live = inside != f64::NEG_INFINITY || rest != f64::NEG_INFINITY;
    live.then_some((entries, rest))
}

fn compare(
    mode: SparseMode,
    kept: &[(usize, usize)],
    lp: &[f64],
    lp_rest: f64,
    lq: &[f64],
) -> (f64, Vec<f64>) {
    let mut inside = vec![None; lq.len()];
    for (k, &(_, v)) in kept.iter().enumerate() {
        inside[v] = Some(k);
    }
    let outside: Vec<f64> = (0..lq.len()).filter(|&v| inside[v].is_none()).map(|v| lq[v]).collect();
    let lq_rest = log_sum_exp(&outside);
    let lq_kept: Vec<f64> = kept.iter().map(|&(_, v)| lq[v]).collect();
    let shift = if mode == SparseMode::BothRenorm { log_sum_exp(&lq_kept) } else { 0.0 };
    let mut value: f64 =
        lp.iter().zip(&lq_kept).map(|(&p, &q)| times(p.exp(), p - (q - shift))).sum();
    if mode == SparseMode::Tail {
        value += times(lp_rest.exp(), lp_rest - lq_rest);
    }
    let grad = lq.iter().zip(&inside).map(|(&q, inside)| match (inside, mode) {
        (Some(k), _) => (q - shift).exp() - lp[*k].exp(),
        (None, SparseMode::Tail) if q == f64::NEG_INFINITY => 0.0,
        (None, SparseMode::Tail) => q.exp() - (lp_rest + q - lq_rest).exp(),
        (None, SparseMode::TeacherRenorm) => q.exp(),
        (None, SparseMode::BothRenorm) => 0.0,
    });
    let grad = grad.collect();
    (value, grad)
}
