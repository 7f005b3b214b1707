//! Gradients written past the caches against the same rows written through them.

use crate::cpu::{Matrix, Output, STREAMED, Serial, Slot, cross_entropy, dense};
use crate::settings::{Spec, parse};
use serde_json::json;

const WIDTH: usize = 4096 + 16;

/// Logits that repeat no row.
fn logits(rows: usize, step: u32) -> Vec<f32> {
    let mut state = step;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 20) as f32 - 8.0
    };
    (0..rows * WIDTH).map(|_| next()).collect()
}

/// Rows of `data` from the first address that is `offset` bytes past a line of the cache.
fn at_line(data: &mut Vec<f32>, rows: usize, offset: usize) -> &mut [f32] {
    data.resize(rows * WIDTH + 32, f32::NAN);
    let first = (64 - data.as_ptr().addr() % 64) % 64 + offset;
    &mut data[first / 4..][..rows * WIDTH]
}

fn divergence(loss: &str, s: &[f32], t: &[f32], grad: &mut [f32]) {
    let Ok(Spec::Dense(spec)) = parse(loss, &json!({"temperature": 2.0})) else { panic!("dense") };
    let rows = s.len() / WIDTH;
    let call = dense::DenseCall {
        student: (s, WIDTH).into(),
        teacher: (t, WIDTH).into(),
        grad: Some((grad, WIDTH).into()),
        width: WIDTH,
        class_mask: None,
        weights: &|n| Some(1.0 + n as f64),
        grad_factor: 0.5,
        softening: spec.softening,
        non_finite: spec.non_finite,
    };
    let mut slots = vec![Slot::default(); rows];
    let Ok(_) = dense::run(spec.divergence, &call, &mut slots, &mut [], &Serial);
}

fn labels(s: &[f32], grad: &mut [f32]) {
    let Ok(Spec::CrossEntropy(spec)) = parse("ce", &json!({})) else { panic!("labels") };
    let rows = s.len() / WIDTH;
    let call = cross_entropy::CrossEntropyCall {
        student: Matrix::from((s, WIDTH)),
        grad: Some(Output::from((grad, WIDTH))),
        class_mask: None,
        row_classes: None,
        weights: &|n| Some(1.0 + n as f64),
        labels: &|n| n % WIDTH,
        grad_factor: 0.5,
    };
    let mut slots = vec![Slot::default(); rows];
    let Ok(_) = cross_entropy::run(&spec, &call, &mut slots, &mut [], &Serial);
}

#[test]
fn a_gradient_past_the_caches_has_the_bits_of_one_through_them() {
    let many = STREAMED / (4 * WIDTH) + 1;
    let few = 3;
    let (s, t) = (logits(many, 1), logits(many, 2));
    type Loss<'l> = Box<dyn Fn(usize, &mut [f32]) + 'l>;
    let of = |loss: &'static str| -> Loss<'_> {
        let (s, t) = (&s, &t);
        Box::new(move |rows, grad| divergence(loss, &s[..rows * WIDTH], &t[..rows * WIDTH], grad))
    };
    let mut losses: Vec<Loss<'_>> = ["fkl", "rkl", "soft_ce", "gjsd", "tvd"].map(of).into();
    losses.push(Box::new(|rows, grad| labels(&s[..rows * WIDTH], grad)));
    for (index, loss) in losses.iter().enumerate() {
        for offset in [0, 32, 4] {
            let (mut streamed, mut stored) = (Vec::new(), Vec::new());
            let streamed = at_line(&mut streamed, many, offset);
            let stored = at_line(&mut stored, few, offset);
            loss(many, streamed);
            loss(few, stored);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(&streamed[..few * WIDTH]),
                bits(stored),
                "loss {index}, offset {offset}"
            );
            assert!(streamed.iter().all(|g| g.is_finite()), "loss {index}, offset {offset}");
        }
    }
}
