//! Wide, odd, misaligned and mixed rows against the f64 oracle on the same rounded inputs.
//!
//! Bounds: 5e-6 of the gradient's norm, one rounding of every probability, and what 16 bits cost.

use crate::buffer::Buffer;
use crate::emulator::{AMPERE, HOPPER, on, shuffle};
use crate::host::{Options, Outcome, run};
use crate::reference::{Array, Inputs, evaluate};
use limbeck_losses::settings::parse;
use limbeck_sdk::abi;
use serde_json::{Value, json};

/// Dense losses with parameters that use all their arithmetic.
fn dense() -> Vec<(&'static str, Value)> {
    vec![
        ("fkl", json!({"temperature": 2.0})),
        ("soft_ce", json!({"temperature": 2.0})),
        ("rkl", json!({"temperature": 2.0})),
        ("sym_kl", json!({"temperature": 2.0, "lambda": 0.3})),
        ("tvd", json!({"temperature": 2.0})),
        ("gjsd", json!({"temperature": 2.0, "beta": 0.3})),
        ("skl", json!({"temperature": 2.0, "alpha": 0.1})),
        ("srkl", json!({"temperature": 2.0, "alpha": 0.1})),
        ("srkl", json!({"temperature": 2.0, "alpha": 0.2, "detach_mixture": true})),
        ("logit_mse", json!({})),
    ]
}

/// Three rows of logits with a spread as models have, the second one not counted.
pub fn logits(width: usize) -> Inputs {
    let mut state = 7u64 + width as u64;
    let mut noise = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let s: Vec<f64> = (0..3 * width).map(|_| 9.0 * noise() + 3.0).collect();
    let t: Vec<f64> = s.iter().map(|s| s + 2.0 * noise()).collect();
    let of = |shape: Vec<usize>, data| Array { shape, data };
    let mut inputs = Inputs::new();
    inputs.insert("student.logits".into(), of(vec![3, width], s));
    inputs.insert("teacher.logits".into(), of(vec![3, width], t));
    inputs.insert("row_mask".into(), of(vec![3], vec![1.0, 0.0, 1.0]));
    inputs.insert("row_weights".into(), of(vec![3], vec![0.5, 1.0, -1.5]));
    inputs
}

pub fn rounded(inputs: &Inputs, dtype: abi::DLDataType) -> Inputs {
    let mut rounded = inputs.clone();
    let float = |name: &str| {
        ["logits", "hidden", "head", "values", "tail"].iter().any(|f| name.contains(f))
    };
    for (name, array) in rounded.iter_mut().filter(|(name, _)| float(name)) {
        array.data = Buffer::new(name, dtype, array, (0, 0)).read();
    }
    rounded
}

/// What a 16-bit gradient may cost: half a unit in the last place of every entry; the usual error where there are
/// many, with that of ∂ℓ/∂q between two passes.
fn narrow(dtype: abi::DLDataType, entries: usize) -> f64 {
    match (dtype, entries < 1000) {
        (abi::DLDataType::BF16, true) => 1.0 / 256.0,
        (abi::DLDataType::F16, true) => 1.0 / 2048.0,
        (abi::DLDataType::BF16, false) => 2.5e-3,
        (abi::DLDataType::F16, false) => 4e-4,
        _ => 0.0,
    }
}

/// Four units in the last place of every probability of both sides, as the gradient sees them: what is left of a
/// gradient that is a difference of nearly equal distributions.
fn rounding(params: &Value, inputs: &Inputs, normalizer: f64) -> f64 {
    let temperature = params["temperature"].as_f64().unwrap_or(1.0);
    let squares = |array: &Array| -> f64 {
        let row = |n: usize| {
            let row = array.row(n);
            let most = row.iter().fold(f64::NEG_INFINITY, |most, z| most.max(*z));
            let powers = row.iter().map(|z| ((z - most) / temperature).exp());
            let sum: f64 = powers.clone().sum();
            if sum > 0.0 { powers.map(|e| (e / sum) * (e / sum)).sum() } else { 0.0 }
        };
        (0..array.shape[0]).map(row).sum()
    };
    let sides =
        ["student.logits", "teacher.logits"].map(|name| inputs.get(name).map_or(0.0, squares));
    let weight = 1.5 / normalizer;
    4.0 * f64::from(f32::EPSILON)
        * temperature.max(1.0 / temperature)
        * weight
        * (sides[0] + sides[1]).sqrt()
}

