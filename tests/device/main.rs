//! Whole pipelines on a GPU without a GPU: the program, the loss plugin's kernels, memory and arithmetic of the device,
//! and a student that computes there, over the emulated driver of `plugins/losses/cuda/emulate`.
//!
//! Run by `.ci/cuda`, which builds the losses with their CUDA half. What this cannot show is a second address space and
//! the order of real streams; `benches/gpu_models.py` shows those where a GPU is.

#[path = "../support/mod.rs"]
#[allow(dead_code)]
mod support;

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use support::Finished;

/// The emulated `libcuda.so.1`, built once, and the student for it.
fn built() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let features = "limbeck-losses/cuda,emulated-gpu";
        support::cargo_cdylibs(support::root(), &["--workspace", "--features", features]);
        let folder = support::temp_dir();
        let script = support::root().join("plugins/losses/cuda/emulate/build.sh");
        let status = Command::new(script).arg(folder.path()).status().expect("it starts");
        assert!(status.success(), "the emulated driver does not compile");
        support::cc::plugin(&support::cc::fixture("on_device.c"), folder.path(), &[]);
        folder
    });
    folder.path()
}

/// A pipeline of a teacher, a distilled student and an export, in a folder of its own.
struct Case {
    folder: tempfile::TempDir,
}

const PIPELINE: &str = "version: 1
name: on-device
seed: 3
device: DEVICE
dtype: DTYPE
plugins: [{id: org.example.on-device, path: libon_device.so}]
datasets:
  all: &digits
    {format: csv, path: digits.csv.gz, tensors: {pixel_values: {columns: [0, 63], scale: 0.0625}}, label: 64, rows: [0, 600]}
  held-out: {<<: *digits, rows: [1437, 1797]}
data: {train: all, valid: held-out}
batch: {size: 30, accumulate: 2}
optimizer: OPTIMIZER
eval: {metrics: [accuracy, loss]}
student: {uses: org.example.on-device}
stages:
  - {name: teacher, kind: train, loss: [{uses: limbeck.ce}], steps: 20}
  - name: distilled
    kind: distill
    teacher: {from: teacher}
    loss: [{uses: limbeck.kl, with: {temperature: 2.0}}, {uses: limbeck.ce, weight: 0.5}]
    steps: STEPS
  - {name: export, kind: export, model: {from: distilled}, format: hf}
";

const ADAMW: &str = "{kind: adamw, lr: 1e-2, weight_decay: 0.01, clip_norm: 0.5}";

const SGD: &str = "{kind: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.01}";

/// Three tasks of one student, under a scheduler.
const STREAM: &str = "version: 1
name: on-device
seed: 3
device: DEVICE
plugins: [{id: org.example.on-device, path: libon_device.so}]
datasets:
  all: {format: csv, path: digits.csv.gz, tensors: {pixel_values: {columns: [0, 63], scale: 0.0625}}, label: 64, rows: [0, 300]}
scenario: {kind: SCENARIO}
tasks: {split: [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]], train: all, valid: all}
batch: {size: 30}
optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}
eval: {metrics: [accuracy]}
stages:
  - name: stream
    kind: train
    student: {uses: org.example.on-device}
    loss: [{uses: limbeck.ce}]
    scheduler: SCHEDULER
    steps: 6
  - {name: export, kind: export, model: {from: stream}, format: hf}
";

impl Case {
    fn stream(device: &str, scenario: &str, scheduler: &str) -> Self {
        let case = Self::new(device, false, SGD, 1);
        let text = STREAM.replace("DEVICE", device).replace("SCENARIO", scenario);
        let text = text.replace("SCHEDULER", scheduler);
        std::fs::write(case.folder.path().join("p.yaml"), text).expect("a pipeline");
        case
    }

