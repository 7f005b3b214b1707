//! What a stage offers to input ports: batch columns, model outputs, snapshots, tensors of schedulers.
//!
//! Turns the text of a source into a [`Source`] and says what it looks like. Unknown names get a suggestion.

use super::Source;
use super::shape::{Dim, Shapes};
use crate::data::ColumnSpec;
use crate::diagnostic::did_you_mean;
use crate::load::instance::Port;
use crate::tensor::DType;

/// Scopes of symbols, one per instance.
pub(super) const STUDENT: usize = 0;
pub(super) const TEACHER: usize = 1;
pub(super) const BATCH: usize = 2;
const FIRST_FREE: usize = 3;

/// A scheduler's part of the stage.
pub(super) struct SchedulerEnd {
    pub name: String,
    pub outputs: Vec<Port>,
    pub snapshots: Vec<String>,
    /// `` `limbeck.er` (pipeline.yaml:12:5) ``.
    pub place: String,
}

/// Everything that inputs can be bound to.
pub(super) struct Ends {
    /// `None`: the dataset could not be read, so any column may exist.
    pub columns: Option<Vec<ColumnSpec>>,
    pub student: Vec<Port>,
    /// `None`: the stage has no teacher. Outputs of an ensemble's members are `MEMBER.OUTPUT`.
    pub teacher: Option<Vec<Port>>,
    /// Names of an ensemble's members.
    pub members: Vec<String>,
    /// The teacher is this step's student.
    pub teacher_is_student: bool,
    pub schedulers: Vec<SchedulerEnd>,
    /// Where dataset, student and teacher stand in the pipeline.
    pub batch_place: String,
    pub student_place: String,
    pub teacher_place: String,
}

/// What a source looks like.
pub(super) struct End {
    /// `None`: any shape.
    pub axes: Option<Vec<Dim>>,
    /// Empty: any type.
    pub dtypes: Vec<DType>,
    /// A cotangent for it reaches the student.
    pub trains: bool,
}

/// Why a source's text means nothing.
#[derive(Debug)]
pub(super) enum Unknown {
    /// No such name; known ones, best first.
    Name { help: String },
    /// It reads a teacher and there is none.
    NoTeacher,
}

impl Ends {
    /// Scope of a scheduler's symbols.
    pub fn scheduler_scope(&self, scheduler: usize) -> usize {
        FIRST_FREE + scheduler
    }

    /// Scope of the symbols of a teacher, or of a member of an ensemble.
    pub fn teacher_scope(&self, member: usize) -> usize {
        if self.members.is_empty() { TEACHER } else { FIRST_FREE + self.schedulers.len() + member }
    }

    /// First scope that no instance here uses.
    pub fn free_scope(&self) -> usize {
        FIRST_FREE + self.schedulers.len() + self.members.len()
    }

    /// Scope of the symbols of a teacher's output.
    fn output_scope(&self, output: &str) -> usize {
        let member = output.split_once('.').map(|(member, _)| member);
        let place = member.and_then(|name| self.members.iter().position(|m| m == name));
        match place {
            _ if self.teacher_is_student => STUDENT,
            Some(member) => self.teacher_scope(member),
            None => TEACHER,
        }
    }

    /// Position of a snapshot among all snapshots of the stage.
    pub fn snapshot_index(&self, scheduler: usize, name: &str) -> Option<usize> {
        let before: usize = self.schedulers.iter().take(scheduler).map(|s| s.snapshots.len()).sum();
        let own = self.schedulers.get(scheduler)?.snapshots.iter().position(|s| s == name)?;
        Some(before + own)
    }

