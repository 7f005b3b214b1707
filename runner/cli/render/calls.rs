//! What happens inside a plugin's call that takes long: how far it is, and that it may hang.
//!
//! Told from other threads than the run's. Speaks up after ten seconds of one call, then every ten.

use super::{Renderer, stdout};
use crate::args::Progress;
use limbeck_host::run::watch::Notice;
use serde_json::json;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines about one call.
const EVERY: Duration = Duration::from_secs(10);
/// Words about progress that are further apart belong to different calls.
const PAUSE: Duration = Duration::from_secs(60);

/// Shows calls.
pub struct CallView {
    renderer: Renderer,
    pace: Mutex<Pace>,
}

/// When something was shown (or the call began), and when something was heard.
#[derive(Default)]
struct Pace(Option<(Instant, Instant)>);

impl Pace {
    fn is_due(&mut self, now: Instant) -> bool {
        let (shown, heard) = self.0.unwrap_or((now, now));
        if now.duration_since(heard) > PAUSE {
            self.0 = Some((now, now));
            return false;
        }
        let due = now.duration_since(shown) >= EVERY;
        self.0 = Some((if due { now } else { shown }, now));
        due
    }
}

impl CallView {
    /// Shows nothing yet.
    pub fn new(renderer: Renderer) -> Self {
        Self { renderer, pace: Mutex::default() }
    }

    /// Tells it, if it is time.
    pub fn notice(&self, notice: &Notice) {
        match notice {
            Notice::Slow(warning) => self.renderer.problem(warning),
            Notice::Progress { done, total, what } => {
                let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
                if !pace.is_due(Instant::now()) {
                    return;
                }
                if self.renderer.is_json() {
                    let value = json!({"type": "call_progress", "done": done, "total": total, "what": what});
                    stdout(&value.to_string());
                } else if self.renderer.progress != Progress::None {
                    self.renderer.note(&line(*done, *total, what));
                }
            }
        }
    }
}

fn line(done: u64, total: u64, what: &str) -> String {
    if total == 0 { format!("{what}  {done}") } else { format!("{what}  {done}/{total}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_shown_every_ten_seconds_and_a_new_one_starts_over() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        let mut is_due = |second| pace.is_due(begin + Duration::from_secs(second));
        assert_eq!((0..35).filter(|s| is_due(*s)).collect::<Vec<u64>>(), [10, 20, 30]);
        assert!(!is_due(500));
        assert!(is_due(510));
        assert_eq!(line(3, 0, "rows"), "rows  3");
        assert_eq!(line(3, 9, "rows"), "rows  3/9");
    }
}
