//! Wired sources, resolved to places in the arrays of a step, once per stage.
//!
//! After this no name is looked up in a step but those of batch columns. Refuses sources that the wiring should have
//! refused; such an error is a bug.

use super::classes::RowClasses;
use super::error::{RunResult, bug};
use crate::load::Instance;
use crate::load::instance::Port;
use crate::load::wiring::{LoadedStage, ROW_CLASSES, Source, TermRows};
use crate::plan::Reduction;
use crate::tensor::Tensor;

/// Where an input comes from, by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// A batch column.
    Batch(String),
    /// The classes of each row's softmax, made from its label.
    RowClasses,
    /// Position in [`Bindings::student_outputs`].
    Student(usize),
    /// Position in the student's parameters.
    Param(usize),
    /// Position in [`Bindings::teacher_outputs`].
    Teacher(usize),
    /// Snapshot and position in its wanted outputs.
    Snapshot(usize, usize),
    /// Scheduler and its output port.
    Scheduler(usize, String),
}

/// An input port and what feeds it.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub name: String,
    pub feed: Option<Feed>,
    /// Axes of the port's shape; `None`: anything.
    pub axes: Option<usize>,
    /// The first axis counts rows (`B` or `N`).
    pub row_axis: bool,
    /// The first axis is `N`: leading axes of the source are flattened into it.
    pub flatten: bool,
    pub optional: bool,
    pub differentiable: bool,
}

/// A loss term, ready to be computed.
pub(crate) struct Term {
    /// Metric name.
    pub name: String,
    /// Position in the pipeline's `loss`.
    pub planned: Option<usize>,
    /// Scheduler that declared it.
    pub scheduler: Option<usize>,
    pub rows: TermRows,
    pub reduction: Reduction,
    /// Current weight.
    pub weight: f64,
    /// Share of this entry in its name's value and weight: 1/k for one of k layer pairs.
    pub share: f64,
    pub inputs: Vec<Input>,
    /// Positions of the ports that decide what is counted.
    pub labels: Option<usize>,
    pub mask: Option<usize>,
    pub row_weights: Option<usize>,
    /// Trainable tensors that the host owns for it.
    pub params: Vec<OwnedParam>,
}

/// A loss parameter.
pub(crate) struct OwnedParam {
    /// `loss/<term>/<name>`.
    pub name: String,
    pub value: Tensor,
    pub trainable: bool,
    pub decay: bool,
}

/// Everything of a stage, resolved.
pub(crate) struct Bindings {
    pub student_inputs: Vec<Input>,
    /// Of each teacher; a cache has none.
    pub teacher_inputs: Vec<Vec<Input>>,
    /// Outputs of the student that somebody may want; `logits` is among them if the student has it.
    pub student_outputs: Vec<String>,
    /// Whether the first axis of each counts rows.
    pub student_rows: Vec<bool>,
    /// Axes that each declares.
    pub student_axes: Vec<usize>,
    pub teacher_outputs: Vec<String>,
    pub teacher_rows: Vec<bool>,
    /// Those of them that a step needs.
    pub student_wanted: Vec<usize>,
    pub teacher_wanted: Vec<usize>,
    pub terms: Vec<Term>,
    /// Inputs of each scheduler.
    pub schedulers: Vec<Vec<Input>>,
    /// Whether the teacher reads student outputs.
    pub teacher_reads_student: bool,
    /// What makes the column `row_classes`, in streams that narrow softmaxes.
    pub row_classes: Option<RowClasses>,
}

fn axes(shape: &str) -> Option<usize> {
    let shape = shape.trim();
    (!shape.is_empty() && shape != "*").then(|| shape.split(',').count())
}

fn first_axis(shape: &str) -> &str {
    shape.split(',').next().unwrap_or_default().trim()
}

fn has_row_axis(shape: &str) -> bool {
    matches!(first_axis(shape), "B" | "N")
}

fn output<'p>(instance: &'p Instance, name: &str) -> Option<&'p Port> {
    instance.ports().iter().find(|p| p.is_output() && p.name == name)
}

/// Positions of names, growing the list.
struct Names(Vec<String>);

impl Names {
    fn place(&mut self, name: &str) -> usize {
        self.0.iter().position(|n| n == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }
}

struct Resolver<'a> {
    student: Names,
    teacher: Names,
    param_names: &'a [String],
    snapshots: Vec<Vec<String>>,
    /// `teacher.X` means this step's student outputs.
    teacher_is_student: bool,
}

