//! The row kernel of dense divergences: powers once, then loss and sum, then the gradient.
//!
//! Pass 1 reads the logits block by block and keeps 2^((z − c)·log₂e/T) of both sides, c the block's own maximum;
//! pass 2 turns them into probabilities and takes loss and Σ qu; pass 3 writes the gradient. A wide row of a
//! [`Linear`] loss takes its loss in pass 1 and skips pass 2. Centre before scaling, logarithms never of
//! probabilities, selection instead of masks.

use super::dense::{Buffers, DenseCall, blocks, finish, load};
use super::divergence::{Functor, Linear};
use super::isa::LaneKernel;
use super::matrix::{Load, Store};
use super::number::Number;
use super::real::Real;
use super::scratch::{Buffer, padded};
use super::simd::Simd;
use super::{BLOCK, Matrix, Output, Slot, Workspace, narrow};
use crate::settings::NonFinite;
use std::ops::Range;

/// Rows of one worker.
pub struct RowKernel<'k, D, A> {
    pub functor: D,
    pub call: &'k DenseCall<'k>,
    pub range: Range<usize>,
    pub worker: usize,
    pub workspace: &'k Workspace<'k, A>,
    pub set: &'k dyn Fn(usize, Slot),
}

impl<D: Functor> LaneKernel for RowKernel<'_, D, f32> {
    type Result = ();
    #[inline(always)]
    fn run<S: Simd<Scalar = f32>>(self) {
        if self.call.width <= narrow::COLUMNS {
            narrow::run::<S, D>(self)
        } else {
            run::<S, D>(self)
        }
    }
}

#[inline(always)]
pub fn run<S: Simd, D: Functor>(kernel: RowKernel<'_, D, S::Scalar>)
where
    for<'m> Matrix<'m>: Load<S::Scalar>,
    for<'m> Output<'m>: Store<S::Scalar>,
{
    let call = kernel.call;
    // SAFETY: the pool runs one range of a worker at a time.
    let wide = unsafe { kernel.workspace.rows(kernel.worker) };
    let mut read = Buffers { s: Buffer::new(), t: Buffer::new() };
    let mut narrow = Buffers { s: Buffer::new(), t: Buffer::new() };
    let (e_s, e_t) = match call.width <= BLOCK {
        true => (narrow.s.take(call.width), narrow.t.take(call.width)),
        false => wide,
    };
    let mut row = Row::<S> { call, n: 0, read: &mut read, e_s, e_t, parts: Vec::new() };
    for n in kernel.range.clone() {
        row.n = n;
        let slot = match (call.weights)(n).filter(|w| *w != 0.0) {
            Some(weight) => row.run(&kernel.functor, weight),
            None => {
                if let Some(grad) = &call.grad {
                    grad.zero(n, 0);
                }
                Slot::default()
            }
        };
        (kernel.set)(n, slot);
    }
}

/// What pass 1 learned of a block: centres, Σ 2^x of both sides, Σ p′·r′ of a linear loss.
pub(super) struct Part<A> {
    pub center: [A; 2],
    pub sum: [f64; 2],
    pub linear: f64,
}

/// A row being worked on.
struct Row<'r, S: Simd> {
    call: &'r DenseCall<'r>,
    n: usize,
    read: &'r mut Buffers<S::Scalar>,
    /// Powers of the student; pass 2 and 3 read them.
    e_s: &'r mut [S::Scalar],
    /// Powers of the teacher, later base + qu.
    e_t: &'r mut [S::Scalar],
    parts: Vec<Part<S::Scalar>>,
}

/// A side's normaliser.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    /// log₂e/T, as the lanes have it.
    pub scale: f64,
    pub max: f64,
    pub sum: f64,
    /// log₂ of `sum`.
    pub log: f64,
}

impl Whole {
    /// log₂ of how much a block's centre lies below the row's.
    pub fn offset(&self, center: f64) -> f64 {
        (center - self.max) * self.scale
    }
}

/// w·x, 0 for w = 0 whatever x.
pub(super) fn weigh(w: f64, x: f64) -> f64 {
    if w == 0.0 { 0.0 } else { w * x }
}

