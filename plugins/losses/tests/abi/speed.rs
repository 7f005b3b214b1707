//! What a small call costs across the ABI. Printed, not judged, but for a bound no machine should miss.

use crate::host::{Instance, Options};
use crate::reference::{Array, Inputs};
use limbeck_sdk::abi;

#[test]
fn a_small_call_does_not_wake_the_pool() {
    crate::host::THREADS.store(1, std::sync::atomic::Ordering::Relaxed);
    let wave = |k: usize, a: f64| (k as f64 * a).sin() * 3.0;
    let array =
        |a: f64| Array { shape: vec![32, 10], data: (0..320).map(|k| wave(k, a)).collect() };
    let inputs = Inputs::from([
        ("student.logits".into(), array(1.3)),
        ("teacher.logits".into(), array(2.7)),
        (
            "labels".into(),
            Array { shape: vec![32], data: (0..32).map(|n| f64::from(n % 10)).collect() },
        ),
    ]);
    for id in ["limbeck.kl", "limbeck.ce", "limbeck.gjsd", "limbeck.logit-mse"] {
        let instance = Instance::create(id, "{}").unwrap_or_else(|failure| panic!("{failure:?}"));
        let best = instance.time(&inputs, Options::of(abi::DLDataType::F32, 32.0), 2000);
        println!("{id}: {:.2} us for 32 rows of 10", best * 1e6);
        assert!(best < 50e-6, "{id}: {best}");
    }
}

#[test]
#[ignore = "a measurement: run it alone, on a quiet machine"]
fn a_wide_row_costs_nanoseconds_an_element() {
    const ROWS: usize = 64;
    const WIDTH: usize = 32_000;
    let array = |a: f64| {
        let data = (0..ROWS * WIDTH).map(|k| (k as f64 * a).sin() * 6.0).collect();
        Array { shape: vec![ROWS, WIDTH], data }
    };
    let inputs = Inputs::from([
        ("student.logits".into(), array(1.3)),
        ("teacher.logits".into(), array(2.7)),
        ("labels".into(), Array { shape: vec![ROWS], data: vec![3.0; ROWS] }),
    ]);
    for id in ["limbeck.kl", "limbeck.rkl", "limbeck.gjsd", "limbeck.ce", "limbeck.logit-mse"] {
        for dtype in [abi::DLDataType::F32, abi::DLDataType::BF16] {
            let instance =
                Instance::create(id, "{}").unwrap_or_else(|failure| panic!("{failure:?}"));
            let best = instance.time(&inputs, Options::of(dtype, 64.0), 10);
            let each = best / (ROWS * WIDTH) as f64 * 1e9;
            println!("{id} {} bit: {each:.2} ns an element, one thread", dtype.bits);
        }
    }
}
