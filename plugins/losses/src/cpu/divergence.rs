//! What the row kernel needs of each divergence: its term of the loss and of the gradient, per column.
//!
//! Written once for f64 and for lanes of f32. Each column gives `loss`, `base` and `qu` = q·∂ℓ/∂q; the gradient
//! with respect to s/T is `base + qu − q·Σ qu`. `x`, `y` are base-2 log-probabilities of student and teacher;
//! probabilities may underflow, their logarithms do not. What is multiplied by a probability of 0 is selected away.

use super::number::Number;

/// One column's share.
#[derive(Clone, Copy)]
pub struct Term<A> {
    /// Of ℓ.
    pub loss: A,
    /// Gradient that needs no sum over the row.
    pub base: A,
    /// q·∂ℓ/∂q of the rest.
    pub qu: A,
}

/// A divergence of one row.
pub trait Functor: Copy + Send + Sync {
    /// Whether the loss is linear in the logarithms: a wide row then needs no second look at its logits.
    const LINEAR: Option<Linear> = None;
    /// The share of a column.
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A>;
}

/// Losses that are a probability times a logarithm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// Σ p (ln p − ln q), gradient q − p.
    Kl,
    /// −Σ p ln q, gradient q − p.
    CrossEntropy,
    /// Σ q (ln q − ln p), gradient q (ln q − ln p − ℓ).
    ReverseKl,
}

/// KL(p‖q).
#[derive(Clone, Copy)]
pub struct ForwardKl;
impl Functor for ForwardKl {
    const LINEAR: Option<Linear> = Some(Linear::Kl);
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        // −p + q sums to 0, but takes the rounding of both normalisers out of the sum.
        let loss = p.times((y - x) * A::ln_2()) + (q - p);
        Term { loss, base: q - p, qu: A::zero() }
    }
}

/// −Σ p ln q.
#[derive(Clone, Copy)]
pub struct SoftCe;
impl Functor for SoftCe {
    const LINEAR: Option<Linear> = Some(Linear::CrossEntropy);
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, _y: A) -> Term<A> {
        Term { loss: p.times(-x * A::ln_2()), base: q - p, qu: A::zero() }
    }
}

/// KL(q‖p).
#[derive(Clone, Copy)]
pub struct ReverseKl;
impl Functor for ReverseKl {
    const LINEAR: Option<Linear> = Some(Linear::ReverseKl);
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let qu = q.times((x - y) * A::ln_2());
        Term { loss: qu + (p - q), base: A::zero(), qu }
    }
}

/// λ KL(p‖q) + (1−λ) KL(q‖p).
#[derive(Clone, Copy)]
pub struct SymKl(pub f64);
impl Functor for SymKl {
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let (lambda, rest) = (A::of(self.0), A::of(1.0 - self.0));
        let ratio = (x - y) * A::ln_2();
        let (forward, reverse) = (p.times(-ratio) + (q - p), q.times(ratio));
        let loss = lambda * forward + rest * (reverse + (p - q));
        Term { loss, base: lambda * (q - p), qu: rest * reverse }
    }
}

/// ½ Σ|p − q|; ties have no slope.
#[derive(Clone, Copy)]
pub struct Tvd;
impl Functor for Tvd {
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let half = A::of(0.5);
        let up = half * q;
        let qu = y.if_less(x, up, x.if_less(y, -up, A::zero()));
        Term { loss: half * (p - q).abs(), base: A::zero(), qu }
    }
}

/// Amari: Σ (αp + (1−α)q − c)/(α(1−α)), c = p^α q^(1−α).
#[derive(Clone, Copy)]
pub struct Alpha(pub f64);
impl Functor for Alpha {
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let (alpha, rest) = (A::of(self.0), A::of(1.0 - self.0));
        let c = power_mean(self.0, q, p, x, y);
        // αp + (1−α)q sums to 1, and next to c nothing cancels over the row.
        let loss = (alpha * p + rest * q - c) * A::of(1.0 / (self.0 * (1.0 - self.0)));
        Term { loss, base: A::zero(), qu: c * A::of(-1.0 / self.0) }
    }
}

/// p^α q^(1−α), 0 where p is 0, and for α < 1 where q is.
#[inline(always)]
pub fn power_mean<A: Number>(alpha: f64, q: A, p: A, x: A, y: A) -> A {
    let c = (A::of(alpha) * y + A::of(1.0 - alpha) * x).exp2_unbounded();
    // Selected: −inf on one side times an exponent of 0 < 1 − α, and inf − inf on both.
    let c = A::zero().if_less(p, c, p);
    if alpha < 1.0 { A::zero().if_less(q, c, q) } else { c }
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

impl<A: Number> Mixture<A> {
    #[inline(always)]
    fn new(share: f64, x: A, y: A) -> Self {
        let (share, rest) = (A::of(share), A::of(1.0 - share));
        let gap = y - x;
        // The smaller over the larger, at most 1: nothing overflows, and near 1 nothing cancels.
        let a = (-gap.abs()).exp2();
        let pick = |student: A, teacher: A| gap.if_less(A::zero(), student, teacher);
        let m = pick(share * a + rest, share + rest * a);
        let log_m = m.log2();
        let inverse = m.inverse();
        let small = a * inverse;
        Self {
            log_p: pick(gap - log_m, -log_m) * A::ln_2(),
            log_q: pick(-log_m, -gap - log_m) * A::ln_2(),
            p: pick(small, inverse),
            q: pick(inverse, small),
        }
    }
}

/// β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q.
#[derive(Clone, Copy)]
pub struct Gjsd(pub f64);
impl Functor for Gjsd {
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let m = Mixture::new(self.0, x, y);
        let qu = A::of(1.0 - self.0) * q.times(m.log_q);
        Term { loss: A::of(self.0) * p.times(m.log_p) + qu, base: A::zero(), qu }
    }
}

/// KL(p‖m), m = αp + (1−α)q.
#[derive(Clone, Copy)]
pub struct Skl(pub f64);
impl Functor for Skl {
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let rest = A::of(1.0 - self.0);
        let m = Mixture::new(self.0, x, y);
        let loss = p.times(m.log_p) + rest * (q - p);
        Term { loss, base: A::zero(), qu: q.times(-rest * m.p) }
    }
}

/// KL(q‖m), m = (1−α)p + αq; `through` is α, or 0 with the mixture detached.
#[derive(Clone, Copy)]
pub struct Srkl {
    pub alpha: f64,
    pub through: f64,
}
impl Functor for Srkl {
    #[inline(always)]
    fn term<A: Number>(&self, q: A, p: A, x: A, y: A) -> Term<A> {
        let share = 1.0 - self.alpha;
        let m = Mixture::new(share, x, y);
        let loss = q.times(m.log_q) + A::of(share) * (p - q);
        Term { loss, base: A::zero(), qu: q.times(m.log_q - A::of(self.through) * m.q) }
    }
}
