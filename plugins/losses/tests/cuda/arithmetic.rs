//! The arithmetic that kernels share, in f64 on the CPU, against the oracle: what f32 hides shows here.

use crate::emulator::emulator;
use crate::golden::{TEXT, inputs, number};
use crate::reference::{Inputs, evaluate};
use crate::rows::logits;
use limbeck_losses::settings::{Divergence, Spec, parse};
use serde_json::{Value, json};
use std::ffi::{CString, c_char, c_int};

type Divergences = unsafe extern "C" fn(
    *const c_char,
    *const f64,
    *const f64,
    c_int,
    f64,
    f64,
    *mut f64,
    *mut f64,
) -> c_int;

fn log2_softmax(row: &[f64], temperature: f64) -> Vec<f64> {
    let most = row.iter().fold(f64::NEG_INFINITY, |most, z| most.max(*z));
    let scaled = row.iter().map(|z| (z - most) / temperature * std::f64::consts::LOG2_E);
    let sum = scaled.clone().map(f64::exp2).sum::<f64>().log2();
    scaled.map(|z| z - sum).collect()
}

/// Value and gradient of one counted row with weight 1 and normaliser 1.
fn row(loss: &str, params: &Value, s: &[f64], t: &[f64]) -> (f64, Vec<f64>) {
    let Spec::Dense(dense) = parse(loss, params).expect("settings") else { panic!("{loss}") };
    let (name, first, second) = match dense.divergence {
        Divergence::ForwardKl => ("fkl", 0.0, 0.0),
        Divergence::SoftCe => ("soft_ce", 0.0, 0.0),
        Divergence::ReverseKl => ("rkl", 0.0, 0.0),
        Divergence::Tvd => ("tvd", 0.0, 0.0),
        Divergence::SymKl { lambda } => ("sym_kl", lambda, 0.0),
        Divergence::Gjsd { beta } => ("gjsd", beta, 0.0),
        Divergence::Skl { alpha } => ("skl", alpha, 0.0),
        Divergence::Srkl { alpha, detach } => {
            ("srkl", 1.0 - alpha, if detach { 0.0 } else { alpha })
        }
        other => panic!("{other:?}"),
    };
    let softening = dense.softening;
    let (x, y) = (log2_softmax(s, softening.student), log2_softmax(t, softening.teacher));
    let (mut value, mut grad) = (f64::NAN, vec![f64::NAN; s.len()]);
    let name = CString::new(name).expect("no NUL");
    let (width, to) = (s.len() as c_int, grad.as_mut_ptr());
    // SAFETY: as declared in arithmetic.cc; buffers of `width` entries.
    let known = unsafe {
        let compute = emulator().get::<Divergences>(b"limbeck_divergence").expect("arithmetic.cc");
        compute(name.as_ptr(), x.as_ptr(), y.as_ptr(), width, first, second, &mut value, to)
    };
    assert_eq!(known, 1, "{loss}");
    let factor = softening.factor / softening.student;
    (value * softening.factor, grad.iter().map(|g| g * factor).collect())
}

fn only(inputs: &Inputs, n: usize) -> Inputs {
    let mut one = Inputs::new();
    for name in ["student.logits", "teacher.logits"] {
        let mut array = inputs[name].clone();
        array.data = array.row(n).to_vec();
        array.shape[0] = 1;
        one.insert(name.into(), array);
    }
    one
}

fn check(what: &str, loss: &str, params: &Value, inputs: &Inputs) {
    for n in 0..inputs["student.logits"].shape[0] {
        let one = only(inputs, n);
        let exact = evaluate(&parse(loss, params).expect("settings"), &one, 1.0).expect("computes");
        if !exact.value.is_finite() || exact.dead_rows > 0.0 {
            continue;
        }
        let (s, t) = (&one["student.logits"].data, &one["teacher.logits"].data);
        let (value, grad) = row(loss, params, s, t);
        let exact_grad = &exact.grads["student.logits"].data;
        let norm = exact_grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        let bound = 2e-12 * exact.value.abs() + 2e-13;
        assert!((value - exact.value).abs() <= bound, "{what} row {n}: {value} {}", exact.value);
        for (v, (found, exact)) in grad.iter().zip(exact_grad).enumerate() {
            let bound = 1e-11 * norm + 1e-13;
            assert!((found - exact).abs() <= bound, "{what} row {n} column {v}: {found} {exact}");
        }
    }
}

#[test]
fn the_kernels_arithmetic_is_the_oracles_in_f64() {
    for temperature in [0.5, 1.0, 2.0, 8.0] {
        for (loss, key, parameters) in [
            ("fkl", "", &[0.0][..]),
            ("soft_ce", "", &[0.0]),
            ("rkl", "", &[0.0]),
            ("tvd", "", &[0.0]),
            ("sym_kl", "lambda", &[0.1, 0.5, 0.9]),
            ("gjsd", "beta", &[1e-6, 0.1, 0.5, 0.9]),
            ("skl", "alpha", &[1e-3, 0.1, 0.9]),
            ("srkl", "alpha", &[1e-3, 0.1, 0.9]),
        ] {
            for parameter in parameters {
                let mut params = json!({"temperature": temperature});
                if !key.is_empty() {
                    params[key] = json!(parameter);
                }
                check(&format!("{loss} {params}"), loss, &params, &logits(1000));
            }
        }
    }
}

#[test]
fn the_kernels_arithmetic_holds_on_the_rows_of_every_golden_case_in_f64() {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let mut rows = 0;
    for case in file["cases"].as_array().expect("cases") {
        let (loss, params) = (case["loss"].as_str().expect("a loss"), &case["params"]);
        let dense =
            ["fkl", "soft_ce", "rkl", "tvd", "sym_kl", "gjsd", "skl", "srkl"].contains(&loss);
        let plain = dense && case["expect"]["error"].is_null();
        let inputs = inputs(case);
        // Unequal and masked columns are the kernels' affair.
        let shapes =
            ["student.logits", "teacher.logits"].map(|name| inputs.get(name).map(|i| &i.shape));
        if !plain
            || shapes[0] != shapes[1]
            || inputs.contains_key("class_mask")
            || number(&case["normalizer"]) <= 0.0
        {
            continue;
        }
        check(&case["id"].to_string(), loss, params, &inputs);
        rows += inputs["student.logits"].shape[0];
    }
    assert!(rows > 200, "{rows}");
}