    fn new(device: &str, bf16: bool, optimizer: &str, steps: usize) -> Self {
        let folder = support::temp_dir();
        let digits = support::root().join("pipelines/data/digits.csv.gz");
        std::fs::copy(digits, folder.path().join("digits.csv.gz")).expect("digits");
        let student = built().join("libon_device.so");
        std::fs::copy(student, folder.path().join("libon_device.so")).expect("the student");
        let dtype = if bf16 { "bf16" } else { "f32" };
        let text = PIPELINE.replace("DEVICE", device).replace("DTYPE", dtype);
        let text = text.replace("OPTIMIZER", optimizer).replace("STEPS", &steps.to_string());
        std::fs::write(folder.path().join("p.yaml"), text).expect("a pipeline");
        Self { folder }
    }

    /// Changes the pipeline.
    fn edit(&self, from: &str, to: &str) {
        let path = self.folder.path().join("p.yaml");
        let text = std::fs::read_to_string(&path).expect("a pipeline");
        assert!(text.contains(from), "{from}");
        std::fs::write(path, text.replace(from, to)).expect("a pipeline");
    }

    fn command(&self, args: &[&str], driver: bool) -> Finished {
        self.command_with(args, driver, "1073741824")
    }

    fn command_with(&self, args: &[&str], driver: bool, memory: &str) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
        command.current_dir(self.folder.path()).args(args).arg("--allow-unlocked");
        command
            .env("NO_COLOR", "1")
            .env("XDG_CACHE_HOME", support::root().join("target/test-cache"));
        command.env("LIMBECK_EMULATED_MEMORY", memory);
        command.env("LIMBECK_EMULATED_COUNTS", self.folder.path().join("counts.json"));
        if driver {
            command.env("LD_LIBRARY_PATH", built());
        }
        support::finish(&mut command)
    }

    fn run(&self, more: &[&str]) -> Finished {
        self.command(&[&["run", "p.yaml"], more].concat(), true)
    }

    fn done(self) -> Self {
        let finished = self.run(&[]);
        assert_eq!(finished.code, Some(0), "{}\n{}", finished.out, finished.err);
        self
    }

    fn dir(&self) -> PathBuf {
        let only = |folder: &Path| {
            let entries =
                std::fs::read_dir(folder).expect("runs").map(|e| e.expect("entry").path());
            let folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
            assert_eq!(folders.len(), 1, "{folders:?}");
            folders.into_iter().next().expect("one")
        };
        only(&only(&self.folder.path().join("runs")))
    }

    fn column(&self, name: &str) -> Vec<f64> {
        let text = std::fs::read_to_string(self.dir().join("metrics.jsonl")).expect("metrics");
        let rows = text.lines().map(|l| serde_json::from_str::<Value>(l).expect("a row"));
        rows.filter_map(|row| row[name].as_f64()).collect()
    }

    fn exported(&self) -> Vec<u8> {
        let stages = std::fs::read_dir(self.dir().join("stages")).expect("stages");
        let mut exports = stages.map(|e| e.expect("entry").path().join("out/model.safetensors"));
        std::fs::read(exports.find(|path| path.exists()).expect("an export")).expect("a file")
    }

    fn counted(&self, what: &str) -> i64 {
        // Without a GPU nobody opens the driver, and nobody counts.
        let Ok(text) = std::fs::read(self.folder.path().join("counts.json")) else { return 0 };
        let counts: Value = serde_json::from_slice(&text).expect("JSON");
        counts[what].as_i64().expect("a count")
    }
}

fn floats(file: &[u8], name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(file).expect("safetensors");
    let view = file.tensor(name).expect(name);
    match view.dtype() {
        safetensors::Dtype::BF16 => {
            let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            view.data().chunks_exact(2).map(|b| f64::from(wide(b))).collect()
        }
        _ => {
            let four = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four"));
            view.data().chunks_exact(4).map(|b| f64::from(four(b))).collect()
        }
    }
}

/// Largest difference of two lists, relative to the largest value.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert!(!a.is_empty() && a.len() == b.len(), "{} and {}", a.len(), b.len());
    let scale = b.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
}

/// Both devices compute in f32 in another order: 50 updates of it.
const BOUND: f64 = 50.0 * 64.0 * f32::EPSILON as f64;

