//! 16-bit inputs, strides and mixed gradient types against the oracle on the same rounded inputs.

use crate::buffer::Buffer;
use crate::golden::{TEXT, inputs, number};
use crate::host::{DTYPES, Options, run};
use crate::reference::{Inputs, evaluate};
use limbeck_losses::settings::parse;
use limbeck_sdk::abi;
use serde_json::Value;

/// Finite cases that compute, one loss each.
fn cases() -> Vec<Value> {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let usable = |case: &&Value| {
        let expect = &case["expect"];
        let tags = case["tags"].as_array().map_or(0, Vec::len);
        case["loss"] != "terms" && expect["grad"].is_object() && tags == 0
    };
    file["cases"].as_array().expect("cases").iter().filter(usable).cloned().collect()
}

fn rounded(inputs: &Inputs, dtype: abi::DLDataType) -> Inputs {
    let float = |name: &str| {
        name.contains("logits")
            || name.contains("hidden")
            || name.contains("values")
            || name.contains("attention")
            || name.contains("map")
            || name.contains("tail")
            || name.ends_with(".value")
    };
    let mut rounded = inputs.clone();
    for (name, array) in rounded.iter_mut().filter(|(name, _)| float(name)) {
        array.data = Buffer::new(name, dtype, array, (0, 0)).read();
    }
    rounded
}

/// Unit in the last place over the value, halved: what one rounding may cost.
fn half_ulp(dtype: abi::DLDataType) -> f64 {
    match dtype {
        abi::DLDataType::BF16 => 1.0 / 256.0,
        abi::DLDataType::F16 => 1.0 / 2048.0,
        abi::DLDataType::F32 => 5e-6,
        _ => 1e-11,
    }
}

#[test]
fn every_loss_takes_every_float_type_and_gradient_type_at_any_stride() {
    let cases = cases();
    assert!(cases.len() > 40, "{}", cases.len());
    for case in &cases {
        let (loss, params) = (case["loss"].as_str().expect("a loss"), &case["params"]);
        let spec = parse(loss, params).expect("settings");
        for dtype in DTYPES {
            for (grad_dtype, layout) in
                [(dtype, (0, 0)), (abi::DLDataType::F32, (3, 1)), (abi::DLDataType::BF16, (0, 5))]
            {
                let inputs = rounded(&inputs(case), dtype);
                let normalizer = number(&case["normalizer"]);
                let options = Options { grad_dtype, layout, ..Options::of(dtype, normalizer) };
                let found = run(loss, params, &inputs, options)
                    .unwrap_or_else(|failure| panic!("{} {dtype:?}: {failure:?}", case["id"]));
                let exact = evaluate(&spec, &inputs, normalizer).expect("computes");
                let what = format!("{} {dtype:?} -> {grad_dtype:?}", case["id"]);
                let bound = 1e-5 * exact.value.abs() + 2e-7;
                assert!(
                    (found.value - exact.value).abs() <= bound,
                    "{what}: {} {}",
                    found.value,
                    exact.value
                );
                for (name, exact) in &exact.grads {
                    let norm = exact.data.iter().map(|g| g * g).sum::<f64>().sqrt();
                    let error = exact.data.iter().zip(&found.grads[name]);
                    let error = error.map(|(e, f)| (e - f) * (e - f)).sum::<f64>().sqrt();
                    let arithmetic = if dtype == abi::DLDataType::F64 { 1e-11 } else { 1e-5 };
                    let rounding = half_ulp(grad_dtype).max(arithmetic);
                    // Subnormals of f16 have no relative precision; parameters are f32.
                    let floor =
                        if grad_dtype == abi::DLDataType::F16 { 1e-6 } else { 1e-6 * norm + 1e-9 };
                    assert!(
                        error <= rounding * norm + floor,
                        "{what} {name}: {error:e} of {norm:e}"
                    );
                }
            }
        }
    }
}
