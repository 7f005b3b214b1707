//! The connections of one training stage: batch, student, teacher, terms, schedulers.
//!
//! All of a stage's ports share one table of symbolic shapes, so that every size is said once.

use super::bind::{Binder, Consumer, Wire};
use super::ends::{Ends, STUDENT, SchedulerEnd};
use super::rows::{self, GroupChoice};
use super::shape::Shapes;
use super::stage::{Builder, CreatedTerm};
use super::{
    LoadedScheduler, LoadedSnapshot, LoadedStage, LoadedTeacher, LoadedTerm, ROW_CLASSES, Source,
    TermRows, cached, check, ensemble, fork, scenario, tokens,
};
use crate::data::{ColumnSpec, Dataset};
use crate::diagnostic::{Diagnostic, Span};
use crate::load::create::place;
use crate::load::instance::{Port, Schedule};
use crate::load::{Instance, codes};
use crate::plan::{Bound, PluginUse, Reduction, TeacherPlan, TrainClasses};
use crate::tensor::DType;
use std::collections::BTreeMap;

impl<'a> Builder<'a> {
    /// The first dataset of the stage that could be read: its columns are what a batch holds.
    fn batch(&self) -> Option<(&'a Dataset, Option<Span>)> {
        let data = self.data;
        let read = |t: &crate::plan::TaskPlan| Some((data.get(&t.train)?.as_ref(), t.span.clone()));
        self.train.tasks.iter().find_map(read)
    }

    /// Columns of a batch: those of the dataset, and `row_classes` where softmaxes are narrowed.
    fn columns(&self, dataset: &Dataset, student: &Instance) -> Vec<ColumnSpec> {
        let mut columns = dataset.columns();
        let narrows = self.train.is_stream && self.plan.train_classes() != TrainClasses::All;
        if let (true, Some(width)) = (narrows, scenario::width(student)) {
            let (name, dtype) = (ROW_CLASSES.to_owned(), DType::U8);
            columns.push(ColumnSpec { name, dtype, row_shape: vec![width], tokenizer: None });
        }
        columns
    }

