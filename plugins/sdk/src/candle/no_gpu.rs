//! The build without candle's CUDA half: a GPU is refused, never silently replaced.

use crate::{Error, Result};
use candle_core::Device;
use limbeck_abi as abi;

/// What candle plugins of this build can compute on.
pub const BUILT_FOR: &[i32] = &[abi::DL_CPU];

/// # Errors
/// UNSUPPORTED.
pub(super) fn device(ordinal: i32) -> Result<Device> {
    Err(Error::unsupported(format!("GPU {ordinal}: this library was built for the CPU")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gpu_is_refused_and_not_replaced() {
        let error = super::device(1).unwrap_err();
        assert_eq!(error.status(), limbeck_abi::STATUS_UNSUPPORTED);
        assert_eq!(error.message(), "GPU 1: this library was built for the CPU");
    }
}
