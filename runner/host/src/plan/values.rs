//! Values that several parts of a pipeline share: names, amounts, paths, ranges, `inputs`, what later releases bring.

use super::{Bound, Every, KeySpan, PluginUse};
use crate::diagnostic::{Diagnostic, Span};
use crate::document::amount::{self, Amount};
use crate::document::{Entry, Field, Fields, Node, Sink, Value, text_of, wrong_type};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keys that are refused as not there yet.
const LATER: [&str; 4] = ["search", "distributed", "rollout", "adversary"];

/// Reports something that this release does not do.
pub fn later(sink: &Sink, what: &str, span: &Span) {
    sink.report(
        Diagnostic::error("LMB0110", format!("{what} comes in a later release"))
            .at(span.clone())
            .help("remove it: nothing is ignored silently"),
    );
}

/// Reports keys that are reserved for later releases.
pub fn refuse_later(fields: &Fields) {
    for key in LATER {
        fields.know(key);
        if let Some(field) = fields.all().iter().find(|f| &*f.key == key) {
            later(fields.sink, &format!("`{key}`"), &field.key_span);
        }
    }
}

/// Letters, digits, `-`, `_`; letters of lower case only if `lower`. At most 64. Reports anything else.
pub fn check_name(sink: &Sink, what: &str, name: &str, span: &Span, lower: bool) {
    let letter = |c: char| {
        c.is_ascii_digit() || c.is_ascii_lowercase() || (!lower && c.is_ascii_uppercase())
    };
    let good = name.starts_with(letter)
        && name.len() <= 64
        && name.chars().all(|c| letter(c) || c == '-' || (!lower && c == '_'));
    if !good {
        let allowed = if lower { "a-z, 0-9 and `-`" } else { "letters, digits, `-` and `_`" };
        sink.report(
            Diagnostic::error(
                "LMB0114",
                format!("`{}` is not {what}", crate::document::shorten(name)),
            )
            .at(span.clone())
            .help(format!("allowed: {allowed}, a letter or digit first, at most 64 characters")),
        );
    }
}

/// A plugin id: `[a-z0-9.-]+`.
pub fn check_id(sink: &Sink, id: &str, span: &Span) {
    let good = id.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && !id.ends_with(['.', '-'])
        && !id.contains("..")
        && id.len() <= 128
        && id
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-'));
    if !good {
        sink.report(
            Diagnostic::error(
                "LMB0114",
                format!("`{}` is not a plugin id", crate::document::shorten(id)),
            )
            .at(span.clone())
            .help("an id looks like `limbeck.kl`: a-z, 0-9, `.` and `-`"),
        );
    }
}

/// A path as written, from `base`. `hf:org/name@revision` stays as it is.
pub fn resolve_path(base: &Path, written: &str) -> PathBuf {
    if written.starts_with("hf:") || base == Path::new(".") {
        PathBuf::from(written)
    } else {
        base.join(written)
    }
}

/// A mapping of some key as entries, others reported.
pub fn map_entries<'n>(sink: &Sink, key: &str, node: &'n Node) -> &'n [Entry] {
    if !matches!(node.value, Value::Map(_)) {
        wrong_type(sink, key, "a mapping", node);
    }
    node.entries()
}

/// `uses` and `with`.
pub fn plugin_use(fields: &Fields, example: &str) -> PluginUse {
    let id = fields.need_text("uses", &format!("name a plugin: `uses: {example}`"));
    let id_span = fields.field("uses").map(|f| f.node.span.clone());
    if let (Some(span), false) = (&id_span, id.is_empty()) {
        check_id(fields.sink, &id, span);
    }
    let (with, with_span, spans) = settings(fields);
    PluginUse { id, id_span, with, with_span: Some(with_span), spans, base: None }
}

fn settings(fields: &Fields) -> (Json, Span, BTreeMap<String, KeySpan>) {
    let mut spans = BTreeMap::new();
    let Some(field) = fields.field("with") else {
        fields.keep("with", Json::Object(Map::new()), None);
        return (Json::Object(Map::new()), fields.span.clone(), spans);
    };
    map_entries(fields.sink, "with", &field.node);
    let with = field.node.to_json(&mut |node| {
        fields.sink.report(
            Diagnostic::error(
                "LMB0105",
                format!("a setting must be finite, found {}", node.describe()),
            )
            .at(node.span.clone())
            .help("settings travel as JSON, which has no infinity and no NaN"),
        );
    });
    fields.keep("with", with.clone(), Some(field));
    collect_spans(&field.node, None, String::new(), &mut spans);
    let with = if with.is_object() { with } else { Json::Object(Map::new()) };
    (with, field.node.span.clone(), spans)
}

fn collect_spans(
    node: &Node,
    key: Option<&Span>,
    pointer: String,
    out: &mut BTreeMap<String, KeySpan>,
) {
    for entry in node.entries() {
        let escaped = entry.key.replace('~', "~0").replace('/', "~1");
        collect_spans(&entry.node, Some(&entry.key_span), format!("{pointer}/{escaped}"), out);
    }
    for (index, item) in node.items().iter().enumerate() {
        collect_spans(item, None, format!("{pointer}/{index}"), out);
    }
    let value = node.span.clone();
    out.insert(
        pointer,
        KeySpan { key: Some(key.cloned().unwrap_or_else(|| value.clone())), value: Some(value) },
    );
}

