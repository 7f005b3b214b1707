//! What limbeck.h asks of a loss beside its numbers: counting, overwriting, accumulating, refusing.

use crate::golden::{TEXT, inputs};
use crate::host::{Instance, Options, Outcome, THREADS, module, run};
use crate::reference::{Array, Inputs};
use limbeck_sdk::abi;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const F32: abi::DLDataType = abi::DLDataType::F32;

fn random(shape: &[usize], seed: u64, scale: f64) -> Array {
    let len: usize = shape.iter().product();
    let wave = |k: usize| {
        let x = (k as f64 + 1.0) * (0.754_877_666 + seed as f64 * 0.1);
        scale * (x * 12.9898 + seed as f64).sin()
    };
    Array { shape: shape.to_vec(), data: (0..len).map(wave).collect() }
}

fn ints(data: &[i64]) -> Array {
    Array { shape: vec![data.len()], data: data.iter().map(|x| *x as f64).collect() }
}

/// Inputs by name and shape.
type Shapes = &'static [(&'static str, &'static [usize])];

/// Row-wise logit losses.
const ROWWISE: [&str; 16] = [
    "fkl",
    "rkl",
    "gjsd",
    "skl",
    "srkl",
    "tvd",
    "alpha_div",
    "renyi",
    "soft_ce",
    "sym_kl",
    "dkd",
    "logit_mse",
    "ce",
    "logit_std",
    "bce_kd",
    "uld",
];

fn logits(rows: usize, width: usize) -> Inputs {
    let labels: Vec<i64> =
        (0..rows).map(|n| if n % 3 == 2 { -100 } else { (n * 7 % width) as i64 }).collect();
    Inputs::from([
        ("student.logits".into(), random(&[rows, width], 1, 3.0)),
        ("teacher.logits".into(), random(&[rows, width], 2, 3.0)),
        ("labels".into(), ints(&labels)),
    ])
}

fn compute(loss: &str, inputs: &Inputs, options: Options) -> Outcome {
    run(loss, &json!({}), inputs, options).unwrap_or_else(|failure| panic!("{loss}: {failure:?}"))
}

#[test]
fn all_42_ids_are_offered_with_closed_schemas() {
    let mut ids = Vec::new();
    for index in 0.. {
        // SAFETY: [any]; static plugin memory.
        let Some(descriptor) = (unsafe { (module().descriptor)(index).as_ref() }) else { break };
        // SAFETY: as above.
        let (id, schema) =
            unsafe { (descriptor.id.text().expect("UTF-8"), descriptor.config_schema.text()) };
        let schema: Value = serde_json::from_str(schema.expect("UTF-8")).expect("JSON");
        assert_eq!(schema["additionalProperties"], false, "{id}");
        assert_eq!(descriptor.kind, abi::KIND_LOSS);
        ids.push(id.to_owned());
        let defaults: serde_json::Map<String, Value> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, property)| Some((key.clone(), property.get("default")?.clone())))
            .collect();
        if id != "limbeck.crd" {
            let created = Instance::create(id, &Value::Object(defaults).to_string());
            assert!(created.is_ok(), "{id}: the schema's own defaults are refused");
        }
    }
    assert_eq!(ids.len(), 42);
}

#[test]
fn temperature_of_zero_is_refused_at_its_pointer() {
    let Err(failure) = Instance::create("limbeck.kl", r#"{"temperature": 0}"#) else {
        panic!("accepted")
    };
    assert_eq!(failure.status, abi::STATUS_INVALID_CONFIG);
    assert_eq!(failure.notes.get("pointer").map(String::as_str), Some("/temperature"));
    assert!(failure.message.contains("found 0"), "{}", failure.message);
}

#[test]
fn no_rows_give_zero() {
    for loss in ROWWISE {
        let outcome = compute(loss, &logits(0, 5), Options::of(F32, 1.0));
        assert_eq!((outcome.value, outcome.metrics), (0.0, vec![0.0, 0.0]), "{loss}");
    }
}

