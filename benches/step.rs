//! Time of an optimizer step of digits in Limbeck and in PyTorch, both with two threads, interleaved.
//!
//! Limbeck's step is the slope between a short and a long run of the program, so starting, reading data, the final
//! evaluation and the checkpoint cancel; writing `metrics.jsonl` each step does not, it belongs to a step.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use serde_json::{Value, json};
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 5;
const SHORT: u32 = 500;

/// Cases and the steps of their long run: about half a second and more beyond the short one.
const CASES: [(&str, u32); 3] = [("student", 20_500), ("teacher", 4_500), ("distill", 10_500)];

fn limbeck_us(case: &str, long: u32) -> f64 {
    let pipeline = support::root().join(format!("benches/pipelines/{case}.yaml"));
    let seconds = |steps: u32| {
        let sets = [format!("stages.bench.steps={steps}")];
        let begin = Instant::now();
        support::run_limbeck(&pipeline, &sets, &[], &[0]);
        begin.elapsed().as_secs_f64()
    };
    let short = seconds(SHORT);
    1e6 * (seconds(long) - short) / f64::from(long - SHORT)
}

/// Variants of the peer: the answer counts the fastest, so that it is not slowed by a choice of ours.
const VARIANTS: [(&str, &str, &str); 5] = [
    ("default", "tensor", "2"),
    ("fused", "tensor", "2"),
    ("fused", "dataloader", "2"),
    ("default", "tensor", "1"),
    ("fused", "tensor", "1"),
];

fn torch_us(case: &str, (adamw, loader, threads): (&str, &str, &str)) -> Option<(f64, Value)> {
    let output = Command::new(support::python()?)
        .arg(support::root().join("benches/peers/digits_step.py"))
        .args(["--case", case, "--adamw", adamw, "--loader", loader, "--threads", threads])
        .output()
        .expect("the interpreter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).expect("the peer prints one object");
    Some((value["us_per_step"].as_f64().expect("a number"), value["torch"].clone()))
}

fn main() {
    let machine = support::machine();
    let mut results = Vec::new();
    for (case, long) in CASES {
        let mut limbeck = Vec::new();
        let mut torch: Vec<Vec<f64>> = vec![Vec::new(); VARIANTS.len()];
        let mut version = Value::Null;
        for _ in 0..support::rounds(ROUNDS) {
            limbeck.push(limbeck_us(case, long));
            for (runs, variant) in torch.iter_mut().zip(VARIANTS) {
                if let Some((us, found)) = torch_us(case, variant) {
                    runs.push(us);
                    version = found;
                }
            }
        }
        let ours = support::median(&limbeck);
        println!("{case:8} limbeck {ours:8.1} us a step");
        let mut peers = Vec::new();
        let mut fastest = [f64::INFINITY; 2];
        for (runs, (adamw, loader, threads)) in
            torch.iter().zip(VARIANTS).filter(|(r, _)| !r.is_empty())
        {
            let theirs = support::median(runs);
            let best = &mut fastest[usize::from(threads == "1")];
            *best = best.min(theirs);
            println!(
                "         pytorch {theirs:8.1} us a step, {:5.2} times as long ({threads} threads, {adamw}, {loader})",
                theirs / ours
            );
            peers.push(json!({"adamw": adamw, "loader": loader, "threads": threads, "us_per_step": support::summary(runs), "ratio": theirs / ours}));
        }
        let ratio = |best: f64| best.is_finite().then_some(best / ours);
        results.push(json!({
            "case": case, "threads": 2, "limbeck_us_per_step": support::summary(&limbeck), "torch": version, "pytorch": peers,
            "ratio_fastest_pytorch_2_threads": ratio(fastest[0]), "ratio_fastest_pytorch_1_thread": ratio(fastest[1]),
        }));
    }
    support::write("step", &machine, &json!(results));
}
