//! `--set PATH=VALUE`: replaces one value of the document.
//!
//! `stages.distill.loss.kl.weight=0.5`: keys, names of list entries (their `name`, else the last part of their
//! `uses`) or positions from 0, parted by dots; a part with dots of its own stands in double quotes. The value is a
//! YAML node. A path that leads through something that is not there is refused; a last key is checked by the plan,
//! with its place in the argument. Setting one of `epochs`/`steps` or `data`/`tasks` removes the other.

use super::guard;
use super::node::{Entry, Node, Value};
use crate::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean};
use std::path::PathBuf;
use std::sync::Arc;

/// Keys of a stage that a top-level key of the same name fills in.
const EXCLUSIVE: [(&str, &str); 4] =
    [("epochs", "steps"), ("steps", "epochs"), ("data", "tasks"), ("tasks", "data")];

/// Applies all of `sets`, in order.
pub fn apply(root: Arc<Node>, sets: &[String], problems: &mut Diagnostics) -> Arc<Node> {
    sets.iter().fold(root, |root, set| match apply_one(&root, set) {
        Ok(changed) => changed,
        Err(found) => {
            problems.extend(found);
            root
        }
    })
}

/// One part of a path.
struct Part {
    text: String,
    span: Span,
}

fn apply_one(root: &Arc<Node>, set: &str) -> Result<Arc<Node>, Diagnostics> {
    let file = Arc::new(PathBuf::from(format!("--set {set}")));
    let span = |column, length| Span { file: file.clone(), line: 1, column, length };
    let parts = parts(set, &span)?;
    let value_at = parts.iter().map(|p| p.span.column + p.span.length).max().unwrap_or(1) + 1;
    let value_text: String = set.chars().skip(value_at - 1).collect();
    let value = if value_text.trim().is_empty() {
        Arc::new(Node {
            value: Value::Text("".into()),
            span: span(value_at, 1),
            end: (1, value_at),
        })
    } else {
        guard::read(&value_text, &file, 1, value_at)?
    };
    let top = root.clone();
    put(root, &parts, &value, &Level { top: &top, in_stage: false, what: "the pipeline".into() })
        .map_err(|problem| vec![*problem])
}

/// Splits `a."b.c".d=value`; fails if there is no `=` or an empty part.
fn parts(set: &str, span: &dyn Fn(usize, usize) -> Span) -> Result<Vec<Part>, Diagnostics> {
    let wrong = |column: usize, message: &str| {
        vec![
            Diagnostic::error("LMB0112", message.to_owned())
                .at(span(column, 1))
                .help("write `--set PATH=VALUE`, for example `--set stages.distill.epochs=1`"),
        ]
    };
    let (mut parts, mut text, mut start, mut quoted) = (Vec::new(), String::new(), 1, false);
    for (index, c) in set.chars().enumerate() {
        let column = index + 1;
        match c {
            '"' => quoted = !quoted,
            '.' | '=' if !quoted => {
                if text.is_empty() {
                    return Err(wrong(column, "an empty part in the path"));
                }
                parts.push(Part {
                    text: std::mem::take(&mut text),
                    span: span(start, column - start),
                });
                start = column + 1;
                if c == '=' {
                    return Ok(parts);
                }
            }
            _ => text.push(c),
        }
    }
    Err(wrong(1, "no `=` in it"))
}

/// Where a path has arrived.
struct Level<'a> {
    top: &'a Arc<Node>,
    in_stage: bool,
    what: String,
}

type Put = Result<Arc<Node>, Box<Diagnostic>>;

fn put(node: &Arc<Node>, parts: &[Part], value: &Arc<Node>, level: &Level) -> Put {
    let Some((part, rest)) = parts.split_first() else { return Ok(value.clone()) };
    let changed = match &node.value {
        Value::Map(entries) => Value::Map(put_key(entries, part, rest, value, level)?),
        Value::List(items) => Value::List(put_item(items, part, rest, value, level)?),
        _ => {
            return Err(Box::new(
                Diagnostic::error(
                    "LMB0112",
                    format!("`{}`: {} has no parts", part.text, level.what),
                )
                .at(part.span.clone()),
            ));
        }
    };
    Ok(Arc::new(Node { value: changed, span: node.span.clone(), end: node.end }))
}

