//! Every plugin id of this library, with its settings, summary and features.
//!
//! `limbeck.` + the id of the golden files with `-` for `_`, except that `fkl` is `limbeck.kl` and `lwf` is
//! `limbeck.lwf-kl`, since `limbeck.lwf` is the scheduler and ids are unique in a run.

use super::engine::Engine;
use crate::settings as config;
use limbeck_sdk::{Host, Loss, LossCall, LossParam, Ports, Result, Views};

macro_rules! losses {
    ($($plugin:ident($settings:ident) = $id:literal $features:expr, $summary:literal;)*) => {
        $(
            #[doc = concat!("`", $id, "`: ", $summary, ".")]
            #[derive(Debug)]
            pub struct $plugin(Engine);

            impl Loss for $plugin {
                const ID: &'static str = $id;
                const SUMMARY: &'static str = $summary;
                const FEATURES: &'static [&'static str] = $features;
                #[cfg(feature = "cuda")]
                const DEVICES: &'static [i32] = crate::cuda::devices($id);
                type Config = config::$settings;

                fn new(settings: Self::Config, host: &Host) -> Result<Self> {
                    Engine::new(&settings, host).map(Self)
                }
                fn ports(&self) -> Ports {
                    self.0.ports().clone()
                }
                #[cfg(feature = "cuda")]
                fn activate(&mut self, activation: &limbeck_sdk::Activation<'_>) -> Result<()> {
                    self.0.activate(activation)
                }
                fn params(&mut self, inputs: &Views<'_>) -> Result<Vec<LossParam>> {
                    self.0.params(inputs)
                }
                fn plan(&mut self, inputs: &Views<'_>) -> Result<u64> {
                    self.0.plan(inputs)
                }
                fn compute(&mut self, call: &LossCall<'_>) -> Result<()> {
                    self.0.compute(call)
                }
            }
        )*

        #[cfg(all(feature = "plugin", not(feature = "cuda")))]
        limbeck_sdk::export! { $(loss $plugin),* }
        #[cfg(all(feature = "plugin", feature = "cuda"))]
        limbeck_sdk::export! { $(loss $plugin),*; interface crate::cuda::table::interface }
    };
}

/// Equal inputs give equal bits, on any number of threads.
const SMOOTH: &[&str] = &["deterministic"];
/// As [`SMOOTH`], with jumps in the gradient.
const PIECEWISE: &[&str] = &["deterministic", "piecewise"];
/// As [`SMOOTH`], with rows that depend on each other: the value of a batch is not the sum over its rows.
const COUPLED: &[&str] = &["deterministic", "batch-coupled"];

