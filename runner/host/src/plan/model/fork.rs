//! Another run that stages go on from.

use super::{FromStage, Plan, PluginUse};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Another run, as its directory describes it.
#[derive(Clone, Debug)]
pub struct OtherRun {
    /// As the pipeline writes it.
    pub written: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its own pipeline, planned.
    pub plan: Plan,
    /// Versions of the plugins that it ran with, by id.
    pub versions: BTreeMap<String, String>,
}

impl PartialEq for OtherRun {
    /// Whether it is the same directory.
    fn eq(&self, other: &Self) -> bool {
        self.dir == other.dir
    }
}

impl FromStage {
    /// The plan that the stage is of, where `own` is the one that names it.
    pub fn plan<'p>(&'p self, own: &'p Plan) -> &'p Plan {
        self.run.as_ref().map_or(own, |run| &run.plan)
    }

    /// The directory of its run, where `own` is that of the run that names it.
    pub fn dir<'p>(&'p self, own: &'p Path) -> &'p Path {
        self.run.as_ref().map_or(own, |run| &run.dir)
    }

    /// A plugin and settings taken over from the stage: their relative inputs still start at its own pipeline.
    pub fn taken(&self, plugin: &PluginUse) -> PluginUse {
        let mut taken = plugin.clone();
        if let (Some(run), None) = (&self.run, &taken.base) {
            taken.base = Some(run.plan.base_dir.clone());
        }
        taken
    }
}

impl PluginUse {
    /// Directory that relative inputs of its settings start from.
    pub fn base<'p>(&'p self, plan: &'p Plan) -> &'p Path {
        self.base.as_deref().unwrap_or(&plan.base_dir)
    }
}
