//! What can be wrong with a model's configuration, parameters or inputs.
//!
//! Problems of files are [`crate::weights::WeightsError`]. Invariant: a message names the setting or tensor at fault.

/// A model that cannot be built or run as asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A setting has a value outside of its domain.
    #[error("`{setting}` {problem}")]
    Setting {
        /// Key of the configuration.
        setting: &'static str,
        /// What is wrong, with the value found.
        problem: String,
    },
    /// `model_type` names no architecture of this crate.
    #[error("unknown model_type `{found}`; known are {}", crate::KNOWN_MODEL_TYPES.join(", "))]
    UnknownModelType {
        /// The name found.
        found: String,
    },
    /// The configuration lacks `model_type` or is not of the architecture's form.
    #[error("{0}")]
    Config(String),
    /// A parameter was not supplied.
    #[error("parameter `{0}` is missing")]
    MissingParam(String),
    /// A parameter has another shape than the configuration asks for.
    #[error("parameter `{name}` has shape {found:?}, the configuration asks for {wanted:?}")]
    ParamShape {
        /// Its name.
        name: String,
        /// Shape supplied.
        found: Vec<usize>,
        /// Shape of the configuration.
        wanted: Vec<usize>,
    },
    /// An input that the model needs was not supplied.
    #[error("input `{0}` is missing")]
    MissingInput(&'static str),
    /// An input has a shape that the model cannot take.
    #[error("input `{name}` has shape {found:?}, the model takes {wanted}")]
    InputShape {
        /// Its name.
        name: &'static str,
        /// Shape supplied.
        found: Vec<usize>,
        /// Shape in the notation of ports.
        wanted: String,
    },
    /// An input has a value that the model cannot take.
    #[error("input `{name}` {problem}")]
    InputValue {
        /// Its name.
        name: &'static str,
        /// What is wrong, with the value found.
        problem: String,
    },
    /// A name that is not an output of the model.
    #[error("the model has no output `{0}`")]
    UnknownOutput(String),
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A [`ModelError::Setting`].
pub(crate) fn setting(setting: &'static str, problem: impl Into<String>) -> ModelError {
    ModelError::Setting { setting, problem: problem.into() }
}
