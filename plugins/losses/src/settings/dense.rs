//! Settings of the losses on logits.
//!
//! Refuses what losses.md calls out of range, among it the end points where a divergence is constant
//! (`skl` at α = 1). End points where a divergence *is* another one are dispatched here, once: a
//! `gjsd` with β = 0 leaves this file as forward KL.

use super::macros::{settings, softened};
use super::{BadSetting, NonFinite, Settings, Spec, within};

/// Temperatures of both sides and the factor F of value and gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softening {
    /// Divides the student's logits.
    pub student: f64,
    /// Divides the teacher's logits.
    pub teacher: f64,
    /// `student²` with `t2`, else 1.
    pub factor: f64,
}

impl Softening {
    /// Nothing divided, nothing multiplied.
    pub const NONE: Self = Self { student: 1.0, teacher: 1.0, factor: 1.0 };

    pub(crate) fn new(student: f64, teacher: Option<f64>, t2: bool) -> Result<Self, BadSetting> {
        let range = "above 0 and at most 1000";
        let ok = |t: f64| t > 0.0 && t <= 1000.0;
        within("/temperature", student, ok, range)?;
        let teacher = teacher.unwrap_or(student);
        within("/teacher_temperature", teacher, ok, range)?;
        Ok(Self { student, teacher, factor: if t2 { student * student } else { 1.0 } })
    }
}

/// What happens when student and teacher have different numbers of columns.
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
pub enum Vocab {
    /// It is refused.
    #[default]
    Strict,
    /// Both keep the first min(V_s, V_t) columns before the softmax.
    Truncate,
    /// The teacher has probability 0 on the student's extra columns.
    StudentTail,
}

/// The comparison of one row of student logits with one row of teacher logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(p‖q).
    ForwardKl,
    /// KL(q‖p).
    ReverseKl,
    /// β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q, 0 < β < 1.
    Gjsd {
        /// Weight of the teacher.
        beta: f64,
    },
    /// KL(p‖αp + (1−α)q), 0 < α < 1.
    Skl {
        /// Share of the teacher in the mixture.
        alpha: f64,
    },
    /// KL(q‖(1−α)p + αq), 0 < α < 1.
    Srkl {
        /// Share of the student in the mixture.
        alpha: f64,
        /// Take the mixture as a constant in the gradient.
        detach: bool,
    },
    /// ½ Σ|p − q|.
    Tvd,
    /// Amari's α-divergence, α neither 0 nor 1.
    Alpha {
        /// Exponent of the teacher.
        alpha: f64,
    },
    /// Rényi's divergence, α not 1.
    Renyi {
        /// Exponent of the teacher.
        alpha: f64,
    },
    /// −Σ p ln q.
    SoftCe,
    /// λ KL(p‖q) + (1−λ) KL(q‖p), 0 < λ < 1.
    SymKl {
        /// Weight of the forward KL.
        lambda: f64,
    },
    /// Mean of (s − t)².
    LogitMse,
    /// Decoupled: α·target part + β·rest.
    Dkd {
        /// Weight of the target part.
        alpha: f64,
        /// Weight of the rest.
        beta: f64,
    },
    /// Forward KL of standardised rows.
    LogitStd,
    /// Mean binary cross-entropy of sigmoids.
    BceKd,
    /// Σ|q_(r) − p_(r)| of sorted probabilities.
    Uld,
}

impl Divergence {
    /// Whether the label's class enters the formula (else labels only say which rows count).
    pub fn needs_labels(self) -> bool {
        matches!(self, Self::Dkd { .. })
    }

    /// Whether an infinite row keeps its (finite) gradient instead of getting 0.
    pub fn keeps_gradient_of_infinite_row(self) -> bool {
        matches!(self, Self::ForwardKl | Self::SoftCe | Self::Dkd { .. } | Self::BceKd)
    }
}

/// A dense logit loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dense {
    /// Which comparison.
    pub divergence: Divergence,
    /// Temperatures and F.
    pub softening: Softening,
    /// Unequal widths.
    pub vocab: Vocab,
    /// The teacher's width may not exceed the student's (`lwf`).
    pub narrow_teacher: bool,
    /// Infinite rows.
    pub non_finite: NonFinite,
}

