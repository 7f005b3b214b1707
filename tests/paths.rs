//! Files and runs have one name each, whatever directory the program runs in and however their paths are spelled.

use crate::support::{self, Finished, limbeck};
use std::path::Path;

/// A few steps on the digits, whose file lies beside the pipeline.
fn write_pipeline(dir: &Path) {
    let data = support::root().join("pipelines/data/digits.csv.gz");
    std::fs::copy(data, dir.join("digits.csv.gz")).expect("copy");
    let text = "version: 1
name: named
datasets:
  rows: {format: csv, path: digits.csv.gz, tensors: {pixel_values: {columns: [0, 63], scale: 0.0625}}, label: 64, limit: 100}
data: {train: rows, valid: rows}
batch: {size: 20}
optimizer: {kind: sgd, lr: 0.1}
student: {uses: limbeck.mlp, with: {inputs: 64, hidden: [8], classes: 10}}
loss: [{uses: limbeck.ce}]
steps: 20
stages:
  - {name: student, kind: train}
  - {name: export, kind: export, model: {from: student}, format: hf, to: exported}
";
    std::fs::write(dir.join("p.yaml"), text).expect("write");
}

fn run(dir: &Path, args: &[&str]) -> Finished {
    support::finish(limbeck().current_dir(dir).args(args))
}

fn ok(finished: &Finished, code: i32) {
    assert_eq!(finished.code, Some(code), "{}{}", finished.out, finished.err);
}

#[test]
fn a_run_is_the_same_however_its_pipeline_is_spelled() {
    let folder = support::temp_dir();
    let dir = folder.path();
    write_pipeline(dir);
    std::fs::create_dir(dir.join("below")).expect("a folder");
    ok(&run(dir, &["run", "p.yaml", "--max-steps", "5"]), 75);
    let id = std::fs::read_dir(dir.join("runs/named")).expect("runs").next().expect("a run");
    let id = id.expect("an entry").file_name().into_string().expect("UTF-8");
    ok(&run(dir, &["resume", &id, "--max-steps", "5"]), 75);
    ok(&run(&dir.join("below"), &["--runs", "../runs", "run", "../p.yaml"]), 0);
    for spelled in ["p.yaml", "./below/../p.yaml", dir.join("p.yaml").to_str().expect("UTF-8")] {
        let again = run(dir, &["run", spelled]);
        ok(&again, 0);
        assert!(again.out.contains("already done"), "{spelled}: {}", again.out);
    }
    assert_eq!(std::fs::read_dir(dir.join("runs/named")).expect("runs").count(), 1);
    // Twice the same pipeline: its short id names two runs, so the whole one is told.
    let fresh = run(dir, &["run", "p.yaml", "--fresh"]);
    ok(&fresh, 0);
    let told = fresh.out.rsplit("limbeck eval ").next().expect("a command").trim();
    ok(&run(dir, &["eval", told]), 0);
}

#[test]
fn a_teacher_folder_is_hashed_also_if_its_path_is_relative() {
    let folder = support::temp_dir();
    let dir = folder.path();
    write_pipeline(dir);
    ok(&run(dir, &["run", "p.yaml"]), 0);
    let cached = |stages: &str| {
        let text = std::fs::read_to_string(dir.join("p.yaml")).expect("read");
        let head = text.split("stages:").next().expect("a head").replace("named", "cached");
        format!("{head}stages:\n{stages}")
    };
    let capture = "  - {name: cache, kind: capture, teacher: {uses: limbeck.hf, with: {path: exported}}, data: rows, to: cache}\n";
    std::fs::write(dir.join("capture.yaml"), cached(capture)).expect("write");
    ok(&run(dir, &["run", "capture.yaml"]), 0);
    let locked = run(dir, &["plugin", "lock", "capture.yaml"]);
    ok(&locked, 0);
    assert!(locked.out.contains("exported"), "{}", locked.out);
    std::fs::remove_file(dir.join("limbeck.lock")).expect("the lock");
    let distill =
        "  - {name: taught, kind: distill, teacher: {cache: cache}, loss: [{uses: limbeck.kl}]}\n";
    std::fs::write(dir.join("distill.yaml"), cached(distill)).expect("write");
    ok(&run(dir, &["run", "distill.yaml"]), 0);
    let weights = dir.join("exported/model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    *bytes.last_mut().expect("a byte") ^= 1;
    std::fs::write(&weights, bytes).expect("write");
    let stale = run(dir, &["run", "distill.yaml", "--fresh"]);
    ok(&stale, 78);
    assert!(stale.err.contains("LMB0244"), "{}", stale.err);
}

#[test]
fn names_that_the_pipeline_does_not_have_are_refused_with_those_it_has() {
    let folder = support::temp_dir();
    let dir = folder.path();
    write_pipeline(dir);
    let until = run(dir, &["run", "p.yaml", "--until", "studnet"]);
    ok(&until, 2);
    assert!(until.err.contains("did you mean `student`"), "{}", until.err);
    ok(&run(dir, &["run", "p.yaml", "--until", "student"]), 0);
    let id = std::fs::read_dir(dir.join("runs/named")).expect("runs").next().expect("a run");
    let id = id.expect("an entry").file_name().into_string().expect("UTF-8");
    let eval = run(dir, &["eval", &id, "--data", "row"]);
    ok(&eval, 2);
    assert!(eval.err.contains("did you mean `rows`"), "{}", eval.err);
}
