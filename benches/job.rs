//! A whole job, from the command to the exported folder: fine-tune MiniLM on Reuters R8, distil it, evaluate both, export.
//!
//! Beside a Python program that does the same with PyTorch and transformers; two threads each, interleaved. Needs
//! `bash pipelines/fetch.sh minilm texts`.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use serde_json::{Value, json};
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 5;

fn main() {
    let machine = support::machine();
    let pipeline = support::root().join("benches/pipelines/job.yaml");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut peer = Value::Null;
    let python = support::python();
    for _ in 0..support::rounds(ROUNDS) {
        let begin = Instant::now();
        support::run_limbeck(&pipeline, &[], &[], &[0]);
        ours.push(begin.elapsed().as_secs_f64());
        let Some(python) = &python else { continue };
        let out = support::scratch();
        let begin = Instant::now();
        let output = Command::new(python)
            .arg(support::root().join("benches/peers/job.py"))
            .arg("--out")
            .arg(out.path())
            .output()
            .expect("the interpreter starts");
        theirs.push(begin.elapsed().as_secs_f64());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        peer = serde_json::from_slice(&output.stdout).expect("the peer prints one object");
    }
    let median = support::median(&ours);
    println!("limbeck run benches/pipelines/job.yaml   {median:6.1} s");
    let mut ratio = None;
    if !theirs.is_empty() {
        let other = support::median(&theirs);
        ratio = Some(median / other);
        println!(
            "python benches/peers/job.py              {other:6.1} s, ours/theirs {:.2}",
            median / other
        );
    }
    let result = json!({
        "limbeck_s": support::summary(&ours), "python": peer,
        "python_s": (!theirs.is_empty()).then(|| support::summary(&theirs)), "ratio": ratio,
    });
    support::write("job", &machine, &json!([result]));
}
