//! Students through the tables of the contract: values, gradients, frozen copies, start from a folder.

use std::collections::HashMap;
use std::path::Path;

use limbeck_sdk::candle::StudentAdapter;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::testing::{Flags, MockHost, MockInstance, MockParam};
use limbeck_sdk::{Column, DType};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::cnn::Cnn;
use crate::encoder::{Bert, DistilBert};
use crate::mlp::Mlp;

const TRAIN: Flags = Flags { train: true, param_grad: true, input_grad: false };
const ALL: Flags = Flags { train: false, param_grad: true, input_grad: true };
const EVAL: Flags = Flags { train: false, param_grad: false, input_grad: false };

fn mlp_settings() -> Value {
    json!({"inputs": 6, "hidden": [5, 4], "classes": 3, "activation": "tanh"})
}

fn cnn_settings() -> Value {
    json!({"image": [1, 4, 4], "channels": [2], "hidden": [4], "classes": 3, "activation": "tanh",
        "pool": "average", "batch_norm": true})
}

fn mlp(settings: &Value, key: [u64; 2]) -> MockInstance {
    let mut student =
        MockHost::new().student::<StudentAdapter<Mlp>>(&settings.to_string()).unwrap();
    student.activate(key).unwrap();
    student
}

fn cnn(settings: &Value, key: [u64; 2]) -> MockInstance {
    let mut student =
        MockHost::new().student::<StudentAdapter<Cnn>>(&settings.to_string()).unwrap();
    student.activate(key).unwrap();
    student
}

fn wave(name: &str, shape: &[i64]) -> Column {
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|i| (1.0 + 2.399_963 * i as f32).sin()).collect();
    Column::new(name, shape, &values).unwrap()
}

fn pixels(shape: &[i64]) -> Vec<Option<Column>> {
    vec![Some(wave("pixel_values", shape))]
}

fn values(column: &Column) -> Vec<f64> {
    column.slice::<f32>().unwrap().iter().map(|&x| f64::from(x)).collect()
}

/// Buffers for gradients, NaN inside, so that one that is left alone shows.
fn buffers(params: &[MockParam]) -> Vec<Option<(Column, bool)>> {
    params
        .iter()
        .map(|param| {
            let count = param.shape.iter().product::<i64>() as usize;
            let column = Column::new(param.name.clone(), &param.shape, &vec![f32::NAN; count]);
            Some((column.unwrap(), false))
        })
        .collect()
}

/// Σ ⟨output, its wave⟩ over the outputs of one forward pass.
fn objective(
    student: &MockInstance,
    inputs: &[Option<Column>],
    wanted: &[&str],
    flags: Flags,
) -> f64 {
    let (outputs, tape) = student.forward(inputs, wanted, flags, [9, 9]).unwrap();
    if let Some(tape) = tape {
        student.tape_release(tape).unwrap();
    }
    let product = |output: &Column| -> f64 {
        let weights = values(&wave(output.name(), output.shape()));
        values(output).iter().zip(weights).map(|(x, w)| x * w).sum()
    };
    outputs.iter().map(product).sum()
}

/// Gradients of the objective by the student, compared with central differences of f32 forward passes along the
/// gradient's own direction and a fixed one: ε 1e-2·scale, relative 2e-2 (the checker's f32 tolerances).
fn check_vjp(student: &MockInstance, shape: &[i64], wanted: &[&str], flags: Flags) {
    let inputs = pixels(shape);
    let params = student.params().unwrap();
    let (outputs, tape) = student.forward(&inputs, wanted, flags, [9, 9]).unwrap();
    let cotangents: Vec<Column> = outputs.iter().map(|o| wave(o.name(), o.shape())).collect();
    let mut grads = buffers(&params);
    let size = shape.iter().product::<i64>() as usize;
    let input = Column::new("pixel_values", shape, &vec![f32::NAN; size]).unwrap();
    let mut input_grads = vec![flags.input_grad.then_some((input, false))];
    student.backward(tape.unwrap(), &cotangents, &mut grads, &mut input_grads).unwrap();
    let flags = Flags { param_grad: false, input_grad: false, ..flags };
    let mut checked = 0;
    for (param, grad) in params.iter().zip(&grads) {
        let grad = values(&grad.as_ref().unwrap().0);
        assert!(grad.iter().all(|g| g.is_finite()), "{} is not all written", param.name);
        let start = param.values().unwrap();
        let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        if norm < 1e-4 {
            continue;
        }
        let value = |step: f64| {
            let moved: Vec<f64> =
                start.iter().zip(&grad).map(|(x, g)| x + step * g / norm).collect();
            param.set(&moved).unwrap();
            objective(student, &inputs, wanted, flags)
        };
        let slope = (value(1e-2) - value(-1e-2)) / 2e-2;
        param.set(&start).unwrap();
        assert!((slope - norm).abs() < 2e-2 * norm, "{}: {norm}, differences {slope}", param.name);
        checked += 1;
    }
    assert!(checked > 2, "{checked} parameters have a gradient");
    if let Some((grad, _)) = &input_grads[0] {
        let grad = values(grad);
        let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        let value = |step: f64| {
            let mut moved = inputs.clone();
            let column = moved[0].as_mut().unwrap().slice_mut::<f32>().unwrap();
            column.iter_mut().zip(&grad).for_each(|(x, g)| *x += (step * g / norm) as f32);
            objective(student, &moved, wanted, flags)
        };
        let slope = (value(1e-2) - value(-1e-2)) / 2e-2;
        assert!((slope - norm).abs() < 2e-2 * norm, "input: {norm}, differences {slope}");
    }
}

