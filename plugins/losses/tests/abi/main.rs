//! The built-in losses as a host sees them: through the C ABI, and nothing else.

mod buffer;
mod contract;
mod extremes;
mod fused;
mod fused_cases;
mod golden_cases;
mod host;
mod peers;
mod speed;
mod types;

#[path = "../../src/golden.rs"]
#[allow(dead_code)]
mod golden;

use limbeck_losses::reference;
