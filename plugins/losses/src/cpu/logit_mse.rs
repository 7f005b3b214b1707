//! Mean squared difference of logits, row by row.
//!
//! The mean is over the columns kept; one that is −inf on both sides leaves it, one that is −inf on a single
//! side makes the row infinite, with gradient 0.

use super::dense::{Buffers, DenseCall, blocks, finish, load};
use super::isa::{self, Kernel};
use super::matrix::{Load, Store};
use super::real::Real;
use super::scratch::{Buffer, LANES, lanes, lanes_mut, total};
use super::{Matrix, Output, Pool, Slot, Sums, each_row};
use crate::settings::NonFinite;
use std::marker::PhantomData;
use std::ops::Range;

pub fn rows<A: Real, P: Pool>(
    call: &DenseCall<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    each_row(pool, slots, call.width, |range, set| {
        isa::run(MseKernel::<A> { call, range, set, arithmetic: PhantomData });
    })
}

struct MseKernel<'k, A> {
    call: &'k DenseCall<'k>,
    range: Range<usize>,
    set: &'k dyn Fn(usize, Slot),
    arithmetic: PhantomData<A>,
}

impl<A: Real> Kernel for MseKernel<'_, A>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        let mut buffers = Buffers { s: Buffer::new(), t: Buffer::new() };
        for n in self.range.clone() {
            let slot = match (self.call.weights)(n).filter(|w| *w != 0.0) {
                Some(weight) => row::<A>(self.call, n, weight, &mut buffers),
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

/// s − t, 0 where both are −inf.
#[inline(always)]
fn difference<A: Real>(s: A, t: A) -> A {
    let both = s == A::NEG_INFINITY && t == A::NEG_INFINITY;
    if both { A::ZERO } else { s - t }
}

#[inline(always)]
fn row<A: Real>(call: &DenseCall<'_>, n: usize, weight: f64, buffers: &mut Buffers<A>) -> Slot
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    let (mut loss, mut kept) = (0.0, 0.0);
    let (mut live_s, mut live_t) = (0.0, 0.0);
    for at in blocks(call.width) {
        let (s, t) = (buffers.s.take(at.len()), buffers.t.take(at.len()));
        load(call, n, at, s, t);
        let (mut squares, mut count) = ([A::ZERO; LANES], [A::ZERO; LANES]);
        let (mut count_s, mut count_t) = ([A::ZERO; LANES], [A::ZERO; LANES]);
        for (s, t) in lanes(s).iter().zip(lanes(t)) {
            for l in 0..LANES {
                let d = difference(s[l], t[l]);
                squares[l] += d * d;
                let (s_out, t_out) = (s[l] == A::NEG_INFINITY, t[l] == A::NEG_INFINITY);
                count[l] += if s_out && t_out { A::ZERO } else { A::ONE };
                count_s[l] += if s_out { A::ZERO } else { A::ONE };
                count_t[l] += if t_out { A::ZERO } else { A::ONE };
            }
        }
        loss += total(squares);
        kept += total(count);
        live_s += total(count_s);
        live_t += total(count_t);
    }
    if live_s == 0.0 || live_t == 0.0 {
        if let Some(grad) = &call.grad {
            grad.zero(n, 0);
        }
        return Slot { dead: 1, ..Slot::default() };
    }
    let loss = loss / kept;
    let keep = loss.is_finite() || (loss.is_nan() && call.non_finite == NonFinite::Propagate);
    if let Some(grad) = &call.grad {
        if !keep {
            grad.zero(n, 0);
        } else {
            let scale = A::of(call.grad_factor * weight * 2.0 / kept);
            for at in blocks(call.width) {
                let (s, t) = (buffers.s.take(at.len()), buffers.t.take(at.len()));
                load(call, n, at.clone(), s, t);
                for (s, t) in lanes_mut(s).iter_mut().zip(lanes(t)) {
                    for l in 0..LANES {
                        s[l] = difference(s[l], t[l]) * scale;
                    }
                }
                grad.store(n, at.start, &s[..at.len()]);
            }
            grad.zero(n, call.width);
        }
    }
    finish(loss, weight, call.non_finite)
}