impl<S: Simd> Row<'_, S>
where
    for<'m> Matrix<'m>: Load<S::Scalar>,
    for<'m> Output<'m>: Store<S::Scalar>,
{
    #[inline(always)]
    fn run<D: Functor>(&mut self, functor: &D, weight: f64) -> Slot {
        let call = self.call;
        let (scale_s, scale_t) =
            (scale::<S>(call.softening.student), scale::<S>(call.softening.teacher));
        let linear = if call.width > BLOCK { D::LINEAR } else { None };
        self.parts.clear();
        for at in blocks(call.width) {
            self.powers(at, scale_s, scale_t, linear);
        }
        let (Some(student), Some(teacher)) =
            (whole(&self.parts, 0, scale_s), whole(&self.parts, 1, scale_t))
        else {
            if let Some(grad) = &call.grad {
                grad.zero(self.n, 0);
            }
            return Slot { dead: 1, ..Slot::default() };
        };
        let (loss, sum) = match linear {
            Some(linear) => (self.linear_loss(linear, &student, &teacher), 0.0),
            None => self.terms(functor, &student, &teacher),
        };
        if let Some(grad) = &call.grad {
            let infinite = loss == f64::INFINITY && !sum.is_finite();
            let propagate = call.non_finite == NonFinite::Propagate && !infinite;
            if loss.is_finite() || propagate {
                let factor = call.softening.factor / call.softening.student;
                let scale = call.grad_factor * weight * factor;
                let teacher = linear.map(|_| teacher);
                self.gradient(grad, scale, sum, &student, teacher.as_ref());
                grad.zero(self.n, call.width);
            } else {
                grad.zero(self.n, 0);
            }
        }
        finish(loss * call.softening.factor, weight, call.non_finite)
    }

    /// Pass 1 of a block.
    #[inline(always)]
    fn powers(
        &mut self,
        at: Range<usize>,
        scale_s: S::Scalar,
        scale_t: S::Scalar,
        linear: Option<Linear>,
    ) {
        let to = at.start..at.start + padded(at.len());
        let (e_s, e_t) = (&mut self.e_s[to.clone()], &mut self.e_t[to]);
        let (s, t) = sides(self.call, self.n, at, self.read);
        let center = [center::<S>(s), center::<S>(t)];
        let (c_s, c_t) = (S::splat(center[0]), S::splat(center[1]));
        let (scale_s, scale_t) = (S::splat(scale_s), S::splat(scale_t));
        let (mut sum_s, mut sum_t, mut sum_l) = (S::zero(), S::zero(), S::zero());
        let lanes = S::LANES;
        let blocks = s.chunks_exact(lanes).zip(t.chunks_exact(lanes));
        for ((s, t), (e_s, e_t)) in
            blocks.zip(e_s.chunks_exact_mut(lanes).zip(e_t.chunks_exact_mut(lanes)))
        {
            let x = (S::load(s) - c_s) * scale_s;
            let y = (S::load(t) - c_t) * scale_t;
            let (q, p) = (x.exp2(), y.exp2());
            q.store(e_s);
            p.store(e_t);
            sum_s = sum_s + q;
            sum_t = sum_t + p;
            match linear {
                Some(Linear::Kl) => sum_l = sum_l + p.times(y - x),
                Some(Linear::CrossEntropy) => sum_l = sum_l + p.times(-x),
                None => {}
            }
        }
        let (sum, linear) = ([sum_s.total(), sum_t.total()], sum_l.total());
        self.parts.push(Part { center, sum, linear });
    }

    /// Σ p·r from the blocks' sums, exact in what the blocks' centres differ by.
    fn linear_loss(&self, linear: Linear, student: &Whole, teacher: &Whole) -> f64 {
        let mut sum = 0.0;
        for part in &self.parts {
            let [c_s, c_t] = part.center.map(Real::wide);
            let (to_s, to_t) = (student.offset(c_s), teacher.offset(c_t));
            let shift = if linear == Linear::Kl { to_t - to_s } else { -to_s };
            sum += weigh(to_t.exp2(), part.linear + weigh(part.sum[1], shift));
        }
        let rest = if linear == Linear::Kl { teacher.log } else { 0.0 };
        (sum / teacher.sum - rest + student.log) * std::f64::consts::LN_2
    }

    /// Pass 2: ℓ and Σ qu/Σ q (the rounding of the normaliser leaves the sum); base + qu replaces the teacher.
    #[inline(always)]
    fn terms<D: Functor>(&mut self, functor: &D, student: &Whole, teacher: &Whole) -> (f64, f64) {
        let (mut loss, mut sum, mut mass) = (0.0, 0.0, 0.0);
        let lanes = S::LANES;
        let single = self.parts.len() == 1;
        for (at, part) in blocks(self.call.width).zip(&self.parts) {
            let to = at.start..at.start + padded(at.len());
            let [c_s, c_t] = part.center;
            let (to_s, to_t) = (student.offset(c_s.wide()), teacher.offset(c_t.wide()));
            let (d_s, d_t) = (S::Scalar::of(to_s - student.log), S::Scalar::of(to_t - teacher.log));
            // Of the rounded logarithms, so that probabilities and logarithms err alike.
            let (f_s, f_t) = match single {
                true => (S::zero(), S::zero()),
                false => (S::of(d_s.wide().exp2()), S::of(d_t.wide().exp2())),
            };
            let (d_s, d_t) = (S::splat(d_s), S::splat(d_t));
            let (c_s, c_t) = (S::splat(c_s), S::splat(c_t));
            let (k_s, k_t) = (S::of(student.scale), S::of(teacher.scale));
            let (mut l, mut u, mut m) = (S::zero(), S::zero(), S::zero());
            let (s, t) = match single {
                true => kept(self.call, self.n, at, self.read),
                false => sides(self.call, self.n, at, self.read),
            };
            let logits = s.chunks_exact(lanes).zip(t.chunks_exact(lanes));
            let powers = self.e_s[to.clone()].chunks_exact(lanes);
            let powers = powers.zip(self.e_t[to].chunks_exact_mut(lanes));
            for ((s, t), (e_s, e_t)) in logits.zip(powers) {
                let x = ((S::load(s) - c_s) * k_s) + d_s;
                let y = ((S::load(t) - c_t) * k_t) + d_t;
                // A narrow row affords powers of the very logarithms, whose rounding then leaves the loss.
                let (q, p) = match single {
                    true => (x.exp2(), y.exp2()),
                    false => (S::load(e_s) * f_s, S::load(e_t) * f_t),
                };
                let term = functor.term(q, p, x, y);
                l = l + term.loss;
                u = u + term.qu;
                m = m + q;
                (term.base + term.qu).store(e_t);
            }
            loss += l.total();
            sum += u.total();
            mass += m.total();
        }
        (loss, sum / mass)
    }

    /// Pass 3: scale·(base + qu − q·sum), or with the teacher's normaliser scale·(q − p).
    #[inline(always)]
    fn gradient(
        &mut self,
        grad: &Output<'_>,
        scale: f64,
        sum: f64,
        student: &Whole,
        teacher: Option<&Whole>,
    ) {
        for (at, part) in blocks(self.call.width).zip(&self.parts) {
            let [c_s, c_t] = part.center.map(Real::wide);
            let q = student.offset(c_s).exp2() / student.sum;
            let (on_s, on_t) = match teacher {
                Some(teacher) => (scale * q, -scale * teacher.offset(c_t).exp2() / teacher.sum),
                None => (0.0, scale),
            };
            let factors = Factors {
                on_s: S::of(on_s),
                on_t: S::of(on_t),
                q: S::of(q),
                sum: S::of(-sum),
                has_teacher: teacher.is_some(),
            };
            let powers = at.start..at.start + padded(at.len());
            let (e_s, e_t) = (&self.e_s[powers.clone()], &self.e_t[powers]);
            let direct = match at.len() % S::LANES == 0 {
                // SAFETY: the logits, which may be the same memory, are not read any more.
                true => unsafe { grad.slice(self.n, at.start, at.len()) },
                false => None,
            };
            match direct {
                Some(to) => combine(to, e_s, e_t, factors),
                None => {
                    let to = self.read.s.take(at.len());
                    combine(to, e_s, e_t, factors);
                    grad.store(self.n, at.start, &to[..at.len()]);
                }
            }
        }
    }
}

