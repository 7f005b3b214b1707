//! Values that break careless arithmetic: a defined result or a named error, never a silent NaN.

use crate::emulator::{AMPERE, HOPPER, on};
use crate::host::{Failure, Options, Outcome, run};
use crate::reference::{Array, Inputs, Outcome as Exact, evaluate};
use crate::rows::{compare, logits, sparse};
use limbeck_losses::settings::parse;
use limbeck_sdk::abi;
use serde_json::{Value, json};

const LOSSES: [&str; 9] =
    ["fkl", "soft_ce", "rkl", "sym_kl", "tvd", "gjsd", "skl", "srkl", "logit_mse"];
const F32: abi::DLDataType = abi::DLDataType::F32;

fn with_rows(width: usize, edit: impl Fn(&mut [f64], &mut [f64])) -> Inputs {
    let mut inputs = logits(width);
    let mut teacher = inputs.remove("teacher.logits").expect("logits");
    edit(&mut inputs.get_mut("student.logits").expect("logits").data, &mut teacher.data);
    inputs.insert("teacher.logits".into(), teacher);
    inputs
}

fn exact(loss: &str, params: &Value, inputs: &Inputs) -> Exact {
    evaluate(&parse(loss, params).expect("settings"), inputs, 2.0).expect("computes")
}

fn same_kind(found: f64, exact: f64) -> bool {
    (found.is_nan() && exact.is_nan()) || found == exact || (found.is_finite() && exact.is_finite())
}

/// Value and every gradient entry finite, infinite or NaN as the oracle's; finite ones close.
fn agrees(loss: &str, params: &Value, inputs: &Inputs) {
    let rounded = crate::rows::rounded(inputs, F32);
    let found = run(loss, params, &rounded, Options::of(F32, 2.0)).expect("computes");
    let exact = exact(loss, params, &rounded);
    assert!(
        same_kind(found.value, exact.value),
        "{loss} {params}: {} {}",
        found.value,
        exact.value
    );
    let pair = found.grads["student.logits"].iter().zip(&exact.grads["student.logits"].data);
    for (v, (found, exact)) in pair.enumerate() {
        assert!(same_kind(*found, *exact), "{loss} {params} column {v}: {found} {exact}");
    }
    if exact.value.is_finite() {
        compare(loss, params, &rounded, Options::of(F32, 2.0), &found);
    }
    let metrics = [exact.dead_rows, exact.nonfinite_rows];
    assert_eq!(found.metrics, metrics, "{loss} {params}");
}

#[test]
fn minus_infinity_on_any_side_means_what_the_design_says() {
    let inf = f64::NEG_INFINITY;
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        for width in [5, 1032] {
            for loss in LOSSES {
                for non_finite in ["propagate", "zero_and_count"] {
                    let params = json!({"non_finite": non_finite});
                    agrees(loss, &params, &with_rows(width, |s, _| s[2] = inf));
                    agrees(loss, &params, &with_rows(width, |_, t| t[2] = inf));
                    agrees(loss, &params, &with_rows(width, |s, t| (s[2], t[2]) = (inf, inf)));
                    agrees(loss, &params, &with_rows(width, |s, _| s[..width].fill(inf)));
                    agrees(loss, &params, &with_rows(width, |_, t| t[..width].fill(inf)));
                }
            }
        }
    }
}

#[test]
fn nan_and_plus_infinity_stay_in_their_row() {
    for gpu in [HOPPER, AMPERE] {
        on(gpu);
        for loss in LOSSES {
            for bad in [f64::NAN, f64::INFINITY] {
                for non_finite in ["propagate", "zero_and_count"] {
                    let width = 1032;
                    let inputs = with_rows(width, |s, _| s[1] = bad);
                    let params = json!({"non_finite": non_finite});
                    let found = run(loss, &params, &inputs, Options::of(F32, 2.0)).expect("runs");
                    let counted = non_finite == "zero_and_count";
                    assert_eq!(found.value.is_finite(), counted, "{loss} {bad}");
                    let last = &found.grads["student.logits"][2 * width..];
                    assert!(last.iter().all(|g| g.is_finite()), "{loss} {bad}");
                    assert_eq!(found.metrics[1], 0.5, "{loss} {bad}");
                    // In a row that does not count it reaches nothing.
                    let masked = with_rows(width, |s, t| {
                        s[width + 1] = bad;
                        t[width + 2] = bad;
                    });
                    let clean = with_rows(width, |_, _| ());
                    let run = |inputs| run(loss, &params, inputs, Options::of(F32, 2.0));
                    assert_eq!(run(&masked), run(&clean), "{loss} {bad}");
                }
            }
        }
    }
}