/// Cross-entropy with hard labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// ε of y′ = (1−ε)e_y + ε/V.
    pub smoothing: f64,
    /// Infinite rows.
    pub non_finite: NonFinite,
}

/// Binary cross-entropy with hard labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bce {
    /// Infinite rows.
    pub non_finite: NonFinite,
}

/// DIST.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dist {
    /// Weight of the row correlations.
    pub beta: f64,
    /// Weight of the column correlations.
    pub gamma: f64,
    /// Temperatures and F.
    pub softening: Softening,
    /// Unequal widths.
    pub vocab: Vocab,
}

macro_rules! dense {
    ($(#[$doc:meta])* $name:ident, temperature $t:expr, t2 $t2:expr, { $($rest:tt)* }, $resolve:expr) => {
        softened! {
            $(#[$doc])*
            $name, temperature $t, t2 $t2, {
                /// What happens when student and teacher have different numbers of columns.
                vocab: Vocab = Vocab::Strict,
                $($rest)*
            }
        }
        impl Settings for $name {
            fn resolve(&self) -> Result<Spec, BadSetting> {
                let divergence: fn(&Self) -> Result<Divergence, BadSetting> = $resolve;
                let divergence = divergence(self)?;
                let softening = self.softening()?;
                refuse_tail(divergence, self.vocab)?;
                let (vocab, non_finite) = (self.vocab, self.non_finite);
                Ok(Spec::Dense(Dense { divergence, softening, vocab, narrow_teacher: false, non_finite }))
            }
        }
    };
}

/// Reverse KL is infinite where the teacher has no mass, so a student tail can never be trained.
fn refuse_tail(divergence: Divergence, vocab: Vocab) -> Result<(), BadSetting> {
    let reverse = matches!(divergence, Divergence::ReverseKl | Divergence::SymKl { .. });
    if reverse && vocab == Vocab::StudentTail {
        let message = "`student_tail` makes a reverse KL infinite: the teacher has no mass there";
        return Err(BadSetting::new("/vocab", message));
    }
    Ok(())
}

dense! {
    /// `limbeck.kl`: forward KL, Hinton 2015 (arXiv 1503.02531).
    KlSettings, temperature 1.0, t2 true, {}, |_| Ok(Divergence::ForwardKl)
}
dense! {
    /// `limbeck.rkl`: reverse KL, MiniLLM (arXiv 2306.08543).
    RklSettings, temperature 1.0, t2 true, {}, |_| Ok(Divergence::ReverseKl)
}
dense! {
    /// `limbeck.gjsd`: generalised Jensen-Shannon divergence, GKD (arXiv 2306.13649).
    GjsdSettings, temperature 1.0, t2 true, {
        /// Weight of the teacher; 0 is forward KL, 1 is reverse KL.
        #[schemars(range(min = 0.0, max = 1.0))]
        beta: f64 = 0.5,
    }, |c| Ok(match within("/beta", c.beta, |b| (0.0..=1.0).contains(&b), "from 0 to 1")? {
        0.0 => Divergence::ForwardKl,
        1.0 => Divergence::ReverseKl,
        beta => Divergence::Gjsd { beta },
    })
}
dense! {
    /// `limbeck.skl`: skew KL, DistiLLM (arXiv 2402.03898).
    SklSettings, temperature 1.0, t2 true, {
        /// Share of the teacher in the mixture; 0 is forward KL.
        #[schemars(extend("minimum" = 0.0, "exclusiveMaximum" = 1.0))]
        alpha: f64 = 0.1,
    }, |c| Ok(match within("/alpha", c.alpha, |a| (0.0..1.0).contains(&a), "from 0 to below 1")? {
        0.0 => Divergence::ForwardKl,
        alpha => Divergence::Skl { alpha },
    })
}
dense! {
    /// `limbeck.srkl`: skew reverse KL, DistiLLM (arXiv 2402.03898).
    SrklSettings, temperature 1.0, t2 true, {
        /// Share of the student in the mixture; 0 is reverse KL.
        #[schemars(extend("minimum" = 0.0, "exclusiveMaximum" = 1.0))]
        alpha: f64 = 0.1,
        /// Takes the mixture as a constant: same value, another gradient.
        detach_mixture: bool = false,
    }, |c| Ok(match within("/alpha", c.alpha, |a| (0.0..1.0).contains(&a), "from 0 to below 1")? {
        0.0 => Divergence::ReverseKl,
        alpha => Divergence::Srkl { alpha, detach: c.detach_mixture },
    })
}
dense! {
    /// `limbeck.tvd`: total variation distance, f-distill (arXiv 2307.15190). Its slope jumps where q = p, and is 0
    /// there; where the arithmetic cannot tell them apart (in f32 below 1e-6 of either) it may be any of the three.
    TvdSettings, temperature 1.0, t2 true, {}, |_| Ok(Divergence::Tvd)
}
dense! {
    /// `limbeck.alpha-div`: Amari's α-divergence, AlphaNet (arXiv 2102.07954).
    AlphaDivSettings, temperature 1.0, t2 true, {
        /// 1 is forward KL, 0 reverse KL.
        #[schemars(range(min = 0.0, max = 2.0))]
        alpha: f64 = 0.5,
    }, |c| Ok(match within("/alpha", c.alpha, |a| (0.0..=2.0).contains(&a), "from 0 to 2")? {
        0.0 => Divergence::ReverseKl,
        1.0 => Divergence::ForwardKl,
        alpha => Divergence::Alpha { alpha },
    })
}
dense! {
    /// `limbeck.renyi`: Rényi's divergence (arXiv 1602.02311).
    RenyiSettings, temperature 1.0, t2 true, {
        /// 1 is forward KL.
        #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 4.0))]
        alpha: f64 = 0.5,
    }, |c| Ok(match within("/alpha", c.alpha, |a| a > 0.0 && a <= 4.0, "above 0 and at most 4")? {
        1.0 => Divergence::ForwardKl,
        alpha => Divergence::Renyi { alpha },
    })
}
dense! {
    /// `limbeck.soft-ce`: cross-entropy with the teacher's probabilities; no T² unless asked.
    SoftCeSettings, temperature 1.0, t2 false, {}, |_| Ok(Divergence::SoftCe)
}
dense! {
    /// `limbeck.sym-kl`: weighted sum of both KL directions.
    SymKlSettings, temperature 1.0, t2 true, {
        /// Weight of the forward KL.
        #[schemars(range(min = 0.0, max = 1.0))]
        lambda: f64 = 0.5,
    }, |c| Ok(match within("/lambda", c.lambda, |l| (0.0..=1.0).contains(&l), "from 0 to 1")? {
        0.0 => Divergence::ReverseKl,
        1.0 => Divergence::ForwardKl,
        lambda => Divergence::SymKl { lambda },
    })
}
dense! {
    /// `limbeck.dkd`: decoupled distillation (arXiv 2203.08679).
    DkdSettings, temperature 1.0, t2 true, {
        /// Weight of the target part.
        #[schemars(range(min = 0.0))]
        alpha: f64 = 1.0,
        /// Weight of the rest.
        #[schemars(range(min = 0.0))]
        beta: f64 = 8.0,
    }, |c| Ok(Divergence::Dkd {
        alpha: within("/alpha", c.alpha, |a| a >= 0.0, "at least 0")?,
        beta: within("/beta", c.beta, |b| b >= 0.0, "at least 0")?,
    })
}
dense! {
    /// `limbeck.logit-std`: forward KL of standardised logits (arXiv 2403.01427).
    LogitStdSettings, temperature 1.0, t2 true, {}, |_| Ok(Divergence::LogitStd)
}
dense! {
    /// `limbeck.bce-kd`: mean binary cross-entropy with the teacher's sigmoids.
    BceKdSettings, temperature 1.0, t2 true, {}, |_| Ok(Divergence::BceKd)
}

softened! {
    /// `limbeck.uld`: distance of sorted probabilities, for different tokenizers (arXiv 2402.12030).
    UldSettings, temperature 1.0, t2 true, {}
}
impl Settings for UldSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Dense(Dense {
            divergence: Divergence::Uld,
            softening: self.softening()?,
            vocab: Vocab::Strict,
            narrow_teacher: false,
            non_finite: self.non_finite,
        }))
    }
}