fn put_key(
    entries: &[Entry],
    part: &Part,
    rest: &[Part],
    value: &Arc<Node>,
    level: &Level,
) -> Result<Vec<Entry>, Box<Diagnostic>> {
    let mut entries = entries.to_vec();
    let below = Level { top: level.top, in_stage: false, what: format!("`{}`", part.text) };
    let inherited = || level.in_stage.then(|| level.top.get(&part.text).cloned()).flatten();
    if let Some(entry) = entries.iter_mut().find(|e| *e.key == *part.text) {
        entry.node = put(&entry.node, rest, value, &below)?;
        if rest.is_empty() {
            entry.key_span = part.span.clone();
        }
    } else {
        let start = if rest.is_empty() { None } else { inherited() };
        let start = match start {
            Some(node) => node,
            None if rest.is_empty() || creatable(&part.text) => empty_map(part),
            None => return Err(Box::new(unknown(part, entries.iter().map(|e| &*e.key), level))),
        };
        let node = put(&start, rest, value, &below)?;
        entries.push(Entry { key: part.text.as_str().into(), key_span: part.span.clone(), node });
    }
    if rest.is_empty() && !value.is_null() {
        for (this, other) in EXCLUSIVE {
            // A top-level `tasks` list is also the declaration that stages refer to.
            let drops = this == part.text && (level.in_stage || matches!(this, "epochs" | "steps"));
            entries.retain(|e| !(drops && &*e.key == other));
        }
    }
    Ok(entries)
}

/// Mappings that a path may pass through although the document does not have them.
fn creatable(key: &str) -> bool {
    matches!(
        key,
        "with"
            | "inputs"
            | "terms"
            | "batch"
            | "optimizer"
            | "lr_schedule"
            | "eval"
            | "best"
            | "checkpoint"
            | "on_nonfinite"
            | "stop_if"
            | "data"
            | "scenario"
            | "tokenizer"
    )
}

fn empty_map(part: &Part) -> Arc<Node> {
    let end = (part.span.line, part.span.column + part.span.length);
    Arc::new(Node { value: Value::Map(Vec::new()), span: part.span.clone(), end })
}

fn put_item(
    items: &[Arc<Node>],
    part: &Part,
    rest: &[Part],
    value: &Arc<Node>,
    level: &Level,
) -> Result<Vec<Arc<Node>>, Box<Diagnostic>> {
    let names: Vec<Option<&str>> = items.iter().map(|n| item_name(n)).collect();
    let by_name = names.iter().position(|n| *n == Some(&part.text));
    let by_index = || part.text.parse::<usize>().ok().filter(|i| *i < items.len());
    let Some(index) = by_name.or_else(by_index) else {
        return Err(Box::new(unknown(part, names.iter().filter_map(|n| *n), level)));
    };
    let below = Level {
        top: level.top,
        in_stage: level.what == "`stages`",
        what: format!("`{}`", part.text),
    };
    let mut items = items.to_vec();
    if let Some(item) = items.get_mut(index) {
        *item = put(item, rest, value, &below)?;
    }
    Ok(items)
}

/// `name`, else the last part of `uses`, else the text itself.
fn item_name(node: &Node) -> Option<&str> {
    let own = node.get("name").or_else(|| node.get("id")).and_then(|n| n.text());
    own.or_else(|| node.get("uses")?.text()?.rsplit('.').next())
}

fn unknown<'a>(part: &Part, known: impl Iterator<Item = &'a str>, level: &Level) -> Diagnostic {
    let known: Vec<&str> = known.collect();
    let problem = Diagnostic::error("LMB0112", format!("no `{}` in {}", part.text, level.what))
        .at(part.span.clone());
    match did_you_mean(&part.text, known.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None if known.is_empty() => problem,
        None => problem.help(format!("there is {}", super::scalar::listed(&known))),
    }
}
