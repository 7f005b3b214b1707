//! `limbeck.distilbert` and `limbeck.bert`: transformer encoders of any size, fresh or from blocks of a model folder.
//!
//! Refuses sizes that differ from those of the folder to start from. Invariant: parameters have the names that Hugging
//! Face gives them, and what a setting leaves out comes from the folder, else from the family's own defaults.

use std::path::PathBuf;

use limbeck_models::transformer::{Encoder, Family, Head, spread};
use limbeck_models::weights::Folder;
use limbeck_models::{Architecture, ModelError, Params, layers};
use limbeck_sdk::candle::{CandleDType, CandleStudent, ModelCall, Outputs, Weights};
use limbeck_sdk::prelude::*;

use crate::model::{self, Built};
use crate::start::{file_error, text};

/// Settings of `limbeck.distilbert` and `limbeck.bert`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", deny_unknown_fields)]
#[schemars(
    crate = "limbeck_sdk::schemars",
    extend("examples" = [{"head": "tokens", "layers": 2, "heads": 2, "dim": 8, "vocab_size": 50, "max_positions": 32}])
)]
pub(crate) struct Settings {
    /// What stands on top of the blocks.
    #[serde(default)]
    head: HeadKind,
    /// Number of classes, for the heads `classification` and `tokens`; 2 when left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    classes: Option<usize>,
    /// Number of blocks; that of `init` when left out.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    layers: Option<usize>,
    /// Attention heads of a block; they divide `dim`. Those of `init` when left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    heads: Option<usize>,
    /// Width of a token's state; that of `init` when left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    dim: Option<usize>,
    /// Width inside the feed-forward part of a block; four times `dim` when left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    hidden_dim: Option<usize>,
    /// Number of token ids; 30522 when left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    vocab_size: Option<usize>,
    /// Longest sequence; 512 when left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    max_positions: Option<usize>,
    /// Activation of the feed-forward part; `gelu` when left out.
    #[serde(default)]
    activation: Option<Activation>,
    /// Probability that an element of a state is dropped in training.
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    dropout: f64,
    /// Probability that an attention weight is dropped in training.
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    attention_dropout: f64,
    /// Probability that an input of the last layer is dropped in training.
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    head_dropout: f64,
    /// Keep the inputs of the blocks alone and compute each block again in the backward pass: less memory, more time.
    #[serde(default)]
    checkpointing: bool,
    /// Weights to start from; drawn by the seed when left out.
    #[serde(default)]
    init: Option<Start>,
}

fn tenth() -> f64 {
    0.1
}

/// What stands on top of the blocks.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, limbeck_sdk::serde::Serialize)]
#[serde(crate = "limbeck_sdk::serde", rename_all = "snake_case")]
#[schemars(crate = "limbeck_sdk::schemars")]
enum HeadKind {
    /// Class scores of a sequence.
    #[default]
    Classification,
    /// Class scores of each token.
    Tokens,
    /// Scores of the vocabulary for each token.
    MaskedLm,
    /// None: `features` is the mean of the tokens' states.
    Embedding,
}

/// An elementwise function.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, limbeck_sdk::serde::Serialize)]
#[serde(crate = "limbeck_sdk::serde", rename_all = "snake_case")]
#[schemars(crate = "limbeck_sdk::schemars")]
enum Activation {
    /// x Φ(x), Φ the standard normal distribution function.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// A model folder, and blocks of its model.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", deny_unknown_fields)]
#[schemars(crate = "limbeck_sdk::schemars")]
struct Start {
    /// Folder with `config.json` and `model.safetensors` of a BERT, DistilBERT or RoBERTa of equal width.
    #[schemars(extend("format" = "input-path"))]
    path: PathBuf,
    /// Number of the block, from 0, that each block starts from; spread evenly when left out.
    #[serde(default)]
    layers: Option<Vec<usize>>,
}

impl Start {
    fn open(&self) -> Result<(Folder, Encoder)> {
        let refuse = |problem: String| Error::config("/init/path", problem);
        let folder = Folder::open(&self.path).map_err(|error| refuse(text(&error)))?;
        let source = Encoder::from_config(folder.config()).map_err(|error| {
            refuse(format!("{}: {error}", self.path.join("config.json").display()))
        })?;
        Ok((folder, source))
    }