softened! {
    /// `limbeck.lwf-kl`: forward KL on the old units, Learning without Forgetting (arXiv 1606.09282).
    LwfSettings, temperature 2.0, t2 true, {}
}
impl Settings for LwfSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Dense(Dense {
            divergence: Divergence::ForwardKl,
            softening: self.softening()?,
            vocab: Vocab::Truncate,
            narrow_teacher: true,
            non_finite: self.non_finite,
        }))
    }
}

settings! {
    /// `limbeck.logit-mse`: mean squared difference of logits (arXiv 1312.6184); has no temperature.
    LogitMseSettings {
        /// What happens when student and teacher have different numbers of columns.
        vocab: Vocab = Vocab::Strict,
        /// What becomes of a row whose loss is not finite.
        non_finite: NonFinite = NonFinite::Propagate,
    }
}
impl Settings for LogitMseSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Dense(Dense {
            divergence: Divergence::LogitMse,
            softening: Softening::NONE,
            vocab: self.vocab,
            narrow_teacher: false,
            non_finite: self.non_finite,
        }))
    }
}

settings! {
    /// `limbeck.ce`: cross-entropy with hard labels (arXiv 1512.00567); has no temperature.
    CeSettings {
        /// ε of y′ = (1−ε)e_y + ε/V.
        #[schemars(extend("minimum" = 0.0, "exclusiveMaximum" = 1.0))]
        label_smoothing: f64 = 0.0,
        /// What becomes of a row whose loss is not finite.
        non_finite: NonFinite = NonFinite::Propagate,
    }
}
impl Settings for CeSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        let ok = |e: f64| (0.0..1.0).contains(&e);
        let smoothing = within("/label_smoothing", self.label_smoothing, ok, "from 0 to below 1")?;
        Ok(Spec::CrossEntropy(CrossEntropy { smoothing, non_finite: self.non_finite }))
    }
}

