//! Each broken plugin is caught by the check that is meant for it, and a run that meets one says whose fault it is.

use crate::support::{self, Finished, cc, temp_dir};
use std::path::{Path, PathBuf};

/// Fixture, the check that must catch it, how.
const CAUGHT: &[(&str, &str, &str)] = &[
    ("no_entry.c", "file.exports", "fail"),
    ("no_entry.c", "load.entry", "fail"),
    ("wrong_major.c", "file.manifest", "fail"),
    ("wrong_major.c", "load.entry", "fail"),
    ("returns_nan.c", "loss.finite", "fail"),
    ("wrong_gradient.c", "loss.gradient", "fail"),
    ("out_of_bounds.c", "loss.bounds", "fail"),
    ("ignores_accumulate.c", "loss.accumulate", "fail"),
    ("ignores_scale.c", "loss.grad-scale", "fail"),
    ("keeps_state.c", "loss.stateless", "fail"),
    ("leaks.c", "lifecycle.create-destroy", "fail"),
    ("leaks.c", "loss.memory", "fail"),
    ("slow.c", "loss.finite", "hang"),
    ("throws.cpp", "loss.finite", "crash"),
    ("segv.c", "loss.finite", "crash"),
    ("returns_panic.c", "loss.finite", "fail"),
    ("prints.c", "load.quiet", "fail"),
    ("changes_rounding.c", "load.quiet", "fail"),
];

/// Checks of the list that one fixture is for.
fn verdicts(finished: &Finished, check: &str) -> Vec<(String, String)> {
    let lines = finished.json();
    let of_check = lines.iter().filter(|l| l["check"] == check);
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    of_check.map(|l| (text(&l["verdict"]), text(&l["text"]))).collect()
}

#[test]
fn every_fault_is_caught_by_its_check() {
    let folder = temp_dir();
    for (fixture, check, verdict) in CAUGHT {
        let library = cc::plugin(&cc::fixture(fixture), folder.path(), &[]);
        let include = format!("^{check}$");
        let finished = support::check(&library, &["--include", &include, "--timeout", "5"]);
        let found = verdicts(&finished, check);
        assert_eq!(found.len(), 1, "{fixture} {check}: {}\n{}", finished.out, finished.err);
        assert_eq!(found[0].0, *verdict, "{fixture} {check}: {}", found[0].1);
        assert_eq!(finished.code, Some(76), "{fixture}");
    }
}

#[test]
fn crashes_and_hangs_say_in_which_call() {
    let folder = temp_dir();
    for (fixture, words) in
        [("throws.cpp", "SIGABRT, in: compute"), ("segv.c", "SIGSEGV, in: compute")]
    {
        let library = cc::plugin(&cc::fixture(fixture), folder.path(), &[]);
        let finished = support::check(&library, &["--include", "^loss.finite$"]);
        let found = verdicts(&finished, "loss.finite");
        assert!(found[0].1.contains(words), "{fixture}: {}", found[0].1);
    }
}

#[test]
fn the_same_plugin_without_a_fault_passes() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("right.c"), folder.path(), &[]);
    let finished = support::check(&library, &[]);
    assert_eq!(finished.code, Some(0), "{}", finished.out);
}

#[test]
fn every_fixture_is_used() {
    let mut unused: Vec<String> = std::fs::read_dir(support::root().join("tests/fixtures"))
        .expect("the folder")
        .filter_map(|e| e.expect("entry").file_name().into_string().ok())
        .filter(|n| n.ends_with(".c") || n.ends_with(".cpp"))
        .collect();
    assert!(unused.len() >= 15, "{unused:?}");
    unused.retain(|n| !CAUGHT.iter().any(|(fixture, ..)| fixture == n));
    unused.retain(|n| !["right.c", "fkl.c", "growth.c", "window.c"].contains(&n.as_str()));
    assert_eq!(unused, Vec::<String>::new());
}

/// Runs a one-stage distillation whose loss is the library's plugin.
fn run_with(folder: &Path, library: &Path, id: &str) -> Finished {
    let data = support::root().join("pipelines/data/digits.csv.gz");
    let text = include_str!("fixtures/distill.yaml")
        .replace("@DATA@", &data.display().to_string())
        .replace("@LIBRARY@", &library.display().to_string())
        .replace("epochs: 8", "epochs: 1")
        .replace("@LOSS@", id);
    let pipeline = folder.join("p.yaml");
    std::fs::write(&pipeline, text).expect("write");
    support::finish(
        support::limbeck()
            .args(["--allow-unlocked", "run"])
            .arg(&pipeline)
            .arg("--runs")
            .arg(folder.join("runs")),
    )
}

