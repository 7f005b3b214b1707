//! One training stage: creates its instances, then has them wired.
//!
//! Creates everything before it wires anything, so that a wrong setting hides no other. Wires only when every model
//! exists, since a missing one would make each of its readers look wrong.

use super::{
    LoadedCapture, LoadedSnapshot, LoadedStage, LoadedTeacher, TeacherModel, cached, fork,
};
use crate::data::Datasets;
use crate::diagnostic::{Diagnostic, Diagnostics, did_you_mean};
use crate::load::catalogue::{Catalogue, PluginInfo, PluginKind};
use crate::load::create::create;
use crate::load::instance::Schedule;
use crate::load::{Instance, codes};
use crate::plan::{Plan, PluginUse, SchedulerPlan, StagePlan, TeacherPlan, Teaching, TrainPlan};
use crate::tensor::DType;
use std::collections::BTreeMap;

pub(super) struct Builder<'a> {
    pub plan: &'a Plan,
    pub catalogue: &'a Catalogue,
    pub data: &'a Datasets,
    pub stage: &'a StagePlan,
    pub train: &'a TrainPlan,
    pub captures: &'a [Option<LoadedCapture>],
    pub problems: Diagnostics,
}

/// Position in the plan's `loss`, layer pair, instance.
pub(super) type CreatedTerm = (usize, Option<(usize, usize)>, Instance);

/// Instances of a stage before wiring; `None` where creation failed.
struct Parts {
    student: Option<Instance>,
    /// Not wired yet.
    teachers: Vec<LoadedTeacher>,
    terms: Vec<CreatedTerm>,
    schedulers: Vec<(usize, Instance, Schedule)>,
    /// Scheduler (position in `schedulers`), its term, instance.
    own_terms: Vec<(usize, usize, Instance)>,
    snapshots: Vec<LoadedSnapshot>,
}

impl<'a> Builder<'a> {
    /// The stage and its warnings.
    ///
    /// # Errors
    /// Every problem, warnings among them.
    pub fn build(mut self) -> Result<(LoadedStage, Diagnostics), Diagnostics> {
        let parts = self.create_parts();
        self.problems.append(&mut fork::check(self.plan, self.catalogue, self.stage, self.train));
        if self.problems.iter().any(Diagnostic::is_error) {
            return Err(self.problems);
        }
        let Parts { student: Some(student), teachers, terms, schedulers, own_terms, snapshots } =
            parts
        else {
            return Err(self.problems);
        };
        if teachers.len() != self.train.teaching().len() {
            // A cache of a `capture` stage whose own problems were told.
            return Err(self.problems);
        }
        let loaded = self.wire(student, teachers, terms, schedulers, own_terms, snapshots);
        let broken = self.problems.iter().any(Diagnostic::is_error);
        if broken { Err(self.problems) } else { Ok((loaded, self.problems)) }
    }

    /// A model that teaches, not wired yet.
    fn create_teacher(&mut self, teaching: Teaching<'a>) -> Option<LoadedTeacher> {
        let part = teaching.part();
        let model = match teaching.plan {
            TeacherPlan::Plugin(plugin) => {
                let context = self.within(&part);
                TeacherModel::Instance(self.create(plugin, PluginKind::Teacher, &context)?)
            }
            TeacherPlan::Stage { from, student } => {
                let context = self.student_context(from.plan(self.plan), from.stage);
                let mut model = self.create(student, PluginKind::Student, &context)?;
                self.set_dtype(&mut model, student, &context);
                TeacherModel::Instance(model)
            }
            TeacherPlan::Ema { .. } => {
                let context = self.student_context(self.plan, self.stage.index);
                let student = &self.train.student;
                TeacherModel::Instance(self.create(student, PluginKind::Student, &context)?)
            }
            TeacherPlan::Cache(plan) => {
                if let Some(bound) = teaching.inputs.values().next() {
                    let problem = Diagnostic::error(codes::NO_SUCH_PORT, "a cache reads no inputs")
                        .help("bind the inputs of the `capture` stage's teacher");
                    self.problems.push(problem.at(bound.span.clone()).within(self.within(&part)));
                }
                let (stage, train) = (self.stage, self.train);
                let opened = cached::open(stage, train, plan, self.captures, self.data, &part);
                TeacherModel::Cache(
                    opened.map_err(|mut found| self.problems.append(&mut found)).ok()?,
                )
            }
            TeacherPlan::SelfOutputs | TeacherPlan::Ensemble { .. } => return None,
        };
        Some(LoadedTeacher { name: teaching.name.to_owned(), model, inputs: Vec::new() })
    }

    pub fn within(&self, part: &str) -> String {
        format!("stage `{}`, {part}", self.stage.name)
    }

    fn create(&mut self, plugin: &PluginUse, kind: PluginKind, context: &str) -> Option<Instance> {
        match create(self.plan, self.catalogue, plugin, kind, context) {
            Ok(instance) => Some(instance),
            Err(mut problems) => {
                self.problems.append(&mut problems);
                None
            }
        }
    }

