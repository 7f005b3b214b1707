//! The committed cases through the ABI, in f32 and in f64.

use crate::golden::{TEXT, Tolerance, inputs, number};
use crate::host::{Failure, Options, Outcome, run};
use crate::reference::Inputs;
use limbeck_sdk::abi;
use serde_json::Value;
use std::collections::BTreeMap;

fn terms(case: &Value, inputs: &Inputs, options: Options) -> Result<Outcome, Failure> {
    let mut sum = Outcome { value: 0.0, metrics: Vec::new(), grads: BTreeMap::new() };
    for term in case["params"]["terms"].as_array().expect("terms") {
        let mut bound = inputs.clone();
        let rebound: BTreeMap<String, String> =
            serde_json::from_value(term["inputs"].clone()).unwrap_or_default();
        for (port, source) in &rebound {
            bound.insert(port.clone(), inputs[source].clone());
        }
        let weight = number(&term["weight"]);
        let loss = term["loss"].as_str().expect("a loss");
        let options = Options { grad_scale: weight, ..options };
        let outcome = run(loss, &term["params"], &bound, options)?;
        sum.value += weight * outcome.value;
        for (port, grad) in outcome.grads {
            let name = rebound.get(&port).cloned().unwrap_or(port);
            let into = sum.grads.entry(name).or_insert_with(|| vec![0.0; grad.len()]);
            into.iter_mut().zip(&grad).for_each(|(into, g)| *into += g);
        }
    }
    Ok(sum)
}

fn check(file: &Value, case: &Value, dtype: abi::DLDataType) -> Result<(), String> {
    let inputs = inputs(case);
    let options = Options::of(dtype, number(&case["normalizer"]));
    let loss = case["loss"].as_str().expect("a loss");
    let found = match loss {
        "terms" => terms(case, &inputs, options),
        _ => run(loss, &case["params"], &inputs, options),
    };
    let expect = &case["expect"];
    let outcome = match (found, expect["error"].as_str()) {
        (Err(failure), Some(error)) => {
            let wanted = match error {
                "config" => abi::STATUS_INVALID_CONFIG,
                "shape" => abi::STATUS_INVALID_ARGUMENT,
                _ => abi::STATUS_BAD_DATA,
            };
            let pointer = error != "config" || failure.notes.contains_key("pointer");
            let same = failure.status == wanted && pointer && !failure.message.is_empty();
            return if same { Ok(()) } else { Err(format!("{failure:?}")) };
        }
        (Err(failure), None) => return Err(format!("{failure:?}")),
        (Ok(_), Some(error)) => return Err(format!("not refused, expected {error}")),
        (Ok(outcome), None) => outcome,
    };
    let single = dtype == abi::DLDataType::F32;
    let mut tolerance = Tolerance::of(file, case, if single { "f32" } else { "f64" });
    let value = number(&expect["value"]);
    // The value crosses the boundary as one f32, whatever the inputs.
    let of_value = Tolerance::of(file, case, "f32");
    of_value.check("value", outcome.value, value, value.abs())?;
    // So do parameters of the loss.
    if loss == "hidden_mse" || loss == "vid" {
        tolerance = of_value;
    }
    for (name, expected) in expect["grad"].as_object().into_iter().flatten() {
        let grad = outcome.grads.get(name).ok_or_else(|| format!("no gradient of {name}"))?;
        tolerance.check_grad(name, grad, expected)?;
    }
    Ok(())
}

fn check_all(dtype: abi::DLDataType) {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let cases = file["cases"].as_array().expect("cases");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            check(&file, case, dtype).err().map(|why| format!("{}: {why}", case["id"]))
        })
        .collect();
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n"));
    assert_eq!(cases.len(), 192);
}

#[test]
fn every_golden_case_holds_through_the_abi_in_f32() {
    check_all(abi::DLDataType::F32);
}

#[test]
fn every_golden_case_holds_through_the_abi_in_f64() {
    check_all(abi::DLDataType::F64);
}