    /// Reads a source. `own`: the scheduler whose names are in reach unqualified, and whose ports `self` means.
    pub fn source(&self, text: &str, own: Option<usize>) -> Result<Source, Unknown> {
        if let Some((first, rest)) = text.split_once('.')
            && let Some(source) = self.dotted(text, first, rest, own)?
        {
            return Ok(source);
        }
        let is_column = self.columns.as_ref().is_none_or(|c| c.iter().any(|c| c.name == text));
        if is_column && !text.contains('.') {
            return Ok(Source::Batch(text.to_owned()));
        }
        Err(self.unknown(text))
    }

    fn dotted(
        &self,
        text: &str,
        first: &str,
        rest: &str,
        own: Option<usize>,
    ) -> Result<Option<Source>, Unknown> {
        let has = |ports: &[Port]| ports.iter().any(|p| p.name == rest);
        match first {
            "student" => {
                if let Some(name) = rest.strip_prefix("params.") {
                    return Ok(Some(Source::StudentParam(name.to_owned())));
                }
                if has(&self.student) {
                    Ok(Some(Source::Student(rest.to_owned())))
                } else {
                    Err(self.unknown(text))
                }
            }
            "teacher" => match &self.teacher {
                None => Err(Unknown::NoTeacher),
                Some(ports) if has(ports) => Ok(Some(Source::Teacher(rest.to_owned()))),
                Some(_) => Err(self.unknown(text)),
            },
            "self" => match own {
                Some(scheduler) => Ok(self.scheduler_port(scheduler, rest)),
                None => Ok(None),
            },
            _ => Ok(own
                .and_then(|s| self.of_scheduler(s, first, rest))
                .or_else(|| {
                    (0..self.schedulers.len()).find_map(|s| self.of_scheduler(s, first, rest))
                })
                .or_else(|| self.qualified(first, rest))),
        }
    }

    /// `SNAPSHOT.OUT` of one scheduler.
    fn of_scheduler(&self, scheduler: usize, snapshot: &str, output: &str) -> Option<Source> {
        let index = self.snapshot_index(scheduler, snapshot)?;
        let exists = self.student.iter().any(|p| p.name == output);
        exists.then(|| Source::Snapshot { snapshot: index, output: output.to_owned() })
    }

    /// `SCHEDULER.SNAPSHOT.OUT` or `SCHEDULER.PORT`.
    fn qualified(&self, scheduler: &str, rest: &str) -> Option<Source> {
        let index = self.schedulers.iter().position(|s| s.name == scheduler)?;
        let of_snapshot =
            rest.split_once('.').and_then(|(s, out)| self.of_scheduler(index, s, out));
        of_snapshot.or_else(|| self.scheduler_port(index, rest))
    }

    fn scheduler_port(&self, scheduler: usize, port: &str) -> Option<Source> {
        let exists = self.schedulers.get(scheduler)?.outputs.iter().any(|p| p.name == port);
        exists.then(|| Source::Scheduler { scheduler, port: port.to_owned() })
    }

    fn unknown(&self, text: &str) -> Unknown {
        let names = self.names();
        let close = did_you_mean(text, names.iter().map(String::as_str));
        let prefix = text.split_once('.').map(|(first, _)| format!("{first}."));
        let help = match (close, prefix) {
            (Some(close), _) => format!("did you mean `{close}`?"),
            (None, prefix) => {
                let of_kind = |n: &&String| match &prefix {
                    Some(prefix) => n.starts_with(prefix.as_str()),
                    None => !n.contains('.'),
                };
                let mut fitting: Vec<&String> = names.iter().filter(of_kind).collect();
                if fitting.is_empty() {
                    fitting = names.iter().collect();
                }
                let quoted: Vec<String> =
                    fitting.iter().take(12).map(|n| format!("`{n}`")).collect();
                format!("there are {}", quoted.join(", "))
            }
        };
        Unknown::Name { help }
    }

