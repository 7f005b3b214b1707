//! Trainable models for students and teachers, on candle, that know nothing of the plugin ABI.
//!
//! An [`Architecture`] is what a configuration says before a weight exists: ports, named parameters and
//! their initial values. [`Architecture::build`] joins it with tensors into a [`Model`]. Every layer here has a
//! gradient: candle's fused layers lose theirs silently, so none of them is used.
//!
//! Invariant: a model holds no randomness and no state besides its tensors; dropout is a function of the key in
//! [`Mode::Train`], and running statistics are parameters of role [`Role::Buffer`].
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use limbeck_models::{Architecture, Inputs, Mode, Params, mlp};
//!
//! let config = mlp::Config { inputs: 4, hidden: vec![8], classes: 3, ..mlp::Config::default() };
//! let params = Params::initial(&config.params()?, [7, 0], DType::F32, &Device::Cpu)?;
//! let model = config.build(&params)?;
//! let inputs = Inputs::from([("pixel_values", Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?)]);
//! let outputs = model.forward(&inputs, &["logits", "hidden.1"], Mode::Eval)?;
//! assert_eq!(outputs[0].dims(), [2, 3]);
//! assert_eq!(outputs[1].dims(), [2, 8]);
//! # Ok::<(), limbeck_models::ModelError>(())
//! ```
#![warn(missing_docs)]

mod architecture;
pub mod bert;
pub mod cnn;
pub mod distilbert;
mod error;
pub mod layers;
pub mod mlp;
mod params;
mod random;
pub mod transformer;
pub mod weights;

pub use architecture::{
    Architecture, Grad, Grads, Inputs, KNOWN_MODEL_TYPES, Mode, Model, Port, Recorded, Stored,
    Tape, from_config,
};
pub use error::ModelError;
pub use params::{Init, ParamSpec, Params, Role};
