//! Losses on hidden states times a head, on the emulated driver and a stand-in for cuBLASLt: chunks, rows that do not
//! count, both types, and where the workspace lies.

use crate::emulator::{AMPERE, HOPPER, launches, on};
use crate::fused_cases::{check, inputs, wave};
use crate::golden::{TEXT, Tolerance, inputs as golden_inputs, number};
use crate::host::{Options, run};
use crate::reference::{Array, Inputs};
use crate::rows::rounded;
use limbeck_losses::cuda::arguments::{Matrix, ScaleArgs};
use limbeck_losses::cuda::chunks::{Chunks, LinearShape, TeacherShape};
use limbeck_losses::cuda::launch::device;
use limbeck_losses::cuda::lt::Lt;
use limbeck_losses::cuda::plan::{Capability, Shape};
use limbeck_sdk::abi;
use serde_json::{Value, json};

const F32: abi::DLDataType = abi::DLDataType::F32;
const BF16: abi::DLDataType = abi::DLDataType::BF16;
const H100: Capability = Capability { compute: 90, shared_bytes: 232_448, max_cluster: 16 };
const A100: Capability = Capability { compute: 80, shared_bytes: 166_912, max_cluster: 0 };
/// Fused losses with kernels.
const LOSSES: [&str; 8] = ["kl", "rkl", "gjsd", "skl", "srkl", "tvd", "sym-kl", "soft-ce"];

/// Bounds of gradients of each type: rounding of ds in 16 bits.
const TYPES: [(abi::DLDataType, f64); 2] = [(F32, 2e-5), (BF16, 4e-3)];

#[test]
fn every_divergence_chunk_type_and_teacher_holds() {
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        for product in [false, true] {
            for (dtype, bound) in TYPES {
                let inputs = rounded(&inputs(product, 300), dtype);
                for loss in LOSSES {
                    let chunks: &[usize] = if loss == "kl" { &[0, 1, 4] } else { &[4] };
                    for chunk in chunks {
                        let with = json!({"temperature": 2.0});
                        let params = json!({"loss": loss, "chunk": chunk, "with": with});
                        let options = Options { grad_dtype: F32, ..Options::of(dtype, 11.0) };
                        let found = run("fused_linear", &params, &inputs, options)
                            .unwrap_or_else(|failure| panic!("{params}: {failure:?}"));
                        check(&found, &params, &inputs, bound);
                    }
                }
            }
        }
    }
}

/// So many rows, every fifth of which does not count.
fn many(rows: usize, width: usize) -> Inputs {
    let mask = (0..rows).map(|n| f64::from(n % 5 != 3)).collect();
    Inputs::from([
        ("student.hidden".into(), wave([rows, 5], 1.7)),
        ("student.head".into(), wave([width, 5], 0.37)),
        ("teacher.hidden".into(), wave([rows, 7], 0.9)),
        ("teacher.head".into(), wave([width, 7], 0.61)),
        ("row_mask".into(), Array { shape: vec![rows], data: mask }),
    ])
}

#[test]
fn chunks_that_end_at_before_and_after_a_tile_hold() {
    on(HOPPER);
    let inputs = rounded(&many(161, 33), BF16);
    // 129 rows count: a last chunk of one, of all but one, of a whole tile and of 129.
    for chunk in [63, 64, 65, 128, 129, 161] {
        let params = json!({"chunk": chunk});
        let options = Options { grad_dtype: F32, ..Options::of(BF16, 11.0) };
        let found = run("fused_linear", &params, &inputs, options).expect("computes");
        check(&found, &params, &inputs, 4e-3);
    }
}

#[test]
fn rows_on_chip_take_their_gradient_over_their_logits() {
    for (gpu, width) in [(HOPPER, 1101), (HOPPER, 9512), (AMPERE, 1101)] {
        on(gpu);
        for (dtype, bound) in TYPES {
            let inputs = rounded(&inputs(true, width), dtype);
            for loss in ["kl", "gjsd"] {
                let params = json!({"loss": loss, "chunk": 7});
                let options =
                    Options { grad_dtype: F32, layout: (3, 1), ..Options::of(dtype, 11.0) };
                let found = run("fused_linear", &params, &inputs, options).expect("computes");
                check(&found, &params, &inputs, bound);
            }
        }
    }
}

#[test]
fn teachers_of_another_width_hold() {
    on(HOPPER);
    for (student, teacher) in [(40, 33), (33, 40)] {
        let mut inputs = inputs(true, student);
        inputs.insert("teacher.head".into(), wave([teacher, 9], 0.61));
        for vocab in ["truncate", "student_tail"] {
            let params = json!({"with": {"vocab": vocab}, "chunk": 4});
            let found = run("fused_linear", &params, &inputs, Options::of(F32, 11.0))
                .unwrap_or_else(|failure| panic!("{params}: {failure:?}"));
            check(&found, &params, &inputs, 2e-5);
        }
    }
}

