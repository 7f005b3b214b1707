//! Folders written here and folders broken here.

use std::collections::HashMap;

use ::safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

use super::*;
use crate::architecture::{Model, Port};
use crate::params::{Init, Role};

/// An architecture of two parameters that is never built.
struct Two;

impl Architecture for Two {
    fn model_type(&self) -> &'static str {
        "two"
    }
    fn inputs(&self) -> Vec<Port> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<Port> {
        Vec::new()
    }
    fn params(&self) -> Result<Vec<ParamSpec>, ModelError> {
        Ok(vec![
            ParamSpec::new("a", &[2, 2], Init::Ones, Role::Weight),
            ParamSpec::new("b", &[3], Init::Ones, Role::Weight),
        ])
    }
    fn build(&self, _: &Params) -> Result<Box<dyn Model>, ModelError> {
        Err(ModelError::Config("two parameters make no model".to_owned()))
    }
}

fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views: HashMap<String, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            ((*name).to_owned(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        })
        .collect();
    serialize_to_file(&views, None, path).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

const A: [f32; 4] = [1.0, -2.0, 3.5, 4.0];
const B: [f32; 3] = [0.5, 0.25, -8.0];

/// A folder with a config and `model.safetensors` of `a` and `b`.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json!({"extra": [1]}).to_string()).unwrap();
    let file = dir.path().join("model.safetensors");
    write(&file, &[("a", Dtype::F32, &[2, 2], floats(&A)), ("b", Dtype::F32, &[3], floats(&B))]);
    dir
}

fn load(dir: &Path) -> Result<Params, WeightsError> {
    let params = Folder::open(dir)?.params(&Two, DType::F32, &Device::Cpu, |_| true)?;
    Ok(params.expect("the callback did not stop the reading"))
}

fn message(dir: &Path) -> String {
    load(dir).unwrap_err().to_string().replace(&dir.display().to_string(), "DIR")
}

