//! A model of `limbeck-models` as the SDK's candle student wants it: ports, named weights, one forward pass.
//!
//! Knows no architecture. Invariant: both builds of an activation go through the same code over the same storage.

use limbeck_models::{Architecture, Mode, Model, ModelError, Params, Role};
use limbeck_sdk::candle::{CandleDType, ModelCall, Outputs, Weights};
use limbeck_sdk::prelude::*;

use crate::start::Start;

/// A built model and the names of its inputs.
pub(crate) struct Built {
    model: Box<dyn Model>,
    inputs: Vec<(String, CandleDType)>,
}

/// A setting that is out of its domain, with its place.
pub(crate) fn setting_error(error: ModelError) -> Error {
    match &error {
        ModelError::Setting { setting, .. } => {
            Error::config(format!("/{setting}"), error.to_string())
        }
        _ => Error::internal(error.to_string()),
    }
}

/// The ports of an architecture; sizes are numbers.
pub(crate) fn ports(architecture: &dyn Architecture, start: Option<&Start>) -> Result<Ports> {
    if let Some(start) = start {
        start.check(architecture)?;
    }
    let mut ports = Ports::new();
    for port in architecture.inputs() {
        let input = match port.differentiable {
            true => Port::input(port.name, port.shape).differentiable(),
            false => Port::input(port.name, port.shape).dtypes(&[DType::I64]),
        };
        let input = if port.optional { input.optional() } else { input };
        ports = ports.with(input.doc(port.doc));
    }
    for port in architecture.outputs() {
        let output = Port::output(port.name, port.shape).doc(port.doc);
        ports = ports.with(if port.differentiable { output.differentiable() } else { output });
    }
    Ok(ports)
}

/// Bytes of parameters, and of what a training call holds besides: activations and their gradients, each once more
/// as a temporary, and the gradients of the parameters.
pub(crate) fn estimate(
    architecture: &dyn Architecture,
    inputs: &Views<'_>,
) -> Result<Option<(u64, u64)>> {
    const FLOAT: u64 = 4;
    let specs = architecture.params().map_err(setting_error)?;
    let held = specs.iter().map(|spec| spec.count() as u64 * FLOAT).sum::<u64>();
    let Some(view) = inputs.get(0)? else { return Ok(Some((held, 2 * held))) };
    let rows = view.shape().first().copied().unwrap_or(0).max(0) as u64;
    let activations = rows.saturating_mul(architecture.activations_per_row());
    Ok(Some((held, held.saturating_add(activations.saturating_mul(3 * FLOAT)))))
}

/// Builds a model over `weights`; the first build draws or reads their values.
pub(crate) fn build(
    architecture: &dyn Architecture,
    start: Option<&Start>,
    weights: &mut Weights<'_>,
) -> Result<Built> {
    let specs = architecture.params().map_err(setting_error)?;
    let read = match start {
        Some(start) if !weights.is_twin() => Some(start.read(&specs, weights)?),
        _ => None,
    };
    let key = weights.context().rng_key();
    let internal = |error: ModelError| Error::internal(error.to_string());
    let mut params = Params::default();
    for spec in &specs {
        let (is_trained, no_decay) = (spec.role != Role::Buffer, spec.role != Role::Weight);
        let value = |device: &limbeck_sdk::candle::Device| match &read {
            Some(read) => read.get(&spec.name, &spec.shape).map_err(internal),
            None => spec.initial(key, CandleDType::F32, device).map_err(internal),
        };
        let tensor = weights.add_with(&spec.name, &spec.shape, is_trained, no_decay, value)?;
        params.insert(&spec.name, tensor);
    }
    let model = architecture.build(&params).map_err(internal)?;
    let inputs = architecture.inputs().into_iter().map(|port| (port.name, port.dtype)).collect();
    Ok(Built { model, inputs })
}

impl Built {
    /// The wanted outputs. Dropout is drawn from the call's key.
    pub(crate) fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        let mode = match call.train() {
            true => Mode::Train { key: call.context().rng_key() },
            false => Mode::Eval,
        };
        let given = self.inputs.iter().filter_map(|(name, dtype)| {
            let tensor = call.input_opt(name)?;
            Some(tensor.to_dtype(*dtype).map(|tensor| (name.as_str(), tensor)))
        });
        let inputs = given.collect::<std::result::Result<_, _>>()?;
        let tensors = self.model.forward(&inputs, call.wanted(), mode).map_err(call_error)?;
        let mut outputs = Outputs::new();
        for (name, tensor) in call.wanted().iter().zip(tensors) {
            outputs.put(*name, tensor);
        }
        Ok(outputs)
    }
}

fn call_error(error: ModelError) -> Error {
    match error {
        ModelError::Candle(error) => error.into(),
        ModelError::UnknownOutput(_) => Error::not_found(error.to_string()),
        ModelError::MissingInput(name) | ModelError::InputShape { name, .. } => {
            Error::invalid_argument(error.to_string()).tensor(name)
        }
        _ => Error::internal(error.to_string()),
    }
}
