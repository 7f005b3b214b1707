//! `limbeck.cnn`: a small convolutional network.
//!
//! Refuses even kernels and more poolings than the image has room for. Invariant: running statistics of batch
//! normalization are buffers among the parameters, so frozen copies and checkpoints carry them.

use limbeck_models::cnn::Config;
use limbeck_models::layers;
use limbeck_sdk::candle::{CandleStudent, ModelCall, Outputs, Weights};
use limbeck_sdk::prelude::*;

use crate::mlp::Activation;
use crate::model::{self, Built};
use crate::start::Start;

/// Settings of `limbeck.cnn`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", deny_unknown_fields)]
#[schemars(crate = "limbeck_sdk::schemars")]
pub(crate) struct Settings {
    /// Channels, height and width of an image.
    #[schemars(inner(range(min = 1)))]
    image: [usize; 3],
    /// Channels that each block gives: convolution, activation, pooling.
    #[schemars(length(max = 1000), inner(range(min = 1)))]
    channels: Vec<usize>,
    /// Side of the convolutions' windows, odd.
    #[serde(default = "three")]
    #[schemars(range(min = 1))]
    kernel: usize,
    /// How each block halves height and width.
    #[serde(default)]
    pool: Pool,
    /// Whether each convolution is followed by batch normalization.
    #[serde(default)]
    batch_norm: bool,
    /// Sizes of the linear layers between the last block and the classifier.
    #[serde(default)]
    #[schemars(length(max = 1000), inner(range(min = 1)))]
    hidden: Vec<usize>,
    /// Number of classes.
    #[schemars(range(min = 1))]
    classes: usize,
    /// What follows each convolution and hidden layer.
    #[serde(default)]
    activation: Activation,
    /// Probability that an activation of a hidden linear layer is dropped in training, below 1.
    #[serde(default)]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    dropout: f64,
    /// Whether images arrive as rows of channels x height x width numbers.
    #[serde(default)]
    flat: bool,
    /// Weights to start from; drawn by the seed when left out.
    #[serde(default)]
    init: Option<Start>,
}

fn three() -> usize {
    3
}

/// What stands for a window of 2 x 2.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, limbeck_sdk::serde::Serialize)]
#[serde(crate = "limbeck_sdk::serde", rename_all = "lowercase")]
#[schemars(crate = "limbeck_sdk::schemars")]
enum Pool {
    /// Its largest element.
    #[default]
    Max,
    /// Its mean.
    Average,
    /// Nothing: height and width stay.
    None,
}

impl Settings {
    fn config(&self) -> Config {
        Config {
            image: self.image,
            channels: self.channels.clone(),
            kernel: self.kernel,
            pool: match self.pool {
                Pool::Max => layers::Pool::Max,
                Pool::Average => layers::Pool::Average,
                Pool::None => layers::Pool::None,
            },
            batch_norm: self.batch_norm,
            hidden: self.hidden.clone(),
            classes: self.classes,
            activation: self.activation.into(),
            dropout: self.dropout,
            flat: self.flat,
        }
    }
}

/// A built `limbeck.cnn`.
pub(crate) struct Cnn(Built);

impl CandleStudent for Cnn {
    const ID: &'static str = "limbeck.cnn";
    const SUMMARY: &'static str = "small convolutional network on images";
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
