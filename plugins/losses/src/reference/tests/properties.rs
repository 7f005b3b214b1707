//! Properties of losses.md section 8 that need no golden number, on seeded random inputs.

use crate::reference::{Array, Inputs, Outcome, evaluate};
use crate::settings::{Spec, parse};
use serde_json::{Value, json};

/// SplitMix64, as numbers in (−1, 1).
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn array(&mut self, shape: &[usize], scale: f64) -> Array {
        let len = shape.iter().product();
        Array { shape: shape.to_vec(), data: (0..len).map(|_| scale * self.next()).collect() }
    }
}

const N: usize = 5;
const V: usize = 9;

fn logits(seed: u64) -> Inputs {
    let mut random = Random(seed);
    Inputs::from([
        ("student.logits".into(), random.array(&[N, V], 3.0)),
        ("teacher.logits".into(), random.array(&[N, V], 3.0)),
        ("labels".into(), Array { shape: vec![N], data: vec![0.0, 3.0, -100.0, 8.0, 1.0] }),
    ])
}

fn hidden(seed: u64) -> Inputs {
    let mut random = Random(seed);
    Inputs::from([
        ("student.hidden".into(), random.array(&[N, 4], 1.5)),
        ("teacher.hidden".into(), random.array(&[N, 4], 1.5)),
        ("rho".into(), random.array(&[4], 1.0)),
        ("proj.weight".into(), random.array(&[4, 4], 1.0)),
        ("proj.bias".into(), random.array(&[4], 1.0)),
        ("row_mask".into(), Array { shape: vec![N], data: vec![1.0, 1.0, 0.0, 1.0, 1.0] }),
    ])
}

fn value(spec: &Spec, inputs: &Inputs) -> f64 {
    evaluate(spec, inputs, 4.0).expect("computes").value
}

fn differences_agree(loss: &str, params: Value, inputs: &Inputs) {
    let spec = parse(loss, &params).expect("settings");
    let outcome = evaluate(&spec, inputs, 4.0).expect("computes");
    for (port, grad) in &outcome.grads {
        let scale = grad.data.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
        for k in 0..grad.data.len() {
            let at = |h: f64| {
                let mut moved = inputs.clone();
                moved.get_mut(port).expect("the port").data[k] += h;
                value(&spec, &moved)
            };
            let h = 1e-4;
            // Fourth order, so that the step error stays below the bound at T = 0.5.
            let numeric = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            let gap = (numeric - grad.data[k]).abs();
            assert!(gap <= 1e-8 * (scale + 1.0), "{loss} {params} {port}[{k}]: {gap:e}");
        }
    }
}

const SOFTENED: [&str; 13] = [
    "fkl",
    "rkl",
    "gjsd",
    "skl",
    "srkl",
    "tvd",
    "alpha_div",
    "renyi",
    "soft_ce",
    "sym_kl",
    "dkd",
    "logit_std",
    "bce_kd",
];

#[test]
fn gradients_of_softened_losses_are_the_differences_of_the_value() {
    for (seed, loss) in SOFTENED.iter().chain(&["dist", "uld", "lwf"]).enumerate() {
        for t in [0.5, 1.0, 2.0, 8.0] {
            for t2 in [true, false] {
                let params = json!({"temperature": t, "t2": t2});
                differences_agree(loss, params, &logits(seed as u64));
            }
        }
    }
}

#[test]
fn gradients_of_other_losses_are_the_differences_of_the_value() {
    differences_agree("ce", json!({"label_smoothing": 0.1}), &logits(7));
    differences_agree("logit_mse", json!({}), &logits(8));
    differences_agree("bce", json!({}), &logits(9));
    for (loss, params) in [
        ("cosine", json!({})),
        ("hidden_mse", json!({})),
        ("hidden_mse", json!({"projector": "linear"})),
        ("hidden_mse", json!({"projector": "linear", "bias": false})),
        ("pkd", json!({})),
        ("vid", json!({})),
        ("sp", json!({})),
        ("rkd_d", json!({})),
        ("rkd_a", json!({})),
        ("infonce", json!({"tau": 0.5, "symmetric": true})),
        ("crd", json!({"n_data": 50.0, "z": 3.0, "tau": 0.5})),
        ("cka", json!({})),
        ("mmd", json!({"sigma2": [0.5, 2.0]})),
        ("coral", json!({})),
    ] {
        differences_agree(loss, params, &hidden(9));
    }
}

