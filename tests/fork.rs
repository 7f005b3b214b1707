//! A pipeline that goes on from a stage of another run does what one run would have done, and refuses what does not fit.

use crate::support::{self, Finished, limbeck};
use std::path::{Path, PathBuf};

/// Everything but the stages. `XTASKS` stands for the tasks.
fn head(name: &str, tasks: &str) -> String {
    let digits = support::root().join("pipelines/data/digits.csv.gz");
    let data = |id: &str, classes: &str, more: &str| {
        format!(
            "  {id}: {{format: csv, path: {}, tensors: {{pixel_values: {{columns: [0, 63], scale: 0.0625}}}}, label: 64, classes: {classes}, {more}}}\n",
            digits.display()
        )
    };
    let mut text =
        format!("version: 1\nname: {name}\nseed: 3\nscenario: {{kind: class}}\ndatasets:\n");
    for (id, classes) in [("a", "[0, 1]"), ("b", "[2, 3]"), ("c", "[4, 5]")] {
        text += &data(&format!("{id}-train"), classes, "rows: [0, 1437], limit: 96");
        text += &data(&format!("{id}-valid"), classes, "rows: [1437, 1797]");
    }
    text + &format!(
        "tasks:
{tasks}batch: {{size: 16}}
optimizer: {{kind: adamw, lr: 3e-3}}
checkpoint: {{every: 4 steps, keep_last: 2}}
loss: [{{uses: limbeck.ce}}]
steps: 9
stages:
"
    )
}

const TASKS: &str = "  - {name: a, train: a-train, valid: a-valid}
  - {name: b, train: b-train, valid: b-valid}
  - {name: c, train: c-train, valid: c-valid}
";

/// Replay with stored logits, importances, a snapshot: all that a scheduler can leave behind.
const FIRST: &str = "  - name: first
    kind: train
    tasks: [a]
    student: {uses: limbeck.mlp, with: {inputs: 64, hidden: [12], classes: 10, dropout: 0.1}}
    scheduler:
      - {name: replay, uses: limbeck.derpp, with: {capacity: 24, batch: 8}}
      - {name: ewc, uses: limbeck.ewc, with: {lambda: 50, rows: 20}}
      - {name: lwf, uses: limbeck.lwf}
";

/// Stands where the first stage stood in the chain, so that stage numbers, and with them random keys, are the same.
const OTHER: &str = "  - {name: other, kind: train, data: {train: b-train, valid: b-valid}, steps: 1, student: {uses: limbeck.mlp, with: {inputs: 64, hidden: [4], classes: 10}}}
";

fn rest(from: &str) -> String {
    format!(
        "  - name: rest
    kind: distill
    tasks: [b, c]
    student: {{{from}}}
    teacher: {{{from}}}
    scheduler: {{{from}}}
    loss: [{{uses: limbeck.ce}}, {{uses: limbeck.kl, weight: 0.5}}]
"
    )
}

fn limbeck_in(folder: &Path, args: &[&str]) -> Finished {
    support::finish(limbeck().args(args).current_dir(folder))
}

fn write(folder: &Path, file: &str, text: &str) {
    std::fs::write(folder.join(file), text).expect("pipeline");
}

/// Runs a pipeline in a folder; its exit code must be this one. Gives the run directory.
fn run(folder: &Path, name: &str, text: &str, code: i32, extra: &[&str]) -> (PathBuf, Finished) {
    let file = format!("{name}.yaml");
    write(folder, &file, text);
    let mut args = vec!["run", &file, "--progress", "none"];
    args.extend(extra);
    let done = limbeck_in(folder, &args);
    assert_eq!(done.code, Some(code), "{}", done.err);
    let runs = std::fs::read_dir(folder.join("runs").join(name)).into_iter().flatten().flatten();
    let dir = runs.map(|e| e.path()).find(|p| p.join("run.json").is_file());
    (dir.unwrap_or_default(), done)
}

/// `from: first, run: DIRECTORY`, relative to the folder.
fn from(folder: &Path, dir: &Path) -> String {
    let below = dir.strip_prefix(folder).expect("below the folder");
    format!("from: first, run: {}", below.display())
}

fn first_run(folder: &Path) -> PathBuf {
    run(folder, "begin", &(head("begin", TASKS) + FIRST), 0, &[]).0
}

