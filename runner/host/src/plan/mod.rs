//! Document to plan: every default filled in, every reference resolved, every amount counted where it can be.
//!
//! Pure: opens no plugin, reads no data, writes nothing. Collects every problem instead of stopping at the first.

mod model;

pub use model::*;
