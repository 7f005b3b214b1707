//! `limbeck.hf` through the tables of the contract, on folders written here.

use std::collections::HashMap;
use std::path::Path;

use limbeck_models::{Architecture, Inputs, Mode, Params, cnn, mlp};
use limbeck_sdk::Column;
use limbeck_sdk::candle::{CandleDType, Device, StudentAdapter, Tensor};
use limbeck_sdk::serde_json::{self, Value, json};
use limbeck_sdk::testing::{Flags, MockHost, MockInstance};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::hf::Hf;

const EVAL: Flags = Flags { train: false, param_grad: false, input_grad: false };

fn mlp_config() -> Value {
    json!({"model_type": "limbeck-mlp", "inputs": 6, "hidden": [5], "classes": 3,
        "activation": "tanh", "dropout": 0.5, "init": null, "limbeck": {"plugin": "limbeck.mlp"}})
}

/// Writes a folder and gives its parameters.
fn write(dir: &Path, config: &Value, architecture: &dyn Architecture) -> Params {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let specs = architecture.params().unwrap();
    let params = Params::initial(&specs, [1, 2], CandleDType::F32, &Device::Cpu).unwrap();
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = params
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.to_owned(), tensor.dims().to_vec(), bytes)
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        })
        .collect();
    serialize_to_file(&views, None, &dir.join("model.safetensors")).unwrap();
    params
}

fn create(dir: &Path) -> MockInstance {
    let settings = json!({"path": dir, "head": "classification"}).to_string();
    MockHost::new().student::<StudentAdapter<Hf>>(&settings).unwrap()
}

fn pixels(shape: &[i64]) -> Column {
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|i| (1.0 + 2.399_963 * i as f32).sin()).collect();
    Column::new("pixel_values", shape, &values).unwrap()
}

fn parse<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap()
}

#[test]
fn outputs_equal_those_of_the_model_in_evaluation() {
    let cnn_config = json!({"model_type": "limbeck-cnn", "image": [1, 4, 4], "channels": [2],
        "batch_norm": true, "classes": 3});
    let (mlp, cnn): (mlp::Config, cnn::Config) = (parse(&mlp_config()), parse(&cnn_config));
    let cases: [(Value, &dyn Architecture, &[i64]); 2] =
        [(mlp_config(), &mlp, &[4, 6]), (cnn_config, &cnn, &[4, 1, 4, 4])];
    for (config, architecture, shape) in cases {
        let dir = tempfile::tempdir().unwrap();
        let params = write(dir.path(), &config, architecture);
        let mut teacher = create(dir.path());
        teacher.activate([7, 7]).unwrap();
        let x = pixels(shape);
        let dims: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        let tensor = Tensor::from_slice(x.slice::<f32>().unwrap(), dims, &Device::Cpu).unwrap();
        let inputs = Inputs::from([("pixel_values", tensor)]);
        let model = architecture.build(&params).unwrap();
        let wanted = ["logits", "hidden.1", "features"];
        let expected = model.forward(&inputs, &wanted, Mode::Eval).unwrap();
        // TRAIN changes nothing: a teacher has neither dropout nor moving statistics.
        for train in [false, true] {
            let flags = Flags { train, ..EVAL };
            let (outputs, _) = teacher.forward(&[Some(x.clone())], &wanted, flags, [1, 1]).unwrap();
            for (output, expected) in outputs.iter().zip(&expected) {
                let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(output.slice::<f32>().unwrap(), expected, "{}", output.name());
            }
        }
    }
}

