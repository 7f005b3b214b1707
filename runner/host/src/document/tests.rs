//! Hostile texts, encodings, merge keys and `--set`.

use super::*;
use std::time::{Duration, Instant};

fn read(text: &str) -> Result<Document, Diagnostics> {
    parse(Path::new("p.yaml"), text, &[])
}

fn with_sets(text: &str, sets: &[&str]) -> Result<Document, Diagnostics> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    parse(Path::new("p.yaml"), text, &sets)
}

fn json(document: &Document) -> serde_json::Value {
    document.root.to_json(&mut |_| {})
}

fn only(result: Result<Document, Diagnostics>) -> Diagnostic {
    let mut problems = result.expect_err("refused");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.remove(0)
}

/// The value at a JSON Pointer after `--set`.
fn set(text: &str, sets: &[&str], pointer: &str) -> serde_json::Value {
    json(&with_sets(text, sets).expect("valid")).pointer(pointer).cloned().unwrap_or_default()
}

#[test]
fn hostile_texts_are_refused_at_once() {
    let bomb: String =
        std::iter::once("x-l0: &l0 [a, a, a, a, a, a, a, a, a, a]\n".to_owned())
            .chain((1..12).map(|i| {
                format!("x-l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(", "))
            }))
            .collect();
    let many_keys: String = (0..110_000).map(|i| format!("k{i}: \n")).collect();
    let cases = [
        ("[".repeat(200_000), "LMB0108"),
        ("{a: ".repeat(50_000), "LMB0108"),
        ("- ".repeat(100_000), "LMB0108"),
        ("? ".repeat(100_000), "LMB0108"),
        (bomb, "LMB0108"),
        (many_keys, "LMB0108"),
        ("x".repeat(guard::MAX_BYTES + 1), "LMB0108"),
        (format!("a: &a {}", "*a ".repeat(10_000)), "LMB0100"),
        (format!("a: \"{}", "x".repeat(900_000)), "LMB0100"),
        ("\t".repeat(500_000), "LMB0100"),
        ("&a ".repeat(300_000), "LMB0100"),
        ("!a ".repeat(300_000), "LMB0100"),
        ("a: 0\0".into(), "LMB0104"),
    ];
    for (text, code) in cases {
        let start = Instant::now();
        let problems = read(&text).expect_err("refused");
        let (took, head) = (start.elapsed(), text.chars().take(20).collect::<String>());
        assert!(
            problems.len() <= 2 && problems.iter().any(|p| p.code == code),
            "{head}: {problems:#?}"
        );
        assert!(problems.iter().all(|p| p.span.is_some()), "{head}");
        assert!(took < Duration::from_millis(500), "{head} takes {took:?}");
    }
}

#[test]
fn a_large_honest_pipeline_is_read_quickly() {
    let text: String =
        (0..1500).map(|i| format!("k{i}: {{a: 1, b: [1, 2, 3], c: {{d: text}}}}\n")).collect();
    let start = Instant::now();
    assert_eq!(read(&text).expect("valid").root.entries().len(), 1500);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn encodings_other_than_utf_8_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("p.yaml");
    let load_bytes = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("writable");
        load(&file, &[])
    };
    let text = "version: 1\nname: b\n";
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_mark: Vec<u8> = [0xff, 0xfe].into_iter().chain(utf16.iter().copied()).collect();
    for bytes in [utf16, with_mark] {
        let problem = only(load_bytes(&bytes));
        assert_eq!((problem.code, problem.help.as_deref()), ("LMB0104", Some("save it as UTF-8")));
    }
    let problem = only(load_bytes(b"version: 1\nname: caf\xe9\n"));
    assert_eq!(problem.span.map(|s| (s.line, s.column)), Some((2, 10)));
    let marked = load_bytes(b"\xef\xbb\xbfversion: 1\n").expect("a byte-order mark is allowed");
    assert_eq!(marked.root.entries()[0].key_span.column, 1);
}

#[test]
fn a_missing_pipeline_and_a_directory_are_told_apart_from_a_bad_one() {
    let dir = tempfile::tempdir().expect("a directory");
    for path in [dir.path().join("none.yaml"), dir.path().to_owned()] {
        let problem = only(load(&path, &[]));
        assert_eq!(problem.code, "LMB0117");
        assert_eq!(crate::diagnostic::codes::exit(problem.code), 66);
    }
}

#[test]
fn a_stored_copy_keeps_the_directory_of_the_original() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, "version: 1\n").expect("writable");
    assert_eq!(load(&file, &[]).expect("valid").base_dir, dir.path());
    assert_eq!(
        load_in(&file, Path::new("/elsewhere"), &[]).expect("valid").base_dir,
        Path::new("/elsewhere")
    );
}

#[test]
fn every_duplicate_key_and_tag_is_reported_at_once() {
    let problems = read("a: 1\nb: !x 2\na: 3\nc: {d: 1, d: 2}\n").expect_err("refused");
    let found: Vec<_> =
        problems.iter().map(|p| (p.code, p.span.as_ref().map(|s| (s.line, s.column)))).collect();
    assert_eq!(
        found,
        [("LMB0109", Some((2, 4))), ("LMB0107", Some((3, 1))), ("LMB0107", Some((4, 11)))]
    );
}

#[test]
fn merge_keys_agree_with_the_other_yaml_crate() {
    let texts = [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n",
        "a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc: {<<: [*a, *b], w: 0}\n",
        "a: &a {p: {q: 1}}\nb: {p: {r: 2}, <<: *a}\n",
    ];
    for text in texts {
        let ours = json(&read(text).expect("valid"));
        let mut theirs: serde_yaml::Value = serde_yaml::from_str(text).expect("valid");
        theirs.apply_merge().expect("merges");
        assert_eq!(ours, serde_json::to_value(theirs).expect("JSON"), "{text}");
    }
}