#[test]
fn gradients_are_added_to_and_repeat_bit_for_bit() {
    on(HOPPER);
    let (inputs, params) = (inputs(true, 300), json!({"chunk": 4}));
    let call = |options| run("fused_linear", &params, &inputs, options).expect("computes");
    let once = call(Options::of(F32, 11.0));
    assert_eq!(once, call(Options::of(F32, 11.0)));
    let added = call(Options { accumulate: Some(1.0), ..Options::of(F32, 11.0) });
    for name in ["student.hidden", "student.head"] {
        for (a, b) in added.grads[name].iter().zip(&once.grads[name]) {
            assert!((a - 1.0 - b).abs() <= 5e-7, "{name}: {a} {b}");
        }
    }
    assert!(once.grads["student.hidden"][6..12].iter().all(|g| *g == 0.0));
    let without = call(Options { grads: false, ..Options::of(F32, 11.0) });
    assert_eq!(without.value, once.value);
}

#[test]
fn no_row_or_none_that_counts_gives_zeros() {
    on(HOPPER);
    for rows in [0, 5] {
        let mut inputs = many(rows, 33);
        inputs.insert("row_mask".into(), Array { shape: vec![rows], data: vec![0.0; rows] });
        let found = run("fused_linear", &json!({}), &inputs, Options::of(F32, 1.0));
        let found = found.expect("computes");
        assert_eq!(found.value, 0.0);
        assert!(found.grads.values().flatten().all(|g| *g == 0.0), "{rows}");
    }
}

/// The dense golden cases with the identity for a head: logits and their gradient are states and theirs.
#[test]
fn every_golden_case_of_a_fused_loss_holds_through_a_head_of_ones() {
    let file: Value = serde_json::from_str(TEXT).expect("JSON");
    let (mut ran, mut failures) = (0, Vec::new());
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        let before = launches();
        for case in file["cases"].as_array().expect("cases") {
            let name = case["loss"].as_str().expect("a loss");
            let name = if name == "fkl" { "kl".to_owned() } else { name.replace('_', "-") };
            let mut inputs = golden_inputs(case);
            let finite = inputs.values().all(|array| array.data.iter().all(|x| x.is_finite()));
            let masked = inputs.contains_key("class_mask");
            if !LOSSES.contains(&name.as_str()) || !finite || masked {
                continue;
            }
            let expect = &case["expect"];
            if expect["error"].is_string() {
                continue;
            }
            let states = inputs.remove("student.logits").expect("logits");
            let width = states.shape[1];
            let one = |k: usize| f64::from(k / width == k % width);
            let head =
                Array { shape: vec![width, width], data: (0..width * width).map(one).collect() };
            inputs.insert("student.hidden".into(), states);
            inputs.insert("student.head".into(), head);
            let params = json!({"loss": name, "with": case["params"], "chunk": 2});
            let options = Options::of(F32, number(&case["normalizer"]));
            let found = run("fused_linear", &params, &inputs, options)
                .unwrap_or_else(|failure| panic!("{}: {failure:?}", case["id"]));
            let tolerance = Tolerance::of(&file, case, "f32");
            let value = number(&expect["value"]);
            let mut held = tolerance.check("value", found.value, value, value.abs());
            if let Some(expected) = expect["grad"].get("student.logits") {
                let grad = &found.grads["student.hidden"];
                held = held.and_then(|()| tolerance.check_grad("student.hidden", grad, expected));
            }
            failures.extend(held.err().map(|why| format!("{}: {why}", case["id"])));
            ran += 1;
        }
        assert!(launches() > before);
    }
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n"));
    assert_eq!(ran, 2 * RAN);
}

/// Cases of fused losses with finite inputs and all columns.
const RAN: usize = 49;

#[test]
fn a_kept_gradient_is_scaled_by_a_number_on_the_device_and_left_alone_by_one() {
    on(HOPPER);
    let device = device(HOPPER).expect("emulated");
    for factor in [1.0f32, -2.5] {
        let mut grad: Vec<f32> = (0..3 * 300).map(|k| k as f32 + 0.5).collect();
        let to =
            Matrix { data: grad.as_mut_ptr().cast(), row: 300, column: 1, dtype: 0, reserved: 0 };
        let arguments =
            ScaleArgs { to, factor: (&raw const factor).cast(), columns: 299, reserved: 0 };
        let shape = Shape { threads: 256, cluster: 1, shared_bytes: 0 };
        // SAFETY: arguments of the kernel; the emulated device's memory is the process's.
        unsafe { device.launch("linear_scale", shape, 3, &arguments, std::ptr::null_mut()) }
            .expect("launches");
        for (k, g) in grad.iter().enumerate() {
            let by = if k % 300 == 299 { 1.0 } else { factor };
            assert_eq!(*g, by * (k as f32 + 0.5), "{k}");
        }
    }
}

