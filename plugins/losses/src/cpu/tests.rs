//! The fast path against the oracle, on the same rounded inputs.

use super::{Matrix, Output, Serial, Slot, cross_entropy, dense, hidden, projection};
use crate::reference::{Array, Inputs, evaluate};
use crate::settings::{HiddenKind, Projector, Spec, parse};
use half::{bf16, f16};
use serde_json::{Value, json};

/// SplitMix64, as numbers in (−1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Roughly normal, as logits are.
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.next()).sum::<f64>() * 0.7
    }

    fn logits(&mut self, len: usize, scale: f64) -> Vec<f64> {
        (0..len).map(|_| scale * self.normal()).collect()
    }
}

/// An element type of the boundary.
trait Element: Copy + Default {
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    /// Norm-relative bound on the gradient: the arithmetic's, or half a unit in the last place.
    const GRADIENT: f64;
    /// The same where it is q(u − R): rounding is relative to u, and a far teacher leaves u near R.
    const TWO_STAGE: f64;
}

macro_rules! element {
    ($($t:ty, $of:expr, $wide:expr, $bound:expr;)*) => {$(
        impl Element for $t {
            fn of(x: f64) -> Self { ($of)(x) }
            fn wide(self) -> f64 { ($wide)(self) }
            const GRADIENT: f64 = $bound;
            const TWO_STAGE: f64 = if $bound < 1e-9 { 1e-12 } else { 5e-5 };
        }
    )*};
}
element! {
    f32, |x| x as f32, f64::from, 5e-6;
    f64, |x| x, |x| x, 1e-13;
    f16, f16::from_f64, f16::to_f64, 4.9e-4;
    bf16, bf16::from_f64, bf16::to_f64, 3.95e-3;
}

const DENSE: [&str; 10] =
    ["fkl", "rkl", "gjsd", "skl", "srkl", "tvd", "soft_ce", "sym_kl", "alpha_div", "logit_mse"];

struct Case {
    loss: &'static str,
    params: Value,
    s: Vec<f64>,
    t: Vec<f64>,
    width: usize,
}

struct Found {
    value: f64,
    grad: Vec<f64>,
    dead: f64,
    infinite: f64,
}

