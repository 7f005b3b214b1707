//! Losses on the relations within a batch of hidden states, losses.md section 5.
//!
//! The rows are first reduced to the counted ones: others are no neighbours, negatives or samples. Refuses
//! row weights. The batch value L is written as L · n / normalizer.

use super::contrast::{crd, infonce};
use super::matrix::{
    Matrix, add, centre_columns, combine, dot, inner, through_unit, times, times_transposed,
    transpose, unit, zeros,
};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::settings::Batch;

pub fn evaluate(batch: &Batch, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let (h, t) = (required(inputs, "student.hidden")?, required(inputs, "teacher.hidden")?);
    same_dim(0, ("student.hidden", h), ("teacher.hidden", t))?;
    if matches!(batch, Batch::InfoNce { .. } | Batch::Crd { .. }) {
        same_dim(1, ("student.hidden", h), ("teacher.hidden", t))?;
    }
    let rows = Rows::new(inputs, h.dim(0))?;
    rows.refuse_weights()?;
    let counted = rows.counted();
    let mut grad = Array::zeros_like(h);
    let mut outcome = Outcome::default();
    if !counted.is_empty() {
        let pick = |a: &Array| counted.iter().map(|&n| a.row(n).to_vec()).collect::<Matrix>();
        let (x, y) = (pick(h), pick(t));
        let (value, rows) = match *batch {
            Batch::Sp => similarity(&x, &y),
            Batch::RkdD => distances(&x, &y),
            Batch::RkdA => angles(&x, &y),
            Batch::InfoNce { tau, symmetric } => infonce(&x, &y, tau, symmetric),
            Batch::Crd { tau, negatives, n_data, z } => crd(&x, &y, tau, negatives, n_data, z),
            Batch::Cka => cka(&x, &y),
            Batch::Mmd { .. } | Batch::Coral => unreachable!("routed to `align`"),
        };
        let share = counted.len() as f64 / normalizer;
        outcome.value = value * share;
        for (&n, row) in counted.iter().zip(&rows) {
            add(grad.row_mut(n), share, row);
        }
    }
    outcome.grads.insert("student.hidden".into(), grad);
    Ok(outcome)
}

/// ‖Ĝ − Ĝ_T‖²/n², G = HHᵀ with unit rows.
fn similarity(x: &Matrix, y: &Matrix) -> (f64, Matrix) {
    let n = x.len() as f64;
    let units: Vec<(Vec<f64>, Option<f64>)> =
        times_transposed(x, x).iter().map(|row| unit(row)).collect();
    let other = times_transposed(y, y);
    let mut value = 0.0;
    let mut g: Matrix = Vec::new();
    for ((u, norm), other) in units.iter().zip(&other) {
        let d: Vec<f64> = u.iter().zip(unit(other).0).map(|(a, b)| a - b).collect();
        value += dot(&d, &d) / (n * n);
        let du: Vec<f64> = d.iter().map(|d| 2.0 * d / (n * n)).collect();
        g.push(through_unit(u, *norm, &du));
    }
    let both = combine(&g, &transpose(&g), |a, b| a + b);
    (value, times(&both, x))
}

fn smooth_l1(x: f64) -> f64 {
    if x.abs() < 1.0 { 0.5 * x * x } else { x.abs() - 0.5 }
}

/// Unit differences and distances of all pairs.
fn differences(x: &Matrix) -> Vec<Vec<(Vec<f64>, Option<f64>)>> {
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
    x.iter().map(|a| x.iter().map(|b| unit(&difference(a, b))).collect()).collect()
}

/// Mean of smoothL1(d/μ − d′/μ′), μ the mean of the non-zero distances.
fn distances(x: &Matrix, y: &Matrix) -> (f64, Matrix) {
    let (n, width) = (x.len(), x[0].len());
    let mut grad = zeros(n, width);
    if n < 2 {
        return (0.0, grad);
    }
    let (own, other) = (differences(x), differences(y));
    let mean = |all: &[Vec<(Vec<f64>, Option<f64>)>]| {
        let live: Vec<f64> = all.iter().flatten().filter_map(|(_, d)| *d).collect();
        (live.iter().sum::<f64>() / live.len() as f64, live.len() as f64)
    };
    let ((mu, pairs), (mu_t, _)) = (mean(&own), mean(&other));
    let size = (n * n) as f64;
    let relative = |d: Option<f64>, mu: f64| d.map_or(0.0, |d| d / mu);
    let (mut value, mut along) = (0.0, 0.0);
    let mut slope = zeros(n, n);
    for i in 0..n {
        for j in 0..n {
            let d = own[i][j].1;
            let gap = relative(d, mu) - relative(other[i][j].1, mu_t);
            value += smooth_l1(gap) / size;
            slope[i][j] = gap.clamp(-1.0, 1.0) / size;
            along += slope[i][j] * d.unwrap_or(0.0);
        }
    }
    for i in 0..n {
        for j in 0..n {
            let (direction, Some(_)) = &own[i][j] else { continue };
            let of_distance = slope[i][j] / mu - along / (mu * mu * pairs);
            add(&mut grad[i], of_distance, direction);
            add(&mut grad[j], -of_distance, direction);
        }
    }
    (value, grad)
}

/// Mean over triples of smoothL1(cos∠_ijk − teacher's), the angle at j.
fn angles(x: &Matrix, y: &Matrix) -> (f64, Matrix) {
    let (n, width) = (x.len(), x[0].len());
    let mut grad = zeros(n, width);
    if n < 3 {
        return (0.0, grad);
    }
    let (own, other) = (differences(x), differences(y));
    let size = (n * n * n) as f64;
    let mut value = 0.0;
    for j in 0..n {
        let at = |all: &[Vec<(Vec<f64>, Option<f64>)>], i: usize, k: usize| {
            dot(&all[i][j].0, &all[k][j].0)
        };
        for i in 0..n {
            let mut g = vec![0.0; width];
            for k in 0..n {
                let gap = at(&own, i, k) - at(&other, i, k);
                value += smooth_l1(gap) / size;
                // Twice: the triple (k, j, i) has the same angle.
                add(&mut g, 2.0 * gap.clamp(-1.0, 1.0) / size, &own[k][j].0);
            }
            let (direction, norm) = &own[i][j];
            let row = through_unit(direction, *norm, &g);
            add(&mut grad[i], 1.0, &row);
            add(&mut grad[j], -1.0, &row);
        }
    }
    (value, grad)
}

/// 1 − ⟨K, L⟩/(‖K‖‖L‖) of centred linear kernels.
fn cka(x: &Matrix, y: &Matrix) -> (f64, Matrix) {
    let (x, y) = (centre_columns(x), centre_columns(y));
    let (k, l) = (times_transposed(&x, &x), times_transposed(&y, &y));
    let (norm_k, norm_l) = (inner(&k, &k).sqrt(), inner(&l, &l).sqrt());
    if norm_k <= super::matrix::ZERO_NORM || norm_l <= super::matrix::ZERO_NORM {
        return (1.0, zeros(x.len(), x[0].len()));
    }
    let overlap = inner(&k, &l);
    let scale = -2.0 / (norm_k * norm_l);
    let g = combine(&l, &k, |l, k| scale * (l - overlap * k / (norm_k * norm_k)));
    (1.0 - overlap / (norm_k * norm_l), centre_columns(&times(&g, &x)))
}
