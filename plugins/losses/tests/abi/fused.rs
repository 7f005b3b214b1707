//! The loss on hidden states and a head: equal to the oracle, whatever the chunk, the types and the threads.

use crate::fused_cases::{check, inputs, wave};
use crate::host::{Options, THREADS, run};
use crate::reference::Array;
use limbeck_sdk::abi;
use serde_json::json;
use std::sync::atomic::Ordering;

const F32: abi::DLDataType = abi::DLDataType::F32;
/// More than a block of the head.
const WIDTH: usize = 300;

#[test]
fn value_and_both_gradients_are_those_of_the_oracle_for_every_chunk() {
    for product in [false, true] {
        let inputs = inputs(product, WIDTH);
        for loss in ["kl", "rkl", "gjsd", "skl", "srkl", "tvd", "sym-kl", "soft-ce", "alpha-div"] {
            for chunk in [0, 1, 3, 128] {
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
    let mut plain = inputs(false, WIDTH);
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
    let (inputs, params) = (inputs(true, WIDTH), json!({"chunk": 4}));
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
    let mut both = inputs(true, WIDTH);
    both.insert("teacher.logits".into(), wave([11, 300], 0.5));
    let failure =
        run("fused_linear", &json!({}), &both, Options::of(F32, 11.0)).expect_err("refused");
    assert_eq!(failure.status, abi::STATUS_INVALID_ARGUMENT);
    let params = json!({"with": {"temperature": 0}});
    let failure = run("fused_linear", &params, &inputs(true, WIDTH), Options::of(F32, 11.0))
        .expect_err("refused");
    assert_eq!(failure.notes.get("pointer").map(String::as_str), Some("/with/temperature"));
}
