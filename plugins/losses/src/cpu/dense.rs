//! The row kernel of dense logit losses: softmax of both sides, loss and gradient in two or three passes.
//!
//! Pass 1 finds maxima and normalisers block by block, pass 2 the loss and the row's sum, pass 3 the gradient;
//! one-stage divergences do 2 and 3 together, and a row of one block is read once. Numerical rules:
//! centre before scaling, logarithms never of probabilities, selection instead of masks.

use super::divergence::*;
use super::isa::{self, Kernel};
use super::matrix::{Load, Store};
use super::real::Real;
use super::scratch::{Buffer, LANES, lanes, lanes_mut, total};
use super::{BLOCK, Matrix, Output, Pool, Slot, Sums, Weights, each_row, logit_mse};
use crate::settings::{Divergence, NonFinite, Softening};
use std::marker::PhantomData;
use std::ops::Range;

/// One call on dense logits.
pub struct DenseCall<'a> {
    /// Student logits `[N, V]`.
    pub student: Matrix<'a>,
    /// Teacher logits `[N, V']`.
    pub teacher: Matrix<'a>,
    /// Gradient with respect to the student logits; may be their own memory.
    pub grad: Option<Output<'a>>,
    /// Columns that enter the softmax, at most V; the teacher is absent (−inf) beyond V'.
    pub width: usize,
    /// Columns with false leave both sides.
    pub class_mask: Option<&'a [bool]>,
    /// w of each row.
    pub weights: Weights<'a>,
    /// grad_scale / normalizer.
    pub grad_factor: f64,
    /// Temperatures and F.
    pub softening: Softening,
    /// What becomes of infinite rows.
    pub non_finite: NonFinite,
}

/// Whether [`run`] knows `divergence`.
pub fn knows(divergence: Divergence) -> bool {
    use Divergence as D;
    !matches!(
        divergence,
        D::Alpha { .. } | D::Renyi { .. } | D::Dkd { .. } | D::LogitStd | D::BceKd | D::Uld
    )
}

/// Computes value and gradient in f64 if the student's logits are f64, else in f32.
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(
    divergence: Divergence,
    call: &DenseCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error> {
    match call.student.float() {
        super::matrix::Float::F64 => dispatch::<f64, P>(divergence, call, slots, pool),
        _ => dispatch::<f32, P>(divergence, call, slots, pool),
    }
}

fn dispatch<A: Real, P: Pool>(
    divergence: Divergence,
    call: &DenseCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    let of = A::of;
    match divergence {
        Divergence::ForwardKl => rows::<A, _, P>(ForwardKl, call, slots, pool),
        Divergence::SoftCe => rows::<A, _, P>(SoftCe, call, slots, pool),
        Divergence::ReverseKl => rows::<A, _, P>(ReverseKl, call, slots, pool),
        Divergence::Tvd => rows::<A, _, P>(Tvd, call, slots, pool),
        Divergence::Gjsd { beta } => rows::<A, _, P>(Gjsd(of(beta)), call, slots, pool),
        Divergence::Skl { alpha } => rows::<A, _, P>(Skl(of(alpha)), call, slots, pool),
        Divergence::SymKl { lambda } => rows::<A, _, P>(SymKl(of(lambda)), call, slots, pool),
        Divergence::Srkl { alpha, detach } => {
            let through = if detach { A::ZERO } else { of(alpha) };
            rows::<A, _, P>(Srkl { alpha: of(alpha), through }, call, slots, pool)
        }
        Divergence::LogitMse => logit_mse::rows::<A, P>(call, slots, pool),
        other => unreachable!("{other:?} is computed by the oracle"),
    }
}

fn rows<A: Real, D: Functor<A>, P: Pool>(
    functor: D,
    call: &DenseCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    each_row(pool, slots, call.width, |range, set| {
        isa::run(RowKernel::<A, D> { functor, call, range, set, arithmetic: PhantomData });
    })
}

struct RowKernel<'k, A, D> {
    functor: D,
    call: &'k DenseCall<'k>,
    range: Range<usize>,
    set: &'k dyn Fn(usize, Slot),
    arithmetic: PhantomData<A>,
}

