//! Whole runs with a teacher cache, against the same runs with the living teacher.
//!
//! Every batch is full: matrix products of a few rows round otherwise than those of many.

use super::harness::Bench;
use super::{Outcome, RunOptions};
use std::path::{Path, PathBuf};

const PIPELINE: &str = "
version: 1
name: cached
seed: 3
datasets:
  train: &digits
    {format: csv, path: data/digits.csv.gz, tensors: {pixel_values: {columns: [0, 63], scale: 0.0625}}, label: 64, rows: [0, 320]}
  some: {<<: *digits, rows: [200, 700], classes: [1, 3, 5]}
  valid: {<<: *digits, rows: [1437, 1789]}
data: {train: train, valid: valid}
batch: {size: 32}
optimizer: {kind: adamw, lr: 3e-3}
student: {uses: limbeck.mlp, with: {inputs: 64, hidden: [16], classes: 10}}
stages:
  - {name: teacher, kind: train, loss: [{uses: limbeck.ce}], epochs: 3}
  - {name: cache, kind: capture, teacher: {from: teacher}, data: [train, some, valid], batch: {size: 40}CAPTURE}
  - name: student
    kind: distill
    teacher: TEACHER
    loss: LOSS
    epochs: 2
    eval: {every: 1 epochs, metrics: METRICS}
";

struct Case<'a> {
    capture: &'a str,
    teacher: &'a str,
    loss: &'a str,
    metrics: &'a str,
}

fn bench(case: &Case<'_>) -> Option<Bench> {
    let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/digits.yaml");
    let text = PIPELINE
        .replace("CAPTURE", case.capture)
        .replace("TEACHER", case.teacher)
        .replace("LOSS", case.loss)
        .replace("METRICS", case.metrics);
    Bench::new(&digits, &text)
}

fn done(result: Result<Outcome, super::RunError>) -> PathBuf {
    match result {
        Ok(Outcome::Done { dir }) => dir,
        other => panic!("{other:?}"),
    }
}

/// Metrics of the run and the student's last checkpoint.
fn made(run: &Path) -> (String, Vec<u8>) {
    let ckpt = run.join("stages/03-student/ckpt");
    let mut steps: Vec<PathBuf> =
        std::fs::read_dir(ckpt).unwrap().map(|e| e.unwrap().path()).collect();
    steps.retain(|p| p.join("manifest.json").is_file());
    steps.sort();
    let model = std::fs::read(steps.last().unwrap().join("model.safetensors")).unwrap();
    (std::fs::read_to_string(run.join("metrics.jsonl")).unwrap(), model)
}

const LIVE: Case<'_> = Case {
    capture: "",
    teacher: "{from: teacher}",
    loss: "[{uses: limbeck.kl, with: {temperature: 4.0}}, {uses: limbeck.ce, weight: 0.3}]",
    metrics: "[accuracy, agreement, loss]",
};

#[test]
fn a_cached_teacher_gives_the_run_of_the_living_one_bit_for_bit() {
    let cached = Case { teacher: "{cache: {from: cache}}", ..LIVE };
    let (Some(live), Some(cached)) = (bench(&LIVE), bench(&cached)) else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let options =
        |i: usize| RunOptions { runs_dir: dirs[i].path().into(), ..RunOptions::default() };
    let (a, b) = (done(live.run(&options(0)).0), done(cached.run(&options(1)).0));
    let (a, b) = (made(&a), made(&b));
    assert!(a.0.lines().count() > 40 && a.0.contains("agreement"));
    assert_eq!(a.0, b.0, "losses, gradient norms, metrics");
    assert!(a.1 == b.1, "the student's weights differ");
}

