//! Time and memory of a distillation step of BERT-mini's size in Limbeck and in PyTorch, two threads each, interleaved.
//!
//! Teacher of 4 blocks of 256, DistilBERT student of 2 or 4, batch 32, 64 tokens a row with or without padding, KL
//! divergence, AdamW, dropout. Limbeck's step is the slope between a short and a long run of the program.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const SHORT: u32 = 4;
const LONG: u32 = 24;
const VOCAB: usize = 30_522;

/// Name, blocks of the student, shortest row, probability of dropout.
const CASES: [(&str, u32, usize, f64); 3] =
    [("full", 4, 64, 0.1), ("full-no-dropout", 4, 64, 0.0), ("padded-2-blocks", 2, 16, 0.1)];

/// Numbers in [0, bound) of a linear congruential generator (Knuth, MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// A tokenizer of `VOCAB` words and 512 rows of them.
fn write_data(dir: &Path, shortest: usize) {
    let words: serde_json::Map<String, Value> = (0..VOCAB)
        .map(|i| (if i == 0 { "[PAD]".to_owned() } else { format!("w{i}") }, json!(i)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[PAD]"},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("a writable folder");
    let mut numbers = Numbers(7);
    let mut rows = String::new();
    for _ in 0..512 {
        let length = shortest + numbers.below(65 - shortest);
        let text: Vec<String> =
            (0..length).map(|_| format!("w{}", 4 + numbers.below(VOCAB - 4))).collect();
        let row = json!({"text": text.join(" "), "label": numbers.below(4)});
        writeln!(rows, "{row}").expect("a string grows");
    }
    std::fs::write(dir.join("rows.jsonl"), rows).expect("a writable folder");
}

fn write_pipeline(dir: &Path, layers: u32, dropout: f64) -> std::path::PathBuf {
    let sizes = "dim: 256, heads: 4, hidden_dim: 1024, classes: 4, vocab_size: 30522";
    let p = format!("dropout: {dropout}, attention_dropout: {dropout}, head_dropout: {dropout}");
    let text = format!(
        "version: 1\nname: bench-encoder\nseed: 7\ntokenizer: {{path: tokenizer.json, max_length: 64}}\n\
         datasets:\n  all: {{format: jsonl, path: rows.jsonl, text: text, label: label}}\n  \
         few: {{format: jsonl, path: rows.jsonl, text: text, label: label, rows: [0, 32]}}\n\
         data: {{train: all, valid: few}}\nbatch: {{size: 32}}\n\
         optimizer: {{kind: adamw, lr: 1e-4, weight_decay: 0.01}}\neval: {{metrics: [accuracy]}}\nstages:\n  \
         - name: teacher\n    kind: train\n    student: {{uses: limbeck.bert, with: {{layers: 4, {sizes}}}}}\n    \
         loss: [{{uses: limbeck.ce}}]\n    steps: 1\n  \
         - name: bench\n    kind: distill\n    teacher: {{from: teacher}}\n    \
         student: {{uses: limbeck.distilbert, with: {{layers: {layers}, {sizes}, {p}}}}}\n    \
         loss: [{{uses: limbeck.kl, with: {{temperature: 2.0}}}}]\n    steps: 4\n"
    );
    let path = dir.join("pipeline.yaml");
    std::fs::write(&path, text).expect("a writable folder");
    path
}

/// Seconds of a run, and the most memory it held, in MB.
fn run(pipeline: &Path, steps: u32) -> (f64, f64) {
    let runs = support::scratch();
    let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
    command.args(["run", "--quiet", "--progress", "none", "--threads", "2", "--fresh"]);
    command.arg("--runs").arg(runs.path()).args(["--set", &format!("stages.bench.steps={steps}")]);
    let begin = Instant::now();
    let mut child = command.arg(pipeline).stdin(Stdio::null()).spawn().expect("the program starts");
    let mut peak: f64 = 0.0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let held = status.unwrap_or_default();
        let held = held.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = held.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        peak = peak.max(kb.unwrap_or(0.0) / 1024.0);
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            assert!(status.success(), "{status}");
            return (begin.elapsed().as_secs_f64(), peak);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn torch(case: (&str, u32, usize, f64), attention: &str, adamw: &str) -> Option<Value> {
    let (_, layers, shortest, dropout) = case;
    let output = Command::new(support::python()?)
        .arg(support::root().join("benches/peers/encoder_step.py"))
        .args(["--layers", &layers.to_string(), "--shortest", &shortest.to_string()])
        .args(["--dropout", &dropout.to_string(), "--attention", attention, "--adamw", adamw])
        .output()
        .expect("the interpreter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("the peer prints one object"))
}

const VARIANTS: [(&str, &str); 3] = [("sdpa", "fused"), ("sdpa", "default"), ("eager", "fused")];

fn main() {
    let machine = support::machine();
    let mut results = Vec::new();
    for case in CASES {
        let dir = support::scratch();
        write_data(dir.path(), case.2);
        let pipeline = write_pipeline(dir.path(), case.1, case.3);
        let (mut ours, mut memory) = (Vec::new(), Vec::new());
        let mut theirs: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); VARIANTS.len()];
        let mut version = Value::Null;
        for _ in 0..support::rounds(ROUNDS) {
            let (short, _) = run(&pipeline, SHORT);
            let (long, peak) = run(&pipeline, LONG);
            ours.push(1e3 * (long - short) / f64::from(LONG - SHORT));
            memory.push(peak);
            for ((times, peaks), (attention, adamw)) in theirs.iter_mut().zip(VARIANTS) {
                if let Some(found) = torch(case, attention, adamw) {
                    times.push(found["ms_per_step"].as_f64().expect("a number"));
                    peaks.push(found["peak_mb"].as_f64().expect("a number"));
                    version = found["torch"].clone();
                }
            }
        }
        let (time, peak) = (support::median(&ours), support::median(&memory));
        println!("{:16} limbeck {time:7.1} ms a step, {peak:5.0} MB", case.0);
        let mut peers = Vec::new();
        let mut best = f64::INFINITY;
        for ((times, peaks), (attention, adamw)) in
            theirs.iter().zip(VARIANTS).filter(|((times, _), _)| !times.is_empty())
        {
            let (other, other_peak) = (support::median(times), support::median(peaks));
            best = best.min(other);
            println!(
                "                 pytorch {other:7.1} ms a step, {other_peak:5.0} MB, ours/theirs {:.2} ({attention}, {adamw})",
                time / other
            );
            peers.push(json!({"attention": attention, "adamw": adamw, "ms_per_step": support::summary(times), "peak_mb": support::summary(peaks)}));
        }
        results.push(json!({
            "case": case.0, "student_blocks": case.1, "shortest_row": case.2, "dropout": case.3, "threads": 2,
            "limbeck_ms_per_step": support::summary(&ours), "limbeck_peak_mb": support::summary(&memory), "torch": version, "pytorch": peers,
            "ratio_to_best_pytorch": best.is_finite().then_some(time / best),
        }));
    }
    support::write("encoder", &machine, &json!(results));
}