#[test]
fn gradients_of_attention_and_map_losses_are_the_differences_of_the_value() {
    let mut random = Random(3);
    let mut inputs = Inputs::new();
    for side in ["student", "teacher"] {
        inputs.insert(format!("{side}.attention"), random.array(&[2, 2, 3, 3], 1.5));
        inputs.insert(format!("{side}.value"), random.array(&[2, 2, 3, 4], 1.0));
        inputs.insert(format!("{side}.map"), random.array(&[2, 3, 4], 1.0));
        inputs.insert(format!("{side}.map2"), random.array(&[2, 2, 4], 1.0));
    }
    let mask = Array { shape: vec![2, 3], data: vec![1.0, 1.0, 1.0, 1.0, 1.0, 0.0] };
    inputs.insert("attention_mask".into(), mask);
    for loss in ["att_mse", "att_kl", "minilm_vr", "nst", "gram", "fsp"] {
        differences_agree(loss, json!({}), &inputs);
    }
    for p in [1, 2, 4] {
        differences_agree("at", json!({"p": p}), &inputs);
    }
}

fn take(inputs: &Inputs, rows: std::ops::Range<usize>) -> Inputs {
    let slice = |array: &Array| {
        let width = array.stride();
        let mut shape = array.shape.clone();
        shape[0] = rows.len();
        Array { shape, data: array.data[rows.start * width..rows.end * width].to_vec() }
    };
    let per_row = |name: &str| !name.starts_with("proj") && name != "rho";
    inputs
        .iter()
        .map(|(name, a)| (name.clone(), if per_row(name) { slice(a) } else { a.clone() }))
        .collect()
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let cases = SOFTENED.iter().map(|loss| (*loss, logits(1))).chain([
        ("ce", logits(2)),
        ("bce", logits(2)),
        ("logit_mse", logits(3)),
        ("uld", logits(3)),
        ("cosine", hidden(4)),
        ("hidden_mse", hidden(5)),
        ("pkd", hidden(5)),
        ("vid", hidden(6)),
    ]);
    for (loss, inputs) in cases {
        let spec = parse(loss, &json!({})).expect("settings");
        let whole = evaluate(&spec, &inputs, 4.0).expect("computes");
        let parts: Vec<Outcome> = [0..1, 1..4, 4..5]
            .map(|rows| evaluate(&spec, &take(&inputs, rows), 4.0).expect("computes"))
            .to_vec();
        let sum: f64 = parts.iter().map(|part| part.value).sum();
        assert!((sum - whole.value).abs() <= 1e-12, "{loss}");
        let port =
            if inputs.contains_key("student.logits") { "student.logits" } else { "student.hidden" };
        let rows: Vec<f64> = parts.iter().flat_map(|part| part.grads[port].data.clone()).collect();
        assert_eq!(rows, whole.grads[port].data, "{loss}");
    }
}

#[test]
fn doubling_weights_or_halving_the_normaliser_doubles_exactly() {
    for loss in SOFTENED {
        let mut inputs = logits(11);
        let spec = parse(loss, &json!({"temperature": 2.0})).expect("settings");
        let once = evaluate(&spec, &inputs, 4.0).expect("computes");
        let halved = evaluate(&spec, &inputs, 2.0).expect("computes");
        inputs.insert("row_weights".into(), Array { shape: vec![N], data: vec![2.0; N] });
        let doubled = evaluate(&spec, &inputs, 4.0).expect("computes");
        for twice in [halved, doubled] {
            assert_eq!(twice.value, 2.0 * once.value, "{loss}");
            let grads = |outcome: &Outcome, by: f64| -> Vec<f64> {
                outcome.grads["student.logits"].data.iter().map(|g| by * g).collect()
            };
            assert_eq!(grads(&twice, 1.0), grads(&once, 2.0), "{loss}");
        }
    }
}

