//! One training stage: creates its instances, then wires them.
//!
//! Creates everything before it wires anything, so that a wrong setting hides no other. Wires only when every model
//! exists, since a missing one would make each of its readers look wrong.

use super::bind::{Binder, Consumer, Wire};
use super::ends::{Ends, STUDENT, SchedulerEnd, TEACHER};
use super::rows::{self, GroupChoice};
use super::shape::Shapes;
use super::{LoadedScheduler, LoadedSnapshot, LoadedStage, LoadedTerm, Source, TermRows, check};
use crate::data::{Dataset, Datasets};
use crate::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean};
use crate::load::catalogue::{Catalogue, PluginKind};
use crate::load::create::{create, place};
use crate::load::instance::{Port, Schedule};
use crate::load::{Instance, codes};
use crate::plan::{
    Bound, Plan, PluginUse, Reduction, SchedulerPlan, StagePlan, TeacherPlan, TrainPlan,
};
use std::collections::BTreeMap;

pub(super) struct Builder<'a> {
    pub plan: &'a Plan,
    pub catalogue: &'a Catalogue,
    pub data: &'a Datasets,
    pub stage: &'a StagePlan,
    pub train: &'a TrainPlan,
    pub problems: Diagnostics,
}

/// Position in the plan's `loss`, layer pair, instance.
type CreatedTerm = (usize, Option<(usize, usize)>, Instance);

/// Instances of a stage before wiring; `None` where creation failed.
struct Parts {
    student: Option<Instance>,
    teacher: Option<Instance>,
    terms: Vec<CreatedTerm>,
    schedulers: Vec<(usize, Instance, Schedule)>,
    /// Scheduler (position in `schedulers`), its term, instance.
    own_terms: Vec<(usize, usize, Instance)>,
    snapshots: Vec<LoadedSnapshot>,
}

impl<'a> Builder<'a> {
    pub fn build(mut self) -> Result<LoadedStage, Diagnostics> {
        let parts = self.create_parts();
        if self.problems.iter().any(Diagnostic::is_error) {
            return Err(self.problems);
        }
        let Parts { student: Some(student), teacher, terms, schedulers, own_terms, snapshots } =
            parts
        else {
            return Err(self.problems);
        };
        let loaded = self.wire(student, teacher, terms, schedulers, own_terms, snapshots);
        if self.problems.iter().any(Diagnostic::is_error) { Err(self.problems) } else { Ok(loaded) }
    }

    fn within(&self, part: &str) -> String {
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

    /// The stage that wrote the settings of a stage's student: `{from}` takes them over.
    fn student_context(&self, mut stage: usize) -> String {
        let training = |i: usize| self.plan.stages.get(i).and_then(StagePlan::training);
        while let Some(from) = training(stage).and_then(|t| t.student_from.as_ref()) {
            stage = from.stage;
        }
        let name = self.plan.stages.get(stage).map_or("", |s| s.name.as_str());
        format!("stage `{name}`, student")
    }

    fn create_parts(&mut self) -> Parts {
        let train = self.train;
        let own_context = self.student_context(self.stage.index);
        let student = self.create(&train.student, PluginKind::Student, &own_context);
        let teacher = match &train.teacher {
            None | Some(TeacherPlan::SelfOutputs) => None,
            Some(TeacherPlan::Plugin(plugin)) => {
                let context = self.within("teacher");
                self.create(plugin, PluginKind::Teacher, &context)
            }
            Some(TeacherPlan::Stage { from, student }) => {
                let context = self.student_context(from.stage);
                self.create(student, PluginKind::Student, &context)
            }
            Some(TeacherPlan::Ema { .. }) => {
                self.create(&train.student, PluginKind::Student, &own_context)
            }
        };
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
            teacher,
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
            };
            let context = format!("{context}, its term `{}`", term.name);
            if let Some(instance) = self.create(&plugin, PluginKind::Loss, &context) {
                parts.own_terms.push((position, t, instance));
            }
        }
        let student_context = self.student_context(self.stage.index);
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

