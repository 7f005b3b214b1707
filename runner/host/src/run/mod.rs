//! Live instances to a trained student.

pub mod event;
