//! Binds the input ports of one consumer (model, loss term, scheduler) to sources.
//!
//! Reports every port that has no source, another shape or another element type, with both ends.

use super::Source;
use super::ends::{End, Ends, Unknown, text};
use super::shape::{Clash, Shapes};
use crate::data::TOKEN_COLUMNS;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean};
use crate::load::codes;
use crate::load::instance::Port;
use crate::plan::Bound;
use crate::tensor::DType;
use std::collections::BTreeMap;

/// Written as a source: the port stays without one.
const NONE: &str = "none";

/// Who wants inputs.
pub(super) struct Consumer<'a> {
    /// `` stage `distill`, term `kl` ``.
    pub context: String,
    /// Place of its entry.
    pub span: Option<Span>,
    /// Plugin id.
    pub plugin: &'a str,
    /// Its input ports.
    pub ports: Vec<&'a Port>,
    /// Ports that the pipeline (or a scheduler) binds to other sources.
    pub rebound: BTreeMap<String, Bound>,
    /// Student and teacher layer of a term.
    pub layers: Option<(usize, usize)>,
    /// Scheduler whose names are in reach.
    pub own: Option<usize>,
    /// Scope of its symbols.
    pub scope: usize,
    /// Its settings know `vocab`.
    pub has_vocab: bool,
}

/// A bound port.
pub(super) struct Wire {
    pub source: Source,
    /// A gradient through this port reaches the student.
    pub trains: bool,
}

/// How a port got its source.
#[derive(PartialEq)]
enum Origin {
    Written(Option<Span>),
    Default,
}

pub(super) struct Binder<'a> {
    pub ends: &'a Ends,
    pub shapes: &'a mut Shapes,
    pub problems: &'a mut Diagnostics,
}

