//! Cross-entropy with hard labels and label smoothing: powers of a row once, and its gradient from them.
//!
//! `ℓ = (1−ε)(ln Z − z_y) + ε(ln Z − mean of live z)`, z centred on the maximum, so that a confident row keeps
//! its digits. Labels were checked before: a row that counts has one in range, on a kept column. What concerns the
//! label's column is f64.

use super::dense::{blocks, finish};
use super::isa::{self, LaneKernel};
use super::matrix::{Float, Load, Store};
use super::narrow::COLUMNS;
use super::number::Number;
use super::passes::Scale;
use super::real::Real;
use super::rows::{Part, Whole, center, scale, weigh, whole};
use super::scratch::{Buffer, padded};
use super::simd::Simd;
use super::{
    BLOCK, Matrix, Output, Pool, Slot, Sums, Weights, Workspace, each_row_by_worker, narrow_labels,
};
use crate::settings::{CrossEntropy, NonFinite};
use std::ops::Range;

/// One call.
pub struct CrossEntropyCall<'a> {
    /// Student logits `[N, V]`.
    pub student: Matrix<'a>,
    /// Gradient with respect to them; may be their own memory.
    pub grad: Option<Output<'a>>,
    /// Columns with false leave the softmax.
    pub class_mask: Option<&'a [bool]>,
    /// `[N, V]`, row after row: columns with false leave the softmax of that row.
    pub row_classes: Option<&'a [bool]>,
    /// w of each row.
    pub weights: Weights<'a>,
    /// Class of each row that counts.
    pub labels: &'a (dyn Fn(usize) -> usize + Sync),
    /// grad_scale / normalizer.
    pub grad_factor: f64,
}

/// Computes value and gradient in f64 if the logits are f64, else in f32. `scratch` is used if it holds
/// [`scratch_bytes`](super::scratch_bytes).
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(
    ce: &CrossEntropy,
    call: &CrossEntropyCall<'_>,
    slots: &mut [Slot],
    scratch: &mut [u8],
    pool: &P,
) -> Result<Sums, P::Error> {
    let (width, workers) = (call.student.width(), pool.workers());
    if call.student.float() == Float::F64 {
        let workspace = &Workspace::<f64>::new(scratch, width, workers);
        return each_row_by_worker(pool, slots, width, |range, worker, set| {
            rows::<f64>(CeKernel { ce, call, range, worker, workspace, set });
        });
    }
    let workspace = &Workspace::<f32>::new(scratch, width, workers);
    each_row_by_worker(pool, slots, width, |range, worker, set| {
        isa::run_lanes(CeKernel { ce, call, range, worker, workspace, set });
    })
}

/// Rows of one worker.
pub(super) struct CeKernel<'k, A> {
    pub ce: &'k CrossEntropy,
    pub call: &'k CrossEntropyCall<'k>,
    pub range: Range<usize>,
    worker: usize,
    workspace: &'k Workspace<'k, A>,
    pub set: &'k dyn Fn(usize, Slot),
}

impl LaneKernel for CeKernel<'_, f32> {
    type Result = ();
    #[inline(always)]
    fn run<S: Simd<Scalar = f32>>(self) {
        if self.call.student.width() <= COLUMNS {
            narrow_labels::run::<S>(self);
        } else {
            rows::<S>(self);
        }
    }
}

