//! Log records of plugins become `tracing` events of target `limbeck::plugin`.
//!
//! `tracing` fixes an event's target at compile time, so the plugin's own target is a field. Filters select plugins'
//! records by `limbeck::plugin=LEVEL`. Never calls a plugin.

use super::slot::lossy;
use limbeck_abi as abi;
use std::ffi::c_int;
use std::fmt::Write;
use tracing::Level;

pub(super) unsafe extern "C" fn log_enabled(
    _: *const abi::Host,
    level: c_int,
    _target: abi::Str,
) -> c_int {
    super::guard(0, || {
        c_int::from(match level {
            ..=abi::LEVEL_TRACE => tracing::enabled!(target: "limbeck::plugin", Level::TRACE),
            abi::LEVEL_DEBUG => tracing::enabled!(target: "limbeck::plugin", Level::DEBUG),
            abi::LEVEL_INFO => tracing::enabled!(target: "limbeck::plugin", Level::INFO),
            abi::LEVEL_WARN => tracing::enabled!(target: "limbeck::plugin", Level::WARN),
            _ => tracing::enabled!(target: "limbeck::plugin", Level::ERROR),
        })
    })
}

pub(super) unsafe extern "C" fn log(_: *const abi::Host, record: *const abi::Log) {
    super::guard((), || {
        if record.is_null() || !abi::has!(record, abi::Log, span) {
            return;
        }
        // SAFETY: R3, R5: a record of at least this version, alive during the call.
        let record = unsafe { &*record };
        // SAFETY: as above.
        let (source, message, file) =
            unsafe { (lossy(record.target), lossy(record.message), lossy(record.file)) };
        // SAFETY: as above.
        let fields = unsafe { fields(record) };
        let line = record.line;
        macro_rules! emit {
            ($level:expr) => {
                tracing::event!(target: "limbeck::plugin", $level, plugin = %source, file = %file, line, fields = %fields, "{message}")
            };
        }
        match record.level {
            ..=abi::LEVEL_TRACE => emit!(Level::TRACE),
            abi::LEVEL_DEBUG => emit!(Level::DEBUG),
            abi::LEVEL_INFO => emit!(Level::INFO),
            abi::LEVEL_WARN => emit!(Level::WARN),
            _ => emit!(Level::ERROR),
        }
    });
}

/// `key=value key=value`.
unsafe fn fields(record: &abi::Log) -> String {
    let mut text = String::new();
    if record.fields.is_null() {
        return text;
    }
    let count = usize::try_from(record.num_fields).unwrap_or(0).min(64);
    // SAFETY: R5: `fields` has `num_fields` entries.
    for field in unsafe { std::slice::from_raw_parts(record.fields, count) } {
        let space = if text.is_empty() { "" } else { " " };
        // SAFETY: R6.
        let key = unsafe { lossy(field.key) };
        let value = field.value;
        // SAFETY: `kind` names the member of the union that was written.
        let value = unsafe {
            match value.kind {
                abi::VALUE_BOOL => (value.u.i != 0).to_string(),
                abi::VALUE_I64 => value.u.i.to_string(),
                abi::VALUE_F64 => value.u.f.to_string(),
                abi::VALUE_STR => lossy(value.u.s).into_owned(),
                _ => "?".to_owned(),
            }
        };
        let _ = write!(text, "{space}{key}={value}");
    }
    text
}
