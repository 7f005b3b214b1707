//! The passes over a block of a dense row, each a function of its own, so that its loop has all registers to itself.

use super::divergence::{Functor, Linear};
use super::isa::{self, Kernel};
use super::real::Real;
use super::rows::{Part, center};
use super::simd::Simd;
use std::marker::PhantomData;

/// Pass 1: powers of both sides, their sums and, of a `WIDE` row of a [`Linear`] loss, the loss's.
pub(super) struct Powers<'p, S: Simd, D, const WIDE: bool> {
    /// Logits of student and teacher, whole lanes of them.
    pub logits: [&'p [S::Scalar]; 2],
    /// log₂e/T of both.
    pub scales: [S::Scalar; 2],
    pub student: &'p mut [S::Scalar],
    /// Of a wide reverse divergence the difference of the exponents instead.
    pub teacher: &'p mut [S::Scalar],
    pub functor: PhantomData<D>,
}

impl<S: Simd, D: Functor, const WIDE: bool> Kernel for Powers<'_, S, D, WIDE> {
    type Result = Part<S::Scalar>;
    #[inline(always)]
    fn run(self) -> Part<S::Scalar> {
        let [s, t] = self.logits;
        let center = [center::<S>(s), center::<S>(t)];
        let [c_s, c_t] = center.map(S::splat);
        let [k_s, k_t] = self.scales.map(S::splat);
        let reverse = matches!(D::LINEAR, Some(Linear::ReverseKl));
        let (mut sum_s, mut sum_t, mut sum_l) = (S::zero(), S::zero(), S::zero());
        let logits = s.chunks_exact(S::LANES).zip(t.chunks_exact(S::LANES));
        let powers = self.student.chunks_exact_mut(S::LANES);
        let powers = powers.zip(self.teacher.chunks_exact_mut(S::LANES));
        for ((s, t), (e_s, e_t)) in logits.zip(powers) {
            let x = (S::load(s) - c_s) * k_s;
            let y = (S::load(t) - c_t) * k_t;
            let (q, p) = (x.exp2(), y.exp2());
            q.store(e_s);
            let kept = if WIDE && reverse { x - y } else { p };
            kept.store(e_t);
            sum_s = sum_s + q;
            sum_t = sum_t + p;
            match D::LINEAR {
                Some(Linear::Kl) if WIDE => sum_l = sum_l + p.times(y - x),
                Some(Linear::CrossEntropy) if WIDE => sum_l = sum_l + p.times(-x),
                Some(Linear::ReverseKl) if WIDE => sum_l = sum_l + q.times(x - y),
                _ => {}
            }
        }
        Part { center, sum: [sum_s.total(), sum_t.total()], linear: sum_l.total() }
    }
}

/// Pass 2: base + qu takes the place of the teacher's powers; the result is Σ ℓ, Σ qu, Σ q.
pub(super) struct Terms<'p, S: Simd, D, const SINGLE: bool> {
    pub functor: &'p D,
    /// Logits of student and teacher, whole lanes of them.
    pub logits: [&'p [S::Scalar]; 2],
    /// Their centres, log₂e/T and what makes them log-probabilities.
    pub centers: [S::Scalar; 2],
    pub scales: [S; 2],
    pub shifts: [S::Scalar; 2],
    pub student: &'p [S::Scalar],
    pub teacher: &'p mut [S::Scalar],
}

impl<S: Simd, D: Functor, const SINGLE: bool> Kernel for Terms<'_, S, D, SINGLE> {
    type Result = [f64; 3];
    #[inline(always)]
    fn run(self) -> [f64; 3] {
        // Of the rounded logarithms, so that probabilities and logarithms err alike.
        let [f_s, f_t] = self.shifts.map(|shift| S::of(shift.wide().exp2()));
        let [c_s, c_t] = self.centers.map(S::splat);
        let [d_s, d_t] = self.shifts.map(S::splat);
        let [k_s, k_t] = self.scales;
        let (mut loss, mut sum, mut mass) = (S::zero(), S::zero(), S::zero());
        let [s, t] = self.logits.map(|logits| logits.chunks_exact(S::LANES));
        let powers = self.student.chunks_exact(S::LANES);
        let powers = powers.zip(self.teacher.chunks_exact_mut(S::LANES));
        for ((s, t), (e_s, e_t)) in s.zip(t).zip(powers) {
            let x = ((S::load(s) - c_s) * k_s) + d_s;
            let y = ((S::load(t) - c_t) * k_t) + d_t;
            // A narrow row affords powers of the very logarithms, whose rounding then leaves the loss.
            let (q, p) = match SINGLE {
                true => (x.exp2(), y.exp2()),
                false => (S::load(e_s) * f_s, S::load(e_t) * f_t),
            };
            let term = self.functor.term(q, p, x, y);
            loss = loss + term.loss;
            sum = sum + term.qu;
            mass = mass + q;
            (term.base + term.qu).store(e_t);
        }
        [loss.total(), sum.total(), mass.total()]
    }
}

