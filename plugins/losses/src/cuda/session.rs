//! A loss instance on a GPU, from activation to deactivation.

use super::launch::{Device, device};
use super::lt::{Lt, lt};
use super::prepared::family;
use super::{linear, plan};
use crate::settings::{Hidden, HiddenKind, Projector, Spec};
use limbeck_sdk::{Activation, Error, LossCall, Ports, Result, Views, abi};

/// The GPU an instance is active on.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub(super) device: &'static Device,
    /// Of losses that multiply matrices.
    pub(super) lt: Option<&'static Lt>,
}

impl Session {
    /// The GPU of the activation's stream; `None` on a CPU.
    ///
    /// # Errors
    /// LMB_DEVICE without a driver, or without cuBLASLt if the loss needs it; LMB_UNSUPPORTED for other devices and for losses without kernels.
    pub fn open(spec: &Spec, activation: &Activation<'_>) -> Result<Option<Self>> {
        let target = activation.abi().stream.device;
        match target.device_type {
            abi::DL_CPU => Ok(None),
            abi::DL_CUDA => {
                is_supported(spec)?;
                let device = device(target.device_id)?;
                let products = matches!(spec, Spec::Linear(_));
                let lt = if products { Some(lt(target.device_id)?) } else { None };
                Ok(Some(Self { device, lt }))
            }
            other => Err(Error::unsupported(format!("no kernels for device type {other}"))),
        }
    }

    /// Bytes of workspace: a slot a row, for each pair of layers; of a fused loss its chunks.
    ///
    /// # Errors
    /// LMB_UNSUPPORTED for f64, more than 1024 kept columns, more columns than fit.
    pub fn plan(&self, spec: &Spec, ports: &Ports, inputs: &Views<'_>) -> Result<u64> {
        if let Spec::Linear(fused) = spec {
            return linear::plan(self, fused, inputs);
        }
        let mut rows = 0;
        for port in ports.inputs() {
            let Some(view) = inputs.named(port.name())? else { continue };
            let dims = view.shape();
            let columns = dims.last().copied().unwrap_or(0);
            let float = port.element_types().iter().all(|dtype| dtype.is_float());
            if float && dims.len() == 2 && !plan::is_taken(view.dtype()) {
                let message =
                    format!("kernels take f32, f16 and bf16, not {}", view.dtype().name());
                return Err(Error::unsupported(message).tensor(port.name()));
            }
            if dims.len() == 2 && columns > plan::MAX_COLUMNS as i64 {
                let message = format!("{columns} columns, at most {}", plan::MAX_COLUMNS);
                return Err(Error::unsupported(message).tensor(port.name()));
            }
            let kept = port.name() == "teacher.topk.indices" && dims.len() == 2;
            if kept && columns > plan::MAX_KEPT as i64 {
                let message =
                    format!("{columns} kept columns, at most {} on a GPU", plan::MAX_KEPT);
                return Err(Error::unsupported(message).tensor(port.name()));
            }
            if dims.len() == 2 && port.is_differentiable() {
                rows = dims[0].max(0) as u64;
            }
        }
        let pairs = match spec {
            Spec::Hidden(hidden) => hidden.layers.len().max(1),
            _ => 1,
        };
        Ok(rows * pairs as u64 * plan::SLOT_BYTES as u64)
    }

    /// Value, metrics and gradients, as launches on the call's stream.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for views elsewhere, what the driver says.
    pub fn compute(&self, spec: &Spec, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
        super::call::compute(self, spec, ports, call)
    }
}

fn is_supported(spec: &Spec) -> Result<()> {
    let projected = |hidden: &Hidden| {
        matches!(hidden.kind, HiddenKind::Mse { projector: Projector::Linear, .. })
    };
    match spec {
        Spec::Dense(dense) if family(dense.divergence).is_some() => Ok(()),
        Spec::Linear(linear) if family(linear.dense.divergence).is_some() => Ok(()),
        Spec::CrossEntropy(_) | Spec::Sparse(_) => Ok(()),
        Spec::Hidden(hidden) if projected(hidden) => {
            let message =
                "a linear projector has no CUDA kernel; use `projector: none` or `device: cpu`";
            Err(Error::unsupported(message))
        }
        Spec::Hidden(Hidden {
            kind: HiddenKind::Mse { .. } | HiddenKind::Cosine { .. }, ..
        }) => Ok(()),
        _ => Err(Error::unsupported("this loss has no CUDA kernel; use `device: cpu`")),
    }
}
