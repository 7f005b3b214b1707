//! Several students as one, and the moving copy of one: checked against the files that they leave.

use crate::support::{self, Finished, limbeck};
use safetensors::SafeTensors;
use serde_json::Value as Json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const CLASSES: usize = 3;
const TRAIN: usize = 96;
const VALID: usize = 48;

/// Two members, one of them once as a student and once as a cache; a student of theirs; what each of them says.
const PIPELINE: &str = "\
version: 1
name: together
seed: 5
datasets:
  rows: &rows {format: csv, path: rows.csv, tensors: {pixel_values: {columns: [0, 3]}}, label: 4, rows: [0, 96]}
  valid: {<<: *rows, rows: [96, 144]}
data: {train: rows, valid: valid}
batch: {size: 16}
optimizer: {kind: adamw, lr: 3e-2}
checkpoint: {every: 5 steps, keep_last: 2}
student: {uses: limbeck.mlp, with: {inputs: 4, hidden: [12], classes: 3}}
epochs: 8
stages:
  - {name: gen1, kind: train, loss: [{uses: limbeck.ce}]}
  - {name: gen2, kind: distill, teacher: {from: gen1}, loss: [{uses: limbeck.kl}, {uses: limbeck.ce}]}
  - {name: kept1, kind: capture, teacher: {from: gen1}, data: [rows, valid]}
  - {name: kept2, kind: capture, teacher: {from: gen2}, data: [rows, valid]}
  - name: together
    kind: eval
    model: {ensemble: [{from: gen1}, {from: gen2}]}
    data: valid
    metrics: [accuracy, nll]
  - name: small
    kind: distill
    student: {uses: limbeck.mlp, with: {inputs: 4, hidden: [5], classes: 3}}
    teacher: {ensemble: [{from: gen1}, {name: second, cache: {from: kept2}}]}
    loss:
      - {uses: limbeck.kl}
      - {name: first, uses: limbeck.kl, weight: 0.5, inputs: {teacher.logits: teacher.gen1.logits}}
    eval: {every: 2 epochs, metrics: [loss, agreement]}
  - {name: kept3, kind: capture, teacher: {from: small}, data: valid}
  - name: copied
    kind: distill
    teacher: {ema: {decay: 0.8}}
    loss: [{uses: limbeck.ce}, {uses: limbeck.kl, weight: 0.5}]
    eval: {every: 1 epochs, metrics: [accuracy, nll], best: {metric: ema.nll}}
    gates: [{metric: ema.accuracy, min: 0.5}]
  - {name: copy, kind: eval, model: {from: copied, which: ema}, data: valid, metrics: [accuracy, nll]}
  - {name: own, kind: eval, model: {from: copied}, data: valid, metrics: [accuracy, nll]}
";

/// Rows of four numbers whose largest of the first three, mostly, is the class.
fn rows() -> (String, Vec<usize>) {
    let (mut text, mut labels, mut state) = (String::new(), Vec::new(), 12_345_u64);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 31)
    };
    for _ in 0..TRAIN + VALID {
        let x: Vec<f64> = (0..4).map(|_| next()).collect();
        let largest = (0..CLASSES).max_by(|a, b| x[*a].total_cmp(&x[*b])).expect("three");
        let label = if next() < 0.15 { (largest + 1) % CLASSES } else { largest };
        writeln!(text, "{:.4},{:.4},{:.4},{:.4},{label}", x[0], x[1], x[2], x[3]).expect("text");
        labels.push(label);
    }
    (text, labels)
}

/// Runs the pipeline in a folder; gives its run directory.
fn run(folder: &Path, extra: &[&str]) -> (Finished, Option<PathBuf>) {
    std::fs::write(folder.join("rows.csv"), rows().0).expect("rows");
    std::fs::write(folder.join("p.yaml"), PIPELINE).expect("pipeline");
    let done = support::finish(
        limbeck().args(["run", "p.yaml", "--progress", "none"]).args(extra).current_dir(folder),
    );
    let runs = std::fs::read_dir(folder.join("runs/together")).into_iter().flatten();
    (done, runs.flatten().map(|e| e.path()).find(|p| p.is_dir()))
}

/// Log-probabilities of the validation rows that a `capture` stage kept, in the order of the rows.
fn kept(run: &Path, stage: &str) -> Vec<[f64; CLASSES]> {
    let mut found = std::collections::BTreeMap::new();
    for file in std::fs::read_dir(run.join("stages").join(stage).join("out")).expect("a cache") {
        let path = file.expect("entry").path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("shard");
        let shard = SafeTensors::deserialize(&bytes).expect("safetensors");
        let places = shard.tensor("rows").expect("rows").data().to_vec();
        let logits = shard.tensor("logits").expect("logits").data().to_vec();
        for (place, row) in places.chunks(8).zip(logits.chunks(4 * CLASSES)) {
            let place = i64::from_le_bytes(place.try_into().expect("8 bytes"));
            let value = |c: usize| {
                f64::from(f32::from_le_bytes(row[4 * c..4 * c + 4].try_into().expect("4 bytes")))
            };
            let z = [value(0), value(1), value(2)];
            let all = z.iter().map(|v| v.exp()).sum::<f64>().ln();
            found.insert(place, z.map(|v| v - all));
        }
    }
    let from = i64::try_from(TRAIN).expect("small");
    found.split_off(&from).into_values().collect()
}

fn metrics(run: &Path, file: &str) -> Json {
    serde_json::from_slice(&std::fs::read(run.join("stages").join(file)).expect("metrics"))
        .expect("JSON")
}

fn largest(row: &[f64; CLASSES]) -> usize {
    (0..CLASSES).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("three")
}

