//! Nanoseconds per element of loss and gradient on logits, through the ABI, beside PyTorch eager and compiled.
//!
//! One thread by default (`BENCH_THREADS`), f32. Rounds are interleaved: ours, eager, compiled, again. The gradient
//! error is that of the f32 call against the f64 call on the same numbers; PyTorch's against PyTorch in f64.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use limbeck_host::load::instance::{CallCtx, GradOut, LossCall};
use limbeck_host::load::{Catalogue, Instance, SearchPath};
use limbeck_host::run::random::Random;
use limbeck_host::tensor::{DType, Tensor};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 5;
const WIDTHS: [usize; 5] = [2, 1000, 32_000, 128_256, 151_936];
/// Logits of a call: 16 MiB a tensor.
const ELEMENTS: usize = 4 << 20;
const TEMPERATURE: f64 = 2.0;
const KEPT: usize = 64;

/// Name at the peer, plugin, settings.
fn losses() -> [(&'static str, &'static str, Value); 6] {
    let soft = json!({"temperature": TEMPERATURE});
    [
        ("kl", "limbeck.kl", soft.clone()),
        ("rkl", "limbeck.rkl", soft.clone()),
        ("jsd", "limbeck.gjsd", soft.clone()),
        ("tvd", "limbeck.tvd", soft.clone()),
        ("ce", "limbeck.ce", json!({})),
        ("topk", "limbeck.topk-tail", soft),
    ]
}

/// Numbers of a call, by port.
struct Data {
    rows: usize,
    width: usize,
    student: Vec<f32>,
    teacher: Vec<f32>,
    labels: Vec<i64>,
    kept: usize,
    indices: Vec<i64>,
    values: Vec<f32>,
}

impl Data {
    fn new(width: usize) -> Self {
        let rows = (ELEMENTS / width).clamp(8, 1 << 16);
        let mut random = Random::new([7, width as u64]);
        let teacher: Vec<f32> = (0..rows * width).map(|_| 2.0 * random.normal() as f32).collect();
        let student = teacher.iter().map(|t| t + random.normal() as f32).collect();
        let labels = (0..rows).map(|_| random.below(width as u64) as i64).collect();
        let kept = KEPT.min(width - 1);
        let (mut indices, mut values) = (Vec::new(), Vec::new());
        for row in teacher.chunks(width) {
            let mut order: Vec<usize> = (0..width).collect();
            order.select_nth_unstable_by(kept, |a, b| row[*b].total_cmp(&row[*a]));
            let scaled = |v: f32| f64::from(v) / TEMPERATURE;
            let sum: f64 = row.iter().map(|v| scaled(*v).exp()).sum();
            for column in &order[..kept] {
                indices.push(*column as i64);
                values.push((scaled(row[*column]) - sum.ln()) as f32);
            }
        }
        Self { rows, width, student, teacher, labels, kept, indices, values }
    }

    /// The first `rows` of a port, floats as `dtype`.
    fn tensor(&self, port: &str, rows: usize, dtype: DType) -> Option<Tensor> {
        let floats = |data: &[f32], width: usize| {
            let (data, shape) = (&data[..rows * width], [rows as i64, width as i64]);
            match dtype {
                DType::F64 => {
                    let wide: Vec<f64> = data.iter().map(|x| f64::from(*x)).collect();
                    Tensor::from_slice(&wide, &shape)
                }
                _ => Tensor::from_slice(data, &shape),
            }
        };
        match port {
            "student.logits" => Some(floats(&self.student, self.width)),
            "teacher.logits" => Some(floats(&self.teacher, self.width)),
            "teacher.topk.values" => Some(floats(&self.values, self.kept)),
            "teacher.topk.indices" => {
                let shape = [rows as i64, self.kept as i64];
                Some(Tensor::from_slice(&self.indices[..rows * self.kept], &shape))
            }
            "labels" => Some(Tensor::from_slice(&self.labels[..rows], &[rows as i64])),
            _ => None,
        }
    }
}

/// A loss with its tensors.
struct Call {
    instance: Instance,
    inputs: Vec<Option<Tensor>>,
    grads: Vec<Option<GradOut>>,
    rows: usize,
}