impl<A: Real, D: Functor<A>> Kernel for RowKernel<'_, A, D>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        let mut buffers = Buffers { s: Buffer::new(), t: Buffer::new() };
        for n in self.range.clone() {
            let weight = (self.call.weights)(n).filter(|w| *w != 0.0);
            let slot = match weight {
                Some(weight) => row(&self.functor, self.call, n, weight, &mut buffers),
                None => {
                    if let Some(grad) = &self.call.grad {
                        grad.zero(n, 0);
                    }
                    Slot::default()
                }
            };
            (self.set)(n, slot);
        }
    }
}

/// Block buffers of one thread.
pub(super) struct Buffers<A> {
    pub s: Buffer<A>,
    pub t: Buffer<A>,
}

/// Reads a block of both sides; absent and removed columns are −inf.
#[inline(always)]
pub(super) fn load<A: Real>(
    call: &DenseCall<'_>,
    n: usize,
    at: Range<usize>,
    s: &mut [A],
    t: &mut [A],
) where
    for<'m> Matrix<'m>: Load<A>,
{
    let len = at.len();
    call.student.load(n, at.start, &mut s[..len]);
    let teacher = call.teacher.width().min(at.end).saturating_sub(at.start);
    call.teacher.load(n, at.start, &mut t[..teacher]);
    if let Some(mask) = call.class_mask {
        for (k, kept) in mask[at].iter().enumerate() {
            if !kept {
                s[k] = A::NEG_INFINITY;
                t[k] = A::NEG_INFINITY;
            }
        }
    }
}

/// Blocks of a row.
#[inline(always)]
pub(super) fn blocks(width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..width).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(width))
}

/// Running maximum and sum of 2^((z − max)·c).
#[derive(Clone, Copy)]
struct Normaliser<A> {
    max: A,
    sum: f64,
    scale: A,
}

impl<A: Real> Normaliser<A> {
    #[inline(always)]
    fn new(temperature: f64) -> Self {
        Self {
            max: A::NEG_INFINITY,
            sum: 0.0,
            scale: A::of(std::f64::consts::LOG2_E / temperature),
        }
    }

    #[inline(always)]
    fn add(&mut self, block: &[A]) {
        let mut max = [A::NEG_INFINITY; LANES];
        for z in lanes(block) {
            for l in 0..LANES {
                max[l] = if z[l] > max[l] { z[l] } else { max[l] };
            }
        }
        let top = max.iter().fold(self.max, |a, &b| if b > a { b } else { a });
        if top == A::NEG_INFINITY {
            // Nothing live so far; a NaN among the −inf still decides the row.
            let nan = block.iter().find(|z| z.wide().is_nan());
            self.sum = nan.map_or(self.sum, |z| z.wide());
            return;
        }
        if top > self.max {
            self.sum *= ((self.max - top) * self.scale).exp2().wide();
            self.max = top;
        }
        let mut sum = [A::ZERO; LANES];
        for z in lanes(block) {
            for l in 0..LANES {
                sum[l] += ((z[l] - top) * self.scale).exp2();
            }
        }
        self.sum += total(sum);
    }

    /// No live logit, and no NaN either.
    #[inline(always)]
    fn is_dead(&self) -> bool {
        self.max == A::NEG_INFINITY && self.sum == 0.0
    }

    #[inline(always)]
    fn log_sum(&self) -> A {
        A::of(self.sum.log2())
    }
}