fn agree(optimizer: &str, bf16: bool, bound: f64) {
    let on = |device| Case::new(device, bf16, optimizer, 30).done();
    let (gpu, cpu) = (on("cuda:0"), on("cpu"));
    assert!(gpu.counted("launches") > 200, "{}", gpu.counted("launches"));
    assert_eq!(cpu.counted("launches"), 0);
    for column in ["loss", "grad_norm", "kl", "accuracy"] {
        let (a, b) = (gpu.column(column), cpu.column(column));
        assert!(distance(&a, &b) < bound, "{column}: {}", distance(&a, &b));
    }
    for name in ["weight", "bias"] {
        let (a, b) = (floats(&gpu.exported(), name), floats(&cpu.exported(), name));
        assert!(distance(&a, &b) < bound, "{name}: {}", distance(&a, &b));
    }
}

#[test]
fn training_and_distilling_on_the_gpu_give_what_the_cpu_gives() {
    agree(ADAMW, false, BOUND);
}

#[test]
fn sgd_on_the_gpu_gives_what_the_cpu_gives() {
    agree(SGD, false, BOUND);
}

/// The model of the last checkpoint of the distilling stage.
fn checkpointed(case: &Case) -> Vec<u8> {
    let dir = case.dir().join("stages/02-distilled/ckpt");
    let entries = std::fs::read_dir(dir).expect("checkpoints").map(|e| e.expect("entry").path());
    let last = entries.filter(|p| p.is_dir()).max().expect("one");
    std::fs::read(last.join("model.safetensors")).expect("a model")
}

#[test]
fn parameters_in_bf16_are_trained_through_masters_in_f32_which_files_hold() {
    // Gradients are those at rounded weights, half a unit of 2^-8 beside the exact ones.
    agree(SGD, true, 4.0 / 256.0);
    let gpu = Case::new("cuda:0", true, ADAMW, 30).done();
    let master = floats(&checkpointed(&gpu), "weight");
    let fine = master.iter().filter(|m| (**m as f32).to_bits() & 0xffff != 0).count();
    assert!(fine > master.len() / 2, "masters hold no more than bf16");
    assert_eq!(floats(&gpu.exported(), "weight"), master);
}

#[test]
fn a_moving_copy_of_a_bf16_student_follows_its_masters() {
    let copy = |device, rate: &str| {
        let case = Case::new(device, true, &SGD.replace("0.1", rate), 30);
        // A thousandth of a difference is less than bf16 resolves.
        case.edit("teacher: {from: teacher}", "teacher: {ema: {decay: 0.999}}");
        case.edit("model: {from: distilled}", "model: {from: distilled, which: ema}");
        floats(&case.done().exported(), "weight")
    };
    let way = |device| {
        let (to, from) = (copy(device, "0.1"), copy(device, "1e-30"));
        to.iter().zip(from).map(|(to, from)| to - from).collect::<Vec<_>>()
    };
    let (gpu, cpu) = (way("cuda:0"), way("cpu"));
    assert!(distance(&gpu, &cpu) < 0.05, "{}", distance(&gpu, &cpu));
}

#[test]
fn a_stopped_run_on_the_gpu_continues_bit_for_bit() {
    for bf16 in [false, true] {
        let whole = Case::new("cuda:0", bf16, ADAMW, 30).done();
        let parts = Case::new("cuda:0", bf16, ADAMW, 30);
        for steps in ["7", "25"] {
            let stopped = parts.run(&["--max-steps", steps]);
            assert_eq!(stopped.code, Some(75), "{}", stopped.err);
        }
        let parts = parts.done();
        assert_eq!(parts.column("loss"), whole.column("loss"));
        assert_eq!(parts.exported(), whole.exported());
    }
}