#[test]
fn huge_offset_constant_and_equal_rows_are_right() {
    on(HOPPER);
    for loss in LOSSES {
        for width in [9, 1096] {
            let params = json!({});
            agrees(
                loss,
                &params,
                &with_rows(width, |s, t| {
                    s[..width].iter_mut().for_each(|s| *s += 3000.0);
                    t[..width].iter_mut().for_each(|t| *t -= 3000.0);
                }),
            );
            agrees(loss, &params, &with_rows(width, |s, t| (s[0], t[width - 1]) = (1e4, 1e4)));
            agrees(loss, &params, &with_rows(width, |s, t| (s.fill(1.0), t.fill(2.0)).0));
        }
    }
    for loss in ["fkl", "rkl", "sym_kl", "tvd", "gjsd", "skl", "srkl", "logit_mse"] {
        let equal = with_rows(1096, |s, t| t.copy_from_slice(s));
        let found = run(loss, &json!({}), &equal, Options::of(F32, 2.0)).expect("computes");
        assert!(found.value.abs() < 1e-6, "{loss}: {}", found.value);
        let most = found.grads["student.logits"].iter().fold(0.0, |most: f64, g| most.max(g.abs()));
        assert!(most < 1e-6, "{loss}: {most}");
    }
}

#[test]
fn temperatures_from_a_twentieth_to_a_hundred_hold() {
    on(HOPPER);
    for loss in LOSSES.iter().filter(|loss| **loss != "logit_mse") {
        for temperature in [0.05, 0.5, 100.0] {
            agrees(loss, &json!({"temperature": temperature}), &logits(1032));
        }
    }
}

#[test]
fn no_rows_one_class_and_no_counted_row_give_zeros() {
    on(HOPPER);
    for loss in LOSSES {
        let mut none = logits(8);
        none.values_mut().for_each(|array| {
            array.shape[0] = 0;
            array.data.clear();
        });
        let zero = |outcome: Result<Outcome, Failure>| {
            let outcome = outcome.expect("computes");
            assert_eq!((outcome.value, &outcome.metrics[..]), (0.0, &[0.0, 0.0][..]), "{loss}");
            assert!(outcome.grads["student.logits"].iter().all(|g| *g == 0.0), "{loss}");
        };
        zero(run(loss, &json!({}), &none, Options::of(F32, 2.0)));
        let mut masked = logits(1032);
        masked.get_mut("row_mask").expect("a mask").data.fill(0.0);
        zero(run(loss, &json!({}), &masked, Options::of(F32, 2.0)));
    }
    for loss in ["fkl", "rkl", "sym_kl", "tvd", "gjsd", "skl", "srkl"] {
        let found = run(loss, &json!({}), &logits(1), Options::of(F32, 2.0)).expect("computes");
        assert_eq!(found.value, 0.0, "{loss}");
    }
}

#[test]
fn a_bad_label_or_index_shows_in_the_value_and_reads_nothing() {
    on(AMPERE);
    for label in [-1.0, 8.0, 1e12] {
        let mut inputs = logits(8);
        inputs.remove("teacher.logits");
        inputs.insert("labels".into(), Array { shape: vec![3], data: vec![label, 1.0, 2.0] });
        let found = run("ce", &json!({}), &inputs, Options::of(F32, 2.0)).expect("runs");
        assert!(found.value.is_nan(), "{label}");
        assert!(found.grads["student.logits"][..8].iter().all(|g| *g == 0.0), "{label}");
    }
    for index in [-2.0, 70.0, 1e12, 7.0] {
        let mut inputs = sparse(70);
        inputs.get_mut("teacher.topk.indices").expect("indices").data[0] = index;
        let found = run("topk_tail", &json!({}), &inputs, Options::of(F32, 2.0)).expect("runs");
        assert!(found.value.is_nan(), "{index}");
    }
}

#[test]
fn what_kernels_do_not_take_is_refused_by_name() {
    on(HOPPER);
    let failure = run("fkl", &json!({}), &logits(8), Options::of(abi::DLDataType::F64, 2.0));
    let failure = failure.expect_err("f64");
    assert_eq!(failure.status, abi::STATUS_UNSUPPORTED);
    assert!(failure.message.contains("f32, f16 and bf16"), "{failure:?}");
    let failure = run("dkd", &json!({}), &logits(8), Options::of(F32, 2.0)).expect_err("dkd");
    assert_eq!(failure.status, abi::STATUS_UNSUPPORTED);
    on(5);
    let failure = run("fkl", &json!({}), &logits(8), Options::of(F32, 2.0)).expect_err("GPU 5");
    assert_eq!(failure.status, abi::STATUS_DEVICE);
    assert!(failure.message.contains("GPU 5") && failure.notes.contains_key("native_code"));
}
