//! One loss instance: its resolved settings, its ports, and the route of a call.

use super::memory::slot_bytes;
use super::{fast, oracle, ports, shapes};
use crate::cpu::{dense, scratch_bytes};
use crate::settings::{HiddenKind, Settings, Spec};
use limbeck_sdk::{DType, Error, Host, LossCall, LossParam, Ports, Result, Views};

/// What all plugins of this library are.
#[derive(Debug)]
pub struct Engine {
    spec: Spec,
    ports: Ports,
    #[cfg(feature = "cuda")]
    gpu: Option<crate::cuda::session::Session>,
    num_threads: usize,
}

impl Engine {
    /// Resolves the settings.
    ///
    /// # Errors
    /// INVALID_CONFIG with the pointer of the setting.
    pub fn new(settings: &impl Settings, host: &Host) -> Result<Self> {
        let spec = settings.resolve().map_err(|bad| Error::config(bad.pointer, bad.message))?;
        let ports = ports::of(&spec);
        Ok(Self {
            spec,
            ports,
            num_threads: host.num_threads(),
            #[cfg(feature = "cuda")]
            gpu: None,
        })
    }

    /// Finds the GPU, if it is to run on one.
    ///
    /// # Errors
    /// LMB_DEVICE if there is none.
    #[cfg(feature = "cuda")]
    pub fn activate(&mut self, activation: &limbeck_sdk::Activation<'_>) -> Result<()> {
        self.gpu = crate::cuda::session::Session::open(&self.spec, activation)?;
        Ok(())
    }

    /// Inputs and metrics.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Projectors and variances.
    ///
    /// # Errors
    /// Widths that are not known.
    pub fn params(&self, inputs: &Views<'_>) -> Result<Vec<LossParam>> {
        shapes::params(&self.spec, inputs)
    }

    /// Checks shapes; the workspace holds one slot a row, and for wide logits two rows for each thread.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn plan(&self, inputs: &Views<'_>) -> Result<u64> {
        shapes::check(&self.spec, inputs)?;
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.plan(&self.spec, &self.ports, inputs);
        }
        if !self.is_fast() {
            return Ok(0);
        }
        let name = self.ports.inputs().next().map_or("", |port| port.name());
        let rows = shapes::dim(inputs, name, 0)?.unwrap_or(0);
        let mut bytes = slot_bytes(rows.max(0) as usize);
        if let Spec::Dense(_) | Spec::CrossEntropy(_) | Spec::Sparse(_) = self.spec {
            let width = shapes::dim(inputs, name, 1)?.unwrap_or(0).max(0) as usize;
            let wide = inputs.named(name)?.is_some_and(|view| view.dtype() == DType::F64);
            let size = if wide { size_of::<f64>() } else { size_of::<f32>() };
            bytes += scratch_bytes(width, size, self.num_threads);
        }
        Ok(bytes as u64)
    }

    fn is_fast(&self) -> bool {
        match &self.spec {
            Spec::Dense(spec) => dense::knows(spec.divergence),
            Spec::CrossEntropy(_) | Spec::Sparse(_) => true,
            Spec::Hidden(hidden) => {
                matches!(hidden.kind, HiddenKind::Cosine { .. } | HiddenKind::Mse { .. })
            }
            _ => false,
        }
    }

    /// Value, metrics and gradients.
    ///
    /// # Errors
    /// BAD_DATA for labels out of range, INVALID_ARGUMENT for shapes.
    pub fn compute(&self, call: &LossCall<'_>) -> Result<()> {
        shapes::check(&self.spec, &call.inputs())?;
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.compute(&self.spec, &self.ports, call);
        }
        match &self.spec {
            Spec::Dense(spec) if dense::knows(spec.divergence) => {
                fast::dense(spec, &self.ports, call)
            }
            Spec::Linear(spec) if !fast::is_wide(call)? => fast::linear(spec, &self.ports, call),
            Spec::Sparse(spec) => fast::sparse(spec, &self.ports, call),
            Spec::CrossEntropy(spec) => fast::cross_entropy(spec, &self.ports, call),
            Spec::Hidden(spec) if self.is_fast() => fast::hidden(spec, &self.ports, call),
            spec => oracle::compute(spec, &self.ports, call),
        }
    }
}
