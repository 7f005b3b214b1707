//! Every loss on inputs at the edge: a defined value, a counted infinity, or an error with words. Never a silent NaN.
//!
//! The inputs of one golden case of each loss, changed in one way at a time. What is finite for the oracle must be
//! finite here; what is not must stand in `nonfinite_rows`.

use crate::golden::{TEXT, inputs, number};
use crate::host::{Failure, Options, Outcome, run};
use crate::reference::{Array, Inputs, evaluate};
use limbeck_losses::settings::parse;
use limbeck_sdk::abi;
use serde_json::Value;

/// The first computing case of each loss.
fn cases() -> Vec<Value> {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let mut seen = std::collections::BTreeSet::new();
    let mut first = |case: &&Value| {
        let loss = case["loss"].as_str().expect("a loss").to_owned();
        loss != "terms" && case["expect"]["grad"].is_object() && seen.insert(loss)
    };
    file["cases"].as_array().expect("cases").iter().filter(|case| first(case)).cloned().collect()
}

fn is_float(name: &str) -> bool {
    let integers = ["labels", "row_mask", "class_mask", "attention_mask", "domain", "targets"];
    !integers.contains(&name) && !name.ends_with("indices") && name != "row_weights"
}

/// A change of one float port, seen entry by entry.
type Change = (&'static str, fn(usize, f64) -> f64);

const CHANGES: &[Change] = &[
    ("one +inf", |k, x| if k == 1 { f64::INFINITY } else { x }),
    ("one -inf", |k, x| if k == 1 { f64::NEG_INFINITY } else { x }),
    ("one NaN", |k, x| if k == 1 { f64::NAN } else { x }),
    ("all -inf", |_, _| f64::NEG_INFINITY),
    ("all +inf", |_, _| f64::INFINITY),
    ("zeros", |_, _| 0.0),
    ("equal", |_, _| 3.0),
    ("1e4 and -1e4", |k, _| if k % 3 == 0 { 1e4 } else { -1e4 }),
    ("one at 1e4", |k, x| if k % 8 == 2 { 1e4 } else { x }),
    ("one-hot by -inf", |k, _| if k % 8 == 5 { 0.0 } else { f64::NEG_INFINITY }),
    ("tiny", |_, x| x * 1e-30),
    ("huge", |_, x| x * 1e30),
];

/// Panics unless the outcome says what it is.
fn judge(what: &str, found: &Result<Outcome, Failure>, clean: bool) {
    let outcome = match found {
        Err(failure) => {
            assert!(
                !failure.message.is_empty() && failure.status != abi::STATUS_PANIC,
                "{what}: {failure:?}"
            );
            assert_ne!(failure.status, abi::STATUS_INTERNAL, "{what}: {failure:?}");
            return;
        }
        Ok(outcome) => outcome,
    };
    assert!(outcome.metrics.iter().all(|m| m.is_finite()), "{what}: metrics {:?}", outcome.metrics);
    let counted = outcome.metrics[1] > 0.0;
    let finite =
        outcome.value.is_finite() && outcome.grads.values().flatten().all(|g| g.is_finite());
    assert!(finite || counted, "{what}: value {} says nothing, {:?}", outcome.value, outcome.grads);
    assert!(!clean || !outcome.value.is_nan(), "{what}: NaN from finite numbers");
}

fn try_all(loss: &str, params: &Value, what: &str, inputs: &Inputs, normalizer: f64) {
    for dtype in [abi::DLDataType::F32, abi::DLDataType::F64] {
        let what = format!("{loss} {params} {what} {dtype:?}");
        // Products of a projection overflow to infinities of both signs, whose sum is NaN.
        let overflows = params["projector"] == "linear"
            && inputs.values().flat_map(|a| &a.data).any(|x| x.abs() > 1e19);
        let finite = inputs.iter().all(|(_, a)| a.data.iter().all(|x| x.is_finite()));
        let clean = finite && !overflows;
        let found = run(loss, params, inputs, Options::of(dtype, normalizer));
        judge(&what, &found, clean);
        let spec = parse(loss, params).expect("settings");
        let (Ok(found), Ok(exact)) = (found, evaluate(&spec, inputs, normalizer)) else { continue };
        // f32 ends at 3.4e38.
        let small = exact.value.is_finite() && exact.value.abs() < 1e37;
        let small = small
            && inputs.values().flat_map(|a| &a.data).all(|x| !x.is_finite() || x.abs() < 1e20);
        if small && exact.nonfinite_rows == 0.0 {
            let bound = 1e-3 * exact.value.abs() + 1e-4;
            let error = (found.value - exact.value).abs();
            assert!(error <= bound, "{what}: {} for {}", found.value, exact.value);
        }
    }
}

#[test]
fn every_loss_says_what_it_is_at_the_edges() {
    let cases = cases();
    assert_eq!(cases.len(), 40);
    for case in &cases {
        let (loss, params) = (case["loss"].as_str().expect("a loss"), &case["params"]);
        let (base, normalizer) = (inputs(case), number(&case["normalizer"]));
        let floats: Vec<String> = base.keys().filter(|name| is_float(name)).cloned().collect();
        for name in &floats {
            for (label, change) in CHANGES {
                let mut changed = base.clone();
                let array = changed.get_mut(name).expect("an input");
                array.data.iter_mut().enumerate().for_each(|(k, x)| *x = change(k, *x));
                try_all(loss, params, &format!("{name} {label}"), &changed, normalizer);
            }
        }
        for (label, change) in CHANGES {
            let mut changed = base.clone();
            for name in &floats {
                let array = changed.get_mut(name).expect("an input");
                array.data.iter_mut().enumerate().for_each(|(k, x)| *x = change(k, *x));
            }
            try_all(loss, params, &format!("everything {label}"), &changed, normalizer);
        }
    }
}

/// Arrays whose first axis is that of the rows.
fn by_row(loss: &str, name: &str) -> bool {
    let parameter = name.starts_with("proj.") || name == "rho" || name == "class_mask";
    let second_set = loss == "mmd" && name == "teacher.hidden";
    !parameter && !second_set
}

#[test]
fn every_loss_takes_no_rows_and_only_masked_rows() {
    for case in &cases() {
        let (loss, params) = (case["loss"].as_str().expect("a loss"), &case["params"]);
        let base = inputs(case);
        let mut none = base.clone();
        for (_, array) in none.iter_mut().filter(|(name, _)| by_row(loss, name)) {
            array.shape[0] = 0;
            array.data.clear();
        }
        let mut masked = base.clone();
        let (_, first) = base.iter().find(|(name, _)| by_row(loss, name)).expect("an input");
        let rows = first.shape[0];
        masked.insert("row_mask".into(), Array { shape: vec![rows], data: vec![0.0; rows] });
        for (what, inputs) in [("no rows", &none), ("masked", &masked)] {
            for dtype in [abi::DLDataType::F32, abi::DLDataType::BF16] {
                let found = run(loss, params, inputs, Options::of(dtype, 3.0))
                    .unwrap_or_else(|failure| panic!("{loss} {what}: {failure:?}"));
                assert_eq!(
                    (found.value, &found.metrics[..]),
                    (0.0, &[0.0, 0.0][..]),
                    "{loss} {what}"
                );
                assert!(found.grads.values().flatten().all(|g| *g == 0.0), "{loss} {what}");
            }
        }
    }
}

#[test]
fn cold_and_hot_temperatures_and_a_single_column_are_defined() {
    let mut seen = 0;
    for case in &cases() {
        let loss = case["loss"].as_str().expect("a loss");
        let (base, normalizer) = (inputs(case), number(&case["normalizer"]));
        let params = |t: f64| {
            let mut params = case["params"].clone();
            params["temperature"] = t.into();
            params
        };
        if parse(loss, &params(1.0)).is_ok() {
            for t in [0.05, 100.0] {
                seen += 1;
                try_all(loss, &params(t), "temperature", &base, normalizer);
            }
        }
        if !base.contains_key("student.logits") {
            continue;
        }
        let mut one = base.clone();
        for (name, array) in
            one.iter_mut().filter(|(name, _)| !matches!(name.as_str(), "labels" | "row_mask"))
        {
            if name.ends_with("tail") {
                array.data.fill(f64::NEG_INFINITY);
                continue;
            }
            let rows = array.shape[0];
            let data = (0..rows).map(|n| array.row(n)[0]).collect();
            *array = Array { shape: vec![rows, 1], data };
            if name.ends_with("indices") {
                array.data.fill(0.0);
            }
        }
        if let Some(labels) = one.get_mut("labels") {
            labels.data.iter_mut().filter(|l| **l > 0.0).for_each(|l| *l = 0.0);
        }
        try_all(loss, &case["params"], "one column", &one, normalizer);
    }
    assert!(seen >= 30, "{seen}");
}

#[test]
fn impossible_log_probabilities_of_a_sparse_teacher_are_refused_with_their_row() {
    for loss in ["topk_tail", "topk_teacher_renorm", "topk_both_renorm"] {
        let array =
            |shape: &[usize], data: &[f64]| Array { shape: shape.to_vec(), data: data.to_vec() };
        let mut inputs = Inputs::from([
            ("student.logits".into(), array(&[2, 4], &[0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0, 4.0])),
            ("teacher.topk.indices".into(), array(&[2, 2], &[0.0, 1.0, 3.0, 2.0])),
            ("teacher.topk.values".into(), array(&[2, 2], &[-1.0, -2.0, -0.5, -1.5])),
        ]);
        let options = Options::of(abi::DLDataType::F32, 2.0);
        assert!(run(loss, &serde_json::json!({}), &inputs, options).is_ok(), "{loss}");
        for bad in [[0.3, -1.0], [-0.1, -0.2], [f64::INFINITY, -3.0]] {
            inputs.get_mut("teacher.topk.values").expect("values").row_mut(1).copy_from_slice(&bad);
            let failure = run(loss, &serde_json::json!({}), &inputs, options).expect_err("refused");
            assert_eq!(failure.status, abi::STATUS_BAD_DATA, "{loss} {bad:?}");
            assert!(failure.message.contains("row 1"), "{}", failure.message);
        }
    }
}