fn crash_report(folder: &Path) -> Option<String> {
    let runs = std::fs::read_dir(folder.join("runs/fixture")).ok()?;
    runs.filter_map(|r| std::fs::read_to_string(r.ok()?.path().join("CRASH.txt")).ok()).next()
}

#[test]
fn a_run_attributes_the_fault_and_exits_as_documented() {
    for (fixture, id, code, words) in [
        ("no_entry.c", "test.no-entry", 77, "test.no-entry"),
        ("wrong_major.c", "test.wrong-major", 77, "ABI 2"),
        ("returns_nan.c", "test.returns-nan", 79, "test.returns-nan"),
        ("returns_panic.c", "test.returns-panic", 76, "`test.returns-panic` panicked in compute"),
    ] {
        let folder = temp_dir();
        let library = cc::plugin(&cc::fixture(fixture), folder.path(), &[]);
        let finished = run_with(folder.path(), &library, id);
        assert_eq!(finished.code, Some(code), "{fixture}: {}", finished.err);
        assert!(finished.err.contains(words), "{fixture}: {}", finished.err);
        assert!(!finished.err.contains("bug"), "{fixture}: {}", finished.err);
    }
}

#[test]
fn a_crash_of_a_plugin_leaves_its_name_its_call_and_the_step() {
    for (fixture, id, signal) in [
        ("segv.c", "test.segv", libc_signal("SIGSEGV")),
        ("throws.cpp", "test.throws", libc_signal("SIGABRT")),
    ] {
        let folder = temp_dir();
        let library = cc::plugin(&cc::fixture(fixture), folder.path(), &[]);
        let finished = run_with(folder.path(), &library, id);
        assert_eq!(
            finished.signal,
            Some(signal),
            "{fixture}: {:?} {}",
            finished.code,
            finished.err
        );
        let report = crash_report(folder.path()).expect("CRASH.txt");
        assert!(report.contains(&format!("plugin `{id}` died of")), "{report}");
        assert!(report.contains("in compute at step"), "{report}");
    }
}

fn libc_signal(name: &str) -> i32 {
    if name == "SIGSEGV" { 11 } else { 6 }
}

#[test]
fn an_unlocked_plugin_does_not_run() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("right.c"), folder.path(), &[]);
    let first = run_with(folder.path(), &library, "test.right");
    assert_eq!(first.code, Some(0), "{}", first.err);
    let run = |args: &[&str]| {
        support::finish(support::limbeck().args(args).arg(folder.path().join("p.yaml")))
    };
    assert_eq!(run(&["validate"]).code, Some(77));
    let locked = run(&["plugin", "lock"]);
    assert_eq!(locked.code, Some(0), "{}", locked.err);
    assert_eq!(run(&["validate"]).code, Some(0));
    // One byte more is another file.
    let mut bytes = std::fs::read(&library).expect("read");
    bytes.push(0);
    std::fs::write(&library, bytes).expect("write");
    let changed = run(&["validate"]);
    assert_eq!(changed.code, Some(77), "{}", changed.err);
    assert!(changed.err.contains("LMB0306"), "{}", changed.err);
}

fn panicking_plugin() -> PathBuf {
    let shared = support::root().join("target/fixtures/new");
    let args = ["--offline", "--target-dir", shared.to_str().expect("UTF-8 path")];
    let folder = support::root().join("tests/fixtures/panics");
    let built = support::cargo_cdylibs(&folder, &args);
    built.into_iter().find(|(n, _)| n == "panics").expect("the library").1
}

#[test]
fn a_panic_in_a_rust_plugin_is_caught_and_named() {
    let library = panicking_plugin();
    let finished = support::check(&library, &["--include", "^loss.finite$"]);
    let found = verdicts(&finished, "loss.finite");
    assert_eq!(found[0].0, "fail", "{found:?}");
    assert!(found[0].1.contains("status 13"), "{found:?}");
    let folder = temp_dir();
    let finished = run_with(folder.path(), &library, "test.panics");
    assert_eq!(finished.code, Some(76), "{}", finished.err);
    assert!(finished.err.contains("test.panics"), "{}", finished.err);
    assert!(finished.err.contains("index out of bounds"), "{}", finished.err);
}
