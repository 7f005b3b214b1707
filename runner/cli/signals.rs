//! SIGINT, SIGTERM, SIGHUP: the first asks the run to stop after the step, the second ends the process at once.

use crate::startup;
use limbeck_host::run::Control;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Listens from now until the process ends. A system that refuses is left with the default behaviour.
pub fn listen(control: Control) {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    let listener = std::thread::Builder::new().name("limbeck-signals".into());
    let _ = listener.spawn(move || {
        let mut seen = false;
        for signal in &mut signals {
            if seen {
                startup::report_killed(name(signal), control.running_call());
                // The parent sees a death by this signal: 128 + n.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            seen = true;
            control.request_stop(name(signal));
        }
    });
}

fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGTERM => "SIGTERM",
        SIGHUP => "SIGHUP",
        _ => "a signal",
    }
}
