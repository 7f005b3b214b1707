//! The fast CPU path: rows of logits or hidden states of any float type and stride, value and gradient.
//!
//! One row is one task; each writes its own slot, and slots are added in row order, so results depend neither
//! on the number of threads nor on N. Bodies are plain Rust in fixed lanes, compiled once per instruction set
//! ([`isa`]); as nothing is contracted or reordered, all of them give equal bits.

pub mod cross_entropy;
pub mod dense;
pub mod divergence;
pub mod hidden;
mod isa;
pub mod linear;
mod logit_mse;
pub mod matrix;
mod narrow;
mod narrow_labels;
mod number;
mod passes;
pub mod projection;
mod real;
mod rows;
mod scratch;
mod simd;
pub mod sparse;
#[cfg(test)]
mod tests;
mod workspace;

pub use matrix::{Matrix, Output};
pub use workspace::{Workspace, scratch_bytes};

use std::ops::Range;

/// Columns of a block: three f32 buffers of a block stay in a 32 KB L1.
const BLOCK: usize = 2048;
/// Bytes of an output that no cache of one core holds: its lines need not be read before they are written.
const STREAMED: usize = 8 << 20;
/// Elements below which waking the pool costs more than it saves.
const SERIAL: usize = 16 * 1024;

/// Something that runs a body over ranges of rows, on whatever threads.
pub trait Pool {
    /// Why it could not.
    type Error;
    /// How many ranges run at once.
    fn workers(&self) -> usize;
    /// Runs `body(range, worker)` over `[0, n)` in disjoint ranges of at least `grain`, at most one at a time for
    /// each of the workers.
    ///
    /// # Errors
    /// As the pool says.
    fn run(
        &self,
        n: usize,
        grain: usize,
        body: &(dyn Fn(Range<usize>, usize) + Sync),
    ) -> Result<(), Self::Error>;
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl Pool for Serial {
    type Error = std::convert::Infallible;
    fn workers(&self) -> usize {
        1
    }
    fn run(
        &self,
        n: usize,
        _grain: usize,
        body: &(dyn Fn(Range<usize>, usize) + Sync),
    ) -> Result<(), Self::Error> {
        body(0..n, 0);
        Ok(())
    }
}

/// Which rows count: w of row n, `None` if it does not count.
pub type Weights<'a> = &'a (dyn Fn(usize) -> Option<f64> + Sync);

/// Where a row leaves its share of the sums.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    value: f64,
    dead: u32,
    infinite: u32,
}

/// Sums over the rows of a call, not yet divided by the normaliser.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Σ w ℓ.
    pub value: f64,
    /// Counted rows with no live logit on a side.
    pub dead_rows: f64,
    /// Counted rows whose loss is not finite.
    pub nonfinite_rows: f64,
}

impl Sums {
    fn of(slots: &[Slot]) -> Self {
        slots.iter().fold(Self::default(), |sum, slot| Self {
            value: sum.value + slot.value,
            dead_rows: sum.dead_rows + f64::from(slot.dead),
            nonfinite_rows: sum.nonfinite_rows + f64::from(slot.infinite),
        })
    }
}

/// Runs `row` for each of `slots`, in parallel if `width` columns make it worth it.
fn each_row<P: Pool>(
    pool: &P,
    slots: &mut [Slot],
    width: usize,
    body: impl Fn(Range<usize>, &dyn Fn(usize, Slot)) + Sync,
) -> Result<Sums, P::Error> {
    each_row_by_worker(pool, slots, width, |range, _worker, set| body(range, set))
}

/// As [`each_row`]; `body` also hears which worker it is, whose scratch is then its own.
fn each_row_by_worker<P: Pool>(
    pool: &P,
    slots: &mut [Slot],
    width: usize,
    body: impl Fn(Range<usize>, usize, &dyn Fn(usize, Slot)) + Sync,
) -> Result<Sums, P::Error> {
    let rows = slots.len();
    let shared = SharedSlots { first: slots.as_mut_ptr(), len: rows };
    let body = |range: Range<usize>, worker: usize| {
        // SAFETY: ranges of one call are disjoint, so each slot has one writer.
        body(range, worker, &|n, slot| unsafe { shared.set(n, slot) })
    };
    if rows * width <= SERIAL {
        body(0..rows, 0);
    } else {
        pool.run(rows, (SERIAL / 2 / width.max(1)).max(1), &body)?;
    }
    Ok(Sums::of(slots))
}

struct SharedSlots {
    first: *mut Slot,
    len: usize,
}

// SAFETY: `set` promises that no two threads touch one slot.
unsafe impl Sync for SharedSlots {}

impl SharedSlots {
    /// # Safety
    /// No other access to slot `n` is going on.
    unsafe fn set(&self, n: usize, slot: Slot) {
        assert!(n < self.len, "row {n} of {}", self.len);
        // SAFETY: inside the slice that was lent for the call; the caller's promise.
        unsafe { *self.first.add(n) = slot }
    }
}