#[test]
fn gradients_match_differences_for_every_output() {
    let student = mlp(&mlp_settings(), [1, 2]);
    for wanted in [&["logits"][..], &["hidden.2"], &["logits", "hidden.1", "features", "hidden.0"]]
    {
        check_vjp(&student, &[7, 6], wanted, ALL);
    }
    let student = cnn(&cnn_settings(), [1, 2]);
    check_vjp(&student, &[5, 1, 4, 4], &["logits", "hidden.1"], ALL);
}

#[test]
fn gradients_match_differences_under_dropout_and_batch_statistics() {
    let mut settings = mlp_settings();
    settings["dropout"] = json!(0.3);
    check_vjp(&mlp(&settings, [1, 2]), &[7, 6], &["logits"], TRAIN);
    check_vjp(&cnn(&cnn_settings(), [1, 2]), &[5, 1, 4, 4], &["logits"], TRAIN);
}

#[test]
fn bf16_parameters_give_outputs_and_gradients_of_f32_ones_up_to_rounding() {
    let settings = mlp_settings().to_string();
    let mut small = MockHost::new().student::<StudentAdapter<Mlp>>(&settings).unwrap();
    small.activate_in(DType::BF16, [1, 2]).unwrap();
    let whole = mlp(&mlp_settings(), [1, 2]);
    let (rounded, params) = (small.params().unwrap(), whole.params().unwrap());
    assert!(rounded.iter().all(|p| p.dtype == DType::BF16));
    for (from, to) in rounded.iter().zip(&params) {
        to.set(&from.values().unwrap()).unwrap();
    }
    whole.params_changed().unwrap();
    let pass = |student: &MockInstance| {
        let (outputs, tape) =
            student.forward(&pixels(&[7, 6]), &["logits", "hidden.1"], ALL, [9, 9]).unwrap();
        let cotangents: Vec<Column> = outputs.iter().map(|o| wave(o.name(), o.shape())).collect();
        let mut grads = buffers(&params);
        let input = Column::new("pixel_values", &[7, 6], &[f32::NAN; 42]).unwrap();
        let mut input_grads = vec![Some((input, false))];
        student.backward(tape.unwrap(), &cotangents, &mut grads, &mut input_grads).unwrap();
        let all = grads.into_iter().chain(input_grads).flatten().map(|(column, _)| column);
        outputs.into_iter().chain(all).collect::<Vec<_>>()
    };
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    for (a, b) in pass(&small).iter().zip(&pass(&whole)) {
        let (a_values, b_values) = (values(a), values(b));
        let apart: Vec<f64> = a_values.iter().zip(&b_values).map(|(a, b)| a - b).collect();
        // Each of three products rounds its operands and itself: a few units of 2^-9 of terms of about 1, which may cancel.
        assert!(norm(&apart) < 2e-2 * norm(&b_values).max(1.0), "{}: {}", b.name(), norm(&apart));
        assert!(norm(&apart) > 0.0, "{} was computed in f32", b.name());
    }
}