impl Resolver<'_> {
    fn feed(&mut self, source: &Source) -> RunResult<Feed> {
        Ok(match source {
            Source::Batch(column) if column == ROW_CLASSES => Feed::RowClasses,
            Source::Batch(column) => Feed::Batch(column.clone()),
            Source::Student(name) => Feed::Student(self.student.place(name)),
            Source::Teacher(name) if self.teacher_is_student => {
                Feed::Student(self.student.place(name))
            }
            Source::Teacher(name) => Feed::Teacher(self.teacher.place(name)),
            Source::StudentParam(name) => {
                let place = self.param_names.iter().position(|n| n == name);
                Feed::Param(place.ok_or_else(|| bug(format!("no parameter `{name}`")))?)
            }
            Source::Snapshot { snapshot, output } => {
                let wanted = self.snapshots.get(*snapshot);
                let place = wanted.and_then(|w| w.iter().position(|n| n == output));
                let place = place.ok_or_else(|| bug(format!("no snapshot output `{output}`")))?;
                Feed::Snapshot(*snapshot, place)
            }
            Source::Scheduler { scheduler, port } => Feed::Scheduler(*scheduler, port.clone()),
        })
    }

    fn input(&mut self, port: &Port, source: Option<&Source>) -> RunResult<Input> {
        // A teacher that is the student itself hands its outputs on without gradient.
        let detached = self.teacher_is_student && matches!(source, Some(Source::Teacher(_)));
        Ok(Input {
            name: port.name.clone(),
            feed: source.map(|s| self.feed(s)).transpose()?,
            axes: axes(&port.shape),
            row_axis: has_row_axis(&port.shape),
            flatten: first_axis(&port.shape) == "N",
            optional: port.is_optional(),
            differentiable: port.is_differentiable() && !detached,
        })
    }

    fn inputs(&mut self, instance: &Instance, of: &[Option<Source>]) -> RunResult<Vec<Input>> {
        let ports = instance.inputs().enumerate();
        ports.map(|(i, port)| self.input(port, of.get(i).and_then(Option::as_ref))).collect()
    }
}

/// Resolves a loaded stage. `param_names`: the student's, in order.
///
/// # Errors
/// A source that does not exist: a bug.
pub(crate) fn bind(loaded: &LoadedStage, param_names: &[String], own: bool) -> RunResult<Bindings> {
    let mut resolver = Resolver {
        student: Names(loaded.student_wanted.clone()),
        teacher: Names(loaded.teacher_wanted.clone()),
        param_names,
        snapshots: loaded.snapshots.iter().map(|s| s.wanted.clone()).collect(),
        teacher_is_student: own,
    };
    let student_inputs = resolver.inputs(&loaded.student, &loaded.student_inputs)?;
    let mut teacher_inputs = Vec::new();
    for teacher in &loaded.teachers {
        let inputs = teacher.instance().map(|model| resolver.inputs(model, &teacher.inputs));
        teacher_inputs.push(inputs.transpose()?.unwrap_or_default());
    }
    let mut terms = Vec::new();
    for term in &loaded.terms {
        let inputs = resolver.inputs(&term.instance, &term.inputs)?;
        let place = |name: &str| inputs.iter().position(|i| i.name == name);
        let total: f64 = loaded
            .terms
            .iter()
            .filter(|t| t.name == term.name && t.planned == term.planned)
            .count() as f64;
        terms.push(Term {
            name: term.name.clone(),
            planned: term.planned,
            scheduler: term.scheduler,
            rows: term.rows.clone(),
            reduction: term.reduction,
            weight: term.weight,
            share: 1.0 / total,
            labels: place("labels").filter(|i| inputs[*i].feed.is_some()),
            mask: place("row_mask").filter(|i| inputs[*i].feed.is_some()),
            row_weights: place("row_weights"),
            inputs,
            params: Vec::new(),
        });
    }
    let mut schedulers = Vec::new();
    for scheduler in &loaded.schedulers {
        let mut inputs = Vec::new();
        for (name, source) in &scheduler.inputs {
            let port = scheduler.instance.inputs().find(|p| p.name == *name);
            inputs.push(Input {
                name: name.clone(),
                feed: source.as_ref().map(|s| resolver.feed(s)).transpose()?,
                axes: port.and_then(|p| axes(&p.shape)),
                row_axis: port.is_none_or(|p| has_row_axis(&p.shape)),
                flatten: port.is_some_and(|p| first_axis(&p.shape) == "N"),
                optional: true,
                differentiable: false,
            });
        }
        schedulers.push(inputs);
    }
    let student_wanted: Vec<usize> = (0..resolver.student.0.len()).collect();
    let teacher_wanted: Vec<usize> = (0..resolver.teacher.0.len()).collect();
    if output(&loaded.student, "logits").is_some() {
        resolver.student.place("logits");
    }
    if loaded.teacher_output("logits").is_some() {
        resolver.teacher.place("logits");
    }
    let (student_outputs, teacher_outputs) = (resolver.student.0, resolver.teacher.0);
    let shape = |instance: &Instance, name: &String| {
        output(instance, name).map_or(String::new(), |p| p.shape.clone())
    };
    let of_student = |name| shape(&loaded.student, name);
    let of_teacher =
        |name: &String| loaded.teacher_output(name).map_or(String::new(), |p| p.shape.clone());
    Ok(Bindings {
        student_rows: student_outputs.iter().map(|n| has_row_axis(&of_student(n))).collect(),
        student_axes: student_outputs.iter().map(|n| axes(&of_student(n)).unwrap_or(0)).collect(),
        teacher_rows: teacher_outputs.iter().map(|n| has_row_axis(&of_teacher(n))).collect(),
        teacher_reads_student: teacher_inputs
            .iter()
            .flatten()
            .any(|i| matches!(i.feed, Some(Feed::Student(_) | Feed::Param(_)))),
        student_inputs,
        teacher_inputs,
        student_outputs,
        teacher_outputs,
        student_wanted,
        teacher_wanted,
        terms,
        schedulers,
        row_classes: None,
    })
}

impl Term {
    /// Whether something of the objective flows back from it.
    pub fn is_active(&self) -> bool {
        self.weight != 0.0
    }
}