#[test]
fn schedulers_on_the_gpu_do_what_they_do_on_the_cpu_and_resume_bit_for_bit() {
    let cases = [
        ("class", "{uses: limbeck.joint}"),
        ("class", "{uses: limbeck.er, with: {capacity: 40}}"),
        ("class", "{uses: limbeck.er, with: {capacity: 40, store: inputs}}"),
        ("class", "{uses: limbeck.derpp, with: {capacity: 40}}"),
        ("class", "{uses: limbeck.agem, with: {capacity: 40}}"),
        ("class", "{uses: limbeck.gdumb, with: {capacity: 40, epochs: 2}}"),
        ("class", "{uses: limbeck.ps-kd, with: {classes: 10, epochs: 2}}"),
        ("task", "{uses: limbeck.lwf}"),
        ("domain", "{uses: limbeck.ewc, with: {lambda: 10}}"),
        ("domain", "{uses: limbeck.si, with: {c: 1}}"),
        ("domain", "{uses: limbeck.mas, with: {lambda: 1}}"),
    ];
    for (scenario, scheduler) in cases {
        let done = |device| Case::stream(device, scenario, scheduler).done();
        let (gpu, cpu) = (done("cuda:0"), done("cpu"));
        for name in ["weight", "bias"] {
            let (a, b) = (floats(&gpu.exported(), name), floats(&cpu.exported(), name));
            assert!(distance(&a, &b) < BOUND, "{scheduler}, {name}: {}", distance(&a, &b));
        }
        let parts = Case::stream("cuda:0", scenario, scheduler);
        let stopped = parts.run(&["--max-steps", "9"]);
        assert_eq!(stopped.code, Some(75), "{scheduler}: {}", stopped.err);
        assert_eq!(parts.done().exported(), gpu.exported(), "{scheduler}");
    }
}

#[test]
fn a_step_reads_back_its_numbers_and_nothing_else() {
    let few = Case::new("cuda:0", false, ADAMW, 20).done();
    let many = Case::new("cuda:0", false, ADAMW, 40).done();
    let more = |what| many.counted(what) - few.counted(what);
    // Two terms on two micro-batches, a value and two metrics each, and the norm of the gradient.
    assert_eq!(more("reads"), 20 * 5);
    assert_eq!(more("read_bytes"), 20 * (4 * 12 + 8));
}

#[test]
fn a_gpu_without_room_ends_the_run_with_a_hint() {
    let case = Case::new("cuda:0", false, ADAMW, 5);
    // Parameters and gradients fit, the moments do not.
    let finished = case.command_with(&["run", "p.yaml"], true, "8192");
    assert_eq!(finished.code, Some(69), "{}", finished.err);
    for part in
        ["LMB0802", "bytes on cuda:0", "CUDA_ERROR_OUT_OF_MEMORY", "make `batch.size` smaller"]
    {
        assert!(finished.err.contains(part), "{part}: {}", finished.err);
    }
}

#[test]
fn auto_takes_the_gpu_and_says_why_not_without_one() {
    let case = Case::new("auto", false, ADAMW, 5);
    let found = case.command(&["validate", "p.yaml"], true);
    assert!(found.out.contains("cuda:0 (Emulated GPU sm_90, 1.0 GiB)"), "{}", found.out);
    assert!(found.out.contains("org.example.on-device"), "{}", found.out);
    let taken = case.run(&["--max-steps", "2"]);
    assert!(taken.out.contains("cuda:0 (Emulated GPU sm_90"), "{}", taken.out);
    let elsewhere = case.command(&["run", "p.yaml"], false);
    assert_eq!(elsewhere.code, Some(0), "{}", elsewhere.err);
    assert!(elsewhere.err.contains("begun on cuda:0, continued on cpu"), "{}", elsewhere.err);
    let none = case.command(&["validate", "p.yaml"], false);
    let why = "no GPU (no CUDA driver: libcuda.so.1 does not open";
    assert!(none.code == Some(0) && none.out.contains(why), "{}", none.out);
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_the_reason() {
    let case = Case::new("cuda:0", false, ADAMW, 5);
    for args in [["run", "p.yaml"], ["validate", "p.yaml"]] {
        let finished = case.command(&args, false);
        assert_eq!(finished.code, Some(69), "{}", finished.err);
        assert!(finished.err.contains("LMB0801"), "{}", finished.err);
        assert!(finished.err.contains("libcuda.so.1 does not open"), "{}", finished.err);
    }
    let third = Case::new("cuda:2", false, ADAMW, 5);
    let finished = third.command(&["run", "p.yaml"], true);
    assert_eq!(finished.code, Some(69), "{}", finished.err);
    assert!(finished.err.contains("there are 2 GPUs"), "{}", finished.err);
}