    /// Asks a model of the stage for parameters of the stage's type. Copies that move with the student stay f32: a small
    /// part of a difference would be lost in bf16.
    fn set_dtype(&mut self, model: &mut Instance, plugin: &PluginUse, context: &str) {
        let dtype = self.train.dtype;
        let offers = |info: &PluginInfo| info.features.iter().any(|f| f == dtype.name());
        if dtype == DType::F32 || self.catalogue.find(&plugin.id).is_some_and(offers) {
            model.set_param_dtype(dtype);
            return;
        }
        let message =
            format!("`{}` is f32, it does not offer `dtype: {}`", plugin.id, dtype.name());
        let warning = Diagnostic::warning(codes::SINGLE, message);
        let warning = warning.help("write `dtype: f32` to say what runs");
        self.problems.push(warning.at(plugin.id_span.clone()).within(context));
    }

    /// The stage that wrote the settings of a stage's student: `{from}` takes them over.
    fn student_context(&self, mut plan: &'a Plan, mut stage: usize) -> String {
        let training = |plan: &'a Plan, i: usize| plan.stages.get(i).and_then(StagePlan::training);
        while let Some(from) = training(plan, stage).and_then(|t| t.student_from.as_ref()) {
            (plan, stage) = (from.plan(plan), from.stage);
        }
        let name = plan.stages.get(stage).map_or("", |s| s.name.as_str());
        let whose = if std::ptr::eq(plan, self.plan) { "" } else { " of another run" };
        format!("stage `{name}`{whose}, student")
    }

    fn create_parts(&mut self) -> Parts {
        let train = self.train;
        let own_context = self.student_context(self.plan, self.stage.index);
        let mut student = self.create(&train.student, PluginKind::Student, &own_context);
        if let Some(student) = &mut student {
            self.set_dtype(student, &train.student, &own_context);
        }
        let teachers =
            train.teaching().into_iter().filter_map(|t| self.create_teacher(t)).collect();
        let mut terms = Vec::new();
        for (i, term) in train.loss.iter().enumerate() {
            let context = self.within(&format!("term `{}`", term.name));
            let pairs: Vec<Option<(usize, usize)>> = match &term.layers {
                Some(pairs) => pairs.iter().copied().map(Some).collect(),
                None => vec![None],
            };
            for pair in pairs {
                let Some(instance) = self.create(&term.plugin, PluginKind::Loss, &context) else {
                    break;
                };
                terms.push((i, pair, instance));
            }
        }
        let mut parts = Parts {
            student,
            teachers,
            terms,
            schedulers: Vec::new(),
            own_terms: Vec::new(),
            snapshots: Vec::new(),
        };
        for i in 0..train.schedulers.len() {
            self.create_scheduler(i, &mut parts);
        }
        parts
    }

    fn create_scheduler(&mut self, index: usize, parts: &mut Parts) {
        let Some(planned) = self.train.schedulers.get(index) else { return };
        let context = self.within(&format!("scheduler `{}`", planned.name));
        let Some(mut instance) = self.create(&planned.plugin, PluginKind::Scheduler, &context)
        else {
            return;
        };
        let schedule = match instance.schedule() {
            Ok(schedule) => schedule,
            Err(error) => {
                let span = planned.plugin.id_span.clone();
                self.problems.push(error.diagnostic().at(span).within(context));
                return;
            }
        };
        self.check_term_weights(planned, &schedule, &context);
        let position = parts.schedulers.len();
        for (t, term) in schedule.terms.iter().enumerate() {
            let plugin = PluginUse {
                id: term.loss.clone(),
                id_span: planned.plugin.id_span.clone(),
                with: term.config.clone(),
                with_span: planned.plugin.id_span.clone(),
                spans: BTreeMap::new(),
                base: None,
            };
            let context = format!("{context}, its term `{}`", term.name);
            if let Some(instance) = self.create(&plugin, PluginKind::Loss, &context) {
                parts.own_terms.push((position, t, instance));
            }
        }
        let student_context = self.student_context(self.plan, self.stage.index);
        for name in &schedule.snapshots {
            let student = self.create(&self.train.student, PluginKind::Student, &student_context);
            let snapshot = |instance| LoadedSnapshot {
                scheduler: position,
                name: name.clone(),
                instance,
                wanted: Vec::new(),
            };
            parts.snapshots.extend(student.map(snapshot));
        }
        parts.schedulers.push((index, instance, schedule));
    }

    fn check_term_weights(&mut self, planned: &SchedulerPlan, schedule: &Schedule, context: &str) {
        for name in planned.term_weights.keys() {
            let known = schedule.terms.iter().map(|t| t.name.as_str());
            if known.clone().any(|n| n == name) {
                continue;
            }
            let message = format!("scheduler `{}` adds no term `{name}`", planned.name);
            let help = match did_you_mean(name, known.clone()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => match known.map(|n| format!("`{n}`")).collect::<Vec<_>>() {
                    none if none.is_empty() => "it adds no terms".to_owned(),
                    names => format!("it adds {}", names.join(", ")),
                },
            };
            let problem = Diagnostic::error(codes::UNDECLARED, message).help(help);
            self.problems.push(problem.at(planned.span.clone()).within(context));
        }
    }
}