#[test]
fn softmax_losses_push_no_row_as_a_whole_and_ignore_its_offset() {
    for loss in SOFTENED.into_iter().filter(|loss| *loss != "bce_kd") {
        let spec = parse(loss, &json!({"temperature": 1.5})).expect("settings");
        let mut inputs = logits(13);
        let before = evaluate(&spec, &inputs, 4.0).expect("computes");
        for row in before.grads["student.logits"].data.chunks(V) {
            assert!(row.iter().sum::<f64>().abs() <= 1e-13, "{loss}");
        }
        for port in ["student.logits", "teacher.logits"] {
            let row = inputs.get_mut(port).expect("the port").row_mut(1);
            row.iter_mut().for_each(|x| *x += 17.0);
        }
        let after = evaluate(&spec, &inputs, 4.0).expect("computes");
        assert!((after.value - before.value).abs() <= 1e-12, "{loss}");
    }
}

#[test]
fn divergences_vanish_at_the_teacher_and_are_never_negative() {
    for loss in SOFTENED.into_iter().filter(|loss| !["soft_ce", "bce_kd"].contains(loss)) {
        for seed in 0..20 {
            let spec = parse(loss, &json!({})).expect("settings");
            let mut inputs = logits(seed);
            assert!(value(&spec, &inputs) > 0.0, "{loss}");
            inputs.insert("teacher.logits".into(), inputs["student.logits"].clone());
            let outcome = evaluate(&spec, &inputs, 4.0).expect("computes");
            assert!(outcome.value.abs() <= 1e-15, "{loss} {}", outcome.value);
            assert!(
                outcome.grads["student.logits"].data.iter().all(|g| g.abs() <= 1e-15),
                "{loss}"
            );
        }
    }
}

#[test]
fn divergences_are_related_as_mathematics_says() {
    for seed in 0..20 {
        let inputs = logits(seed);
        let of =
            |loss: &str, params: Value| value(&parse(loss, &params).expect("settings"), &inputs);
        let near = |a: f64, b: f64, bound: f64| assert!((a - b).abs() <= bound, "{a} {b}");
        let beta = 0.3;
        let mixed = beta * of("skl", json!({"alpha": beta}))
            + (1.0 - beta) * of("srkl", json!({"alpha": 1.0 - beta}));
        near(of("gjsd", json!({"beta": beta})), mixed, 1e-13);
        near(of("alpha_div", json!({"alpha": 1.0 - 1e-6})), of("fkl", json!({})), 1e-4);
        near(of("renyi", json!({"alpha": 1.0 - 1e-6})), of("fkl", json!({})), 1e-4);
        assert!(of("gjsd", json!({})) <= 2.0_f64.ln());
        assert!(of("tvd", json!({})) <= (of("fkl", json!({})) / 2.0).sqrt());
        let mut swapped = inputs.clone();
        swapped.insert("student.logits".into(), inputs["teacher.logits"].clone());
        swapped.insert("teacher.logits".into(), inputs["student.logits"].clone());
        near(
            of("gjsd", json!({})),
            value(&parse("gjsd", &json!({})).expect("settings"), &swapped),
            1e-14,
        );
    }
}

#[test]
fn forward_and_reverse_kl_of_nine_to_one_are_known_by_hand() {
    let row = |p: [f64; 2]| Array { shape: vec![1, 2], data: p.iter().map(|p| p.ln()).collect() };
    let inputs = Inputs::from([
        ("student.logits".into(), row([0.1, 0.9])),
        ("teacher.logits".into(), row([0.9, 0.1])),
    ]);
    for loss in ["fkl", "rkl"] {
        let spec = parse(loss, &json!({})).expect("settings");
        let found = evaluate(&spec, &inputs, 1.0).expect("computes").value;
        assert!((found - 0.8 * 9.0_f64.ln()).abs() <= 1e-14, "{loss}");
    }
}

#[test]
fn columns_of_minus_infinity_on_both_sides_change_nothing() {
    for loss in SOFTENED.iter().chain(&["logit_mse", "ce"]) {
        let spec = parse(loss, &json!({})).expect("settings");
        let inputs = logits(5);
        let mut wider = inputs.clone();
        for port in ["student.logits", "teacher.logits"] {
            let rows = inputs[port].data.chunks(V);
            let data =
                rows.flat_map(|row| row.iter().copied().chain([f64::NEG_INFINITY; 3])).collect();
            wider.insert(port.into(), Array { shape: vec![N, V + 3], data });
        }
        let (before, after) = (value(&spec, &inputs), value(&spec, &wider));
        assert!((before - after).abs() <= 1e-14, "{loss}: {before} {after}");
    }
}

