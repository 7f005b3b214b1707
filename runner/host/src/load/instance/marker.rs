//! Which plugin call is running on this thread, for crash reports.
//!
//! A plain thread-local without a destructor, so a signal handler on the faulting thread may read it.

use std::cell::Cell;

/// Plugin id (or library file), call, step.
pub(crate) type Running = Option<(&'static str, &'static str, u64)>;

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(None) };
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
    Mark(RUNNING.replace(running))
}

impl Drop for Mark {
    #[inline]
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}

/// Plugin id, call and step of the plugin call that is running on this thread, if one is.
pub fn current_call() -> Option<(&'static str, &'static str, u64)> {
    RUNNING.get()
}
