//! The oracle against golden numbers, and against properties that need no numbers.

mod golden;
mod properties;
