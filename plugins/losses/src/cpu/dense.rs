//! Calls on dense logits: which kernel computes a divergence, and how its rows are read.
//!
//! Columns that the teacher lacks and columns that are removed read as −inf.

use super::divergence::*;
use super::isa;
use super::matrix::{Float, Load};
use super::real::Real;
use super::rows::{self, RowKernel};
use super::scratch::Buffer;
use super::{
    BLOCK, Matrix, Output, Pool, Slot, Sums, Weights, Workspace, each_row_by_worker, logit_mse,
};
use crate::settings::{Divergence, NonFinite, Softening};
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
    !matches!(divergence, D::Renyi { .. } | D::Dkd { .. } | D::LogitStd | D::BceKd | D::Uld)
}

/// Computes value and gradient in f64 if the student's logits are f64, else in f32. `scratch` is used if it holds
/// [`scratch_bytes`](super::scratch_bytes).
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(
    divergence: Divergence,
    call: &DenseCall<'_>,
    slots: &mut [Slot],
    scratch: &mut [u8],
    pool: &P,
) -> Result<Sums, P::Error> {
    let mut request = Request { call, slots, scratch, pool };
    match divergence {
        Divergence::ForwardKl => request.rows(ForwardKl),
        Divergence::SoftCe => request.rows(SoftCe),
        Divergence::ReverseKl => request.rows(ReverseKl),
        Divergence::Tvd => request.rows(Tvd),
        Divergence::Gjsd { beta } => request.rows(Gjsd(beta)),
        Divergence::Skl { alpha } => request.rows(Skl(alpha)),
        Divergence::SymKl { lambda } => request.rows(SymKl(lambda)),
        Divergence::Srkl { alpha, detach } => {
            request.rows(Srkl { alpha, through: if detach { 0.0 } else { alpha } })
        }
        Divergence::Alpha { alpha } => request.rows(Alpha(alpha)),
        Divergence::LogitMse => match call.student.float() {
            Float::F64 => logit_mse::rows::<f64, P>(call, slots, pool),
            _ => logit_mse::rows::<f32, P>(call, slots, pool),
        },
        other => unreachable!("{other:?} is computed by the oracle"),
    }
}

struct Request<'r, P> {
    call: &'r DenseCall<'r>,
    slots: &'r mut [Slot],
    scratch: &'r mut [u8],
    pool: &'r P,
}

impl<P: Pool> Request<'_, P> {
    fn rows<D: Functor>(&mut self, functor: D) -> Result<Sums, P::Error> {
        let (call, workers) = (self.call, self.pool.workers());
        if call.student.float() == Float::F64 {
            let workspace = &Workspace::<f64>::new(self.scratch, call.width, workers);
            return each_row_by_worker(self.pool, self.slots, call.width, |range, worker, set| {
                rows::run::<f64, D>(RowKernel { functor, call, range, worker, workspace, set });
            });
        }
        let workspace = &Workspace::<f32>::new(self.scratch, call.width, workers);
        each_row_by_worker(self.pool, self.slots, call.width, |range, worker, set| {
            isa::run_lanes(RowKernel { functor, call, range, worker, workspace, set });
        })
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
