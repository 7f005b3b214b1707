//! Value and gradient of every comparison of one row of logits, losses.md section 2.
//!
//! Rows arrive with uncounted, removed and doubly −inf columns already gone where a formula asks for it.
//! Invariant: the gradient is with respect to s/T (so `∂ℓ/∂s = g/T`), and a value that is +inf is decided
//! here, whether its gradient survives by the caller.

use super::softmax::{dead, exp, log_add_exp, log_softmax, log_sum_exp, through_softmax, times};
use crate::settings::{Divergence, Softening};

/// ℓ and ∂ℓ/∂(s/T).
pub struct Row {
    pub value: f64,
    pub grad: Vec<f64>,
}

/// Compares the student row `s` with the teacher row `t`; `label` is a position in the rows.
pub fn compare(
    divergence: Divergence,
    softening: Softening,
    s: &[f64],
    t: &[f64],
    label: Option<usize>,
) -> Row {
    match divergence {
        Divergence::LogitMse => return logit_mse(s, t),
        Divergence::BceKd => return bce(s, t, softening),
        Divergence::LogitStd => return standardised(s, t, softening),
        _ => {}
    }
    let (lp, lq) = (log_softmax(t, softening.teacher), log_softmax(s, softening.student));
    match divergence {
        Divergence::ForwardKl => forward_kl(&lp, &lq),
        Divergence::ReverseKl => reverse_kl(&lp, &lq),
        Divergence::Gjsd { beta } => gjsd(&lp, &lq, beta),
        Divergence::Skl { alpha } => skl(&lp, &lq, alpha),
        Divergence::Srkl { alpha, detach } => srkl(&lp, &lq, alpha, detach),
        Divergence::Tvd => tvd(&lp, &lq),
        Divergence::Alpha { alpha } => alpha_div(&lp, &lq, alpha),
        Divergence::Renyi { alpha } => renyi(&lp, &lq, alpha),
        Divergence::SoftCe => soft_ce(&lp, &lq),
        Divergence::SymKl { lambda } => sym_kl(&lp, &lq, lambda),
        Divergence::Dkd { alpha, beta } => dkd(&lp, &lq, label.unwrap_or(0), alpha, beta),
        Divergence::Uld => uld(&lp, &lq),
        Divergence::LogitMse | Divergence::BceKd | Divergence::LogitStd => {
            unreachable!("compared before the softmax")
        }
    }
}

/// KL of log-probabilities, over the entries where the first is not 0.
pub fn kl(la: &[f64], lb: &[f64]) -> f64 {
    la.iter().zip(lb).map(|(&a, &b)| times(a.exp(), a - b)).sum()
}

fn pointwise(la: &[f64], lb: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    la.iter().zip(lb).map(|(&a, &b)| f(a, b)).collect()
}

fn q_minus_p(lp: &[f64], lq: &[f64]) -> Vec<f64> {
    pointwise(lp, lq, |p, q| q.exp() - p.exp())
}

pub fn forward_kl(lp: &[f64], lq: &[f64]) -> Row {
    Row { value: kl(lp, lq), grad: q_minus_p(lp, lq) }
}

fn reverse_kl(lp: &[f64], lq: &[f64]) -> Row {
    let ratio = pointwise(lp, lq, |p, q| q - p);
    Row { value: kl(lq, lp), grad: through_softmax(&exp(lq), &ratio) }
}

/// `ln(share · exp(lp) + (1 − share) · exp(lq))`.
fn mixture(lp: &[f64], lq: &[f64], share: f64) -> Vec<f64> {
    pointwise(lp, lq, |p, q| log_add_exp(share.ln() + p, (1.0 - share).ln() + q))
}

fn gjsd(lp: &[f64], lq: &[f64], beta: f64) -> Row {
    let lm = mixture(lp, lq, beta);
    let u = pointwise(lq, &lm, |q, m| (1.0 - beta) * (q - m));
    let value = beta * kl(lp, &lm) + (1.0 - beta) * kl(lq, &lm);
    Row { value, grad: through_softmax(&exp(lq), &u) }
}

