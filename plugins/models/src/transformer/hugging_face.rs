//! What `config.json` says beside sizes: class names, number of classes, names of activations.
//!
//! Refuses classes of other purposes. Invariant: [`Encoder::hf_config`] names the class whose parameters have the names
//! of this encoder's.

use serde_json::{Map, Value, json};

use super::config::{Encoder, Family, Head};
use crate::error::{ModelError, setting};
use crate::layers::Activation;
use crate::{bert, distilbert};

/// What a class is called after the name of its family, and what it ends in.
const CLASSES: [&str; 3] = ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"];

impl Head {
    /// The head of the first of `architectures`; none of them, or a bare model, is [`Head::Embedding`].
    ///
    /// # Errors
    /// [`ModelError::Setting`] for a class of another purpose.
    pub(crate) fn of_config(map: &Map<String, Value>) -> Result<Self, ModelError> {
        let class = map.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        let Some(class) = class else { return Ok(Self::Embedding) };
        let classes = num_classes(map);
        if class.ends_with(CLASSES[0]) {
            return Ok(Self::Classification { classes });
        }
        if class.ends_with(CLASSES[1]) {
            return Ok(Self::Tokens { classes });
        }
        if class.ends_with(CLASSES[2]) || class.ends_with("ForPreTraining") {
            return Ok(Self::MaskedLm);
        }
        if class.ends_with("Model") {
            return Ok(Self::Embedding);
        }
        let known = CLASSES.join(", ");
        Err(setting("architectures", format!("names `{class}`; known ends are Model, {known}")))
    }
}

/// `num_labels`, else the number of names in `id2label`, else 2 as in `PretrainedConfig`.
fn num_classes(map: &Map<String, Value>) -> usize {
    let names = map.get("id2label").and_then(Value::as_object).map(Map::len);
    let number = map.get("num_labels").and_then(Value::as_u64).map(|n| n as usize);
    number.or(names).unwrap_or(2)
}

/// An activation by its name there.
pub(crate) fn activation(field: &'static str, name: &str) -> Result<Activation, ModelError> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(setting(field, format!("is `{other}`; known are gelu, gelu_new, relu"))),
    }
}

/// The name there of an activation.
pub(crate) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::Relu => "relu",
        _ => "gelu",
    }
}

impl Encoder {
    /// The encoder that a `config.json` describes.
    ///
    /// # Errors
    /// [`ModelError::UnknownModelType`], [`ModelError::Config`], [`ModelError::Setting`].
    pub fn from_config(map: &Map<String, Value>) -> Result<Self, ModelError> {
        match map.get("model_type").and_then(Value::as_str) {
            Some("bert" | "roberta") => bert::encoder(map),
            Some("distilbert") => distilbert::encoder(map),
            other => {
                let found = other.unwrap_or("none").to_owned();
                Err(ModelError::UnknownModelType { found })
            }
        }
    }

    /// The `config.json` with which Python's transformers loads this encoder's parameters.
    pub fn hf_config(&self) -> Map<String, Value> {
        let (family, mut map) = match self.family {
            Family::Bert => ("Bert", bert::config(self)),
            Family::Roberta => ("Roberta", bert::config(self)),
            Family::DistilBert => ("DistilBert", distilbert::config(self)),
        };
        let (class, classes) = match self.head {
            Head::Classification { classes } => (CLASSES[0], Some(classes)),
            Head::Tokens { classes } => (CLASSES[1], Some(classes)),
            Head::MaskedLm => (CLASSES[2], None),
            Head::Embedding => ("Model", None),
        };
        map.insert("model_type".into(), json!(self.family.model_type()));
        map.insert("architectures".into(), json!([format!("{family}{class}")]));
        if let Some(classes) = classes {
            let names = (0..classes).map(|c| (c.to_string(), json!(format!("LABEL_{c}"))));
            map.insert("id2label".into(), Value::Object(names.collect()));
            let numbers = (0..classes).map(|c| (format!("LABEL_{c}"), json!(c)));
            map.insert("label2id".into(), Value::Object(numbers.collect()));
        }
        map
    }

    /// The `architectures` entry with which a file of `model_type` is read with another head.
    pub fn class_of(model_type: &str, head: Head) -> Option<String> {
        let family = match model_type {
            "bert" => "Bert",
            "roberta" => "Roberta",
            "distilbert" => "DistilBert",
            _ => return None,
        };
        let class = match head {
            Head::Classification { .. } => CLASSES[0],
            Head::Tokens { .. } => CLASSES[1],
            Head::MaskedLm => CLASSES[2],
            Head::Embedding => "Model",
        };
        Some(format!("{family}{class}"))
    }
}
