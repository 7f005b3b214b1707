//! Settings of the loss on hidden states times a head.
//!
//! The divergence is one of the dense ones, by name, with its own settings inside.

use super::macros::settings;
use super::{BadSetting, Dense, Settings, Spec, parse, within};

/// A dense loss on `hidden · headᵀ`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// What is computed of the logits.
    pub dense: Dense,
    /// Rows whose logits exist at once; 0: chosen for the device.
    pub chunk: usize,
}

/// Divergences that can be fused.
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
#[serde(rename_all = "kebab-case")]
pub enum Fused {
    /// `limbeck.kl`.
    #[default]
    Kl,
    /// `limbeck.rkl`.
    Rkl,
    /// `limbeck.gjsd`.
    Gjsd,
    /// `limbeck.skl`.
    Skl,
    /// `limbeck.srkl`.
    Srkl,
    /// `limbeck.tvd`.
    Tvd,
    /// `limbeck.sym-kl`.
    SymKl,
    /// `limbeck.soft-ce`.
    SoftCe,
    /// `limbeck.alpha-div`.
    AlphaDiv,
}

impl Fused {
    fn name(self) -> &'static str {
        match self {
            Self::Kl => "fkl",
            Self::Rkl => "rkl",
            Self::Gjsd => "gjsd",
            Self::Skl => "skl",
            Self::Srkl => "srkl",
            Self::Tvd => "tvd",
            Self::SymKl => "sym_kl",
            Self::SoftCe => "soft_ce",
            Self::AlphaDiv => "alpha_div",
        }
    }
}

settings! {
    /// `limbeck.fused-linear`: a loss on the logits of hidden states and a head, in chunks.
    FusedLinearSettings {
        /// The loss on the logits.
        loss: Fused = Fused::Kl,
        /// Its settings, as under its own `with`.
        with: serde_json::Map<String, serde_json::Value> = serde_json::Map::new(),
        /// Rows whose logits are in memory at once; 0: 128 on a CPU, on a GPU as many as 2 GiB hold, at least 512.
        #[schemars(range(max = 65536))]
        chunk: u32 = 0,
    }
}
impl Settings for FusedLinearSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let chunk = within("/chunk", f64::from(self.chunk), |c| c <= 65536.0, "from 0 to 65536")?;
        let inner = parse(self.loss.name(), &serde_json::Value::Object(self.with.clone()));
        let inner =
            inner.map_err(|bad| BadSetting::new(&format!("/with{}", bad.pointer), bad.message))?;
        match inner {
            Spec::Dense(dense) => Ok(Spec::Linear(Linear { dense, chunk: chunk as usize })),
            _ => Err(BadSetting::new("/loss", "this loss is not one of logits")),
        }
    }
}