fn skl(lp: &[f64], lq: &[f64], alpha: f64) -> Row {
    let lm = mixture(lp, lq, alpha);
    let u = pointwise(lp, &lm, |p, m| -(1.0 - alpha) * (p - m).exp());
    Row { value: kl(lp, &lm), grad: through_softmax(&exp(lq), &u) }
}

fn srkl(lp: &[f64], lq: &[f64], alpha: f64, detach: bool) -> Row {
    let lm = mixture(lp, lq, 1.0 - alpha);
    let through_mixture = if detach { 0.0 } else { alpha };
    let u = pointwise(lq, &lm, |q, m| (q - m) - through_mixture * (q - m).exp());
    Row { value: kl(lq, &lm), grad: through_softmax(&exp(lq), &u) }
}

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x * 0.0
    }
}

fn tvd(lp: &[f64], lq: &[f64]) -> Row {
    let difference = q_minus_p(lp, lq);
    let value = 0.5 * difference.iter().map(|d| d.abs()).sum::<f64>();
    let u: Vec<f64> = difference.iter().map(|&d| 0.5 * sign(d)).collect();
    Row { value, grad: through_softmax(&exp(lq), &u) }
}

/// `α ln p + (1 − α) ln q`, −inf where both are.
fn geometric(lp: &[f64], lq: &[f64], alpha: f64) -> Vec<f64> {
    pointwise(lp, lq, |p, q| if p == f64::NEG_INFINITY { p } else { alpha * p + (1.0 - alpha) * q })
}

fn alpha_div(lp: &[f64], lq: &[f64], alpha: f64) -> Row {
    let c = exp(&geometric(lp, lq, alpha));
    let sum: f64 = c.iter().sum();
    // Σ(αp + (1−α)q − c) = 1 − Σc, but each term is small where the two rows are close.
    let gap: f64 =
        (0..c.len()).map(|v| alpha * lp[v].exp() + (1.0 - alpha) * lq[v].exp() - c[v]).sum();
    let grad = pointwise(&c, lq, |c, q| -(c - q.exp() * sum) / alpha);
    Row { value: gap / (alpha * (1.0 - alpha)), grad }
}

fn renyi(lp: &[f64], lq: &[f64], alpha: f64) -> Row {
    let logs = geometric(lp, lq, alpha);
    let log_sum = log_sum_exp(&logs);
    let grad = pointwise(&logs, lq, |c, q| q.exp() - (c - log_sum).exp());
    Row { value: log_sum / (alpha - 1.0), grad }
}

fn soft_ce(lp: &[f64], lq: &[f64]) -> Row {
    let value = lp.iter().zip(lq).map(|(&p, &q)| times(p.exp(), -q)).sum();
    Row { value, grad: q_minus_p(lp, lq) }
}

fn sym_kl(lp: &[f64], lq: &[f64], lambda: f64) -> Row {
    let (forward, reverse) = (forward_kl(lp, lq), reverse_kl(lp, lq));
    let mut grad = pointwise(&forward.grad, &reverse.grad, |f, r| lambda * f + (1.0 - lambda) * r);
    if reverse.value == f64::INFINITY {
        grad.fill(0.0);
    }
    Row { value: lambda * forward.value + (1.0 - lambda) * reverse.value, grad }
}

fn logit_mse(s: &[f64], t: &[f64]) -> Row {
    let width = s.len() as f64;
    let value = s.iter().zip(t).map(|(s, t)| (s - t) * (s - t)).sum::<f64>() / width;
    Row { value, grad: s.iter().zip(t).map(|(s, t)| 2.0 * (s - t) / width).collect() }
}

pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn bce(s: &[f64], t: &[f64], softening: Softening) -> Row {
    let width = s.len() as f64;
    let mut row = Row { value: 0.0, grad: Vec::with_capacity(s.len()) };
    for (s, t) in s.iter().zip(t) {
        let (x, target) = (s / softening.student, sigmoid(t / softening.teacher));
        row.value += (x.max(0.0) + (-x.abs()).exp().ln_1p() - times(target, x)) / width;
        row.grad.push((sigmoid(x) - target) / width);
    }
    row
}

