//! Log-softmax, log-sum-exp and the chain rule through a softmax, in f64.
//!
//! The maximum is subtracted before anything is divided by the temperature. Invariant: a probability
//! that underflows keeps a finite logarithm.

/// `ln Σ exp(x)`, −inf of nothing.
pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !x.iter().any(|v| v.is_nan()) {
        return max;
    }
    max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// `ln(exp(a) + exp(b))`.
pub fn log_add_exp(a: f64, b: f64) -> f64 {
    log_sum_exp(&[a, b])
}

/// `ln softmax(z / t)`.
pub fn log_softmax(z: &[f64], t: f64) -> Vec<f64> {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let centred: Vec<f64> = z.iter().map(|v| (v - max) / t).collect();
    let log_sum = centred.iter().map(|x| x.exp()).sum::<f64>().ln();
    centred.iter().map(|x| x - log_sum).collect()
}

/// Whether no logit is live: all −inf.
pub fn dead(z: &[f64]) -> bool {
    z.iter().all(|&v| v == f64::NEG_INFINITY)
}

/// `x ln` style product with 0 · anything = 0.
pub fn times(p: f64, x: f64) -> f64 {
    if p == 0.0 { 0.0 } else { p * x }
}

/// R(u): gradient with respect to z/T of a loss with ∂ℓ/∂q = u; entries with q = 0 are 0.
pub fn through_softmax(q: &[f64], u: &[f64]) -> Vec<f64> {
    let mean: f64 = q.iter().zip(u).map(|(&q, &u)| times(q, u)).sum();
    q.iter().zip(u).map(|(&q, &u)| times(q, u - mean)).collect()
}

/// Probabilities of log-probabilities.
pub fn exp(log: &[f64]) -> Vec<f64> {
    log.iter().map(|x| x.exp()).collect()
}
