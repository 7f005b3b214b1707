//! The global pool of rayon, which candle uses too.

use crate::cpu::Pool;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads take ranges in turn.
pub struct Rayon;

impl Pool for Rayon {
    type Error = std::convert::Infallible;
    fn workers(&self) -> usize {
        rayon::current_num_threads()
    }
    fn run(
        &self,
        n: usize,
        grain: usize,
        body: &(dyn Fn(Range<usize>, usize) + Sync),
    ) -> Result<(), Self::Error> {
        let next = AtomicUsize::new(0);
        rayon::broadcast(|context| {
            loop {
                let begin = next.fetch_add(grain, Ordering::Relaxed);
                if begin >= n {
                    break;
                }
                body(begin..(begin + grain).min(n), context.index());
            }
        });
        Ok(())
    }
}
