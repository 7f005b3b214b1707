//! The row kernel of dense divergences: powers once, then loss and sum, then the gradient.
//!
//! Pass 1 reads the logits block by block and keeps 2^((z − c)·log₂e/T) of both sides, c the block's own maximum;
//! pass 2 turns them into probabilities and takes loss and Σ qu; pass 3 writes the gradient. A wide row of a
//! [`Linear`] loss takes its loss in pass 1 and skips pass 2. Centre before scaling, logarithms never of
//! probabilities, selection instead of masks.

use super::dense::{Buffers, DenseCall, blocks, finish, load};
use super::divergence::{Functor, Linear};
use super::isa::{self, LaneKernel};
use super::matrix::{Load, Store};
use super::number::Number;
use super::passes::{Combine, Factors, Powers, Terms};
use super::real::Real;
use super::scratch::{Buffer, padded};
use super::simd::Simd;
use super::{BLOCK, Matrix, Output, Slot, Workspace, narrow};
use crate::settings::NonFinite;
use std::marker::PhantomData;
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
    let stream = call.grad.is_some_and(|grad| grad.outgrows_caches());
    let mut row = Row::<S> { call, n: 0, read: &mut read, e_s, e_t, parts: Vec::new(), stream };
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
    isa::end_streams();
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
    /// Whether gradients are written past the caches.
    stream: bool,
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
            self.powers::<D>(at, [scale_s, scale_t], linear.is_some());
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
            Some(linear) => {
                let loss = self.linear_loss(linear, &student, &teacher);
                (loss, if linear == Linear::ReverseKl { loss } else { 0.0 })
            }
            None => self.terms(functor, &student, &teacher),
        };
        if let Some(grad) = &call.grad {
            let infinite = loss == f64::INFINITY && !sum.is_finite();
            let propagate = call.non_finite == NonFinite::Propagate && !infinite;
            if loss.is_finite() || propagate {
                let factor = call.softening.factor / call.softening.student;
                let scale = call.grad_factor * weight * factor;
                self.gradient(grad, scale, sum, &student, linear.map(|linear| (linear, &teacher)));
                grad.zero(self.n, call.width);
            } else {
                grad.zero(self.n, 0);
            }
        }
        finish(loss * call.softening.factor, weight, call.non_finite)
    }

    /// Pass 1 of a block.
    #[inline(always)]
    fn powers<D: Functor>(&mut self, at: Range<usize>, scales: [S::Scalar; 2], wide: bool) {
        let to = at.start..at.start + padded(at.len());
        let (student, teacher) = (&mut self.e_s[to.clone()], &mut self.e_t[to]);
        let logits = sides(self.call, self.n, at, self.read);
        let functor = PhantomData::<D>;
        self.parts.push(match wide {
            true => isa::run(Powers::<S, D, true> { logits, scales, student, teacher, functor }),
            false => isa::run(Powers::<S, D, false> { logits, scales, student, teacher, functor }),
        });
    }

    /// The loss from the blocks' sums, exact in what the blocks' centres differ by.
    fn linear_loss(&self, linear: Linear, student: &Whole, teacher: &Whole) -> f64 {
        let mut sum = 0.0;
        for part in &self.parts {
            let [c_s, c_t] = part.center.map(Real::wide);
            let (to_s, to_t) = (student.offset(c_s), teacher.offset(c_t));
            let (to, own, shift) = match linear {
                Linear::Kl => (to_t, part.sum[1], to_t - to_s),
                Linear::CrossEntropy => (to_t, part.sum[1], -to_s),
                Linear::ReverseKl => (to_s, part.sum[0], to_s - to_t),
            };
            sum += weigh(to.exp2(), part.linear + weigh(own, shift));
        }
        let log2 = match linear {
            Linear::Kl => sum / teacher.sum - teacher.log + student.log,
            Linear::CrossEntropy => sum / teacher.sum + student.log,
            Linear::ReverseKl => sum / student.sum - student.log + teacher.log,
        };
        log2 * std::f64::consts::LN_2
    }

    /// Pass 2: ℓ and Σ qu/Σ q (the rounding of the normaliser leaves the sum); base + qu replaces the teacher.
    #[inline(always)]
    fn terms<D: Functor>(&mut self, functor: &D, student: &Whole, teacher: &Whole) -> (f64, f64) {
        let mut sums = [0.0; 3];
        let single = self.parts.len() == 1;
        for (at, part) in blocks(self.call.width).zip(&self.parts) {
            let to = at.start..at.start + padded(at.len());
            let [c_s, c_t] = part.center.map(Real::wide);
            let shifts = [student.offset(c_s) - student.log, teacher.offset(c_t) - teacher.log];
            let logits = match single {
                true => kept(self.call, self.n, at, self.read),
                false => sides(self.call, self.n, at, self.read),
            };
            let (centers, shifts) = (part.center, shifts.map(S::Scalar::of));
            let scales = [S::of(student.scale), S::of(teacher.scale)];
            let (student, teacher) = (&self.e_s[to.clone()], &mut self.e_t[to]);
            let part = match single {
                true => isa::run(Terms::<S, D, true> {
                    functor,
                    logits,
                    centers,
                    scales,
                    shifts,
                    student,
                    teacher,
                }),
                false => isa::run(Terms::<S, D, false> {
                    functor,
                    logits,
                    centers,
                    scales,
                    shifts,
                    student,
                    teacher,
                }),
            };
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let [loss, sum, mass] = sums;
        (loss, sum / mass)
    }

    /// Pass 3, with the teacher's normaliser of a wide row of a [`Linear`] loss.
    #[inline(always)]
    fn gradient(
        &mut self,
        grad: &Output<'_>,
        scale: f64,
        sum: f64,
        student: &Whole,
        linear: Option<(Linear, &Whole)>,
    ) {
        for (at, part) in blocks(self.call.width).zip(&self.parts) {
            let [c_s, c_t] = part.center.map(Real::wide);
            let q = student.offset(c_s).exp2() / student.sum;
            let factors = match linear {
                Some((Linear::ReverseKl, teacher)) => {
                    let log_s = student.offset(c_s) - student.log;
                    let log_t = teacher.offset(c_t) - teacher.log;
                    let shift = log_s - log_t - sum * std::f64::consts::LOG2_E;
                    Factors::Reverse { student: scale * q * std::f64::consts::LN_2, shift }
                }
                Some((_, teacher)) => {
                    let p = teacher.offset(c_t).exp2() / teacher.sum;
                    Factors::Both { student: scale * q, teacher: -scale * p }
                }
                None => Factors::Moment { q, scale, sum: -sum },
            };
            let powers = at.start..at.start + padded(at.len());
            let (e_s, e_t) = (&self.e_s[powers.clone()], &self.e_t[powers]);
            let direct = match at.len() % S::LANES == 0 {
                // SAFETY: the logits, which may be the same memory, are not read any more.
                true => unsafe { grad.slice(self.n, at.start, at.len()) },
                false => None,
            };
            let own = direct.is_some();
            let to = match direct {
                Some(to) => to,
                None => self.read.s.take(at.len()),
            };
            let stream = own && self.stream;
            isa::run(Combine::<S> { to, student: e_s, teacher: e_t, factors, stream });
            if !own {
                grad.store(self.n, at.start, &self.read.s.keep(at.len())[..at.len()]);
            }
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
) -> [&'b [A]; 2]
where
    for<'m> Matrix<'m>: Load<A>,
{
    if let Some(pair) = in_place(call, n, &at) {
        return pair;
    }
    let (s, t) = (buffers.s.take(at.len()), buffers.t.take(at.len()));
    load(call, n, at, s, t);
    [s, t]
}

/// As [`sides`], of the block that was read last.
#[inline(always)]
fn kept<'b, A: Real>(
    call: &'b DenseCall<'_>,
    n: usize,
    at: Range<usize>,
    buffers: &'b mut Buffers<A>,
) -> [&'b [A]; 2]
where
    for<'m> Matrix<'m>: Load<A>,
{
    match in_place(call, n, &at) {
        Some(pair) => pair,
        None => [buffers.s.keep(at.len()), buffers.t.keep(at.len())],
    }
}

/// Both sides of a block where they lie: whole lanes, present on both sides, no column removed.
#[inline(always)]
fn in_place<'b, A: Real>(
    call: &'b DenseCall<'_>,
    n: usize,
    at: &Range<usize>,
) -> Option<[&'b [A]; 2]>
where
    for<'m> Matrix<'m>: Load<A>,
{
    let whole = at.len() == padded(at.len()) && call.class_mask.is_none();
    if !whole || call.teacher.width() < at.end {
        return None;
    }
    let slice = |m: &Matrix<'b>| m.slice::<A>(n, at.start, at.len());
    Some([slice(&call.student)?, slice(&call.teacher)?])
}