/// Every file of a checkpoint but its manifest, which names the pipeline.
fn checkpoint(stage: &Path, step: usize) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut waiting = vec![stage.join(format!("ckpt/step-{step:07}"))];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}")) {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else if !path.ends_with("manifest.json") {
                let name = path.strip_prefix(stage).expect("below").display().to_string();
                files.push((name, std::fs::read(&path).expect("readable")));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_fork_ends_bit_for_bit_as_the_chain_in_one_run() {
    let (one, two) = (support::temp_dir(), support::temp_dir());
    let chain = head("chain", TASKS) + FIRST + &rest("from: first");
    let (chain, _) = run(one.path(), "chain", &chain, 0, &[]);
    let begin = first_run(two.path());
    let fork = head("fork", TASKS) + OTHER + &rest(&from(two.path(), &begin));
    // Stopped on the way: it goes on from its own checkpoints, its teacher still from the other run.
    run(two.path(), "fork", &fork, 75, &["--max-steps", "7"]);
    let (fork, _) = run(two.path(), "fork", &fork, 0, &[]);
    let (expected, found) = (chain.join("stages/02-rest"), fork.join("stages/02-rest"));
    let (mut names, steps) = (Vec::new(), 2 * 9);
    assert_eq!(checkpoint(&expected, steps).len(), checkpoint(&found, steps).len());
    for (left, right) in checkpoint(&expected, steps).into_iter().zip(checkpoint(&found, steps)) {
        assert_eq!(left.0, right.0);
        assert!(left.1 == right.1, "{} differs", left.0);
        names.push(left.0);
    }
    for wanted in ["model", "optim", "extra", "scheduler-replay", "scheduler-ewc", "state.json"] {
        assert!(names.iter().any(|n| n.contains(wanted)), "no {wanted} in {names:?}");
    }
    let matrix = |stage: &Path| {
        std::fs::read_to_string(stage.join("eval/task-matrix.json")).expect("matrix")
    };
    assert_eq!(matrix(&expected), matrix(&found));
    let rows: serde_json::Value = serde_json::from_str(&matrix(&found)).expect("JSON");
    let begun: serde_json::Value =
        serde_json::from_str(&matrix(&begin.join("stages/01-first"))).expect("JSON");
    assert_eq!(rows["rows"].as_array().expect("rows").len(), 4, "before, a, b, c");
    assert_eq!(rows["rows"][1], begun["rows"][1], "the row of the other run");
    let eval = limbeck_in(two.path(), &["eval", "fork"]);
    assert_eq!(eval.code, Some(0), "{}", eval.err);
}

#[test]
fn a_student_alone_goes_into_another_stream_with_a_matrix_of_its_own() {
    let folder = support::temp_dir();
    let begin = first_run(folder.path());
    let tasks = "  - {name: later, train: b-train, valid: b-valid}
  - {name: last, train: c-train, valid: c-valid}
";
    let student = from(folder.path(), &begin);
    let stage = format!("  - {{name: on, kind: train, student: {{{student}}}}}\n");
    let (dir, done) = run(folder.path(), "on", &(head("on", tasks) + &stage), 0, &[]);
    assert!(done.err.contains("LMB0221"), "the scheduler is dropped with a warning: {}", done.err);
    let matrix = std::fs::read(dir.join("stages/01-on/eval/task-matrix.json")).expect("matrix");
    let matrix: serde_json::Value = serde_json::from_slice(&matrix).expect("JSON");
    assert_eq!(matrix["tasks"], serde_json::json!(["later", "last"]));
    assert_eq!(matrix["rows"].as_array().expect("rows").len(), 3);
}

