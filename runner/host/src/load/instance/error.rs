//! A failed plugin call: who, which call, what was said.
//!
//! Unknown status codes read as LMB_INTERNAL. A message is never empty.

use super::super::codes;
use super::super::services::ErrorSlot;
use crate::diagnostic::Diagnostic;
use limbeck_abi as abi;

/// A plugin call that failed, attributed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("plugin `{plugin}` {version} failed in {call}: {message}")]
pub struct PluginError {
    /// Plugin id.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// `forward`, `compute`, ...
    pub call: &'static str,
    /// `limbeck_abi::STATUS_*`.
    pub status: i32,
    /// What the plugin said; the meaning of the status if it said nothing.
    pub message: String,
    /// `pointer`, `tensor`, `row`, `native_code`, ...
    pub notes: Vec<(String, String)>,
}

impl PluginError {
    /// From a call's status and slot.
    pub(crate) fn from_slot(
        (plugin, version): (&str, &str),
        call: &'static str,
        status: abi::Status,
        slot: ErrorSlot,
    ) -> Self {
        let report = slot.into_report();
        let mut notes = report.notes;
        if !(abi::STATUS_OK..=abi::STATUS_PANIC).contains(&status) {
            notes.push(("status".into(), format!("{status:#x}")));
        }
        let status = known(status);
        let message = match report.message {
            text if text.is_empty() => meaning(status).to_owned(),
            text => text,
        };
        Self { plugin: plugin.into(), version: version.into(), call, status, message, notes }
    }

    /// Found by the host: the plugin broke the contract, or the host called it out of order.
    pub(crate) fn new(
        (plugin, version): (&str, &str),
        call: &'static str,
        status: abi::Status,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self {
            plugin: plugin.into(),
            version: version.into(),
            call,
            status,
            message,
            notes: Vec::new(),
        }
    }

    /// The note of this key, e.g. `pointer`.
    pub fn note(&self, key: &str) -> Option<&str> {
        self.notes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// For people: code, message, notes; the caller adds the place.
    pub fn diagnostic(&self) -> Diagnostic {
        let (plugin, version, call) = (&self.plugin, &self.version, self.call);
        let (code, text) = match self.status {
            abi::STATUS_PANIC => (
                codes::PLUGIN_PANICKED,
                format!("plugin `{plugin}` panicked in {call}: {}", self.message),
            ),
            abi::STATUS_INVALID_CONFIG => (
                codes::PLUGIN_REFUSED_SETTING,
                format!("plugin `{plugin}` refuses its settings: {}", self.message),
            ),
            abi::STATUS_OUT_OF_MEMORY => (
                codes::PLUGIN_OUT_OF_MEMORY,
                format!("plugin `{plugin}` ran out of memory in {call}: {}", self.message),
            ),
            abi::STATUS_CANCELLED => {
                (codes::PLUGIN_CANCELLED, format!("plugin `{plugin}` stopped {call} as asked"))
            }
            _ if self.note("contract").is_some() => (
                codes::PLUGIN_BROKE_CONTRACT,
                format!("plugin `{plugin}` broke its contract in {call}: {}", self.message),
            ),
            status => {
                let code = match status {
                    abi::STATUS_BAD_DATA => codes::PLUGIN_BAD_DATA,
                    abi::STATUS_NOT_FOUND => codes::PLUGIN_NOT_FOUND,
                    abi::STATUS_DEVICE => codes::PLUGIN_DEVICE,
                    abi::STATUS_IO => codes::PLUGIN_IO,
                    abi::STATUS_NON_FINITE => codes::PLUGIN_NOT_FINITE,
                    _ => codes::PLUGIN_FAILED,
                };
                (code, format!("plugin `{plugin}` failed in {call}: {}", self.message))
            }
        };
        let mut diagnostic = Diagnostic::error(code, text).note(format!(
            "version {version}, status {} ({})",
            self.status,
            meaning(self.status)
        ));
        for (key, value) in self.notes.iter().filter(|(key, _)| key != "contract") {
            diagnostic = diagnostic.note(format!("{key}: {value}"));
        }
        diagnostic
    }

    /// Whether the fault is the plugin's (exit 76): a panic or a broken contract.
    pub fn is_contract(&self) -> bool {
        self.status == abi::STATUS_PANIC || self.note("contract").is_some()
    }
}

/// Unknown codes are LMB_INTERNAL (header, status codes).
fn known(status: abi::Status) -> abi::Status {
    if (abi::STATUS_OK..=abi::STATUS_PANIC).contains(&status) {
        status
    } else {
        abi::STATUS_INTERNAL
    }
}

/// What a status means.
pub fn meaning(status: abi::Status) -> &'static str {
    match status {
        abi::STATUS_OK => "success",
        abi::STATUS_CANCELLED => "cancelled",
        abi::STATUS_INVALID_ARGUMENT => "invalid argument",
        abi::STATUS_INVALID_CONFIG => "invalid settings",
        abi::STATUS_INVALID_STATE => "call not legal in this state",
        abi::STATUS_NOT_FOUND => "not found",
        abi::STATUS_UNSUPPORTED => "unsupported type, device or shape",
        abi::STATUS_OUT_OF_MEMORY => "out of memory",
        abi::STATUS_DEVICE => "device error",
        abi::STATUS_IO => "input or output failed",
        abi::STATUS_BAD_DATA => "malformed data",
        abi::STATUS_NON_FINITE => "a value is not finite",
        abi::STATUS_PANIC => "panic",
        _ => "internal error",
    }
}