/// Holds an outcome to the oracle's.
pub fn compare(loss: &str, params: &Value, inputs: &Inputs, options: Options, found: &Outcome) {
    let spec = parse(loss, params).expect("settings");
    let exact = evaluate(&spec, inputs, options.normalizer).expect("computes");
    let what = format!("{loss} {params} {:?} -> {:?}", options.dtype, options.grad_dtype);
    // F multiplies the rounding of logarithms too.
    let factor = params["temperature"].as_f64().map_or(1.0, |t| t * t);
    let bound = 1e-5 * exact.value.abs() + 2e-6 + 2e-8 * factor;
    assert!((found.value - exact.value).abs() <= bound, "{what}: {} {}", found.value, exact.value);
    for (name, exact) in &exact.grads {
        let norm = exact.data.iter().map(|g| g * g).sum::<f64>().sqrt();
        let error = exact.data.iter().zip(&found.grads[name]);
        let error = error.map(|(e, f)| (e - f) * (e - f)).sum::<f64>().sqrt();
        // f16 has no relative precision below 2^-14: half of its smallest step an element.
        let subnormal = options.grad_dtype == abi::DLDataType::F16;
        let floor = if subnormal { 3e-8 * (exact.data.len() as f64).sqrt() } else { 0.0 };
        let floor = floor + rounding(params, inputs, options.normalizer);
        let bound = (5e-6 + narrow(options.grad_dtype, exact.data.len())) * norm + floor;
        assert!(error <= bound, "{what} {name}: {error:e}, at most {bound:e} of {norm:e}");
    }
}

fn check(loss: &str, params: &Value, width: usize, options: Options) {
    let inputs = rounded(&logits(width), options.dtype);
    let found = run(loss, params, &inputs, options)
        .unwrap_or_else(|failure| panic!("{loss} {width} {options:?}: {failure:?}"));
    compare(loss, params, &inputs, options, &found);
}

const F32: abi::DLDataType = abi::DLDataType::F32;
const BF16: abi::DLDataType = abi::DLDataType::BF16;
const F16: abi::DLDataType = abi::DLDataType::F16;

#[test]
fn dense_losses_hold_around_every_boundary_of_the_plan() {
    // A warp's, a block's and a cluster's last and first width; odd and even; a slice that is empty but for one.
    for (width, dtype) in [
        (1, F32),
        (2, BF16),
        (7, F32),
        (31, BF16),
        (1000, BF16),
        (1024, F32),
        (1025, F32),
        (1032, BF16),
        (9504, F32),
        (9512, F32),
        (19_008, BF16),
        (19_016, BF16),
        (19_024, F16),
        (38_024, BF16),
    ] {
        for gpu in [HOPPER, AMPERE] {
            on(gpu);
            for (loss, params) in dense() {
                let wide = width > 4000;
                if wide && gpu == AMPERE && !["fkl", "gjsd"].contains(&loss) {
                    continue;
                }
                check(loss, &params, width, Options::of(dtype, 2.0));
            }
        }
    }
}

#[test]
fn a_row_takes_every_layout_and_gradient_type() {
    on(HOPPER);
    for (loss, params) in dense() {
        for dtype in [F32, BF16, F16] {
            for (grad_dtype, layout) in
                [(F32, (0, 0)), (BF16, (3, 1)), (F16, (8, 0)), (F32, (0, 5))]
            {
                let options = Options { grad_dtype, layout, ..Options::of(dtype, 2.0) };
                check(loss, &params, 1160, options);
            }
        }
    }
}

#[test]
fn the_gradient_over_the_logits_has_the_bits_of_the_one_beside_them() {
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        for (loss, params) in dense() {
            for layout in [(0, 0), (1, 3)] {
                let inputs = rounded(&logits(1288), BF16);
                let apart = Options { layout, ..Options::of(BF16, 2.0) };
                let over = Options { alias: true, ..apart };
                assert_eq!(run(loss, &params, &inputs, apart), run(loss, &params, &inputs, over));
            }
        }
    }
}

#[test]
fn adding_to_a_gradient_adds_and_leaves_rows_that_do_not_count_alone() {
    on(HOPPER);
    for (loss, params) in dense() {
        let inputs = rounded(&logits(1096), F32);
        let plain = run(loss, &params, &inputs, Options::of(F32, 2.0)).expect("computes");
        let options = Options { accumulate: Some(1.0), ..Options::of(F32, 2.0) };
        let added = run(loss, &params, &inputs, options).expect("computes");
        let grads = plain.grads["student.logits"].iter().zip(&added.grads["student.logits"]);
        for (v, (plain, added)) in grads.enumerate() {
            assert_eq!(*added as f32, 1.0 + *plain as f32, "{loss} {v}");
        }
    }
}