    /// The first dataset of the stage that could be read: its columns are what a batch holds.
    fn batch(&self) -> Option<(&'a Dataset, Option<Span>)> {
        let data = self.data;
        let read = |t: &crate::plan::TaskPlan| Some((data.get(&t.train)?.as_ref(), t.span.clone()));
        self.train.tasks.iter().find_map(read)
    }

    fn ends(
        &self,
        student: &Instance,
        teacher: Option<&Instance>,
        schedulers: &[(usize, Instance, Schedule)],
    ) -> Ends {
        let outputs = |i: &Instance| i.outputs().cloned().collect::<Vec<Port>>();
        let is_self = matches!(self.train.teacher, Some(TeacherPlan::SelfOutputs));
        let batch = self.batch();
        let teacher_place = match &self.train.teacher {
            Some(TeacherPlan::Plugin(p) | TeacherPlan::Stage { student: p, .. }) => {
                place(&p.id, p.id_span.as_ref())
            }
            _ => place(&self.train.student.id, self.train.student.id_span.as_ref()),
        };
        Ends {
            columns: batch.as_ref().map(|(dataset, _)| dataset.columns()),
            student: outputs(student),
            teacher: if is_self { Some(outputs(student)) } else { teacher.map(outputs) },
            teacher_is_student: is_self,
            schedulers: schedulers
                .iter()
                .filter_map(|(index, instance, schedule)| {
                    let planned = self.train.schedulers.get(*index)?;
                    Some(SchedulerEnd {
                        name: planned.name.clone(),
                        outputs: outputs(instance),
                        snapshots: schedule.snapshots.clone(),
                        place: place(&planned.plugin.id, planned.plugin.id_span.as_ref()),
                    })
                })
                .collect(),
            batch_place: batch.map_or(String::new(), |(dataset, _)| {
                let span = self.plan.datasets.get(dataset.id()).and_then(|d| d.span.as_ref());
                format!("dataset {}", place(dataset.id(), span))
            }),
            student_place: place(&self.train.student.id, self.train.student.id_span.as_ref()),
            teacher_place,
        }
    }

    fn wire(
        &mut self,
        student: Instance,
        teacher: Option<Instance>,
        terms: Vec<CreatedTerm>,
        schedulers: Vec<(usize, Instance, Schedule)>,
        own_terms: Vec<(usize, usize, Instance)>,
        snapshots: Vec<LoadedSnapshot>,
    ) -> LoadedStage {
        let ends = self.ends(&student, teacher.as_ref(), &schedulers);
        let mut shapes = Shapes::default();
        let train = self.train;
        let student_inputs = self.wire_model(
            &ends,
            &mut shapes,
            &student,
            &train.student,
            &train.student_inputs,
            STUDENT,
        );
        let teacher_inputs = match (&teacher, &train.teacher) {
            (Some(teacher), Some(planned)) => {
                let plugin = match planned {
                    TeacherPlan::Plugin(plugin) | TeacherPlan::Stage { student: plugin, .. } => {
                        plugin
                    }
                    _ => &train.student,
                };
                self.wire_model(&ends, &mut shapes, teacher, plugin, &train.teacher_inputs, TEACHER)
            }
            _ => Vec::new(),
        };
        let groups: Vec<(&str, &Schedule)> = schedulers
            .iter()
            .filter_map(|(index, _, schedule)| {
                Some((train.schedulers.get(*index)?.name.as_str(), schedule))
            })
            .collect();
        let mut loaded_terms = Vec::new();
        for (serial, (planned, pair, instance)) in terms.into_iter().enumerate() {
            let scope = ends.free_scope() + serial;
            loaded_terms.extend(self.wire_term(
                &ends,
                &mut shapes,
                &groups,
                planned,
                pair,
                instance,
                scope,
            ));
        }
        for (scheduler, term, instance) in own_terms {
            let scope = ends.free_scope() + loaded_terms.len() + 1_000_000;
            loaded_terms.extend(self.wire_own_term(
                &ends,
                &mut shapes,
                &schedulers,
                scheduler,
                term,
                instance,
                scope,
            ));
        }
        let mut loaded_schedulers = Vec::new();
        for (position, (index, instance, schedule)) in schedulers.into_iter().enumerate() {
            loaded_schedulers.extend(self.wire_scheduler(
                &ends,
                &mut shapes,
                position,
                index,
                instance,
                schedule,
            ));
        }
        let mut loaded = LoadedStage {
            student,
            student_inputs,
            teacher,
            teacher_inputs,
            student_wanted: Vec::new(),
            teacher_wanted: Vec::new(),
            terms: loaded_terms,
            schedulers: loaded_schedulers,
            snapshots,
        };
        check::wanted(&mut loaded, ends.teacher_is_student);
        let mut found = check::cycles(&loaded, ends.teacher_is_student);
        for problem in &mut found {
            problem.span.clone_from(&self.train.student.id_span);
            problem.context.get_or_insert_with(|| format!("stage `{}`", self.stage.name));
        }
        self.problems.append(&mut found);
        self.problems.append(&mut check::claims(self.stage, self.train, &loaded));
        self.problems.append(&mut check::datasets(self.stage, self.train, self.data, &loaded));
        loaded
    }