/// Mean 0, sample standard deviation 1; a flat row becomes 0.
fn standardise(z: &[f64]) -> (Vec<f64>, Option<f64>) {
    let n = z.len() as f64;
    let mean = z.iter().sum::<f64>() / n;
    let sigma = (z.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)).sqrt();
    if z.len() < 2 || sigma <= 1e-12 {
        return (vec![0.0; z.len()], None);
    }
    (z.iter().map(|v| (v - mean) / sigma).collect(), Some(sigma))
}

fn standardised(s: &[f64], t: &[f64], softening: Softening) -> Row {
    let ((x, sigma), (y, _)) = (standardise(s), standardise(t));
    let (lp, lq) = (log_softmax(&y, softening.teacher), log_softmax(&x, softening.student));
    let mut row = forward_kl(&lp, &lq);
    let Some(sigma) = sigma else {
        row.grad.fill(0.0);
        return row;
    };
    let n = s.len() as f64;
    let mean = row.grad.iter().sum::<f64>() / n;
    let along = row.grad.iter().zip(&x).map(|(h, x)| h * x).sum::<f64>() / (n - 1.0);
    row.grad = row.grad.iter().zip(&x).map(|(h, x)| (h - mean - x * along) / sigma).collect();
    row
}

fn without(x: &[f64], skip: usize) -> Vec<f64> {
    x.iter().enumerate().filter(|(v, _)| *v != skip).map(|(_, &x)| x).collect()
}

fn dkd(lp: &[f64], lq: &[f64], y: usize, alpha: f64, beta: f64) -> Row {
    // ln(1 − p_y) as the log-sum-exp of the others: 1 − p_y loses all digits of a certain target.
    let (lp_rest, lq_rest) = (log_sum_exp(&without(lp, y)), log_sum_exp(&without(lq, y)));
    let target = forward_kl(&[lp[y], lp_rest], &[lq[y], lq_rest]);
    let none = dead(&without(lp, y)) || dead(&without(lq, y));
    let (hat_p, hat_q): (Vec<f64>, Vec<f64>) = if none {
        (vec![f64::NEG_INFINITY; lp.len()], vec![f64::NEG_INFINITY; lq.len()])
    } else {
        (lp.iter().map(|p| p - lp_rest).collect(), lq.iter().map(|q| q - lq_rest).collect())
    };
    let rest = kl(&without(&hat_p, y), &without(&hat_q, y));
    let (p, q) = (lp[y].exp(), lq[y].exp());
    let gap = if p + q > 1.0 { lp_rest.exp() - lq_rest.exp() } else { q - p };
    let grad = (0..lp.len()).map(|v| {
        if v == y {
            return alpha * gap;
        }
        let (hat_p, hat_q) = (hat_p[v].exp(), hat_q[v].exp());
        beta * (hat_q - hat_p) - alpha * gap * hat_q
    });
    let grad = grad.collect();
    Row { value: times(alpha, target.value) + times(beta, rest), grad }
}

/// Positions of `x` from the largest down, equal ones in order.
fn descending(x: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    order
}

fn uld(lp: &[f64], lq: &[f64]) -> Row {
    let (p, q) = (exp(lp), exp(lq));
    let (by_p, by_q) = (descending(&p), descending(&q));
    let mut row = Row { value: 0.0, grad: Vec::new() };
    let mut u = vec![0.0; q.len()];
    for rank in 0..p.len().max(q.len()) {
        let p = by_p.get(rank).map_or(0.0, |&v| p[v]);
        let d = by_q.get(rank).map_or(0.0, |&v| q[v]) - p;
        row.value += d.abs();
        if let Some(&v) = by_q.get(rank) {
            u[v] = sign(d);
        }
    }
    row.grad = through_softmax(&q, &u);
    row
}
