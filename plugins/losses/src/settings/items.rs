//! Settings of the losses on hidden states, attention and feature maps.
//!
//! Refuses margins, ε and powers out of range, and an empty `layers`. None of these has a temperature.

use super::macros::settings;
use super::{BadSetting, Settings, Spec, within};

/// How student widths become teacher widths.
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
pub enum Projector {
    /// The widths must be equal.
    #[default]
    None,
    /// A learned linear map; its parameters belong to the run, not to the student.
    Linear,
}

/// Pairs of student and teacher layer; empty: the ports without a number.
pub type Layers = Vec<[u32; 2]>;

/// A loss on hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    /// Which comparison.
    pub kind: HiddenKind,
    /// Pairs to average over.
    pub layers: Layers,
}

/// The comparison of two hidden vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HiddenKind {
    /// 1 − cosine.
    Cosine {
        /// Of rows with target −1.
        margin: f64,
    },
    /// Mean squared difference.
    Mse {
        /// Map from student to teacher width.
        projector: Projector,
        /// Whether the map has a bias.
        bias: bool,
    },
    /// Squared distance of unit vectors.
    Pkd,
    /// Gaussian log-likelihood with learned variances.
    Vid {
        /// Lower bound of the variance.
        eps: f64,
    },
}

/// A loss on attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Which comparison.
    pub kind: AttentionKind,
    /// Pairs to average over.
    pub layers: Layers,
}

/// The comparison of two attention maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// Squared difference of scores.
    Mse,
    /// KL of attention distributions.
    Kl,
    /// KL of value relations.
    ValueRelation,
}

/// A loss on feature maps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeatureMap {
    /// Neuron selectivity transfer.
    Nst,
    /// Gram matrices.
    Gram,
    /// Flow of solution procedure.
    Fsp,
    /// Attention transfer.
    At {
        /// Exponent: 1, 2 or 4.
        p: u32,
    },
}

fn hidden(kind: HiddenKind, layers: &Layers) -> Spec {
    Spec::Hidden(Hidden { kind, layers: layers.clone() })
}

fn attention(kind: AttentionKind, layers: &Layers) -> Spec {
    Spec::Attention(Attention { kind, layers: layers.clone() })
}

settings! {
    /// `limbeck.cosine`: 1 − cosine of hidden states, DistilBERT (arXiv 1910.01108).
    CosineSettings {
        /// Rows with target −1 cost max(0, cosine − margin).
        #[schemars(range(min = -1.0, max = 1.0))]
        margin: f64 = 0.0,
        /// Pairs of student and teacher layer; empty: `student.hidden` and `teacher.hidden`.
        layers: Layers = Vec::new(),
    }
}
impl Settings for CosineSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let ok = |m: f64| (-1.0..=1.0).contains(&m);
        let margin = within("/margin", self.margin, ok, "from -1 to 1")?;
        Ok(hidden(HiddenKind::Cosine { margin }, &self.layers))
    }
}

settings! {
    /// `limbeck.hidden-mse`: mean squared difference of hidden states (arXiv 1412.6550, 1909.10351).
    HiddenMseSettings {
        /// Map from student to teacher width; `none` needs equal widths.
        projector: Projector = Projector::None,
        /// Whether the map has a bias.
        bias: bool = true,
        /// Pairs of student and teacher layer; empty: `student.hidden` and `teacher.hidden`.
        layers: Layers = Vec::new(),
    }
}
impl Settings for HiddenMseSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let kind = HiddenKind::Mse { projector: self.projector, bias: self.bias };
        Ok(hidden(kind, &self.layers))
    }
}

settings! {
    /// `limbeck.pkd`: squared distance of normalised hidden states (arXiv 1908.09355).
    PkdSettings {
        /// Pairs of student and teacher layer; empty: `student.hidden` and `teacher.hidden`.
        layers: Layers = Vec::new(),
    }
}
impl Settings for PkdSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(hidden(HiddenKind::Pkd, &self.layers))
    }
}

settings! {
    /// `limbeck.vid`: variational information distillation (arXiv 1904.05835).
    VidSettings {
        /// Lower bound of the variance.
        #[schemars(extend("exclusiveMinimum" = 0.0))]
        eps: f64 = 0.1,
        /// Pairs of student and teacher layer; empty: `student.hidden` and `teacher.hidden`.
        layers: Layers = Vec::new(),
    }
}
impl Settings for VidSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let eps = within("/eps", self.eps, |e| e > 0.0, "above 0")?;
        Ok(hidden(HiddenKind::Vid { eps }, &self.layers))
    }
}

settings! {
    /// `limbeck.att-mse`: mean squared difference of attention scores, TinyBERT (arXiv 1909.10351).
    AttMseSettings {
        /// Pairs of student and teacher layer; empty: the ports without a number.
        layers: Layers = Vec::new(),
    }
}
impl Settings for AttMseSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(attention(AttentionKind::Mse, &self.layers))
    }
}

settings! {
    /// `limbeck.att-kl`: KL of attention distributions, MiniLM (arXiv 2002.10957).
    AttKlSettings {
        /// Pairs of student and teacher layer; empty: the ports without a number.
        layers: Layers = Vec::new(),
    }
}
impl Settings for AttKlSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(attention(AttentionKind::Kl, &self.layers))
    }
}

settings! {
    /// `limbeck.minilm-vr`: KL of value relations, MiniLM (arXiv 2002.10957).
    MinilmVrSettings {
        /// Pairs of student and teacher layer; empty: the ports without a number.
        layers: Layers = Vec::new(),
    }
}
impl Settings for MinilmVrSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(attention(AttentionKind::ValueRelation, &self.layers))
    }
}

settings! {
    /// `limbeck.nst`: neuron selectivity transfer (arXiv 1707.01219).
    NstSettings {}
}
impl Settings for NstSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Map(FeatureMap::Nst))
    }
}

settings! {
    /// `limbeck.gram`: squared distance of Gram matrices (arXiv 1505.07376).
    GramSettings {}
}
impl Settings for GramSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Map(FeatureMap::Gram))
    }
}

settings! {
    /// `limbeck.fsp`: flow of solution procedure (Yim 2017, CVPR).
    FspSettings {}
}
impl Settings for FspSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Map(FeatureMap::Fsp))
    }
}

settings! {
    /// `limbeck.at`: attention transfer (arXiv 1612.03928).
    AtSettings {
        /// Exponent of the map.
        #[schemars(extend("enum" = [1, 2, 4]))]
        p: u32 = 2,
    }
}
impl Settings for AtSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        if !matches!(self.p, 1 | 2 | 4) {
            return Err(BadSetting::new("/p", format!("`p` must be 1, 2 or 4, found {}", self.p)));
        }
        Ok(Spec::Map(FeatureMap::At { p: self.p }))
    }
}
