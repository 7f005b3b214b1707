//! Runs of whole pipelines for this phase's tests: real plugins, real data, a run directory in a temporary place.

use super::event::{Event, EventSink};
use super::{Control, Outcome, RunError, RunOptions, run};
use crate::data::{Datasets, Tokenize};
use crate::load::{Catalogue, Loaded, SearchPath};
use crate::plan::Plan;
use std::path::{Path, PathBuf};

/// Where the built plugins lie; `None`: not built, and the test has nothing to run.
pub(crate) fn plugins() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("LIMBECK_TEST_PLUGINS") {
        return Some(dir.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = root.join("target/release");
    dir.join("liblimbeck_students.so").is_file().then_some(dir)
}

/// Collects what a session tells.
#[derive(Default)]
pub(crate) struct Told {
    pub events: Vec<Event>,
}

impl EventSink for Told {
    fn event(&mut self, event: &Event) {
        if !matches!(event, Event::Step { .. }) {
            self.events.push(event.clone());
        }
    }
}

pub(crate) struct Bench {
    pub plan: Plan,
    pub catalogue: Catalogue,
    pub datasets: Datasets,
    _cache: tempfile::TempDir,
}

impl Bench {
    pub fn new(pipeline: &Path, text: &str) -> Option<Self> {
        let dir = plugins()?;
        let document = crate::document::parse(pipeline, text, &[]).expect("document");
        let plan = crate::plan::plan(&document).expect("plan");
        // Each bench stages for itself: tests of one process run side by side.
        let cache = tempfile::tempdir().unwrap();
        let at = Some(cache.path().to_owned());
        let steer = cache.path().join("steer");
        std::fs::create_dir_all(&steer).unwrap();
        if text.contains("test.steer") {
            let source = include_str!("testing/steer.c");
            crate::load::testing::compile(&steer, "steer", source, &[]);
        }
        let search = SearchPath {
            builtin: Some(dir),
            directories: vec![steer],
            allow_unlocked: true,
            cache: at,
            ..SearchPath::default()
        };
        let (catalogue, _) = Catalogue::discover(&search).expect("catalogue");
        let (datasets, problems) = Datasets::open(&plan, Tokenize::Always);
        assert!(problems.is_empty(), "{problems:?}");
        Some(Self { plan, catalogue, datasets, _cache: cache })
    }

    pub fn load(&self) -> Loaded {
        crate::load::load(&self.plan, &self.catalogue, &self.datasets).expect("load")
    }

    pub fn run(&self, options: &RunOptions) -> (Result<Outcome, RunError>, Told) {
        let mut told = Told::default();
        let control = Control::default();
        let result = run(
            &self.plan,
            self.load(),
            &self.datasets,
            &self.catalogue,
            options,
            &control,
            &mut told,
        );
        (result, told)
    }
}

pub(crate) fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/digits.yaml")
}

pub(crate) fn options(dir: &Path) -> RunOptions {
    RunOptions { runs_dir: dir.into(), ..RunOptions::default() }
}

