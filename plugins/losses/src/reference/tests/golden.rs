//! The oracle against the committed numbers, in f64.

use crate::golden::{TEXT, Tolerance, generate, inputs, number};
use crate::reference::{Array, Inputs, Outcome, Refusal, evaluate};
use crate::settings::parse;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[test]
fn the_input_generators_match() {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let checks = file["generator_check"].as_array().expect("checks");
    assert_eq!(checks.len(), 3);
    for check in checks {
        let array = generate(&check["input"], &Inputs::new());
        let first = check["first"].as_array().expect("first");
        for (found, expected) in array.data.iter().zip(first) {
            assert!((found - number(expected)).abs() <= 1e-15 * 3.0, "{found} {expected}");
        }
        let last = array.data.last().expect("entries");
        assert!((last - number(&check["last"])).abs() <= 1e-14);
    }
}

enum Failure {
    Config,
    Shape,
    Data,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Shape(_) => Self::Shape,
            Refusal::Data(_) => Self::Data,
        }
    }
}

fn run(loss: &str, params: &Value, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Failure> {
    let spec = parse(loss, params).map_err(|_| Failure::Config)?;
    Ok(evaluate(&spec, inputs, normalizer)?)
}

/// A weighted sum of losses, gradients added by the input they belong to.
fn run_terms(case: &Value, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Failure> {
    let mut sum = Outcome::default();
    for term in case["params"]["terms"].as_array().expect("terms") {
        let mut bound = inputs.clone();
        let rebound: BTreeMap<String, String> =
            serde_json::from_value(term["inputs"].clone()).unwrap_or_default();
        for (port, source) in &rebound {
            bound.insert(port.clone(), inputs[source].clone());
        }
        let loss = term["loss"].as_str().expect("a loss");
        let outcome = run(loss, &term["params"], &bound, normalizer)?;
        let weight = number(&term["weight"]);
        sum.value += weight * outcome.value;
        for (port, grad) in outcome.grads {
            let name = rebound.get(&port).cloned().unwrap_or(port);
            let zeros = Array::zeros_like(&grad);
            let into = sum.grads.entry(name).or_insert(zeros);
            into.data.iter_mut().zip(&grad.data).for_each(|(into, g)| *into += weight * g);
        }
    }
    Ok(sum)
}

fn check(file: &Value, case: &Value) -> Result<(), String> {
    let inputs = inputs(case);
    let (loss, normalizer) = (case["loss"].as_str().expect("a loss"), number(&case["normalizer"]));
    let found = match loss {
        "terms" => run_terms(case, &inputs, normalizer),
        _ => run(loss, &case["params"], &inputs, normalizer),
    };
    let expect = &case["expect"];
    let outcome = match (found, expect["error"].as_str()) {
        (Err(Failure::Config), Some("config"))
        | (Err(Failure::Shape), Some("shape"))
        | (Err(Failure::Data), Some("data")) => return Ok(()),
        (Ok(outcome), None) => outcome,
        (Ok(_), Some(error)) => return Err(format!("not refused, expected {error}")),
        (Err(_), _) => return Err("refused, or refused for another reason".into()),
    };
    let tolerance = Tolerance::of(file, case, "f64");
    let value = number(&expect["value"]);
    tolerance.check("value", outcome.value, value, value.abs())?;
    for (name, expected) in expect["grad"].as_object().into_iter().flatten() {
        let grad = outcome.grads.get(name).ok_or_else(|| format!("no gradient of {name}"))?;
        tolerance.check_grad(name, &grad.data, expected)?;
    }
    Ok(())
}

#[test]
fn every_golden_case_holds_in_f64() {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let cases = file["cases"].as_array().expect("cases");
    let mut ran: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in cases {
        *ran.entry(case["loss"].as_str().expect("a loss")).or_default() += 1;
        if let Err(why) = check(&file, case) {
            failures.push(format!("{}: {why}", case["id"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(
        json!(ran),
        json!(file["counts"]["by_loss"].as_object().map(|counts| {
            counts
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_u64().unwrap_or(0)))
                .collect::<BTreeMap<_, _>>()
        }))
    );
    assert_eq!(cases.len(), 192);
}