#[test]
fn input_gradients_flow_and_nothing_is_trainable() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &mlp_config(), &parse::<mlp::Config>(&mlp_config()));
    let mut teacher = create(dir.path());
    teacher.activate([7, 7]).unwrap();
    let params = teacher.params().unwrap();
    assert_eq!(params.len(), 4);
    assert!(params.iter().all(|p| p.flags & limbeck_sdk::abi::PARAM_TRAINABLE == 0));
    let x = pixels(&[1, 6]);
    let flags = Flags { input_grad: true, ..EVAL };
    let (_, tape) = teacher.forward(&[Some(x.clone())], &["logits"], flags, [1, 1]).unwrap();
    let cotangent = Column::new("logits", &[1, 3], &[1f32, -2.0, 0.5]).unwrap();
    let mut grads = [Some((Column::new("pixel_values", &[1, 6], &[f32::NAN; 6]).unwrap(), false))];
    teacher.backward(tape.unwrap(), &[cotangent], &mut [], &mut grads).unwrap();
    let grad = grads[0].as_ref().unwrap().0.slice::<f32>().unwrap().to_vec();
    let value = |at: usize, step: f32| {
        let mut moved = x.clone();
        moved.slice_mut::<f32>().unwrap()[at] += step;
        let (outputs, _) = teacher.forward(&[Some(moved)], &["logits"], EVAL, [1, 1]).unwrap();
        let logits = outputs[0].slice::<f32>().unwrap().to_vec();
        logits[0] - 2.0 * logits[1] + 0.5 * logits[2]
    };
    for (at, grad) in grad.iter().enumerate() {
        let slope = (value(at, 1e-2) - value(at, -1e-2)) / 2e-2;
        assert!((grad - slope).abs() < 1e-3, "{at}: {grad}, differences {slope}");
    }
}

#[test]
fn sizes_come_from_the_config_and_a_missing_weight_file_is_found_with_them() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &mlp_config(), &parse::<mlp::Config>(&mlp_config()));
    let (inputs, outputs) = create(dir.path()).port_names().unwrap();
    assert_eq!(inputs, ["pixel_values"]);
    assert_eq!(outputs, ["logits", "hidden.0", "hidden.1", "features"]);
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let error = create(dir.path()).port_names().unwrap_err();
    assert!(error.find_note("file").unwrap().ends_with("model.safetensors"), "{error}");
}

#[test]
fn an_unknown_model_type_names_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json!({"model_type": "gpt9"}).to_string())
        .unwrap();
    let error = create(dir.path()).port_names().unwrap_err();
    assert_eq!(error.find_note("pointer"), Some("/path"));
    let wanted = "unknown model_type `gpt9`; known are limbeck-mlp, limbeck-cnn, bert";
    assert!(error.message().contains(wanted), "{error}");
}

#[test]
fn a_cut_weight_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &mlp_config(), &parse::<mlp::Config>(&mlp_config()));
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    let error = create(dir.path()).activate([0, 0]).unwrap_err();
    assert_eq!(error.status(), limbeck_sdk::abi::STATUS_BAD_DATA);
    assert_eq!(error.find_note("file"), Some(&*file.display().to_string()));
}

/// A folder that `tests/peers/encoders.py` wrote, copied so that it can be broken.
fn encoder_folder(case: &str) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/encoders").join(case);
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn edit_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
}

fn with_head(dir: &Path, head: &str) -> MockInstance {
    let settings = json!({"path": dir, "head": head}).to_string();
    MockHost::new().student::<StudentAdapter<Hf>>(&settings).unwrap()
}

fn tokens() -> Vec<Option<Column>> {
    let ids = Column::new("input_ids", &[2, 3], &[5i64, 6, 7, 8, 9, 1]).unwrap();
    let mask = Column::new("attention_mask", &[2, 3], &[1i64, 1, 1, 1, 1, 0]).unwrap();
    vec![Some(ids), Some(mask), None, None]
}

#[test]
fn a_bert_folder_gives_what_is_wanted_and_nothing_is_trainable() {
    let dir = encoder_folder("bert-classification");
    let mut teacher = with_head(dir.path(), "classification");
    let (inputs, outputs) = teacher.port_names().unwrap();
    assert_eq!(inputs, ["input_ids", "attention_mask", "token_type_ids", "inputs_embeds"]);
    assert!(outputs.iter().any(|name| name == "attention.3"), "{outputs:?}");
    teacher.activate([1, 2]).unwrap();
    let trainable = limbeck_sdk::abi::PARAM_TRAINABLE;
    assert!(teacher.params().unwrap().iter().all(|p| p.flags & trainable == 0));
    let wanted = ["logits", "hidden.2", "value.3"];
    let (found, _) = teacher.forward(&tokens(), &wanted, EVAL, [0, 0]).unwrap();
    let shapes: Vec<_> = found.iter().map(Column::shape).collect();
    assert_eq!(shapes, [&[2i64, 3][..], &[2, 3, 16], &[2, 2, 3, 8]]);
}

