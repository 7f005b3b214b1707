//! The places of a stage that plugins fill: teacher, loss terms, schedulers.

use super::{CachePlan, FromStage};
use crate::diagnostic::Span;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `uses` and `with`: a plugin and its settings as written (schema defaults are filled in by the load phase).
#[derive(Clone, Debug)]
pub struct PluginUse {
    /// Plugin id, e.g. `limbeck.mlp`.
    pub id: String,
    /// Place of the id.
    pub id_span: Option<Span>,
    /// Settings, an object.
    pub with: Json,
    /// Place of the settings object, or of the entry if there is none.
    pub with_span: Option<Span>,
    /// Places of keys and values inside `with`, by JSON Pointer (`/hidden/0`).
    pub spans: BTreeMap<String, KeySpan>,
    /// Directory that relative inputs start from, where it is not the pipeline's: settings of another run.
    pub base: Option<PathBuf>,
}

/// Places of one setting.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySpan {
    /// Of the key (of the value inside a list).
    pub key: Option<Span>,
    /// Of the value.
    pub value: Option<Span>,
}

/// `teacher`.
#[derive(Clone, Debug)]
pub enum TeacherPlan {
    /// A teacher plugin.
    Plugin(PluginUse),
    /// A student trained by an earlier stage, frozen. `student` is that stage's plugin and settings.
    Stage {
        /// Which one.
        from: FromStage,
        /// Its plugin.
        student: PluginUse,
    },
    /// `decay*copy + (1-decay)*student` after each step; starts as the student.
    Ema {
        /// In `[0, 1)`.
        decay: f64,
    },
    /// This step's own outputs, no gradient.
    SelfOutputs,
    /// Outputs that a `capture` stage wrote.
    Cache(CachePlan),
    /// Several models as one: its logits are the logarithm of the mean of their probabilities.
    Ensemble {
        /// 1 to [`MAX_MEMBERS`] of them.
        members: Vec<MemberPlan>,
        /// Place of the list.
        span: Option<Span>,
    },
}

/// Most models of an ensemble: random keys have a place for each.
pub const MAX_MEMBERS: usize = 64;

/// One model of an ensemble.
#[derive(Clone, Debug)]
pub struct MemberPlan {
    /// Unique in the ensemble; its own outputs are `teacher.NAME.OUTPUT`.
    pub name: String,
    /// A plugin, a stage's student or a cache.
    pub teacher: TeacherPlan,
    /// Its input port -> source, when rebound.
    pub inputs: BTreeMap<String, Bound>,
    /// Place.
    pub span: Option<Span>,
}

impl TeacherPlan {
    /// The plugins that it names.
    pub fn plugins(&self) -> Vec<&PluginUse> {
        match self {
            Self::Plugin(plugin) | Self::Stage { student: plugin, .. } => vec![plugin],
            Self::Ema { .. } | Self::SelfOutputs | Self::Cache(_) => Vec::new(),
            Self::Ensemble { members, .. } => {
                members.iter().flat_map(|m| m.teacher.plugins()).collect()
            }
        }
    }
}

/// A source as written in `inputs`, parsed by the wiring: `labels`, `teacher.logits`, `student.params.NAME`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Text.
    pub source: String,
    /// Place.
    pub span: Option<Span>,
}

/// `reduction` of a term: chooses the normaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Counted items.
    TokenMean,
    /// Row weight 1/length, normaliser = number of sequences.
    SeqMean,
    /// Examples (size of the first axis of the batch).
    BatchMean,
    /// 1.
    Sum,
}

/// One entry of `loss`.
#[derive(Clone, Debug)]
pub struct TermPlan {
    /// Unique in the stage.
    pub name: String,
    /// Plugin; its `with` does not hold the host's own `layers` key.
    pub plugin: PluginUse,
    /// Pairs [student layer, teacher layer] of `with.layers`; the term is the mean over them.
    pub layers: Option<Vec<(usize, usize)>>,
    /// Factor in the objective.
    pub weight: f64,
    /// Normaliser.
    pub reduction: Reduction,
    /// Rows it sees.
    pub rows: RowsChoice,
    /// Loss port -> source, when rebound.
    pub inputs: BTreeMap<String, Bound>,
    /// Place of the entry.
    pub span: Option<Span>,
}

/// `rows` of a term.
#[derive(Clone, Debug, PartialEq)]
pub enum RowsChoice {
    /// Fresh rows and groups marked JOIN (the default).
    FreshAndJoined,
    /// Only the fresh rows.
    Fresh,
    /// Every row of the pass.
    All,
    /// A row group, `scheduler.group` or `group`.
    Group(String),
}

/// One scheduler of a stage.
#[derive(Clone, Debug)]
pub struct SchedulerPlan {
    /// Unique in the stage.
    pub name: String,
    /// Plugin.
    pub plugin: PluginUse,
    /// Stage whose scheduler of the same name hands over its state.
    pub from: Option<FromStage>,
    /// Weights of its terms that the pipeline overrides.
    pub term_weights: BTreeMap<String, f64>,
    /// Input port -> source, when rebound.
    pub inputs: BTreeMap<String, Bound>,
    /// Place.
    pub span: Option<Span>,
}
