//! The merge key: `<<: *anchor` or `<<: [*a, *b]`.
//!
//! A mapping's own keys win over merged ones, earlier anchors over later ones. Anything but mappings is refused.
//! After [`resolve`] no `<<` is left in the tree.

use super::node::{Entry, Node, Value};
use crate::diagnostic::{Diagnostic, Diagnostics};
use std::collections::HashSet;
use std::sync::Arc;

/// Replaces every merge key by the entries it stands for.
pub fn resolve(node: &Arc<Node>, problems: &mut Diagnostics) -> Arc<Node> {
    if !contains_merge(node) {
        return node.clone();
    }
    let value = match &node.value {
        Value::List(items) => Value::List(items.iter().map(|n| resolve(n, problems)).collect()),
        Value::Map(entries) => Value::Map(merged(entries, problems)),
        other => other.clone(),
    };
    Arc::new(Node { value, span: node.span.clone(), end: node.end })
}

fn contains_merge(node: &Node) -> bool {
    match &node.value {
        Value::List(items) => items.iter().any(|n| contains_merge(n)),
        Value::Map(entries) => entries.iter().any(|e| &*e.key == "<<" || contains_merge(&e.node)),
        _ => false,
    }
}

fn merged(entries: &[Entry], problems: &mut Diagnostics) -> Vec<Entry> {
    let mut taken: HashSet<Box<str>> = entries.iter().map(|e| e.key.clone()).collect();
    let mut out: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        let node = resolve(&entry.node, problems);
        if &*entry.key != "<<" {
            out.push(Entry { node, ..entry.clone() });
            continue;
        }
        for source in sources(&node, problems) {
            out.extend(
                source.entries().iter().filter(|from| taken.insert(from.key.clone())).cloned(),
            );
        }
    }
    out
}

fn sources(node: &Arc<Node>, problems: &mut Diagnostics) -> Vec<Arc<Node>> {
    let candidates = match &node.value {
        Value::List(items) => items.clone(),
        _ => vec![node.clone()],
    };
    let (good, bad): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|n| matches!(n.value, Value::Map(_)));
    problems.extend(bad.iter().map(|n| {
        Diagnostic::error("LMB0115", format!("`<<` merges mappings, found {}", n.describe()))
            .at(n.span.clone())
            .help("write `<<: *anchor`, the anchor on a mapping")
    }));
    good
}
