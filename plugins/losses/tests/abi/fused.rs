//! The loss on hidden states and a head: equal to the oracle, whatever the chunk, the types and the threads.

use crate::host::{Options, Outcome, THREADS, run};
use crate::reference::{Array, Inputs, evaluate};
use limbeck_losses::settings::parse;
use limbeck_sdk::abi;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const F32: abi::DLDataType = abi::DLDataType::F32;

fn wave(shape: [usize; 2], a: f64) -> Array {
    let data = (0..shape[0] * shape[1]).map(|k| f64::from((k as f64 * a + 0.2).sin() as f32));
    Array { shape: shape.to_vec(), data: data.collect() }
}

/// 11 rows, 300 columns (more than a block of the head), the second row ignored, the third weighted.
fn inputs(product: bool) -> Inputs {
    let mut inputs = Inputs::from([
        ("student.hidden".into(), wave([11, 6], 1.7)),
        ("student.head".into(), wave([300, 6], 0.37)),
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
        inputs.insert("teacher.head".into(), wave([300, 9], 0.61));
    } else {
        inputs.insert("teacher.logits".into(), wave([11, 300], 0.53));
    }
    inputs
}

fn check(found: &Outcome, params: &Value, inputs: &Inputs, bound: f64) {
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

#[test]
fn value_and_both_gradients_are_those_of_the_oracle_for_every_chunk() {
    for product in [false, true] {
        let inputs = inputs(product);
        for loss in ["kl", "rkl", "gjsd", "skl", "srkl", "tvd", "sym-kl", "soft-ce", "alpha-div"] {
            for chunk in [1, 3, 128] {
                let params = json!({"loss": loss, "chunk": chunk, "with": {"temperature": 2.0}});
                for (dtype, bound) in [(F32, 2e-5), (abi::DLDataType::F64, 1e-12)] {
                    let found = run("fused_linear", &params, &inputs, Options::of(dtype, 11.0))
                        .unwrap_or_else(|failure| panic!("{params}: {failure:?}"));
                    check(&found, &params, &inputs, bound);
                }
            }
        }
    }
}

#[test]
fn it_is_the_loss_on_the_logits() {
    let mut plain = inputs(false);
    let fused = run("fused_linear", &json!({}), &plain, Options::of(F32, 11.0)).expect("computes");
    let (h, w) = (plain["student.hidden"].clone(), plain["student.head"].clone());
    let dot = |n: usize, v: usize| h.row(n).iter().zip(w.row(v)).map(|(h, w)| h * w).sum::<f64>();
    let data = (0..11 * 300).map(|k| dot(k / 300, k % 300)).collect();
    plain.insert("student.logits".into(), Array { shape: vec![11, 300], data });
    let logits = run("fkl", &json!({}), &plain, Options::of(F32, 11.0)).expect("computes");
    assert!((fused.value - logits.value).abs() <= 1e-5 * logits.value);
}

#[test]
fn the_head_is_added_to_and_threads_change_no_bit() {
    let (inputs, params) = (inputs(true), json!({"chunk": 4}));
    let call = |options| run("fused_linear", &params, &inputs, options).expect("computes");
    let once = call(Options::of(F32, 11.0));
    let added = call(Options { accumulate: Some(1.0), ..Options::of(F32, 11.0) });
    for name in ["student.hidden", "student.head"] {
        for (a, b) in added.grads[name].iter().zip(&once.grads[name]) {
            assert!((a - 1.0 - b).abs() <= 5e-7, "{name}: {a} {b}");
        }
    }
    assert!(once.grads["student.hidden"][6..12].iter().all(|g| *g == 0.0));
    THREADS.store(3, Ordering::Relaxed);
    let many = call(Options::of(F32, 11.0));
    THREADS.store(1, Ordering::Relaxed);
    assert_eq!(once, many);
}

#[test]
fn a_teacher_given_twice_and_settings_inside_are_refused_at_their_place() {
    let mut both = inputs(true);
    both.insert("teacher.logits".into(), wave([11, 300], 0.5));
    let failure =
        run("fused_linear", &json!({}), &both, Options::of(F32, 11.0)).expect_err("refused");
    assert_eq!(failure.status, abi::STATUS_INVALID_ARGUMENT);
    let params = json!({"with": {"temperature": 0}});
    let failure =
        run("fused_linear", &params, &inputs(true), Options::of(F32, 11.0)).expect_err("refused");
    assert_eq!(failure.notes.get("pointer").map(String::as_str), Some("/with/temperature"));
}
