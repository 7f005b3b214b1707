//! `limbeck.hf`: the model of a folder with `config.json` and `model.safetensors`, whole or in shards.
//!
//! Refuses a `model_type` that `limbeck-models` does not know, and weights that do not fill the model exactly.
//! Invariant: sizes of ports come from `config.json`, so the pipeline is wired before a weight is read.

use std::path::PathBuf;

use limbeck_models::weights::{Folder, WeightsError};
use limbeck_models::{Architecture, Mode, Model, ModelError, Params};
use limbeck_sdk::candle::{CandleDType, CandleStudent, ModelCall, Outputs, Weights};
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
    #[expect(
        dead_code,
        reason = "the known architectures have one head; the setting is checked when it is read"
    )]
    head: Option<Head>,
}

/// What a model ends in.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", rename_all = "lowercase")]
#[schemars(crate = "limbeck_sdk::schemars")]
enum Head {
    /// A classifier: output `logits`.
    Classification,
}

/// A built `limbeck.hf`.
pub(crate) struct Hf {
    model: Box<dyn Model>,
    inputs: Vec<(String, CandleDType)>,
}

/// The architecture of a folder.
fn open(settings: &Settings) -> Result<(Folder, Box<dyn Architecture>)> {
    let folder = Folder::open(&settings.path).map_err(file_error)?;
    let architecture = folder.architecture().map_err(file_error)?;
    Ok((folder, architecture))
}

impl CandleStudent for Hf {
    const ID: &'static str = "limbeck.hf";
    const SUMMARY: &'static str = "model from a folder with config.json and model.safetensors";
    type Config = Settings;

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
        let rows = view.shape().first().copied().unwrap_or(0).max(0) as u64;
        let activations = rows.saturating_mul(architecture.activations_per_row());
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
            let read = folder.params(&specs, CandleDType::F32, weights.device(), |done| {
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
        let tensors =
            self.model.forward(&inputs, call.wanted(), Mode::Eval).map_err(
                |error| match error {
                    ModelError::Candle(error) => error.into(),
                    ModelError::UnknownOutput(_) => Error::not_found(error.to_string()),
                    _ => Error::invalid_argument(error.to_string()),
                },
            )?;
        let mut outputs = Outputs::new();
        for (name, tensor) in call.wanted().iter().zip(tensors) {
            outputs.put(*name, tensor);
        }
        Ok(outputs)
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
