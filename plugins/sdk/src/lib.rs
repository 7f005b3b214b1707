//! Write Limbeck plugins in Rust.
#![warn(missing_docs)]

#[cfg(panic = "abort")]
compile_error!(
    "plugins must be built with panic = \"unwind\": under \"abort\" no guard can catch a panic"
);

pub mod buffers;
mod error;
pub mod export;
mod guard;
mod host;
mod kinds;
mod log;
mod loss;
pub mod numeric;
mod output;
mod pools;
mod ports;
mod random;
mod rows;
mod scheduler;
mod settings;
pub mod state;
mod student;
mod teacher;
pub mod testing;
pub mod vector;
mod views;

#[cfg(feature = "candle")]
pub mod candle;

pub use error::{Error, Result};
pub use host::{Activation, Context, Host, Memory, require_cpu};
pub use limbeck_abi as abi;
pub use loss::{Counted, IGNORED_LABEL, Loss, LossCall, LossParam};
pub use output::Output;
pub use pools::limit_rayon;
pub use ports::{Port, Ports};
pub use random::{Random, derive_key};
pub use scheduler::{Event, Group, Knob, Probe, Requests, Schedule, Scheduler, Term};
pub use settings::{NoSettings, Settings, parse as parse_settings, schema as settings_schema};
pub use student::{BackwardCall, Parameter, Student};
pub use teacher::{ForwardCall, Teacher};
pub use views::{Column, DType, Element, GradView, Row, RowIter, Rows, TypedRows, View, Views};

pub use half;
pub use schemars;
pub use serde;
pub use serde_json;
pub use tracing;

/// What most plugins need: `use limbeck_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Activation, Column, Context, DType, Error, Event, ForwardCall, Group, Host, Loss, LossCall,
        LossParam, NoSettings, Output, Port, Ports, Random, Requests, Result, Schedule, Scheduler,
        Student, Teacher, Term, View, Views,
    };
    pub use schemars::JsonSchema;
    pub use serde::Deserialize;
}