pub(crate) fn finished(result: Result<Outcome, RunError>) -> PathBuf {
    match result {
        Ok(Outcome::Done { dir }) => dir,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_student_that_never_saw_a_3_learns_it_from_its_teacher() {
    let text = std::fs::read_to_string(digits()).unwrap();
    let Some(bench) = Bench::new(&digits(), &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (result, told) = bench.run(&options(dir.path()));
    let run = finished(result);
    let last = |stage: &str| {
        let of = |e: &Event| match e {
            Event::StageFinished { name, metrics, .. } if name == stage => Some(metrics.clone()),
            _ => None,
        };
        told.events.iter().find_map(of).unwrap()
    };
    let value =
        |stage: &str, metric: &str| last(stage).into_iter().find(|(n, _)| n == metric).unwrap().1;
    // Means of 5 seeds in a numpy prototype: 0.938, 0.833, 0.909; 0.762, 0, 0.681.
    assert!(value("teacher", "accuracy") > 0.90);
    assert!(value("alone", "accuracy") > 0.78);
    assert_eq!(value("alone", "recall.3"), 0.0);
    assert!(value("distilled", "accuracy") > 0.86);
    assert!(value("distilled", "recall.3") > 0.45);
    assert!(run.join("stages/04-export/out/model.safetensors").is_file());
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let steps = rows.lines().filter(|l| !l.contains("\"eval\"")).count();
    assert_eq!(steps, 900 + 1640 + 2460);
    assert!(matches!(bench.run(&options(dir.path())).0, Ok(Outcome::AlreadyDone { .. })));
    // Outside the run.
    let measured = super::evaluate(
        &bench.plan,
        bench.load(),
        &bench.datasets,
        &run,
        2,
        crate::plan::Which::Last,
        None,
    );
    let measured = measured.unwrap();
    assert_eq!(measured[0].0, "held-out");
    assert_eq!(measured[0].1[0].1, value("distilled", "accuracy"));
}

/// Every file of a directory tree by relative name.
fn tree(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// What two equal runs have in common byte for byte: metrics, final checkpoints, evaluations.
pub(crate) fn substance(run: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = tree(run);
    let newest: Vec<PathBuf> = files
        .keys()
        .filter(|k| k.ends_with("LATEST"))
        .map(|k| {
            let name = String::from_utf8(files[k].clone()).unwrap();
            k.with_file_name(name.trim())
        })
        .collect();
    files.retain(|k, _| {
        let checkpoint = newest.iter().any(|n| k.starts_with(n));
        let evaluation = k.components().any(|c| c.as_os_str() == "eval" || c.as_os_str() == "out");
        k == Path::new("metrics.jsonl") || checkpoint || evaluation
    });
    files
}

/// Stops after every k-th step, in steps of `stride`, continues, and compares with the run that was not stopped.
pub(crate) fn resumes_bit_for_bit(text: &str, stride: u64) {
    let Some(bench) = Bench::new(&digits(), text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let whole = finished(bench.run(&options(&dir.path().join("whole"))).0);
    let rows = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let steps = rows.lines().filter(|l| !l.contains("\"eval\"")).count() as u64;
    let whole = substance(&whole);
    assert!(whole.keys().any(|k| k.ends_with("model.safetensors")) && steps > 5);
    for stop in (1..steps).step_by(stride as usize) {
        let runs = dir.path().join(format!("stopped-{stop}"));
        let limit = RunOptions { max_steps: Some(stop), ..options(&runs) };
        let (result, _) = bench.run(&limit);
        assert!(matches!(&result, Ok(Outcome::Stopped { .. })), "{stop}: {result:?}");
        let again = substance(&finished(bench.run(&options(&runs)).0));
        assert_eq!(again.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        for (name, bytes) in &again {
            let differs = *bytes != whole[name];
            assert!(!differs, "stopped after {stop} of {steps}: {} differs", name.display());
        }
    }
}

const HEAD: &str = r"
version: 1
name: small
seed: 3
datasets:
  a: &rows {format: csv, path: data/digits.csv.gz, tensors: {pixel_values: {columns: [0, 63], scale: 0.0625}}, label: 64, classes: [0, 1], limit: 70}
  b: {<<: *rows, classes: [2, 3]}
  v: {<<: *rows, rows: [1437, 1797], classes: [0, 1, 2, 3], limit: 40}
batch: {size: 16}
optimizer: {kind: adamw, lr: 3e-3, weight_decay: 0.01, clip_norm: 1.0}
checkpoint: {every: 4 steps}
student: {uses: limbeck.mlp, with: {inputs: 64, hidden: [16], classes: 10}}
";

#[test]
fn a_run_stopped_after_any_step_ends_with_the_same_bytes() {
    let text = format!(
        "{HEAD}
stages:
  - name: teacher
    kind: train
    data: {{train: a, valid: v}}
    batch: {{size: 8, accumulate: 3}}
    loss: [{{uses: limbeck.ce}}]
    lr_schedule: {{kind: cosine, warmup: 10%}}
    eval: {{every: 2 steps, metrics: [accuracy, nll, loss], best: {{metric: nll, mode: min}}}}
    epochs: 2
  - name: student
    kind: distill
    teacher: {{from: teacher, which: best}}
    data: {{train: b, valid: v}}
    optimizer: {{kind: sgd, lr: 0.05, momentum: 0.9}}
    loss: [{{uses: limbeck.kl, weight: 0.5}}, {{uses: limbeck.ce, weight: 0.5}}]
    eval: {{every: 1 epochs, metrics: [accuracy, agreement]}}
    steps: 7
  - name: ema
    kind: distill
    teacher: {{ema: {{decay: 0.9}}}}
    student: {{from: student}}
    data: {{train: a, valid: v}}
    loss: [{{uses: limbeck.kl, weight: 0.5}}, {{uses: limbeck.ce}}]
    eval: {{every: end, metrics: [accuracy]}}
    steps: 6
  - name: self
    kind: distill
    teacher: {{self: true}}
    student: {{from: ema, which: last}}
    data: {{train: b, valid: v}}
    loss: [{{uses: limbeck.kl, with: {{temperature: 2.0}}}}, {{uses: limbeck.ce}}]
    eval: {{every: end, metrics: [accuracy]}}
    steps: 3
"
    );
    resumes_bit_for_bit(&text, 1);
}

const STREAM: &str = r"
tasks:
  - {name: first, train: a, valid: v}
  - {name: second, train: b, valid: v}
epochs: 1
eval: {every: end, metrics: [accuracy]}
loss: [{uses: limbeck.ce}]
";

fn with_scheduler(scheduler: &str) -> String {
    format!(
        "{HEAD}{STREAM}
stages:
  - name: stream
    kind: train
    scheduler: {scheduler}
  - name: more
    kind: train
    tasks: [second]
    student: {{from: stream}}
    scheduler: {{from: stream}}
"
    )
}

#[test]
fn replay_resumes_at_every_step_with_buffer_and_matrix() {
    resumes_bit_for_bit(&with_scheduler("{uses: limbeck.er, with: {capacity: 20, batch: 8}}"), 1);
}

#[test]
fn replayed_logits_resume_at_every_step() {
    let derpp = "{uses: limbeck.derpp, with: {capacity: 20, batch: 8, insert: task_end}}";
    resumes_bit_for_bit(&with_scheduler(derpp), 1);
}

#[test]
fn snapshots_importance_and_replay_stacked_resume_at_every_step() {
    let stack = "[{name: lwf, uses: limbeck.lwf}, {name: si, uses: limbeck.si, with: {c: 1.0}}, \
                 {name: ewc, uses: limbeck.ewc, with: {lambda: 100.0, rows: 12}}, \
                 {name: replay, uses: limbeck.er, with: {capacity: 10, batch: 4, insert: task_end}}]";
    resumes_bit_for_bit(&with_scheduler(stack), 2);
}

#[test]
fn a_scheduler_without_strength_changes_no_bit() {
    let plain = format!("{HEAD}{STREAM}stages: [{{name: stream, kind: train}}]");
    let Some(bench) = Bench::new(&digits(), &plain) else { return };
    let dir = tempfile::tempdir().unwrap();
    let reference = substance(&finished(bench.run(&options(&dir.path().join("plain"))).0));
    let model = |files: &std::collections::BTreeMap<PathBuf, Vec<u8>>| {
        let found = files.iter().find(|(k, _)| k.ends_with("model.safetensors"));
        found.map(|(_, bytes)| bytes.clone()).unwrap()
    };
    for (name, scheduler) in [
        ("none", "{uses: limbeck.none}"),
        ("si", "{uses: limbeck.si, with: {c: 0.0}}"),
        ("ewc", "{uses: limbeck.ewc, with: {lambda: 0.0, rows: 12}}"),
        ("lwf", "{uses: limbeck.lwf, with: {weighting: constant, weight: 0.0}}"),
    ] {
        let text = format!(
            "{HEAD}{STREAM}stages: [{{name: stream, kind: train, scheduler: {scheduler}}}]"
        );
        let Some(bench) = Bench::new(&digits(), &text) else { return };
        let run = finished(bench.run(&options(&dir.path().join(name))).0);
        assert_eq!(model(&substance(&run)), model(&reference), "{name}");
    }
}

#[test]
fn a_task_matrix_spans_a_chain_of_stages() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/continual-digits.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let Some(bench) = Bench::new(&file, &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = finished(bench.run(&options(dir.path())).0);
    let json = std::fs::read(run.join("stages/02-rest/eval/task-matrix.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 6);
    assert_eq!(json["trained"], serde_json::json!([0, 1, 2, 3, 4]));
    assert_eq!(json["summary"]["fwt"], serde_json::Value::Null);
    assert!(json["summary"]["average_accuracy"].as_f64().unwrap() > 0.5, "{json}");
}

#[test]
fn passes_restores_and_skipped_steps_resume_at_every_step() {
    let text = with_scheduler("{uses: test.steer, with: {mode: pass}}");
    resumes_bit_for_bit(&text, 1);
    let Some(bench) = Bench::new(&digits(), &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = finished(bench.run(&options(dir.path())).0);
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let of = |stage: &str, skipped: bool| {
        let stage = format!("\"stage\":\"{stage}\"");
        let steps = rows.lines().filter(|l| !l.contains("\"eval\"") && l.contains(&stage));
        steps.filter(|l| l.contains("skipped") == skipped).count()
    };
    // Two tasks of three skipped steps, each followed by two epochs on at most 12 rows (one step each).
    assert_eq!((of("stream", true), of("stream", false)), (6, 4));
    assert_eq!((of("more", true), of("more", false)), (3, 2));
}

#[test]
fn rows_mixed_into_a_task_resume_at_every_step() {
    let text = with_scheduler("{uses: test.steer, with: {mode: union}}");
    resumes_bit_for_bit(&text, 1);
    let Some(bench) = Bench::new(&digits(), &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = finished(bench.run(&options(dir.path())).0);
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let second = rows.lines().filter(|l| !l.contains("\"eval\"") && l.contains("\"second\""));
    // 70 rows in batches of 16 are 5 steps; with 12 more they are 6. Both stages train the second task.
    assert_eq!(second.count(), 12);
}

#[test]
fn gradients_kept_apart_are_shown_and_resume_at_every_step() {
    resumes_bit_for_bit(&with_scheduler("{uses: test.steer, with: {mode: agem}}"), 1);
}

#[test]
fn a_request_outside_its_event_ends_the_run_with_the_plugins_name() {
    let text = with_scheduler("{uses: test.steer, with: {mode: greedy}}");
    let Some(bench) = Bench::new(&digits(), &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let error = bench.run(&options(dir.path())).0.unwrap_err();
    assert_eq!(crate::diagnostic::codes::exit(error.diagnostic.code), 76);
    assert!(error.diagnostic.message.contains("test.steer"), "{error:?}");
    assert!(error.diagnostic.message.contains("probe"), "{error:?}");
    assert_eq!(error.diagnostic.context.as_deref(), Some("stage `stream`, step 0"));
}

fn exploding(policy: &str) -> String {
    format!(
        "{HEAD}
stages:
  - name: wild
    kind: train
    data: {{train: a, valid: v}}
    optimizer: {{kind: sgd, lr: 1e30, momentum: 0}}
    loss: [{{uses: limbeck.ce}}]
    eval: {{every: end, metrics: [accuracy]}}
    on_nonfinite: {policy}
    steps: 12
"
    )
}

#[test]
fn steps_that_are_not_finite_stop_skip_or_roll_back_and_are_recorded() {
    for (policy, rows) in [
        ("{action: stop}", 1),
        ("{action: skip, max_consecutive: 3}", 4),
        ("{action: rollback, max_consecutive: 3}", 1),
    ] {
        let Some(bench) = Bench::new(&digits(), &exploding(policy)) else { return };
        let dir = tempfile::tempdir().unwrap();
        let (result, told) = bench.run(&options(dir.path()));
        let error = result.unwrap_err();
        assert_eq!(error.diagnostic.code, "LMB0601");
        let warned = told.events.iter().filter(|e| matches!(e, Event::Warning(_))).count();
        assert_eq!(warned, if policy.contains("stop") { 0 } else { 3 }, "{policy}");
        let run = std::fs::read_dir(dir.path().join("small")).unwrap().next().unwrap().unwrap();
        let text = std::fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
        let left_out =
            text.lines().filter(|l| l.contains("\"grad_norm\"") && l.contains("skipped"));
        assert_eq!(left_out.count(), rows, "{policy}: {text}");
    }
}

#[test]
fn a_missed_gate_ends_the_run_and_is_missed_again() {
    let text = format!(
        "{HEAD}
stages:
  - name: short
    kind: train
    data: {{train: a, valid: v}}
    loss: [{{uses: limbeck.ce}}]
    eval: {{every: end, metrics: [accuracy]}}
    gates: [{{metric: accuracy, min: 0.99}}]
    steps: 1
"
    );
    let Some(bench) = Bench::new(&digits(), &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let error = bench.run(&options(dir.path())).0.unwrap_err();
        assert_eq!(error.diagnostic.code, "LMB0602");
        assert!(error.diagnostic.span.is_some());
    }
}