losses! {
    Kl(KlSettings) = "limbeck.kl" SMOOTH, "forward KL(teacher, student) of softened rows";
    Rkl(RklSettings) = "limbeck.rkl" SMOOTH, "reverse KL(student, teacher) of softened rows";
    Gjsd(GjsdSettings) = "limbeck.gjsd" SMOOTH, "generalised Jensen-Shannon divergence";
    Skl(SklSettings) = "limbeck.skl" SMOOTH, "skew KL: teacher against a mixture";
    Srkl(SrklSettings) = "limbeck.srkl" SMOOTH, "skew reverse KL: student against a mixture";
    Tvd(TvdSettings) = "limbeck.tvd" PIECEWISE, "total variation distance of softened rows";
    AlphaDiv(AlphaDivSettings) = "limbeck.alpha-div" SMOOTH, "Amari's alpha-divergence";
    Renyi(RenyiSettings) = "limbeck.renyi" SMOOTH, "Renyi's divergence";
    SoftCe(SoftCeSettings) = "limbeck.soft-ce" SMOOTH, "cross-entropy with the teacher's probabilities";
    SymKl(SymKlSettings) = "limbeck.sym-kl" SMOOTH, "weighted sum of forward and reverse KL";
    LogitMse(LogitMseSettings) = "limbeck.logit-mse" SMOOTH, "mean squared difference of logits";
    Dkd(DkdSettings) = "limbeck.dkd" SMOOTH, "decoupled distillation: target and rest weighted apart";
    Dist(DistSettings) = "limbeck.dist" COUPLED, "one minus correlations of rows and columns (batch-coupled)";
    Ce(CeSettings) = "limbeck.ce" SMOOTH, "cross-entropy with hard labels";
    Bce(BceSettings) = "limbeck.bce" SMOOTH, "binary cross-entropy with hard labels, a sigmoid per class";
    LogitStd(LogitStdSettings) = "limbeck.logit-std" SMOOTH, "forward KL of standardised logits";
    BceKd(BceKdSettings) = "limbeck.bce-kd" SMOOTH, "binary cross-entropy with the teacher's sigmoids";
    Uld(UldSettings) = "limbeck.uld" PIECEWISE, "distance of sorted probabilities, for different tokenizers";
    Lwf(LwfSettings) = "limbeck.lwf-kl" SMOOTH, "forward KL on the units of an older model";
    FusedLinear(FusedLinearSettings) = "limbeck.fused-linear" SMOOTH, "a loss on logits from hidden states and the head, in chunks";
    TopkTail(TopkTailSettings) = "limbeck.topk-tail" SMOOTH, "forward KL of a top-k teacher, one bucket for the rest";
    TopkTeacherRenorm(TopkTeacherRenormSettings) = "limbeck.topk-teacher-renorm" SMOOTH, "forward KL of a renormalised top-k teacher";
    TopkBothRenorm(TopkBothRenormSettings) = "limbeck.topk-both-renorm" SMOOTH, "forward KL with both sides renormalised on the top-k";
    Cosine(CosineSettings) = "limbeck.cosine" SMOOTH, "one minus the cosine of hidden states";
    HiddenMse(HiddenMseSettings) = "limbeck.hidden-mse" SMOOTH, "mean squared difference of hidden states, with an optional projector";
    Pkd(PkdSettings) = "limbeck.pkd" SMOOTH, "squared distance of normalised hidden states";
    Vid(VidSettings) = "limbeck.vid" SMOOTH, "Gaussian likelihood of hidden states with learned variances";
    AttMse(AttMseSettings) = "limbeck.att-mse" SMOOTH, "mean squared difference of attention scores";
    AttKl(AttKlSettings) = "limbeck.att-kl" SMOOTH, "KL of attention distributions";
    MinilmVr(MinilmVrSettings) = "limbeck.minilm-vr" SMOOTH, "KL of value relations";
    Nst(NstSettings) = "limbeck.nst" SMOOTH, "neuron selectivity transfer of feature maps";
    Gram(GramSettings) = "limbeck.gram" SMOOTH, "squared distance of Gram matrices of feature maps";
    Fsp(FspSettings) = "limbeck.fsp" SMOOTH, "flow between two feature maps";
    At(AtSettings) = "limbeck.at" SMOOTH, "attention transfer of feature maps";
    Sp(SpSettings) = "limbeck.sp" COUPLED, "similarity-preserving distillation (batch-coupled)";
    RkdD(RkdDSettings) = "limbeck.rkd-d" COUPLED, "relational distillation, distances (batch-coupled)";
    RkdA(RkdASettings) = "limbeck.rkd-a" COUPLED, "relational distillation, angles (batch-coupled)";
    Infonce(InfonceSettings) = "limbeck.infonce" COUPLED, "contrast with negatives in the batch (batch-coupled)";
    Crd(CrdSettings) = "limbeck.crd" COUPLED, "contrastive representation distillation (batch-coupled)";
    Cka(CkaSettings) = "limbeck.cka" COUPLED, "one minus linear centred kernel alignment (batch-coupled)";
    Mmd(MmdSettings) = "limbeck.mmd" COUPLED, "maximum mean discrepancy of two sets (batch-coupled)";
    Coral(CoralSettings) = "limbeck.coral" COUPLED, "distance of covariances of two sets (batch-coupled)";
}
