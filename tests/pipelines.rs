//! The pipelines we ship do what their descriptions say.

use crate::support::{self, limbeck};
use std::collections::BTreeMap;
use std::path::Path;

/// Runs a pipeline to its end; gives the metrics of each stage's last evaluation.
fn run(pipeline: &str, runs: &Path) -> BTreeMap<String, BTreeMap<String, f64>> {
    let output = limbeck()
        .args(["run", pipeline, "--progress", "none", "--runs"])
        .arg(runs)
        .current_dir(support::root())
        .output()
        .expect("starts");
    assert!(
        output.status.success(),
        "{pipeline}: {:?}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    last_metrics(runs)
}

fn last_metrics(runs: &Path) -> BTreeMap<String, BTreeMap<String, f64>> {
    let mut metrics: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    let pattern = runs.join("*/*/metrics.jsonl");
    let files = glob(&pattern);
    assert_eq!(files.len(), 1, "{files:?}");
    for line in std::fs::read_to_string(&files[0]).expect("metrics").lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("one object a line");
        let stage = row["stage"].as_str().expect("stage").to_owned();
        for (name, value) in row.as_object().expect("object") {
            if let Some(number) = value.as_f64() {
                metrics.entry(stage.clone()).or_default().insert(name.clone(), number);
            }
        }
    }
    metrics
}

fn glob(pattern: &Path) -> Vec<std::path::PathBuf> {
    let runs = pattern.ancestors().nth(3).expect("runs");
    let list = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect()
    };
    list(runs)
        .iter()
        .flat_map(|p| list(p))
        .map(|run| run.join("metrics.jsonl"))
        .filter(|f| f.exists())
        .collect()
}

#[test]
fn a_student_that_never_saw_a_three_learns_it_from_its_teacher() {
    let runs = support::temp_dir();
    let metrics = run("pipelines/digits.yaml", runs.path());
    let of = |stage: &str, metric: &str| metrics[stage][metric];
    assert!(of("teacher", "accuracy") > 0.90, "{metrics:?}");
    assert_eq!(of("alone", "recall.3"), 0.0, "{metrics:?}");
    assert!(of("distilled", "recall.3") > 0.5, "{metrics:?}");
    assert!(of("distilled", "accuracy") > of("alone", "accuracy") + 0.03, "{metrics:?}");
}

#[test]
fn generations_an_average_and_the_student_itself_teach() {
    let runs = support::temp_dir();
    let metrics = run("pipelines/born-again.yaml", runs.path());
    let of = |stage: &str, metric: &str| metrics[stage][metric];
    let trained = ["gen1", "gen2", "gen3", "small", "mean-teacher", "own-teacher", "progressive"];
    for stage in trained.into_iter().chain(["ensemble"]) {
        assert!(of(stage, "accuracy") > 0.85, "{metrics:?}");
    }
    assert!(of("gen2", "agreement") > 0.95, "{metrics:?}");
    assert!(of("small", "agreement") > 0.95, "{metrics:?}");
    assert!(of("mean-teacher", "agreement") > 0.95, "{metrics:?}");
    assert!(of("mean-teacher", "ema.accuracy") > 0.85, "{metrics:?}");
    assert_eq!(of("own-teacher", "agreement"), 1.0, "the student is its own teacher: {metrics:?}");
}

#[test]
fn replay_and_old_students_keep_earlier_digits() {
    let runs = support::temp_dir();
    // The pipeline's own gate holds the average accuracy over all pairs to 0.5 or more.
    let metrics = run("pipelines/continual-digits.yaml", runs.path());
    assert!(metrics.contains_key("first") && metrics.contains_key("rest"), "{metrics:?}");
    let list = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("entry").path()).collect()
    };
    let dir = list(&list(runs.path())[0]).remove(0);
    let matrix = std::fs::read(dir.join("stages/02-rest/eval/task-matrix.json")).expect("matrix");
    let matrix: serde_json::Value = serde_json::from_slice(&matrix).expect("JSON");
    let rows = matrix["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6, "a row before, and one after each of five tasks: {matrix}");
    let first_task_at_the_end = rows[5][0].as_f64().expect("a score");
    assert!(first_task_at_the_end > 0.6, "forgotten: {matrix}");
    for task in 0..5 {
        let learnt = rows[task + 1][task].as_f64().expect("a score");
        assert!(learnt > 0.5, "task {task} is not learnt when it is trained: {matrix}");
    }
}

#[test]
fn digits_that_turn_are_kept_by_replay_and_lost_without() {
    let runs = support::temp_dir();
    let metrics = run("pipelines/rotated-digits.yaml", runs.path());
    let of = |stage: &str, metric: &str| metrics[stage][metric];
    assert!(of("kept", "average_accuracy") > of("alone", "average_accuracy") + 0.1, "{metrics:?}");
    assert!(of("alone", "learning_accuracy") > 0.8, "each angle is learnt: {metrics:?}");
}

#[test]
fn every_shipped_pipeline_is_valid() {
    let folder = support::root().join("pipelines");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("pipelines") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a pipeline");
        let fetched = text.match_indices(".cache/").all(|(at, _)| {
            let end = text[at..].find([',', '}']).map_or(text.len(), |n| at + n);
            support::root().join(&text[at..end]).exists()
        });
        if !fetched {
            println!("{}: its data is not here; see pipelines/fetch.sh", path.display());
            continue;
        }
        let output = limbeck().arg("validate").arg(&path).output().expect("starts");
        assert!(
            output.status.success(),
            "{}:\n{}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        seen += 1;
    }
    assert!(seen >= 3, "saw {seen} pipelines");
}