impl Call {
    fn new(
        catalogue: &Catalogue,
        id: &str,
        with: &Value,
        data: &Data,
        rows: usize,
        dtype: DType,
    ) -> Self {
        let with = catalogue.check_settings(id, with).expect("the settings are right");
        let mut instance = catalogue.create(id, &with).expect("it is created");
        instance.activate(CallCtx::default(), &std::env::temp_dir()).expect("it is activated");
        let bound = |port: &str| port != "labels" || id == "limbeck.ce";
        let ports: Vec<_> = instance.inputs().cloned().collect();
        let input = |p: &str| if bound(p) { data.tensor(p, rows, dtype) } else { None };
        let inputs: Vec<_> = ports.iter().map(|p| input(&p.name)).collect();
        let grad =
            |t: &Tensor| GradOut { buffer: Tensor::zeros(t.dtype(), t.shape()), accumulate: false };
        let grads = ports.iter().zip(&inputs);
        let grads = grads.map(|(p, t)| t.as_ref().filter(|_| p.is_differentiable()).map(grad));
        Self { grads: grads.collect(), instance, inputs, rows }
    }

    fn run(&mut self) {
        let call = LossCall {
            inputs: &self.inputs,
            grads: &self.grads,
            params: &[],
            param_grads: &[],
            normalizer: self.rows as f64,
            grad_scale: 1.0,
        };
        self.instance.loss_compute(CallCtx::default(), &call).expect("it computes");
    }

    fn gradient(&self) -> Vec<f64> {
        let grad = &self.grads.iter().flatten().next().expect("a gradient").buffer;
        match grad.data::<f32>() {
            Some(data) => data.iter().map(|x| f64::from(*x)).collect(),
            None => grad.data::<f64>().expect("f32 or f64").to_vec(),
        }
    }
}

/// Whether a column's probabilities are closer than f32 tells them apart: the slope of a total variation may then have
/// either sign, and 0 only if they are equal.
fn is_tie(data: &Data, at: usize) -> bool {
    let row = at / data.width * data.width..(at / data.width + 1) * data.width;
    let log_p = |logits: &[f32]| {
        let scaled = |v: f32| f64::from(v) / TEMPERATURE;
        let sum: f64 = logits[row.clone()].iter().map(|v| scaled(*v).exp()).sum();
        scaled(logits[at]) - sum.ln()
    };
    (log_p(&data.student) - log_p(&data.teacher)).abs() < 2e-6
}

/// Relative error of the f32 gradient against f64, on the first rows; of a piecewise loss without ties.
fn gradient_error(catalogue: &Catalogue, id: &str, with: &Value, data: &Data) -> f64 {
    let rows = data.rows.min(4);
    let [found, exact] = [DType::F32, DType::F64].map(|dtype| {
        let mut call = Call::new(catalogue, id, with, data, rows, dtype);
        call.run();
        call.gradient()
    });
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let whole = norm(&mut exact.iter().copied());
    let counts = |at: usize, difference: f64| {
        let jumps = id == "limbeck.tvd" && difference.abs() > 1e-6 * whole;
        !(jumps && is_tie(data, at))
    };
    let differences = found.iter().zip(&exact).map(|(f, e)| f - e).enumerate();
    norm(&mut differences.filter(|(at, d)| counts(*at, *d)).map(|(_, d)| d)) / whole
}

/// `benches/peers/losses.py`, kept alive so that its imports and compilations are paid once.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    fn start() -> Option<Self> {
        let script = support::root().join("benches/peers/losses.py");
        let mut command = Command::new(support::python()?);
        let mut child = command
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Some(Self { child, stdin, stdout })
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.stdin, "{question}").expect("the peer listens");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the peer answers");
        serde_json::from_str(&line).expect("the peer prints an object a line")
    }

    fn end(self) {
        drop(self.stdin);
        let mut child = self.child;
        let _ = child.wait();
    }
}

