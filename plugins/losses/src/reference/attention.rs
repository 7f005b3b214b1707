//! Losses on attention scores and value relations, sequence by sequence, losses.md section 4.
//!
//! Refuses unequal heads and lengths. `attention_mask` removes keys and queries; a sequence that is all
//! padding adds 0.

use super::divergence::forward_kl;
use super::matrix::{Matrix, add, dot, times, transpose, zeros};
use super::softmax::{dead, log_softmax};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::names::layered;
use crate::settings::{Attention, AttentionKind};

pub fn evaluate(
    attention: &Attention,
    inputs: &Inputs,
    normalizer: f64,
) -> Result<Outcome, Refusal> {
    let port = match attention.kind {
        AttentionKind::ValueRelation => "value",
        _ => "attention",
    };
    let pairs = attention.layers.len().max(1);
    let mut outcome = Outcome::default();
    for index in 0..pairs {
        let pair = attention.layers.get(index);
        let student = layered(&format!("student.{port}"), pair.map(|pair| pair[0]));
        let teacher = layered(&format!("teacher.{port}"), pair.map(|pair| pair[1]));
        let normalizer = normalizer * pairs as f64;
        add_pair(attention.kind, inputs, (&student, &teacher), normalizer, &mut outcome)?;
    }
    Ok(outcome)
}

fn add_pair(
    kind: AttentionKind,
    inputs: &Inputs,
    (student, teacher): (&str, &str),
    normalizer: f64,
    outcome: &mut Outcome,
) -> Result<(), Refusal> {
    let (s, t) = (required(inputs, student)?, required(inputs, teacher)?);
    let axes = if kind == AttentionKind::ValueRelation { 0..3 } else { 0..4 };
    for axis in axes {
        same_dim(axis, (student, s), (teacher, t))?;
    }
    let rows = Rows::new(inputs, s.dim(0))?;
    let mask = inputs.get("attention_mask");
    let fits = |mask: &&Array| mask.dim(0) == s.dim(0) && mask.dim(1) == s.dim(2);
    if let Some(mask) = mask.filter(|mask| !fits(mask)) {
        let (mask, s) = (&mask.shape, &s.shape);
        return Err(Refusal::Shape(format!("`attention_mask` is {mask:?}, `{student}` {s:?}")));
    }
    let mut grad = Array::zeros_like(s);
    let (heads, length) = (s.dim(1), s.dim(2));
    for b in rows.counted() {
        let kept: Vec<usize> =
            (0..length).filter(|&i| mask.is_none_or(|mask| mask.row(b)[i] != 0.0)).collect();
        let weight = rows.weight(b) / normalizer / (heads * kept.len()) as f64;
        if kept.is_empty() || rows.weight(b) == 0.0 {
            continue;
        }
        let mut item = 0.0;
        for head in 0..heads {
            let (student, teacher) = (head_of(s, b, head), head_of(t, b, head));
            let (value, row) = match kind {
                AttentionKind::ValueRelation => value_relation(&student, &teacher, &kept),
                _ => scores(kind, &student, &teacher, &kept),
            };
            item += value;
            let size = grad.stride() / heads;
            let into = &mut grad.row_mut(b)[head * size..(head + 1) * size];
            add(into, weight, &row.concat());
        }
        outcome.value += weight * item;
        if !item.is_finite() {
            outcome.nonfinite_rows += 1.0 / normalizer;
        }
    }
    match outcome.grads.get_mut(student) {
        Some(sum) => add(&mut sum.data, 1.0, &grad.data),
        None => drop(outcome.grads.insert(student.to_owned(), grad)),
    }
    Ok(())
}

/// One head as rows.
fn head_of(array: &Array, item: usize, head: usize) -> Matrix {
    let (length, width) = (array.dim(2), array.dim(3));
    let start = head * length * width;
    (0..length)
        .map(|i| array.row(item)[start + i * width..start + (i + 1) * width].to_vec())
        .collect()
}

/// Sum over kept queries; the mean over kept keys is inside for squared differences.
fn scores(kind: AttentionKind, s: &Matrix, t: &Matrix, kept: &[usize]) -> (f64, Matrix) {
    let mut grad = zeros(s.len(), s.len());
    let mut value = 0.0;
    for &i in kept {
        let pick = |m: &Matrix| kept.iter().map(|&j| m[i][j]).collect::<Vec<f64>>();
        let (s, t) = (pick(s), pick(t));
        let (row_value, row) = match kind {
            AttentionKind::Mse => squared(&s, &t),
            // A query that sees nothing has no distribution to compare.
            _ if dead(&s) || dead(&t) => (0.0, vec![0.0; s.len()]),
            _ => {
                let row = forward_kl(&log_softmax(&t, 1.0), &log_softmax(&s, 1.0));
                (row.value, row.grad)
            }
        };
        value += row_value;
        for (&j, g) in kept.iter().zip(row) {
            grad[i][j] = g;
        }
    }
    (value, grad)
}

fn squared(s: &[f64], t: &[f64]) -> (f64, Vec<f64>) {
    let keys = s.len() as f64;
    // Causal masks put −inf on both sides: no difference.
    let both = |s: f64, t: f64| s == f64::NEG_INFINITY && t == f64::NEG_INFINITY;
    let e: Vec<f64> =
        s.iter().zip(t).map(|(&s, &t)| if both(s, t) { 0.0 } else { s - t }).collect();
    (dot(&e, &e) / keys, e.iter().map(|e| 2.0 * e / keys).collect())
}

/// KL of softmax(V Vᵀ/√D), each side with its own D; gradient (G + Gᵀ)V/√D.
fn value_relation(s: &Matrix, t: &Matrix, kept: &[usize]) -> (f64, Matrix) {
    let relation = |v: &Matrix| {
        let scale = (v.first().map_or(0, Vec::len) as f64).sqrt();
        v.iter().map(|a| v.iter().map(|b| dot(a, b) / scale).collect()).collect::<Matrix>()
    };
    let (value, g) = scores(AttentionKind::Kl, &relation(s), &relation(t), kept);
    let scale = (s.first().map_or(0, Vec::len) as f64).sqrt();
    let mut grad = times(&g, s);
    for (row, other) in grad.iter_mut().zip(times(&transpose(&g), s)) {
        add(row, 1.0, &other);
        row.iter_mut().for_each(|x| *x /= scale);
    }
    (value, grad)
}
