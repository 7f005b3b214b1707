//! Settings of the losses whose teacher kept only its top-k.
//!
//! What the teacher's numbers are is a setting, since it cannot be seen from them.

use super::macros::softened;
use super::{BadSetting, NonFinite, Settings, Softening, Spec};

/// What a sparse teacher's numbers are.
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
pub enum TopkValues {
    /// ln p at the teacher's temperature.
    #[default]
    LogProbs,
    /// Raw logits.
    Logits,
}

/// What becomes of the mass outside the kept set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseMode {
    /// One bucket holds it.
    Tail,
    /// The teacher is renormalised on the kept set.
    TeacherRenorm,
    /// Both sides are.
    BothRenorm,
}

/// A sparse logit loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sparse {
    /// Mass outside the kept set.
    pub mode: SparseMode,
    /// Meaning of the teacher's numbers.
    pub values: TopkValues,
    /// Temperatures and F.
    pub softening: Softening,
    /// Infinite rows.
    pub non_finite: NonFinite,
}

macro_rules! sparse {
    ($(#[$doc:meta])* $name:ident, $mode:expr) => {
        softened! {
            $(#[$doc])*
            $name, temperature 1.0, t2 true, {
                /// What `teacher.topk.values` holds.
                values: TopkValues = TopkValues::LogProbs,
            }
        }
        impl Settings for $name {
            fn resolve(&self) -> Result<Spec, BadSetting> {
                Ok(Spec::Sparse(Sparse {
                    mode: $mode,
                    values: self.values,
                    softening: self.softening()?,
                    non_finite: self.non_finite,
                }))
            }
        }
    };
}

sparse! {
    /// `limbeck.topk-tail`: forward KL on the kept set, one bucket for the rest.
    TopkTailSettings, SparseMode::Tail
}
sparse! {
    /// `limbeck.topk-teacher-renorm`: forward KL of the renormalised kept teacher.
    TopkTeacherRenormSettings, SparseMode::TeacherRenorm
}
sparse! {
    /// `limbeck.topk-both-renorm`: forward KL with both sides renormalised on the kept set.
    TopkBothRenormSettings, SparseMode::BothRenorm
}
