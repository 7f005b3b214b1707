//! Streams of tasks through real plugins: every method resumes at every step, scenarios mask what they say, stored rows
//! are as good as rows read again.

use super::harness::{Bench, digits, finished, options, resumes_bit_for_bit, substance};
use super::matrix::TaskMatrix;
use std::path::{Path, PathBuf};

/// Two tasks of their own classes, then one of them again in a second stage.
fn stream(scenario: &str, loss: &str, scheduler: &str) -> String {
    format!(
        "
version: 1
name: small
seed: 3
scenario: {scenario}
datasets:
  a: &rows {{format: csv, path: data/digits.csv.gz, tensors: {{pixel_values: {{columns: [0, 63], scale: 0.0625}}}}, label: 64, classes: [0, 1], limit: 70}}
  b: {{<<: *rows, classes: [2, 3]}}
  va: {{<<: *rows, rows: [1437, 1797], limit: 40}}
  vb: {{<<: *rows, rows: [1437, 1797], classes: [2, 3], limit: 40}}
tasks: [{{name: first, train: a, valid: va}}, {{name: second, train: b, valid: vb}}]
batch: {{size: 16}}
epochs: 2
optimizer: {{kind: adamw, lr: 3e-3}}
checkpoint: {{every: 4 steps}}
eval: {{every: end, metrics: [accuracy]}}
loss: {loss}
student: {{uses: limbeck.mlp, with: {{inputs: 64, hidden: [16], classes: 4}}}}
stages:
  - {{name: stream, kind: train, tasks: [first], scheduler: {scheduler}}}
  - {{name: more, kind: train, tasks: [second], student: {{from: stream}}, scheduler: {{from: stream}}}}
"
    )
}

/// Long enough to learn something.
fn longer(text: &str) -> String {
    text.replace("epochs: 2", "epochs: 40")
}

const CE: &str = "[{uses: limbeck.ce}]";

