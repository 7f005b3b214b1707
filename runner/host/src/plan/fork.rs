//! `{from: STAGE, run: DIRECTORY}`: a stage of another run.
//!
//! Plans that run's own copy of its pipeline, so that plugin and settings of its stages are those that it trained with.
//! Refuses a directory that is no run, a pipeline that no longer plans and a stage that is not done. Reads, never writes.

use super::stages::Around;
use super::top::help_among;
use super::values::resolve_path;
use super::{OtherRun, StagePlan};
use crate::diagnostic::{Diagnostic, Span};
use crate::document::{self, Fields};
use crate::run::rundir::{self, Status};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs that go on from runs, at most: a run directory that names itself must end somewhere.
const MAX_DEPTH: usize = 16;

/// Runs that a pipeline names, each opened once; `None`: refused, which was told.
#[derive(Default)]
pub struct Runs {
    depth: usize,
    opened: RefCell<BTreeMap<PathBuf, Option<Arc<OtherRun>>>>,
}

impl Runs {
    /// For a pipeline that is planned for the sake of another one.
    pub fn at(depth: usize) -> Self {
        Self { depth, ..Self::default() }
    }

    /// The run that `run` names; reports what is wrong with it.
    fn open(&self, around: &Around, written: &str, span: &Span) -> Option<Arc<OtherRun>> {
        let dir = resolve_path(around.base, written);
        if let Some(known) = self.opened.borrow().get(&dir) {
            return known.clone();
        }
        let opened = match read(&dir, written, self.depth) {
            Ok(run) => Some(Arc::new(run)),
            Err(problem) => {
                around.sink.report(problem.at(span.clone()));
                None
            }
        };
        self.opened.borrow_mut().insert(dir, opened.clone());
        opened
    }
}

fn read(dir: &Path, written: &str, depth: usize) -> Result<OtherRun, Diagnostic> {
    let run = rundir::describe(dir).map_err(|_| {
        Diagnostic::error("LMB0706", format!("`{written}` is no run directory"))
            .help("name the directory of a run; its path starts at the pipeline's own folder")
    })?;
    let unfit = |why: String| {
        Diagnostic::error("LMB0213", format!("cannot go on from run `{written}`: {why}"))
    };
    if depth >= MAX_DEPTH {
        return Err(unfit(format!("more than {MAX_DEPTH} runs that go on from each other")));
    }
    let document = document::load_in(&run.pipeline, run.base_dir.as_path(), &run.sets);
    let plan = document.and_then(|document| super::plan_at(&document, depth + 1));
    let plan = plan.map_err(|problems| {
        let first = problems.into_iter().find(Diagnostic::is_error);
        let (code, message) = first.map_or(("", String::new()), |d| (d.code, d.message));
        unfit("its pipeline is not valid here".into())
            .note(format!("{code}: {message}"))
            .help(format!("`limbeck validate` says more of {}", run.pipeline.display()))
    })?;
    let versions = run.record.plugins.into_iter().map(|(id, p)| (id, p.version)).collect();
    Ok(OtherRun { written: written.to_owned(), dir: dir.to_owned(), plan, versions })
}

impl Around<'_> {
    /// The stage that `from` and `run` name: of this pipeline an earlier one, of another run one that is done.
    pub fn origin(&self, part: &Fields) -> Option<(usize, Option<Arc<OtherRun>>)> {
        let (name, field) = (part.text("from")?, part.field("from")?);
        let Some(run) = part.field("run") else {
            let stage = self.earlier(&name, &field.node.span)?;
            return (!self.is_broken(stage)).then_some((stage, None));
        };
        let run = self.runs.open(self, &part.text("run")?, &run.node.span)?;
        let stage = self.stage_of(&run, &name, &field.node.span)?;
        Some((stage, Some(run)))
    }

    fn stage_of(&self, run: &OtherRun, name: &str, span: &Span) -> Option<usize> {
        let stages = &run.plan.stages;
        let Some(stage) = stages.iter().find(|s| s.name == name) else {
            let names: Vec<&str> = stages.iter().map(|s| s.name.as_str()).collect();
            let message = format!("run `{}` has no stage `{name}`", run.written);
            let problem = Diagnostic::error("LMB0201", message).at(span.clone());
            self.sink.report(help_among(problem, name, &names, "it has no stages"));
            return None;
        };
        if !is_done(&run.dir, stage) {
            let message = format!("stage `{name}` of run `{}` is not done", run.written);
            self.sink.report(
                Diagnostic::error("LMB0710", message)
                    .at(span.clone())
                    .help(format!("`limbeck resume {}` finishes it", run.dir.display())),
            );
            return None;
        }
        Some(stage.index)
    }
}

fn is_done(run: &Path, stage: &StagePlan) -> bool {
    let record = rundir::read_stage(&rundir::stage_dir(run, stage));
    record.is_some_and(|record| record.status == Status::Done)
}
