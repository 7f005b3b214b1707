//! `limbeck.hf`: the model of a folder with `config.json` and `model.safetensors`, whole or in shards.
//!
//! Refuses a `model_type` that `limbeck-models` does not know, and weights that do not fill the model exactly.
//! Invariant: sizes of ports come from `config.json`, so the pipeline is wired before a weight is read.

use std::path::PathBuf;

use limbeck_models::transformer::{Encoder, Head};
use limbeck_models::weights::{Folder, WeightsError};
use limbeck_models::{Architecture, Grad, Mode, Model, ModelError, Params, Recorded};
use limbeck_sdk::candle::{CandleDType, CandleStudent, GradSlot, ModelCall, Outputs, Weights};
use limbeck_sdk::prelude::*;

/// Settings of `limbeck.hf`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", deny_unknown_fields)]
#[schemars(crate = "limbeck_sdk::schemars")]
pub(crate) struct Settings {
    /// Folder with `config.json` and `model.safetensors`, for example one that an export stage wrote.
    #[schemars(extend("format" = "input-path"))]
    path: PathBuf,
    /// What stands on top of the model; its own when left out.
    #[serde(default)]
    head: Option<HeadKind>,
}

/// What a model ends in.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", rename_all = "snake_case")]
#[schemars(crate = "limbeck_sdk::schemars")]
enum HeadKind {
    /// A classifier of whole inputs: output `logits`.
    Classification,
    /// A classifier of tokens: output `logits`.
    Tokens,
    /// Scores of the vocabulary for each token: output `logits`.
    MaskedLm,
    /// None, whatever the folder has: output `features`, the mean of the tokens' states.
    Embedding,
}

/// A built `limbeck.hf`.
pub(crate) struct Hf {
    model: Box<dyn Model>,
    inputs: Vec<(String, CandleDType)>,
}

/// The architecture of a folder, with the head that the settings ask for. Names and shapes of its tensors were compared.
fn open(settings: &Settings) -> Result<(Folder, Box<dyn Architecture>)> {
    let mut folder = Folder::open(&settings.path).map_err(file_error)?;
    if let Some(kind) = settings.head {
        let head = match kind {
            HeadKind::Classification => Head::Classification { classes: 0 },
            HeadKind::Tokens => Head::Tokens { classes: 0 },
            HeadKind::MaskedLm => Head::MaskedLm,
            HeadKind::Embedding => Head::Embedding,
        };
        match (folder.model_type().and_then(|name| Encoder::class_of(name, head)), kind) {
            (Some(class), _) => folder.set_class(&class),
            // The other architectures are classifiers.
            (None, HeadKind::Classification) => {}
            (None, _) => {
                let message = "the model of `path` has no such head: it is a classifier";
                return Err(Error::config("/head", message));
            }
        }
    }
    let architecture = folder.architecture().map_err(file_error)?;
    folder.check(&*architecture).map_err(file_error)?;
    Ok((folder, architecture))
}

impl CandleStudent for Hf {
    const ID: &'static str = "limbeck.hf";
    const SUMMARY: &'static str = "model from a folder with config.json and model.safetensors";
    const DEVICES: &'static [i32] = limbeck_sdk::candle::BUILT_FOR;
    const FOLDER: bool = true;
    type Config = Settings;

    fn folder_config(settings: &Settings) -> Result<limbeck_sdk::serde_json::Value> {
        Ok(open(settings)?.0.config().clone().into())
    }

    fn ports(settings: &Settings) -> Result<Ports> {
        let (_, architecture) = open(settings)?;
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

    /// Bytes of the weights; activations of one call, each once more as a temporary.
    fn estimate(settings: &Settings, inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        const FLOAT: u64 = 4;
        let (_, architecture) = open(settings)?;
        let specs = architecture.params().map_err(|error| Error::bad_data(error.to_string()))?;
        let held = specs.iter().map(|spec| spec.count() as u64 * FLOAT).sum::<u64>();
        let Some(view) = inputs.get(0)? else { return Ok(Some((held, 0))) };
        let shape: Vec<usize> = view.shape().iter().map(|&size| size.max(0) as usize).collect();
        let activations = architecture.activations(&shape);
        Ok(Some((held, activations.saturating_mul(2 * FLOAT))))
    }

    fn build(settings: &Settings, weights: &mut Weights<'_>) -> Result<Self> {
        let (folder, architecture) = open(settings)?;
        let internal = |error: ModelError| Error::internal(error.to_string());
        let specs = architecture.params().map_err(internal)?;
        let read = if weights.is_twin() {
            Params::default()
        } else {
            let context = weights.context();
            let read = folder.params(&*architecture, CandleDType::F32, weights.device(), |done| {
                context.progress(done as u64, specs.len() as u64, "teacher weights");
                context.check_cancelled().is_ok()
            });
            read.map_err(file_error)?.ok_or_else(Error::cancelled)?
        };
        let mut params = Params::default();
        for spec in &specs {
            let value = |_: &_| read.get(&spec.name, &spec.shape).map_err(internal);
            let tensor = weights.add_with(&spec.name, &spec.shape, false, true, value)?;
            params.insert(&spec.name, tensor);
        }
        let model = architecture.build(&params).map_err(internal)?;
        let inputs =
            architecture.inputs().into_iter().map(|port| (port.name, port.dtype)).collect();
        Ok(Self { model, inputs })
    }

    /// Always as in evaluation: a teacher has neither dropout nor moving statistics.
    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        let given = self.inputs.iter().filter_map(|(name, dtype)| {
            let tensor = call.input_opt(name)?;
            Some(tensor.to_dtype(*dtype).map(|tensor| (name.as_str(), tensor)))
        });
        let inputs = given.collect::<std::result::Result<_, _>>()?;
        let wanted = call.wanted();
        let recorded = match call.recorded() {
            true => self.model.record(&inputs, wanted, Mode::Eval).map_err(call_error)?,
            false => None,
        };
        let (tensors, tape) = match recorded {
            Some(Recorded { outputs, tape }) => (outputs, Some(tape)),
            None => (self.model.forward(&inputs, wanted, Mode::Eval).map_err(call_error)?, None),
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

/// A problem of a file; one of `config.json` is a problem of the setting `path`.
fn file_error(error: WeightsError) -> Error {
    let file = || error.path().display().to_string();
    let bad_data = || Error::bad_data(error.to_string()).note("file", file());
    match &error {
        WeightsError::Io { path, source } => Error::io(path, source),
        WeightsError::Tensor { tensor, .. } => bad_data().tensor(tensor),
        WeightsError::Config { .. } => Error::config("/path", error.to_string()),
        _ => bad_data(),
    }
}
