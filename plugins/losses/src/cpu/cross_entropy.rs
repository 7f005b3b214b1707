//! Cross-entropy with hard labels and label smoothing, row by row.
//!
//! `ℓ = (1−ε)(ln Z − z_y) + ε(ln Z − mean of live z)`, z centred on the maximum, so that a confident row keeps
//! its digits. Labels were checked before: a row that counts has one in range, on a kept column.

use super::dense::{blocks, finish};
use super::isa::{self, Kernel};
use super::matrix::{Float, Load, Store};
use super::real::Real;
use super::scratch::{Buffer, LANES, lanes, lanes_mut, total};
use super::{BLOCK, Matrix, Output, Pool, Slot, Sums, Weights, each_row};
use crate::settings::{CrossEntropy, NonFinite};
use std::marker::PhantomData;
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

/// Computes value and gradient in f64 if the logits are f64, else in f32.
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(
    ce: &CrossEntropy,
    call: &CrossEntropyCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error> {
    match call.student.float() {
        Float::F64 => rows::<f64, P>(ce, call, slots, pool),
        _ => rows::<f32, P>(ce, call, slots, pool),
    }
}

fn rows<A: Real, P: Pool>(
    ce: &CrossEntropy,
    call: &CrossEntropyCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    each_row(pool, slots, call.student.width(), |range, set| {
        isa::run(CeKernel::<A> { ce, call, range, set, arithmetic: PhantomData });
    })
}

struct CeKernel<'k, A> {
    ce: &'k CrossEntropy,
    call: &'k CrossEntropyCall<'k>,
    range: Range<usize>,
    set: &'k dyn Fn(usize, Slot),
    arithmetic: PhantomData<A>,
}

impl<A: Real> Kernel for CeKernel<'_, A>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        let mut buffer = Buffer::new();
        for n in self.range.clone() {
            let slot = match (self.call.weights)(n).filter(|w| *w != 0.0) {
                Some(weight) => row::<A>(self.ce, self.call, n, weight, &mut buffer),
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

#[inline(always)]
fn load<A: Real>(call: &CrossEntropyCall<'_>, n: usize, at: Range<usize>, z: &mut [A])
where
    for<'m> Matrix<'m>: Load<A>,
{
    call.student.load(n, at.start, &mut z[..at.len()]);
    if let Some(mask) = call.class_mask {
        for (z, kept) in z.iter_mut().zip(&mask[at.clone()]) {
            *z = if *kept { *z } else { A::NEG_INFINITY };
        }
    }
    if let Some(mask) = call.row_classes {
        let first = n * call.student.width() + at.start;
        for (z, kept) in z.iter_mut().zip(&mask[first..first + at.len()]) {
            *z = if *kept { *z } else { A::NEG_INFINITY };
        }
    }
}

/// Largest logit; NaN is passed over.
#[inline(always)]
fn maximum<A: Real>(block: &[A], start: A) -> A {
    let mut max = [A::NEG_INFINITY; LANES];
    for z in lanes(block) {
        for l in 0..LANES {
            max[l] = if z[l] > max[l] { z[l] } else { max[l] };
        }
    }
    max.iter().fold(start, |a, &b| if b > a { b } else { a })
}

/// Sums of a row around its maximum.
struct Stats<A> {
    max: A,
    /// Σ exp(z).
    sum: f64,
    /// Σ z and number of live columns.
    mean: f64,
    live: f64,
    /// z of the label.
    target: f64,
}

#[inline(always)]
fn stats<A: Real>(
    call: &CrossEntropyCall<'_>,
    n: usize,
    label: usize,
    buffer: &mut Buffer<A>,
) -> Stats<A>
where
    for<'m> Matrix<'m>: Load<A>,
{
    let width = call.student.width();
    let log2_e = A::of(std::f64::consts::LOG2_E);
    let mut max = A::NEG_INFINITY;
    for at in blocks(width) {
        let z = buffer.take(at.len());
        load(call, n, at, z);
        max = maximum(z, max);
    }
    let mut stats = Stats { max, sum: 0.0, mean: 0.0, live: 0.0, target: 0.0 };
    for at in blocks(width) {
        let z = block_of(call, n, &at, buffer);
        let (mut sum, mut mean, mut live) = ([A::ZERO; LANES], [A::ZERO; LANES], [A::ZERO; LANES]);
        for z in lanes(z) {
            for l in 0..LANES {
                let out = z[l] == A::NEG_INFINITY;
                let x = z[l] - max;
                sum[l] += (x * log2_e).exp2();
                mean[l] += if out { A::ZERO } else { x };
                live[l] += if out { A::ZERO } else { A::ONE };
            }
        }
        stats.sum += total(sum);
        stats.mean += total(mean);
        stats.live += total(live);
        if at.contains(&label) {
            stats.target = (z[label - at.start] - max).wide();
        }
    }
    stats
}

/// The buffer with block `at` in it; a row of one block is there already.
#[inline(always)]
fn block_of<'b, A: Real>(
    call: &CrossEntropyCall<'_>,
    n: usize,
    at: &Range<usize>,
    buffer: &'b mut Buffer<A>,
) -> &'b mut [A]
where
    for<'m> Matrix<'m>: Load<A>,
{
    if call.student.width() <= BLOCK {
        return buffer.keep(at.len());
    }
    let z = buffer.take(at.len());
    load(call, n, at.clone(), z);
    z
}

#[inline(always)]
fn row<A: Real>(
    ce: &CrossEntropy,
    call: &CrossEntropyCall<'_>,
    n: usize,
    weight: f64,
    buffer: &mut Buffer<A>,
) -> Slot
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    let label = (call.labels)(n);
    let stats = stats(call, n, label, buffer);
    // NaN is never −inf, so a row of NaN alone counts as live.
    if stats.live == 0.0 {
        if let Some(grad) = &call.grad {
            grad.zero(n, 0);
        }
        return Slot { dead: 1, ..Slot::default() };
    }
    let log_sum = stats.sum.ln();
    let mut loss = (1.0 - ce.smoothing) * (log_sum - stats.target);
    if ce.smoothing != 0.0 {
        loss += ce.smoothing * (log_sum - stats.mean / stats.live);
    }
    if let Some(grad) = &call.grad {
        if loss.is_finite() || ce.non_finite == NonFinite::Propagate {
            gradient(ce, call, n, weight, label, &stats, (grad, buffer));
        } else {
            grad.zero(n, 0);
        }
    }
    finish(loss, weight, ce.non_finite)
}

#[inline(always)]
fn gradient<A: Real>(
    ce: &CrossEntropy,
    call: &CrossEntropyCall<'_>,
    n: usize,
    weight: f64,
    label: usize,
    stats: &Stats<A>,
    (grad, buffer): (&Output<'_>, &mut Buffer<A>),
) where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    let log2_e = A::of(std::f64::consts::LOG2_E);
    let log_sum = A::of(stats.sum.log2());
    let scale = A::of(call.grad_factor * weight);
    let share = A::of(ce.smoothing / stats.live);
    for at in blocks(call.student.width()) {
        let z = block_of(call, n, &at, buffer);
        for z in lanes_mut(z) {
            for z in z.iter_mut() {
                let out = *z == A::NEG_INFINITY;
                let q = ((*z - stats.max) * log2_e - log_sum).exp2();
                *z = (q - if out { A::ZERO } else { share }) * scale;
            }
        }
        if at.contains(&label) {
            z[label - at.start] = z[label - at.start] - A::of(1.0 - ce.smoothing) * scale;
        }
        grad.store(n, at.start, &z[..at.len()]);
    }
}
