//! `limbeck plugin check` passes everything that is right: the built-in plugins, the C plugin, what `plugin new` writes.

use crate::support::{self, Finished, cc, temp_dir};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn field<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Fails with every check that failed; gives (passed, plugins seen).
fn expect_clean(finished: &Finished) -> (u64, usize) {
    let lines = finished.json();
    let bad: Vec<String> = lines
        .iter()
        .filter(|l| matches!(field(l, "verdict"), "fail" | "crash" | "hang"))
        .map(|l| format!("{} {}: {}", field(l, "plugin"), field(l, "check"), field(l, "text")))
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    let plugins: std::collections::BTreeSet<&str> =
        lines.iter().map(|l| field(l, "plugin")).filter(|p| !p.is_empty()).collect();
    let passed = lines.last().and_then(|l| l["passed"].as_u64()).unwrap_or(0);
    (passed, plugins.len())
}

#[test]
fn built_in_plugins_pass_every_check() {
    for (library, plugins) in [("losses", 30), ("students", 2), ("teachers", 1), ("schedulers", 11)]
    {
        let (passed, seen) = expect_clean(&support::check(&support::plugin_path(library), &[]));
        assert!(seen >= plugins, "{library}: checked {seen} plugins");
        assert!(passed >= 15 * seen as u64, "{library}: only {passed} checks passed");
    }
}

#[test]
fn the_teacher_that_reads_an_export_passes_every_check_with_one() {
    let folder = temp_dir();
    let pipeline = folder.path().join("p.yaml");
    let data = support::root().join("pipelines/data/digits.csv.gz");
    let text = format!(
        "version: 1\nname: exported\ndatasets:\n  rows: {{format: csv, path: {}, tensors: {{pixel_values: \
         {{columns: [0, 63], scale: 0.0625}}}}, label: 64, rows: [0, 100]}}\ndata: {{train: rows}}\nbatch: {{size: 50}}\n\
         optimizer: {{kind: sgd, lr: 0.1}}\nsteps: 2\nstages:\n  - {{name: student, kind: train, student: {{uses: \
         limbeck.mlp, with: {{inputs: 64, hidden: [8], classes: 10}}}}, loss: [{{uses: limbeck.ce}}]}}\n  - {{name: out, \
         kind: export, model: {{from: student}}, format: hf, to: {}}}\n",
        data.display(),
        folder.path().join("export").display()
    );
    std::fs::write(&pipeline, text).expect("write");
    let run = support::finish(
        support::limbeck().arg("run").arg(&pipeline).arg("--runs").arg(folder.path().join("runs")),
    );
    assert_eq!(run.code, Some(0), "{}", run.err);
    let with = serde_json::json!({"path": folder.path().join("export")}).to_string();
    let args = ["--plugin", "limbeck.hf", "--with", &with];
    let finished = support::check(&support::plugin_path("teachers"), &args);
    expect_clean(&finished);
    let skipped: Vec<String> = finished
        .json()
        .iter()
        .filter(|l| field(l, "verdict") == "skip" && field(l, "check").starts_with("model."))
        .map(|l| format!("{}: {}", field(l, "check"), field(l, "text")))
        .collect();
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[test]
fn another_seed_finds_nothing_in_the_losses_either() {
    let library = support::plugin_path("losses");
    expect_clean(&support::check(&library, &["--seed", "20", "--include", "^loss"]));
}

#[test]
fn the_c_plugin_passes_every_check() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("fkl.c"), folder.path(), &[]);
    let (passed, seen) = expect_clean(&support::check(&library, &[]));
    assert_eq!(seen, 1);
    assert!(passed >= 40, "only {passed} checks passed");
    expect_clean(&support::check(&library, &["--with", "{\"temperature\": 4.0}"]));
}

#[test]
fn the_c_plugin_and_the_built_in_one_agree_on_a_training_run() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("fkl.c"), folder.path(), &[]);
    let accuracy = |loss: &str| {
        let pipeline = folder.path().join("p.yaml");
        let data = support::root().join("pipelines/data/digits.csv.gz");
        let text = include_str!("fixtures/distill.yaml")
            .replace("id: @LOSS@", "id: org.example.fkl")
            .replace("@DATA@", &data.display().to_string())
            .replace("@LIBRARY@", &library.display().to_string())
            .replace("@LOSS@", loss);
        std::fs::write(&pipeline, text).expect("write");
        let runs = folder.path().join(loss);
        let finished = support::finish(
            support::limbeck()
                .args(["--json", "--allow-unlocked", "run"])
                .arg(&pipeline)
                .arg("--runs")
                .arg(&runs),
        );
        assert_eq!(finished.code, Some(0), "{}", finished.err);
        let stages = finished.json();
        let last =
            stages.iter().rfind(|l| field(l, "stage") == "student").expect("the stage ended");
        last["metrics"]["accuracy"].as_f64().expect("an accuracy")
    };
    let (c, built_in) = (accuracy("org.example.fkl"), accuracy("limbeck.kl"));
    assert!((c - built_in).abs() < 0.02, "C {c}, built in {built_in}");
    assert!(c > 0.7, "learned nothing: {c}");
}