#[test]
fn the_twin_computes_what_the_recorded_forward_does() {
    for (student, shape) in
        [(mlp(&mlp_settings(), [1, 2]), &[7, 6][..]), (cnn(&cnn_settings(), [1, 2]), &[7, 1, 4, 4])]
    {
        let (_, names) = student.port_names().unwrap();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (plain, tape) = student.forward(&pixels(shape), &names, EVAL, [0, 0]).unwrap();
        assert!(tape.is_none());
        let (recorded, tape) = student.forward(&pixels(shape), &names, ALL, [0, 0]).unwrap();
        student.tape_release(tape.unwrap()).unwrap();
        for (plain, recorded) in plain.iter().zip(&recorded) {
            assert_eq!(plain.bytes(), recorded.bytes(), "{}", plain.name());
        }
        for (name, full) in names.iter().zip(&plain) {
            let (alone, _) = student.forward(&pixels(shape), &[name], EVAL, [0, 0]).unwrap();
            assert_eq!(alone[0].bytes(), full.bytes(), "{name} alone");
        }
    }
}

#[test]
fn an_instance_with_copied_parameters_is_equal_also_after_training_passes() {
    let first = cnn(&cnn_settings(), [1, 2]);
    let second = cnn(&cnn_settings(), [3, 4]);
    let inputs = pixels(&[6, 1, 4, 4]);
    let run = |student: &MockInstance, flags| {
        student.forward(&inputs, &["logits"], flags, [5, 5]).unwrap()
    };
    let before = run(&first, EVAL).0;
    assert_ne!(before[0].bytes(), run(&second, EVAL).0[0].bytes(), "two keys, two students");
    let (_, tape) = run(&first, TRAIN);
    first.tape_release(tape.unwrap()).unwrap();
    assert_ne!(before[0].bytes(), run(&first, EVAL).0[0].bytes(), "statistics moved");
    for (from, to) in first.params().unwrap().iter().zip(second.params().unwrap()) {
        assert_eq!(from.name, to.name);
        to.set(&from.values().unwrap()).unwrap();
    }
    second.params_changed().unwrap();
    assert_eq!(run(&first, EVAL).0[0].bytes(), run(&second, EVAL).0[0].bytes());
}

#[test]
fn parameters_keep_their_addresses_and_writes_are_seen() {
    let student = mlp(&mlp_settings(), [1, 2]);
    let addresses = || student.params().unwrap().iter().map(MockParam::address).collect::<Vec<_>>();
    let before = addresses();
    let inputs = pixels(&[7, 6]);
    let (_, tape) = student.forward(&inputs, &["logits"], TRAIN, [0, 0]).unwrap();
    student.tape_release(tape.unwrap()).unwrap();
    for param in student.params().unwrap() {
        param.set(&vec![0.0; param.values().unwrap().len()]).unwrap();
    }
    let (outputs, _) = student.forward(&inputs, &["logits"], EVAL, [0, 0]).unwrap();
    assert!(values(&outputs[0]).iter().all(|&x| x == 0.0));
    assert_eq!(before, addresses());
}

#[test]
fn equal_keys_give_equal_dropout_and_initial_weights() {
    let mut settings = mlp_settings();
    settings["dropout"] = json!(0.5);
    let (first, second) = (mlp(&settings, [1, 2]), mlp(&settings, [1, 2]));
    let train = Flags { train: true, ..EVAL };
    let run = |student: &MockInstance, key| {
        student.forward(&pixels(&[7, 6]), &["logits"], train, key).unwrap().0[0].bytes().to_vec()
    };
    assert_eq!(run(&first, [5, 5]), run(&second, [5, 5]));
    assert_ne!(run(&first, [5, 5]), run(&first, [5, 6]));
}

#[test]
fn settings_out_of_range_are_refused_at_their_place() {
    let host = MockHost::new();
    let mut bad = mlp_settings();
    bad["dropout"] = json!(1.0);
    let error = host.student::<StudentAdapter<Mlp>>(&bad.to_string()).err().unwrap();
    assert_eq!(error.find_note("pointer"), Some("/dropout"));
    let mut bad = cnn_settings();
    bad["kernel"] = json!(2);
    let error = host.student::<StudentAdapter<Cnn>>(&bad.to_string()).err().unwrap();
    assert_eq!(error.find_note("pointer"), Some("/kernel"));
    let mut bad = mlp_settings();
    bad["depth"] = json!(2);
    assert!(host.student::<StudentAdapter<Mlp>>(&bad.to_string()).is_err());
}

/// Writes what an export writes: the settings as `config.json`, the parameters by name.
fn export(student: &MockInstance, settings: &Value, model_type: &str, dir: &Path) {
    let mut config = settings.clone();
    config["model_type"] = json!(model_type);
    config["limbeck"] = json!({"plugin": "limbeck.mlp", "version": "0.1.0"});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = student
        .params()
        .unwrap()
        .iter()
        .map(|param| {
            let values = param.values().unwrap();
            let bytes = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
            (param.name.clone(), param.shape.iter().map(|&d| d as usize).collect(), bytes)
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        })
        .collect();
    serialize_to_file(&views, None, &dir.join("model.safetensors")).unwrap();
}

