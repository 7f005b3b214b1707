//! The committed cases, in f32, on both kinds of GPU.

use crate::emulator::{AMPERE, HOPPER, launches, on};
use crate::golden::{TEXT, Tolerance, inputs, number};
use crate::host::{Failure, Options, Outcome, plugin_id, run};
use crate::reference::Inputs;
use limbeck_losses::cuda::ON_GPU;
use limbeck_sdk::abi;
use serde_json::Value;
use std::collections::BTreeMap;

/// Whether a case runs on a GPU: all its losses have kernels and it needs no projector.
fn has_kernel(loss: &str, params: &Value) -> bool {
    ON_GPU.contains(&plugin_id(loss).as_str()) && params["projector"] != "linear"
}

fn terms(params: &Value, inputs: &Inputs, options: Options) -> Result<Option<Outcome>, Failure> {
    let mut sum = Outcome { value: 0.0, metrics: Vec::new(), grads: BTreeMap::new() };
    for term in params["terms"].as_array().expect("terms") {
        let loss = term["loss"].as_str().expect("a loss");
        if !has_kernel(loss, &term["params"]) {
            return Ok(None);
        }
        let mut bound = inputs.clone();
        let rebound: BTreeMap<String, String> =
            serde_json::from_value(term["inputs"].clone()).unwrap_or_default();
        for (port, source) in &rebound {
            bound.insert(port.clone(), inputs[source].clone());
        }
        let weight = number(&term["weight"]);
        let options = Options { grad_scale: weight, ..options };
        let outcome = run(loss, &term["params"], &bound, options)?;
        sum.value += weight * outcome.value;
        for (port, grad) in outcome.grads {
            let name = rebound.get(&port).cloned().unwrap_or(port);
            let into = sum.grads.entry(name).or_insert_with(|| vec![0.0; grad.len()]);
            into.iter_mut().zip(&grad).for_each(|(into, g)| *into += g);
        }
    }
    Ok(Some(sum))
}

/// What became of a case.
#[derive(PartialEq)]
enum Ran {
    Yes,
    Refused,
}

fn check(file: &Value, case: &Value) -> Result<Ran, String> {
    let inputs = inputs(case);
    let options = Options::of(abi::DLDataType::F32, number(&case["normalizer"]));
    let (loss, params) = (case["loss"].as_str().expect("a loss"), &case["params"]);
    let found = match loss {
        "terms" => terms(params, &inputs, options),
        _ => run(loss, params, &inputs, options).map(Some),
    };
    let expect = &case["expect"];
    let expected = expect["error"].as_str();
    match found {
        Err(failure) => {
            let wanted = match expected {
                Some("config") => abi::STATUS_INVALID_CONFIG,
                _ if !has_kernel(loss, params) => abi::STATUS_UNSUPPORTED,
                Some("shape") => abi::STATUS_INVALID_ARGUMENT,
                _ => abi::STATUS_OK,
            };
            let same = failure.status == wanted && !failure.message.is_empty();
            if same { Ok(Ran::Refused) } else { Err(format!("{failure:?}")) }
        }
        Ok(None) => Ok(Ran::Refused),
        // Data on a GPU is not looked at before: a bad row shows in the value.
        Ok(Some(outcome)) if expected == Some("data") => {
            if outcome.value.is_nan() {
                Ok(Ran::Yes)
            } else {
                Err(format!("{outcome:?}"))
            }
        }
        Ok(Some(_)) if expected.is_some() => Err(format!("not refused, expected {expected:?}")),
        Ok(Some(outcome)) => {
            let tolerance = Tolerance::of(file, case, "f32");
            let value = number(&expect["value"]);
            tolerance.check("value", outcome.value, value, value.abs())?;
            for (name, expected) in expect["grad"].as_object().into_iter().flatten() {
                let grad =
                    outcome.grads.get(name).ok_or_else(|| format!("no gradient of {name}"))?;
                tolerance.check_grad(name, grad, expected)?;
            }
            Ok(Ran::Yes)
        }
    }
}

fn check_all(gpu: i32) {
    on(gpu);
    let before = launches();
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let cases = file["cases"].as_array().expect("cases");
    let (mut ran, mut failures) = (0, Vec::new());
    for case in cases {
        match check(&file, case) {
            Ok(Ran::Yes) => ran += 1,
            Ok(Ran::Refused) => {}
            Err(why) => failures.push(format!("{}: {why}", case["id"])),
        }
    }
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n"));
    assert_eq!(cases.len(), 192);
    assert_eq!(ran, RAN);
    assert!(launches() - before >= 2 * ran, "each call is a launch for rows and one for sums");
}

/// Cases of the losses with kernels.
const RAN: i64 = 106;

#[test]
fn every_golden_case_of_a_loss_with_kernels_holds_on_sm_90() {
    check_all(HOPPER);
}

#[test]
fn every_golden_case_of_a_loss_with_kernels_holds_on_sm_80() {
    check_all(AMPERE);
}