#[test]
fn what_products_do_not_take_is_refused_with_words() {
    on(HOPPER);
    let inputs = inputs(true, 20);
    let refused = |params: Value, options| {
        let failure = run("fused_linear", &params, &inputs, options).expect_err("refused");
        (failure.status, failure.message)
    };
    let f16 = Options::of(abi::DLDataType::F16, 1.0);
    let (status, message) = refused(json!({}), f16);
    assert!(status == abi::STATUS_UNSUPPORTED && message.contains("bf16 or f32"), "{message}");
    let (status, _) = refused(json!({"loss": "alpha-div"}), Options::of(F32, 1.0));
    assert_eq!(status, abi::STATUS_UNSUPPORTED);
    let (status, message) =
        refused(json!({}), Options { workspace: false, ..Options::of(F32, 1.0) });
    assert!(status == abi::STATUS_INVALID_ARGUMENT && message.contains("workspace"), "{message}");
}

#[test]
fn a_machine_without_cublaslt_is_told_what_was_looked_for() {
    let paths = ["/nonexistent/libcublasLt.so.13", "libc.so.6"].map(Into::into);
    let none = Lt::open(&paths).expect_err("neither is cuBLASLt");
    assert_eq!(none.status(), abi::STATUS_DEVICE);
    for part in ["/nonexistent/libcublasLt.so.13", "no cublasLtCreate", "LIMBECK_CUDA_LIB_DIR"] {
        assert!(none.message().contains(part), "{part}: {}", none.message());
    }
}

fn shape(rows: usize, width: usize) -> LinearShape {
    LinearShape {
        rows,
        width,
        teacher_width: width,
        entering: width,
        depth: 2048,
        element: 2,
        teacher: TeacherShape::Product(4096, 2),
        asked: 0,
    }
}

#[test]
fn chunks_are_those_of_the_design() {
    let plan = Chunks::of(&shape(8192, 128_256), H100);
    assert_eq!(plan.rows, 2048);
    assert!(plan.bytes <= 2_300_000_000, "{}", plan.bytes);
    assert_eq!((plan.logits_grad, plan.grad_stride), (plan.logits, 2 * 128_256));
    // A block that reads its row again needs the gradient beside it.
    let beside = Chunks::of(&shape(8192, 128_256), A100);
    assert_eq!((beside.rows, beside.grad_stride), (1536, 128_256));
    assert_ne!(beside.logits_grad, beside.logits);
    let wide = LinearShape { element: 4, ..shape(8192, 128_256) };
    assert_eq!(Chunks::of(&wide, A100).grad_stride, 128_256);
    // Never fewer rows than 512, never more than there are; rows of logits stay at 16-byte addresses.
    assert_eq!(Chunks::of(&shape(8192, 1 << 20), H100).rows, 512);
    assert_eq!(Chunks::of(&shape(100, 32_000), H100).rows, 100);
    assert_eq!(Chunks::of(&LinearShape { asked: 96, ..shape(8192, 32_000) }, H100).rows, 96);
    assert_eq!(Chunks::of(&shape(100, 32_001), H100).stride, 32_008);
}

#[test]
fn parts_of_a_workspace_are_apart_and_hold_what_goes_in() {
    for rows in [0, 1, 63, 64, 65, 1000, 8192] {
        for (width, device) in [(2, H100), (1100, A100), (128_256, H100), (151_936, A100)] {
            let plan = Chunks::of(&shape(rows, width), device);
            let padded = plan.rows.next_multiple_of(64);
            let parts = [
                (
                    plan.slots,
                    16 * plan.ranges(rows).map(|r| r.len().next_multiple_of(64)).sum::<usize>(),
                ),
                (plan.list, 4 * padded),
                (plan.weights, 8 * padded),
                (plan.states, 2 * 2048 * padded),
                (plan.teacher_states, 2 * 4096 * padded),
                (plan.states_grad, 4 * 2048 * padded),
                (plan.logits, 4 * plan.stride * padded),
                (plan.teacher_logits, 4 * plan.teacher_stride * padded),
                (plan.scratch, 32 << 20),
            ];
            let mut end = 0;
            for (start, bytes) in parts {
                assert!(start % 256 == 0 && start >= end, "{rows} {width}: {plan:?}");
                end = start + bytes;
            }
            assert!(plan.bytes >= end, "{rows} {width}");
            assert_eq!(plan.ranges(rows).map(|range| range.len()).sum::<usize>(), rows);
        }
    }
}