#[test]
fn a_call_without_counted_rows_writes_zeros_over_poison() {
    for loss in ROWWISE {
        let mut inputs = logits(4, 5);
        inputs.insert("row_mask".into(), ints(&[0; 4]));
        let outcome = compute(loss, &inputs, Options::of(F32, 1.0));
        assert_eq!(outcome.value, 0.0, "{loss}");
        assert!(outcome.grads["student.logits"].iter().all(|g| *g == 0.0), "{loss}");
    }
}

#[test]
fn nan_in_a_row_that_does_not_count_reaches_nothing() {
    for loss in ROWWISE {
        let clean = logits(4, 5);
        let mut dirty = clean.clone();
        for port in ["student.logits", "teacher.logits"] {
            dirty.get_mut(port).expect("the port").row_mut(2).fill(f64::NAN);
        }
        let options = Options::of(F32, 3.0);
        let (clean, dirty) = (compute(loss, &clean, options), compute(loss, &dirty, options));
        assert_eq!(clean, dirty, "{loss}");
        assert_eq!(clean.grads["student.logits"][10..15], [0.0; 5], "{loss}");
    }
}

#[test]
fn accumulating_adds_to_counted_rows_and_touches_no_other() {
    for loss in ROWWISE {
        let inputs = logits(4, 5);
        let written = compute(loss, &inputs, Options::of(F32, 3.0));
        let options = Options { accumulate: Some(1.0), ..Options::of(F32, 3.0) };
        let added = compute(loss, &inputs, options);
        for (added, written) in
            added.grads["student.logits"].iter().zip(&written.grads["student.logits"])
        {
            assert!((added - (1.0 + written)).abs() <= 2e-7 * (1.0 + written.abs()), "{loss}");
        }
        assert_eq!(added.grads["student.logits"][10..15], [1.0; 5], "{loss}");
    }
}

#[test]
fn writing_over_the_input_gives_the_same_bits() {
    for loss in ROWWISE {
        let inputs = logits(4, 5);
        let apart = compute(loss, &inputs, Options::of(F32, 3.0));
        let over = compute(loss, &inputs, Options { alias: true, ..Options::of(F32, 3.0) });
        assert_eq!(apart, over, "{loss}");
    }
}

#[test]
fn the_gradient_scales_and_the_value_does_not() {
    for loss in ROWWISE {
        let inputs = logits(4, 5);
        let once = compute(loss, &inputs, Options::of(F32, 3.0));
        let twice = compute(loss, &inputs, Options { grad_scale: 2.0, ..Options::of(F32, 3.0) });
        assert_eq!(once.value, twice.value, "{loss}");
        let doubled: Vec<f64> = once.grads["student.logits"].iter().map(|g| 2.0 * g).collect();
        assert_eq!(doubled, twice.grads["student.logits"], "{loss}");
    }
}

#[test]
fn unwanted_gradients_and_a_missing_workspace_change_nothing() {
    for loss in ROWWISE {
        let inputs = logits(4, 5);
        let full = compute(loss, &inputs, Options::of(F32, 3.0));
        let bare = Options { grads: false, workspace: false, ..Options::of(F32, 3.0) };
        let bare = compute(loss, &inputs, bare);
        assert_eq!((full.value, &full.metrics), (bare.value, &bare.metrics), "{loss}");
        assert!(bare.grads.is_empty(), "{loss}");
    }
}