/// What a block's powers are multiplied by.
#[derive(Clone, Copy)]
struct Factors<S> {
    on_s: S,
    on_t: S,
    q: S,
    sum: S,
    has_teacher: bool,
}

/// Gradients of a block from its powers. A function and no closure: a closure that is not inlined has no instructions of
/// its caller's instruction set, and calls each of them.
#[inline(always)]
fn combine<S: Simd>(
    to: &mut [S::Scalar],
    e_s: &[S::Scalar],
    e_t: &[S::Scalar],
    factors: Factors<S>,
) {
    let Factors { on_s, on_t, q, sum, has_teacher } = factors;
    let powers = e_s.chunks_exact(S::LANES).zip(e_t.chunks_exact(S::LANES));
    let both = to.chunks_exact_mut(S::LANES).zip(powers);
    if has_teacher {
        for (to, (e_s, e_t)) in both {
            S::load(e_s).mul_add(on_s, S::load(e_t) * on_t).store(to);
        }
    } else {
        for (to, (e_s, e_t)) in both {
            // One rounding of q·sum against qu: a one-hot row has gradient 0.
            ((S::load(e_s) * q).mul_add(sum, S::load(e_t)) * on_t).store(to);
        }
    }
}

/// The normaliser of a side; `None` if it has no live logit, and no NaN either.
pub(super) fn whole<A: Real>(parts: &[Part<A>], side: usize, scale: A) -> Option<Whole> {
    // NaN sums take part, so that NaN decides the row.
    let live = || parts.iter().filter(|part| part.sum[side] != 0.0);
    let max = live().map(|part| part.center[side].wide()).fold(f64::NEG_INFINITY, f64::max);
    let mut whole = Whole { scale: scale.wide(), max, sum: 0.0, log: 0.0 };
    let share =
        |part: &Part<A>| weigh(whole.offset(part.center[side].wide()).exp2(), part.sum[side]);
    whole.sum = match parts {
        [part] => part.sum[side],
        _ => live().map(share).sum(),
    };
    whole.log = whole.sum.log2();
    (max != f64::NEG_INFINITY).then_some(whole)
}