/// Pass 3: the gradient from what the passes before kept.
pub(super) struct Combine<'p, S: Simd> {
    pub to: &'p mut [S::Scalar],
    pub student: &'p [S::Scalar],
    pub teacher: &'p [S::Scalar],
    pub factors: Factors,
    /// Whether to write past the caches.
    pub stream: bool,
}

/// What a block's powers are multiplied by.
#[derive(Clone, Copy)]
pub(super) enum Factors {
    /// scale·(q − p): scale·q of a power of the student, −scale·p of one of the teacher.
    Both { student: f64, teacher: f64 },
    /// scale·q·(ln q − ln p − ℓ): scale·q·ln 2 of a power of the student; what completes a difference of exponents.
    Reverse { student: f64, shift: f64 },
    /// scale·(base + qu − q·sum): q of a power of the student; scale; −sum.
    Moment { q: f64, scale: f64, sum: f64 },
}

impl<S: Simd> Kernel for Combine<'_, S> {
    type Result = ();
    #[inline(always)]
    fn run(self) {
        if self.stream && isa::is_line(self.to) {
            self.write::<true>();
        } else {
            self.write::<false>();
        }
    }
}

/// Writes a gradient; a function and no closure, which would not have the instruction set of its caller.
#[inline(always)]
fn put<S: Simd, const STREAM: bool>(gradient: S, to: &mut [S::Scalar]) {
    if STREAM {
        // SAFETY: the caller looked at the address, and the kernel of its rows ends its streams.
        unsafe { gradient.stream(to) }
    } else {
        gradient.store(to);
    }
}

impl<S: Simd> Combine<'_, S> {
    #[inline(always)]
    fn write<const STREAM: bool>(self) {
        let powers = self.student.chunks_exact(S::LANES).zip(self.teacher.chunks_exact(S::LANES));
        let all = self.to.chunks_exact_mut(S::LANES).zip(powers);
        match self.factors {
            Factors::Both { student, teacher } => {
                let (on_s, on_t) = (S::of(student), S::of(teacher));
                for (to, (e_s, e_t)) in all {
                    let gradient = S::load(e_s).mul_add(on_s, S::load(e_t) * on_t);
                    put::<S, STREAM>(gradient, to);
                }
            }
            Factors::Reverse { student, shift } => {
                let (on_s, shift) = (S::of(student), S::of(shift));
                for (to, (e_s, difference)) in all {
                    let gradient = (S::load(e_s) * on_s).times(S::load(difference) + shift);
                    put::<S, STREAM>(gradient, to);
                }
            }
            Factors::Moment { q, scale, sum } => {
                let (q, scale, sum) = (S::of(q), S::of(scale), S::of(sum));
                for (to, (e_s, e_t)) in all {
                    // One rounding of q·sum against qu: a one-hot row has gradient 0.
                    let gradient = (S::load(e_s) * q).mul_add(sum, S::load(e_t)) * scale;
                    put::<S, STREAM>(gradient, to);
                }
            }
        }
    }
}

/// The gradient of a row against labels or kept columns: powers · on, and `less` of some columns.
pub(super) struct Scale<'p, S: Simd> {
    pub to: &'p mut [S::Scalar],
    pub powers: &'p [S::Scalar],
    pub less: Option<&'p [S::Scalar]>,
    pub on: S,
    /// Whether to write past the caches.
    pub stream: bool,
}

impl<S: Simd> Kernel for Scale<'_, S> {
    type Result = ();
    #[inline(always)]
    fn run(self) {
        if self.stream && isa::is_line(self.to) {
            self.write::<true>();
        } else {
            self.write::<false>();
        }
    }
}

impl<S: Simd> Scale<'_, S> {
    #[inline(always)]
    fn write<const STREAM: bool>(self) {
        let all = self.to.chunks_exact_mut(S::LANES).zip(self.powers.chunks_exact(S::LANES));
        match self.less {
            None => {
                for (to, e) in all {
                    put::<S, STREAM>(S::load(e) * self.on, to);
                }
            }
            Some(less) => {
                for ((to, e), less) in all.zip(less.chunks_exact(S::LANES)) {
                    put::<S, STREAM>(S::load(e).mul_add(self.on, S::load(less)), to);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