#[test]
fn a_student_starts_from_an_exported_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = mlp(&mlp_settings(), [1, 2]);
    export(&first, &mlp_settings(), "limbeck-mlp", dir.path());
    let mut settings = mlp_settings();
    settings["init"] = json!({"path": dir.path()});
    let second = mlp(&settings, [3, 4]);
    let run = |student: &MockInstance| {
        student.forward(&pixels(&[7, 6]), &["logits"], EVAL, [0, 0]).unwrap().0[0].bytes().to_vec()
    };
    assert_eq!(run(&first), run(&second));
}

#[test]
fn a_folder_of_another_model_is_refused_before_activation() {
    let dir = tempfile::tempdir().unwrap();
    let first = mlp(&mlp_settings(), [1, 2]);
    export(&first, &mlp_settings(), "limbeck-mlp", dir.path());
    let message = |mut settings: Value, is_mlp: bool| {
        settings["init"] = json!({"path": dir.path()});
        let host = MockHost::new();
        let student = match is_mlp {
            true => host.student::<StudentAdapter<Mlp>>(&settings.to_string()),
            false => host.student::<StudentAdapter<Cnn>>(&settings.to_string()),
        };
        let error = student.unwrap().port_names().unwrap_err();
        assert_eq!(error.find_note("pointer"), Some("/init/path"));
        error.message().to_owned()
    };
    let mut other = mlp_settings();
    other["classes"] = json!(4);
    let found = message(other, true);
    assert!(
        found.ends_with("has `classifier.weight` of [3, 4], this student's is [4, 4]"),
        "{found}"
    );
    let mut other = mlp_settings();
    other["hidden"] = json!([5]);
    let found = message(other, true);
    assert!(found.ends_with("has also the parameter `layers.1.weight`"), "{found}");
    let found = message(cnn_settings(), false);
    assert!(found.ends_with("holds a limbeck-mlp, this student is a limbeck-cnn"), "{found}");
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(message(mlp_settings(), true).contains("config.json"));
}

#[test]
fn the_schema_marks_the_path_and_closes_every_object() {
    let schema = limbeck_sdk::settings_schema::<crate::mlp::Settings>();
    let schema: Value = limbeck_sdk::serde_json::from_str(&schema).unwrap();
    let init = &schema["properties"]["init"];
    assert_eq!(init["properties"]["path"]["format"], "input-path", "{schema}");
    assert_eq!(init["additionalProperties"], false);
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["activation"]["default"], "relu");
}

