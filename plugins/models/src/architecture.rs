//! What every model offers: ports, parameters, a build step, and a forward pass that makes the wanted outputs only.
//!
//! Refuses a `model_type` that no file here implements. A new architecture is one new file and one row of `TABLE`.
//! Invariant: ports and parameters follow from the configuration alone; no weight is read for them.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::params::{ParamSpec, Params};
use crate::{bert, cnn, distilbert, mlp};

/// How a forward pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No randomness; running statistics are read.
    Eval,
    /// Dropout acts and running statistics move.
    Train {
        /// Source of all randomness of the pass: equal keys give equal bits.
        key: [u64; 2],
    },
}

impl Mode {
    /// Source of the randomness of a training pass.
    pub(crate) fn key(self) -> Option<[u64; 2]> {
        match self {
            Self::Train { key } => Some(key),
            Self::Eval => None,
        }
    }
}

/// A named input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `pixel_values`, `logits`, `hidden.2`, ...
    pub name: String,
    /// Dimensions in the notation of the ABI, e.g. `B,64`: numbers where the configuration fixes them.
    pub shape: String,
    /// One line for people.
    pub doc: &'static str,
    /// Element types that an input accepts or an output has, e.g. i64 for token ids.
    pub dtype: DType,
    /// Whether gradients flow through it.
    pub differentiable: bool,
    /// Whether it may be left out (inputs).
    pub optional: bool,
}

impl Port {
    /// A differentiable f32 port that must be bound.
    pub fn float(name: impl Into<String>, shape: String, doc: &'static str) -> Self {
        let name = name.into();
        Self { name, shape, doc, dtype: DType::F32, differentiable: true, optional: false }
    }
}

/// Inputs of a forward pass by name.
#[derive(Clone, Debug, Default)]
pub struct Inputs<'a>(BTreeMap<&'a str, Tensor>);

impl<'a> Inputs<'a> {
    /// An input that the model can do without.
    pub fn optional(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// An input that the model needs.
    ///
    /// # Errors
    /// [`ModelError::MissingInput`].
    pub fn get(&self, name: &'static str) -> Result<&Tensor, ModelError> {
        self.0.get(name).ok_or(ModelError::MissingInput(name))
    }
}

impl<'a, const N: usize> From<[(&'a str, Tensor); N]> for Inputs<'a> {
    fn from(items: [(&'a str, Tensor); N]) -> Self {
        Self(items.into())
    }
}

impl<'a> FromIterator<(&'a str, Tensor)> for Inputs<'a> {
    fn from_iter<I: IntoIterator<Item = (&'a str, Tensor)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

/// A checked configuration.
pub trait Architecture: Send + Sync {
    /// Value of `model_type` in `config.json`.
    fn model_type(&self) -> &'static str;

    /// Inputs in a fixed order.
    fn inputs(&self) -> Vec<Port>;

    /// Outputs in a fixed order.
    fn outputs(&self) -> Vec<Port>;

    /// Checks the settings and lists the parameters in a fixed order.
    ///
    /// # Errors
    /// [`ModelError::Setting`] for a value outside of its domain.
    fn params(&self) -> Result<Vec<ParamSpec>, ModelError>;

    /// Joins the configuration with tensors. The model shares their storage: later writes into it are seen.
    ///
    /// # Errors
    /// As [`Architecture::params`]; [`ModelError::MissingParam`], [`ModelError::ParamShape`].
    fn build(&self, params: &Params) -> Result<Box<dyn Model>, ModelError>;

    /// From the name of a tensor in a file to the parameter that it is; equal names when left alone.
    fn stored(&self) -> Box<dyn Fn(&str) -> Stored> {
        Box::new(|name| Stored::Param(name.to_owned()))
    }

    /// About how many numbers a forward pass keeps for a backward pass, for a first input of this shape: when left
    /// alone, all that the outputs of its rows hold together.
    fn activations(&self, input: &[usize]) -> u64 {
        let size = |shape: &str| {
            let sizes = shape.split(',').filter_map(|axis| axis.parse::<u64>().ok());
            sizes.fold(1, u64::saturating_mul)
        };
        let a_row =
            self.outputs().iter().map(|port| size(&port.shape)).fold(0, u64::saturating_add);
        a_row.saturating_mul(input.first().copied().unwrap_or(0) as u64)
    }
}

/// What a tensor of a file is to an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The parameter of this name.
    Param(String),
    /// Something that the model has no use for, such as another head or a constant.
    Skipped,
    /// Nothing that belongs there.
    Unknown,
}

/// An architecture with its tensors.
pub trait Model: Send + Sync {
    /// The `wanted` outputs in that order; nothing that they do not need is computed.
    ///
    /// Gradients flow to every tensor of the build and of `inputs` that is a variable.
    ///
    /// # Errors
    /// [`ModelError::UnknownOutput`], [`ModelError::MissingInput`], [`ModelError::InputShape`], candle's.
    fn forward(
        &self,
        inputs: &Inputs<'_>,
        wanted: &[&str],
        mode: Mode,
    ) -> Result<Vec<Tensor>, ModelError>;

    /// As [`Model::forward`], with what a backward pass of the model's own needs. `None`: there is none, gradients flow
    /// through candle's graph.
    ///
    /// # Errors
    /// As [`Model::forward`].
    fn record(
        &self,
        _inputs: &Inputs<'_>,
        _wanted: &[&str],
        _mode: Mode,
    ) -> Result<Option<Recorded>, ModelError> {
        Ok(None)
    }
}

/// A forward pass and its way back.
pub struct Recorded {
    /// The wanted outputs in their order.
    pub outputs: Vec<Tensor>,
    /// The way back.
    pub tape: Box<dyn Tape>,
}

