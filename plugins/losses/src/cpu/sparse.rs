//! Forward KL against a teacher that kept only its top-k: one pass of powers over the student, one for the gradient.
//!
//! Kept columns leave the block before its powers are summed, so the mass of the rest is a sum of its own and never
//! a difference from 1. What concerns kept columns only is f64.

use super::dense::{blocks, finish};
use super::isa::{self, LaneKernel};
use super::matrix::{Float, Load, Store};
use super::number::Number;
use super::passes::Scale;
use super::real::Real;
use super::rows::{Part, center, scale, weigh, whole};
use super::scratch::{Buffer, padded};
use super::simd::Simd;
use super::{BLOCK, Matrix, Output, Pool, Slot, Sums, Weights, Workspace, each_row_by_worker};
use crate::settings::{NonFinite, Softening, SparseMode};
use std::ops::Range;

/// What the teacher says of a row.
#[derive(Clone, Debug, Default)]
pub struct Teacher {
    /// Kept columns, ascending, with ln p.
    pub kept: Vec<(usize, f64)>,
    /// ln of the mass outside.
    pub rest: f64,
}

/// One call.
pub struct SparseCall<'a> {
    /// Student logits `[N, V]`.
    pub student: Matrix<'a>,
    /// The teacher of each row that counts; `None`: it has no live entry.
    pub teachers: &'a [Option<Teacher>],
    /// Gradient with respect to the student logits; may be their own memory.
    pub grad: Option<Output<'a>>,
    /// w of each row.
    pub weights: Weights<'a>,
    /// grad_scale / normalizer.
    pub grad_factor: f64,
    /// What becomes of the mass outside.
    pub mode: SparseMode,
    /// Temperatures and F.
    pub softening: Softening,
    /// What becomes of infinite rows.
    pub non_finite: NonFinite,
}

/// Computes value and gradient in f64 if the student's logits are f64, else in f32.
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(
    call: &SparseCall<'_>,
    slots: &mut [Slot],
    scratch: &mut [u8],
    pool: &P,
) -> Result<Sums, P::Error> {
    let (width, workers) = (call.student.width(), pool.workers());
    if call.student.float() == Float::F64 {
        let workspace = &Workspace::<f64>::new(scratch, width, workers);
        return each_row_by_worker(pool, slots, width, |range, worker, set| {
            rows::<f64>(SparseKernel { call, range, worker, workspace, set });
        });
    }
    let workspace = &Workspace::<f32>::new(scratch, width, workers);
    each_row_by_worker(pool, slots, width, |range, worker, set| {
        isa::run_lanes(SparseKernel { call, range, worker, workspace, set });
    })
}

struct SparseKernel<'k, A> {
    call: &'k SparseCall<'k>,
    range: Range<usize>,
    worker: usize,
    workspace: &'k Workspace<'k, A>,
    set: &'k dyn Fn(usize, Slot),
}

impl LaneKernel for SparseKernel<'_, f32> {
    type Result = ();
    #[inline(always)]
    fn run<S: Simd<Scalar = f32>>(self) {
        rows::<S>(self);
    }
}

#[inline(always)]
fn rows<S: Simd>(kernel: SparseKernel<'_, S::Scalar>)
where
    for<'m> Matrix<'m>: Load<S::Scalar>,
    for<'m> Output<'m>: Store<S::Scalar>,
{
    let call = kernel.call;
    // SAFETY: the pool runs one range of a worker at a time.
    let wide = unsafe { kernel.workspace.rows(kernel.worker) }.0;
    let (mut read, mut narrow) = (Buffer::new(), Buffer::new());
    let width = call.student.width();
    let powers = if width <= BLOCK { narrow.take(width) } else { wide };
    let stream = call.grad.is_some_and(|grad| grad.outgrows_caches());
    let (parts, kept) = (Vec::new(), Vec::new());
    let mut row = Row::<S> { call, n: 0, read: &mut read, powers, parts, kept, stream };
    for n in kernel.range.clone() {
        row.n = n;
        let slot = match (call.weights)(n).filter(|w| *w != 0.0) {
            Some(weight) => row.run(weight),
            None => {
                row.zero();
                Slot::default()
            }
        };
        (kernel.set)(n, slot);
    }
    isa::end_streams();
}

struct Row<'r, S: Simd> {
    call: &'r SparseCall<'r>,
    n: usize,
    read: &'r mut Buffer<S::Scalar>,
    powers: &'r mut [S::Scalar],
    parts: Vec<Part<S::Scalar>>,
    /// Student logits of the kept columns over T, base 2, with p.
    kept: Vec<(f64, f64)>,
    /// Whether gradients are written past the caches.
    stream: bool,
}

/// log₂ Σ 2^x.
fn log_sum(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        // Of nothing, or of nothing but −inf; NaN stays.
        return x.fold(top, |sum, x| sum + x);
    }
    top + x.map(|x| (x - top).exp2()).sum::<f64>().log2()
}