    fn bind(
        &mut self,
        ends: &Ends,
        shapes: &mut Shapes,
        consumer: &Consumer<'_>,
    ) -> Vec<Option<Wire>> {
        Binder { ends, shapes, problems: &mut self.problems }.bind(consumer)
    }

    fn wire_model(
        &mut self,
        ends: &Ends,
        shapes: &mut Shapes,
        model: &Instance,
        plugin: &PluginUse,
        rebound: &BTreeMap<String, Bound>,
        scope: usize,
    ) -> Vec<Option<Source>> {
        let consumer = Consumer {
            context: self.within(if scope == STUDENT { "student" } else { "teacher" }),
            span: plugin.id_span.clone(),
            plugin: &plugin.id,
            ports: model.inputs().collect(),
            rebound: rebound.clone(),
            layers: None,
            own: None,
            scope,
            has_vocab: false,
        };
        self.bind(ends, shapes, &consumer).into_iter().map(|w| w.map(|w| w.source)).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "one term's whole surroundings")]
    fn wire_term(
        &mut self,
        ends: &Ends,
        shapes: &mut Shapes,
        groups: &[(&str, &Schedule)],
        index: usize,
        layers: Option<(usize, usize)>,
        instance: Instance,
        scope: usize,
    ) -> Option<LoadedTerm> {
        let planned = self.train.loss.get(index)?;
        let context = self.within(&format!("term `{}`", planned.name));
        let consumer = Consumer {
            context: context.clone(),
            span: planned.span.clone(),
            plugin: &planned.plugin.id,
            ports: instance.inputs().collect(),
            rebound: planned.inputs.clone(),
            layers,
            own: None,
            scope,
            has_vocab: self.knows_vocab(&planned.plugin.id),
        };
        let before = self.problems.len();
        let wires = self.bind(ends, shapes, &consumer);
        let mut refuse = |problem: Diagnostic| {
            self.problems.push(problem.at(planned.span.clone()).within(context.clone()));
        };
        let rows = match rows::choose(&planned.rows, groups) {
            GroupChoice::Found(rows) => rows,
            GroupChoice::Refused(problem) => {
                refuse(*problem);
                TermRows::Fresh
            }
        };
        if planned.reduction == Reduction::SeqMean
            && !consumer.ports.iter().any(|p| p.name == "row_weights")
        {
            let text = format!(
                "`reduction: seq_mean` needs port `row_weights`, which `{}` does not have",
                planned.plugin.id
            );
            refuse(Diagnostic::error(codes::NO_SUCH_PORT, text));
        }
        let is_wired = self.problems.len() == before;
        if is_wired && !wires.iter().flatten().any(|w| w.trains) {
            let text = format!("no gradient of term `{}` reaches the student", planned.name);
            let problem = Diagnostic::error(codes::NOT_DIFFERENTIABLE, text).help(
                "bind one of its differentiable inputs to a differentiable output of the student",
            );
            self.problems.push(problem.at(planned.span.clone()).within(context));
        }
        let pairs = planned.layers.as_ref().map_or(1, Vec::len).max(1);
        Some(LoadedTerm {
            name: planned.name.clone(),
            planned: Some(index),
            scheduler: None,
            instance,
            inputs: wires.into_iter().map(|w| w.map(|w| w.source)).collect(),
            weight: planned.weight / pairs as f64,
            rows,
            reduction: planned.reduction,
        })
    }

    fn knows_vocab(&self, id: &str) -> bool {
        let schema = self.catalogue.find(id).map(|info| &info.schema);
        schema.is_some_and(|s| s.pointer("/properties/vocab").is_some())
    }

    #[expect(clippy::too_many_arguments, reason = "as `wire_term`")]
    fn wire_own_term(
        &mut self,
        ends: &Ends,
        shapes: &mut Shapes,
        schedulers: &[(usize, Instance, Schedule)],
        scheduler: usize,
        term: usize,
        instance: Instance,
        scope: usize,
    ) -> Option<LoadedTerm> {
        let (index, _, schedule) = schedulers.get(scheduler)?;
        let planned = self.train.schedulers.get(*index)?;
        let term = schedule.terms.get(term)?;
        let bound = |(port, source): &(String, String)| {
            (port.clone(), Bound { source: source.clone(), span: planned.plugin.id_span.clone() })
        };
        let consumer = Consumer {
            context: self
                .within(&format!("scheduler `{}`, its term `{}`", planned.name, term.name)),
            span: planned.plugin.id_span.clone(),
            plugin: &term.loss,
            ports: instance.inputs().collect(),
            rebound: term.inputs.iter().map(bound).collect(),
            layers: None,
            own: Some(scheduler),
            scope,
            has_vocab: false,
        };
        let wires = self.bind(ends, shapes, &consumer);
        Some(LoadedTerm {
            name: format!("{}.{}", planned.name, term.name),
            planned: None,
            scheduler: Some(scheduler),
            instance,
            inputs: wires.into_iter().map(|w| w.map(|w| w.source)).collect(),
            weight: planned.term_weights.get(&term.name).copied().unwrap_or(term.weight),
            rows: rows::own(scheduler, &term.rows),
            reduction: Reduction::TokenMean,
        })
    }

    fn wire_scheduler(
        &mut self,
        ends: &Ends,
        shapes: &mut Shapes,
        position: usize,
        index: usize,
        instance: Instance,
        schedule: Schedule,
    ) -> Option<LoadedScheduler> {
        let planned = self.train.schedulers.get(index)?;
        let ports: Vec<&Port> = instance.inputs().filter(|p| p.name != "batch.*").collect();
        let consumer = Consumer {
            context: self.within(&format!("scheduler `{}`", planned.name)),
            span: planned.span.clone(),
            plugin: &planned.plugin.id,
            ports,
            rebound: planned.inputs.clone(),
            layers: None,
            own: Some(position),
            scope: ends.scheduler_scope(position),
            has_vocab: false,
        };
        let wires = self.bind(ends, shapes, &consumer);
        let mut wires =
            consumer.ports.iter().zip(wires).map(|(p, w)| (p.name.clone(), w.map(|w| w.source)));
        let named: Vec<String> = consumer.ports.iter().map(|p| p.name.clone()).collect();
        let mut inputs = Vec::new();
        for port in instance.inputs() {
            if port.name != "batch.*" {
                inputs.extend(wires.next());
                continue;
            }
            let columns = ends
                .columns
                .iter()
                .flatten()
                .map(|c| c.name.clone())
                .filter(|c| !named.contains(c));
            inputs.extend(columns.map(|c| (c.clone(), Some(Source::Batch(c)))));
        }
        Some(LoadedScheduler { name: planned.name.clone(), instance, schedule, inputs })
    }
}