/// A recorded forward pass.
pub trait Tape {
    /// Takes the cotangents of outputs, by their place among the wanted ones, to gradients. Each buffer of `grads` is
    /// overwritten, or added to where it says so; one that the pass did not use becomes 0.
    ///
    /// # Errors
    /// A cotangent or a buffer of another size; candle's.
    fn backward(
        self: Box<Self>,
        cotangents: &[(usize, Tensor)],
        grads: Grads<'_, f32>,
    ) -> Result<(), ModelError>;
}

/// Where the gradients of parameters and inputs go, by name; those that nobody wants are absent.
pub struct Grads<'a, T>(BTreeMap<String, Grad<'a, T>>);

/// A buffer for one gradient, row-major.
pub struct Grad<'a, T> {
    /// Its elements.
    pub values: &'a mut [T],
    /// Add to it instead of overwriting it.
    pub accumulate: bool,
}

impl<'a, T: Copy + Default + Send> Grads<'a, T> {
    /// Takes a buffer out, overwriting ones filled with 0, so that adding is always right.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a mut [T]> {
        let Grad { values, accumulate } = self.0.remove(name)?;
        if !accumulate {
            // Most of a step's clearing is the table of words.
            values.par_chunks_mut(1 << 16).for_each(|part| part.fill(T::default()));
        }
        Some(values)
    }

    /// Fills what is left as [`Grads::take`] does.
    pub(crate) fn clear(&mut self) {
        while let Some(name) = self.0.keys().next().cloned() {
            self.take(&name);
        }
    }
}

impl<'a, T> FromIterator<(String, Grad<'a, T>)> for Grads<'a, T> {
    fn from_iter<I: IntoIterator<Item = (String, Grad<'a, T>)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

type Parse = fn(&Map<String, Value>) -> Result<Box<dyn Architecture>, ModelError>;

const TABLE: [(&str, Parse); 5] = [
    (mlp::MODEL_TYPE, parse::<mlp::Config>),
    (cnn::MODEL_TYPE, parse::<cnn::Config>),
    ("bert", bert::parse),
    ("roberta", bert::parse),
    ("distilbert", distilbert::parse),
];

/// Values of `model_type` that [`from_config`] knows.
pub const KNOWN_MODEL_TYPES: [&str; TABLE.len()] =
    [TABLE[0].0, TABLE[1].0, TABLE[2].0, TABLE[3].0, TABLE[4].0];

/// The architecture that a `config.json` describes; fields that it does not know are left alone.
///
/// # Errors
/// [`ModelError::UnknownModelType`]; [`ModelError::Config`] when a field is missing or of the wrong type;
/// [`ModelError::Setting`] when one is out of its domain.
pub fn from_config(config: &Map<String, Value>) -> Result<Box<dyn Architecture>, ModelError> {
    let found = config.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        ModelError::Config(format!(
            "`model_type` is missing; known are {}",
            KNOWN_MODEL_TYPES.join(", ")
        ))
    })?;
    let (_, parse) = TABLE
        .iter()
        .find(|(name, _)| *name == found)
        .ok_or_else(|| ModelError::UnknownModelType { found: found.to_owned() })?;
    let architecture = parse(config)?;
    architecture.params()?;
    Ok(architecture)
}

fn parse<C>(config: &Map<String, Value>) -> Result<Box<dyn Architecture>, ModelError>
where
    C: Architecture + serde::de::DeserializeOwned + 'static,
{
    let config: C = serde_json::from_value(Value::Object(config.clone()))
        .map_err(|error| ModelError::Config(error.to_string()))?;
    Ok(Box::new(config))
}

/// Splits `hidden.K` for K up to `last`.
pub(crate) fn hidden_index(name: &str, last: usize) -> Option<usize> {
    let digits = name.strip_prefix("hidden.")?;
    let index: usize = digits.parse().ok()?;
    (index <= last && index.to_string() == digits).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error_of(config: Value) -> String {
        from_config(config.as_object().unwrap()).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_model_type_lists_the_known_ones() {
        assert_eq!(
            error_of(json!({"model_type": "gpt9"})),
            "unknown model_type `gpt9`; known are limbeck-mlp, limbeck-cnn, bert, roberta, distilbert"
        );
        assert_eq!(
            error_of(json!({"classes": 3})),
            "`model_type` is missing; known are limbeck-mlp, limbeck-cnn, bert, roberta, distilbert"
        );
    }

    #[test]
    fn fields_that_an_architecture_does_not_know_are_left_alone() {
        let config = json!({"model_type": "limbeck-mlp", "inputs": 4, "hidden": [], "classes": 2,
            "limbeck": {"plugin": "limbeck.mlp"}, "transformers_version": "5.0"});
        let architecture = from_config(config.as_object().unwrap()).unwrap();
        assert_eq!(architecture.model_type(), "limbeck-mlp");
        assert_eq!(architecture.params().unwrap()[0].shape, [2, 4]);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let base = json!({"model_type": "limbeck-mlp", "inputs": "many", "classes": 2});
        assert!(error_of(base).contains("invalid type: string \"many\""));
        let base = json!({"model_type": "limbeck-mlp", "inputs": 0, "hidden": [], "classes": 2});
        assert_eq!(error_of(base), "`inputs` must be at least 1, found 0");
    }

    #[test]
    fn hidden_indices_are_plain_numbers_in_range() {
        assert_eq!(hidden_index("hidden.2", 2), Some(2));
        for name in ["hidden.3", "hidden.02", "hidden.+1", "hidden.", "hidden", "logits"] {
            assert_eq!(hidden_index(name, 2), None, "{name}");
        }
    }
}