#[test]
fn rows_permute_and_micro_batches_add_up() {
    for loss in ROWWISE {
        let inputs = logits(6, 5);
        let whole = compute(loss, &inputs, Options::of(F32, 4.0));
        let part = |rows: std::ops::Range<usize>| {
            let slice = |array: &Array| {
                let width = array.stride();
                let mut shape = array.shape.clone();
                shape[0] = rows.len();
                Array { shape, data: array.data[rows.start * width..rows.end * width].to_vec() }
            };
            let inputs = inputs.iter().map(|(name, a)| (name.clone(), slice(a))).collect();
            compute(loss, &inputs, Options::of(F32, 4.0))
        };
        let (a, b) = (part(0..2), part(2..6));
        assert!((a.value + b.value - whole.value).abs() <= 1e-6 * whole.value.abs(), "{loss}");
        let joined =
            [a.grads["student.logits"].clone(), b.grads["student.logits"].clone()].concat();
        assert_eq!(joined, whole.grads["student.logits"], "{loss}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for loss in ["fkl", "gjsd", "tvd", "ce", "logit_mse"] {
        let inputs = logits(301, 1000);
        let one = compute(loss, &inputs, Options::of(F32, 200.0));
        for threads in [2, 3, 7] {
            THREADS.store(threads, Ordering::Relaxed);
            let many = compute(loss, &inputs, Options::of(F32, 200.0));
            THREADS.store(1, Ordering::Relaxed);
            assert_eq!(one, many, "{loss} {threads}");
        }
    }
    let inputs = Inputs::from([
        ("student.hidden".into(), random(&[301, 40], 3, 1.0)),
        ("teacher.hidden".into(), random(&[301, 24], 4, 1.0)),
        ("proj.weight".into(), random(&[24, 40], 5, 0.3)),
        ("proj.bias".into(), random(&[24], 6, 0.3)),
    ]);
    let params = json!({"projector": "linear"});
    let call = || run("hidden_mse", &params, &inputs, Options::of(F32, 301.0)).expect("computes");
    let one = call();
    THREADS.store(3, Ordering::Relaxed);
    let many = call();
    THREADS.store(1, Ordering::Relaxed);
    assert_eq!(one, many);
}

#[test]
fn extremes_stay_finite() {
    let width = 7;
    let rows: [Vec<f64>; 5] = [
        vec![1e4, -1e4, 0.0, 1e4, -1e4, 5.0, 1.0],
        vec![0.0; 7],
        vec![1e4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        vec![-1e4, -1e4, -1e4, -1e4, -1e4, -1e4, 1e4],
        vec![3e4, 3e4, 3e4, -3e4, 0.0, 1e-30, -1e-30],
    ];
    for loss in ROWWISE {
        for other in 0..rows.len() {
            let student = rows.concat();
            let teacher: Vec<f64> =
                (0..rows.len()).flat_map(|n| rows[(n + other) % 5].clone()).collect();
            let array = |data: Vec<f64>| Array { shape: vec![5, width], data };
            let inputs = Inputs::from([
                ("student.logits".into(), array(student)),
                ("teacher.logits".into(), array(teacher)),
                ("labels".into(), ints(&[0, 1, 2, 6, 4])),
            ]);
            let outcome = compute(loss, &inputs, Options::of(F32, 5.0));
            assert!(outcome.value.is_finite(), "{loss}");
            assert!(outcome.grads["student.logits"].iter().all(|g| g.is_finite()), "{loss}");
        }
    }
}

#[test]
fn a_single_column_has_no_divergence() {
    for loss in ["fkl", "rkl", "gjsd", "skl", "srkl", "tvd", "ce", "sym_kl", "uld"] {
        let outcome = compute(loss, &logits(3, 1), Options::of(F32, 2.0));
        assert_eq!(outcome.value, 0.0, "{loss}");
        assert!(outcome.grads["student.logits"].iter().all(|g| *g == 0.0), "{loss}");
    }
}

#[test]
fn bad_labels_are_bad_data_and_name_their_row() {
    for (loss, label) in [("ce", 5), ("ce", -5), ("fkl", 5), ("dkd", -1), ("uld", 9)] {
        let mut inputs = logits(3, 5);
        inputs.insert("labels".into(), ints(&[0, label, -100]));
        let failure = run(loss, &json!({}), &inputs, Options::of(F32, 2.0)).expect_err("refused");
        assert_eq!(failure.status, abi::STATUS_BAD_DATA, "{loss}");
        assert!(failure.message.contains(&label.to_string()), "{}", failure.message);
    }
    // A row that does not count may hold anything.
    let mut inputs = logits(3, 5);
    inputs.insert("labels".into(), ints(&[0, 99, -100]));
    inputs.insert("row_mask".into(), ints(&[1, 0, 1]));
    assert!(run("ce", &json!({}), &inputs, Options::of(F32, 1.0)).is_ok());
}

#[test]
fn shapes_that_do_not_agree_are_invalid_arguments() {
    let cases: [(&str, Value, Shapes); 6] = [
        ("fkl", json!({}), &[("student.logits", &[3, 5]), ("teacher.logits", &[4, 5])]),
        ("fkl", json!({}), &[("student.logits", &[3, 5]), ("teacher.logits", &[3, 6])]),
        ("lwf", json!({}), &[("student.logits", &[3, 5]), ("teacher.logits", &[3, 6])]),
        ("cosine", json!({}), &[("student.hidden", &[3, 5]), ("teacher.hidden", &[3, 6])]),
        ("mmd", json!({}), &[("student.hidden", &[3, 5])]),
        (
            "sp",
            json!({}),
            &[("student.hidden", &[3, 5]), ("teacher.hidden", &[3, 5]), ("row_weights", &[3])],
        ),
    ];
    for (loss, params, shapes) in cases {
        let inputs = shapes
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), random(shape, 1, 1.0)))
            .collect();
        let failure = run(loss, &params, &inputs, Options::of(F32, 3.0)).expect_err("refused");
        assert_eq!(failure.status, abi::STATUS_INVALID_ARGUMENT, "{loss}: {}", failure.message);
    }
}

