//! Kernels against plain f64 formulas, in f64 and f32.

use super::*;

fn wave(count: usize, scale: f64) -> Vec<f64> {
    (0..count).map(|i| scale * (1.0 + 2.399_963 * i as f64).sin()).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

fn near(found: &[f32], wanted: &[f64], bound: f64) {
    assert_eq!(found.len(), wanted.len());
    for (i, (&found, &wanted)) in found.iter().zip(wanted).enumerate() {
        let error = (f64::from(found) - wanted).abs();
        assert!(error <= bound * wanted.abs().max(1.0), "{i}: {found} {wanted}");
    }
}

#[test]
fn a_normalized_row_has_mean_zero_and_variance_one() {
    // 37 columns: two full sets of lanes and a rest.
    let (x, branch) = (wave(3 * 37, 5.0), wave(3 * 37, 2.0));
    let (w, b) = (wave(37, 1.0), wave(37, 0.5));
    let (mut y, mut t, mut s) = (narrow(&x), vec![0f32; 3 * 37], vec![0f32; 3]);
    norm(&mut y, &narrow(&branch), &mut t, &mut s, &narrow(&w), &narrow(&b), 1e-5);
    for row in 0..3 {
        let sums: Vec<f64> = (row * 37..(row + 1) * 37).map(|i| x[i] + branch[i]).collect();
        let mean = sums.iter().sum::<f64>() / 37.0;
        let var = sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 37.0;
        let factor = 1.0 / (var + 1e-5).sqrt();
        let normalized: Vec<f64> = sums.iter().map(|x| (x - mean) * factor).collect();
        let wanted: Vec<f64> = (0..37).map(|c| normalized[c] * w[c] + b[c]).collect();
        near(&t[row * 37..(row + 1) * 37], &normalized, 1e-6);
        near(&y[row * 37..(row + 1) * 37], &wanted, 1e-6);
        near(&s[row..=row], &[factor], 1e-6);
    }
}

#[test]
fn a_softmax_sums_to_one_over_what_is_kept_also_for_large_scores() {
    let scores: Vec<f64> = wave(2 * 21, 1e4);
    let keep: Vec<bool> = (0..21).map(|i| i % 5 != 0).collect();
    let mut p = narrow(&scores);
    softmax(&mut p, 21, &keep);
    for row in 0..2 {
        let kept = |i: &usize| keep[*i];
        let max = (0..21).filter(kept).map(|i| scores[row * 21 + i]).fold(f64::MIN, f64::max);
        let e: Vec<f64> = (0..21)
            .map(|i| if keep[i] { (scores[row * 21 + i] - max).exp() } else { 0.0 })
            .collect();
        let total: f64 = e.iter().sum();
        let wanted: Vec<f64> = e.iter().map(|e| e / total).collect();
        // Scores of 1e4 have steps of 1e-3 in f32.
        near(&p[row * 21..(row + 1) * 21], &wanted, 2e-3);
    }
    let mut none = vec![3f32; 4];
    softmax(&mut none, 4, &[false; 4]);
    assert_eq!(none, [0.0; 4]);
    let mut nan = vec![1f32, f32::NAN, 2.0];
    softmax(&mut nan, 3, &[]);
    assert!(nan.iter().all(|p| p.is_nan()));
}

#[test]
fn both_gelus_and_their_derivatives_stay_close_to_f64() {
    let x: Vec<f64> = (-800..800).map(|i| f64::from(i) * 0.01).collect();
    for activation in [Activation::Gelu, Activation::GeluTanh] {
        let mut wanted = vec![0f64; x.len()];
        activate(&mut wanted, &x, activation);
        let mut slopes = vec![1f64; x.len()];
        let mut again = vec![0f64; x.len()];
        activate_backward(&mut slopes, &mut again, &x, activation);
        assert_eq!(wanted, again);
        let (mut y, mut grad) = (vec![0f32; x.len()], vec![1f32; x.len()]);
        activate_backward(&mut grad, &mut y, &narrow(&x), activation);
        near(&y, &wanted, 2e-6);
        near(&grad, &slopes, 2e-6);
    }
    // tanh form at 1: 0.841192.
    let mut y = [0f64];
    activate(&mut y, &[1.0], Activation::GeluTanh);
    assert!((y[0] - 0.841_192).abs() < 1e-6);
}

#[test]
fn a_row_keeps_its_mask_in_a_shorter_version() {
    let dropout = Dropout::new(Stream::new([1, 2], 3), 0.4).unwrap();
    let (mut long, mut short) = (vec![1f32; 13], vec![1f32; 6]);
    dropout.row(5, 13, &mut long);
    dropout.row(5, 13, &mut short);
    assert_eq!(long[..6], short);
    assert!(long.contains(&0.0) && long.iter().any(|&x| (x - 1.0 / 0.6).abs() < 1e-6));
    assert!(Dropout::new(Stream::new([1, 2], 3), 0.0).is_none());
}
