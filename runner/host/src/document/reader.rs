//! Reads the keys of one mapping: what is there, what is missing and what nobody asked for.
//!
//! Every getter reports its own problem with the place and a remedy and then returns a stand-in, so that one pass
//! finds all mistakes. What is read is also recorded, with its origin: that record is the resolved pipeline, and the
//! keys asked for are the known keys. Invariant: a stand-in leaves this module only after a problem was reported.

use super::node::{Node, Value};
use super::scalar::{
    Bounds, choice_of, count_of, how_to_write, listed, number_of, text_of, wrong_type,
};
use crate::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean};
use serde_json::{Map, Value as Json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where problems and origins of one document gather.
#[derive(Default)]
pub(crate) struct Sink {
    problems: RefCell<Diagnostics>,
    origins: RefCell<BTreeMap<String, String>>,
}

impl Sink {
    /// Reports a problem.
    pub fn report(&self, problem: Diagnostic) {
        self.problems.borrow_mut().push(problem);
    }

    /// Notes where a resolved value comes from.
    pub fn origin(&self, path: String, origin: String) {
        self.origins.borrow_mut().insert(path, origin);
    }

    /// Everything gathered.
    pub fn take(self) -> (Diagnostics, BTreeMap<String, String>) {
        (self.problems.into_inner(), self.origins.into_inner())
    }
}

/// `file:line:col` of a value, or `--set`.
pub(crate) fn origin_of(span: &Span) -> String {
    let file = span.file.to_string_lossy();
    if file.starts_with("--set ") {
        "--set".into()
    } else {
        format!("{file}:{}:{}", span.line, span.column)
    }
}

/// One entry as the reader sees it.
#[derive(Clone)]
pub(crate) struct Field {
    /// Key.
    pub key: Box<str>,
    /// Place of the key.
    pub key_span: Span,
    /// Value.
    pub node: Arc<Node>,
    /// It stands at top level and fills in for a stage.
    pub inherited: bool,
}

/// The keys of one mapping.
pub(crate) struct Fields<'s> {
    /// Problems and origins.
    pub sink: &'s Sink,
    /// Path in the resolved pipeline: `stages.distill.optimizer`.
    pub path: String,
    /// In messages: `` `optimizer` ``, ``stage `distill` ``.
    pub what: String,
    /// Place of the mapping.
    pub span: Span,
    fields: Vec<Field>,
    asked: RefCell<Vec<&'static str>>,
    resolved: RefCell<Map<String, Json>>,
    inherited: bool,
    broken: bool,
}

impl<'s> Fields<'s> {
    /// Over a node; anything but a mapping is reported and read as empty.
    pub fn new(sink: &'s Sink, node: &Arc<Node>, path: String, what: impl Into<String>) -> Self {
        let what = what.into();
        let broken = !matches!(node.value, Value::Map(_));
        if broken {
            let message = format!("{what} must be a mapping, found {}", node.describe());
            let problem = Diagnostic::error("LMB0103", message).at(node.span.clone());
            sink.report(problem.help(how_to_write("a mapping", node)));
        }
        let fields = node
            .entries()
            .iter()
            .map(|e| Field {
                key: e.key.clone(),
                key_span: e.key_span.clone(),
                node: e.node.clone(),
                inherited: false,
            })
            .collect();
        Self { broken, ..Self::over(sink, fields, node.span.clone(), path, what) }
    }

    /// Over entries that were gathered elsewhere.
    pub fn over(
        sink: &'s Sink,
        fields: Vec<Field>,
        span: Span,
        path: String,
        what: String,
    ) -> Self {
        Self {
            sink,
            path,
            what,
            span,
            fields,
            asked: RefCell::default(),
            resolved: RefCell::default(),
            inherited: false,
            broken: false,
        }
    }

    /// Path of a key of it.
    pub fn path_of(&self, key: &str) -> String {
        let key = if key.contains('.') { format!("\"{key}\"") } else { key.to_owned() };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    /// The value of a known key; `null` counts as not there.
    pub fn field(&self, key: &'static str) -> Option<&Field> {
        self.know(key);
        self.fields.iter().find(|f| *f.key == *key && !f.node.is_null())
    }

    /// Makes a key known without reading it.
    pub fn know(&self, key: &'static str) {
        if !self.asked.borrow().contains(&key) {
            self.asked.borrow_mut().push(key);
        }
    }

    /// Every key and value, known or not.
    pub fn all(&self) -> &[Field] {
        &self.fields
    }

    /// Records a resolved value and where it comes from.
    pub fn keep(&self, key: &str, value: Json, origin: Option<&Field>) {
        let origin = match origin {
            None => "default".to_owned(),
            Some(f) if f.inherited || self.inherited => {
                format!("{} (top level)", origin_of(&f.node.span))
            }
            Some(f) => origin_of(&f.node.span),
        };
        self.sink.origin(self.path_of(key), origin);
        self.resolved.borrow_mut().insert(key.to_owned(), value);
    }

    /// Records a part that was read by its own [`Fields`].
    pub fn keep_part(&self, key: &str, value: Json) {
        self.resolved.borrow_mut().insert(key.to_owned(), value);
    }

    /// Reports the keys nobody asked for; returns what was read.
    pub fn finish(self) -> Json {
        self.finish_except(|_| false)
    }

    /// [`Fields::finish`], but some unknown keys are welcome.
    pub fn finish_except(self, is_welcome: fn(&str) -> bool) -> Json {
        let asked = self.asked.borrow();
        for field in self.fields.iter().filter(|f| !asked.contains(&&*f.key) && !is_welcome(&f.key))
        {
            let problem = Diagnostic::error(
                "LMB0101",
                format!("unknown key `{}` in {}", field.key, self.what),
            )
            .at(field.key_span.clone());
            self.sink.report(match did_you_mean(&field.key, asked.iter().copied()) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help(format!("known keys: {}", listed(&asked))),
            });
        }
        drop(asked);
        Json::Object(self.resolved.into_inner())
    }