#[test]
fn bits_depend_neither_on_the_order_of_threads_nor_on_the_batch() {
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        for (loss, params) in dense() {
            let inputs = rounded(&logits(2056), BF16);
            let options = Options::of(BF16, 2.0);
            let forward = run(loss, &params, &inputs, options).expect("computes");
            shuffle(true);
            let backward = run(loss, &params, &inputs, options).expect("computes");
            shuffle(false);
            assert_eq!(forward, backward, "{loss}");
            let mut last = inputs.clone();
            for (name, array) in &mut last {
                let row = array.data.len() / 3;
                array.data.drain(..2 * row);
                array.shape[0] = 1;
                assert_eq!(array.data.len(), row, "{name}");
            }
            let alone = run(loss, &params, &last, options).expect("computes");
            assert_eq!(
                alone.grads["student.logits"][..],
                forward.grads["student.logits"][2 * 2056..]
            );
        }
    }
}

#[test]
fn without_a_gradient_the_value_is_the_same() {
    on(HOPPER);
    for (loss, params) in dense() {
        let inputs = rounded(&logits(1100), F32);
        let with = run(loss, &params, &inputs, Options::of(F32, 2.0)).expect("computes");
        let options = Options { grads: false, ..Options::of(F32, 2.0) };
        let without = run(loss, &params, &inputs, options).expect("computes");
        assert_eq!(with.value, without.value, "{loss}");
    }
}

#[test]
fn sparse_teachers_labels_and_hidden_states_hold_on_wide_rows() {
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        for (dtype, grad_dtype, layout) in
            [(F32, F32, (0, 0)), (BF16, BF16, (0, 0)), (F16, F32, (5, 3)), (BF16, F32, (1, 0))]
        {
            let options = Options { grad_dtype, layout, ..Options::of(dtype, 2.0) };
            let inputs = rounded(&sparse(5003), dtype);
            for loss in ["topk_tail", "topk_teacher_renorm", "topk_both_renorm"] {
                let params = json!({"temperature": 2.0});
                let found = run(loss, &params, &inputs, options).expect("computes");
                compare(loss, &params, &inputs, options, &found);
            }
            let mut labelled = rounded(&logits(5003), dtype);
            labelled.remove("teacher.logits");
            let labels = Array { shape: vec![3], data: vec![5002.0, -100.0, 17.0] };
            labelled.insert("labels".into(), labels);
            for params in [json!({}), json!({"label_smoothing": 0.1})] {
                let found = run("ce", &params, &labelled, options).expect("computes");
                compare("ce", &params, &labelled, options, &found);
            }
            // Two columns of three stay, those of the labels among them.
            let kept = (0..3 * 5003).map(|k| f64::from(k % 5003 % 3 != 0));
            let own = Array { shape: vec![3, 5003], data: kept.collect() };
            labelled.insert("row_classes".into(), own);
            let params = json!({"label_smoothing": 0.1});
            let found = run("ce", &params, &labelled, options).expect("computes");
            compare("ce", &params, &labelled, options, &found);
            let mut hidden = Inputs::new();
            for (name, array) in rounded(&logits(1030), dtype) {
                hidden.insert(name.replace("logits", "hidden"), array);
            }
            for loss in ["hidden_mse", "cosine"] {
                let found = run(loss, &json!({}), &hidden, options).expect("computes");
                compare(loss, &json!({}), &hidden, options, &found);
            }
        }
    }
}

/// A top-4 teacher with an absent entry.
pub fn sparse(width: usize) -> Inputs {
    let mut inputs = logits(width);
    inputs.remove("teacher.logits");
    let last = width as f64 - 1.0;
    let indices = vec![0.0, 7.0, last, 33.0, 1.0, 2.0, 3.0, 4.0, 9.0, -1.0, last, 64.0];
    let values = [0.3f64, 0.2, 0.1, 0.05].map(f64::ln);
    let of = |shape: Vec<usize>, data| Array { shape, data };
    inputs.insert("teacher.topk.indices".into(), of(vec![3, 4], indices));
    inputs.insert("teacher.topk.values".into(), of(vec![3, 4], values.repeat(3)));
    inputs
}
