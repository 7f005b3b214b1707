//! The losses on GPUs without a GPU: the whole path through the C ABI, the driver's table and the kernels, on a
//! machine whose threads are fibers (cuda/emulate). What this cannot show is speed, memory ordering and the
//! rounding of two approximate instructions; benches/gpu.sh shows those where a GPU is.

mod arithmetic;
mod emulator;
mod extremes;
mod golden_cases;
mod linear;
mod memory;
mod names;
mod plan;
mod rows;
mod vector;

#[path = "../abi/buffer.rs"]
mod buffer;
#[path = "../abi/fused_cases.rs"]
mod fused_cases;
#[path = "../../src/golden.rs"]
#[allow(dead_code)]
mod golden;
#[path = "../abi/host.rs"]
#[allow(dead_code)]
mod host;

use limbeck_losses::reference;