impl<S: Simd> Row<'_, S>
where
    for<'m> Matrix<'m>: Load<S::Scalar>,
    for<'m> Output<'m>: Store<S::Scalar>,
{
    fn zero(&self) {
        if let Some(grad) = &self.call.grad {
            grad.zero(self.n, 0);
        }
    }

    #[inline(always)]
    fn run(&mut self, weight: f64) -> Slot {
        let call = self.call;
        let dead = Slot { dead: 1, ..Slot::default() };
        let Some(teacher) = &call.teachers[self.n] else {
            self.zero();
            return dead;
        };
        let k = scale::<S>(call.softening.student);
        self.parts.clear();
        self.kept.clear();
        let mut next = 0;
        for at in blocks(call.student.width()) {
            let end = next + teacher.kept[next..].partition_point(|(column, _)| *column < at.end);
            self.block(at, &teacher.kept[next..end], k);
            next = end;
        }
        let rest = whole(&self.parts, 0, k);
        let outside =
            rest.map_or(f64::NEG_INFINITY, |rest| rest.sum.log2() + rest.max * rest.scale);
        let inside = log_sum(self.kept.iter().map(|(x, _)| *x));
        let all = log_sum([inside, outside].into_iter());
        if all == f64::NEG_INFINITY {
            self.zero();
            return dead;
        }
        let base = if call.mode == SparseMode::BothRenorm { inside } else { all };
        let undefined = base == f64::NEG_INFINITY;
        let mut loss = if undefined { f64::INFINITY } else { 0.0 };
        if !undefined {
            for ((_, log_p), (x, p)) in teacher.kept.iter().zip(&self.kept) {
                loss += weigh(*p, log_p - (x - base) * std::f64::consts::LN_2);
            }
            if call.mode == SparseMode::Tail {
                let log_q = (outside - all) * std::f64::consts::LN_2;
                loss += weigh(teacher.rest.exp(), teacher.rest - log_q);
            }
        }
        if let Some(grad) = &call.grad {
            let keep = loss.is_finite() || call.non_finite == NonFinite::Propagate;
            if keep && !undefined {
                let factor = call.softening.factor / call.softening.student;
                // q − p_r q/q_r of the rest, per unit of power; each term by itself, since 1/q_r may be infinite.
                let rest = |log_unit: f64| match call.mode {
                    _ if outside == f64::NEG_INFINITY => 0.0,
                    SparseMode::BothRenorm => 0.0,
                    SparseMode::TeacherRenorm => (log_unit - all).exp2(),
                    SparseMode::Tail => {
                        let log_p = teacher.rest * std::f64::consts::LOG2_E;
                        (log_unit - all).exp2() - (log_p + log_unit - outside).exp2()
                    }
                };
                self.gradient(grad, teacher, call.grad_factor * weight * factor, base, rest);
            } else {
                grad.zero(self.n, 0);
            }
        }
        finish(loss * call.softening.factor, weight, call.non_finite)
    }

    /// Powers of a block without its kept columns, whose logits are put aside.
    #[inline(always)]
    fn block(&mut self, at: Range<usize>, kept: &[(usize, f64)], k: S::Scalar) {
        let to = at.start..at.start + padded(at.len());
        let s = self.read.take(at.len());
        self.call.student.load(self.n, at.start, &mut s[..at.len()]);
        for (column, log_p) in kept {
            let z = &mut s[column - at.start];
            self.kept.push((z.wide() * k.wide(), log_p.exp()));
            *z = S::Scalar::NEG_INFINITY;
        }
        let c = center::<S>(s);
        let (center, k) = (S::splat(c), S::splat(k));
        let mut sum = S::zero();
        for (s, e) in s.chunks_exact(S::LANES).zip(self.powers[to].chunks_exact_mut(S::LANES)) {
            let q = ((S::load(s) - center) * k).exp2();
            q.store(e);
            sum = sum + q;
        }
        self.parts.push(Part { center: [c, c], sum: [sum.total(), 0.0], linear: 0.0 });
    }

    #[inline(always)]
    fn gradient(
        &mut self,
        grad: &Output<'_>,
        teacher: &Teacher,
        scale: f64,
        base: f64,
        rest: impl Fn(f64) -> f64,
    ) {
        let k = self::scale::<S>(self.call.softening.student).wide();
        let mut kept = teacher.kept.iter().zip(&self.kept).peekable();
        for (at, part) in blocks(self.call.student.width()).zip(&self.parts) {
            let on = S::of(scale * rest(part.center[0].wide() * k));
            let direct = match at.len() % S::LANES == 0 {
                // SAFETY: the logits, which may be the same memory, are not read any more.
                true => unsafe { grad.slice(self.n, at.start, at.len()) },
                false => None,
            };
            let own = direct.is_some();
            let to = match direct {
                Some(to) => to,
                None => self.read.take(at.len()),
            };
            let powers = &self.powers[at.start..at.start + padded(at.len())];
            let stream = own && self.stream;
            isa::run(Scale::<S> { to: &mut *to, powers, less: None, on, stream });
            while let Some(((column, _), (x, p))) =
                kept.next_if(|((column, _), _)| *column < at.end)
            {
                to[column - at.start] = S::Scalar::of(scale * ((x - base).exp2() - p));
            }
            if !own {
                grad.store(self.n, at.start, &to[..at.len()]);
            }
        }
    }
}
