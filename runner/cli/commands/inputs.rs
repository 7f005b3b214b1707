//! From a pipeline file, or a run directory, to what the later phases need.
//!
//! Every phase reports all its problems, and phases that do not need each other all report theirs.

use super::{Shell, Stop};
use crate::args::StageArgs;
use limbeck_host::data::{Datasets, Tokenize};
use limbeck_host::diagnostic::{Diagnostic, Diagnostics, did_you_mean};
use limbeck_host::document;
use limbeck_host::load::staging::cache_root;
use limbeck_host::load::{Catalogue, Loaded, SearchPath, load};
use limbeck_host::plan::{Plan, plan};
use limbeck_host::run::rundir::{self, Described};
use std::path::Path;

/// Whether rows of text are going to be used.
#[derive(Clone, Copy, PartialEq)]
pub enum Texts {
    /// Tokens are needed.
    Read,
    /// Columns are enough.
    LeftAlone,
}

/// A plan with everything it names opened.
pub struct Inputs {
    /// The plan.
    pub plan: Plan,
    /// Its rows.
    pub datasets: Datasets,
    /// Plugins that exist.
    pub catalogue: Catalogue,
    /// Its instances, wired.
    pub loaded: Loaded,
}

/// Document and plan of a pipeline file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn plan_file(file: &Path, sets: &[String]) -> Result<Plan, Diagnostics> {
    plan(&document::load(file, sets)?)
}

/// Where to look for plugins.
pub fn search_path(plan: Option<&Plan>, shell: &Shell) -> SearchPath {
    let mut search = SearchPath::standard(&shell.global.plugin_dir);
    search.allow_unlocked = shell.global.allow_unlocked;
    match plan {
        Some(plan) => search.for_pipeline(plan),
        None => search,
    }
}

/// Opens data and plugins of a plan and wires them; tells warnings.
///
/// # Errors
/// Problems of data, plugins and wiring, all of them.
pub fn open(plan: Plan, shell: &Shell, texts: Texts) -> Result<Inputs, Stop> {
    shell.renderer.problems(&plan.warnings);
    let kept = cache_root().join("tokens");
    let tokenize = match texts {
        Texts::Read => Tokenize::Cached(&kept),
        Texts::LeftAlone => Tokenize::Never,
    };
    let (datasets, mut problems) = Datasets::open(&plan, tokenize);
    let found = Catalogue::discover(&search_path(Some(&plan), shell));
    let catalogue = match found {
        Ok((catalogue, warnings)) => {
            problems.extend(warnings);
            catalogue
        }
        Err(more) => {
            problems.extend(more);
            return Err(problems.into());
        }
    };
    let loaded = match load(&plan, &catalogue, &datasets) {
        Ok(loaded) => loaded,
        Err(more) => {
            problems.extend(more);
            return Err(problems.into());
        }
    };
    if problems.iter().any(Diagnostic::is_error) {
        return Err(problems.into());
    }
    shell.renderer.problems(&problems);
    shell.renderer.problems(&loaded.warnings);
    Ok(Inputs { plan, datasets, catalogue, loaded })
}

/// A run directory and the plan of its stored pipeline.
///
/// # Errors
/// No such run; its pipeline no longer reads.
pub fn of_run(reference: &str, shell: &Shell) -> Result<(Described, Plan), Stop> {
    let dir = rundir::find(&shell.global.runs, reference)?;
    let run = rundir::describe(&dir)?;
    let document = document::load_in(&run.pipeline, run.base_dir.as_path(), &run.sets)?;
    Ok((run, plan(&document)?))
}

/// Index of the stage that `--stage` names, else of the last one that trains.
///
/// # Errors
/// No such stage, or it trains nothing.
pub fn stage(plan: &Plan, args: &StageArgs) -> Result<usize, Stop> {
    let trains = || plan.stages.iter().filter(|s| s.training().is_some());
    let names = || trains().map(|s| s.name.as_str());
    let found = match &args.stage {
        Some(name) => trains().find(|s| s.name == *name),
        None => trains().next_back(),
    };
    found.map(|s| s.index).ok_or_else(|| {
        let name = args.stage.as_deref().unwrap_or("(any)");
        let problem =
            Diagnostic::error("LMB1001", format!("no stage `{name}` that trains a student"));
        match did_you_mean(name, names()) {
            Some(close) => problem.help(format!("did you mean `{close}`?")),
            None => problem
                .help(format!("stages that train: {}", names().collect::<Vec<_>>().join(", "))),
        }
        .into()
    })
}
