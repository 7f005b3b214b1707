//! Multilayer perceptron: linear layers with an activation, then a linear classifier.
//!
//! Refuses sizes of 0 and a dropout outside of [0, 1). Invariant: `hidden.K` is what layer K gives before dropout,
//! `features` what the classifier reads, so in evaluation the last hidden output and `features` are equal.

use serde::{Deserialize, Serialize};

use candle_core::Tensor;

use crate::architecture::{Architecture, Inputs, Mode, Model, Port, hidden_index};
use crate::error::{ModelError, setting};
use crate::layers::{Activation, Linear, dropout};
use crate::params::{ParamSpec, Params, check_size};

/// Value of `model_type`.
pub const MODEL_TYPE: &str = "limbeck-mlp";

/// Settings of an MLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Size of an input row.
    pub inputs: usize,
    /// Sizes of the hidden layers; empty gives a linear classifier.
    #[serde(default)]
    pub hidden: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
    /// What follows each hidden layer.
    #[serde(default)]
    pub activation: Activation,
    /// Probability that a hidden activation is dropped in training.
    #[serde(default)]
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        let activation = Activation::Relu;
        Self { inputs: 1, hidden: Vec::new(), classes: 2, activation, dropout: 0.0 }
    }
}

impl Config {
    fn check(&self) -> Result<(), ModelError> {
        check_positive("inputs", self.inputs)?;
        check_positive("classes", self.classes)?;
        check_layers("hidden", &self.hidden)?;
        check_dropout(self.dropout)?;
        self.sizes().windows(2).try_for_each(|pair| check_size("hidden", pair))
    }

    /// Input, hidden sizes, classes.
    fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![self.inputs];
        sizes.extend(&self.hidden);
        sizes.push(self.classes);
        sizes
    }
}

pub(crate) fn check_positive(name: &'static str, value: usize) -> Result<(), ModelError> {
    if value == 0 {
        return Err(setting(name, "must be at least 1, found 0"));
    }
    Ok(())
}

/// Most layers of one kind: 1,000 ReLU layers already train no more, and candle's backward pass is recursive.
const MAX_LAYERS: usize = 1_000;

pub(crate) fn check_layers(name: &'static str, sizes: &[usize]) -> Result<(), ModelError> {
    if sizes.len() > MAX_LAYERS {
        return Err(setting(name, format!("has {} layers, above {MAX_LAYERS}", sizes.len())));
    }
    match sizes.iter().position(|&size| size == 0) {
        Some(index) => {
            Err(setting(name, format!("must be at least 1 everywhere, entry {index} is 0")))
        }
        None => Ok(()),
    }
}

pub(crate) fn check_dropout(p: f64) -> Result<(), ModelError> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(setting("dropout", format!("must be at least 0 and below 1, found {p}")))
}

impl Architecture for Config {
    fn model_type(&self) -> &'static str {
        MODEL_TYPE
    }

    fn inputs(&self) -> Vec<Port> {
        vec![Port::float("pixel_values", format!("B,{}", self.inputs), "rows to classify")]
    }

    fn outputs(&self) -> Vec<Port> {
        let mut ports =
            vec![Port::float("logits", format!("B,{}", self.classes), "unnormalized class scores")];
        ports.push(Port::float("hidden.0", format!("B,{}", self.inputs), "the input as given"));
        for (index, size) in self.hidden.iter().enumerate() {
            let name = format!("hidden.{}", index + 1);
            ports.push(Port::float(name, format!("B,{size}"), "activations of a hidden layer"));
        }
        let last = self.hidden.last().unwrap_or(&self.inputs);
        ports.push(Port::float("features", format!("B,{last}"), "the classifier's input"));
        ports
    }

    fn params(&self) -> Result<Vec<ParamSpec>, ModelError> {
        self.check()?;
        let sizes = self.sizes();
        Ok(sizes
            .windows(2)
            .enumerate()
            .flat_map(|(index, pair)| Linear::specs(&self.layer_name(index), pair[0], pair[1]))
            .collect())
    }

    fn build(&self, params: &Params) -> Result<Box<dyn Model>, ModelError> {
        self.check()?;
        let (stack, classifier) = self.layers(params)?;
        Ok(Box::new(Mlp { config: self.clone(), stack, classifier }))
    }
}

