//! `limbeck.mlp`: a multilayer perceptron.
//!
//! Refuses sizes of 0 and a dropout outside of [0, 1). Invariant: input, hidden and output gradients all exist.

use limbeck_models::layers;
use limbeck_models::mlp::Config;
use limbeck_sdk::candle::{CandleStudent, ModelCall, Outputs, Weights};
use limbeck_sdk::prelude::*;

use crate::model::{self, Built};
use crate::start::Start;

/// Settings of `limbeck.mlp`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", deny_unknown_fields)]
#[schemars(crate = "limbeck_sdk::schemars")]
pub(crate) struct Settings {
    /// Size of an input row.
    #[schemars(range(min = 1))]
    inputs: usize,
    /// Sizes of the hidden layers; none makes a linear classifier.
    #[serde(default)]
    #[schemars(length(max = 1000), inner(range(min = 1)))]
    hidden: Vec<usize>,
    /// Number of classes.
    #[schemars(range(min = 1))]
    classes: usize,
    /// What follows each hidden layer.
    #[serde(default)]
    activation: Activation,
    /// Probability that a hidden activation is dropped in training, below 1.
    #[serde(default)]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    dropout: f64,
    /// Weights to start from; drawn by the seed when left out.
    #[serde(default)]
    init: Option<Start>,
}

/// An elementwise function.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, limbeck_sdk::serde::Serialize)]
#[serde(crate = "limbeck_sdk::serde", rename_all = "lowercase")]
#[schemars(crate = "limbeck_sdk::schemars")]
pub(crate) enum Activation {
    /// max(x, 0).
    #[default]
    Relu,
    /// x Φ(x), Φ the standard normal distribution function.
    Gelu,
    /// Hyperbolic tangent.
    Tanh,
}

impl From<Activation> for layers::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Relu => Self::Relu,
            Activation::Gelu => Self::Gelu,
            Activation::Tanh => Self::Tanh,
        }
    }
}

impl Settings {
    fn config(&self) -> Config {
        Config {
            inputs: self.inputs,
            hidden: self.hidden.clone(),
            classes: self.classes,
            activation: self.activation.into(),
            dropout: self.dropout,
        }
    }
}

/// A built `limbeck.mlp`.
pub(crate) struct Mlp(Built);

impl CandleStudent for Mlp {
    const ID: &'static str = "limbeck.mlp";
    const SUMMARY: &'static str = "multilayer perceptron on rows of numbers";
    const FEATURES: &'static [&'static str] = &["deterministic", "bf16"];
    const DEVICES: &'static [i32] = limbeck_sdk::candle::BUILT_FOR;
    type Config = Settings;

    fn check(settings: &Settings) -> Result<()> {
        let config = settings.config();
        limbeck_models::Architecture::params(&config).map(|_| ()).map_err(model::setting_error)
    }

    fn ports(settings: &Settings) -> Result<Ports> {
        model::ports(&settings.config(), settings.init.as_ref())
    }

    fn estimate(settings: &Settings, inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        model::estimate(&settings.config(), inputs)
    }

    fn build(settings: &Settings, weights: &mut Weights<'_>) -> Result<Self> {
        let config = settings.config();
        let read = model::read(&config, settings.init.as_ref(), weights)?;
        model::build(&config, read, weights).map(Self)
    }

    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        self.0.forward(call)
    }
}
