//! DIST: one minus the mean Pearson correlation of rows, and of columns (arXiv 2205.10536).
//!
//! Batch-coupled, so it refuses row weights. A row or column without variance has correlation 0, gradient 0,
//! and still counts in the mean.

use super::dense::Columns;
use super::softmax::{dead, exp, log_softmax, through_softmax};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::settings::Dist;

/// ρ(a, b) and dρ/da.
fn pearson(a: &[f64], b: &[f64]) -> (f64, Vec<f64>) {
    let centre = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let centred: Vec<f64> = x.iter().map(|v| v - mean).collect();
        let norm = centred.iter().map(|v| v * v).sum::<f64>().sqrt();
        (centred, norm)
    };
    let ((a, norm_a), (b, norm_b)) = (centre(a), centre(b));
    if norm_a <= 1e-8 || norm_b <= 1e-8 {
        return (0.0, vec![0.0; a.len()]);
    }
    let rho = a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>() / (norm_a * norm_b);
    let grad = a.iter().zip(&b).map(|(a, b)| (b / norm_b - rho * a / norm_a) / norm_a).collect();
    (rho, grad)
}

pub fn evaluate(dist: &Dist, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let (s, t) = (required(inputs, "student.logits")?, required(inputs, "teacher.logits")?);
    same_dim(0, ("student.logits", s), ("teacher.logits", t))?;
    let columns = Columns::new(inputs, dist.vocab, s.dim(1), t.dim(1))?;
    let rows = Rows::new(inputs, s.dim(0))?;
    rows.refuse_weights()?;
    let mut outcome = Outcome::default();
    let mut live = Vec::new();
    for n in rows.counted() {
        rows.label(n, s.dim(1))?;
        let (s, t) = (columns.student(s.row(n)), columns.teacher(t.row(n)));
        if dead(&s) || dead(&t) {
            outcome.dead_rows += 1.0 / normalizer;
            continue;
        }
        let q = exp(&log_softmax(&s, dist.softening.student));
        live.push((n, q, exp(&log_softmax(&t, dist.softening.teacher))));
    }
    let num = live.len() as f64;
    let width = live.first().map_or(0, |(_, q, _)| q.len());
    let mut u: Vec<Vec<f64>> = vec![vec![0.0; width]; live.len()];
    let mut value = 0.0;
    for (u, (_, q, p)) in u.iter_mut().zip(&live) {
        let (rho, grad) = pearson(q, p);
        value += dist.beta * (1.0 - rho) / num;
        for (u, g) in u.iter_mut().zip(grad) {
            *u -= dist.beta * g / num;
        }
    }
    for v in 0..width {
        let student: Vec<f64> = live.iter().map(|(_, q, _)| q[v]).collect();
        let teacher: Vec<f64> = live.iter().map(|(_, _, p)| p[v]).collect();
        let (rho, grad) = pearson(&student, &teacher);
        value += dist.gamma * (1.0 - rho) / width as f64;
        for (u, g) in u.iter_mut().zip(grad) {
            u[v] -= dist.gamma * g / width as f64;
        }
    }
    let share = num / normalizer * dist.softening.factor;
    outcome.value = value * share;
    let mut grad = Array::zeros_like(s);
    for (u, (n, q, _)) in u.iter().zip(&live) {
        let row = through_softmax(q, u);
        columns.scatter(&row, share / dist.softening.student, grad.row_mut(*n));
    }
    outcome.grads.insert("student.logits".into(), grad);
    Ok(outcome)
}
