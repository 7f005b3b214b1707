//! Runs distillation pipelines.
//!
//! A run goes through four phases, a folder each: [`document`] (YAML text to what the author wrote, with places),
//! [`plan`] (defaults, references, amounts; pure), [`load`] (plugins opened, created, wired; no weights) and [`run`]
//! (training, evaluation, checkpoints). Each phase reports all its problems as [`diagnostic::Diagnostic`]s.
//! Nothing here prints or exits: the program around it does.

pub mod cache;
pub mod check;
pub mod data;
pub mod device;
pub mod diagnostic;
pub mod document;
pub mod load;
pub mod plan;
pub mod report;
pub mod run;
pub mod tensor;
pub mod trial;