settings! {
    /// `limbeck.bce`: mean over kept classes of binary cross-entropy with hard labels (arXiv 1611.07725).
    BceSettings {
        /// What becomes of a row whose loss is not finite.
        non_finite: NonFinite = NonFinite::Propagate,
    }
}
impl Settings for BceSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Bce(Bce { non_finite: self.non_finite }))
    }
}

settings! {
    /// `limbeck.dist`: correlations within rows and columns (arXiv 2205.10536); batch-coupled.
    DistSettings {
        /// Divides both sides' logits before the softmax; 1 leaves them unchanged.
        #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1000.0))]
        temperature: f64 = 1.0,
        /// The teacher's own temperature; absent: `temperature`.
        #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1000.0))]
        teacher_temperature: Option<f64> = None,
        /// Multiplies value and gradient by temperature².
        t2: bool = true,
        /// What happens when student and teacher have different numbers of columns.
        vocab: Vocab = Vocab::Strict,
        /// Weight of the correlation within each row.
        #[schemars(range(min = 0.0))]
        beta: f64 = 1.0,
        /// Weight of the correlation within each column.
        #[schemars(range(min = 0.0))]
        gamma: f64 = 1.0,
    }
}
impl Settings for DistSettings {
    fn resolve(&self) -> Result<Spec, BadSetting> {
        Ok(Spec::Dist(Dist {
            beta: within("/beta", self.beta, |x| x >= 0.0, "at least 0")?,
            gamma: within("/gamma", self.gamma, |x| x >= 0.0, "at least 0")?,
            softening: Softening::new(self.temperature, self.teacher_temperature, self.t2)?,
            vocab: self.vocab,
        }))
    }
}
