//! Reading data: MB/s of large files, and the digits of the quick start.
//!
//! From a pipeline's text to rows in memory, hashing of the files included, as every run does it.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use limbeck_host::data::{Datasets, Tokenize};
use limbeck_host::run::random::Random;
use limbeck_host::{document, plan};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

const BYTES: usize = 100_000_000;
const ROUNDS: usize = 5;

fn csv() -> String {
    let mut random = Random::new([1, 2]);
    let mut text = String::with_capacity(BYTES + 1000);
    while text.len() < BYTES {
        for _ in 0..64 {
            let _ = write!(text, "{:.4},", random.uniform() * 16.0);
        }
        text.push_str("3\n");
    }
    text
}

fn jsonl() -> String {
    let mut random = Random::new([1, 2]);
    let mut text = String::with_capacity(BYTES + 1000);
    while text.len() < BYTES {
        let (label, a, b) = (random.below(5), random.uniform(), random.uniform());
        let _ = writeln!(
            text,
            "{{\"label\": {label}, \"note\": \"words that nobody reads\", \"v\": [{a:.3}, {b:.3}, 3]}}"
        );
    }
    text
}

/// Seconds to read the one dataset `d`, and its rows.
fn read(folder: &Path, dataset: &str) -> (f64, usize) {
    let text = format!(
        "version: 1\nname: bench\ndatasets:\n  d: {dataset}\ndata: {{train: d, valid: d}}\nbatch: {{size: 32}}\noptimizer: {{kind: sgd, lr: 1}}\nepochs: 1\n\
         student: {{uses: limbeck.mlp, with: {{inputs: 64, hidden: [8], classes: 10}}}}\n\
         stages: [{{name: s, kind: train, loss: [{{uses: limbeck.ce}}]}}]\n"
    );
    let file = folder.join("bench.yaml");
    std::fs::write(&file, text).expect("a writable folder");
    let document = document::load(&file, &[]).expect("a sound pipeline");
    let plan = plan::plan(&document).expect("a sound pipeline");
    let begin = Instant::now();
    let (datasets, problems) = Datasets::open(&plan, Tokenize::Always);
    let seconds = begin.elapsed().as_secs_f64();
    assert!(problems.is_empty(), "{problems:?}");
    (seconds, datasets.get("d").expect("it was read").rows())
}

fn measure(folder: &Path, what: &str, bytes: usize, dataset: &str) -> Value {
    let runs: Vec<(f64, usize)> =
        (0..support::rounds(ROUNDS)).map(|_| read(folder, dataset)).collect();
    let seconds: Vec<f64> = runs.iter().map(|(s, _)| *s).collect();
    let median = support::median(&seconds);
    let speed = bytes as f64 / 1e6 / median;
    println!("{what:12} {:8} rows {:9.2} ms {speed:7.0} MB/s", runs[0].1, 1e3 * median);
    json!({"what": what, "bytes": bytes, "rows": runs[0].1, "seconds": support::summary(&seconds), "mb_per_s": speed})
}

fn main() {
    let machine = support::machine();
    let folder = support::scratch();
    let mut results = Vec::new();
    for (what, text, columns) in [
        ("csv", csv(), "tensors: {x: {columns: [0, 63]}}, label: 64"),
        ("jsonl", jsonl(), "tensors: {x: {columns: v}}, label: label"),
    ] {
        std::fs::write(folder.path().join("big"), &text).expect("a writable folder");
        results.push(measure(
            folder.path(),
            what,
            text.len(),
            &format!("{{format: {what}, path: big, {columns}}}"),
        ));
    }
    let digits = support::root().join("pipelines/data/digits.csv.gz");
    let bytes = std::fs::metadata(&digits).expect("the digits").len() as usize;
    let dataset = format!(
        "{{format: csv, path: {}, tensors: {{x: {{columns: [0, 63]}}}}, label: 64}}",
        digits.display()
    );
    results.push(measure(folder.path(), "digits.csv.gz", bytes, &dataset));
    support::write("data", &machine, &json!(results));
}
