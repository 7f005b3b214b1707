//! Which plugin call is running on this thread, for crash reports and for the watch over calls that hang.
//!
//! The thread's own record is a plain thread-local without a destructor, so a signal handler on the faulting thread may
//! read it. A thread that is watched also shows it to others.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};

/// Plugin id (or library file), call, step.
pub(crate) type Running = Option<(&'static str, &'static str, u64)>;

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(None) };
    static SHOWN_TO: RefCell<Option<Arc<Shown>>> = const { RefCell::new(None) };
}

/// The call of a watched thread, as other threads see it.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<(u64, Running)>);

impl Shown {
    /// The number of the call, other for each call, and the call.
    pub fn get(&self) -> (u64, Running) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, running: Running) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = (shown.0 + 1, running);
    }
}

/// Shows this thread's calls until the result drops.
pub(crate) fn show(to: Arc<Shown>) -> Showing {
    Showing(SHOWN_TO.replace(Some(to)))
}

/// Restores what was shown to whom.
pub(crate) struct Showing(Option<Arc<Shown>>);

impl Drop for Showing {
    fn drop(&mut self) {
        if let Some(shown) = SHOWN_TO.replace(self.0.take()) {
            shown.set(None);
        }
    }
}

/// Restores the outer call on drop: a plugin may call the host, which may call another plugin.
pub(crate) struct Mark(Running);

/// Marks the call as running until the result drops.
#[inline]
pub(crate) fn enter(plugin: &'static str, call: &'static str, step: u64) -> Mark {
    adopt(Some((plugin, call, step)))
}

/// Marks a pool thread as working for the call of another thread.
#[inline]
pub(crate) fn adopt(running: Running) -> Mark {
    Mark(change(running))
}

fn change(running: Running) -> Running {
    SHOWN_TO.with_borrow(|shown| {
        if let Some(shown) = shown {
            shown.set(running);
        }
    });
    RUNNING.replace(running)
}

impl Drop for Mark {
    #[inline]
    fn drop(&mut self) {
        change(self.0);
    }
}

/// Plugin id, call and step of the plugin call that is running on this thread, if one is.
pub fn current_call() -> Option<(&'static str, &'static str, u64)> {
    RUNNING.get()
}