#[test]
fn a_merge_of_a_merge_is_resolved_too() {
    // The other crate stops after one level here.
    let document =
        read("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: [{<<: *b, x: 9}]\n").expect("valid");
    assert_eq!(json(&document)["c"], serde_json::json!([{"x": 9, "y": 2}]));
}

#[test]
fn a_merged_value_keeps_the_place_where_it_is_written() {
    let document = read("a: &a {x: 1}\nb: {<<: *a, y: 3}\n").expect("valid");
    let x = document.root.get("b").and_then(|b| b.get("x")).expect("merged").clone();
    assert_eq!((x.span.line, x.span.column), (1, 11));
}

const PIPELINE: &str = "
version: 1
epochs: 5
optimizer: {kind: adamw, lr: 1e-3}
stages:
  - name: distill
    loss:
      - {uses: limbeck.kl, with: {temperature: 4.0}}
      - {name: hard, uses: limbeck.ce, inputs: {teacher.logits: labels}}
    scheduler: [{name: replay, uses: limbeck.er}]
    gates: [{metric: accuracy, min: 0.5}]
";

#[test]
fn set_reaches_stages_terms_and_schedulers_by_name() {
    let cases = [
        ("stages.distill.loss.kl.weight=0.5", "/stages/0/loss/0/weight", "0.5"),
        ("stages.distill.loss.kl.with.temperature=2", "/stages/0/loss/0/with/temperature", "2"),
        ("stages.distill.loss.hard.weight=1e-1", "/stages/0/loss/1/weight", "0.1"),
        ("stages.distill.loss.1.weight=3", "/stages/0/loss/1/weight", "3"),
        (
            "stages.distill.scheduler.replay.with.capacity=10",
            "/stages/0/scheduler/0/with/capacity",
            "10",
        ),
        ("stages.distill.gates.0.min=0.9", "/stages/0/gates/0/min", "0.9"),
        (
            "stages.distill.loss.hard.inputs.\"teacher.logits\"=x",
            "/stages/0/loss/1/inputs/teacher.logits",
            "\"x\"",
        ),
        ("stages.distill.loss=[{uses: limbeck.ce}]", "/stages/0/loss/0/uses", "\"limbeck.ce\""),
        ("seed=random", "/seed", "\"random\""),
        ("name=\"17\"", "/name", "\"17\""),
        ("description=a=b", "/description", "\"a=b\""),
        ("description=", "/description", "\"\""),
    ];
    for (entry, pointer, value) in cases {
        assert_eq!(set(PIPELINE, &[entry], pointer).to_string(), value, "{entry}");
    }
}

#[test]
fn set_inside_a_default_copies_the_default_into_the_stage() {
    let sets = ["stages.distill.optimizer.lr=1e-4"];
    let changed = json(&with_sets(PIPELINE, &sets).expect("valid"));
    assert_eq!(changed["stages"][0]["optimizer"], serde_json::json!({"kind": "adamw", "lr": 1e-4}));
    assert_eq!(changed["optimizer"]["lr"], 1e-3);
}

#[test]
fn set_of_steps_removes_epochs_and_back() {
    let changed = json(&with_sets(PIPELINE, &["steps=7"]).expect("valid"));
    assert_eq!((changed.get("epochs"), changed["steps"].as_u64()), (None, Some(7)));
    let sets = ["stages.distill.steps=7", "stages.distill.epochs=2"];
    let changed = json(&with_sets(PIPELINE, &sets).expect("valid"));
    assert_eq!(changed["stages"][0].get("steps"), None);
    assert_eq!(changed["epochs"], 5);
}

#[test]
fn set_that_leads_nowhere_says_where_it_stopped() {
    let cases = [
        ("stages.distil.epochs=1", 8, Some("did you mean `distill`?")),
        ("stages.distill.los.kl.weight=1", 16, Some("did you mean `loss`?")),
        ("stages.distill.loss.kll.weight=1", 21, Some("did you mean `kl`?")),
        ("stages.distill.loss.7.weight=1", 21, Some("there is `kl`, `hard`")),
        ("version.major=1", 9, None),
        (
            "epochs",
            1,
            Some("write `--set PATH=VALUE`, for example `--set stages.distill.epochs=1`"),
        ),
        ("=1", 1, Some("write `--set PATH=VALUE`, for example `--set stages.distill.epochs=1`")),
        (
            "a..b=1",
            3,
            Some("write `--set PATH=VALUE`, for example `--set stages.distill.epochs=1`"),
        ),
    ];
    for (entry, column, help) in cases {
        let problem = only(with_sets(PIPELINE, &[entry]));
        assert_eq!(problem.code, "LMB0112", "{entry}");
        let span = problem.span.expect("a place");
        assert_eq!(
            (span.file.to_string_lossy(), span.column),
            (format!("--set {entry}").into(), column)
        );
        assert_eq!(problem.help.as_deref(), help, "{entry}");
    }
}

#[test]
fn a_value_of_set_is_one_yaml_node_with_a_place() {
    let problem = only(with_sets(PIPELINE, &["seed=[1, 2"]));
    assert_eq!(problem.code, "LMB0100");
    assert_eq!(problem.span.map(|s| s.column), Some(6));
    let problem = only(with_sets(PIPELINE, &["seed=!x 1"]));
    assert_eq!((problem.code, problem.span.map(|s| s.column)), ("LMB0109", Some(6)));
}
