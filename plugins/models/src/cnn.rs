//! Small convolutional network: blocks of convolution, optional batch normalization, activation and pooling, then an
//! MLP on the flattened planes.
//!
//! Refuses even kernels and more poolings than the image has room for. Invariant: `hidden.K` counts blocks first, then
//! linear layers; `hidden.0` is the input in the shape of its port.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Inputs, Mode, Model, Port};
use crate::error::{ModelError, setting};
use crate::layers::{Activation, BatchNorm, Conv2d, Linear, Pool, pool2d};
use crate::mlp::{self, Stack, check_layers, check_positive, depth, pick};
use crate::params::{ParamSpec, Params, check_size};

/// Value of `model_type`.
pub const MODEL_TYPE: &str = "limbeck-cnn";

/// Side of a pooling window.
const WINDOW: usize = 2;

/// Settings of a CNN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Channels that each block gives.
    pub channels: Vec<usize>,
    /// Side of the convolutions' windows, odd.
    #[serde(default = "default_kernel")]
    pub kernel: usize,
    /// Pooling of 2 x 2 at the end of each block.
    #[serde(default)]
    pub pool: Pool,
    /// Whether each convolution is followed by batch normalization.
    #[serde(default)]
    pub batch_norm: bool,
    /// Sizes of the linear layers between the last block and the classifier.
    #[serde(default)]
    pub hidden: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
    /// What follows each convolution and hidden layer.
    #[serde(default)]
    pub activation: Activation,
    /// Probability that an activation of a hidden linear layer is dropped in training.
    #[serde(default)]
    pub dropout: f64,
    /// Whether images arrive as rows `B,C*H*W` rather than as `B,C,H,W`.
    #[serde(default)]
    pub flat: bool,
}

fn default_kernel() -> usize {
    3
}

impl Config {
    /// Shape `[channels, height, width]` after each block, the image first.
    fn shapes(&self) -> Result<Vec<[usize; 3]>, ModelError> {
        let mut shape = self.image;
        let mut shapes = vec![shape];
        for (index, &channels) in self.channels.iter().enumerate() {
            let shrink = if self.pool == Pool::None { 1 } else { WINDOW };
            shape = [channels, shape[1] / shrink, shape[2] / shrink];
            if shape[1] == 0 || shape[2] == 0 {
                let [_, height, width] = self.image;
                let problem =
                    format!("leaves no pixel of {height} x {width} after block {}", index + 1);
                return Err(setting("pool", problem));
            }
            shapes.push(shape);
        }
        Ok(shapes)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.image.iter().try_for_each(|&size| check_positive("image", size))?;
        check_size("image", &self.image)?;
        check_layers("channels", &self.channels)?;
        if self.kernel.is_multiple_of(2) {
            return Err(setting("kernel", format!("must be odd, found {}", self.kernel)));
        }
        let shapes = self.shapes()?;
        for (shape, &channels) in shapes.iter().zip(&self.channels) {
            check_size("channels", &[shape[0], channels, self.kernel, self.kernel])?;
        }
        shapes.iter().try_for_each(|shape| check_size("channels", shape))?;
        self.head()?.params().map(|_| ())
    }

    /// The MLP behind the blocks.
    fn head(&self) -> Result<mlp::Config, ModelError> {
        let shapes = self.shapes()?;
        let last = shapes.last().unwrap_or(&self.image);
        Ok(mlp::Config {
            inputs: last.iter().product(),
            hidden: self.hidden.clone(),
            classes: self.classes,
            activation: self.activation,
            dropout: self.dropout,
        })
    }

    fn input_shape(&self) -> String {
        let [channels, height, width] = self.image;
        if self.flat {
            return format!("B,{}", channels * height * width);
        }
        format!("B,{channels},{height},{width}")
    }
}

