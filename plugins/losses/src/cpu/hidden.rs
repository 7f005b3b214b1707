//! Losses on hidden states, row by row: cosine distance and mean squared difference.
//!
//! Sums are taken in f64 in a fixed order. A row that does not count is not read. `projection` has the
//! difference through a learned map.

use super::isa::{self, Kernel};
use super::matrix::{Float, Load, Store};
use super::real::Real;
use super::scratch::LANES;
use super::{Matrix, Output, Pool, Slot, Sums, Weights, each_row};
use std::marker::PhantomData;
use std::ops::Range;

/// A vector whose norm is at most this has no direction.
const ZERO_NORM: f64 = 1e-12;
/// One call.
pub struct HiddenCall<'a> {
    /// Student states `[N, H]`.
    pub student: Matrix<'a>,
    /// Teacher states `[N, Ht]`.
    pub teacher: Matrix<'a>,
    /// Gradient with respect to the student states.
    pub grad: Option<Output<'a>>,
    /// w of each row.
    pub weights: Weights<'a>,
    /// grad_scale / normalizer.
    pub grad_factor: f64,
}

/// What is compared.
#[derive(Clone, Copy)]
pub enum Comparison<'a> {
    /// Mean over the width of (h − t)².
    Mse,
    /// 1 − cosine; rows for which `opposite` is true cost max(0, cosine − margin).
    Cosine {
        /// Of opposite rows.
        margin: f64,
        /// Rows with target −1.
        opposite: Option<&'a (dyn Fn(usize) -> bool + Sync)>,
    },
}

/// Computes value and gradient in f64 if the student's states are f64, else in f32.
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(
    comparison: Comparison<'_>,
    call: &HiddenCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error> {
    match call.student.float() {
        Float::F64 => rows::<f64, P>(comparison, call, slots, pool),
        _ => rows::<f32, P>(comparison, call, slots, pool),
    }
}

fn rows<A: Real, P: Pool>(
    comparison: Comparison<'_>,
    call: &HiddenCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    each_row(pool, slots, call.student.width(), |range, set| {
        isa::run(RowKernel::<A> { comparison, call, range, set, arithmetic: PhantomData });
    })
}

struct RowKernel<'k, A> {
    comparison: Comparison<'k>,
    call: &'k HiddenCall<'k>,
    range: Range<usize>,
    set: &'k dyn Fn(usize, Slot),
    arithmetic: PhantomData<A>,
}

impl<A: Real> Kernel for RowKernel<'_, A>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        let width = self.call.student.width();
        let (mut h, mut t) = (vec![A::ZERO; width], vec![A::ZERO; width]);
        for n in self.range.clone() {
            let Some(weight) = (self.call.weights)(n).filter(|w| *w != 0.0) else {
                skip(self.call, n);
                (self.set)(n, Slot::default());
                continue;
            };
            self.call.student.load(n, 0, &mut h);
            self.call.teacher.load(n, 0, &mut t);
            let scale = self.call.grad_factor * weight;
            let loss = match self.comparison {
                Comparison::Mse => mse(&mut h, &t, scale),
                Comparison::Cosine { margin, opposite } => {
                    cosine(&mut h, &t, scale, margin, opposite.is_some_and(|opposite| opposite(n)))
                }
            };
            if let Some(grad) = &self.call.grad {
                grad.store(n, 0, &h);
            }
            (self.set)(n, slot(loss, weight));
        }
    }
}

pub(super) fn skip(call: &HiddenCall<'_>, n: usize) {
    if let Some(grad) = &call.grad {
        grad.zero(n, 0);
    }
}

pub(super) fn slot(loss: f64, weight: f64) -> Slot {
    Slot { value: weight * loss, dead: 0, infinite: u32::from(!loss.is_finite()) }
}

/// Sum of `f` over pairs in f64, in fixed lanes.
#[inline(always)]
fn sum<A: Real>(a: &[A], b: &[A], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for l in 0..LANES {
            lanes[l] += f(a[l].wide(), b[l].wide());
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f(a.wide(), b.wide())).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Leaves the gradient in `h`.
#[inline(always)]
pub(super) fn mse<A: Real>(h: &mut [A], t: &[A], scale: f64) -> f64 {
    let width = h.len() as f64;
    let loss = sum(h, t, |h, t| (h - t) * (h - t)) / width;
    let scale = A::of(2.0 / width * scale);
    for (h, t) in h.iter_mut().zip(t) {
        *h = (*h - *t) * scale;
    }
    loss
}

/// Leaves the gradient in `h`.
#[inline(always)]
fn cosine<A: Real>(h: &mut [A], t: &[A], scale: f64, margin: f64, opposite: bool) -> f64 {
    let norm_h = sum(h, h, |a, b| a * b).sqrt();
    let norm_t = sum(t, t, |a, b| a * b).sqrt();
    if norm_h <= ZERO_NORM || norm_t <= ZERO_NORM {
        h.fill(A::ZERO);
        return if opposite { (-margin).max(0.0) } else { 1.0 };
    }
    let c = sum(h, t, |a, b| (a / norm_h) * (b / norm_t));
    let slope = match opposite {
        false => -1.0,
        true if c > margin => 1.0,
        true => 0.0,
    };
    let factor = slope * scale / norm_h;
    for (h, t) in h.iter_mut().zip(t) {
        *h = A::of(factor * (t.wide() / norm_t - c * h.wide() / norm_h));
    }
    match opposite {
        false => 1.0 - c,
        true if c > margin || c.is_nan() => c - margin,
        true => 0.0,
    }
}
