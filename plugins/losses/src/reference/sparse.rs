//! Forward KL against a teacher that kept only its top-k, losses.md section 2.
//!
//! Refuses indices out of range and duplicates, log-probabilities that no distribution has, and raw logits without a tail where the tail is part of the
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
        possible(sparse, &kept, values.row(n), n)?;
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

/// A sparse teacher's row as probabilities.
pub(crate) struct SparseRow {
    /// Kept columns with ln p, ascending.
    pub kept: Vec<(usize, f64)>,
    /// ln of the mass outside.
    pub rest: f64,
}

/// What the teacher says; `None` if it has no live entry.
pub(crate) fn teacher(
    sparse: &Sparse,
    (indices, values): (&[f64], &[f64]),
    tail: Option<f64>,
    width: usize,
    n: usize,
) -> Result<Option<SparseRow>, Refusal> {
    let kept = kept_set(indices, width, n)?;
    possible(sparse, &kept, values, n)?;
    Ok(teacher_row(sparse, &kept, values, tail).map(|(lp, rest)| SparseRow {
        kept: kept.iter().zip(lp).map(|(k, lp)| (k.1, lp)).collect(),
        rest,
    }))
}

/// Present entries by column: (place in the row of indices, column).
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
        kept.push((place, index as usize));
    }
    kept.sort_unstable_by_key(|&(_, column)| column);
    if let Some(pair) = kept.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        return Err(Refusal::Data(format!("row {n}: top-k index {} appears twice", pair[0].1)));
    }
    Ok(kept)
}

/// Kept mass above which log-probabilities cannot be meant: 16-bit ones round to at most this.
const MOST: f64 = 1.01;

/// Refuses log-probabilities above 0, or that add up to more than 1. NaN passes and makes the row NaN.
fn possible(
    sparse: &Sparse,
    kept: &[(usize, usize)],
    values: &[f64],
    n: usize,
) -> Result<(), Refusal> {
    if sparse.values == TopkValues::Logits {
        return Ok(());
    }
    if let Some(&(place, _)) = kept.iter().find(|&&(place, _)| values[place] > 0.0) {
        let (value, hint) = (values[place], "raw logits need `values: logits`");
        return Err(Refusal::Data(format!("row {n}: log-probability {value} is above 0; {hint}")));
    }
    let mass: f64 = kept.iter().map(|&(place, _)| values[place].exp()).sum();
    if mass > MOST {
        let hint = "raw logits need `values: logits`";
        return Err(Refusal::Data(format!("row {n}: kept probabilities add up to {mass}; {hint}")));
    }
    Ok(())
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
    if shift == f64::NEG_INFINITY {
        // The student has no mass on the kept set: nothing to renormalise.
        return (f64::INFINITY, vec![0.0; lq.len()]);
    }
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
