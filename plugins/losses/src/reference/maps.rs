//! Losses on feature maps, sample by sample, losses.md section 4.
//!
//! Refuses numbers of channels or positions that do not agree where a formula compares them. A channel
//! that is zero everywhere has unit map 0 and gradient 0.

use super::matrix::{
    Matrix, add, combine, dot, inner, through_unit, times, times_transposed, transpose, unit, zeros,
};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::settings::FeatureMap;

pub fn evaluate(map: FeatureMap, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let names: &[[&str; 2]] = match map {
        FeatureMap::Fsp => &[["student.map", "teacher.map"], ["student.map2", "teacher.map2"]],
        _ => &[["student.map", "teacher.map"]],
    };
    let mut sides: Vec<(&Array, &Array)> = Vec::new();
    for [student, teacher] in names {
        let (s, t) = (required(inputs, student)?, required(inputs, teacher)?);
        same_dim(0, (student, s), (teacher, t))?;
        if matches!(map, FeatureMap::Gram | FeatureMap::Fsp) {
            same_dim(1, (student, s), (teacher, t))?;
        }
        if matches!(map, FeatureMap::Nst | FeatureMap::At { .. }) {
            same_dim(2, (student, s), (teacher, t))?;
        }
        sides.push((s, t));
    }
    if let [(s, t), (s2, t2)] = sides[..] {
        same_dim(0, ("student.map", s), ("student.map2", s2))?;
        same_dim(2, ("student.map", s), ("student.map2", s2))?;
        same_dim(2, ("teacher.map", t), ("teacher.map2", t2))?;
    }
    let rows = Rows::new(inputs, sides[0].0.dim(0))?;
    let mut grads: Vec<Array> = sides.iter().map(|(s, _)| Array::zeros_like(s)).collect();
    let mut outcome = Outcome::default();
    for b in rows.counted().into_iter().filter(|&b| rows.weight(b) != 0.0) {
        let weight = rows.weight(b) / normalizer;
        let s: Vec<Matrix> = sides.iter().map(|(s, _)| sample(s, b)).collect();
        let t: Vec<Matrix> = sides.iter().map(|(_, t)| sample(t, b)).collect();
        let (value, rows) = match map {
            FeatureMap::Nst => nst(&s[0], &t[0]),
            FeatureMap::Gram => gram(&s[0], &t[0]),
            FeatureMap::Fsp => fsp(&s, &t),
            FeatureMap::At { p } => at(&s[0], &t[0], p),
        };
        outcome.value += weight * value;
        if !value.is_finite() {
            outcome.nonfinite_rows += 1.0 / normalizer;
        }
        for (grad, row) in grads.iter_mut().zip(rows) {
            add(grad.row_mut(b), weight, &row.concat());
        }
    }
    outcome.grads = names.iter().map(|[student, _]| (*student).to_owned()).zip(grads).collect();
    Ok(outcome)
}

/// Channels as rows.
fn sample(array: &Array, b: usize) -> Matrix {
    array.row(b).chunks(array.dim(2).max(1)).map(<[f64]>::to_vec).collect()
}

fn positions(f: &Matrix) -> f64 {
    f.first().map_or(0, Vec::len) as f64
}

/// Squared maximum mean discrepancy of unit channel maps, polynomial kernel of degree 2.
fn nst(s: &Matrix, t: &Matrix) -> (f64, Vec<Matrix>) {
    let units: Vec<(Vec<f64>, Option<f64>)> = s.iter().map(|f| unit(f)).collect();
    let u: Matrix = units.iter().map(|(u, _)| u.clone()).collect();
    let w: Matrix = t.iter().map(|f| unit(f).0).collect();
    let (own, cross) = (times_transposed(&u, &u), times_transposed(&u, &w));
    let other = times_transposed(&w, &w);
    let (c_s, c_t) = (s.len() as f64, t.len() as f64);
    let value = inner(&other, &other) / (c_t * c_t) + inner(&own, &own) / (c_s * c_s)
        - 2.0 * inner(&cross, &cross) / (c_s * c_t);
    let (toward, away) = (times(&own, &u), times(&cross, &w));
    let du = combine(&toward, &away, |a, b| 4.0 / (c_s * c_s) * a - 4.0 / (c_s * c_t) * b);
    let grad = units.iter().zip(&du).map(|((u, norm), du)| through_unit(u, *norm, du)).collect();
    (value, vec![grad])
}

/// (1/C²)‖FFᵀ/P − F_T F_Tᵀ/P_T‖².
fn gram(s: &Matrix, t: &Matrix) -> (f64, Vec<Matrix>) {
    let (c, p, p_t) = (s.len() as f64, positions(s), positions(t));
    let d = combine(&times_transposed(s, s), &times_transposed(t, t), |a, b| a / p - b / p_t);
    let mut grad = times(&d, s);
    grad.iter_mut().flatten().for_each(|g| *g *= 4.0 / (c * c * p));
    (inner(&d, &d) / (c * c), vec![grad])
}

/// ‖F₁F₂ᵀ/P − teacher's‖².
fn fsp(s: &[Matrix], t: &[Matrix]) -> (f64, Vec<Matrix>) {
    let (p, p_t) = (positions(&s[0]), positions(&t[0]));
    let (own, other) = (times_transposed(&s[0], &s[1]), times_transposed(&t[0], &t[1]));
    let d = combine(&own, &other, |a, b| a / p - b / p_t);
    let mut grads = vec![times(&d, &s[1]), times(&transpose(&d), &s[0])];
    grads.iter_mut().flatten().flatten().for_each(|g| *g *= 2.0 / p);
    (inner(&d, &d), grads)
}

/// (1/P)‖Â − Â_T‖², A = mean over channels of |f|^p.
fn at(s: &Matrix, t: &Matrix, p: u32) -> (f64, Vec<Matrix>) {
    let energy = |f: &Matrix| {
        let mut sum = vec![0.0; f.first().map_or(0, Vec::len)];
        for channel in f {
            for (sum, x) in sum.iter_mut().zip(channel) {
                *sum += x.abs().powi(p as i32) / f.len() as f64;
            }
        }
        sum
    };
    let ((a, norm), (a_t, _)) = (unit(&energy(s)), unit(&energy(t)));
    let width = positions(s);
    let d: Vec<f64> = a.iter().zip(&a_t).map(|(a, t)| a - t).collect();
    let g: Vec<f64> = d.iter().map(|d| 2.0 * d / width).collect();
    let g = through_unit(&a, norm, &g);
    let slope = |x: f64| p as f64 * x.abs().powi(p as i32 - 1) * x.signum() / s.len() as f64;
    let mut grad = zeros(s.len(), g.len());
    for (row, channel) in grad.iter_mut().zip(s) {
        for ((out, &x), g) in row.iter_mut().zip(channel).zip(&g) {
            *out = if x == 0.0 { 0.0 } else { g * slope(x) };
        }
    }
    (dot(&d, &d) / width, vec![grad])
}
