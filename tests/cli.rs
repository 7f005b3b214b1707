//! The program from outside: answers, exit codes, interruption, pipes.

use crate::support::{self, Finished, temp_dir};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn run(folder: &Path, args: &[&str]) -> Finished {
    support::finish(support::limbeck().current_dir(folder).args(args))
}

/// A pipeline of two short stages on the committed digits.
fn pipeline(folder: &Path, epochs: u32) {
    let data = support::root().join("pipelines/data/digits.csv.gz");
    let text = include_str!("fixtures/distill.yaml")
        .replace("plugins: [{id: @LOSS@, path: @LIBRARY@}]\n", "")
        .replace("@DATA@", &data.display().to_string())
        .replace("epochs: 8", &format!("epochs: {epochs}"))
        .replace("@LOSS@", "limbeck.kl");
    std::fs::write(folder.join("p.yaml"), text).expect("write");
}

fn run_id(finished: &Finished) -> String {
    let first = finished.json().first().cloned().unwrap_or_default();
    first["id"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_run_is_done_once_and_its_student_can_be_measured_and_exported() {
    let folder = temp_dir();
    pipeline(folder.path(), 2);
    let first = run(folder.path(), &["--json", "run", "p.yaml"]);
    assert_eq!(first.code, Some(0), "{}", first.err);
    let again = run(folder.path(), &["run", "p.yaml"]);
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.out.starts_with("already done"), "{}", again.out);
    let id = run_id(&first);
    let hex = id.rsplit('-').next().expect("an id");
    let measured = run(folder.path(), &["eval", &hex[..5]]);
    assert_eq!(measured.code, Some(0), "{}", measured.err);
    assert!(measured.out.starts_with("student on held-out  accuracy 0."), "{}", measured.out);
    let exported = run(folder.path(), &["export", &id, "--stage", "student", "--to", "out"]);
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    assert!(folder.path().join("out/model.safetensors").is_file());
    assert!(folder.path().join("out/config.json").is_file());
}

#[test]
fn a_limit_stops_with_75_and_resume_goes_on() {
    let folder = temp_dir();
    pipeline(folder.path(), 3);
    let stopped = run(folder.path(), &["--json", "run", "p.yaml", "--max-steps", "10"]);
    assert_eq!(stopped.code, Some(75), "{}", stopped.err);
    let resumed = run(folder.path(), &["resume", &run_id(&stopped)]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert!(resumed.out.starts_with("continuing "), "{}", resumed.out);
}

#[test]
fn a_random_seed_is_kept_until_its_run_is_done() {
    let folder = temp_dir();
    pipeline(folder.path(), 1);
    let text = std::fs::read_to_string(folder.path().join("p.yaml")).expect("read");
    let random = text.replace("seed: 3", "seed: random");
    assert_ne!(text, random);
    std::fs::write(folder.path().join("p.yaml"), random).expect("write");
    let stopped = run(folder.path(), &["--json", "run", "p.yaml", "--max-steps", "5"]);
    assert_eq!(stopped.code, Some(75), "{}", stopped.err);
    let seed = |finished: &Finished| finished.json()[0]["seed"].as_u64().expect("a seed");
    let resumed = run(folder.path(), &["--json", "run", "p.yaml"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert_eq!((run_id(&resumed), seed(&resumed)), (run_id(&stopped), seed(&stopped)));
    let next = run(folder.path(), &["--json", "run", "p.yaml"]);
    assert_eq!(next.code, Some(0), "{}", next.err);
    assert_ne!(seed(&next), seed(&stopped), "a run that is done is not drawn again");
}

#[test]
fn an_input_file_is_locked_and_a_change_of_it_is_refused() {
    let folder = temp_dir();
    pipeline(folder.path(), 1);
    assert_eq!(run(folder.path(), &["run", "p.yaml"]).code, Some(0));
    let runs = folder.path().join("runs/fixture");
    let only = std::fs::read_dir(&runs).expect("runs").next().expect("one").expect("readable");
    let exported = run(folder.path(), &["export", &only.path().to_string_lossy(), "--to", "model"]);
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    let text = std::fs::read_to_string(folder.path().join("p.yaml")).expect("read");
    let text = text
        .replace("teacher: {from: teacher}", "teacher: {uses: limbeck.hf, with: {path: model}}");
    std::fs::write(folder.path().join("t.yaml"), text).expect("write");
    assert_eq!(run(folder.path(), &["validate", "t.yaml"]).code, Some(0), "not locked yet");
    let locked = run(folder.path(), &["plugin", "lock", "t.yaml"]);
    assert_eq!(locked.code, Some(0), "{}", locked.err);
    let lock = std::fs::read_to_string(folder.path().join("limbeck.lock")).expect("the lock");
    assert!(lock.contains("- path: model") && lock.contains("model.safetensors:"), "{lock}");
    assert_eq!(run(folder.path(), &["validate", "t.yaml"]).code, Some(0));
    let stopped = run(folder.path(), &["run", "t.yaml", "--max-steps", "3"]);
    assert_eq!(stopped.code, Some(75), "{}", stopped.err);
    let card = folder.path().join("model/README.md");
    std::fs::write(&card, "another card").expect("write");
    for command in ["validate", "run"] {
        let refused = run(folder.path(), &[command, "t.yaml"]);
        assert_eq!(refused.code, Some(77), "{command}: {}", refused.err);
        assert!(refused.err.contains("LMB0318"), "{command}: {}", refused.err);
        assert!(refused.err.contains("README.md: locked"), "{command}: {}", refused.err);
    }
    // Without a lock the run still knows what it began with.
    std::fs::remove_file(folder.path().join("limbeck.lock")).expect("remove");
    let refused = run(folder.path(), &["run", "t.yaml"]);
    assert_eq!(refused.code, Some(78), "{}", refused.err);
    assert!(refused.err.contains("LMB0707"), "{}", refused.err);
}

#[test]
fn bf16_on_the_cpu_is_f32_with_a_warning_whether_the_cpu_was_named_or_found() {
    for device in ["auto", "cpu"] {
        let folder = temp_dir();
        pipeline(folder.path(), 1);
        let set = format!("device={device}");
        let args = ["--json", "run", "p.yaml", "--set", "dtype=bf16", "--set", &set];
        let finished = run(folder.path(), &args);
        assert_eq!(finished.code, Some(0), "{}", finished.err);
        assert!(finished.err.contains("LMB0223"), "{device}: {}", finished.err);
    }
}

#[test]
fn an_interrupt_stops_with_a_checkpoint_and_the_same_command_continues() {
    let folder = temp_dir();
    pipeline(folder.path(), 4000);
    let command = ["--progress", "none", "run", "p.yaml", "--until", "teacher"];
    let mut child = support::limbeck()
        .current_dir(folder.path())
        .args(command)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let metrics = || {
        let runs = std::fs::read_dir(folder.path().join("runs/fixture")).ok()?;
        runs.flatten().next().map(|r| r.path().join("metrics.jsonl")).filter(|m| m.is_file())
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while metrics().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let killed =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill").success());
    let asked = Instant::now();
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(75));
    assert!(asked.elapsed() < Duration::from_secs(20), "took {:?}", asked.elapsed());
    let again = run(folder.path(), &["run", "p.yaml", "--until", "teacher", "--max-steps", "5"]);
    assert_eq!(again.code, Some(75), "{}", again.err);
    assert!(again.out.starts_with("continuing "), "{}", again.out);
}

#[test]
fn exit_codes_tell_the_kinds_of_mistake_apart() {
    let folder = temp_dir();
    pipeline(folder.path(), 1);
    let text = std::fs::read_to_string(folder.path().join("p.yaml")).expect("read");
    let write = |name: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        std::fs::write(folder.path().join(name), text.replace(from, to)).expect("write");
    };
    write("key.yaml", "batch: {size", "batch: {sise");
    write("plugin.yaml", "limbeck.kl", "limbeck.kI");
    write("data.yaml", "digits.csv.gz", "nothing.csv.gz");
    write("cuda.yaml", "seed: 3", "seed: 3\ndevice: cuda:0");
    for (args, code) in [
        (&["run", "key.yaml"][..], 78),
        (&["run", "plugin.yaml"], 78),
        (&["run", "data.yaml"], 66),
        (&["run", "nothing.yaml"], 66),
        (&["run", "cuda.yaml"], 69),
        (&["resume", "nothing"], 66),
        (&["run"], 2),
        (&["run", "p.yaml", "--time-limit", "soon"], 2),
        (&["plugin", "info", "no.such"], 78),
        (&["plugin", "new", "Bad Name", "--kind", "loss"], 2),
        (&["validate", "key.yaml"], 78),
        (&["validate", "p.yaml"], 0),
    ] {
        let finished = run(folder.path(), args);
        assert_eq!(finished.code, Some(code), "{args:?}: {}\n{}", finished.out, finished.err);
        assert!(code == 0 || !finished.err.is_empty(), "{args:?} says nothing");
        assert!(!finished.err.contains("panicked"), "{args:?}: {}", finished.err);
    }
}

#[test]
fn validation_is_a_list_of_areas() {
    let folder = temp_dir();
    pipeline(folder.path(), 1);
    let finished = run(folder.path(), &["validate", "p.yaml"]);
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\(\d+\.\d s\)", "(TIME)");
    settings.add_filter(r"cpu, .*", "cpu, …");
    settings.add_filter(r"stages, [\d.]+ K?B", "stages, SIZE");
    settings.add_filter(r"\d+\.\d+\.\d+ \(ABI", "VERSION (ABI");
    settings.bind(|| {
        insta::assert_snapshot!(finished.out, @r"
        document     ok   2 stages, SIZE
        plugins      ok   limbeck.ce .kl .mlp VERSION (ABI 1.0)
        wiring       ok   8 inputs bound, 2 loss terms
        data         ok   held-out 360 rows, labels 0..9; rows 600 rows, labels 0..9
        environment  ok   cpu, …
      p.yaml is valid (TIME)
      ");
    });
}

#[test]
fn json_answers_are_an_object_a_line() {
    let folder = temp_dir();
    pipeline(folder.path(), 1);
    for args in [
        &["--json", "validate", "p.yaml"][..],
        &["--json", "plan", "p.yaml"],
        &["--json", "plan", "p.yaml", "--show", "config"],
        &["--json", "plugin", "list"],
        &["--json", "plugin", "info", "limbeck.kl"],
        &["--json", "run", "p.yaml"],
    ] {
        let finished = run(folder.path(), args);
        assert_eq!(finished.code, Some(0), "{args:?}: {}", finished.err);
        assert!(!finished.out.is_empty(), "{args:?}");
        assert_eq!(
            finished.json().len(),
            finished.out.lines().count(),
            "{args:?}: {}",
            finished.out
        );
        assert!(finished.json().iter().all(|l| l["type"].is_string()), "{args:?}");
    }
    std::fs::write(folder.path().join("bad.yaml"), "version: 1\nnmae: x\n").expect("write");
    let finished = run(folder.path(), &["--json", "validate", "bad.yaml"]);
    let problems: Vec<serde_json::Value> =
        finished.err.lines().map(|l| serde_json::from_str(l).expect("JSON on stderr")).collect();
    assert!(
        problems.iter().any(|p| p["code"] == "LMB0101" && p["span"]["line"] == 2),
        "{problems:?}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child = support::limbeck()
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_plugin_is_listed_with_the_place_it_was_found_in() {
    let finished = run(support::root(), &["--json", "plugin", "list"]);
    let plugins = finished.json();
    assert!(plugins.len() > 30, "{}", plugins.len());
    assert!(plugins.iter().all(|p| p["found"] == "beside the executable"), "{}", finished.out);
    for id in ["limbeck.mlp", "limbeck.cnn", "limbeck.hf", "limbeck.kl", "limbeck.ce", "limbeck.er"]
    {
        assert!(plugins.iter().any(|p| p["id"] == id), "{id}");
    }
}

#[test]
fn help_and_completions_exist_for_every_command() {
    for command in
        ["run", "resume", "validate", "plan", "eval", "export", "plugin", "schema", "completions"]
    {
        let finished = run(support::root(), &[command, "--help"]);
        assert_eq!(finished.code, Some(0), "{command}");
        assert!(finished.out.contains("Usage: limbeck"), "{command}: {}", finished.out);
    }
    for shell in ["bash", "zsh", "fish"] {
        let finished = run(support::root(), &["completions", shell]);
        assert!(finished.out.contains("limbeck"), "{shell}");
    }
}

#[test]
fn colors_appear_only_when_asked_for() {
    let folder = temp_dir();
    std::fs::write(folder.path().join("bad.yaml"), "version: 1\nnmae: x\n").expect("write");
    let plain = run(folder.path(), &["validate", "bad.yaml"]);
    assert!(!plain.err.contains('\u{1b}') && !plain.out.contains('\u{1b}'));
    let colored = run(folder.path(), &["--color", "always", "validate", "bad.yaml"]);
    assert!(colored.err.contains('\u{1b}'), "{}", colored.err);
}
