//! Where a student's weights come from: drawn by the run's seed, or read from an exported folder.
//!
//! Refuses a folder of another architecture or of other sizes while the pipeline is validated. Invariant: drawn values
//! are a function of the activation's key and the parameter's name.

use std::path::PathBuf;

use limbeck_models::weights::{Folder, WeightsError};
use limbeck_models::{Architecture, ParamSpec, Params};
use limbeck_sdk::candle::{CandleDType, Weights};
use limbeck_sdk::prelude::*;

/// Weights to start from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "limbeck_sdk::serde", deny_unknown_fields)]
#[schemars(crate = "limbeck_sdk::schemars")]
pub(crate) struct Start {
    /// Folder with the `config.json` and `model.safetensors` of an equal model, as an export stage writes it.
    #[schemars(extend("format" = "input-path"))]
    path: PathBuf,
}

impl Start {
    /// Checks that the folder's model has the parameters of `ours`. Reads its `config.json` only.
    ///
    /// # Errors
    /// INVALID_CONFIG at `/init/path`, with the first difference.
    pub(crate) fn check(&self, ours: &dyn Architecture) -> Result<()> {
        let refuse = |problem: String| {
            Error::config("/init/path", format!("`{}` {problem}", self.path.display()))
        };
        let theirs = Folder::open(&self.path)
            .and_then(|folder| folder.architecture())
            .map_err(|error| Error::config("/init/path", text(&error)))?;
        if theirs.model_type() != ours.model_type() {
            let (theirs, ours) = (theirs.model_type(), ours.model_type());
            return Err(refuse(format!("holds a {theirs}, this student is a {ours}")));
        }
        let (theirs, ours) = (specs(&*theirs)?, specs(ours)?);
        for (one, other, has) in [(&ours, &theirs, "lacks"), (&theirs, &ours, "has also")] {
            if let Some(spec) = one.iter().find(|spec| other.iter().all(|o| o.name != spec.name)) {
                return Err(refuse(format!("{has} the parameter `{}`", spec.name)));
            }
        }
        let pairs =
            ours.iter().filter_map(|o| Some((o, theirs.iter().find(|t| t.name == o.name)?)));
        for (our, their) in pairs {
            if our.shape != their.shape {
                let (name, our, their) = (&our.name, &our.shape, &their.shape);
                return Err(refuse(format!(
                    "has `{name}` of {their:?}, this student's is {our:?}"
                )));
            }
        }
        Ok(())
    }

    /// Reads the folder's weights, with progress.
    ///
    /// # Errors
    /// CANCELLED; IO and BAD_DATA with file and tensor.
    pub(crate) fn read(&self, ours: &dyn Architecture, weights: &Weights<'_>) -> Result<Params> {
        let total = specs(ours)?.len() as u64;
        let folder = Folder::open(&self.path).map_err(file_error)?;
        let context = weights.context();
        let params = folder.params(ours, CandleDType::F32, weights.device(), |done| {
            context.progress(done as u64, total, "initial weights");
            context.check_cancelled().is_ok()
        });
        params.map_err(file_error)?.ok_or_else(Error::cancelled)
    }
}

fn specs(architecture: &dyn Architecture) -> Result<Vec<ParamSpec>> {
    architecture.params().map_err(|error| Error::internal(error.to_string()))
}

/// An error and its causes in one line.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

pub(crate) fn file_error(error: WeightsError) -> Error {
    let file = || error.path().display().to_string();
    let bad_data = || Error::bad_data(text(&error)).note("file", file());
    match &error {
        WeightsError::Io { path, source } => Error::io(path, source),
        WeightsError::Tensor { tensor, .. } => bad_data().tensor(tensor),
        _ => bad_data(),
    }
}
