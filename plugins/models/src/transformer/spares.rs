//! Buffers of passes that ended, for the passes that follow: clearing new ones took a twentieth of a step.
//!
//! Refuses nothing. Invariant: what is taken holds any numbers; whoever takes it writes before reading.

use std::any::Any;
use std::sync::{Mutex, PoisonError};

/// Buffers of any kind.
#[derive(Default)]
pub(super) struct Spares(Mutex<Vec<Box<dyn Any + Send>>>);

impl Spares {
    fn with<R>(&self, f: impl FnOnce(&mut Vec<Box<dyn Any + Send>>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one of this kind that was put last, or a new one.
    pub(super) fn take<B: Any + Default>(&self) -> B {
        let found = self.with(|all| {
            let place = all.iter().rposition(|buffer| buffer.is::<B>())?;
            all.remove(place).downcast::<B>().ok()
        });
        found.map_or_else(B::default, |buffer| *buffer)
    }

    /// Leaves a buffer.
    pub(super) fn put<B: Any + Send>(&self, buffer: B) {
        self.with(|all| all.push(Box::new(buffer)));
    }
}