    fn ends(
        &self,
        student: &Instance,
        teachers: &[LoadedTeacher],
        mean: Option<&Port>,
        schedulers: &[(usize, Instance, Schedule)],
    ) -> Ends {
        let outputs = |i: &Instance| i.outputs().cloned().collect::<Vec<Port>>();
        let is_self = matches!(self.train.teacher, Some(TeacherPlan::SelfOutputs));
        let batch = self.batch();
        let teacher_place = match &self.train.teacher {
            Some(TeacherPlan::Plugin(p) | TeacherPlan::Stage { student: p, .. }) => {
                place(&p.id, p.id_span.as_ref())
            }
            Some(TeacherPlan::Cache(cache)) => place("cache", cache.span.as_ref()),
            Some(TeacherPlan::Ensemble { span, .. }) => place("ensemble", span.as_ref()),
            _ => place(&self.train.student.id, self.train.student.id_span.as_ref()),
        };
        Ends {
            columns: batch.as_ref().map(|(dataset, _)| self.columns(dataset, student)),
            student: outputs(student),
            teacher: if is_self {
                Some(outputs(student))
            } else {
                (!teachers.is_empty()).then(|| taught(teachers, mean))
            },
            members: mean.map_or(Vec::new(), |_| teachers.iter().map(|t| t.name.clone()).collect()),
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

    /// Binds every port; problems are left in the builder.
    pub fn wire(
        &mut self,
        student: Instance,
        mut teachers: Vec<LoadedTeacher>,
        terms: Vec<CreatedTerm>,
        schedulers: Vec<(usize, Instance, Schedule)>,
        own_terms: Vec<(usize, usize, Instance)>,
        snapshots: Vec<LoadedSnapshot>,
    ) -> LoadedStage {
        let ensemble = self.mean(&teachers);
        let ends = self.ends(&student, &teachers, ensemble.as_ref(), &schedulers);
        let mut shapes = Shapes::default();
        let train = self.train;
        let student_inputs = self.wire_model(
            &ends,
            &mut shapes,
            &student,
            &train.student,
            &train.student_inputs,
            ("student", STUDENT),
        );
        for (m, (teacher, planned)) in teachers.iter_mut().zip(train.teaching()).enumerate() {
            let Some(model) = teacher.instance() else { continue };
            let plugin = planned.plan.plugins().first().copied().unwrap_or(&train.student);
            let part = planned.part();
            let part = (part.as_str(), ends.teacher_scope(m));
            teacher.inputs =
                self.wire_model(&ends, &mut shapes, model, plugin, planned.inputs, part);
        }
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
            teachers,
            ensemble,
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
        for teacher in &loaded.teachers {
            let settings = |term: usize| {
                self.train.loss.get(term).map_or(serde_json::Value::Null, |t| {
                    let filled = self.catalogue.check_settings(&t.plugin.id, &t.plugin.with);
                    filled.unwrap_or_else(|_| t.plugin.with.clone())
                })
            };
            let mut found = cached::temperatures(self.train, teacher, &loaded.terms, settings);
            self.problems.append(&mut found);
        }
        self.problems.append(&mut fork::tokenizers(self.train, self.data, &loaded));
        if let Some(problem) = check::agreement(self.train, &loaded) {
            let place = self.stage.span.clone();
            self.problems.push(problem.at(place).within(self.within("evaluation")));
        }
        self.problems.append(&mut check::claims(self.stage, self.train, &loaded));
        self.problems.append(&mut check::datasets(self.stage, self.train, self.data, &loaded));
        self.problems.append(&mut scenario::check(
            self.plan,
            self.catalogue,
            self.data,
            self.stage,
            self.train,
            &loaded,
        ));
        loaded
    }

    /// `logits` of the stage's ensemble, if its teacher is one.
    fn mean(&mut self, teachers: &[LoadedTeacher]) -> Option<Port> {
        let Some(TeacherPlan::Ensemble { members, .. }) = &self.train.teacher else { return None };
        let spans: Vec<Option<Span>> = members.iter().map(|m| m.span.clone()).collect();
        let context = self.within("teacher");
        let within = |problem: Diagnostic| problem.within(context.clone());
        ensemble::mean(teachers, &spans)
            .map_err(|found| self.problems.extend(found.into_iter().map(within)))
            .ok()
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
        (part, scope): (&str, usize),
    ) -> Vec<Option<Source>> {
        let consumer = Consumer {
            context: self.within(part),
            span: plugin.id_span.clone(),
            plugin: &plugin.id,
            ports: model.inputs().collect(),
            rebound: rebound.clone(),
            layers: None,
            own: None,
            scope,
            has_vocab: false,
        };
        let wires = self.bind(ends, shapes, &consumer);
        let inputs: Vec<_> = wires.into_iter().map(|w| w.map(|w| w.source)).collect();
        if let Some((data, _)) = self.batch() {
            let found = tokens::check(model, &inputs, data);
            self.problems.extend(
                found
                    .into_iter()
                    .map(|d| d.at(plugin.id_span.clone()).within(consumer.context.clone())),
            );
        }
        inputs
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
        let is_wired = !self.problems[before..].iter().any(Diagnostic::is_error);
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
                .filter(|c| !named.contains(c) && c != ROW_CLASSES);
            inputs.extend(columns.map(|c| (c.clone(), Some(Source::Batch(c)))));
        }
        Some(LoadedScheduler { name: planned.name.clone(), instance, schedule, inputs })
    }
}

/// Outputs of the teacher; of an ensemble its mean, then each member's under `MEMBER.OUTPUT`.
fn taught(teachers: &[LoadedTeacher], mean: Option<&Port>) -> Vec<Port> {
    let Some(mean) = mean else {
        return teachers.iter().flat_map(|t| t.outputs()).cloned().collect();
    };
    let of_member = |teacher: &LoadedTeacher| -> Vec<Port> {
        let outputs = teacher.outputs().into_iter();
        outputs
            .map(|p| Port { name: format!("{}.{}", teacher.name, p.name), ..p.clone() })
            .collect()
    };
    std::iter::once(mean.clone()).chain(teachers.iter().flat_map(of_member)).collect()
}
