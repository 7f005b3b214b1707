//! A model of `limbeck-models` as the SDK's candle student wants it: ports, named weights, one forward pass.
//!
//! Knows no architecture. Invariant: both builds of an activation go through the same code over the same storage.

use limbeck_models::{Architecture, Grad, Mode, Model, ModelError, Params, Recorded, Role};
use limbeck_sdk::candle::{CandleDType, GradSlot, ModelCall, Outputs, Weights};
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
    let shape: Vec<usize> = view.shape().iter().map(|&size| size.max(0) as usize).collect();
    let activations = architecture.activations(&shape);
    Ok(Some((held, held.saturating_add(activations.saturating_mul(3 * FLOAT)))))
}

/// The values of a student that starts from a folder, for the first of its two builds.
pub(crate) fn read(
    architecture: &dyn Architecture,
    start: Option<&Start>,
    weights: &Weights<'_>,
) -> Result<Option<Params>> {
    match start {
        Some(start) if !weights.is_twin() => start.read(architecture, weights).map(Some),
        _ => Ok(None),
    }
}

/// Builds a model over `weights`; the first build takes values from `read`, and draws those that are not there.
pub(crate) fn build(
    architecture: &dyn Architecture,
    read: Option<Params>,
    weights: &mut Weights<'_>,
) -> Result<Built> {
    let specs = architecture.params().map_err(setting_error)?;
    let key = weights.context().rng_key();
    let internal = |error: ModelError| Error::internal(error.to_string());
    let mut params = Params::default();
    for spec in &specs {
        let (is_trained, no_decay) = (spec.role != Role::Buffer, spec.role != Role::Weight);
        let value = |device: &limbeck_sdk::candle::Device| match &read {
            Some(read) if read.contains(&spec.name) => {
                read.get(&spec.name, &spec.shape).map_err(internal)
            }
            _ => spec.initial(key, CandleDType::F32, device).map_err(internal),
        };
        let tensor = weights.add_with(&spec.name, &spec.shape, is_trained, no_decay, value)?;
        params.insert(&spec.name, tensor);
    }
    let model = architecture.build(&params).map_err(setting_error)?;
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
        let wanted = call.wanted();
        let recorded = match call.recorded() {
            true => self.model.record(&inputs, wanted, mode).map_err(call_error)?,
            false => None,
        };
        let (tensors, tape) = match recorded {
            Some(Recorded { outputs, tape }) => (outputs, Some(tape)),
            None => (self.model.forward(&inputs, wanted, mode).map_err(call_error)?, None),
        };
        let mut outputs = Outputs::new();
        for (name, tensor) in wanted.iter().zip(tensors) {
            outputs.put(*name, tensor);
        }
        let Some(tape) = tape else { return Ok(outputs) };
        let names: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        Ok(outputs.with_backward(Box::new(move |cotangents, slots| {
            let place = |name: String| names.iter().position(|wanted| *wanted == name);
            let cotangents: Vec<_> = cotangents
                .into_iter()
                .filter_map(|(name, tensor)| Some((place(name)?, tensor)))
                .collect();
            let grads = slots.into_iter().map(|GradSlot { name, values, accumulate }| {
                (name.to_owned(), Grad { values, accumulate })
            });
            tape.backward(&cotangents, grads.collect()).map_err(call_error)
        })))
    }
}

fn call_error(error: ModelError) -> Error {
    match error {
        ModelError::Candle(error) => error.into(),
        ModelError::UnknownOutput(_) => Error::not_found(error.to_string()),
        ModelError::MissingInput(name)
        | ModelError::InputShape { name, .. }
        | ModelError::InputValue { name, .. } => {
            Error::invalid_argument(error.to_string()).tensor(name)
        }
        _ => Error::internal(error.to_string()),
    }
}