    /// Every source, as one writes it.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.columns.iter().flatten().map(|c| c.name.clone()).collect();
        names.extend(self.student.iter().map(|p| format!("student.{}", p.name)));
        names.extend(self.teacher.iter().flatten().map(|p| format!("teacher.{}", p.name)));
        for scheduler in &self.schedulers {
            for snapshot in &scheduler.snapshots {
                names.extend(self.student.iter().map(|p| format!("{snapshot}.{}", p.name)));
            }
            names
                .extend(scheduler.outputs.iter().map(|p| format!("{}.{}", scheduler.name, p.name)));
        }
        names
    }

    /// Where a source's owner stands in the pipeline.
    pub fn place(&self, source: &Source) -> Option<&str> {
        let place = match source {
            Source::Batch(_) => &self.batch_place,
            Source::Student(_) | Source::StudentParam(_) | Source::Snapshot { .. } => {
                &self.student_place
            }
            Source::Teacher(_) => &self.teacher_place,
            Source::Scheduler { scheduler, .. } => &self.schedulers.get(*scheduler)?.place,
        };
        (!place.is_empty()).then_some(place.as_str())
    }

    /// What a source looks like.
    pub fn end(&self, source: &Source, shapes: &mut Shapes) -> End {
        let found = match source {
            Source::Batch(column) => return self.column_end(column, shapes),
            Source::StudentParam(_) => return End { axes: None, dtypes: Vec::new(), trains: true },
            Source::Student(name) => {
                find(&self.student, name).map(|p| (p, STUDENT, p.is_differentiable()))
            }
            Source::Teacher(name) => {
                let scope = self.output_scope(name);
                self.teacher.as_ref().and_then(|t| find(t, name)).map(|p| (p, scope, false))
            }
            Source::Snapshot { output, .. } => {
                find(&self.student, output).map(|p| (p, STUDENT, false))
            }
            Source::Scheduler { scheduler, port } => {
                let outputs = self.schedulers.get(*scheduler).map(|s| s.outputs.as_slice());
                let scope = self.scheduler_scope(*scheduler);
                outputs.and_then(|o| find(o, port)).map(|p| (p, scope, false))
            }
        };
        match found {
            Some((port, scope, trains)) => {
                End { axes: shapes.axes(scope, &port.shape), dtypes: port.dtypes.clone(), trains }
            }
            None => End { axes: None, dtypes: Vec::new(), trains: false },
        }
    }

    fn column_end(&self, column: &str, shapes: &mut Shapes) -> End {
        let spec = self.columns.iter().flatten().find(|c| c.name == column);
        let Some(spec) = spec else { return End { axes: None, dtypes: Vec::new(), trains: false } };
        let length = format!("{}T", spec.tokenizer.as_deref().unwrap_or_default());
        let mut axes = vec![shapes.shared("B")];
        let mut open = 0;
        for size in &spec.row_shape {
            axes.push(match size {
                -1 => {
                    open += 1;
                    // Token columns of one tokenizer are padded to one length.
                    if open == 1 { shapes.symbol(BATCH, &length) } else { Dim::Any }
                }
                size => Dim::Number(*size),
            });
        }
        End { axes: Some(axes), dtypes: vec![spec.dtype], trains: false }
    }
}

fn find<'p>(ports: &'p [Port], name: &str) -> Option<&'p Port> {
    ports.iter().find(|p| p.name == name)
}

/// A source as one writes it.
pub(super) fn text(source: &Source, ends: &Ends) -> String {
    match source {
        Source::Batch(column) => column.clone(),
        Source::Student(name) => format!("student.{name}"),
        Source::StudentParam(name) => format!("student.params.{name}"),
        Source::Teacher(name) => format!("teacher.{name}"),
        Source::Snapshot { snapshot, output } => {
            let name = ends.schedulers.iter().flat_map(|s| &s.snapshots).nth(*snapshot);
            format!("{}.{output}", name.map_or("snapshot", String::as_str))
        }
        Source::Scheduler { scheduler, port } => {
            let name = ends.schedulers.get(*scheduler).map_or("scheduler", |s| s.name.as_str());
            format!("{name}.{port}")
        }
    }
}
