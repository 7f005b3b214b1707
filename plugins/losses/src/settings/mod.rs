//! Settings of every loss of the catalogue: what a pipeline writes under `with`, checked and resolved.
//!
//! Refuses numbers outside their range, NaN and unknown keys, each with the JSON Pointer of the
//! culprit. A resolved [`Spec`] is always meaningful: nothing after this file checks a parameter again.

mod batch;
mod dense;
mod items;
mod linear;
mod macros;
mod sparse;
#[cfg(test)]
mod tests;

pub use batch::*;
pub use dense::*;
pub use items::*;
pub use linear::*;
pub use sparse::*;

use serde::de::DeserializeOwned;

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSetting {
    /// JSON Pointer into the configuration, `""` for the whole of it.
    pub pointer: String,
    /// What is wrong, with the value found.
    pub message: String,
}

impl BadSetting {
    pub(crate) fn new(pointer: &str, message: impl Into<String>) -> Self {
        Self { pointer: pointer.to_owned(), message: message.into() }
    }
}

/// Settings that resolve into what the arithmetic needs.
pub trait Settings: DeserializeOwned {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting that is out of range.
    fn resolve(&self) -> Result<Spec, BadSetting>;
}

/// A loss with all its parameters, ready to be computed.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// Row-wise comparison of student and teacher logits.
    Dense(Dense),
    /// Hard labels.
    CrossEntropy(CrossEntropy),
    /// Hard labels, a sigmoid per class.
    Bce(Bce),
    /// The teacher kept only its top-k.
    Sparse(Sparse),
    /// Pearson correlations within rows and columns.
    Dist(Dist),
    /// A dense loss on hidden states times a head.
    Linear(Linear),
    /// A loss on hidden states, row by row.
    Hidden(Hidden),
    /// A loss on attention, sequence by sequence.
    Attention(Attention),
    /// A loss on feature maps, sample by sample.
    Map(FeatureMap),
    /// A loss on the relations within a batch.
    Batch(Batch),
}

/// What becomes of a row whose loss is not finite.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// It makes the value infinite or NaN; the runner's `on_nonfinite` decides.
    #[default]
    Propagate,
    /// It adds nothing to value and gradient and is counted in `nonfinite_rows`.
    ZeroAndCount,
}

pub(crate) fn within(
    pointer: &str,
    value: f64,
    ok: impl Fn(f64) -> bool,
    range: &str,
) -> Result<f64, BadSetting> {
    if value.is_finite() && ok(value) {
        return Ok(value);
    }
    let name = pointer.trim_start_matches('/');
    Err(BadSetting::new(pointer, format!("`{name}` must be {range}, found {value}")))
}

/// Reads the settings of the loss called `id` (a golden file's name, such as `fkl`) and resolves them.
///
/// # Errors
/// A JSON error, an unknown loss, or a setting out of range.
pub fn parse(id: &str, config: &serde_json::Value) -> Result<Spec, BadSetting> {
    fn read<S: Settings>(config: &serde_json::Value) -> Result<Spec, BadSetting> {
        let settings: S = serde_json::from_value(config.clone())
            .map_err(|error| BadSetting::new("", error.to_string()))?;
        settings.resolve()
    }
    let reader: fn(&serde_json::Value) -> Result<Spec, BadSetting> = match id {
        "fkl" => read::<KlSettings>,
        "rkl" => read::<RklSettings>,
        "gjsd" => read::<GjsdSettings>,
        "skl" => read::<SklSettings>,
        "srkl" => read::<SrklSettings>,
        "tvd" => read::<TvdSettings>,
        "alpha_div" => read::<AlphaDivSettings>,
        "renyi" => read::<RenyiSettings>,
        "soft_ce" => read::<SoftCeSettings>,
        "sym_kl" => read::<SymKlSettings>,
        "logit_mse" => read::<LogitMseSettings>,
        "dkd" => read::<DkdSettings>,
        "dist" => read::<DistSettings>,
        "ce" => read::<CeSettings>,
        "bce" => read::<BceSettings>,
        "logit_std" => read::<LogitStdSettings>,
        "bce_kd" => read::<BceKdSettings>,
        "uld" => read::<UldSettings>,
        "lwf" => read::<LwfSettings>,
        "fused_linear" => read::<FusedLinearSettings>,
        "topk_tail" => read::<TopkTailSettings>,
        "topk_teacher_renorm" => read::<TopkTeacherRenormSettings>,
        "topk_both_renorm" => read::<TopkBothRenormSettings>,
        "cosine" => read::<CosineSettings>,
        "hidden_mse" => read::<HiddenMseSettings>,
        "pkd" => read::<PkdSettings>,
        "vid" => read::<VidSettings>,
        "att_mse" => read::<AttMseSettings>,
        "att_kl" => read::<AttKlSettings>,
        "minilm_vr" => read::<MinilmVrSettings>,
        "nst" => read::<NstSettings>,
        "gram" => read::<GramSettings>,
        "fsp" => read::<FspSettings>,
        "at" => read::<AtSettings>,
        "sp" => read::<SpSettings>,
        "rkd_d" => read::<RkdDSettings>,
        "rkd_a" => read::<RkdASettings>,
        "infonce" => read::<InfonceSettings>,
        "crd" => read::<CrdSettings>,
        "cka" => read::<CkaSettings>,
        "mmd" => read::<MmdSettings>,
        "coral" => read::<CoralSettings>,
        _ => return Err(BadSetting::new("", format!("no loss is called `{id}`"))),
    };
    reader(config)
}