#[test]
fn dead_and_infinite_rows_are_counted_and_can_be_dropped() {
    let mut inputs = logits(6);
    inputs.get_mut("teacher.logits").expect("the port").row_mut(0).fill(f64::NEG_INFINITY);
    inputs.get_mut("student.logits").expect("the port").row_mut(1)[2] = f64::NEG_INFINITY;
    let keep = parse("fkl", &json!({})).expect("settings");
    let drop = parse("fkl", &json!({"non_finite": "zero_and_count"})).expect("settings");
    let kept = evaluate(&keep, &inputs, 4.0).expect("computes");
    assert_eq!((kept.value, kept.dead_rows, kept.nonfinite_rows), (f64::INFINITY, 0.25, 0.25));
    assert!(kept.grads["student.logits"].data.iter().all(|g| g.is_finite()));
    let dropped = evaluate(&drop, &inputs, 4.0).expect("computes");
    assert!(dropped.value.is_finite());
    assert_eq!(dropped.nonfinite_rows, 0.25);
    assert!(dropped.grads["student.logits"].row(1).iter().all(|&g| g == 0.0));
}

#[test]
fn cross_entropy_over_a_rows_own_classes_is_that_of_a_narrower_student() {
    let z = Array { shape: vec![2, 4], data: vec![0.5, -1.0, 2.0, 7.0, 0.5, -1.0, 2.0, 7.0] };
    let labels = Array { shape: vec![2], data: vec![1.0, 2.0] };
    let own = Array { shape: vec![2, 4], data: vec![1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0] };
    let inputs = Inputs::from([
        ("student.logits".into(), z),
        ("labels".into(), labels),
        ("row_classes".into(), own),
    ]);
    let spec = parse("ce", &json!({})).expect("settings");
    let outcome = evaluate(&spec, &inputs, 1.0).expect("computes");
    let pair = |own: f64, other: f64| (1.0 + (other - own).exp()).ln();
    assert!((outcome.value - pair(-1.0, 0.5) - pair(2.0, 7.0)).abs() < 1e-12);
    let grad = &outcome.grads["student.logits"].data;
    assert_eq!([grad[2], grad[3], grad[4], grad[5]], [0.0; 4]);
    assert!((grad[0] + grad[1]).abs() < 1e-12 && grad[1] < 0.0);
    let mut off = inputs;
    off.insert("labels".into(), Array { shape: vec![2], data: vec![3.0, 2.0] });
    assert!(evaluate(&spec, &off, 1.0).is_err());
}

#[test]
fn binary_cross_entropy_by_hand_with_a_label_off_the_kept_columns() {
    let softplus = |x: f64| (1.0 + x.exp()).ln();
    let z = Array { shape: vec![2, 3], data: vec![0.3, -0.7, 5.0, 1.1, 0.2, -5.0] };
    let labels = Array { shape: vec![2], data: vec![1.0, 2.0] };
    let mask = Array { shape: vec![3], data: vec![1.0, 1.0, 0.0] };
    let inputs = Inputs::from([
        ("student.logits".into(), z),
        ("labels".into(), labels),
        ("class_mask".into(), mask),
    ]);
    let spec = parse("bce", &json!({})).expect("settings");
    let outcome = evaluate(&spec, &inputs, 2.0).expect("computes");
    let first = (softplus(0.3) + softplus(-0.7) + 0.7) / 2.0;
    let second = (softplus(1.1) + softplus(0.2)) / 2.0;
    assert!((outcome.value - (first + second) / 2.0).abs() < 1e-12);
    let grad = &outcome.grads["student.logits"].data;
    assert_eq!((grad[2], grad[5]), (0.0, 0.0));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    assert!((grad[1] - (sigmoid(-0.7) - 1.0) / 4.0).abs() < 1e-12);
}
