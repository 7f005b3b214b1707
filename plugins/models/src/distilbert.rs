//! DistilBERT: its `config.json` as an [`Encoder`], and back.
//!
//! Refuses activations other than GELU and ReLU. Invariant: a configuration that was written here reads as the encoder
//! that wrote it, dropout and initial weights included.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::architecture::Architecture;
use crate::error::ModelError;
use crate::transformer::{Encoder, Family, Head};

/// The fields that matter, with the defaults of `DistilBertConfig`.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: usize,
    max_position_embeddings: usize,
    n_layers: usize,
    n_heads: usize,
    dim: usize,
    hidden_dim: usize,
    dropout: f64,
    attention_dropout: f64,
    seq_classif_dropout: f64,
    activation: String,
    initializer_range: f64,
    pad_token_id: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            max_position_embeddings: 512,
            n_layers: 6,
            n_heads: 12,
            dim: 768,
            hidden_dim: 3_072,
            dropout: 0.1,
            attention_dropout: 0.1,
            seq_classif_dropout: 0.2,
            activation: "gelu".to_owned(),
            initializer_range: 0.02,
            pad_token_id: None,
        }
    }
}

/// The encoder of a `config.json` whose `model_type` is `distilbert`.
///
/// # Errors
/// [`ModelError::Config`], [`ModelError::Setting`].
pub fn encoder(map: &Map<String, Value>) -> Result<Encoder, ModelError> {
    let config: Config = serde_json::from_value(Value::Object(map.clone()))
        .map_err(|error| ModelError::Config(error.to_string()))?;
    let head = Head::of_config(map)?;
    let head_dropout = match head {
        Head::Classification { .. } => config.seq_classif_dropout,
        _ => config.dropout,
    };
    Ok(Encoder {
        family: Family::DistilBert,
        head,
        vocab_size: config.vocab_size,
        max_positions: config.max_position_embeddings,
        token_types: 0,
        dim: config.dim,
        hidden_dim: config.hidden_dim,
        layers: config.n_layers,
        heads: config.n_heads,
        activation: crate::transformer::activation("activation", &config.activation)?,
        norm_eps: 1e-12,
        dropout: config.dropout,
        attention_dropout: config.attention_dropout,
        head_dropout,
        init_std: config.initializer_range,
        pad_token_id: config.pad_token_id.unwrap_or(0),
        pooler: false,
        checkpointing: false,
    })
}

pub(crate) fn parse(map: &Map<String, Value>) -> Result<Box<dyn Architecture>, ModelError> {
    encoder(map).map(|encoder| Box::new(encoder) as Box<dyn Architecture>)
}

/// The `config.json` of an encoder, without its head.
pub(crate) fn config(encoder: &Encoder) -> Map<String, Value> {
    let value = json!({
        "vocab_size": encoder.vocab_size,
        "max_position_embeddings": encoder.max_positions,
        "n_layers": encoder.layers,
        "n_heads": encoder.heads,
        "dim": encoder.dim,
        "hidden_dim": encoder.hidden_dim,
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "seq_classif_dropout": encoder.head_dropout,
        "activation": crate::transformer::activation_name(encoder.activation),
        "initializer_range": encoder.init_std,
        "pad_token_id": encoder.pad_token_id,
        "sinusoidal_pos_embds": false,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