fn matrix(run: &Path, stage: &str) -> TaskMatrix {
    let bytes =
        std::fs::read(run.join("stages").join(stage).join("eval/task-matrix.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn run_of(text: &str, dir: &Path) -> Option<PathBuf> {
    let bench = Bench::new(&digits(), text)?;
    Some(finished(bench.run(&options(dir)).0))
}

#[test]
fn mas_and_joint_training_resume_at_every_step() {
    resumes_bit_for_bit(
        &stream("{kind: class}", CE, "{uses: limbeck.mas, with: {lambda: 1.0, rows: 9}}"),
        1,
    );
    resumes_bit_for_bit(&stream("{kind: class}", CE, "{uses: limbeck.joint}"), 1);
}

#[test]
fn agem_resumes_at_every_step() {
    let agem = "{uses: limbeck.agem, with: {capacity: 20, batch: 8}}";
    resumes_bit_for_bit(&stream("{kind: task}", CE, agem), 1);
}

#[test]
fn icarl_resumes_at_every_step_with_its_exemplars() {
    let icarl = "{uses: limbeck.icarl, with: {capacity: 8}}";
    resumes_bit_for_bit(&stream("{kind: class}", "[]", icarl), 1);
}

#[test]
fn gdumb_resumes_at_every_step_inside_its_pass_too() {
    let gdumb = "{uses: limbeck.gdumb, with: {capacity: 40, epochs: 3}}";
    resumes_bit_for_bit(&stream("{kind: domain}", CE, gdumb), 1);
}

#[test]
fn balanced_replay_of_stored_columns_resumes_at_every_step() {
    let er = "{uses: limbeck.er, with: {capacity: 12, batch: 8, policy: balanced, balance: class, store: inputs}}";
    resumes_bit_for_bit(&stream("{kind: task}", CE, er), 1);
}

#[test]
fn rows_stored_as_columns_give_the_run_of_rows_read_again() {
    let weights = |store: &str, dir: &Path| {
        let er = format!("{{uses: limbeck.er, with: {{capacity: 12, batch: 8, store: {store}}}}}");
        let run = run_of(&stream("{kind: task}", CE, &er), dir)?;
        let files = substance(&run);
        let model = files.iter().rfind(|(name, _)| name.ends_with("model.safetensors"));
        model.map(|(_, bytes)| bytes.clone())
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(again) = weights("row_ids", &dir.path().join("ids")) else { return };
    assert_eq!(weights("inputs", &dir.path().join("columns")).as_ref(), Some(&again));
}

#[test]
fn a_class_stream_is_judged_over_all_classes_and_within_the_task() {
    let dir = tempfile::tempdir().unwrap();
    let text = longer(&stream("{kind: class}", CE, "{uses: limbeck.none}"));
    let Some(run) = run_of(&text, dir.path()) else {
        return;
    };
    let matrix = matrix(&run, "02-more");
    assert_eq!((matrix.mask.as_str(), matrix.train_classes.as_str()), ("all", "all"));
    let inside = matrix.other().unwrap();
    assert_eq!((inside.mask.as_str(), inside.rows.len(), matrix.rows.len()), ("task", 3, 3));
    // The first task is forgotten among all classes, not within itself.
    let (all, own) = (matrix.rows[2][0].unwrap(), inside.rows[2][0].unwrap());
    assert!(all < 0.3 && own > 0.8, "{all} {own}");
    // Known before any training: chance, twice as high within two of four classes.
    let fwt = |m: &TaskMatrix| m.summary().into_iter().find(|(n, _)| n == "fwt").unwrap().1;
    assert_eq!(fwt(&matrix), None);
    assert!(fwt(&inside).is_some());
    let json: serde_json::Value = serde_json::from_slice(
        &std::fs::read(run.join("stages/02-more/eval/task-matrix.json")).unwrap(),
    )
    .unwrap();
    assert!(json["definitions"]["forgetting"].is_string() && json["also"]["summary"].is_object());
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(rows.contains("\"task.accuracy\"") && rows.contains("\"eval\":\"stream\""));
}

#[test]
fn a_task_stream_trains_each_row_over_the_classes_of_its_own_task() {
    let dir = tempfile::tempdir().unwrap();
    let er = "{uses: limbeck.er, with: {capacity: 20, batch: 8}}";
    let text = longer(&stream("{kind: task}", CE, er));
    let Some(run) = run_of(&text, &dir.path().join("task")) else { return };
    let known = matrix(&run, "02-more");
    assert_eq!((known.mask.as_str(), known.train_classes.as_str()), ("task", "task"));
    let over_all = known.other().unwrap();
    for (own, all) in known.rows[2].iter().zip(&over_all.rows[2]) {
        assert!(own.unwrap() > 0.7 && own > all, "{known:?}");
    }
    // Masked only when judged: other weights.
    let other = text.replace("{kind: task}", "{kind: task, train_classes: all}");
    let run_all = run_of(&other, &dir.path().join("all")).unwrap();
    assert_eq!(matrix(&run_all, "02-more").train_classes, "all");
    let model = |run: &Path| {
        let files = substance(run);
        files.iter().rfind(|(n, _)| n.ends_with("model.safetensors")).map(|(_, b)| b.clone())
    };
    assert_ne!(model(&run), model(&run_all));
}

#[test]
fn the_definition_of_a_method_stands_in_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let ewc = "{uses: limbeck.ewc, with: {lambda: 10.0, rows: 5}}";
    let Some(run) = run_of(&stream("{kind: task}", CE, ewc), dir.path()) else { return };
    let bytes = std::fs::read(run.join("stages/01-stream/eval/method.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let method = &json["schedulers"][0];
    assert_eq!(method["definition"]["importance"]["fisher"], "exact");
    assert_eq!(method["with"]["rows"], 5);
}

#[test]
fn outside_the_run_the_scheduler_still_decides() {
    let text = stream("{kind: class}", "[]", "{uses: limbeck.icarl, with: {capacity: 8}}");
    let Some(bench) = Bench::new(&digits(), &text) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = finished(bench.run(&options(dir.path())).0);
    let last = crate::plan::Which::Last;
    let measured =
        super::evaluate(&bench.plan, bench.load(), &bench.datasets, &run, 1, last, None).unwrap();
    let row = matrix(&run, "02-more").rows[2].clone();
    let found: Vec<Option<f64>> = measured.iter().map(|(_, values)| Some(values[0].1)).collect();
    assert_eq!(found, row);
    let printed = super::task_matrix(&bench.plan, &run, 1).unwrap();
    assert_eq!(printed.rows.len(), 3);
}
