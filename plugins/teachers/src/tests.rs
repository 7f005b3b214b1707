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
fn ports_come_from_the_config_before_weights_exist() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), mlp_config().to_string()).unwrap();
    let mut teacher = create(dir.path());
    let (inputs, outputs) = teacher.port_names().unwrap();
    assert_eq!(inputs, ["pixel_values"]);
    assert_eq!(outputs, ["logits", "hidden.0", "hidden.1", "features"]);
    let error = teacher.activate([0, 0]).unwrap_err();
    assert!(error.message().contains("model.safetensors"), "{error}");
}

#[test]
fn an_unknown_model_type_names_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json!({"model_type": "gpt9"}).to_string())
        .unwrap();
    let error = create(dir.path()).port_names().unwrap_err();
    assert_eq!(error.find_note("pointer"), Some("/path"));
    let wanted = "unknown model_type `gpt9`; known are limbeck-mlp, limbeck-cnn";
    assert!(error.message().ends_with(wanted), "{error}");
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
