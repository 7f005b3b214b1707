//! Teacher caches: the stage that writes one, and the teacher that is read from one.

use super::{Bound, PluginUse, TeacherPlan};
use crate::diagnostic::Span;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `teacher.cache`.
#[derive(Clone, Debug, PartialEq)]
pub struct CachePlan {
    /// Where it lies.
    pub at: CacheAt,
    /// Place.
    pub span: Option<Span>,
}

/// Where a teacher cache lies.
#[derive(Clone, Debug, PartialEq)]
pub enum CacheAt {
    /// An earlier `capture` stage of this pipeline.
    Stage(usize),
    /// A directory that a `capture` stage wrote.
    Dir(PathBuf),
}

/// A `capture` stage: a teacher's outputs on some rows, written once.
#[derive(Clone, Debug)]
pub struct CapturePlan {
    /// A plugin, or the student of an earlier stage.
    pub teacher: TeacherPlan,
    /// Teacher input port -> source, when rebound.
    pub inputs: BTreeMap<String, Bound>,
    /// Dataset ids.
    pub data: Vec<String>,
    /// Output ports, kept whole.
    pub outputs: Vec<String>,
    /// The largest logits beside or instead of all.
    pub topk: Option<TopK>,
    /// Rows per call.
    pub batch_size: usize,
    /// Directory; default in the run directory.
    pub to: Option<PathBuf>,
}

impl CapturePlan {
    /// The plugin of its teacher.
    pub fn plugin(&self) -> Option<&PluginUse> {
        self.teacher.plugins().into_iter().next()
    }
}

/// `topk` of a `capture` stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopK {
    /// Entries kept of each row.
    pub k: usize,
    /// Temperature of the log-probabilities that are kept.
    pub temperature: f64,
}