#[inline(always)]
fn row<A: Real, D: Functor<A>>(
    functor: &D,
    call: &DenseCall<'_>,
    n: usize,
    weight: f64,
    buffers: &mut Buffers<A>,
) -> Slot
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    let single = call.width <= BLOCK;
    let mut student = Normaliser::<A>::new(call.softening.student);
    let mut teacher = Normaliser::<A>::new(call.softening.teacher);
    for at in blocks(call.width) {
        let (s, t) = (buffers.s.take(at.len()), buffers.t.take(at.len()));
        load(call, n, at, s, t);
        student.add(s);
        teacher.add(t);
    }
    if student.is_dead() || teacher.is_dead() {
        if let Some(grad) = &call.grad {
            grad.zero(n, 0);
        }
        return Slot { dead: 1, ..Slot::default() };
    }
    let logs = Logs { student, teacher, log_s: student.log_sum(), log_t: teacher.log_sum() };
    let factor = call.softening.factor;
    let scale = A::of(call.grad_factor * weight * factor / call.softening.student);
    let keep = |loss: f64, sum: f64| {
        let infinite = loss == f64::INFINITY && !sum.is_finite();
        loss.is_finite() || (call.non_finite == NonFinite::Propagate && !infinite)
    };
    // Overwriting can be taken back, adding cannot.
    let early = !D::TWO_STAGE && !single && call.grad.is_some_and(|grad| !grad.accumulates());
    let (mut loss, mut sum, mut mass) = (0.0, 0.0, 0.0);
    for at in blocks(call.width) {
        let (s, t) = buffers_of(call, n, &at, buffers, single);
        let (block_loss, block_sum, block_mass) = logs.terms(functor, s, t);
        loss += block_loss;
        sum += block_sum;
        mass += block_mass;
        if early {
            logs.gradient(functor, A::ZERO, scale, s, t);
            if let Some(grad) = &call.grad {
                grad.store(n, at.start, &s[..at.len()]);
            }
        }
    }
    // Σ q u/Σ q: the rounding of the normaliser leaves the sum.
    let sum = if D::TWO_STAGE { sum / mass } else { 0.0 };
    if let Some(grad) = &call.grad {
        if !keep(loss, sum) {
            grad.zero(n, 0);
        } else {
            if !early {
                for at in blocks(call.width) {
                    let (s, t) = buffers_of(call, n, &at, buffers, single);
                    logs.gradient(functor, A::of(sum), scale, s, t);
                    grad.store(n, at.start, &s[..at.len()]);
                }
            }
            grad.zero(n, call.width);
        }
    }
    finish(loss * factor, weight, call.non_finite)
}

/// The slot of a row whose loss is `loss`.
#[inline(always)]
pub(super) fn finish(loss: f64, weight: f64, non_finite: NonFinite) -> Slot {
    let infinite = !loss.is_finite();
    let dropped = infinite && non_finite == NonFinite::ZeroAndCount;
    Slot {
        value: if dropped { 0.0 } else { weight * loss },
        dead: 0,
        infinite: u32::from(infinite),
    }
}

/// The buffers with block `at` in them; a row of one block is there already.
#[inline(always)]
fn buffers_of<'b, A: Real>(
    call: &DenseCall<'_>,
    n: usize,
    at: &Range<usize>,
    buffers: &'b mut Buffers<A>,
    single: bool,
) -> (&'b mut [A], &'b mut [A])
where
    for<'m> Matrix<'m>: Load<A>,
{
    if single {
        return (buffers.s.keep(at.len()), buffers.t.keep(at.len()));
    }
    let (s, t) = (buffers.s.take(at.len()), buffers.t.take(at.len()));
    load(call, n, at.clone(), s, t);
    (s, t)
}

/// Normalisers of both sides.
struct Logs<A> {
    student: Normaliser<A>,
    teacher: Normaliser<A>,
    log_s: A,
    log_t: A,
}

impl<A: Real> Logs<A> {
    #[inline(always)]
    fn term<D: Functor<A>>(&self, functor: &D, s: A, t: A) -> (A, Term<A>) {
        let x = (s - self.student.max) * self.student.scale - self.log_s;
        let y = (t - self.teacher.max) * self.teacher.scale - self.log_t;
        let (q, p) = (x.exp2(), y.exp2());
        (q, functor.term(q, p, x, y))
    }

    /// ℓ, Σ q u and Σ q of a block.
    #[inline(always)]
    fn terms<D: Functor<A>>(&self, functor: &D, s: &[A], t: &[A]) -> (f64, f64, f64) {
        let (mut loss, mut sum) = ([A::ZERO; LANES], [A::ZERO; LANES]);
        let mut mass = [A::ZERO; LANES];
        for (s, t) in lanes(s).iter().zip(lanes(t)) {
            for l in 0..LANES {
                let (q, term) = self.term(functor, s[l], t[l]);
                loss[l] += term.loss;
                if D::TWO_STAGE {
                    sum[l] += if q == A::ZERO { A::ZERO } else { q * term.u };
                    mass[l] += q;
                }
            }
        }
        (total(loss), total(sum), total(mass))
    }

    /// Replaces the student's block by the gradient.
    #[inline(always)]
    fn gradient<D: Functor<A>>(&self, functor: &D, sum: A, scale: A, s: &mut [A], t: &[A]) {
        for (s, t) in lanes_mut(s).iter_mut().zip(lanes(t)) {
            for l in 0..LANES {
                let (q, term) = self.term(functor, s[l], t[l]);
                let mut g = term.base;
                if D::TWO_STAGE {
                    g += if q == A::ZERO { A::ZERO } else { q * (term.u - sum) };
                }
                s[l] = g * scale;
            }
        }
    }
}
