//! Watches the plugin call of a run from another thread: tells its progress, and names a call that does not come back.
//!
//! Nothing can end a call from outside (a thread that is killed leaves locks and half-written memory), so the watch only
//! tells; whoever hears of a hang can end the process, and the run goes on from its last checkpoint.

use super::Control;
use crate::diagnostic::Diagnostic;
use crate::load::services;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is told from outside the run's own thread.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A long call told how far it is.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all; 0: not known.
        total: u64,
        /// Of what, in the plugin's words.
        what: String,
    },
    /// A call has not come back for long, or not since a stop was asked for.
    Slow(Diagnostic),
}

/// Who is told; called from any thread, must not call plugins.
#[derive(Clone)]
pub struct Notices(Arc<dyn Fn(&Notice) + Send + Sync>);

impl Notices {
    /// Tells `listener`.
    pub fn new(listener: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notices")
    }
}

/// How long a call may take before it is named; then after twice that, and so on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// In ordinary work.
    pub working: Duration,
    /// After a stop was asked for.
    pub stopping: Duration,
    /// Between two looks.
    pub look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            working: Duration::from_secs(60),
            stopping: Duration::from_secs(5),
            look: Duration::from_millis(250),
        }
    }
}

/// A watch over the calls of `control`'s run; ends on drop.
pub(crate) struct Watch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins. Without `notices` nobody is told and nothing is watched.
    pub fn begin(control: &Control, notices: Option<&Notices>, patience: Patience) -> Self {
        let Some(notices) = notices.cloned() else { return Self { end: None, thread: None } };
        let told = Arc::new(AtomicU64::new(0));
        let (listener, heard) = (notices.clone(), Arc::clone(&told));
        services::set_progress(Some(Box::new(move |done, total, what| {
            heard.fetch_add(1, Ordering::Relaxed);
            (listener.0)(&Notice::Progress { done, total, what: what.to_owned() });
        })));
        let (end, ended) = channel();
        let control = control.clone();
        let look = move || {
            let mut state = State::default();
            while matches!(ended.recv_timeout(patience.look), Err(RecvTimeoutError::Timeout)) {
                let progress = told.load(Ordering::Relaxed);
                if let Some(slow) = state.look(&control, progress, Instant::now(), patience) {
                    (notices.0)(&Notice::Slow(slow));
                }
            }
        };
        // A system without threads to spare runs unwatched.
        let thread = std::thread::Builder::new().name("limbeck-watch".into()).spawn(look).ok();
        Self { end: Some(end), thread }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.end.take().is_some() {
            services::set_progress(None);
        }
        if let Some(thread) = self.thread.take() {
            // It calls no plugin and no lock of the run: it ends at its next look.
            let _ = thread.join();
        }
    }
}

/// What the watch remembers between two looks.
#[derive(Default)]
struct State {
    /// Number of the call and of the progress, and when they were first seen.
    seen: Option<((u64, u64), Instant)>,
    stop_since: Option<Instant>,
    /// Told up to this many times the patience.
    told: u32,
}

impl State {
    /// The warning that is due, if one is.
    fn look(
        &mut self,
        control: &Control,
        progress: u64,
        now: Instant,
        patience: Patience,
    ) -> Option<Diagnostic> {
        let (serial, running) = control.shown();
        let stopping = control.stop_requested();
        let is_new = self.seen.is_none_or(|(seen, _)| seen != (serial, progress));
        if is_new || (stopping.is_some() && self.stop_since.is_none()) {
            self.told = 0;
        }
        if is_new {
            self.seen = Some(((serial, progress), now));
        }
        if stopping.is_some() {
            self.stop_since.get_or_insert(now);
        }
        let (plugin, call, step) = running?;
        let (_, since) = self.seen?;
        let waited = now.duration_since(since);
        // From the later of the two: the call's begin, the request to stop.
        let (limit, counted) = match self.stop_since {
            Some(asked) => (patience.stopping, waited.min(now.duration_since(asked))),
            None => (patience.working, waited),
        };
        if counted < limit * 2u32.saturating_pow(self.told) {
            return None;
        }
        self.told += 1;
        let seconds = waited.as_secs();
        let message = format!(
            "plugin `{plugin}` has not come back from {call} for {seconds} s, at step {step}"
        );
        let warning = Diagnostic::warning("LMB0412", message);
        Some(match stopping {
            Some(reason) => warning.note(format!("{reason} waits for it")).help(
                "a second signal ends the process at once; the same command goes on from the last checkpoint",
            ),
            None => warning.help("it works, waits or hangs; Ctrl-C asks it to stop"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::instance::{mark_call, show_calls};

    const SECOND: Duration = Duration::from_secs(1);

    fn patience() -> Patience {
        Patience { working: 60 * SECOND, stopping: 5 * SECOND, look: SECOND }
    }

    #[test]
    fn a_call_that_does_not_come_back_is_named_after_a_minute_two_and_four() {
        let control = Control::default();
        let _shown = show_calls(control.calls());
        let _call = mark_call("org.example.slow", "compute", 12);
        let (mut state, begin) = (State::default(), Instant::now());
        let mut told = Vec::new();
        for second in 0..300 {
            let now = begin + second * SECOND;
            if let Some(warning) = state.look(&control, 0, now, patience()) {
                assert!(warning.message.contains("`org.example.slow`"), "{}", warning.message);
                assert!(warning.message.contains("compute"), "{}", warning.message);
                assert!(warning.message.contains("at step 12"), "{}", warning.message);
                told.push(second);
            }
        }
        assert_eq!(told, [60, 120, 240]);
    }

    #[test]
    fn progress_and_other_calls_are_no_hang() {
        let control = Control::default();
        let _shown = show_calls(control.calls());
        let (mut state, begin) = (State::default(), Instant::now());
        let call = mark_call("org.example.slow", "activate", 0);
        for second in 0..300 {
            assert!(
                state
                    .look(&control, second / 50, begin + second as u32 * SECOND, patience())
                    .is_none()
            );
        }
        drop(call);
        for second in 300..600 {
            let _call = mark_call("org.example.quick", "compute", 1);
            assert!(state.look(&control, 6, begin + second * SECOND, patience()).is_none());
        }
        // Between two calls nothing runs, however long the host works.
        for second in 600..900 {
            assert!(state.look(&control, 6, begin + second * SECOND, patience()).is_none());
        }
    }

    #[test]
    fn a_stop_names_the_call_that_it_waits_for_within_seconds() {
        let control = Control::default();
        let _shown = show_calls(control.calls());
        let _call = mark_call("org.example.slow", "forward", 3);
        let (mut state, begin) = (State::default(), Instant::now());
        for second in 0..10 {
            assert!(state.look(&control, 0, begin + second * SECOND, patience()).is_none());
        }
        control.request_stop("SIGTERM");
        let told: Vec<u32> = (10..40)
            .filter(|s| state.look(&control, 0, begin + *s * SECOND, patience()).is_some())
            .collect();
        assert_eq!(told, [15, 20, 30]);
    }
}