#[test]
fn a_scheduler_from_outside_passes_every_check_and_replays_like_the_built_in_one() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("window.c"), folder.path(), &["-Werror"]);
    expect_clean(&support::check(&library, &[]));
    expect_clean(&support::check(&library, &["--with", "{\"rows\": 5}"]));
    let data = support::root().join("pipelines/data/digits.csv.gz");
    let first_task = |uses: &str| {
        let text = include_str!("fixtures/stream.yaml")
            .replace("@DATA@", &data.display().to_string())
            .replace("@LIBRARY@", &library.display().to_string())
            .replace("@SCHEDULER@", uses);
        let pipeline = folder.path().join("p.yaml");
        std::fs::write(&pipeline, text).expect("write");
        let runs = tempfile::tempdir_in(folder.path()).expect("a folder");
        let finished = support::finish(
            support::limbeck()
                .args(["--json", "--allow-unlocked", "run"])
                .arg(&pipeline)
                .arg("--runs")
                .arg(runs.path()),
        );
        assert_eq!(finished.code, Some(0), "{}", finished.err);
        let lines = finished.json();
        let last = lines.iter().rfind(|l| field(l, "type") == "task_matrix").expect("a matrix");
        last["rows"][2][0].as_f64().expect("an accuracy")
    };
    let none = first_task("{uses: limbeck.none}");
    let window = first_task("{uses: org.example.window, with: {rows: 2000}}");
    assert!(none < 0.1, "nothing was forgotten without replay: {none}");
    assert!(window > 0.5, "the window replays the oldest rows: {window}");
}

#[test]
fn a_new_c_scheduler_builds_and_passes() {
    let folder = temp_dir();
    let target = folder.path().join("my-window");
    let made = support::finish(
        support::limbeck()
            .args(["plugin", "new", "my-window", "--kind", "scheduler", "--lang", "c", "--to"])
            .arg(&target),
    );
    assert_eq!(made.code, Some(0), "{}", made.err);
    let include = format!("-I{}", target.join("include").display());
    let library = cc::plugin(&target.join("plugin.c"), folder.path(), &["-Werror", &include]);
    expect_clean(&support::check(&library, &["--plugin", "org.example.my-window"]));
}

#[test]
fn a_new_c_plugin_builds_and_passes() {
    let folder = temp_dir();
    let target = folder.path().join("my-loss");
    let made = support::finish(
        support::limbeck()
            .args(["plugin", "new", "my-loss", "--kind", "loss", "--lang", "c", "--to"])
            .arg(&target),
    );
    assert_eq!(made.code, Some(0), "{}", made.err);
    let include = format!("-I{}", target.join("include").display());
    let library = cc::plugin(&target.join("plugin.c"), folder.path(), &["-Werror", &include]);
    expect_clean(&support::check(&library, &["--plugin", "org.example.my-loss"]));
    let again = support::finish(
        support::limbeck()
            .args(["plugin", "new", "my-loss", "--kind", "loss", "--lang", "c", "--to"])
            .arg(&target),
    );
    assert_eq!(again.code, Some(73), "wrote over what exists: {}", again.out);
}

/// Folder with what `plugin new --lang rust` writes.
fn new_rust_crate(kind: &str, folder: &Path) -> PathBuf {
    let target = folder.join("made");
    let name = format!("made-{kind}");
    let made = support::finish(
        support::limbeck().args(["plugin", "new", &name, "--kind", kind, "--to"]).arg(&target),
    );
    assert_eq!(made.code, Some(0), "{}", made.err);
    target
}

#[test]
fn a_new_rust_loss_and_scheduler_build_and_pass() {
    for kind in ["loss", "scheduler"] {
        let folder = temp_dir();
        let target = new_rust_crate(kind, folder.path());
        // The workspace's lock keeps the new crate to the versions that are here already.
        std::fs::copy(support::root().join("Cargo.lock"), target.join("Cargo.lock")).expect("copy");
        let shared = support::root().join("target/fixtures/new");
        let args = ["--offline", "--target-dir", shared.to_str().expect("UTF-8 path")];
        let built = support::cargo_cdylibs(&target, &args);
        let (_, library) =
            built.iter().find(|(n, _)| *n == format!("made-{kind}")).expect("the new library");
        expect_clean(&support::check(library, &[]));
    }
}

/// Their sources are compiled as examples of the SDK, with the workspace's candle: a crate of its own would compile
/// candle once more, for minutes.
#[test]
fn a_new_rust_student_and_teacher_build_and_pass() {
    let built = support::cargo_cdylibs(support::root(), &["--workspace", "--examples"]);
    for (kind, name) in [("student", "MadeStudent"), ("teacher", "MadeTeacher")] {
        let (_, library) =
            built.iter().find(|(n, _)| *n == format!("new-{kind}")).expect("the example");
        let (passed, _) = expect_clean(&support::check(library, &[]));
        assert!(passed >= 20, "{kind}: only {passed} checks passed");
        let folder = temp_dir();
        let target = new_rust_crate(kind, folder.path());
        let template = support::root().join(format!("runner/cli/templates/{kind}.rs"));
        let template = std::fs::read_to_string(template).expect("the template");
        let written = std::fs::read_to_string(target.join("src/lib.rs")).expect("the source");
        let expected = template
            .replace("org.example.template", &format!("org.example.made-{kind}"))
            .replace("Template", name);
        assert_eq!(written, expected);
        let output = std::process::Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path"])
            .arg(target.join("Cargo.toml"))
            .output()
            .expect("cargo starts");
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let sdk = &metadata["packages"][0]["dependencies"][0];
        assert_eq!(
            (sdk["name"].as_str(), sdk["features"][0].as_str()),
            (Some("limbeck-sdk"), Some("candle"))
        );
    }
}
