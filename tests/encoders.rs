//! A student trained by the program follows PyTorch, step by step.
//!
//! The golden losses and parameters are those of `tests/peers/encoders.py`, which explains how they were made.

use crate::support::{self, limbeck};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    support::root().join("plugins/models/tests/encoders/distilbert-classification")
}

/// Elements of an i64 or f32 tensor.
fn values(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).expect(name);
    let wide = view.data().chunks_exact(view.dtype().bitsize() / 8);
    match view.dtype() {
        safetensors::Dtype::I64 => {
            wide.map(|b| i64::from_le_bytes(b.try_into().expect("eight")) as f64).collect()
        }
        _ => wide.map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four")))).collect(),
    }
}

/// A tokenizer whose words are `w` and a token's number, and the rows of the golden batch as texts of them.
fn write_data(dir: &Path, golden: &SafeTensors<'_>) {
    let word = |id: usize| if id == 1 { "[PAD]".to_owned() } else { format!("w{id}") };
    let vocab: serde_json::Map<String, Value> = (0..40).map(|id| (word(id), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[PAD]"},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("tokenizer");
    let (ids, mask) = (values(golden, "in.input_ids"), values(golden, "in.attention_mask"));
    let rows = ids.chunks(12).zip(mask.chunks(12)).zip(values(golden, "in.labels"));
    let lines = rows.map(|((ids, mask), label)| {
        let kept = ids.iter().zip(mask).filter(|(_, mask)| **mask != 0.0);
        let words: Vec<String> = kept.map(|(id, _)| word(*id as usize)).collect();
        json!({"text": words.join(" "), "label": label as i64}).to_string() + "\n"
    });
    std::fs::write(dir.join("rows.jsonl"), lines.collect::<String>()).expect("rows");
}

fn write_pipeline(dir: &Path) -> PathBuf {
    let path = dir.join("pipeline.yaml");
    let text = format!(
        "version: 1
name: parity
seed: 7
tokenizer: {{path: tokenizer.json, max_length: 12}}
datasets:
  all: {{format: jsonl, path: rows.jsonl, text: text, label: label}}
data: {{train: all, valid: all}}
batch: {{size: 6}}
optimizer: {{kind: adamw, lr: 1e-3, weight_decay: 0.01}}
eval: {{metrics: [accuracy]}}
stages:
  - name: train
    kind: train
    student:
      uses: limbeck.distilbert
      with: {{classes: 3, dropout: 0.0, attention_dropout: 0.0, head_dropout: 0.0, init: {{path: {}}}}}
    loss: [{{uses: limbeck.ce}}]
    steps: 20
  - {{name: export, kind: export, model: {{from: train}}, format: hf}}
",
        golden().display()
    );
    std::fs::write(&path, text).expect("pipeline");
    path
}

fn only_entry(folder: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").path());
    let first = entries.find(|path| path.is_dir()).expect("an entry");
    assert!(!entries.any(|path| path.is_dir()));
    first
}

#[test]
fn twenty_steps_of_the_program_follow_pytorch() {
    let dir = support::temp_dir();
    let bytes = std::fs::read(golden().join("golden.safetensors")).expect("golden tensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
    write_data(dir.path(), &tensors);
    let pipeline = write_pipeline(dir.path());
    let runs = dir.path().join("runs");
    let finished = support::finish(limbeck().arg("run").arg(pipeline).arg("--runs").arg(&runs));
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    let run = only_entry(&only_entry(&runs));

    let text = std::fs::read_to_string(golden().join("golden.json")).expect("golden losses");
    let wanted: Value = serde_json::from_str(&text).expect("JSON");
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let rows = metrics.lines().map(|l| serde_json::from_str::<Value>(l).expect("a row"));
    let losses: Vec<f64> = rows.filter_map(|row| row["loss"].as_f64()).collect();
    let wanted: Vec<f64> =
        wanted["losses"].as_array().expect("losses").iter().filter_map(Value::as_f64).collect();
    assert_eq!((losses.len(), wanted.len()), (20, 20));
    for (step, (found, wanted)) in losses.iter().zip(&wanted).enumerate() {
        assert!((found - wanted).abs() < 1e-4 * wanted, "step {step}: {found}, PyTorch {wanted}");
    }

    let exported = std::fs::read(run.join("stages/02-export/out/model.safetensors"));
    let exported = exported.expect("an export");
    let exported = SafeTensors::deserialize(&exported).expect("weights");
    let mut compared = 0;
    for name in exported.names() {
        // Its gradient is 0 in exact arithmetic; Adam divides the rounding noise by itself.
        if name.ends_with("k_lin.bias") {
            continue;
        }
        let (ours, theirs) = (values(&exported, name), values(&tensors, &format!("after.{name}")));
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(ours.len() == theirs.len() && worst < 1e-4, "{name}: {worst}");
        compared += 1;
    }
    assert_eq!(compared, 53);
}