#[test]
fn pairs_of_layers_are_averaged_and_shared_layers_add_up() {
    let inputs = Inputs::from([
        ("student.hidden.1".into(), random(&[4, 6], 1, 1.0)),
        ("teacher.hidden.2".into(), random(&[4, 6], 2, 1.0)),
        ("teacher.hidden.5".into(), random(&[4, 6], 3, 1.0)),
    ]);
    let plain = |teacher: &str| {
        let inputs = Inputs::from([
            ("student.hidden".into(), inputs["student.hidden.1"].clone()),
            ("teacher.hidden".into(), inputs[teacher].clone()),
        ]);
        run("hidden_mse", &json!({}), &inputs, Options::of(F32, 4.0)).expect("computes")
    };
    let (a, b) = (plain("teacher.hidden.2"), plain("teacher.hidden.5"));
    for loss in ["hidden_mse", "pkd"] {
        let params = json!({"layers": [[1, 2], [1, 5]]});
        let both = run(loss, &params, &inputs, Options::of(F32, 4.0)).expect("computes");
        if loss == "pkd" {
            continue;
        }
        assert!((both.value - (a.value + b.value) / 2.0).abs() <= 1e-6);
        let mean = a.grads["student.hidden"].iter().zip(&b.grads["student.hidden"]);
        for (found, (a, b)) in both.grads["student.hidden.1"].iter().zip(mean) {
            assert!((found - (a + b) / 2.0).abs() <= 1e-6);
        }
    }
}

#[test]
fn dead_and_infinite_rows_are_counted() {
    let mut inputs = logits(6, 5);
    inputs.get_mut("teacher.logits").expect("the port").row_mut(0).fill(f64::NEG_INFINITY);
    inputs.get_mut("student.logits").expect("the port").row_mut(1)[3] = f64::NEG_INFINITY;
    let outcome = compute("fkl", &inputs, Options::of(F32, 4.0));
    assert_eq!((outcome.value, outcome.metrics), (f64::INFINITY, vec![0.25, 0.25]));
    let params = json!({"non_finite": "zero_and_count"});
    let dropped = run("fkl", &params, &inputs, Options::of(F32, 4.0)).expect("computes");
    assert!(dropped.value.is_finite());
    assert_eq!(dropped.metrics, [0.25, 0.25]);
    assert!(dropped.grads["student.logits"][..10].iter().all(|g| *g == 0.0));
}

#[test]
fn the_same_call_twice_gives_the_same_bits() {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let case = &file["cases"][0];
    let inputs = inputs(case);
    let instance =
        Instance::create("limbeck.kl", "{}").unwrap_or_else(|failure| panic!("{failure:?}"));
    let first = instance.call(&inputs, Options::of(F32, 4.0));
    assert_eq!(first, instance.call(&inputs, Options::of(F32, 4.0)));
}