    fn layers(&self, ours: &Encoder, source: &Encoder) -> Vec<usize> {
        self.layers.clone().unwrap_or_else(|| spread(ours.layers, source.layers))
    }
}

impl Settings {
    /// The encoder, and what it starts from.
    fn encoder(&self, family: Family) -> Result<(Encoder, Option<(Folder, Encoder)>)> {
        let source = self.init.as_ref().map(Start::open).transpose()?;
        let from = source.as_ref().map(|(_, source)| source);
        let size = |ours: Option<usize>, theirs: fn(&Encoder) -> usize, usual: usize| {
            ours.or_else(|| from.map(theirs)).unwrap_or(usual)
        };
        let needed = |name: &str, ours: Option<usize>, theirs: fn(&Encoder) -> usize| {
            let missing = || {
                let message = format!("`{name}` is left out, and no `init` has one");
                Error::config(format!("/{name}"), message)
            };
            ours.or_else(|| from.map(theirs)).ok_or_else(missing)
        };
        let dim = needed("dim", self.dim, |source| source.dim)?;
        let listed = self.init.as_ref().and_then(|init| init.layers.as_ref()).map(Vec::len);
        let classes = self.classes.unwrap_or(2);
        let activation = self.activation.map(|activation| match activation {
            Activation::Gelu => layers::Activation::Gelu,
            Activation::GeluTanh => layers::Activation::GeluTanh,
            Activation::Relu => layers::Activation::Relu,
        });
        let encoder = Encoder {
            family,
            head: match self.head {
                HeadKind::Classification => Head::Classification { classes },
                HeadKind::Tokens => Head::Tokens { classes },
                HeadKind::MaskedLm => Head::MaskedLm,
                HeadKind::Embedding => Head::Embedding,
            },
            vocab_size: size(self.vocab_size, |source| source.vocab_size, 30_522),
            max_positions: size(self.max_positions, |source| source.max_positions, 512),
            token_types: if family == Family::DistilBert {
                0
            } else {
                from.map_or(2, |source| source.token_types.max(1))
            },
            dim,
            hidden_dim: size(self.hidden_dim, |source| source.hidden_dim, dim.saturating_mul(4)),
            layers: needed("layers", self.layers.or(listed), |source| source.layers)?,
            heads: needed("heads", self.heads, |source| source.heads)?,
            activation: activation
                .or_else(|| from.map(|source| source.activation))
                .unwrap_or(layers::Activation::Gelu),
            norm_eps: from.map_or(1e-12, |source| source.norm_eps),
            dropout: self.dropout,
            attention_dropout: self.attention_dropout,
            head_dropout: self.head_dropout,
            init_std: 0.02,
            pad_token_id: from.map_or(0, |source| source.pad_token_id),
            pooler: family == Family::Bert,
            checkpointing: self.checkpointing,
        };
        encoder.params().map_err(model::setting_error)?;
        Ok((encoder, source))
    }

    /// The encoder; what it starts from is compared with it, weights unread.
    fn checked(&self, family: Family) -> Result<Encoder> {
        let (encoder, source) = self.encoder(family)?;
        if let Some(((folder, source), start)) = source.zip(self.init.as_ref()) {
            let layers = start.layers(&encoder, &source);
            encoder.check_source(&source, &layers).map_err(source_error)?;
            folder.check(&source).map_err(file_error)?;
        }
        Ok(encoder)
    }

    /// Reads the folder's weights, as far as the encoder has a use for them.
    fn read(&self, family: Family, weights: &Weights<'_>) -> Result<(Encoder, Option<Params>)> {
        let (encoder, source) = self.encoder(family)?;
        let Some(((folder, source), start)) = source.zip(self.init.as_ref()) else {
            return Ok((encoder, None));
        };
        if weights.is_twin() {
            return Ok((encoder, None));
        }
        let context = weights.context();
        let total = source.params().map_err(model::setting_error)?.len() as u64;
        let read = folder.params(&source, CandleDType::F32, weights.device(), |done| {
            context.progress(done as u64, total, "initial weights");
            context.check_cancelled().is_ok()
        });
        let read = read.map_err(file_error)?.ok_or_else(Error::cancelled)?;
        let layers = start.layers(&encoder, &source);
        let params = encoder.start_from(&source, &read, &layers).map_err(source_error)?;
        Ok((encoder, Some(params)))
    }
}

/// A difference between the encoder and what it is to start from.
fn source_error(error: ModelError) -> Error {
    match &error {
        ModelError::Setting { setting: "init", .. } => {
            Error::config("/init/layers", error.to_string())
        }
        _ => model::setting_error(error),
    }
}

/// The two students differ in their family alone.
macro_rules! student {
    ($name:ident, $id:literal, $family:expr, $summary:literal) => {
        #[doc = concat!("A built `", $id, "`.")]
        pub(crate) struct $name(Built);

        impl CandleStudent for $name {
            const ID: &'static str = $id;
            const SUMMARY: &'static str = $summary;
            const DEVICES: &'static [i32] = limbeck_sdk::candle::BUILT_FOR;
            const FOLDER: bool = true;
            type Config = Settings;

            fn folder_config(settings: &Settings) -> Result<limbeck_sdk::serde_json::Value> {
                Ok(settings.encoder($family)?.0.hf_config().into())
            }

            fn check(settings: &Settings) -> Result<()> {
                match settings.init {
                    Some(_) => Ok(()),
                    None => settings.encoder($family).map(|_| ()),
                }
            }

            fn ports(settings: &Settings) -> Result<Ports> {
                model::ports(&settings.checked($family)?, None)
            }

            fn estimate(settings: &Settings, inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
                model::estimate(&settings.encoder($family)?.0, inputs)
            }

            fn build(settings: &Settings, weights: &mut Weights<'_>) -> Result<Self> {
                let (encoder, read) = settings.read($family, weights)?;
                model::build(&encoder, read, weights).map(Self)
            }

            fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
                self.0.forward(call)
            }
        }
    };
}

student!(
    DistilBert,
    "limbeck.distilbert",
    Family::DistilBert,
    "DistilBERT of any size, fresh or from blocks of a model folder"
);
student!(
    Bert,
    "limbeck.bert",
    Family::Bert,
    "BERT of any size, fresh or from blocks of a model folder"
);
