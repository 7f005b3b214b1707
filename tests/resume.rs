//! A run that is killed, stopped or continued ends as if nothing had happened, byte for byte.
//!
//! `LIMBECK_TEST_KILLS=60` kills at sixty moments instead of the few that CI takes.

use crate::support::{self, limbeck};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A short chain that holds what a checkpoint must hold: teacher, student, replay buffer, snapshots, EMA copy.
const PIPELINE: &str = "tests/fixtures/chain.yaml";

fn run(runs: &Path, extra: &[&str]) -> Command {
    let mut command = limbeck();
    command.arg("run").arg(support::root().join(PIPELINE)).arg("--runs").arg(runs).args(extra);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) -> i32 {
    let output = command.output().expect("the program starts");
    let code = output.status.code().unwrap_or(-1);
    assert!(code == 0 || code == 75, "exit {code}:\n{}", String::from_utf8_lossy(&output.stderr));
    code
}

/// The one run directory below `runs`.
fn run_dir(runs: &Path) -> PathBuf {
    let named =
        std::fs::read_dir(runs).expect("runs").next().expect("a pipeline").expect("entry").path();
    let mut dirs: Vec<_> = std::fs::read_dir(named)
        .expect("runs of the pipeline")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.is_dir())
        .collect();
    assert_eq!(dirs.len(), 1, "a second run was started instead of continuing: {dirs:?}");
    dirs.remove(0)
}

/// What must be equal: every weight file, the rows of metrics, evaluations.
fn results(runs: &Path) -> BTreeMap<String, Vec<u8>> {
    let root = run_dir(runs);
    let mut found = BTreeMap::new();
    collect(&root, &root, &mut found);
    assert!(found.keys().any(|k| k.ends_with("model.safetensors")), "no weights in {found:?}");
    assert!(found.contains_key("metrics.jsonl"));
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        let name = path.strip_prefix(root).expect("below root").to_string_lossy().into_owned();
        let leaf = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        assert!(!leaf.starts_with(".tmp-") && !leaf.starts_with(".trash-"), "left over: {name}");
        if path.is_dir() {
            if leaf != "ckpt" && leaf != "tb" && leaf != "logs" {
                collect(root, &path, found);
            }
        } else if leaf == "metrics.jsonl" || leaf == "model.safetensors" || name.contains("/eval/")
        {
            found.insert(name, std::fs::read(&path).expect("read"));
        }
    }
}

fn assert_same(
    expected: &BTreeMap<String, Vec<u8>>,
    found: &BTreeMap<String, Vec<u8>>,
    what: &str,
) {
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        found.keys().collect::<Vec<_>>(),
        "{what}: other files"
    );
    for (name, bytes) in expected {
        assert!(bytes == &found[name], "{what}: {name} differs");
    }
}

fn reference() -> (BTreeMap<String, Vec<u8>>, Duration) {
    let runs = support::temp_dir();
    let start = Instant::now();
    assert_eq!(finish(run(runs.path(), &[])), 0);
    (results(runs.path()), start.elapsed())
}

#[test]
fn a_killed_run_continues_byte_for_byte() {
    let kills: u32 =
        std::env::var("LIMBECK_TEST_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(6);
    let (expected, took) = reference();
    let mut killed = 0;
    for k in 0..kills {
        let runs = support::temp_dir();
        let moment = took.mul_f64((f64::from(k) + 0.5) / f64::from(kills));
        let mut child = run(runs.path(), &[]).stderr(Stdio::null()).spawn().expect("starts");
        std::thread::sleep(moment);
        let was_running = child.try_wait().expect("wait").is_none();
        child.kill().expect("SIGKILL");
        child.wait().expect("reaped");
        killed += u32::from(was_running);
        assert_eq!(finish(run(runs.path(), &[])), 0);
        assert_same(&expected, &results(runs.path()), &format!("killed after {moment:?}"));
    }
    assert!(killed * 2 >= kills, "only {killed} of {kills} runs were still going when killed");
}

#[test]
fn a_run_killed_again_and_again_still_ends_the_same() {
    let (expected, took) = reference();
    let runs = support::temp_dir();
    for _ in 0..5 {
        let mut child = run(runs.path(), &[]).stderr(Stdio::null()).spawn().expect("starts");
        std::thread::sleep(took.mul_f64(0.3));
        child.kill().expect("SIGKILL");
        child.wait().expect("reaped");
    }
    assert_eq!(finish(run(runs.path(), &[])), 0);
    assert_same(&expected, &results(runs.path()), "killed five times");
}

#[test]
fn a_stop_at_every_few_steps_continues_byte_for_byte() {
    let (expected, _) = reference();
    let runs = support::temp_dir();
    let mut stops = 0;
    while finish(run(runs.path(), &["--max-steps", "17"])) == 75 {
        stops += 1;
        assert!(stops < 200, "the run makes no progress");
    }
    assert!(stops >= 5, "only {stops} stops");
    assert_same(&expected, &results(runs.path()), &format!("stopped {stops} times"));
}

#[test]
fn sigterm_ends_in_a_checkpoint_and_exit_75() {
    let (expected, took) = reference();
    let runs = support::temp_dir();
    let child = run(runs.path(), &[]).stderr(Stdio::null()).spawn().expect("starts");
    std::thread::sleep(took.mul_f64(0.5));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    let output = child.wait_with_output().expect("reaped");
    assert_eq!(output.status.code(), Some(75));
    assert_eq!(finish(run(runs.path(), &[])), 0);
    assert_same(&expected, &results(runs.path()), "stopped by SIGTERM");
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (expected, _) = reference();
    let runs = support::temp_dir();
    assert_eq!(finish(run(runs.path(), &["--threads", "1"])), 0);
    assert_same(&expected, &results(runs.path()), "one thread");
}

#[test]
fn a_finished_run_says_so_and_changes_nothing() {
    let runs = support::temp_dir();
    assert_eq!(finish(run(runs.path(), &[])), 0);
    let before = results(runs.path());
    let output = run(runs.path(), &[]).stdout(Stdio::piped()).output().expect("starts");
    assert_eq!(output.status.code(), Some(0));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("already done"), "{said}");
    assert_same(&before, &results(runs.path()), "run again");
}

#[test]
fn a_damaged_checkpoint_yields_to_the_one_before() {
    let (expected, _) = reference();
    let runs = support::temp_dir();
    assert_eq!(finish(run(runs.path(), &["--max-steps", "40"])), 75);
    assert_eq!(finish(run(runs.path(), &["--max-steps", "20"])), 75);
    let newest = newest_model(&run_dir(runs.path()));
    let mut bytes = std::fs::read(&newest).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&newest, bytes).expect("write");
    assert_eq!(finish(run(runs.path(), &[])), 0);
    assert_same(&expected, &results(runs.path()), "one bit flipped in the newest checkpoint");
}

/// `model.safetensors` of the checkpoint written last.
fn newest_model(run: &Path) -> PathBuf {
    let mut models = Vec::new();
    for stage in std::fs::read_dir(run.join("stages")).expect("stages") {
        let Ok(ckpts) = std::fs::read_dir(stage.expect("entry").path().join("ckpt")) else {
            continue;
        };
        for ckpt in ckpts {
            let model = ckpt.expect("entry").path().join("model.safetensors");
            if let Ok(meta) = model.metadata() {
                models.push((meta.modified().expect("time"), model));
            }
        }
    }
    models.sort();
    models.pop().expect("a checkpoint").1
}
