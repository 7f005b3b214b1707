//! Candle models as students: variables for training, a detached twin for everything else, vjp by one backward pass.
//!
//! Candle has no switch to turn gradients off: a forward over variables keeps its graph. So the model is built twice
//! over the same storage. The twin sees every in-place write and records nothing.

use super::weights::{Entry, Weights, parameters};
use super::{GradSlot, ModelCall, Outputs, OwnBackward, convert, model};
use crate::{
    Activation, BackwardCall, Error, ForwardCall, GradView, Host, Output, Parameter, Ports, Result,
    Settings, Student, Views,
};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, Var};
use std::collections::BTreeMap;
use std::ffi::c_void;

/// A student whose model is written with candle. Exported by `export! { candle_student MyStudent }`; the teacher
/// interface, gradients, export, buffers and frozen copies come with it.
///
/// `Self` is the built model. It is built twice in an activation, with the same code: see [`Weights`].
pub trait CandleStudent: Send + Sized + 'static {
    /// Plugin id.
    const ID: &'static str;
    /// One line for `limbeck plugin list`.
    const SUMMARY: &'static str = "";
    /// See [`crate::Loss::FEATURES`]; `bf16` too if the model takes trainable weights in bf16 (inputs and outputs stay
    /// f32).
    const FEATURES: &'static [&'static str] = &["deterministic"];
    /// [`super::BUILT_FOR`] if every operation of the model has a CUDA half too.
    const DEVICES: &'static [i32] = &[limbeck_abi::DL_CPU];
    /// Offers `folder_config`.
    const FOLDER: bool = false;
    /// Settings: what stands under `with`.
    type Config: Settings;

    /// \[main\] Refuses settings out of range, with [`Error::config`].
    ///
    /// # Errors
    /// Settings that no model can have.
    fn check(_config: &Self::Config) -> Result<()> {
        Ok(())
    }
    /// \[main\] May read small files, no weights. Outputs that are trained through are `output_grad`.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    fn ports(config: &Self::Config) -> Result<Ports>;
    /// \[main\] Bytes held and extra bytes at the peak of one call.
    ///
    /// # Errors
    /// Shapes that do not agree.
    fn estimate(_config: &Self::Config, _inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
    /// \[main\] As [`Student::folder_config`].
    ///
    /// # Errors
    /// A file that is missing or malformed.
    fn folder_config(_config: &Self::Config) -> Result<serde_json::Value> {
        Err(Error::unsupported("no Hugging Face form"))
    }
    /// \[step\] Builds the model from named weights.
    ///
    /// # Errors
    /// Files, memory.
    fn build(config: &Self::Config, weights: &mut Weights<'_>) -> Result<Self>;
    /// \[step\] Computes at least the wanted outputs. Use operations that have gradients only.
    ///
    /// # Errors
    /// Inputs that do not fit.
    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs>;
    /// \[step\] The host wrote parameters: refresh what this build derived from them. Called on both builds.
    ///
    /// # Errors
    /// None that a correct student has.
    fn params_changed(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What lives from `activate` to `deactivate`.
struct Live<T> {
    model: T,
    twin: T,
    entries: BTreeMap<String, Entry>,
    addresses: Vec<*mut c_void>,
    device: Device,
}

// SAFETY: the addresses are only used by the thread that the instance's calls are on (R9); the rest is `Send`.
unsafe impl<T: Send> Send for Live<T> {}

/// Makes a [`Student`] of a [`CandleStudent`].
pub struct StudentAdapter<T: CandleStudent> {
    config: T::Config,
    ports: Option<Ports>,
    live: Option<Live<T>>,
}

/// The graph of one forward pass.
pub struct Tape {
    outputs: Vec<(String, Tensor)>,
    inputs: Vec<Option<Var>>,
    backward: Option<OwnBackward>,
}

impl<T: CandleStudent> StudentAdapter<T> {
    fn live(&self) -> Result<(&Live<T>, &Ports)> {
        self.live.as_ref().zip(self.ports.as_ref()).ok_or_else(|| Error::internal("no model"))
    }
}

impl<T: CandleStudent> Student for StudentAdapter<T> {
    const ID: &'static str = T::ID;
    const SUMMARY: &'static str = T::SUMMARY;
    const FEATURES: &'static [&'static str] = T::FEATURES;
    const DEVICES: &'static [i32] = T::DEVICES;
    const FOLDER: bool = T::FOLDER;
    type Config = T::Config;
    type Tape = Tape;

    fn new(config: T::Config, _: &Host) -> Result<Self> {
        T::check(&config)?;
        Ok(Self { config, ports: None, live: None })
    }
    fn ports(&self) -> Result<Ports> {
        T::ports(&self.config)
    }
    fn estimate(&self, inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        T::estimate(&self.config, inputs)
    }
    fn folder_config(&self) -> Result<serde_json::Value> {
        T::folder_config(&self.config)
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()> {
        crate::limit_rayon(&activation.host(), true);
        self.ports = Some(T::ports(&self.config)?);
        let device = convert::device(activation.device())?;
        let mut weights = Weights::new(**activation, device.clone(), false);
        if Self::FEATURES.contains(&"bf16") {
            weights = weights.in_dtype(activation.param_dtype());
        }
        let model = T::build(&self.config, &mut weights)?;
        let mut weights = weights.into_twin();
        let twin = T::build(&self.config, &mut weights)?;
        let entries = weights.into_entries();
        let addresses =
            entries.values().map(|e| convert::address(e.var.as_tensor())).collect::<Result<_>>()?;
        self.live = Some(Live { model, twin, entries, addresses, device });
        Ok(())
    }
    fn deactivate(&mut self) {
        self.live = None;
    }
    fn params(&mut self) -> Result<Vec<Parameter>> {
        parameters(&self.live()?.0.entries)
    }
    fn params_changed(&mut self, _: &crate::Context<'_>) -> Result<()> {
        if let Some(live) = &mut self.live {
            live.model.params_changed()?;
            live.twin.params_changed()?;
        }
        Ok(())
    }

    fn forward(&mut self, call: &ForwardCall<'_>) -> Result<(Vec<Output>, Option<Tape>)> {
        let (live, ports) = self.live()?;
        let recorded = call.param_grad() || call.input_grad();
        if model::has_no_rows(call, ports)? {
            let tape = Tape { outputs: Vec::new(), inputs: Vec::new(), backward: None };
            return Ok((model::empty_outputs(call, ports)?, recorded.then_some(tape)));
        }
        let (model_call, inputs) = model::prepare(call, ports, &live.device)?;
        let model = if call.param_grad() { &live.model } else { &live.twin };
        let mut outputs = model.forward(&model_call)?;
        let backward = outputs.take_backward();
        let mut exported = Vec::with_capacity(call.wanted().len());
        let mut kept = Vec::new();
        for name in call.wanted() {
            let tensor = outputs.take(name)?;
            exported.push(convert::output(&tensor, &live.addresses)?);
            if recorded {
                kept.push(((*name).to_owned(), tensor));
            }
        }
        Ok((exported, recorded.then_some(Tape { outputs: kept, inputs, backward })))
    }

    fn backward(&mut self, call: &BackwardCall<'_>, mut tape: Tape) -> Result<()> {
        let (live, ports) = self.live()?;
        if let Some(backward) = tape.backward.take() {
            return own_backward(call, &tape, backward, live, ports);
        }
        let grads = vjp(call, &tape, &live.device)?;
        for (i, entry) in live.entries.values().enumerate() {
            let Some(to) = call.param_grad(i)? else { continue };
            let grad = entry.trainable.then(|| grads.get(entry.var.as_tensor())).flatten();
            convert::put_grad(to, 1.0, grad, call.context())?;
        }
        for i in 0..ports.inputs().count() {
            let Some(to) = call.input_grad(i)? else { continue };
            let grad = tape
                .inputs
                .get(i)
                .and_then(Option::as_ref)
                .and_then(|var| grads.get(var.as_tensor()));
            convert::put_grad(to, 1.0, grad, call.context())?;
        }
        Ok(())
    }
}

/// Lets the model write its gradients straight into the host's buffers; a buffer of another type or layout gets them
/// from a copy. Buffers and frozen parameters have gradient 0.
fn own_backward<T>(
    call: &BackwardCall<'_>,
    tape: &Tape,
    backward: OwnBackward,
    live: &Live<T>,
    ports: &Ports,
) -> Result<()> {
    let mut wanted: Vec<(&str, GradView<'_>)> = Vec::new();
    for (i, (name, entry)) in live.entries.iter().enumerate() {
        match (call.param_grad(i)?, entry.trainable) {
            (Some(to), true) => wanted.push((name, to)),
            (Some(mut to), false) => to.put_zeros()?,
            (None, _) => {}
        }
    }
    for (i, port) in ports.inputs().enumerate() {
        if let Some(mut to) = call.input_grad(i)? {
            match tape.inputs.get(i) {
                Some(Some(_)) => wanted.push((port.name(), to)),
                _ => to.put_zeros()?,
            }
        }
    }
    let is_direct = |to: &GradView<'_>| to.dtype() == crate::DType::F32 && to.is_contiguous();
    let mut copies: Vec<Vec<f32>> = wanted
        .iter()
        .map(|(_, to)| if is_direct(to) { Vec::new() } else { vec![0.0; to.elements()] })
        .collect();
    let mut slots = Vec::with_capacity(wanted.len());
    for ((name, to), copy) in wanted.iter_mut().zip(&mut copies) {
        slots.push(if is_direct(to) {
            GradSlot { name, accumulate: to.accumulate(), values: to.slice_mut::<f32>()? }
        } else {
            GradSlot { name, accumulate: false, values: copy }
        });
    }
    backward(cotangents(call, tape, &live.device)?, slots)?;
    for ((_, mut to), copy) in wanted.into_iter().zip(&copies) {
        if !is_direct(&to) {
            to.put(1.0, copy)?;
        }
    }
    Ok(())
}

/// Gradients of `Σ <output, cotangent>`.
fn vjp(call: &BackwardCall<'_>, tape: &Tape, device: &Device) -> Result<GradStore> {
    let mut root: Option<Tensor> = None;
    for (name, cotangent) in cotangents(call, tape, device)? {
        let Some((_, output)) = tape.outputs.iter().find(|(n, _)| *n == name) else { continue };
        let seed = output.apply_op1(Seed { cotangent })?;
        root = Some(match root {
            Some(sum) => (sum + seed)?,
            None => seed,
        });
    }
    match root {
        Some(root) => Ok(root.backward()?),
        None => Ok(GradStore::default()),
    }
}

/// Copies of the cotangents by output; each is checked against what the forward pass gave.
fn cotangents(
    call: &BackwardCall<'_>,
    tape: &Tape,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    let mut out = Vec::new();
    for (name, view) in call.cotangents()? {
        let Some((_, output)) = tape.outputs.iter().find(|(n, _)| n == name) else {
            if view.elements() == 0 {
                continue;
            }
            let message = format!("a cotangent for `{name}`, which the forward pass did not give");
            return Err(Error::invalid_argument(message).tensor(name));
        };
        let cotangent = convert::input(&view, device, call.context())?.to_dtype(output.dtype())?;
        if cotangent.dims() != output.dims() {
            let message =
                format!("cotangent {:?} for an output {:?}", cotangent.dims(), output.dims());
            return Err(Error::invalid_argument(message).tensor(name));
        }
        out.push((name.to_owned(), cotangent));
    }
    Ok(out)
}

/// A scalar whose gradient with respect to its argument is `cotangent`: the product that `Σ output · cotangent` would
/// make is never computed, nor a gradient for the constant.
struct Seed {
    cotangent: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "cotangent"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        Ok((super::gpu::zero(storage)?, Shape::from(())))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.cotangent.clone()))
    }
}