/// `inputs: {PORT: SOURCE}`.
pub fn inputs(fields: &Fields) -> BTreeMap<String, Bound> {
    let Some(field) = fields.field("inputs") else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    for entry in map_entries(fields.sink, "inputs", &field.node) {
        let Some(source) = text_of(fields.sink, &entry.key, &entry.node) else { continue };
        let span = &entry.node.span;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
        if let Some(view) = source.split_once('/').map(|(_, view)| view) {
            later(fields.sink, &format!("the view `{view}` of a source"), span);
        } else if !source.chars().all(plain) {
            fields.sink.report(
                Diagnostic::error("LMB0114", format!("`{}` is not a source", crate::document::shorten(&source)))
                    .at(span.clone())
                    .help("sources: a batch column, `student.OUTPUT`, `teacher.OUTPUT`, `student.params.NAME`"),
            );
        }
        out.insert(entry.key.to_string(), Bound { source, span: Some(span.clone()) });
    }
    let json: Map<String, Json> =
        out.iter().map(|(k, b)| (k.clone(), Json::from(b.source.as_str()))).collect();
    fields.keep("inputs", Json::Object(json), Some(field));
    out
}

/// An amount with a unit.
pub fn amount_of(sink: &Sink, key: &str, node: &Node, example: &str) -> Option<Amount> {
    let problem = match &node.value {
        Value::Text(text) => match amount::parse(text) {
            Ok(amount) => return Some(amount),
            Err(error) => format!("`{key}` must be an amount, found {}: {error}", node.describe()),
        },
        _ => format!("`{key}` must be an amount with a unit, found {}", node.describe()),
    };
    sink.report(
        Diagnostic::error("LMB0111", problem)
            .at(node.span.clone())
            .help(format!("for example `{example}`")),
    );
    None
}

/// `every`: steps, epochs, `end`, and wall time if `timed`.
pub fn every(fields: &Fields, key: &'static str, default: Every, timed: bool) -> Every {
    let Some(field) = fields.field(key) else {
        fields.keep(key, Json::from(every_text(default)), None);
        return default;
    };
    let every = match field.node.text() {
        Some("end") => Some(Every::End),
        _ => every_amount(fields.sink, key, field, timed),
    };
    let every = every.unwrap_or(default);
    fields.keep(key, Json::from(every_text(every)), Some(field));
    every
}

fn every_amount(sink: &Sink, key: &str, field: &Field, timed: bool) -> Option<Every> {
    let example = if timed { "10 min` or `500 steps" } else { "500 steps` or `2 epochs" };
    match amount_of(sink, key, &field.node, example)? {
        Amount::Steps(n) if n > 0 => Some(Every::Steps(n)),
        Amount::Epochs(n) if n > 0 => Some(Every::Epochs(n)),
        Amount::Time(t) if timed && !t.is_zero() => Some(Every::Time(t)),
        Amount::Steps(_) | Amount::Epochs(_) => {
            out_of_range(sink, key, "above 0", &field.node);
            None
        }
        Amount::Time(_) if timed => {
            out_of_range(sink, key, "above 0", &field.node);
            None
        }
        _ => {
            sink.report(
                Diagnostic::error(
                    "LMB0111",
                    format!("`{key}` cannot be counted in {}", field.node.describe()),
                )
                .at(field.node.span.clone())
                .help(format!("for example `{example}`, or `end`")),
            );
            None
        }
    }
}

/// Reports a value outside its range.
pub fn out_of_range(sink: &Sink, key: &str, allowed: &str, node: &Node) {
    sink.report(
        Diagnostic::error(
            "LMB0105",
            format!("`{key}` must be {allowed}, found {}", node.describe()),
        )
        .at(node.span.clone())
        .help(format!("allowed: {allowed}")),
    );
}

fn every_text(every: Every) -> String {
    match every {
        Every::Steps(n) => Amount::Steps(n).to_string(),
        Every::Epochs(n) => Amount::Epochs(n).to_string(),
        Every::Time(t) => Amount::Time(t).to_string(),
        Every::End => "end".into(),
    }
}

/// A list of whole numbers of a fixed or free length.
pub fn integers(
    sink: &Sink,
    key: &str,
    node: &Arc<Node>,
    length: Option<usize>,
) -> Option<Vec<i64>> {
    let wanted = length
        .map_or("a list of whole numbers".to_owned(), |n| format!("a list of {n} whole numbers"));
    let numbers: Option<Vec<i64>> = match &node.value {
        Value::List(items) => items
            .iter()
            .map(|n| match n.value {
                Value::Int(i, _) => i64::try_from(i).ok(),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    match numbers {
        Some(numbers) if length.is_none_or(|n| numbers.len() == n) => Some(numbers),
        _ => {
            let bad =
                node.items().iter().find(|n| !matches!(n.value, Value::Int(..))).unwrap_or(node);
            sink.report(
                Diagnostic::error(
                    "LMB0103",
                    format!("`{key}` must be {wanted}, found {}", bad.describe()),
                )
                .at(bad.span.clone())
                .help(match length {
                    Some(2) => "write two whole numbers: `[0, 63]`",
                    _ => "write whole numbers: `[0, 1, 2]`",
                }),
            );
            None
        }
    }
}
