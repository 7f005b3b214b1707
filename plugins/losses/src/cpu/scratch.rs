//! Block buffers of one thread, on its stack, that cost nothing for narrow rows.
//!
//! Only the part a row needs is initialised. Lengths are whole lanes, so loops have no tail.

use super::BLOCK;
use super::real::Real;
use std::mem::MaybeUninit;

/// Entries a loop body handles at once: one AVX-512 register of f32.
pub const LANES: usize = 16;

/// A buffer of up to [`BLOCK`] entries.
#[repr(align(64))]
pub struct Buffer<A> {
    entries: [MaybeUninit<A>; BLOCK],
    taken: usize,
}

impl<A: Real> Buffer<A> {
    pub fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; BLOCK], taken: 0 }
    }

    /// The first `len` entries (rounded up to whole lanes), all set to −inf past `len`.
    #[inline(always)]
    pub fn take(&mut self, len: usize) -> &mut [A] {
        let padded = padded(len);
        let part = &mut self.entries[..padded];
        self.taken = len;
        for entry in part.iter_mut() {
            entry.write(A::NEG_INFINITY);
        }
        // SAFETY: every entry of `part` was just written.
        unsafe { std::slice::from_raw_parts_mut(part.as_mut_ptr().cast(), padded) }
    }

    /// The first `len` entries (rounded up to whole lanes) as the last [`Buffer::take`] left them.
    #[inline(always)]
    pub fn keep(&mut self, len: usize) -> &mut [A] {
        assert!(len <= self.taken, "only {} entries were taken", self.taken);
        // SAFETY: `take` wrote `padded(self.taken)` entries.
        unsafe { std::slice::from_raw_parts_mut(self.entries.as_mut_ptr().cast(), padded(len)) }
    }
}

/// `len` rounded up to whole lanes.
pub const fn padded(len: usize) -> usize {
    len.div_ceil(LANES) * LANES
}

/// Lanes as whole arrays, so that the compiler sees their number.
#[inline(always)]
pub fn lanes<A>(slice: &[A]) -> &[[A; LANES]] {
    slice.as_chunks().0
}

/// As [`lanes`], writable.
#[inline(always)]
pub fn lanes_mut<A>(slice: &mut [A]) -> &mut [[A; LANES]] {
    slice.as_chunks_mut().0
}

/// Adds lanes up in f64, in order.
#[inline(always)]
pub fn total<A: Real>(lanes: [A; LANES]) -> f64 {
    lanes.iter().map(|x| x.wide()).sum()
}
