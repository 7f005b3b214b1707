//! Settings of the batch-coupled losses on hidden states.
//!
//! Refuses temperatures, kernel widths and constants that are not above 0. Two of `crd` have no
//! meaningful default, so they are required.

use super::macros::settings;
use super::{BadSetting, Settings, Spec, within};

/// A loss on the relations among the counted rows of one call.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Similarity preserving.
    Sp,
    /// Relational, distances.
    RkdD,
    /// Relational, angles.
    RkdA,
    /// Contrastive with negatives in the batch.
    InfoNce {
        /// Temperature of the similarities.
        tau: f64,
        /// Mean of both directions.
        symmetric: bool,
    },
    /// Contrastive representation distillation.
    Crd {
        /// Temperature of the similarities.
        tau: f64,
        /// K; absent: n − 1.
        negatives: Option<f64>,
        /// M, rows of the data set.
        n_data: f64,
        /// Z, the constant normaliser.
        z: f64,
    },
    /// Linear centred kernel alignment.
    Cka,
    /// Maximum mean discrepancy; `None` is the linear kernel.
    Mmd {
        /// σ² of each Gaussian.
        sigma2: Option<Vec<f64>>,
    },
    /// Correlation alignment.
    Coral,
}

macro_rules! bare {
    ($(#[$doc:meta])* $name:ident, $batch:expr) => {
        settings! { $(#[$doc])* $name {} }
        impl Settings for $name {
            fn resolve(&self) -> Result<Spec, BadSetting> {
                Ok(Spec::Batch($batch))
            }
        }
    };
}

bare! {
    /// `limbeck.sp`: similarity-preserving distillation (arXiv 1907.09682).
    SpSettings, Batch::Sp
}
bare! {
    /// `limbeck.rkd-d`: relational distillation, distances (arXiv 1904.05068).
    RkdDSettings, Batch::RkdD
}
bare! {
    /// `limbeck.rkd-a`: relational distillation, angles (arXiv 1904.05068).
    RkdASettings, Batch::RkdA
}
bare! {
    /// `limbeck.cka`: 1 − linear centred kernel alignment (arXiv 1905.00414).
    CkaSettings, Batch::Cka
}
bare! {
    /// `limbeck.coral`: distance of covariances (arXiv 1607.01719).
    CoralSettings, Batch::Coral
}

settings! {
    /// `limbeck.infonce`: contrastive, the paired teacher row is the target (arXiv 1807.03748).
    InfonceSettings {
        /// Temperature of the similarities.
        #[schemars(extend("exclusiveMinimum" = 0.0))]
        tau: f64 = 0.07,
        /// Averages both directions.
        symmetric: bool = false,
    }
}
impl Settings for InfonceSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let tau = within("/tau", self.tau, |t| t > 0.0, "above 0")?;
        Ok(Spec::Batch(Batch::InfoNce { tau, symmetric: self.symmetric }))
    }
}

/// `limbeck.crd`: contrastive representation distillation (arXiv 1910.10699), negatives in the batch.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrdSettings {
    /// Temperature of the similarities.
    #[serde(default = "default_tau")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub tau: f64,
    /// K of the contrast; absent: counted rows − 1.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub negatives: Option<f64>,
    /// M, rows of the data set.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub n_data: f64,
    /// Z, the constant normaliser of the similarities.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub z: f64,
}

fn default_tau() -> f64 {
    0.07
}

impl Settings for CrdSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let positive = |pointer: &str, x: f64| within(pointer, x, |x| x > 0.0, "above 0");
        Ok(Spec::Batch(Batch::Crd {
            tau: positive("/tau", self.tau)?,
            negatives: self.negatives.map(|k| positive("/negatives", k)).transpose()?,
            n_data: positive("/n_data", self.n_data)?,
            z: positive("/z", self.z)?,
        }))
    }
}

/// Kernel of `mmd`.
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
pub enum Kernel {
    /// exp(−d²/2σ²).
    #[default]
    Gauss,
    /// Inner product.
    Linear,
}

settings! {
    /// `limbeck.mmd`: maximum mean discrepancy (Gretton 2012; DAN, arXiv 1502.02791).
    MmdSettings {
        /// Kernel.
        kernel: Kernel = Kernel::Gauss,
        /// σ² of each Gaussian; their kernels are averaged.
        sigma2: Vec<f64> = vec![1.0],
    }
}
impl Settings for MmdSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        if self.sigma2.is_empty() {
            return Err(BadSetting::new("/sigma2", "`sigma2` is empty"));
        }
        for (i, &x) in self.sigma2.iter().enumerate() {
            within(&format!("/sigma2/{i}"), x, |x| x > 0.0, "above 0")?;
        }
        let gauss = self.kernel == Kernel::Gauss;
        Ok(Spec::Batch(Batch::Mmd { sigma2: gauss.then(|| self.sigma2.clone()) }))
    }
}
