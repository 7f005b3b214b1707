//! Nanoseconds of a call through the ABI: a loss that does nothing, called as a training step calls it.
//!
//! Beside it a call of a C function through a pointer, the least that any ABI costs: the rest is what checks, views and
//! bookkeeping of the host cost.

#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

mod support;

use limbeck_host::load::instance::{CallCtx, GradOut, LossCall};
use limbeck_host::load::{Catalogue, Instance, SearchPath};
use limbeck_host::tensor::{DType, Tensor};
use serde_json::json;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const CALLS: u32 = 200_000;
const ROUNDS: usize = 11;

fn build(folder: &Path) {
    let root = support::root();
    let status = Command::new("cc")
        .args(["-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-I"])
        .arg(root.join("plugins/abi/include"))
        .arg(root.join("benches/null_loss.c"))
        .arg("-o")
        .arg(folder.join("libnull_loss.so"))
        .status();
    assert!(status.is_ok_and(|s| s.success()), "cc could not build benches/null_loss.c");
}

fn instance(folder: &Path) -> Instance {
    let search = SearchPath {
        directories: vec![folder.to_owned()],
        allow_unlocked: true,
        cache: Some(folder.join("cache")),
        ..SearchPath::default()
    };
    let (catalogue, _) = Catalogue::discover(&search).expect("the plugin is found");
    let mut loss = catalogue.create("bench.null", &json!({})).expect("it is created");
    loss.activate(CallCtx::default(), folder).expect("it is activated");
    loss
}

/// Median nanoseconds of one call.
fn time(mut call: impl FnMut()) -> Vec<f64> {
    (0..support::rounds(ROUNDS))
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..CALLS {
                call();
            }
            1e9 * begin.elapsed().as_secs_f64() / f64::from(CALLS)
        })
        .collect()
}

fn main() {
    let machine = support::machine();
    let folder = support::scratch();
    build(folder.path());
    let mut loss = instance(folder.path());
    let logits = Tensor::zeros(DType::F32, &[32, 10]);
    let labels = Tensor::zeros(DType::I64, &[32]);
    let inputs = [Some(logits), Some(labels)];
    let gradient = GradOut { buffer: Tensor::zeros(DType::F32, &[32, 10]), accumulate: false };
    let mut results = Vec::new();
    let mut report = |what: &str, ns: &[f64]| {
        println!("{what:48} {:8.1} ns", support::median(ns));
        results.push(json!({"what": what, "ns": support::summary(ns)}));
    };
    for (what, grads) in
        [("compute, value only", [None, None]), ("compute with a gradient", [Some(gradient), None])]
    {
        let call = LossCall {
            inputs: &inputs,
            grads: &grads,
            params: &[],
            param_grads: &[],
            normalizer: 32.0,
            grad_scale: 1.0,
        };
        let ns = time(|| {
            black_box(
                loss.loss_compute(CallCtx::default(), black_box(&call)).expect("it cannot fail"),
            );
        });
        report(what, &ns);
    }
    let plain: extern "C" fn(u64) -> i32 = plain;
    let plain = black_box(plain);
    let ns = time(|| {
        black_box(plain(black_box(7)));
    });
    report("a C function through a pointer", &ns);
    support::write("abi", &machine, &json!(results));
}

extern "C" fn plain(value: u64) -> i32 {
    black_box(value) as i32
}
