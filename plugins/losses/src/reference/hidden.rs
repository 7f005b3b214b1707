//! Losses on hidden states, row by row, losses.md section 3.
//!
//! Refuses unequal widths where nothing maps one onto the other, and parameters of another shape. With
//! `layers`, the mean over the pairs; each pair has its own ports and its own parameters.

use super::matrix::{add, dot, through_unit, unit};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::names::{indexed, layered};
use crate::settings::{Hidden, HiddenKind, Projector};

pub fn evaluate(hidden: &Hidden, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let pairs = hidden.layers.len().max(1) as f64;
    let mut outcome = Outcome::default();
    for index in 0..hidden.layers.len().max(1) {
        let pair = hidden.layers.get(index);
        let of_pair = Pair {
            student: layered("student.hidden", pair.map(|pair| pair[0])),
            teacher: layered("teacher.hidden", pair.map(|pair| pair[1])),
            parameter: |name: &str| indexed(name, pair.map(|_| index)),
        };
        of_pair.add(hidden.kind, inputs, normalizer * pairs, &mut outcome)?;
    }
    Ok(outcome)
}

struct Pair<F> {
    student: String,
    teacher: String,
    parameter: F,
}

impl<F: Fn(&str) -> String> Pair<F> {
    fn add(
        &self,
        kind: HiddenKind,
        inputs: &Inputs,
        normalizer: f64,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        let (h, t) = (required(inputs, &self.student)?, required(inputs, &self.teacher)?);
        same_dim(0, (&self.student, h), (&self.teacher, t))?;
        let mapped = matches!(kind, HiddenKind::Mse { projector: Projector::Linear, .. });
        if !mapped {
            same_dim(1, (&self.student, h), (&self.teacher, t))?;
        }
        let rows = Rows::new(inputs, h.dim(0))?;
        let mut parameters = self.parameters(kind, inputs, h.dim(1), t.dim(1))?;
        let targets = inputs.get("targets");
        let mut grad = Array::zeros_like(h);
        for n in rows.counted().into_iter().filter(|&n| rows.weight(n) != 0.0) {
            let w = rows.weight(n) / normalizer;
            let (a, b) = (h.row(n), t.row(n));
            let (value, row) = match kind {
                HiddenKind::Cosine { margin } => {
                    let opposite = targets.is_some_and(|targets| targets.data[n] < 0.0);
                    cosine(a, b, margin, opposite)
                }
                HiddenKind::Mse { .. } => parameters.mse(a, b, w),
                HiddenKind::Pkd => pkd(a, b),
                HiddenKind::Vid { eps } => parameters.vid(a, b, eps, w),
            };
            outcome.value += w * value;
            if !value.is_finite() {
                outcome.nonfinite_rows += 1.0 / normalizer;
            }
            add(grad.row_mut(n), w, &row);
        }
        // Two pairs may share a student layer: gradients of one port add up.
        match outcome.grads.get_mut(&self.student) {
            Some(sum) => add(&mut sum.data, 1.0, &grad.data),
            None => drop(outcome.grads.insert(self.student.clone(), grad)),
        }
        for (name, _, grad) in parameters.0 {
            outcome.grads.insert((self.parameter)(name), grad);
        }
        Ok(())
    }

    fn parameters<'a>(
        &self,
        kind: HiddenKind,
        inputs: &'a Inputs,
        width: usize,
        teacher_width: usize,
    ) -> Result<Parameters<'a>, Refusal> {
        let shapes: Vec<(&'static str, Vec<usize>)> = match kind {
            HiddenKind::Mse { projector: Projector::Linear, bias } => {
                let mut shapes = vec![("proj.weight", vec![teacher_width, width])];
                if bias {
                    shapes.push(("proj.bias", vec![teacher_width]));
                }
                shapes
            }
            HiddenKind::Vid { .. } => vec![("rho", vec![width])],
            _ => Vec::new(),
        };
        let mut parameters = Vec::new();
        for (name, shape) in shapes {
            let bound = required(inputs, &(self.parameter)(name))?;
            if bound.shape != shape {
                let found = &bound.shape;
                return Err(Refusal::Shape(format!("`{name}` is {found:?}, must be {shape:?}")));
            }
            parameters.push((name, bound, Array::zeros_like(bound)));
        }
        Ok(Parameters(parameters))
    }
}

