//! Numerics that losses and models keep needing, done so that logits of any size stay finite.
//!
//! Maximum first, sums in f64, never the logarithm of a softmax.

/// `ln softmax(x / temperature)` of one row, in f64.
///
/// * `values`: a [`crate::Row`], or any iterator of numbers. An empty row gives an empty vector.
/// * A row that is all −inf gives NaN everywhere: it has no distribution.
pub fn log_softmax<I>(values: I, temperature: f64) -> Vec<f64>
where
    I: IntoIterator,
    I::Item: Into<f64>,
{
    let mut out: Vec<f64> = values.into_iter().map(|x| x.into() / temperature).collect();
    let max = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = out.iter().map(|x| (x - max).exp()).sum();
    let shift = max + sum.ln();
    out.iter_mut().for_each(|x| *x -= shift);
    out
}

/// `ln softmax(x / temperature)` of one row in f32, with the sum in f64.
///
/// Error at most a few units in the last place of the largest logit.
pub fn log_softmax_f32(values: &[f32], temperature: f32, out: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = values.iter().map(|x| f64::from((x - max) / temperature).exp()).sum();
    let shift = sum.ln() as f32;
    for (o, x) in out.iter_mut().zip(values) {
        *o = (x - max) / temperature - shift;
    }
}

/// `softmax(x / temperature)` of one row, in f64.
pub fn softmax<I>(values: I, temperature: f64) -> Vec<f64>
where
    I: IntoIterator,
    I::Item: Into<f64>,
{
    let mut out = log_softmax(values, temperature);
    out.iter_mut().for_each(|x| *x = x.exp());
    out
}

/// `ln Σ exp(x)`; −inf for an empty row.
pub fn log_sum_exp<I>(values: I) -> f64
where
    I: IntoIterator,
    I::Item: Into<f64>,
{
    let values: Vec<f64> = values.into_iter().map(Into::into).collect();
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + values.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_logits_keep_finite_logarithms() {
        let out = log_softmax([1e4, -1e4, 0.0], 1.0);
        assert_eq!(out, [0.0, -2e4, -1e4]);
        let mut narrow = [0.0; 3];
        log_softmax_f32(&[1e4, -1e4, 0.0], 1.0, &mut narrow);
        assert_eq!(narrow, [0.0, -2e4, -1e4]);
    }

    #[test]
    fn probabilities_sum_to_one_at_every_temperature() {
        for t in [0.1, 1.0, 20.0] {
            let sum: f64 = softmax([0.3f32, -2.0, 5.0, 1.0], t).iter().sum();
            assert!((sum - 1.0).abs() < 1e-14, "{sum}");
        }
    }

    #[test]
    fn the_empty_row_has_no_mass() {
        assert_eq!(log_sum_exp(std::iter::empty::<f64>()), f64::NEG_INFINITY);
        assert!(log_softmax(std::iter::empty::<f64>(), 1.0).is_empty());
    }
}
