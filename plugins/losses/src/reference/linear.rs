//! Dense losses on hidden states times a head: the logits written out, the dense oracle, the chain rule.
//!
//! Refuses a teacher given twice or not at all.

use super::{Array, Inputs, Outcome, Refusal, dense, required, same_dim};
use crate::settings::Linear;

pub fn evaluate(linear: &Linear, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let (hidden, head) = (required(inputs, "student.hidden")?, required(inputs, "student.head")?);
    let teacher = match (inputs.get("teacher.logits"), inputs.get("teacher.hidden")) {
        (Some(logits), None) => logits.clone(),
        (None, Some(_)) => logits(inputs, "teacher.hidden", "teacher.head")?,
        _ => {
            let why = "bind either `teacher.logits` or `teacher.hidden` and `teacher.head`";
            return Err(Refusal::Shape(why.into()));
        }
    };
    let mut inner = inputs.clone();
    inner.insert("student.logits".into(), logits(inputs, "student.hidden", "student.head")?);
    inner.insert("teacher.logits".into(), teacher);
    let mut outcome = dense::evaluate(&linear.dense, &inner, normalizer)?;
    let ds = outcome.grads.remove("student.logits").unwrap_or_else(|| Array::zeros_like(hidden));
    let (mut to_hidden, mut to_head) = (Array::zeros_like(hidden), Array::zeros_like(head));
    for n in 0..hidden.dim(0) {
        for (v, &g) in ds.row(n).iter().enumerate().filter(|(_, g)| **g != 0.0) {
            for (k, (h, w)) in hidden.row(n).iter().zip(head.row(v)).enumerate() {
                to_hidden.row_mut(n)[k] += g * w;
                to_head.row_mut(v)[k] += g * h;
            }
        }
    }
    outcome.grads.insert("student.hidden".into(), to_hidden);
    outcome.grads.insert("student.head".into(), to_head);
    Ok(outcome)
}

fn logits(inputs: &Inputs, states: &str, head: &str) -> Result<Array, Refusal> {
    let (h, w) = (required(inputs, states)?, required(inputs, head)?);
    same_dim(1, (states, h), (head, w))?;
    let dot = |n: usize, v: usize| h.row(n).iter().zip(w.row(v)).map(|(h, w)| h * w).sum::<f64>();
    let (rows, width) = (h.dim(0), w.dim(0));
    let data = (0..rows * width).map(|k| dot(k / width, k % width)).collect();
    Ok(Array { shape: vec![rows, width], data })
}
