//! Inputs of the loss on hidden states and a head, and what an outcome is held to.

use crate::host::Outcome;
use crate::reference::{Array, Inputs, evaluate};
use limbeck_losses::settings::parse;
use serde_json::Value;

pub fn wave(shape: [usize; 2], a: f64) -> Array {
    let data = (0..shape[0] * shape[1]).map(|k| f64::from((k as f64 * a + 0.2).sin() as f32));
    Array { shape: shape.to_vec(), data: data.collect() }
}

/// 11 rows, `width` columns, the second row ignored, the third weighted. A teacher of states and a head, or of logits.
pub fn inputs(product: bool, width: usize) -> Inputs {
    let mut inputs = Inputs::from([
        ("student.hidden".into(), wave([11, 6], 1.7)),
        ("student.head".into(), wave([width, 6], 0.37)),
        (
            "row_mask".into(),
            Array { shape: vec![11], data: (0..11).map(|n| f64::from(n != 1)).collect() },
        ),
        (
            "row_weights".into(),
            Array {
                shape: vec![11],
                data: (0..11).map(|n| if n == 2 { 2.0 } else { 1.0 }).collect(),
            },
        ),
    ]);
    if product {
        inputs.insert("teacher.hidden".into(), wave([11, 9], 0.9));
        inputs.insert("teacher.head".into(), wave([width, 9], 0.61));
    } else {
        inputs.insert("teacher.logits".into(), wave([11, width], 0.53));
    }
    inputs
}

/// Value within 1e-5, gradients within `bound` of their norms.
pub fn check(found: &Outcome, params: &Value, inputs: &Inputs, bound: f64) {
    let exact = evaluate(&parse("fused_linear", params).expect("settings"), inputs, 11.0)
        .expect("computes");
    assert!(
        (found.value - exact.value).abs() <= 1e-5 * exact.value.abs(),
        "{params}: {} {}",
        found.value,
        exact.value
    );
    for name in ["student.hidden", "student.head"] {
        let (exact, found) = (&exact.grads[name].data, &found.grads[name]);
        let norm = exact.iter().map(|g| g * g).sum::<f64>().sqrt();
        let error = exact.iter().zip(found).map(|(e, f)| (e - f) * (e - f)).sum::<f64>().sqrt();
        assert!(error <= bound * norm, "{params} {name}: {error:e} of {norm:e}");
    }
}