#[test]
fn an_ensemble_is_the_mean_of_its_members_probabilities() {
    let folder = support::temp_dir();
    let (done, dir) = run(folder.path(), &[]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    let dir = dir.expect("a run");
    let (one, two) = (kept(&dir, "03-kept1"), kept(&dir, "04-kept2"));
    let student = kept(&dir, "07-kept3");
    assert_eq!((one.len(), two.len(), student.len()), (VALID, VALID, VALID));
    let labels = &rows().1[TRAIN..];
    let mean: Vec<[f64; CLASSES]> = one
        .iter()
        .zip(&two)
        .map(|(a, b)| std::array::from_fn(|c| ((a[c].exp() + b[c].exp()) / 2.0).ln()))
        .collect();
    let share = |hits: usize| hits as f64 / VALID as f64;
    let close = |found: &Json, wanted: f64, what: &str| {
        let found = found.as_f64().expect("a number");
        assert!((found - wanted).abs() < 1e-5 * wanted.abs().max(1.0), "{what}: {found} {wanted}");
    };
    let measured = metrics(&dir, "05-together/eval/valid.json");
    let nll = mean.iter().zip(labels).map(|(row, y)| -row[*y]).sum::<f64>() / VALID as f64;
    let of_logits = one.iter().zip(&two).zip(labels).map(|((a, b), y)| -(a[*y] + b[*y]) / 2.0);
    let of_logits = of_logits.sum::<f64>() / VALID as f64;
    assert!((nll - of_logits).abs() > 1e-4, "the mean of logits would be another number");
    close(&measured["nll"], nll, "nll");
    let right = mean.iter().zip(labels).filter(|(row, y)| largest(row) == **y).count();
    close(&measured["accuracy"], share(right), "accuracy");
    // The student's loss: KL from the ensemble, and half of the KL from its first member alone.
    let kl = |from: &[[f64; CLASSES]]| -> f64 {
        let row = |(p, q): (&[f64; CLASSES], &[f64; CLASSES])| -> f64 {
            p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
        };
        from.iter().zip(&student).map(row).sum::<f64>() / VALID as f64
    };
    let taught = &metrics(&dir, "06-small/eval/final.json")["metrics"];
    close(&taught["loss"], kl(&mean) + 0.5 * kl(&one), "loss");
    let agreed = mean.iter().zip(&student).filter(|(m, s)| largest(m) == largest(s)).count();
    close(&taught["agreement"], share(agreed), "agreement");
}

#[test]
fn a_stage_of_an_ensemble_that_is_stopped_again_and_again_ends_the_same() {
    let (whole, parts) = (support::temp_dir(), support::temp_dir());
    let (done, expected) = run(whole.path(), &[]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    let mut stops = 0;
    let found = loop {
        let (done, dir) = run(parts.path(), &["--max-steps", "13"]);
        match done.code {
            Some(0) => break dir,
            Some(75) => stops += 1,
            other => panic!("{other:?}: {}", done.err),
        }
    };
    assert!(stops > 8, "only {stops} stops");
    let (expected, found) = (expected.expect("a run"), found.expect("a run"));
    let steps = TRAIN / 16 * 8;
    let files = [
        format!("stages/06-small/ckpt/step-{steps:07}/model.safetensors"),
        format!("stages/06-small/ckpt/step-{steps:07}/optim.safetensors"),
        format!("stages/08-copied/ckpt/step-{steps:07}/extra.safetensors"),
        "stages/05-together/eval/valid.json".into(),
        "stages/09-copy/eval/valid.json".into(),
        "metrics.jsonl".into(),
    ];
    for file in files {
        let read =
            |dir: &Path| std::fs::read(dir.join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(read(&expected) == read(&found), "{file} differs");
    }
}

#[test]
fn the_moving_copy_is_measured_beside_the_student_and_can_be_taken_instead() {
    let folder = support::temp_dir();
    let (done, dir) = run(folder.path(), &[]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    let dir = dir.expect("a run");
    let trained = &metrics(&dir, "08-copied/eval/final.json")["metrics"];
    let (copy, own) =
        (metrics(&dir, "09-copy/eval/valid.json"), metrics(&dir, "10-own/eval/valid.json"));
    for metric in ["accuracy", "nll"] {
        assert_eq!(trained[format!("ema.{metric}")], copy[metric], "{trained} {copy}");
        assert_eq!(trained[metric], own[metric], "{trained} {own}");
    }
    assert_ne!(copy["nll"], own["nll"], "the copy lags behind");
    let out = folder.path().join("copy");
    let exported = support::finish(
        limbeck()
            .args(["export"])
            .arg(&dir)
            .args(["--stage", "copied", "--which", "ema", "--to"])
            .arg(&out)
            .current_dir(folder.path()),
    );
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    let steps = TRAIN / 16 * 8;
    let extra = dir.join(format!("stages/08-copied/ckpt/step-{steps:07}/extra.safetensors"));
    let (saved, written) =
        (std::fs::read(extra).expect("copy"), std::fs::read(out.join("model.safetensors")));
    let written = written.expect("an export");
    let saved = SafeTensors::deserialize(&saved).expect("safetensors");
    let written = SafeTensors::deserialize(&written).expect("safetensors");
    let mut compared = 0;
    for (name, tensor) in saved.tensors() {
        let Some(name) = name.strip_prefix("ema/") else { continue };
        assert_eq!(written.tensor(name).expect("by name").data(), tensor.data(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, written.tensors().len());
    let refused = support::finish(
        limbeck()
            .arg("eval")
            .arg(&dir)
            .args(["--stage", "gen1", "--which", "ema"])
            .current_dir(folder.path()),
    );
    assert_eq!(refused.code, Some(78), "{}", refused.err);
    assert!(refused.err.contains("stage `gen1` has no EMA of its student"), "{}", refused.err);
}
