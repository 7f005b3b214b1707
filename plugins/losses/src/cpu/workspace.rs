//! Scratch of the workers for rows too wide for their stacks, lent by the caller or made here.
//!
//! Each worker has two rows of its own; which one it is decides only where it scribbles, never a result.

use super::BLOCK;
use super::real::Real;
use super::scratch::padded;
use std::marker::PhantomData;

/// Bytes of scratch for rows of `width` elements of `size` bytes on so many workers; 0 for rows of one block.
pub const fn scratch_bytes(width: usize, size: usize, workers: usize) -> usize {
    if width <= BLOCK { 0 } else { 2 * padded(width) * size * workers }
}

/// Two rows for each worker.
pub struct Workspace<'a, A> {
    first: *mut A,
    row: usize,
    workers: usize,
    _own: Vec<A>,
    life: PhantomData<&'a mut [A]>,
}

// SAFETY: `rows` promises that no two threads are one worker at a time.
unsafe impl<A: Real> Sync for Workspace<'_, A> {}

impl<'a, A: Real> Workspace<'a, A> {
    /// For rows of `width` on so many workers, in `lent` if that is aligned and large enough, else on the heap.
    pub fn new(lent: &'a mut [u8], width: usize, workers: usize) -> Self {
        let bytes = scratch_bytes(width, size_of::<A>(), workers);
        let row = if bytes == 0 { 0 } else { padded(width) };
        let first = lent.as_mut_ptr().cast::<A>();
        let (life, fits) = (PhantomData, lent.len() >= bytes && first.is_aligned());
        if fits {
            return Self { first, row, workers, _own: Vec::new(), life };
        }
        let mut own = vec![A::ZERO; 2 * row * workers];
        Self { first: own.as_mut_ptr(), row, workers, _own: own, life }
    }

    /// The two rows of a worker; empty if rows fit a block.
    ///
    /// # Safety
    /// No other thread is this worker while the result lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "a worker is one thread at a time, by the caller's promise"
    )]
    pub unsafe fn rows(&self, worker: usize) -> (&mut [A], &mut [A]) {
        assert!(worker < self.workers, "worker {worker} of {}", self.workers);
        let at = self.first.wrapping_add(2 * self.row * worker);
        let other = at.wrapping_add(self.row);
        // SAFETY: `new` made room for two rows of every worker, disjoint for distinct ones; any bits are a float.
        let first = unsafe { std::slice::from_raw_parts_mut(at, self.row) };
        // SAFETY: as above.
        let second = unsafe { std::slice::from_raw_parts_mut(other, self.row) };
        (first, second)
    }
}
