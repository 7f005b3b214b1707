//! The losses as plugins of the C ABI: one type an id, one engine behind all of them.
//!
//! A plugin is settings, ports derived from them, and a route: the fast CPU path where there is one, else
//! the f64 oracle, whose price is a copy of the inputs. Refuses at `create` what the settings refuse, at
//! `plan` shapes that do not agree, at `compute` malformed data.

mod catalogue;
mod engine;
mod fast;
mod memory;
mod oracle;
mod ports;
mod shapes;

pub use catalogue::*;
#[cfg(feature = "cuda")]
pub(crate) use fast::check_labels;