fn best(samples: usize, mut run: impl FnMut()) -> f64 {
    let mut one = || {
        let begin = Instant::now();
        run();
        begin.elapsed().as_secs_f64()
    };
    (0..samples).map(|_| one()).fold(f64::INFINITY, f64::min)
}

/// Bytes that loss and gradient cannot do without.
fn floor_bytes(name: &str) -> f64 {
    if matches!(name, "ce" | "topk") { 8.0 } else { 12.0 }
}

fn main() {
    let asked = std::env::var("BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    let threads = limbeck_host::load::services::init(asked.unwrap_or(1));
    let machine = support::machine();
    let folder = support::scratch();
    let search = SearchPath {
        builtin: Some(support::program_dir()),
        cache: Some(folder.path().join("cache")),
        ..SearchPath::default()
    };
    let (catalogue, _) = Catalogue::discover(&search).expect("the built-in plugins are found");
    let mut results = Vec::new();
    println!(
        "{threads} thread(s), f32, T = {TEMPERATURE}, loss and gradient; ns an element, best of a round, median of rounds"
    );
    println!(
        "loss       V      ns   GB/s  gradient error | eager  times | compiled  times | their error"
    );
    let only = std::env::var("BENCH_WIDTH").ok().and_then(|w| w.parse::<usize>().ok());
    for width in WIDTHS.into_iter().filter(|w| only.is_none_or(|only| only == *w)) {
        let data = Data::new(width);
        let elements = (data.rows * width) as f64;
        // A process a width: compiled functions of other widths do not pile up.
        let mut peer = Peer::start();
        for (name, id, with) in losses() {
            let mut call = Call::new(&catalogue, id, &with, &data, data.rows, DType::F32);
            call.run();
            let (mut ours, mut peers) = (Vec::new(), vec![Vec::new(); 2]);
            let mut last = Value::Null;
            for round in 0..support::rounds(ROUNDS) {
                ours.push(best(5, || call.run()) * 1e9 / elements);
                for (variant, times) in ["eager", "compile"].into_iter().zip(&mut peers) {
                    let Some(peer) = &mut peer else { continue };
                    let question = json!({
                        "loss": name, "rows": data.rows, "width": width, "kept": data.kept, "threads": threads,
                        "variants": [variant], "warmup": if round == 0 { 2 } else { 1 }, "samples": 2,
                        "error": round == 0 && variant == "eager",
                    });
                    let answer = peer.ask(&question);
                    if let Some(seconds) = answer[variant].as_f64() {
                        times.push(seconds * 1e9 / elements);
                    }
                    if answer["gradient_error"].is_number() || last.is_null() {
                        last = answer;
                    }
                }
            }
            let error = gradient_error(&catalogue, id, &with, &data);
            let ns = support::median(&ours);
            let theirs = |times: &[f64]| (!times.is_empty()).then(|| support::median(times));
            let (eager, compiled) = (theirs(&peers[0]), theirs(&peers[1]));
            let shown = |t: Option<f64>| {
                t.map_or("     –      –".into(), |t| format!("{t:7.2} {:6.1}", t / ns))
            };
            println!(
                "{name:5} {width:7} {ns:7.3} {:6.2}         {error:7.1e} | {} | {} | {}",
                floor_bytes(name) / ns,
                shown(eager),
                shown(compiled),
                last["gradient_error"].as_f64().map_or("–".into(), |e| format!("{e:.1e}"))
            );
            results.push(json!({
                "loss": name, "plugin": id, "width": width, "rows": data.rows, "threads": threads, "dtype": "f32",
                "ns_per_element": support::summary(&ours), "gb_per_s_of_floor": floor_bytes(name) / ns,
                "gradient_error": error, "torch": last["torch"], "torch_gradient_error": last["gradient_error"],
                "eager_ns_per_element": eager.map(|_| support::summary(&peers[0])),
                "compiled_ns_per_element": compiled.map(|_| support::summary(&peers[1])),
                "times_eager": eager.map(|t| t / ns), "times_compiled": compiled.map(|t| t / ns),
            }));
        }
        if let Some(peer) = peer {
            peer.end();
        }
    }
    support::write("losses", &machine, &json!(results));
}