#[inline(always)]
fn rows<S: Simd>(kernel: CeKernel<'_, S::Scalar>)
where
    for<'m> Matrix<'m>: Load<S::Scalar>,
    for<'m> Output<'m>: Store<S::Scalar>,
{
    let (ce, call) = (kernel.ce, kernel.call);
    // SAFETY: the pool runs one range of a worker at a time.
    let wide = unsafe { kernel.workspace.rows(kernel.worker) }.0;
    let (mut read, mut narrow) = (Buffer::new(), Buffer::new());
    let width = call.student.width();
    let powers = if width <= BLOCK { narrow.take(width) } else { wide };
    let stream = call.grad.is_some_and(|grad| grad.outgrows_caches());
    let mut row =
        Row::<S> { ce, call, n: 0, read: &mut read, powers, parts: Vec::new(), live: 0.0, stream };
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

/// A block, removed columns −inf: where it lies if it is whole lanes as they are, else copied.
#[inline(always)]
fn block<'b, A: Real>(
    call: &CrossEntropyCall<'b>,
    n: usize,
    at: Range<usize>,
    read: &'b mut Buffer<A>,
) -> &'b [A]
where
    for<'m> Matrix<'m>: Load<A>,
{
    let masked = call.class_mask.is_some() || call.row_classes.is_some();
    if at.len() == padded(at.len())
        && !masked
        && let Some(block) = call.student.slice(n, at.start, at.len())
    {
        return block;
    }
    let z = read.take(at.len());
    call.student.load(n, at.start, &mut z[..at.len()]);
    let first = n * call.student.width() + at.start;
    let masks = [
        call.class_mask.map(|mask| &mask[at.clone()]),
        call.row_classes.map(|mask| &mask[first..first + at.len()]),
    ];
    for mask in masks.into_iter().flatten() {
        for (z, _) in z.iter_mut().zip(mask).filter(|(_, kept)| !**kept) {
            *z = A::NEG_INFINITY;
        }
    }
    z
}

struct Row<'r, S: Simd> {
    ce: &'r CrossEntropy,
    call: &'r CrossEntropyCall<'r>,
    n: usize,
    read: &'r mut Buffer<S::Scalar>,
    powers: &'r mut [S::Scalar],
    /// Of each block; with smoothing, `linear` is Σ (z − centre) of live columns.
    parts: Vec<Part<S::Scalar>>,
    /// Live columns, counted with smoothing only.
    live: f64,
    /// Whether gradients are written past the caches.
    stream: bool,
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
        let (ce, call) = (self.ce, self.call);
        let k = scale::<S>(1.0);
        self.parts.clear();
        self.live = 0.0;
        for at in blocks(call.student.width()) {
            self.powers(at, k);
        }
        // NaN is never −inf, so a row of NaN alone counts as live.
        let Some(sums) = whole(&self.parts, 0, k) else {
            self.zero();
            return Slot { dead: 1, ..Slot::default() };
        };
        let label = (call.labels)(self.n);
        let mut target = [S::Scalar::ZERO];
        call.student.load(self.n, label, &mut target);
        let target = target[0].wide() - sums.max;
        let log_sum = sums.sum.ln();
        let mut loss = (1.0 - ce.smoothing) * (log_sum - target);
        if ce.smoothing != 0.0 {
            // A block without a live column has centre 0 and adds nothing.
            let part = |part: &Part<S::Scalar>| {
                part.linear + weigh(part.sum[1], part.center[0].wide() - sums.max)
            };
            let mean = self.parts.iter().map(part).sum::<f64>() / self.live;
            loss += ce.smoothing * (log_sum - mean);
        }
        if let Some(grad) = &call.grad {
            if loss.is_finite() || ce.non_finite == NonFinite::Propagate {
                self.gradient(grad, weight, label, target, &sums);
            } else {
                grad.zero(self.n, 0);
            }
        }
        finish(loss, weight, ce.non_finite)
    }

    #[inline(always)]
    fn powers(&mut self, at: Range<usize>, k: S::Scalar) {
        let smooth = self.ce.smoothing != 0.0;
        let to = at.start..at.start + padded(at.len());
        let powers = &mut self.powers[to];
        let z = block(self.call, self.n, at, self.read);
        let c = center::<S>(z);
        let (middle, k) = (S::splat(c), S::splat(k));
        let (mut sum, mut mean, mut live) = (S::zero(), S::zero(), S::zero());
        let out = S::of(f64::NEG_INFINITY);
        for (z, e) in z.chunks_exact(S::LANES).zip(powers.chunks_exact_mut(S::LANES)) {
            let z = S::load(z);
            let x = z - middle;
            let q = (x * k).exp2();
            q.store(e);
            sum = sum + q;
            if smooth {
                mean = mean + out.if_less(z, x, S::zero());
                live = live + out.if_less(z, S::one(), S::zero());
            }
        }
        let live = live.total();
        self.live += live;
        let part = Part { center: [c, c], sum: [sum.total(), live], linear: mean.total() };
        self.parts.push(part);
    }

    /// `scale · (softmax − y′)`.
    #[inline(always)]
    fn gradient(
        &mut self,
        grad: &Output<'_>,
        weight: f64,
        label: usize,
        target: f64,
        sums: &Whole,
    ) {
        let scale = self.call.grad_factor * weight;
        let smoothing = self.ce.smoothing;
        let share = if smoothing == 0.0 { 0.0 } else { smoothing / self.live };
        let of_label = if target == f64::NEG_INFINITY { 0.0 } else { share };
        let at_label = scale * (target.exp() / sums.sum - (1.0 - smoothing) - of_label);
        let mut shares = Buffer::new();
        for (index, at) in blocks(self.call.student.width()).enumerate() {
            let on =
                S::of(scale * sums.offset(self.parts[index].center[0].wide()).exp2() / sums.sum);
            let powers = at.start..at.start + padded(at.len());
            let less = if share == 0.0 {
                None
            } else {
                let shares = shares.take(at.len());
                let lost = S::of(-share * scale);
                let z = block(self.call, self.n, at.clone(), self.read);
                let out = S::of(f64::NEG_INFINITY);
                for (z, to) in z.chunks_exact(S::LANES).zip(shares.chunks_exact_mut(S::LANES)) {
                    out.if_less(S::load(z), lost, S::zero()).store(to);
                }
                Some(&*shares)
            };
            let direct = match at.len() % S::LANES == 0 {
                // SAFETY: the logits of the block, which may be the same memory, are not read any more.
                true => unsafe { grad.slice(self.n, at.start, at.len()) },
                false => None,
            };
            let own = direct.is_some();
            let to = match direct {
                Some(to) => to,
                None => self.read.take(at.len()),
            };
            let powers = &self.powers[powers];
            let stream = own && self.stream;
            isa::run(Scale::<S> { to: &mut *to, powers, less, on, stream });
            if at.contains(&label) {
                to[label - at.start] = S::Scalar::of(at_label);
            }
            if !own {
                grad.store(self.n, at.start, &to[..at.len()]);
            }
        }
    }
}