/// Name, value and gradient of each parameter of one pair.
struct Parameters<'a>(Vec<(&'static str, &'a Array, Array)>);

impl Parameters<'_> {
    /// (1/Ht)‖W h + b − t‖², W the identity without a projector; dW and db are added up.
    fn mse(&mut self, h: &[f64], t: &[f64], w: f64) -> (f64, Vec<f64>) {
        let width = t.len() as f64;
        let mut mapped = match self.0.first() {
            Some((_, weight, _)) => (0..t.len()).map(|o| dot(weight.row(o), h)).collect(),
            None => h.to_vec(),
        };
        if let Some((_, bias, _)) = self.0.get(1) {
            add(&mut mapped, 1.0, &bias.data);
        }
        let e: Vec<f64> = mapped.iter().zip(t).map(|(x, t)| 2.0 * (x - t) / width).collect();
        let value = dot(&e, &e) * width / 4.0;
        let Some((_, weight, weight_grad)) = self.0.first_mut() else { return (value, e) };
        let mut dh = vec![0.0; h.len()];
        for (o, &e) in e.iter().enumerate() {
            add(&mut dh, e, weight.row(o));
            add(weight_grad.row_mut(o), w * e, h);
        }
        if let Some((_, _, bias_grad)) = self.0.get_mut(1) {
            add(&mut bias_grad.data, w, &e);
        }
        (value, dh)
    }

    /// Mean over H of ½[(h−t)²/σ² + ln σ²], σ² = softplus(ρ) + eps.
    fn vid(&mut self, h: &[f64], t: &[f64], eps: f64, w: f64) -> (f64, Vec<f64>) {
        let width = h.len() as f64;
        let Some((_, rho, rho_grad)) = self.0.first_mut() else { return (0.0, vec![0.0; h.len()]) };
        let (mut value, mut dh) = (0.0, Vec::with_capacity(h.len()));
        for i in 0..h.len() {
            let rho = rho.data[i];
            let variance = rho.max(0.0) + (-rho.abs()).exp().ln_1p() + eps;
            let d = h[i] - t[i];
            value += 0.5 * (d * d / variance + variance.ln()) / width;
            dh.push(d / (variance * width));
            let slope = 1.0 / (1.0 + (-rho).exp());
            let of_variance = 0.5 * (1.0 / variance - d * d / (variance * variance));
            rho_grad.data[i] += w * of_variance * slope / width;
        }
        (value, dh)
    }
}

/// 1 − cosine; a row with target −1 costs max(0, cosine − margin).
fn cosine(a: &[f64], b: &[f64], margin: f64, opposite: bool) -> (f64, Vec<f64>) {
    let ((a_unit, a_norm), (b_unit, b_norm)) = (unit(a), unit(b));
    let c = dot(&a_unit, &b_unit);
    let a_norm = a_norm.filter(|_| b_norm.is_some());
    let slope = match opposite {
        false => -1.0,
        true if c > margin => 1.0,
        true => 0.0,
    };
    let g: Vec<f64> = b_unit.iter().map(|b| slope * b).collect();
    let value = if opposite { (c - margin).max(0.0) } else { 1.0 - c };
    // f64::max would turn NaN into 0.
    let value = if c.is_nan() { c } else { value };
    (value, through_unit(&a_unit, a_norm, &g))
}

/// ‖â − b̂‖².
fn pkd(a: &[f64], b: &[f64]) -> (f64, Vec<f64>) {
    let ((a_unit, a_norm), (b_unit, _)) = (unit(a), unit(b));
    let g: Vec<f64> = a_unit.iter().zip(&b_unit).map(|(a, b)| 2.0 * (a - b)).collect();
    (dot(&g, &g) / 4.0, through_unit(&a_unit, a_norm, &g))
}