impl Config {
    fn layer_name(&self, index: usize) -> String {
        if index == self.hidden.len() { "classifier".to_owned() } else { format!("layers.{index}") }
    }

    /// Hidden layers and classifier over `params`.
    pub(crate) fn layers(&self, params: &Params) -> Result<(Stack, Linear), ModelError> {
        let mut layers = Vec::with_capacity(self.hidden.len());
        let mut inputs = self.inputs;
        for (index, &outputs) in self.hidden.iter().enumerate() {
            layers.push(Linear::new(params, &self.layer_name(index), inputs, outputs)?);
            inputs = outputs;
        }
        let name = self.layer_name(self.hidden.len());
        let classifier = Linear::new(params, &name, inputs, self.classes)?;
        let (activation, dropout) = (self.activation, self.dropout);
        Ok((Stack { layers, activation, dropout }, classifier))
    }
}

/// Hidden layers of an MLP, also the head of a CNN.
pub(crate) struct Stack {
    layers: Vec<Linear>,
    activation: Activation,
    dropout: f64,
}

impl Stack {
    /// What each of the first `count` layers gives, and the input of the one after them.
    ///
    /// `first` is the number of the first dropout.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        count: usize,
        mode: Mode,
        first: u64,
    ) -> Result<(Vec<Tensor>, Tensor), ModelError> {
        let mut hidden = Vec::with_capacity(count);
        let mut x = x.clone();
        for (layer, number) in self.layers.iter().take(count).zip(first..) {
            let y = layer.forward(&x, self.activation)?;
            x = dropout(&y, self.dropout, mode, number)?;
            hidden.push(y);
        }
        Ok((hidden, x))
    }
}

/// An MLP with its tensors.
struct Mlp {
    config: Config,
    stack: Stack,
    classifier: Linear,
}

/// How many blocks the wanted outputs need, out of `last`; refuses a name that is no output.
pub(crate) fn depth(wanted: &[&str], last: usize) -> Result<usize, ModelError> {
    let mut depth = 0;
    for name in wanted {
        depth = depth.max(match *name {
            "logits" | "features" => last,
            other => hidden_index(other, last)
                .ok_or_else(|| ModelError::UnknownOutput(other.to_owned()))?,
        });
    }
    Ok(depth)
}

/// The wanted outputs out of what was computed.
pub(crate) fn pick(
    wanted: &[&str],
    x: &Tensor,
    hidden: &[Tensor],
    features: &Tensor,
    classifier: &Linear,
) -> Result<Vec<Tensor>, ModelError> {
    wanted
        .iter()
        .map(|name| match *name {
            "logits" => Ok(classifier.forward(features, Activation::Identity)?),
            "features" => Ok(features.clone()),
            "hidden.0" => Ok(x.clone()),
            other => hidden_index(other, hidden.len())
                .and_then(|index| hidden.get(index.wrapping_sub(1)))
                .cloned()
                .ok_or_else(|| ModelError::UnknownOutput(other.to_owned())),
        })
        .collect()
}

impl Model for Mlp {
    fn forward(
        &self,
        inputs: &Inputs<'_>,
        wanted: &[&str],
        mode: Mode,
    ) -> Result<Vec<Tensor>, ModelError> {
        let x = inputs.get("pixel_values")?;
        if x.dims().len() != 2 || x.dims()[1] != self.config.inputs {
            return Err(ModelError::InputShape {
                name: "pixel_values",
                found: x.dims().to_vec(),
                wanted: format!("B,{}", self.config.inputs),
            });
        }
        let depth = depth(wanted, self.config.hidden.len())?;
        let (hidden, features) = self.stack.forward(x, depth, mode, 0)?;
        pick(wanted, x, &hidden, &features, &self.classifier)
    }
}

#[cfg(test)]
mod tests;