fn fast<E: Element>(case: &Case, weights: &[Option<f64>], grad: Option<Vec<E>>) -> Found
where
    for<'a> Matrix<'a>: From<(&'a [E], usize)>,
    for<'a> Output<'a>: From<(&'a mut [E], usize)>,
{
    let Ok(Spec::Dense(spec)) = parse(case.loss, &case.params) else { panic!("dense") };
    let round = |x: &[f64]| x.iter().map(|x| E::of(*x)).collect::<Vec<E>>();
    let (s, t) = (round(&case.s), round(&case.t));
    let mut grad = grad.unwrap_or_else(|| vec![E::of(f64::NAN); s.len()]);
    let mut slots = vec![Slot::default(); weights.len()];
    let call = dense::DenseCall {
        student: (&s[..], case.width).into(),
        teacher: (&t[..], case.width).into(),
        grad: Some((&mut grad[..], case.width).into()),
        width: case.width,
        class_mask: None,
        weights: &|n| weights[n],
        grad_factor: 0.25,
        softening: spec.softening,
        non_finite: spec.non_finite,
    };
    let Ok(sums) = dense::run(spec.divergence, &call, &mut slots, &mut [], &Serial);
    Found {
        value: sums.value / 4.0,
        grad: grad.iter().map(|g| g.wide()).collect(),
        dead: sums.dead_rows,
        infinite: sums.nonfinite_rows,
    }
}

fn oracle<E: Element>(case: &Case, weights: &[Option<f64>]) -> Found {
    let rows = weights.len();
    let array = |x: &[f64]| Array {
        shape: vec![rows, case.width],
        data: x.iter().map(|x| E::of(*x).wide()).collect(),
    };
    let per_row = |f: &dyn Fn(Option<f64>) -> f64| Array {
        shape: vec![rows],
        data: weights.iter().map(|w| f(*w)).collect(),
    };
    let inputs = Inputs::from([
        ("student.logits".into(), array(&case.s)),
        ("teacher.logits".into(), array(&case.t)),
        ("row_mask".into(), per_row(&|w| f64::from(w.is_some()))),
        ("row_weights".into(), per_row(&|w| w.unwrap_or(1.0))),
    ]);
    let spec = parse(case.loss, &case.params).expect("settings");
    let outcome = evaluate(&spec, &inputs, 4.0).expect("computes");
    Found {
        value: outcome.value,
        grad: outcome.grads["student.logits"].data.clone(),
        dead: outcome.dead_rows * 4.0,
        infinite: outcome.nonfinite_rows * 4.0,
    }
}

fn agree<E: Element>(case: &Case, weights: &[Option<f64>])
where
    for<'a> Matrix<'a>: From<(&'a [E], usize)>,
    for<'a> Output<'a>: From<(&'a mut [E], usize)>,
{
    // Two-stage gradients are differences of numbers near R.
    let two_stage = !["fkl", "soft_ce", "logit_mse"].contains(&case.loss);
    let bound = if two_stage { E::GRADIENT.max(E::TWO_STAGE) } else { E::GRADIENT };
    agree_above::<E>(case, weights, bound, 1e-12);
}

/// `floor`: what a gradient entry may be off by although the whole gradient is smaller.
fn agree_above<E: Element>(case: &Case, weights: &[Option<f64>], relative: f64, floor: f64)
where
    for<'a> Matrix<'a>: From<(&'a [E], usize)>,
    for<'a> Output<'a>: From<(&'a mut [E], usize)>,
{
    let (found, exact) = (fast::<E>(case, weights, None), oracle::<E>(case, weights));
    let what =
        format!("{} {} V={} {}", case.loss, case.params, case.width, std::any::type_name::<E>());
    let same = found.value == exact.value || (found.value.is_nan() && exact.value.is_nan());
    let bound = (1e-5 * exact.value.abs()).max(2e-7);
    assert!(
        same || (found.value - exact.value).abs() <= bound,
        "{what}: {} {}",
        found.value,
        exact.value
    );
    assert_eq!((found.dead, found.infinite), (exact.dead, exact.infinite), "{what}");
    // NaN rows are NaN on both sides; the norm is taken over the rest.
    let pairs = || found.grad.iter().zip(&exact.grad).filter(|(f, e)| !(f.is_nan() && e.is_nan()));
    let norm = pairs().map(|(_, e)| e * e).sum::<f64>().sqrt();
    let error = pairs().map(|(f, e)| (f - e) * (f - e)).sum::<f64>().sqrt();
    // Subnormal rounding of a 16-bit gradient is not relative.
    let half = E::GRADIENT == 4.9e-4;
    let floor = if half { floor.max(3e-8) } else { floor } * (found.grad.len() as f64).sqrt();
    assert!(error <= relative * norm + floor, "{what}: error {error:e} of {norm:e}");
}

fn agree_all(case: &Case, weights: &[Option<f64>]) {
    agree::<f32>(case, weights);
    agree::<f64>(case, weights);
    agree::<f16>(case, weights);
    agree::<bf16>(case, weights);
}

#[test]
fn every_divergence_agrees_with_the_oracle_in_every_type_and_width() {
    let mut random = Random(1);
    for loss in DENSE {
        for width in [1, 2, 7, 8, 9, 16, 31, 1000, 2047, 2048, 2049, 4095, 32_000] {
            let rows = if width > 4000 { 2 } else { 5 };
            let s = random.logits(rows * width, 4.0);
            let t = random.logits(rows * width, 4.0);
            let weights = [Some(1.0), None, Some(-0.5), Some(0.0), Some(2.0)];
            let case = Case { loss, params: json!({}), s, t, width };
            agree_all(&case, &weights[..rows]);
        }
    }
}

#[test]
fn temperatures_offsets_and_extremes_agree_with_the_oracle() {
    let mut random = Random(2);
    for loss in DENSE.into_iter().filter(|loss| *loss != "logit_mse") {
        for t in [0.01, 0.5, 2.0, 20.0] {
            for (scale, offset) in [(4.0, 0.0), (4.0, 30.0), (1.0, 300.0), (1e4, 0.0)] {
                let make = |r: &mut Random| {
                    r.logits(3 * 40, scale).iter().map(|x| x + offset).collect::<Vec<f64>>()
                };
                let (s, teacher) = (make(&mut random), make(&mut random));
                for t2 in [true, false] {
                    let params = json!({"temperature": t, "t2": t2});
                    let floor = 1e-6 * if t2 { t } else { 1.0 / t };
                    let case = Case { loss, params, s: s.clone(), t: teacher.clone(), width: 40 };
                    // Of a one-hot row, the gradient is a difference of equal numbers.
                    agree_above::<f32>(&case, &[Some(1.0); 3], 2e-4, floor);
                    agree::<f64>(&case, &[Some(1.0); 3]);
                }
            }
        }
    }
}

#[test]
fn minus_infinity_nan_and_dead_rows_agree_with_the_oracle() {
    let inf = f64::NEG_INFINITY;
    let mut random = Random(3);
    for loss in DENSE {
        for width in [9, 5000] {
            let (s, t) = (random.logits(7 * width, 3.0), random.logits(7 * width, 3.0));
            let mut case = Case { loss, params: json!({}), s, t, width };
            case.t[2] = inf;
            case.s[width + 2] = inf;
            (case.s[2 * width + 1], case.t[2 * width + 1]) = (inf, inf);
            case.s[3 * width..4 * width].fill(inf);
            case.t[4 * width..5 * width].fill(inf);
            case.s[5 * width + 3] = f64::NAN;
            agree::<f32>(&case, &[Some(1.0); 7]);
            agree::<f64>(&case, &[Some(1.0); 7]);
            case.params = json!({"non_finite": "zero_and_count"});
            agree::<f32>(&case, &[Some(1.0); 7]);
            agree::<bf16>(&case, &[Some(1.0); 7]);
            let found = fast::<f32>(&case, &[Some(1.0); 7], None);
            assert!(found.value.is_finite() && found.grad.iter().all(|g| g.is_finite()));
        }
    }
}

#[test]
fn accumulating_adds_exactly_what_overwriting_writes() {
    let mut random = Random(4);
    for loss in DENSE {
        for width in [10, 3000] {
            let (s, t) = (random.logits(3 * width, 3.0), random.logits(3 * width, 3.0));
            let case = Case { loss, params: json!({}), s, t, width };
            let weights = [Some(1.0), None, Some(0.5)];
            let written = fast::<f64>(&case, &weights, None).grad;
            let Ok(Spec::Dense(spec)) = parse(case.loss, &case.params) else { panic!("dense") };
            let mut grad = vec![1.0; 3 * width];
            let first: *mut f64 = grad.as_mut_ptr();
            let call = dense::DenseCall {
                student: (&case.s[..], width).into(),
                teacher: (&case.t[..], width).into(),
                // SAFETY: three rows of `width` in `grad`, used by this call alone.
                grad: Some(unsafe {
                    Output::new(
                        first.cast(),
                        super::matrix::Float::F64,
                        [3, width],
                        [width as isize, 1],
                        true,
                    )
                }),
                width,
                class_mask: None,
                weights: &|n| weights[n],
                grad_factor: 0.25,
                softening: spec.softening,
                non_finite: spec.non_finite,
            };
            let Ok(_) =
                dense::run(spec.divergence, &call, &mut [Slot::default(); 3], &mut [], &Serial);
            for (added, written) in grad.iter().zip(&written) {
                assert_eq!(*added, 1.0 + written, "{loss}");
            }
        }
    }
}

#[test]
fn writing_over_the_logits_gives_the_same_bits() {
    let mut random = Random(5);
    for loss in DENSE {
        for width in [10, 5000] {
            let (s, t) = (random.logits(2 * width, 3.0), random.logits(2 * width, 3.0));
            let case = Case { loss, params: json!({}), s, t, width };
            let apart = fast::<f32>(&case, &[Some(1.0); 2], None);
            let Ok(Spec::Dense(spec)) = parse(case.loss, &case.params) else { panic!("dense") };
            let mut s: Vec<f32> = case.s.iter().map(|x| *x as f32).collect();
            let t: Vec<f32> = case.t.iter().map(|x| *x as f32).collect();
            let (first, stride) = (s.as_mut_ptr().cast::<u8>(), [width as isize, 1]);
            let float = super::matrix::Float::F32;
            let call = dense::DenseCall {
                // SAFETY: two rows of `width` in `s`; the kernel reads a block before it writes it.
                student: unsafe { Matrix::new(first, float, [2, width], stride) },
                teacher: (&t[..], width).into(),
                // SAFETY: as above.
                grad: Some(unsafe { Output::new(first, float, [2, width], stride, false) }),
                width,
                class_mask: None,
                weights: &|_| Some(1.0),
                grad_factor: 0.25,
                softening: spec.softening,
                non_finite: spec.non_finite,
            };
            let Ok(sums) =
                dense::run(spec.divergence, &call, &mut [Slot::default(); 2], &mut [], &Serial);
            assert_eq!(sums.value / 4.0, apart.value, "{loss}");
            let aliased: Vec<f64> = s.iter().map(|g| f64::from(*g)).collect();
            assert_eq!(aliased, apart.grad, "{loss}");
        }
    }
}

#[test]
fn a_narrow_row_is_right_among_others_and_has_the_bits_it_has_alone() {
    let mut random = Random(8);
    for loss in DENSE {
        for width in [2, 10, 32, 33] {
            let rows = 37;
            let (s, t) = (random.logits(rows * width, 3.0), random.logits(rows * width, 3.0));
            let mut case = Case { loss, params: json!({"temperature": 2.0}), s, t, width };
            if loss == "logit_mse" {
                case.params = json!({});
            }
            case.s[5 * width] = f64::NAN;
            case.t[6 * width..7 * width].fill(f64::NEG_INFINITY);
            let weights: Vec<Option<f64>> =
                (0..rows).map(|n| (n % 4 != 2).then_some(0.25 * n as f64 - 3.0)).collect();
            agree::<f32>(&case, &weights);
            agree::<bf16>(&case, &weights);
            let whole = fast::<f32>(&case, &weights, None).grad;
            for n in [0, 7, 8, 15, 16, 35, 36] {
                let row = n * width..(n + 1) * width;
                let (s, t) = (case.s[row.clone()].to_vec(), case.t[row.clone()].to_vec());
                let alone = Case { loss, params: case.params.clone(), s, t, width };
                let alone = fast::<f32>(&alone, &weights[n..=n], None).grad;
                assert_eq!(alone, whole[row], "{loss} V={width} row {n}");
            }
        }
    }
}

#[test]
fn cross_entropy_agrees_with_the_oracle() {
    let mut random = Random(6);
    for width in [1, 2, 10, 2048, 2049, 32_000] {
        for (smoothing, masked) in [(0.0, false), (0.1, false), (0.0, true), (0.1, true)] {
            let s: Vec<f32> = random.logits(4 * width, 5.0).iter().map(|x| *x as f32).collect();
            let labels: Vec<usize> = (0..4).map(|n| n * 7919 % width).collect();
            let mask: Vec<bool> = (0..width).map(|v| v % 5 != 4 || labels.contains(&v)).collect();
            let own: Vec<bool> =
                (0..4 * width).map(|k| k % 3 != 1 || labels[k / width] == k % width).collect();
            let Ok(Spec::CrossEntropy(spec)) = parse("ce", &json!({"label_smoothing": smoothing}))
            else {
                panic!("ce")
            };
            let mut grad = vec![f32::NAN; s.len()];
            let call = cross_entropy::CrossEntropyCall {
                student: (&s[..], width).into(),
                grad: Some((&mut grad[..], width).into()),
                class_mask: masked.then_some(&mask[..]),
                row_classes: masked.then_some(&own[..]),
                weights: &|n| (n != 1).then_some(1.0),
                labels: &|n| labels[n],
                grad_factor: 0.25,
            };
            let Ok(sums) =
                cross_entropy::run(&spec, &call, &mut [Slot::default(); 4], &mut [], &Serial);
            let mut inputs = Inputs::from([
                (
                    "student.logits".into(),
                    Array {
                        shape: vec![4, width],
                        data: s.iter().map(|x| f64::from(*x)).collect(),
                    },
                ),
                (
                    "labels".into(),
                    Array { shape: vec![4], data: labels.iter().map(|x| *x as f64).collect() },
                ),
                (
                    "class_mask".into(),
                    Array {
                        shape: vec![width],
                        data: mask.iter().map(|x| f64::from(*x)).collect(),
                    },
                ),
                (
                    "row_classes".into(),
                    Array {
                        shape: vec![4, width],
                        data: own.iter().map(|x| f64::from(*x)).collect(),
                    },
                ),
                ("row_mask".into(), Array { shape: vec![4], data: vec![1.0, 0.0, 1.0, 1.0] }),
            ]);
            inputs.retain(|name, _| masked || !name.contains("class"));
            let exact = evaluate(&Spec::CrossEntropy(spec), &inputs, 4.0).expect("computes");
            assert!(
                (sums.value / 4.0 - exact.value).abs() <= 1e-5 * exact.value.abs() + 2e-7,
                "V={width}"
            );
            let exact = &exact.grads["student.logits"].data;
            let norm = exact.iter().map(|g| g * g).sum::<f64>().sqrt();
            let error = exact
                .iter()
                .zip(&grad)
                .map(|(e, g)| (e - f64::from(*g)).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!(error <= 5e-6 * norm + 1e-12, "V={width}: {error:e} of {norm:e}");
        }
    }
}

#[test]
fn projected_states_agree_with_the_oracle_in_value_and_all_gradients() {
    let mut random = Random(7);
    for (rows, width, mapped) in [(5, 4, 6), (130, 33, 17), (9, 1, 1)] {
        let float = |x: Vec<f64>| x.iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let h = float(random.logits(rows * width, 1.0));
        let t = float(random.logits(rows * mapped, 1.0));
        let w = float(random.logits(mapped * width, 0.5));
        let b = float(random.logits(mapped, 0.5));
        let (mut dh, mut dw, mut db) =
            (vec![f32::NAN; h.len()], vec![f32::NAN; w.len()], vec![f32::NAN; b.len()]);
        let weights = |n: usize| (n % 3 != 1).then_some(1.0 + n as f64 / 10.0);
        let call = hidden::HiddenCall {
            student: (&h[..], width).into(),
            teacher: (&t[..], mapped).into(),
            grad: Some((&mut dh[..], width).into()),
            weights: &weights,
            grad_factor: 0.5,
        };
        let map = projection::Projection {
            weight: (&w[..], width).into(),
            bias: Some((&b[..], mapped).into()),
            weight_grad: Some((&mut dw[..], width).into()),
            bias_grad: Some((&mut db[..], mapped).into()),
        };
        let mut slots = vec![Slot::default(); rows];
        let Ok(sums) = projection::run_projected(&call, &map, &mut slots, &Serial);
        let array = |x: &[f32], shape: &[usize]| Array {
            shape: shape.to_vec(),
            data: x.iter().map(|x| f64::from(*x)).collect(),
        };
        let per_row = |f: &dyn Fn(usize) -> f64| Array {
            shape: vec![rows],
            data: (0..rows).map(f).collect(),
        };
        let inputs = Inputs::from([
            ("student.hidden".into(), array(&h, &[rows, width])),
            ("teacher.hidden".into(), array(&t, &[rows, mapped])),
            ("proj.weight".into(), array(&w, &[mapped, width])),
            ("proj.bias".into(), array(&b, &[mapped])),
            ("row_mask".into(), per_row(&|n| f64::from(weights(n).is_some()))),
            ("row_weights".into(), per_row(&|n| weights(n).unwrap_or(1.0))),
        ]);
        let kind = HiddenKind::Mse { projector: Projector::Linear, bias: true };
        let spec = Spec::Hidden(crate::settings::Hidden { kind, layers: Vec::new() });
        let exact = evaluate(&spec, &inputs, 2.0).expect("computes");
        assert!((sums.value / 2.0 - exact.value).abs() <= 1e-5 * exact.value);
        for (name, found) in [("student.hidden", &dh), ("proj.weight", &dw), ("proj.bias", &db)] {
            let exact = &exact.grads[name].data;
            let norm = exact.iter().map(|g| g * g).sum::<f64>().sqrt();
            let error =
                exact.iter().zip(found).map(|(e, g)| (e - f64::from(*g)).powi(2)).sum::<f64>();
            assert!(error.sqrt() <= 5e-6 * norm, "{name}");
        }
    }
}
