//! Write Limbeck plugins in Rust: losses, teachers, students and schedulers as shared libraries.
//!
//! # A loss in ten minutes
//!
//! **1. A crate.** A plugin is a `cdylib`; one library may hold several plugins.
//!
//! ```toml
//! [package]
//! name = "my-losses"
//! version = "0.1.0"
//! edition = "2024"
//! license = "MIT"
//!
//! [lib]
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! limbeck-sdk = { path = "../limbeck/plugins/sdk" }
//! ```
//!
//! **2. The loss.** Settings are a struct: its JSON Schema is what the pipeline's `with` is checked against. Ports name
//! inputs after their default source, so a pipeline needs no wiring. `sum_rows` asks for one row at a time: return its
//! value, write its gradient; counting, weights, scale, accumulation, element types, empty batches and threads are done.
//!
//! ```
//! use limbeck_sdk::{numeric::log_softmax, prelude::*, schemars, serde};
//!
//! /// Settings of `org.example.reverse-kl`.
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(crate = "serde", deny_unknown_fields)]
//! struct Config { temperature: f64 }
//! struct ReverseKl(f64);
//!
//! impl Loss for ReverseKl {
//!     const ID: &'static str = "org.example.reverse-kl";
//!     type Config = Config;
//!     fn new(c: Config, _: &Host) -> Result<Self> { Ok(Self(c.temperature)) }
//!     fn ports(&self) -> Ports { Ports::new().input_grad("student.logits", "N,V").input("teacher.logits", "N,V") }
//!     fn compute(&mut self, call: &LossCall) -> Result<()> {
//!         let (s, q, t) = (call.rows(0)?, call.rows(1)?, self.0);
//!         call.sum_rows(|i, grad| {
//!             let (lp, lq) = (log_softmax(s.row(i), t), log_softmax(q.row(i), t));
//!             let kl: f64 = lp.iter().zip(&lq).map(|(p, q)| p.exp() * (p - q)).sum();
//!             for (g, (p, q)) in grad.iter_mut().zip(lp.iter().zip(&lq)) { *g = p.exp() * (p - q - kl) * t }
//!             kl * t * t
//!         })
//!     }
//! }
//! limbeck_sdk::export! { loss ReverseKl }
//!
//! // 3. A test: gradients against differences, ACCUMULATE, scale, normalizer, threads, empty batches.
//! # fn main() {
//! limbeck_sdk::gradcheck!(ReverseKl, {"temperature": 2.0});
//! # }
//! ```
//!
//! **3. A test** is the last line above; put it into `#[test] fn`. Add `.counting()` to the ports and rows with label
//! −100 or `row_mask` 0 drop out, without a change of `compute`.
//!
//! **4. Use it.** `cargo build --release`, then `limbeck plugin check target/release/libmy_losses.so`, and in a pipeline:
//!
//! ```yaml
//! plugins:
//!   - {id: org.example.reverse-kl, path: target/release/libmy_losses.so}
//! loss:
//!   - {uses: org.example.reverse-kl, weight: 0.5, with: {temperature: 4.0}}
//! ```
//!
//! Refuse a setting where it is wrong: `return Err(Error::config("/temperature", "must be above 0"))` in `new` shows the
//! line of the pipeline.
//!
//! # The same as an expression
//!
//! With feature `candle` the author writes the value of each row and the SDK takes the gradient. It costs copies and a
//! graph in f32; right for research, and for small vocabularies.
//!
#![cfg_attr(feature = "candle", doc = "```")]
#![cfg_attr(not(feature = "candle"), doc = "```ignore")]
//! use limbeck_sdk::{candle::prelude::*, schemars, serde};
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(crate = "serde", deny_unknown_fields)]
//! struct Config { temperature: f64 }
//! struct ForwardKl(f64);
//!
//! impl CandleLoss for ForwardKl {
//!     const ID: &'static str = "org.example.forward-kl";
//!     type Config = Config;
//!     fn new(c: Config, _: &Host) -> Result<Self> { Ok(Self(c.temperature)) }
//!     fn ports(&self) -> Ports { Ports::new().input_grad("student.logits", "N,V").input("teacher.logits", "N,V") }
//!     fn value(&self, x: &Inputs) -> Candle<Tensor> {
//!         let log_p = log_softmax(&(x.get("teacher.logits")? / self.0)?, D::Minus1)?;
//!         let log_q = log_softmax(&(x.get("student.logits")? / self.0)?, D::Minus1)?;
//!         (log_p.exp()? * (&log_p - &log_q)?)?.sum(D::Minus1)? * (self.0 * self.0)
//!     }
//! }
//! limbeck_sdk::export! { candle_loss ForwardKl }
//! # fn main() { limbeck_sdk::gradcheck!(candle ForwardKl, {"temperature": 2.0}); }
//! ```
//!
//! # The other kinds
//!
//! | kind | trait | with candle |
//! |---|---|---|
//! | loss | [`Loss`] | `candle::CandleLoss` |
//! | teacher | [`Teacher`] | `candle::CandleTeacher` |
//! | student | [`Student`] | `candle::CandleStudent` |
//! | scheduler | [`Scheduler`] | – |
//!
//! - Randomness comes from the call alone: [`Context::rng`]. A replayed step draws the same numbers.
//! - Threads come from the host: [`Host::parallel_for`].
//! - `tracing` events reach the run's log, with the step they belong to.
//! - A panic is caught, reported with its text and place, and ends the use of the instance; never the run's process.
//! - [`testing`] is a host in memory for tests of all four kinds; [`buffers`] and [`vector`] serve schedulers.
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
