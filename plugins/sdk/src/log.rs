//! Sends this library's `tracing` events to the host: without it they vanish, as each library has its own dispatcher.
//!
//! Keeps no state but the parent span of the call that is running on the thread.

use crate::Host;
use limbeck_abi as abi;
use std::cell::Cell;
use std::fmt::Write as _;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    static SPAN: Cell<u64> = const { Cell::new(0) };
}

/// Restores the previous parent span on drop.
pub(crate) struct Entered(u64);

/// Makes `span` (`lmb_ctx.span`) the parent of records of this thread.
pub(crate) fn enter(span: u64) -> Entered {
    Entered(SPAN.replace(span))
}

impl Drop for Entered {
    fn drop(&mut self) {
        SPAN.set(self.0);
    }
}

/// Installs the forwarder; a second time, or with a subscriber already there, nothing happens.
pub(crate) fn install(host: Host) {
    let _ = tracing::subscriber::set_global_default(Forwarder { host });
}

struct Forwarder {
    host: Host,
}

fn level(level: &Level) -> i32 {
    match *level {
        Level::TRACE => abi::LEVEL_TRACE,
        Level::DEBUG => abi::LEVEL_DEBUG,
        Level::INFO => abi::LEVEL_INFO,
        Level::WARN => abi::LEVEL_WARN,
        Level::ERROR => abi::LEVEL_ERROR,
    }
}

impl Subscriber for Forwarder {
    /// Never cached as "always" or "never", because the host's answer may change while running.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        tracing::subscriber::Interest::sometimes()
    }
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let host = self.host.abi();
        // SAFETY: [any]; the text is borrowed for the call.
        metadata.is_event()
            && unsafe {
                (host.log_enabled)(host, level(metadata.level()), abi::Str::new(metadata.target()))
            } != 0
    }
    /// Spans of plugins are not forwarded; records hang below the call's span.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let kvs: Vec<abi::Kv> = fields
            .others
            .iter()
            .map(|(key, value)| abi::Kv { key: abi::Str::new(key), value: value.abi() })
            .collect();
        let record = abi::Log {
            struct_size: abi::struct_size::<abi::Log>(),
            level: level(metadata.level()),
            line: metadata.line().unwrap_or(0) as i32,
            target: abi::Str::new(metadata.target()),
            file: abi::Str::new(metadata.file().unwrap_or("")),
            message: abi::Str::new(&fields.message),
            fields: kvs.as_ptr(),
            num_fields: kvs.len() as u64,
            span: SPAN.get(),
        };
        let host = self.host.abi();
        // SAFETY: [any]; the record is borrowed for the call.
        unsafe { (host.log)(host, &record) }
    }
}

enum Value {
    Bool(bool),
    I64(i64),
    F64(f64),
    Text(String),
}

impl Value {
    fn abi(&self) -> abi::Value {
        match self {
            Self::Bool(b) => crate::Knob::Bool(*b),
            Self::I64(i) => crate::Knob::I64(*i),
            Self::F64(f) => crate::Knob::F64(*f),
            Self::Text(s) => crate::Knob::Str(s),
        }
        .abi()
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), Value::Bool(value)));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), Value::I64(value)));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.others.push((field.name(), Value::I64(value))),
            Err(_) => self.others.push((field.name(), Value::Text(value.to_string()))),
        }
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), Value::F64(value)));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.others.push((field.name(), Value::Text(value.to_owned())));
        }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others.push((field.name(), Value::Text(format!("{value:?}"))));
        }
    }
}