    /// A part that is a mapping, if it is there.
    pub fn part(&self, key: &'static str) -> Option<Fields<'s>> {
        let field = self.field(key)?;
        let mut part = Fields::new(self.sink, &field.node, self.path_of(key), format!("`{key}`"));
        part.inherited = field.inherited || self.inherited;
        Some(part)
    }

    /// A part over a node below this one: `path` follows this mapping's path.
    pub fn below(
        &self,
        node: &Arc<Node>,
        path: &str,
        what: impl Into<String>,
        inherited: bool,
    ) -> Fields<'s> {
        let mut part = Fields::new(self.sink, node, self.path_of(path), what);
        part.inherited = inherited || self.inherited;
        part
    }

    /// Whether it is no mapping at all, which was reported.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Reports that a key is missing.
    pub fn missing(&self, key: &str, help: &str) {
        if self.broken {
            return;
        }
        self.sink.report(
            Diagnostic::error("LMB0102", format!("{} has no `{key}`", self.what))
                .at(self.span.clone())
                .help(help.to_owned()),
        );
    }

    /// Reports a value of a wrong type.
    pub fn wrong_type(&self, key: &str, wanted: &str, node: &Node) {
        wrong_type(self.sink, key, wanted, node);
    }

    /// A text.
    pub fn text(&self, key: &'static str) -> Option<String> {
        let field = self.field(key)?;
        let text = text_of(self.sink, key, &field.node)?;
        self.keep(key, Json::from(text.as_str()), Some(field));
        Some(text)
    }

    /// A text that must be there.
    pub fn need_text(&self, key: &'static str, help: &str) -> String {
        if self.field(key).is_none() {
            self.missing(key, help);
        }
        self.text(key).unwrap_or_default()
    }

    /// A number within bounds.
    pub fn number(&self, key: &'static str, bounds: Bounds) -> Option<f64> {
        let field = self.field(key)?;
        let number = number_of(self.sink, key, &field.node, bounds)?;
        self.keep(key, Json::from(number), Some(field));
        Some(number)
    }

    /// A number within bounds, with its default.
    pub fn number_or(&self, key: &'static str, bounds: Bounds, default: f64) -> f64 {
        if self.field(key).is_none() {
            self.keep(key, Json::from(default), None);
            return default;
        }
        self.number(key, bounds).unwrap_or(default)
    }

    /// A whole number of at least `low`.
    pub fn count(&self, key: &'static str, low: u64) -> Option<u64> {
        let field = self.field(key)?;
        let count = count_of(self.sink, key, &field.node, low)?;
        self.keep(key, Json::from(count), Some(field));
        Some(count)
    }

    /// A whole number of at least `low`, with its default.
    pub fn count_or(&self, key: &'static str, low: u64, default: u64) -> u64 {
        if self.field(key).is_none() {
            self.keep(key, Json::from(default), None);
            return default;
        }
        self.count(key, low).unwrap_or(default)
    }

    /// `true` or `false`, with its default.
    pub fn flag_or(&self, key: &'static str, default: bool) -> bool {
        match self.field(key) {
            None => {
                self.keep(key, Json::from(default), None);
                default
            }
            Some(Field { node, .. }) if !matches!(node.value, Value::Bool(_)) => {
                self.wrong_type(key, "true or false", node);
                default
            }
            Some(field) => {
                let flag = matches!(field.node.value, Value::Bool(true));
                self.keep(key, Json::from(flag), Some(field));
                flag
            }
        }
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let field = self.field(key)?;
        let (word, choice) = choice_of(self.sink, key, &field.node, choices)?;
        self.keep(key, Json::from(word), Some(field));
        Some(choice)
    }

    /// One of some words, with the first as the default.
    pub fn choice_or_first<T: Copy>(
        &self,
        key: &'static str,
        first: (&str, T),
        others: &[(&str, T)],
    ) -> T {
        let all: Vec<(&str, T)> = std::iter::once(first).chain(others.iter().copied()).collect();
        if self.field(key).is_none() {
            self.keep(key, Json::from(first.0), None);
            return first.1;
        }
        self.choice(key, &all).unwrap_or(first.1)
    }

    /// The items of a list; one that is not there is empty.
    pub fn list(&self, key: &'static str) -> &[Arc<Node>] {
        let Some(field) = self.field(key) else { return &[] };
        if !matches!(field.node.value, Value::List(_)) {
            self.wrong_type(key, "a list", &field.node);
        }
        field.node.items()
    }
}
