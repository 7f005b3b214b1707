//! What the row kernel needs of each divergence: its term of the loss and of the gradient, per column.
//!
//! Written once for f32 and f64. Each column gives `loss`, `base` and `u`; the gradient with respect to s/T is
//! `base + q·(u − Σ q u)`. `x`, `y` are base-2 log-probabilities of student and teacher; probabilities may
//! underflow, their logarithms do not. Products with a probability of 0 are selected away, not computed.

use super::real::Real;

/// One column's share.
#[derive(Clone, Copy)]
pub struct Term<A> {
    /// Of ℓ.
    pub loss: A,
    /// Gradient that needs no sum over the row.
    pub base: A,
    /// ∂ℓ/∂q of the rest.
    pub u: A,
}

/// A divergence of one row.
pub trait Functor<A: Real>: Copy + Send + Sync {
    /// Whether `u` is used: the gradient then needs a sum over the row first.
    const TWO_STAGE: bool;
    /// The share of a column.
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A>;
}

/// `p·r`, 0 for p = 0 whatever r.
#[inline(always)]
fn times<A: Real>(p: A, r: A) -> A {
    if p == A::ZERO { A::ZERO } else { p * r }
}

/// KL(p‖q).
#[derive(Clone, Copy)]
pub struct ForwardKl;
impl<A: Real> Functor<A> for ForwardKl {
    const TWO_STAGE: bool = false;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        // −p + q sums to 0, but takes the rounding of both normalisers out of the sum.
        let loss = times(p, (y - x) * A::LN_2) + (q - p);
        Term { loss, base: q - p, u: A::ZERO }
    }
}

/// −Σ p ln q.
#[derive(Clone, Copy)]
pub struct SoftCe;
impl<A: Real> Functor<A> for SoftCe {
    const TWO_STAGE: bool = false;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, _y: A) -> Term<A> {
        Term { loss: times(p, -x * A::LN_2), base: q - p, u: A::ZERO }
    }
}

/// KL(q‖p).
#[derive(Clone, Copy)]
pub struct ReverseKl;
impl<A: Real> Functor<A> for ReverseKl {
    const TWO_STAGE: bool = true;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let u = (x - y) * A::LN_2;
        Term { loss: times(q, u) + (p - q), base: A::ZERO, u }
    }
}

/// λ KL(p‖q) + (1−λ) KL(q‖p).
#[derive(Clone, Copy)]
pub struct SymKl<A>(pub A);
impl<A: Real> Functor<A> for SymKl<A> {
    const TWO_STAGE: bool = true;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let (lambda, rest) = (self.0, A::ONE - self.0);
        let ratio = (x - y) * A::LN_2;
        let forward = times(p, -ratio) + (q - p);
        let reverse = times(q, ratio) + (p - q);
        Term { loss: lambda * forward + rest * reverse, base: lambda * (q - p), u: rest * ratio }
    }
}

/// ½ Σ|p − q|.
#[derive(Clone, Copy)]
pub struct Tvd;
impl<A: Real> Functor<A> for Tvd {
    const TWO_STAGE: bool = true;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let half = A::of(0.5);
        let sign = if x > y { half } else { A::ZERO };
        let sign = if x < y { -half } else { sign };
        Term { loss: half * (p - q).abs(), base: A::ZERO, u: sign }
    }
}

/// Logarithms and ratios against m = share·p + (1−share)·q, from whichever of p and q is larger.
struct Mixture<A> {
    /// ln(p/m).
    log_p: A,
    /// ln(q/m).
    log_q: A,
    /// p/m.
    p: A,
    /// q/m.
    q: A,
}

impl<A: Real> Mixture<A> {
    #[inline(always)]
    fn new(share: A, x: A, y: A) -> Self {
        let rest = A::ONE - share;
        let gap = y - x;
        let teacher = gap >= A::ZERO;
        // The smaller over the larger, at most 1: nothing overflows, and near 1 nothing cancels.
        let a = (-gap.abs()).exp2();
        let m = if teacher { share + rest * a } else { share * a + rest };
        let log_m = m.log2();
        let inverse = A::ONE / m;
        let log_p = if teacher { -log_m } else { gap - log_m };
        let log_q = if teacher { -gap - log_m } else { -log_m };
        let p = if teacher { inverse } else { a * inverse };
        let q = if teacher { a * inverse } else { inverse };
        Self { log_p: log_p * A::LN_2, log_q: log_q * A::LN_2, p, q }
    }
}

/// β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q.
#[derive(Clone, Copy)]
pub struct Gjsd<A>(pub A);
impl<A: Real> Functor<A> for Gjsd<A> {
    const TWO_STAGE: bool = true;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let rest = A::ONE - self.0;
        let m = Mixture::new(self.0, x, y);
        let loss = self.0 * times(p, m.log_p) + rest * times(q, m.log_q);
        Term { loss, base: A::ZERO, u: rest * m.log_q }
    }
}

/// KL(p‖m), m = αp + (1−α)q.
#[derive(Clone, Copy)]
pub struct Skl<A>(pub A);
impl<A: Real> Functor<A> for Skl<A> {
    const TWO_STAGE: bool = true;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let rest = A::ONE - self.0;
        let m = Mixture::new(self.0, x, y);
        Term { loss: times(p, m.log_p) + rest * (q - p), base: A::ZERO, u: -rest * m.p }
    }
}

/// KL(q‖m), m = (1−α)p + αq; `through` is α, or 0 with the mixture detached.
#[derive(Clone, Copy)]
pub struct Srkl<A> {
    pub alpha: A,
    pub through: A,
}
impl<A: Real> Functor<A> for Srkl<A> {
    const TWO_STAGE: bool = true;
    #[inline(always)]
    fn term(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let share = A::ONE - self.alpha;
        let m = Mixture::new(share, x, y);
        let loss = times(q, m.log_q) + share * (p - q);
        Term { loss, base: A::ZERO, u: m.log_q - self.through * m.q }
    }
}