#[test]
fn gradients_reach_the_embeddings_that_a_teacher_is_given() {
    let dir = encoder_folder("distilbert-classification");
    let mut teacher = with_head(dir.path(), "classification");
    teacher.activate([1, 2]).unwrap();
    let ids = || tokens().into_iter().take(2);
    let embeds = |step: f32| {
        let values: Vec<f32> = (0..96)
            .map(|i| (1.0 + 2.4 * i as f32).sin() + if i == 20 { step } else { 0.0 })
            .collect();
        Some(Column::new("inputs_embeds", &[2, 3, 16], &values).unwrap())
    };
    let inputs = |step: f32| ids().chain([embeds(step)]).collect::<Vec<_>>();
    let first = |step: f32| {
        let (found, _) = teacher.forward(&inputs(step), &["logits"], EVAL, [0, 0]).unwrap();
        found[0].slice::<f32>().unwrap()[1]
    };
    let flags = Flags { input_grad: true, ..EVAL };
    let (_, tape) = teacher.forward(&inputs(0.0), &["logits"], flags, [0, 0]).unwrap();
    let cotangent = Column::new("logits", &[2, 3], &[0f32, 1.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
    let grad = Column::new("inputs_embeds", &[2, 3, 16], &[f32::NAN; 96]).unwrap();
    let mut grads = [None, None, Some((grad, false))];
    teacher.backward(tape.unwrap(), &[cotangent], &mut [], &mut grads).unwrap();
    let grad = grads[2].as_ref().unwrap().0.slice::<f32>().unwrap();
    let slope = (first(1e-2) - first(-1e-2)) / 2e-2;
    assert!(slope.abs() > 1e-3 && (grad[20] - slope).abs() < 2e-2 * slope.abs(), "{}", grad[20]);
    // The padded token of the second row, and nothing of that row in the first row's logits.
    assert!(grad[48..].iter().all(|&g| g == 0.0));
}

#[test]
fn a_head_that_the_folder_lacks_is_missing_by_name() {
    let dir = encoder_folder("bert-bare");
    let error = with_head(dir.path(), "classification").port_names().unwrap_err();
    assert!(
        error.message().contains("missing `bert.pooler.dense.weight`")
            || error.message().contains("`classifier.weight`"),
        "{error}"
    );
    assert!(with_head(dir.path(), "embedding").port_names().is_ok());
    let dir = encoder_folder("bert-classification");
    assert!(with_head(dir.path(), "embedding").port_names().is_ok());
}

#[test]
fn wrong_sizes_and_broken_files_are_found_before_a_weight_is_read() {
    let refused = |key: &str, value: Value| {
        let dir = encoder_folder("bert-classification");
        edit_config(dir.path(), key, value);
        let error = with_head(dir.path(), "classification").port_names().unwrap_err();
        error.to_string().replace(&dir.path().display().to_string(), "DIR")
    };
    let found = refused("vocab_size", json!(41));
    let wanted = "DIR/model.safetensors: tensor `bert.embeddings.word_embeddings.weight` has shape \
                  [40, 16], the configuration asks for [41, 16]";
    assert!(found.starts_with(wanted), "{found}");
    let found = refused("num_hidden_layers", json!(2));
    assert!(found.contains("the model has no `bert.encoder.layer.2."), "{found}");
    let found = refused("num_hidden_layers", json!(4));
    assert!(found.contains("missing `bert.encoder.layer.3."), "{found}");
    let found = refused("num_attention_heads", json!(3));
    assert!(found.contains("`heads` is 3, which does not divide `dim` 16"), "{found}");
    let found = refused("hidden_act", json!("swish"));
    assert!(found.contains("`hidden_act` is `swish`"), "{found}");
    let found = refused("position_embedding_type", json!("relative_key"));
    assert!(found.contains("position_embedding_type"), "{found}");
    let dir = encoder_folder("bert-classification");
    edit_config(dir.path(), "architectures", json!(["BertForQuestionAnswering"]));
    let settings = json!({"path": dir.path()}).to_string();
    let error = MockHost::new().student::<StudentAdapter<Hf>>(&settings).unwrap().port_names();
    assert!(error.unwrap_err().message().contains("names `BertForQuestionAnswering`"));
    let dir = encoder_folder("bert-classification");
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        let error = with_head(dir.path(), "classification").port_names().unwrap_err();
        assert_eq!(error.find_note("file"), Some(&*file.display().to_string()), "{length}");
    }
}
