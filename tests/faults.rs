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
    ("ignores_cancel.c", "cancel.activate", "fail"),
    ("stays_cancelled.c", "cancel.activate", "fail"),
    ("fails_when_cancelled.c", "cancel.compute", "fail"),
    ("ignores_null.c", "memory.compute", "crash"),
    ("keeps_after_failure.c", "memory.activate", "fail"),
];

/// Plugin of the Rust fixture, the check that must catch it.
const CAUGHT_IN_RUST: &[(&str, &str)] = &[
    ("test.wrong-input-gradient", "model.input-gradient"),
    ("test.cancelled-forward", "cancel.forward"),
    ("test.cancelled-load", "cancel.state"),
    ("test.no-memory", "memory.forward"),
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
    for (fixture, check, words) in [
        ("throws.cpp", "loss.finite", "SIGABRT, in: compute"),
        ("segv.c", "loss.finite", "SIGSEGV, in: compute"),
        ("ignores_null.c", "memory.compute", "SIGSEGV, in: allocation 1 fails"),
    ] {
        let library = cc::plugin(&cc::fixture(fixture), folder.path(), &[]);
        let finished = support::check(&library, &["--include", &format!("^{check}$")]);
        let found = verdicts(&finished, check);
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
    let others = ["right.c", "waits.c", "fkl.c", "growth.c", "window.c", "on_device.c"];
    unused.retain(|n| !others.contains(&n.as_str()));
    assert_eq!(unused, Vec::<String>::new());
}

/// A distillation whose loss is the library's plugin.
fn pipeline(folder: &Path, library: &Path, id: &str) -> PathBuf {
    let data = support::root().join("pipelines/data/digits.csv.gz");
    let text = include_str!("fixtures/distill.yaml")
        .replace("@DATA@", &data.display().to_string())
        .replace("@LIBRARY@", &library.display().to_string())
        .replace("epochs: 8", "epochs: 1")
        .replace("@LOSS@", id);
    let pipeline = folder.join("p.yaml");
    std::fs::write(&pipeline, text).expect("write");
    pipeline
}

/// Runs it.
fn run_with(folder: &Path, library: &Path, id: &str) -> Finished {
    support::finish(
        support::limbeck()
            .args(["--allow-unlocked", "run"])
            .arg(pipeline(folder, library, id))
            .arg("--runs")
            .arg(folder.join("runs")),
    )
}

/// The folder of the only run.
fn only_run(folder: &Path) -> PathBuf {
    let mut runs = std::fs::read_dir(folder.join("runs/fixture")).expect("runs");
    runs.next().expect("a run").expect("readable").path()
}

fn crash_report(folder: &Path) -> Option<String> {
    std::fs::read_to_string(only_run(folder).join("CRASH.txt")).ok()
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
    for (fixture, id, signal) in
        [("segv.c", "test.segv", libc::SIGSEGV), ("throws.cpp", "test.throws", libc::SIGABRT)]
    {
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

#[test]
fn an_unlocked_plugin_does_not_run() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("right.c"), folder.path(), &[]);
    let first = run_with(folder.path(), &library, "test.right");
    assert_eq!(first.code, Some(0), "{}", first.err);
    let record = std::fs::read(only_run(folder.path()).join("run.json")).expect("run.json");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    assert_eq!(record["plugins"]["test.right"]["unlocked"], true, "{record}");
    assert_eq!(record["plugins"]["limbeck.mlp"]["unlocked"], false, "{record}");
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

fn rust_fixture() -> PathBuf {
    let shared = support::root().join("target/fixtures/new");
    let args = ["--offline", "--target-dir", shared.to_str().expect("UTF-8 path")];
    let folder = support::root().join("tests/fixtures/rust");
    let built = support::cargo_cdylibs(&folder, &args);
    built.into_iter().find(|(n, _)| n == "faulty").expect("the library").1
}

#[test]
fn every_fault_of_a_student_is_caught_by_its_check() {
    let library = rust_fixture();
    for (plugin, check) in CAUGHT_IN_RUST {
        let include = format!("^{check}$");
        let verdict = |plugin: &str| {
            let args = ["--plugin", plugin, "--include", &include];
            verdicts(&support::check(&library, &args), check).remove(0)
        };
        let found = verdict(plugin);
        assert_eq!(found.0, "fail", "{plugin}: {found:?}");
        let right = verdict("test.linear");
        assert_eq!(right.0, "pass", "the student without a fault: {right:?}");
    }
    let finished = support::check(&library, &["--plugin", "test.linear"]);
    assert_eq!(finished.code, Some(0), "{}", finished.out);
}

/// A run of the fixture's pipeline in the background, and its stdout.
fn start_with(
    folder: &Path,
    library: &Path,
    id: &str,
) -> (std::process::Child, std::io::Lines<std::io::BufReader<std::process::ChildStdout>>) {
    use std::io::BufRead as _;
    let pipeline = pipeline(folder, library, id);
    let mut child = support::limbeck()
        .args(["--allow-unlocked", "--json", "run"])
        .arg(&pipeline)
        .arg("--runs")
        .arg(folder.join("runs"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(folder.join("stderr")).expect("a file"))
        .spawn()
        .expect("starts");
    let out = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
    (child, out)
}

fn signal(child: &std::process::Child, signal: i32) {
    let pid = i32::try_from(child.id()).expect("a pid");
    // SAFETY: a child of ours that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn a_call_that_obeys_the_request_to_stop_ends_in_a_checkpoint_of_the_last_step() {
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("waits.c"), folder.path(), &[]);
    let (mut child, out) = start_with(folder.path(), &library, "test.waits");
    let mut in_student = false;
    for line in out {
        let line: serde_json::Value =
            serde_json::from_str(&line.expect("UTF-8")).expect("a JSON object");
        in_student |= line["type"] == "stage_started" && line["stage"] == "student";
        if in_student && line["type"] == "step" && line["step"] == 5 {
            break;
        }
    }
    signal(&child, libc::SIGTERM);
    let status = child.wait().expect("ends");
    let err = std::fs::read_to_string(folder.path().join("stderr")).expect("stderr");
    assert_eq!(status.code(), Some(75), "{err}");
    let run = only_run(folder.path());
    let latest = std::fs::read_to_string(run.join("stages/02-student/ckpt/LATEST"));
    assert_eq!(latest.expect("a checkpoint").trim(), "step-0000005", "{err}");
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let rows: Vec<serde_json::Value> =
        rows.lines().map(|l| serde_json::from_str(l).expect("an object")).collect();
    let steps = rows.iter().filter(|r| r["stage"] == "student");
    let told: Vec<_> = steps.map(|r| (r["step"].as_u64(), r["waits.step"].as_f64())).collect();
    let expected: Vec<_> = (1..6).map(|s| (Some(s), Some(s as f64 - 1.0))).collect();
    assert_eq!(told, expected, "each step once, with what the plugin told in it");
}

#[test]
fn a_call_that_hangs_is_named_and_a_second_signal_ends_the_run() {
    use std::os::unix::process::ExitStatusExt as _;
    let folder = temp_dir();
    let library = cc::plugin(&cc::fixture("slow.c"), folder.path(), &[]);
    let (mut child, _out) = start_with(folder.path(), &library, "test.slow");
    let stderr = || std::fs::read_to_string(folder.path().join("stderr")).expect("stderr");
    let wait_for = |words: &str| {
        let begin = std::time::Instant::now();
        while !stderr().contains(words) && begin.elapsed().as_secs() < 60 {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    // Between two calls a stop is obeyed at once.
    wait_for("spinning");
    signal(&child, libc::SIGTERM);
    let words = "plugin `test.slow` has not come back from compute";
    wait_for(words);
    signal(&child, libc::SIGTERM);
    let status = child.wait().expect("ends");
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{}", stderr());
    assert!(stderr().contains(words), "{}", stderr());
    let report = crash_report(folder.path()).expect("CRASH.txt");
    assert!(report.contains("plugin `test.slow` was in compute at step"), "{report}");
}

#[test]
fn a_panic_in_a_rust_plugin_is_caught_and_named() {
    let library = rust_fixture();
    let finished =
        support::check(&library, &["--plugin", "test.panics", "--include", "^loss.finite$"]);
    let found = verdicts(&finished, "loss.finite");
    assert_eq!(found[0].0, "fail", "{found:?}");
    assert!(found[0].1.contains("status 13"), "{found:?}");
    let folder = temp_dir();
    let finished = run_with(folder.path(), &library, "test.panics");
    assert_eq!(finished.code, Some(76), "{}", finished.err);
    assert!(finished.err.contains("test.panics"), "{}", finished.err);
    assert!(finished.err.contains("index out of bounds"), "{}", finished.err);
}