#[inline(always)]
pub(super) fn scale<S: Simd>(temperature: f64) -> S::Scalar {
    S::Scalar::of(std::f64::consts::LOG2_E / temperature)
}

/// The largest logit of a block; 0 if none is live, so that −inf minus it stays −inf.
#[inline(always)]
pub(super) fn center<S: Simd>(block: &[S::Scalar]) -> S::Scalar {
    let mut max = [S::of(f64::NEG_INFINITY); 4];
    let mut groups = block.chunks_exact(4 * S::LANES);
    for group in &mut groups {
        for (max, z) in max.iter_mut().zip(group.chunks_exact(S::LANES)) {
            *max = S::load(z).max(*max);
        }
    }
    for z in groups.remainder().chunks_exact(S::LANES) {
        max[0] = S::load(z).max(max[0]);
    }
    let top = max[0].max(max[1]).max(max[2].max(max[3])).top();
    if top == S::Scalar::NEG_INFINITY { S::Scalar::ZERO } else { top }
}

/// The same of every lane's own largest logit.
#[inline(always)]
pub(super) fn center_of<S: Simd>(most: S) -> S {
    S::of(f64::NEG_INFINITY).if_less(most, most, S::zero())
}

/// A block of both sides, padded to whole lanes: where it lies if it can be used so, else copied.
#[inline(always)]
fn sides<'b, A: Real>(
    call: &'b DenseCall<'_>,
    n: usize,
    at: Range<usize>,
    buffers: &'b mut Buffers<A>,
) -> (&'b [A], &'b [A])
where
    for<'m> Matrix<'m>: Load<A>,
{
    if let Some(pair) = in_place(call, n, &at) {
        return pair;
    }
    let (s, t) = (buffers.s.take(at.len()), buffers.t.take(at.len()));
    load(call, n, at, s, t);
    (s, t)
}

/// As [`sides`], of the block that was read last.
#[inline(always)]
fn kept<'b, A: Real>(
    call: &'b DenseCall<'_>,
    n: usize,
    at: Range<usize>,
    buffers: &'b mut Buffers<A>,
) -> (&'b [A], &'b [A])
where
    for<'m> Matrix<'m>: Load<A>,
{
    match in_place(call, n, &at) {
        Some(pair) => pair,
        None => (buffers.s.keep(at.len()), buffers.t.keep(at.len())),
    }
}

/// Both sides of a block where they lie: whole lanes, present on both sides, no column removed.
#[inline(always)]
fn in_place<'b, A: Real>(
    call: &'b DenseCall<'_>,
    n: usize,
    at: &Range<usize>,
) -> Option<(&'b [A], &'b [A])>
where
    for<'m> Matrix<'m>: Load<A>,
{
    let whole = at.len() == padded(at.len()) && call.class_mask.is_none();
    if !whole || call.teacher.width() < at.end {
        return None;
    }
    let slice = |m: &Matrix<'b>| m.slice::<A>(n, at.start, at.len());
    Some((slice(&call.student)?, slice(&call.teacher)?))
}