#[test]
fn a_stopped_capture_goes_on_and_gives_the_same_files() {
    let cached = Case { teacher: "{cache: {from: cache}}", ..LIVE };
    let Some(bench) = bench(&cached) else { return };
    let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = RunOptions { runs_dir: once.path().into(), ..RunOptions::default() };
    let whole = done(bench.run(&whole).0);
    // 30 steps train the teacher; the next ones are batches of the capture.
    let mut stops = 0;
    let run = loop {
        let max_steps = Some(if stops == 0 { 34 } else { 3 });
        let part = RunOptions { runs_dir: twice.path().into(), max_steps, ..RunOptions::default() };
        match bench.run(&part).0 {
            Ok(Outcome::Stopped { stage, .. }) if stage != "student" => stops += 1,
            Ok(Outcome::Stopped { .. }) => {
                break done({
                    let rest =
                        RunOptions { runs_dir: twice.path().into(), ..RunOptions::default() };
                    bench.run(&rest).0
                });
            }
            other => break done(other),
        }
    };
    assert!(stops >= 3, "{stops} stops inside the capture");
    assert_eq!(made(&whole), made(&run));
    let cache = crate::cache::read(&run.join("stages/02-cache/out")).unwrap();
    let rows: u64 = cache.shards.iter().map(|s| s.rows).sum();
    let distinct =
        320 + cache.sources[0].rows.iter().filter(|r| (320..700).contains(r)).count() + 352;
    assert_eq!(
        (cache.sources.len(), rows),
        (1, distinct as u64),
        "a row in two datasets is kept once"
    );
}

#[test]
fn the_largest_logits_serve_sparse_losses_at_their_temperature_only() {
    let topk = |temperature: &str| {
        format!("[{{uses: limbeck.topk-tail, with: {{temperature: {temperature}}}}}]")
    };
    let (right, wrong) = (topk("4.0"), topk("2.0"));
    let sparse = |k: &'static str, loss| Case {
        capture: k,
        teacher: "{cache: {from: cache}}",
        loss,
        metrics: "[accuracy]",
    };
    // Nine of ten logits and the mass outside are all there is to know: the loss of the whole softmax.
    let nine = ", topk: {k: 9, temperature: 4.0}";
    let dense = Case {
        loss: "[{uses: limbeck.kl, with: {temperature: 4.0}}]",
        metrics: "[accuracy]",
        ..LIVE
    };
    let (Some(a), Some(b)) = (bench(&dense), bench(&sparse(nine, &right))) else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let last_loss = |bench: &Bench, i: usize, name: &str| {
        let options = RunOptions { runs_dir: dirs[i].path().into(), ..RunOptions::default() };
        let (metrics, _) = made(&done(bench.run(&options).0));
        let line = metrics.lines().rfind(|l| l.contains("student") && l.contains(name)).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line[name].as_f64().unwrap()
    };
    let (kl, tail) = (last_loss(&a, 0, "kl"), last_loss(&b, 1, "topk-tail"));
    assert!((kl - tail).abs() < 1e-4 * kl, "{kl} and {tail}");
    let other = bench(&sparse(nine, &wrong)).unwrap();
    let problems = crate::load::load(&other.plan, &other.catalogue, &other.datasets).err().unwrap();
    assert_eq!(problems[0].code, "LMB0244");
    assert!(problems[0].message.contains("temperature 2"), "{problems:?}");
}

#[test]
fn a_stale_cache_is_refused_before_the_run_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("kept");
    let capture = format!(", to: {}", at.display());
    let Some(first) = bench(&Case { capture: &capture, ..LIVE }) else { return };
    let runs = dir.path().join("runs");
    done(first.run(&RunOptions { runs_dir: runs, ..RunOptions::default() }).0);
    let teacher = format!("{{cache: {}}}", at.display());
    let problems = |edit: &dyn Fn(&str) -> String| {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/digits.yaml");
        let text = PIPELINE
            .replace("CAPTURE", "")
            .replace("TEACHER", &teacher)
            .replace("LOSS", LIVE.loss)
            .replace("METRICS", LIVE.metrics);
        let bench = Bench::new(&digits, &edit(&text)).unwrap();
        match crate::load::load(&bench.plan, &bench.catalogue, &bench.datasets) {
            Ok(_) => Vec::new(),
            Err(problems) => problems,
        }
    };
    assert_eq!(problems(&|text| text.to_owned()), []);
    let more = problems(&|text| text.replace("rows: [0, 320]", "rows: [0, 400]"));
    assert_eq!(more[0].code, "LMB0244");
    assert!(more[0].message.contains("lacks"), "{more:?}");
    assert!(more[0].span.is_some() && more[0].help.is_some());
    let scaled = problems(&|text| text.replace("scale: 0.0625", "scale: 0.125"));
    assert!(scaled[0].message.contains("columns or the tokenizer changed"), "{scaled:?}");
    std::fs::remove_file(at.join(crate::cache::FILE_NAME)).unwrap();
    let gone = problems(&|text| text.to_owned());
    assert_eq!(gone[0].code, "LMB0520");
}
