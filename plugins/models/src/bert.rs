//! BERT and RoBERTa: their `config.json` as an [`Encoder`], and back.
//!
//! Refuses relative positions and activations other than GELU and ReLU. Invariant: a configuration that was written here
//! reads as the encoder that wrote it, dropout and initial weights included.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::architecture::Architecture;
use crate::error::{ModelError, setting};
use crate::transformer::{Encoder, Family, Head};

/// The fields that matter, with the defaults of `BertConfig`.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    hidden_dropout_prob: f64,
    attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    initializer_range: f64,
    layer_norm_eps: f64,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    is_decoder: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3_072,
            hidden_act: "gelu".to_owned(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: None,
            position_embedding_type: None,
            is_decoder: false,
        }
    }
}

/// The encoder of a `config.json` whose `model_type` is `bert` or `roberta`.
///
/// # Errors
/// [`ModelError::Config`], [`ModelError::Setting`].
pub fn encoder(map: &Map<String, Value>) -> Result<Encoder, ModelError> {
    let config: Config = serde_json::from_value(Value::Object(map.clone()))
        .map_err(|error| ModelError::Config(error.to_string()))?;
    let is_roberta = map.get("model_type").and_then(Value::as_str) == Some("roberta");
    if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
        return Err(setting("position_embedding_type", "is not `absolute`, the only kind here"));
    }
    if config.is_decoder {
        return Err(setting("is_decoder", "is true: only encoders are read"));
    }
    Ok(Encoder {
        family: if is_roberta { Family::Roberta } else { Family::Bert },
        head: Head::of_config(map)?,
        vocab_size: config.vocab_size,
        max_positions: config.max_position_embeddings,
        token_types: config.type_vocab_size,
        dim: config.hidden_size,
        hidden_dim: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        activation: crate::transformer::activation("hidden_act", &config.hidden_act)?,
        norm_eps: config.layer_norm_eps,
        dropout: config.hidden_dropout_prob,
        attention_dropout: config.attention_probs_dropout_prob,
        head_dropout: config.classifier_dropout.unwrap_or(config.hidden_dropout_prob),
        init_std: config.initializer_range,
        pad_token_id: config.pad_token_id.unwrap_or(usize::from(is_roberta)),
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
        "hidden_size": encoder.dim,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.hidden_dim,
        "hidden_act": crate::transformer::activation_name(encoder.activation),
        "hidden_dropout_prob": encoder.dropout,
        "attention_probs_dropout_prob": encoder.attention_dropout,
        "classifier_dropout": encoder.head_dropout,
        "max_position_embeddings": encoder.max_positions,
        "type_vocab_size": encoder.token_types,
        "initializer_range": encoder.init_std,
        "layer_norm_eps": encoder.norm_eps,
        "pad_token_id": encoder.pad_token_id,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