fn values(params: &Params, name: &str, shape: &[usize]) -> Vec<f32> {
    params.get(name, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn one_file_gives_its_values_and_unknown_config_fields_survive() {
    let dir = folder();
    let params = load(dir.path()).unwrap();
    assert_eq!(values(&params, "a", &[2, 2]), A);
    assert_eq!(values(&params, "b", &[3]), B);
    assert_eq!(Folder::open(dir.path()).unwrap().config()["extra"], json!([1]));
}

#[test]
fn half_precision_files_are_widened() {
    let dir = folder();
    let f16: Vec<u8> = A.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16: Vec<u8> = B.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let file = dir.path().join("model.safetensors");
    write(&file, &[("a", Dtype::F16, &[2, 2], f16), ("b", Dtype::BF16, &[3], bf16)]);
    let params = load(dir.path()).unwrap();
    assert_eq!(values(&params, "a", &[2, 2]), A);
    assert_eq!(values(&params, "b", &[3]), B);
}

fn shard(dir: &Path, map: Value) {
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    write(&dir.join("one.safetensors"), &[("a", Dtype::F32, &[2, 2], floats(&A))]);
    write(&dir.join("two.safetensors"), &[("b", Dtype::F32, &[3], floats(&B))]);
    let index = json!({"metadata": {"total_size": 28}, "weight_map": map}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn shards_give_their_values() {
    let dir = folder();
    shard(dir.path(), json!({"a": "one.safetensors", "b": "two.safetensors"}));
    let params = load(dir.path()).unwrap();
    assert_eq!(values(&params, "a", &[2, 2]), A);
    assert_eq!(values(&params, "b", &[3]), B);
}

#[test]
fn shard_names_that_leave_the_folder_are_refused() {
    for name in [
        "../one.safetensors",
        "/etc/one.safetensors",
        "x\\one.safetensors",
        "passwd",
        ".x.safetensors",
        "c:one.safetensors",
    ] {
        let dir = folder();
        shard(dir.path(), json!({"a": name, "b": "two.safetensors"}));
        let message = message(dir.path());
        assert!(message.contains("tensor `a` is no plain file name"), "{message}");
    }
}

#[test]
fn an_index_that_names_the_wrong_shard_is_refused() {
    let dir = folder();
    shard(dir.path(), json!({"a": "two.safetensors", "b": "two.safetensors"}));
    assert_eq!(message(dir.path()), "DIR/two.safetensors: missing `a`");
    let dir = folder();
    shard(dir.path(), json!({"a": "three.safetensors", "b": "two.safetensors"}));
    assert_eq!(message(dir.path()), "cannot read DIR/three.safetensors");
}

#[test]
fn missing_surplus_and_misshaped_tensors_are_named() {
    let dir = folder();
    let file = dir.path().join("model.safetensors");
    write(&file, &[("a", Dtype::F32, &[2, 2], floats(&A))]);
    assert_eq!(message(dir.path()), "DIR/model.safetensors: missing `b`");
    let a = ("a", Dtype::F32, &[2, 2][..], floats(&A));
    write(
        &file,
        &[a.clone(), ("b", Dtype::F32, &[3], floats(&B)), ("c", Dtype::F32, &[3], floats(&B))],
    );
    assert_eq!(message(dir.path()), "DIR/model.safetensors: the model has no `c`");
    write(&file, &[a.clone(), ("b", Dtype::F32, &[1, 3], floats(&B))]);
    assert_eq!(
        message(dir.path()),
        "DIR/model.safetensors: tensor `b` has shape [1, 3], the configuration asks for [3]"
    );
    write(&file, &[a, ("b", Dtype::I32, &[3], floats(&B))]);
    assert_eq!(
        message(dir.path()),
        "DIR/model.safetensors: tensor `b` has dtype I32, not F32, F16, BF16 or F64"
    );
}

#[test]
fn many_missing_names_are_cut_short() {
    let names: Vec<String> = (0..11).map(|i| format!("w{i}")).collect();
    let error = WeightsError::Missing { path: "m".into(), names };
    assert!(error.to_string().ends_with("`w7` and 3 more"), "{error}");
}

#[test]
fn a_file_cut_at_any_length_is_refused() {
    let dir = folder();
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for length in 0..bytes.len() {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(load(dir.path()).is_err(), "{length} of {} bytes", bytes.len());
    }
    std::fs::write(&file, [bytes.as_slice(), &[0]].concat()).unwrap();
    assert!(
        message(dir.path()).contains("the tensors end at byte 28 of the data, the file has 29")
    );
}

#[test]
fn a_flipped_header_byte_never_crashes() {
    let dir = folder();
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let header = bytes.len() - 28;
    for at in 0..header {
        for bit in [0, 1, 4, 7] {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << bit;
            std::fs::write(&file, &broken).unwrap();
            // A flip in the padding or between equal tensors may leave a valid file; the rest must be refused.
            if let Ok(params) = load(dir.path()) {
                assert_eq!(values(&params, "a", &[2, 2]).len(), 4);
            }
        }
    }
}

fn hostile(header: &str, data: &[u8]) -> String {
    let dir = folder();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    message(dir.path())
}

#[test]
fn hostile_headers_are_refused_with_their_reason() {
    let entry = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (header, data, wanted) in [
        ("[]".to_owned(), 0, "the header is no JSON object"),
        ("{\"a\": 3}".to_owned(), 0, "tensor `a` has a malformed entry"),
        (entry("[2,2]", "[4,20]"), 20, "lies at 4..20, its neighbor ends at 0"),
        (entry("[2,2]", "[0,160]"), 16, "ends at byte 160 of the data, the file has 16"),
        (entry("[2,3]", "[0,16]"), 16, "does not fill its 16 bytes"),
        (entry("[4611686018427387905,4]", "[0,16]"), 16, "does not fill its 16 bytes"),
        (entry("[-1]", "[0,16]"), 16, "malformed entry"),
        (entry("[2,2]", "[16,0]"), 16, "lies at 16..0"),
        (entry("[2,2]", "[0,16]").replace("F32", "F9"), 16, "unknown dtype `F9`"),
        ("[".repeat(100_000), 0, "the header is no JSON object"),
    ] {
        let message = hostile(&header, &vec![0; data]);
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn a_header_length_beyond_the_file_allocates_nothing() {
    let dir = folder();
    for length in [29, u64::MAX, 1 << 40] {
        let bytes = [length.to_le_bytes().as_slice(), &[b'{'; 20]].concat();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        assert!(message(dir.path()).contains("goes beyond the file"));
    }
}

#[test]
fn a_config_that_is_missing_or_no_object_is_named() {
    let dir = folder();
    let config = dir.path().join("config.json");
    std::fs::write(&config, "{\"a\": }").unwrap();
    assert!(message(dir.path()).starts_with("DIR/config.json: not valid JSON: expected value"));
    std::fs::write(&config, "[1]").unwrap();
    assert_eq!(message(dir.path()), "DIR/config.json: not a JSON object");
    std::fs::remove_file(&config).unwrap();
    assert_eq!(message(dir.path()), "cannot read DIR/config.json");
    std::fs::create_dir(&config).unwrap();
    assert_eq!(message(dir.path()), "DIR/config.json: not a regular file");
}

#[test]
fn reading_stops_when_told() {
    let dir = folder();
    let folder = Folder::open(dir.path()).unwrap();
    let mut seen = 0;
    let params = folder.params(&Two, DType::F32, &Device::Cpu, |done| {
        seen = done;
        false
    });
    assert!(params.unwrap().is_none());
    assert_eq!(seen, 1);
}