impl Binder<'_> {
    /// One entry per input port, in order.
    pub fn bind(&mut self, consumer: &Consumer<'_>) -> Vec<Option<Wire>> {
        self.refuse_unknown_ports(consumer);
        let mut wires: Vec<Option<Wire>> = consumer.ports.iter().map(|_| None).collect();
        // Required ports first, so that a coincidence of names never decides what a symbol means.
        for optional in [false, true] {
            for (port, wire) in consumer.ports.iter().zip(&mut wires) {
                let is_late = port.is_optional() && !consumer.rebound.contains_key(&port.name);
                if is_late == optional {
                    *wire = self.port(consumer, port);
                }
            }
        }
        self.tell_padding(consumer, &wires);
        wires
    }

    /// Warns where a term takes each token for a row and nothing leaves padded ones out.
    fn tell_padding(&mut self, consumer: &Consumer<'_>, wires: &[Option<Wire>]) {
        let [_, mask, ..] = TOKEN_COLUMNS;
        let ports = || consumer.ports.iter().zip(wires);
        let is_open = |name: &str| ports().any(|(p, wire)| p.name == name && wire.is_none());
        let is_silent = is_open("row_mask") && !consumer.rebound.contains_key("row_mask");
        if !is_silent || !is_open("labels") || self.ends.source(mask, consumer.own).is_err() {
            return;
        }
        let is_token = |wire: &Wire| {
            let Source::Student(output) = &wire.source else { return false };
            let port = self.ends.student.iter().find(|p| p.is_output() && p.name == *output);
            port.is_some_and(|p| p.shape.split(',').count() > 2)
        };
        let mut rows = ports().filter(|(p, _)| p.shape.starts_with("N,"));
        let Some((port, _)) = rows.find(|(_, wire)| wire.as_ref().is_some_and(is_token)) else {
            return;
        };
        let message = format!("each token of `{}` is a row, padded ones too", port.name);
        let warning = Diagnostic::warning(codes::LEFT_UNBOUND, message).help(format!(
            "`inputs: {{row_mask: {mask}}}` leaves them out, `inputs: {{row_mask: {NONE}}}` says that they are meant"
        ));
        self.report(consumer, None, warning);
    }

    fn report(&mut self, consumer: &Consumer<'_>, span: Option<Span>, diagnostic: Diagnostic) {
        let span = span.or_else(|| consumer.span.clone());
        let diagnostic = diagnostic.at(span).within(consumer.context.clone());
        // A term over several layers has the same ports for each.
        if !self.problems.contains(&diagnostic) {
            self.problems.push(diagnostic);
        }
    }

    fn refuse_unknown_ports(&mut self, consumer: &Consumer<'_>) {
        for (name, bound) in &consumer.rebound {
            if consumer.ports.iter().any(|p| p.name == *name) {
                continue;
            }
            let known = consumer.ports.iter().map(|p| p.name.as_str());
            let message = format!("`{}` has no input port `{name}`", consumer.plugin);
            let help = match did_you_mean(name, known.clone()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!(
                    "its input ports: {}",
                    known.map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
                ),
            };
            let problem = Diagnostic::error(codes::NO_SUCH_PORT, message).help(help);
            self.report(consumer, bound.span.clone(), problem);
        }
    }

    fn port(&mut self, consumer: &Consumer<'_>, port: &Port) -> Option<Wire> {
        let (source, origin) = match consumer.rebound.get(&port.name) {
            Some(bound) if bound.source == NONE => {
                self.unbound(consumer, port, bound);
                return None;
            }
            Some(bound) => {
                (self.written(consumer, port, bound)?, Origin::Written(bound.span.clone()))
            }
            None => (self.default(consumer, port)?, Origin::Default),
        };
        let before = self.shapes.clone();
        let end = self.ends.end(&source, self.shapes);
        let problem = self
            .types(port, consumer, &source, &end.dtypes)
            .or_else(|| self.shape(port, consumer, &source, &end));
        let Some(problem) = problem else {
            return Some(Wire { source, trains: end.trains && port.is_differentiable() });
        };
        *self.shapes = before;
        match origin {
            Origin::Default if port.is_optional() => {
                self.report(consumer, None, left_unbound(port, problem));
            }
            Origin::Default => self.report(consumer, None, problem),
            Origin::Written(span) => self.report(consumer, span, problem),
        }
        None
    }

    /// `none` leaves an optional port without a source.
    fn unbound(&mut self, consumer: &Consumer<'_>, port: &Port, bound: &Bound) {
        if !port.is_optional() {
            let message = format!("port `{}` of `{}` needs a source", port.name, consumer.plugin);
            let problem = Diagnostic::error(codes::UNBOUND_PORT, message)
                .help("only optional ports can be `none`");
            self.report(consumer, bound.span.clone(), problem);
        }
    }

    fn written(&mut self, consumer: &Consumer<'_>, port: &Port, bound: &Bound) -> Option<Source> {
        match self.ends.source(&bound.source, consumer.own) {
            Ok(source) => Some(source),
            Err(why) => {
                let problem = match why {
                    Unknown::NoTeacher => no_teacher(&bound.source),
                    Unknown::Name { help } => {
                        let message = format!(
                            "port `{}` reads `{}`, which does not exist",
                            port.name, bound.source
                        );
                        Diagnostic::error(codes::NO_SUCH_SOURCE, message).help(help)
                    }
                };
                self.report(consumer, bound.span.clone(), problem);
                None
            }
        }
    }

    fn default(&mut self, consumer: &Consumer<'_>, port: &Port) -> Option<Source> {
        if let Some(layered) = self.layered(consumer, port) {
            return layered;
        }
        let name = sibling(consumer, port).unwrap_or_else(|| port.name.clone());
        match self.ends.source(&name, consumer.own) {
            Ok(source) => return Some(source),
            Err(_) if port.is_optional() => {}
            Err(Unknown::NoTeacher) => self.report(consumer, None, no_teacher(&port.name)),
            Err(Unknown::Name { help }) => {
                let message =
                    format!("`{}` needs `{name}`, which this stage does not have", consumer.plugin);
                let remedy = if self.layers_of(&port.name).is_empty() {
                    format!("bind it with `inputs: {{{}: SOURCE}}`; {help}", port.name)
                } else {
                    "say which layers: `with: {layers: [[student, teacher], …]}`, or bind the port with `inputs`".into()
                };
                let mut problem = Diagnostic::error(codes::UNBOUND_PORT, message).help(remedy);
                if !port.doc.is_empty() {
                    problem = problem.note(format!("{}: {}", port.name, port.doc));
                }
                self.report(consumer, None, problem);
            }
        }
        None
    }

    /// Numbers k for which the model that a port reads has an output `NAME.k`.
    fn layers_of(&self, port: &str) -> Vec<usize> {
        let Some((model, name)) = port.split_once('.') else { return Vec::new() };
        let ports = match model {
            "student" => Some(&self.ends.student),
            "teacher" => self.ends.teacher.as_ref(),
            _ => None,
        };
        let number = |p: &Port| p.name.strip_prefix(name)?.strip_prefix('.')?.parse().ok();
        let mut layers: Vec<usize> = ports.into_iter().flatten().filter_map(number).collect();
        layers.sort_unstable();
        layers
    }

    /// The source of a layered port; `None` if the port is not one, `Some(None)` after a report.
    fn layered(&mut self, consumer: &Consumer<'_>, port: &Port) -> Option<Option<Source>> {
        let (student, teacher) = consumer.layers?;
        let (model, name) = port.name.split_once('.')?;
        let layer = match model {
            "student" => student,
            "teacher" => teacher,
            _ => return None,
        };
        let layers = self.layers_of(&port.name);
        let (first, last) = (layers.first()?, layers.last()?);
        if !layers.contains(&layer) {
            let what = if name == "hidden" { "hidden states".into() } else { format!("`{name}`") };
            let note =
                if name == "hidden" && *first == 0 { " (0 is the embedding output)" } else { "" };
            let all = match last - first + 1 == layers.len() {
                true => format!("{first}..{last}"),
                false => layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            let message =
                format!("layer pair [{student}, {teacher}]: the {model} has {what} {all}{note}");
            self.report(consumer, None, Diagnostic::error(codes::LAYER, message));
            return Some(None);
        }
        let output = format!("{name}.{layer}");
        Some(Some(if model == "student" {
            Source::Student(output)
        } else {
            Source::Teacher(output)
        }))
    }

    fn types(
        &self,
        port: &Port,
        consumer: &Consumer<'_>,
        source: &Source,
        found: &[DType],
    ) -> Option<Diagnostic> {
        let fits = found.is_empty() || found.iter().any(|t| port.dtypes.contains(t));
        let names =
            |types: &[DType]| types.iter().map(|t| t.name()).collect::<Vec<_>>().join(" or ");
        (!fits).then(|| {
            let message = format!(
                "`{}` is {}, port `{}` of `{}` takes {}",
                text(source, self.ends),
                names(found),
                port.name,
                consumer.plugin,
                names(&port.dtypes)
            );
            self.with_place(Diagnostic::error(codes::TYPES_DIFFER, message), source)
        })
    }

    fn shape(
        &mut self,
        port: &Port,
        consumer: &Consumer<'_>,
        source: &Source,
        end: &End,
    ) -> Option<Diagnostic> {
        let wanted = self.shapes.axes(consumer.scope, &port.shape)?;
        let found = end.axes.as_ref()?;
        let name = text(source, self.ends);
        let origin = format!("`{name}` [{}]", self.shapes.shape_text(found));
        let clash = self.shapes.connect(&wanted, found, &origin).err()?;
        Some(self.explain(port, consumer, source, &origin, &clash))
    }

    fn explain(
        &self,
        port: &Port,
        consumer: &Consumer<'_>,
        source: &Source,
        origin: &str,
        clash: &Clash,
    ) -> Diagnostic {
        let Clash { axis, wanted, wanted_from, found } = clash;
        let is_logits = matches!(source, Source::Teacher(n) | Source::Student(n) if n == "logits");
        if axis == "V" && is_logits {
            let (student, teacher) = match source {
                Source::Teacher(_) => (wanted, found),
                _ => (found, wanted),
            };
            let message = format!("vocabularies differ: teacher {teacher}, student {student}");
            let problem = Diagnostic::error(codes::VOCABULARY, message);
            let problem = self.with_place(problem, source);
            return if consumer.has_vocab {
                problem.help("classes: give both as many; words: add `vocab: truncate` to the settings of the term, if the rest is padding of the embedding")
            } else {
                problem
            };
        }
        let message = format!(
            "{origin} does not fit port `{}` [{}] of `{}`: {axis} is {found}, not {wanted}",
            port.name, port.shape, consumer.plugin
        );
        let mut problem = Diagnostic::error(codes::SHAPES_DIFFER, message);
        if let Some(from) = wanted_from {
            problem = problem.note(format!("{axis} = {wanted} since {from} is bound too"));
        }
        self.with_place(problem, source)
    }

    /// Says where the other end stands in the pipeline.
    fn with_place(&self, problem: Diagnostic, source: &Source) -> Diagnostic {
        match self.ends.place(source) {
            Some(place) => {
                problem.note(format!("`{}` comes from {place}", text(source, self.ends)))
            }
            None => problem,
        }
    }
}

/// An optional port whose name happens to fit a source of another shape or type.
fn left_unbound(port: &Port, problem: Diagnostic) -> Diagnostic {
    let message = format!("optional port `{}` is left unbound: {}", port.name, problem.message);
    let mut warning = Diagnostic::warning(codes::LEFT_UNBOUND, message)
        .help(format!("`inputs: {{{}: {NONE}}}` says that it is meant", port.name));
    warning.notes = problem.notes;
    warning
}

/// Columns of one text come together: where `input_ids` reads `big_input_ids`, the mask is `big_attention_mask`.
fn sibling(consumer: &Consumer<'_>, port: &Port) -> Option<String> {
    let [ids, ..] = TOKEN_COLUMNS;
    let prefix = consumer.rebound.get(ids)?.source.strip_suffix(ids)?;
    TOKEN_COLUMNS.contains(&port.name.as_str()).then(|| format!("{prefix}{}", port.name))
}

fn no_teacher(name: &str) -> Diagnostic {
    Diagnostic::error(codes::NO_TEACHER, format!("`{name}` is read and the stage has no teacher"))
        .help("add `teacher: {uses: …}`, `{from: STAGE}`, `{ema: {decay: …}}` or `{self: true}`")
}