#[test]
fn what_does_not_fit_is_refused_in_validate_with_its_place() {
    let folder = support::temp_dir();
    let begin = first_run(folder.path());
    let good = from(folder.path(), &begin);
    let stage = |from: &str| {
        format!(
            "  - {{name: on, kind: train, tasks: [b, c], student: {{{from}}}, scheduler: {{{from}}}}}\n"
        )
    };
    let refused = |tasks: &str, stages: &str, code: &str, exit: i32, word: &str| {
        write(folder.path(), "bad.yaml", &(head("bad", tasks) + stages));
        let done = limbeck_in(folder.path(), &["validate", "bad.yaml"]);
        let text = &done.err;
        assert!(text.contains(code) && text.contains(word), "{code} {word}: {text}");
        assert!(text.contains("--> bad.yaml:") && text.contains("help:"), "{text}");
        assert_eq!(done.code, Some(exit), "{text}");
    };
    refused(TASKS, &stage("from: first, run: runs/nowhere"), "LMB0706", 66, "is no run directory");
    refused(TASKS, &stage(&good.replace("first", "frist")), "LMB0201", 78, "did you mean `first`?");
    let alone = format!(
        "  - {{name: on, kind: train, tasks: [b, c], student: {{{good}}}, scheduler: {{from: on}}}}\n"
    );
    refused(TASKS, &alone, "LMB0202", 78, "refers to itself");
    let only = format!(
        "  - {{name: on, kind: train, tasks: [b, c], student: {{uses: limbeck.mlp, with: {{inputs: 64, hidden: [12], classes: 10}}}}, scheduler: {{{good}}}}}\n"
    );
    refused(TASKS, &only, "LMB0208", 78, "run: runs/begin/");
    let measured = format!(
        "  - {{name: m, kind: eval, model: {{{good}}}, data: a-valid, metrics: [accuracy]}}\n"
    );
    refused(TASKS, &measured, "LMB0113", 78, "limbeck eval RUN");
    let tasks = TASKS.replace("name: c", "name: d");
    refused(&tasks, &stage(&good).replace("[b, c]", "[b, d]"), "LMB0250", 78, "another stream");
    // Rows of another width, labels that the student has no class for: as for any student.
    let narrow = head("bad", TASKS).replace("columns: [0, 63]", "columns: [0, 31]");
    write(folder.path(), "narrow.yaml", &(narrow + &stage(&good)));
    let done = limbeck_in(folder.path(), &["validate", "narrow.yaml"]);
    assert!(done.err.contains("LMB0233"), "{}", done.err);
    // Another version of a plugin.
    let record = begin.join("run.json");
    let text = std::fs::read_to_string(&record).expect("record");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json["plugins"]["limbeck.ewc"]["version"] = "0.0.7".into();
    std::fs::write(&record, json.to_string()).expect("record");
    refused(TASKS, &stage(&good), "LMB0314", 77, "`limbeck.ewc` 0.0.7");
    std::fs::write(&record, &text).expect("record");
    // A pipeline that means nothing here.
    let pipeline = begin.join("config/pipeline.yaml");
    let kept = std::fs::read(&pipeline).expect("pipeline");
    std::fs::write(&pipeline, "version: 2\n").expect("pipeline");
    refused(TASKS, &stage(&good), "LMB0213", 78, "its pipeline is not valid here");
    std::fs::write(&pipeline, kept).expect("pipeline");
    let (stopped, _) =
        run(folder.path(), "half", &(head("half", TASKS) + FIRST), 75, &["--max-steps", "3"]);
    refused(TASKS, &stage(&from(folder.path(), &stopped)), "LMB0710", 66, "is not done");
}

#[test]
fn a_run_that_changed_under_its_fork_is_noticed_on_resume() {
    let folder = support::temp_dir();
    let begin = first_run(folder.path());
    let text = head("fork", TASKS) + &rest(&from(folder.path(), &begin));
    let (dir, _) = run(folder.path(), "fork", &text, 75, &["--max-steps", "5"]);
    let manifest = begin.join("stages/01-first/ckpt/step-0000009/manifest.json");
    let bytes = std::fs::read_to_string(&manifest).expect("manifest");
    std::fs::write(&manifest, bytes.clone() + "\n").expect("manifest");
    let resumed = limbeck_in(folder.path(), &["resume", dir.to_str().expect("UTF-8")]);
    assert_eq!(resumed.code, Some(78), "{}", resumed.err);
    assert!(
        resumed.err.contains("LMB0707") && resumed.err.contains("manifest.json"),
        "{}",
        resumed.err
    );
    std::fs::write(&manifest, bytes).expect("manifest");
    let resumed = limbeck_in(folder.path(), &["resume", dir.to_str().expect("UTF-8")]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
}
