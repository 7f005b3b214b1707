//! Words after a place: ``stage `distill`, term `kl` ``.
//!
//! Found by where a problem is written, not by who found it: a default at top level gets no stage's name.

use crate::diagnostic::{Diagnostic, Span};
use crate::document::Node;
use std::sync::Arc;

struct Region {
    start: (usize, usize),
    end: (usize, usize),
    label: String,
}

/// Gives every problem without context the words of the innermost region around its place.
pub fn add(problems: &mut [Diagnostic], root: &Arc<Node>) {
    let regions = regions(root);
    for problem in problems.iter_mut().filter(|p| p.context.is_none()) {
        let Some(span) = problem.span.as_ref().filter(|s| s.file == root.span.file) else {
            continue;
        };
        problem.context = label(&regions, span);
    }
}

fn label(regions: &[Region], span: &Span) -> Option<String> {
    let at = (span.line, span.column);
    let around = regions.iter().filter(|r| r.start <= at && at < r.end);
    // Regions of one list do not overlap, nested ones follow their outer one: the last is the innermost.
    around.max_by_key(|r| (r.start, r.label.len())).map(|r| r.label.clone())
}

fn regions(root: &Arc<Node>) -> Vec<Region> {
    let mut out = Vec::new();
    for (key, word) in
        [("stages", "stage"), ("tasks", "task"), ("loss", "term"), ("scheduler", "scheduler")]
    {
        let Some(list) = root.get(key) else { continue };
        named_items(list, root, word, "", &mut out);
    }
    for entry in root.get("datasets").map(|d| d.entries()).unwrap_or_default() {
        push(&entry.node, root, format!("dataset `{}`", entry.key), &mut out);
    }
    for stage in root.get("stages").map(|s| s.items()).unwrap_or_default() {
        let Some(name) = name(stage) else { continue };
        let outer = format!("stage `{name}`, ");
        for (key, word) in [("loss", "term"), ("scheduler", "scheduler")] {
            if let Some(list) = stage.get(key) {
                named_items(list, root, word, &outer, &mut out);
            }
        }
    }
    out
}

fn named_items(list: &Node, root: &Node, word: &str, outer: &str, out: &mut Vec<Region>) {
    for item in list.items() {
        if let Some(name) = name(item) {
            push(item, root, format!("{outer}{word} `{name}`"), out);
        }
    }
}

fn push(node: &Node, root: &Node, label: String, out: &mut Vec<Region>) {
    if node.span.file == root.span.file {
        out.push(Region { start: (node.span.line, node.span.column), end: node.end, label });
    }
}

/// `name`, else the last part of `uses`.
fn name(node: &Node) -> Option<&str> {
    let own = node.get("name").and_then(|n| n.text());
    own.or_else(|| node.get("uses")?.text()?.rsplit('.').next())
}
