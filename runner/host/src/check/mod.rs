//! Conformance checks of plugins, as data: id, clause of the contract, function.
//!
//! A check drives a library through its raw tables, as an adversarial host would, and says pass, fail, skip or warn;
//! the [`driver`] runs each in a process of its own, so that a crash or a hang is a result too. What a check refuses
//! is a clause of `limbeck.h`; matters of taste are warnings.

pub mod driver;

mod config;
mod descriptor;
mod effects;
mod events;
mod file;
mod library;
mod lifecycle;
mod live;
mod loss;
mod memory;
mod model;
mod pressure;
mod sample;
mod scheduler;
mod state;
mod subject;

pub use subject::Subject;

use crate::load::catalogue::PluginKind;
use serde::{Deserialize, Serialize};

/// Why a check did not simply pass.
#[derive(Clone, Debug)]
pub enum Miss {
    /// The contract is broken.
    Fail {
        /// What the clause demands.
        expected: String,
        /// What happened.
        found: String,
    },
    /// Does not apply, or cannot be done here.
    Skip(String),
    /// Legal, but likely to hurt.
    Warn(String),
}

/// A broken clause.
fn fail(expected: impl Into<String>, found: impl Into<String>) -> Miss {
    Miss::Fail { expected: expected.into(), found: found.into() }
}

/// A fact worth showing, or a miss.
pub type Outcome = Result<String, Miss>;

/// One check.
pub struct Check {
    /// `loss.accumulate`: tier, dot, name.
    pub id: &'static str,
    /// Rule of `limbeck.h` that it holds a plugin to.
    pub clause: &'static str,
    /// Kinds of plugin that it applies to; empty: the library as a whole.
    pub kinds: &'static [PluginKind],
    run: fn(&mut Subject) -> Outcome,
}

/// Every kind.
const ALL: &[PluginKind] =
    &[PluginKind::Teacher, PluginKind::Student, PluginKind::Loss, PluginKind::Scheduler];

/// Every check, in the order of the tiers.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [
        file::CHECKS,
        library::CHECKS,
        descriptor::CHECKS,
        config::CHECKS,
        lifecycle::CHECKS,
        loss::CHECKS,
        model::CHECKS,
        scheduler::CHECKS,
        state::CHECKS,
        pressure::CHECKS,
    ]
    .into_iter()
    .flatten()
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As the contract says.
    Pass,
    /// Not as the contract says.
    Fail,
    /// The process died.
    Crash,
    /// It did not end.
    Hang,
    /// Does not apply.
    Skip,
    /// Legal, but likely to hurt.
    Warn,
}

impl Verdict {
    /// Whether the library must be refused.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Crash | Self::Hang)
    }
}

/// Result of one check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Check id.
    pub check: String,
    /// Plugin, unless the check is about the library.
    pub plugin: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// Facts, or expected and found.
    pub text: String,
    /// Rule of `limbeck.h`.
    pub clause: String,
    /// Wall time.
    pub seconds: f64,
    /// Plugins of the library: only in the answer of `load.entry`.
    #[serde(default)]
    pub plugins: Vec<(String, String)>,
}

/// Runs one check here and now. A crash of the plugin is a crash of this process.
pub fn run_one(check: &Check, subject: &mut Subject) -> Report {
    let begin = std::time::Instant::now();
    let (verdict, text) = match (check.run)(subject) {
        Ok(fact) => (Verdict::Pass, fact),
        Err(Miss::Fail { expected, found }) => {
            (Verdict::Fail, format!("expected {expected}; found {found}"))
        }
        Err(Miss::Skip(why)) => (Verdict::Skip, why),
        Err(Miss::Warn(why)) => (Verdict::Warn, why),
    };
    let is_entry = check.id == library::ENTRY;
    Report {
        check: check.id.to_owned(),
        plugin: if check.kinds.is_empty() { None } else { subject.plugin.clone() },
        verdict,
        text,
        clause: check.clause.to_owned(),
        seconds: begin.elapsed().as_secs_f64(),
        plugins: if is_entry && verdict == Verdict::Pass { subject.plugins() } else { Vec::new() },
    }
}
