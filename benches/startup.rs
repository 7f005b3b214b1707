//! From the command to the first optimizer step, beside what a Python program pays before its first own line.
//!
//! Limbeck is stopped after one step, so its time holds more than asked: the checkpoint and the exit.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 10;

fn python_ms(python: &Path, args: &[&str]) -> f64 {
    let begin = Instant::now();
    let status =
        Command::new(python).args(args).current_dir(support::root()).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|s| s.success()), "{args:?} failed");
    1e3 * begin.elapsed().as_secs_f64()
}

fn main() {
    let machine = support::machine();
    let pipeline = support::root().join("pipelines/digits.yaml");
    let python = support::python();
    let peers: [(&str, &[&str]); 3] = [
        ("python -c 'import torch, transformers'", &["-c", "import torch, transformers"]),
        ("python -c 'import torch'", &["-c", "import torch"]),
        (
            "PyTorch, first step of the same training",
            &["benches/peers/digits_step.py", "--steps", "1", "--warmup", "0", "--case", "teacher"],
        ),
    ];
    let mut limbeck = Vec::new();
    let mut theirs: Vec<Vec<f64>> = vec![Vec::new(); peers.len()];
    // The first round only warms the page cache.
    for round in 0..=support::rounds(ROUNDS) {
        let begin = Instant::now();
        support::run_limbeck(&pipeline, &[], &["--max-steps", "1"], &[75]);
        let ours = 1e3 * begin.elapsed().as_secs_f64();
        if round > 0 {
            limbeck.push(ours);
        }
        for (times, (_, args)) in theirs.iter_mut().zip(peers) {
            if let Some(python) = &python {
                let ms = python_ms(python, args);
                if round > 0 {
                    times.push(ms);
                }
            }
        }
    }
    let ours = support::median(&limbeck);
    println!("limbeck run pipelines/digits.yaml --max-steps 1   {ours:7.1} ms");
    let mut results = vec![
        json!({"what": "limbeck run pipelines/digits.yaml --max-steps 1", "ms": support::summary(&limbeck)}),
    ];
    for ((what, _), times) in peers.iter().zip(&theirs).filter(|(_, t)| !t.is_empty()) {
        let median = support::median(times);
        println!("{what:48}  {median:7.1} ms, {:.1} times as long", median / ours);
        results.push(json!({"what": what, "ms": support::summary(times), "ratio": median / ours}));
    }
    support::write("startup", &machine, &json!(results));
}