/// `cargo test --release -p limbeck-students -- --ignored --nocapture step`: forward and backward through the tables.
#[test]
#[ignore = "a measurement, not a claim"]
fn time_of_a_digits_step() {
    for hidden in [vec![32], vec![256, 256]] {
        let settings = json!({"inputs": 64, "hidden": hidden, "classes": 10});
        let student = mlp(&settings, [1, 2]);
        let inputs = pixels(&[32, 64]);
        let cotangent = [wave("logits", &[32, 10])];
        let mut grads = buffers(&student.params().unwrap());
        let mut times: Vec<f64> = (0..3_000)
            .map(|_| {
                let start = std::time::Instant::now();
                let (_, tape) = student.forward(&inputs, &["logits"], TRAIN, [0, 0]).unwrap();
                student.backward(tape.unwrap(), &cotangent, &mut grads, &mut [None]).unwrap();
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (low, median) = (times[times.len() / 10], times[times.len() / 2]);
        println!("64-{hidden:?}-10, batch 32: median {median:.1} us, tenth percentile {low:.1} us");
    }
}

fn encoder_settings() -> Value {
    json!({"layers": 2, "heads": 2, "dim": 8, "vocab_size": 20, "max_positions": 8, "classes": 3,
        "dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0})
}

fn distilbert(settings: &Value, key: [u64; 2]) -> MockInstance {
    let host = MockHost::new();
    let mut student = host.student::<StudentAdapter<DistilBert>>(&settings.to_string()).unwrap();
    student.activate(key).unwrap();
    student
}

fn tokens() -> Vec<Option<Column>> {
    let ids = Column::new("input_ids", &[2, 3], &[5i64, 6, 7, 8, 9, 0]).unwrap();
    let mask = Column::new("attention_mask", &[2, 3], &[1i64, 1, 1, 1, 1, 0]).unwrap();
    vec![Some(ids), Some(mask), None]
}

/// The folders that `tests/peers/encoders.py` wrote.
fn encoder_folder(case: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/encoders").join(case)
}

#[test]
fn every_parameter_of_an_encoder_is_trained_and_accumulation_adds() {
    let student = distilbert(&encoder_settings(), [1, 2]);
    let params = student.params().unwrap();
    let backward = |accumulate: bool| {
        let (_, tape) = student.forward(&tokens(), &["logits"], TRAIN, [9, 9]).unwrap();
        let cotangent = wave("logits", &[2, 3]);
        let start = if accumulate { 1.0 } else { f32::NAN };
        let mut grads: Vec<Option<(Column, bool)>> = params
            .iter()
            .map(|param| {
                let count = param.shape.iter().product::<i64>() as usize;
                let column = Column::new(param.name.clone(), &param.shape, &vec![start; count]);
                Some((column.unwrap(), accumulate))
            })
            .collect();
        student.backward(tape.unwrap(), &[cotangent], &mut grads, &mut [None, None, None]).unwrap();
        grads.into_iter().map(|grad| values(&grad.unwrap().0)).collect::<Vec<_>>()
    };
    let (plain, added) = (backward(false), backward(true));
    for ((param, plain), added) in params.iter().zip(&plain).zip(&added) {
        let norm = plain.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 1e-9 || param.name.ends_with("k_lin.bias"), "{}: {norm}", param.name);
        assert!(plain.iter().zip(added).all(|(p, a)| (p + 1.0 - a).abs() < 1e-5), "{}", param.name);
    }
}

#[test]
fn an_encoder_starts_from_blocks_of_a_folder_of_another_family() {
    // The source's three blocks, then its first and last one.
    let folder = encoder_folder("bert-classification");
    for layers in [vec![0, 1, 2], vec![0, 2]] {
        let mut settings = json!({"classes": 3, "init": {"path": folder, "layers": layers}});
        settings["dropout"] = json!(0.0);
        let student = distilbert(&settings, [1, 2]);
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let source = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (block, from) in layers.iter().enumerate() {
            let name = format!("bert.encoder.layer.{from}.output.dense.weight");
            let wanted = source.tensor(&name).unwrap().data().to_vec();
            let ours = format!("distilbert.transformer.layer.{block}.ffn.lin2.weight");
            let params = student.params().unwrap();
            let found = params.iter().find(|param| param.name == ours).unwrap().values().unwrap();
            let found: Vec<u8> = found.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
            assert_eq!(found, wanted, "{ours}");
        }
        if layers.len() == 3 {
            // DistilBERT has no token types: those of type 0 are in its positions, so states are BERT's.
            let settings = json!({"head": "embedding", "init": {"path": folder}}).to_string();
            let host = MockHost::new();
            let mut bert = host.student::<StudentAdapter<Bert>>(&settings).unwrap();
            bert.activate([3, 4]).unwrap();
            let mut inputs = tokens();
            let (ours, _) = student.forward(&inputs, &["hidden.3"], EVAL, [0, 0]).unwrap();
            inputs.push(None);
            let (theirs, _) = bert.forward(&inputs, &["hidden.3"], EVAL, [0, 0]).unwrap();
            let pairs = values(&ours[0]).into_iter().zip(values(&theirs[0]));
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}

#[test]
fn a_source_that_does_not_fit_is_refused_with_its_place() {
    let refused = |more: Value| {
        let mut settings = json!({"init": {"path": encoder_folder("bert-classification")}});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let host = MockHost::new();
        let student = host.student::<StudentAdapter<DistilBert>>(&settings.to_string()).unwrap();
        let error = student.port_names().unwrap_err();
        (error.find_note("pointer").unwrap_or_default().to_owned(), error.message().to_owned())
    };
    let (pointer, message) = refused(json!({"dim": 8}));
    assert_eq!(pointer, "/dim");
    assert_eq!(message, "`dim` is 8, the source of `init` has 16");
    let path = encoder_folder("bert-classification");
    let (pointer, message) = refused(json!({"init": {"path": path, "layers": [0, 3]}}));
    assert_eq!(pointer, "/init/layers");
    assert!(message.contains("lists block 3, the source has 0 to 2"), "{message}");
    let (pointer, _) = refused(json!({"init": {"path": encoder_folder("roberta-classification")}}));
    assert_eq!(pointer, "/init/layers");
    let host = MockHost::new();
    let error = host.student::<StudentAdapter<DistilBert>>("{\"layers\": 2}").err().unwrap();
    assert_eq!(error.message(), "`dim` is left out, and no `init` has one");
}