impl Architecture for Config {
    fn model_type(&self) -> &'static str {
        MODEL_TYPE
    }

    fn inputs(&self) -> Vec<Port> {
        vec![Port::float("pixel_values", self.input_shape(), "images to classify")]
    }

    fn outputs(&self) -> Vec<Port> {
        let mut ports =
            vec![Port::float("logits", format!("B,{}", self.classes), "unnormalized class scores")];
        ports.push(Port::float("hidden.0", self.input_shape(), "the input as given"));
        let shapes = self.shapes().unwrap_or_default();
        for (index, [channels, height, width]) in shapes.iter().enumerate().skip(1) {
            let shape = format!("B,{channels},{height},{width}");
            ports.push(Port::float(format!("hidden.{index}"), shape, "what a block gives"));
        }
        for (index, size) in self.hidden.iter().enumerate() {
            let name = format!("hidden.{}", self.channels.len() + index + 1);
            ports.push(Port::float(name, format!("B,{size}"), "activations of a hidden layer"));
        }
        let flattened = shapes.last().map_or(0, |shape| shape.iter().product());
        let last = self.hidden.last().unwrap_or(&flattened);
        ports.push(Port::float("features", format!("B,{last}"), "the classifier's input"));
        ports
    }

    fn params(&self) -> Result<Vec<ParamSpec>, ModelError> {
        self.check()?;
        let mut specs = Vec::new();
        for (index, (shape, &channels)) in self.shapes()?.iter().zip(&self.channels).enumerate() {
            specs.extend(Conv2d::specs(&format!("conv.{index}"), shape[0], channels, self.kernel));
            if self.batch_norm {
                specs.extend(BatchNorm::specs(&format!("norm.{index}"), channels));
            }
        }
        specs.extend(self.head()?.params()?);
        Ok(specs)
    }

    fn build(&self, params: &Params) -> Result<Box<dyn Model>, ModelError> {
        self.check()?;
        let mut blocks = Vec::with_capacity(self.channels.len());
        for (index, (shape, &channels)) in self.shapes()?.iter().zip(&self.channels).enumerate() {
            let name = format!("conv.{index}");
            let conv = Conv2d::new(params, &name, shape[0], channels, self.kernel)?;
            let norm = self
                .batch_norm
                .then(|| BatchNorm::new(params, &format!("norm.{index}"), channels))
                .transpose()?;
            blocks.push(Block { conv, norm });
        }
        let (stack, classifier) = self.head()?.layers(params)?;
        Ok(Box::new(Cnn { config: self.clone(), blocks, stack, classifier }))
    }
}

struct Block {
    conv: Conv2d,
    norm: Option<BatchNorm>,
}

/// A CNN with its tensors.
struct Cnn {
    config: Config,
    blocks: Vec<Block>,
    stack: Stack,
    classifier: Linear,
}

impl Cnn {
    /// The input as images; rows and images are taken whatever the port says.
    fn images(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let [channels, height, width] = self.config.image;
        let is_rows = x.dims().len() == 2 && x.dims()[1] == channels * height * width;
        let is_images = x.dims().len() == 4 && x.dims()[1..] == self.config.image;
        if !is_rows && !is_images {
            return Err(ModelError::InputShape {
                name: "pixel_values",
                found: x.dims().to_vec(),
                wanted: self.config.input_shape(),
            });
        }
        Ok(x.reshape((x.dims()[0], channels, height, width))?)
    }

    fn block(&self, block: &Block, x: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        let activation = self.config.activation;
        let x = match &block.norm {
            None => block.conv.forward(x, activation)?,
            Some(norm) => {
                let x = block.conv.forward(x, Activation::Identity)?;
                activation.apply(&norm.forward(&x, mode)?)?
            }
        };
        Ok(pool2d(&x, self.config.pool, WINDOW)?)
    }
}

impl Model for Cnn {
    fn forward(
        &self,
        inputs: &Inputs<'_>,
        wanted: &[&str],
        mode: Mode,
    ) -> Result<Vec<Tensor>, ModelError> {
        let given = inputs.get("pixel_values")?;
        let depth = depth(wanted, self.blocks.len() + self.config.hidden.len())?;
        let mut x = self.images(given)?;
        let mut hidden = Vec::with_capacity(depth);
        for block in self.blocks.iter().take(depth) {
            x = self.block(block, &x, mode)?;
            hidden.push(x.clone());
        }
        let rest = depth - hidden.len();
        let (linear, features) = self.stack.forward(&x.flatten_from(1)?, rest, mode, 0)?;
        hidden.extend(linear);
        pick(wanted, given, &hidden, &features, &self.classifier)
    }
}

#[cfg(test)]
mod tests;
