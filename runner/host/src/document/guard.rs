//! YAML text to a tree with places, within budgets.
//!
//! Refuses what a pipeline may not contain: tags, keys that are not text, duplicate keys, a second document, nesting,
//! size, node and alias counts over the limits. An alias shares its anchor's node, and the expanded size is counted
//! before anything is expanded, so a bomb costs no more than its text.

use super::node::{Entry, Node, Value, resolve_plain, shorten};
use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of a pipeline file.
pub const MAX_BYTES: usize = 1 << 20;
/// Nested lists and mappings.
pub const MAX_DEPTH: usize = 64;
/// Nodes, aliases expanded.
pub const MAX_NODES: usize = 100_000;
/// Aliases.
pub const MAX_ALIASES: usize = 1_000;

/// Reads one document. `line` and `column` are the place of the text's first character in `file` (1 and 1 for a file).
///
/// # Errors
/// Everything refused; a syntax error or an exceeded budget ends the reading.
pub fn read(
    text: &str,
    file: &Arc<PathBuf>,
    line: usize,
    column: usize,
) -> Result<Arc<Node>, Diagnostics> {
    let mut builder = Builder::new(file.clone(), line, column);
    builder.check_characters(text);
    if !builder.problems.is_empty() {
        return Err(builder.problems);
    }
    let options = granit_parser::options! {
        emit_comments: false,
        disallow_directives: true,
        flow_nesting_limit: MAX_DEPTH + 1,
        block_nesting_limit: MAX_DEPTH + 1,
    };
    for next in Parser::new_from_str_with_options(text, options) {
        let step = match next {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => Err(builder.syntax(&error, text)),
        };
        if let Err(problem) = step {
            builder.problems.push(*problem);
            break;
        }
    }
    match (builder.root, builder.problems.is_empty()) {
        (Some(root), true) => Ok(root),
        (None, true) => Err(vec![
            Diagnostic::error("LMB0100", "the file holds no pipeline")
                .at(Span { file: file.clone(), line, column, length: 1 })
                .help("start with `version: 1` and `name: …`"),
        ]),
        (_, false) => Err(builder.problems),
    }
}

type Step = Result<(), Box<Diagnostic>>;

/// A list or mapping that is still open.
struct Frame {
    start: Marker,
    end: Marker,
    anchor: usize,
    size: usize,
    depth: usize,
    content: Content,
}

enum Content {
    List(Vec<Arc<Node>>),
    Map { entries: Vec<Entry>, seen: HashSet<Box<str>>, key: Option<(Box<str>, Span)> },
}

/// A finished node with its expanded size and depth.
struct Anchored {
    node: Arc<Node>,
    size: usize,
    depth: usize,
}

struct Builder {
    file: Arc<PathBuf>,
    line: usize,
    column: usize,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    root: Option<Arc<Node>>,
    documents: usize,
    nodes: usize,
    aliases: usize,
    problems: Diagnostics,
}

impl Builder {
    fn new(file: Arc<PathBuf>, line: usize, column: usize) -> Self {
        Self {
            file,
            line,
            column,
            stack: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            documents: 0,
            nodes: 0,
            aliases: 0,
            problems: Vec::new(),
        }
    }

    /// Control characters make terminals and editors lie about what the file says.
    fn check_characters(&mut self, text: &str) {
        let (mut line, mut column) = (1, 1);
        for c in text.chars() {
            if c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}') {
                let at = self.place(line, column, 1);
                self.problems.push(
                    Diagnostic::error(
                        "LMB0104",
                        format!("control character U+{:04X} in the file", c as u32),
                    )
                    .at(at)
                    .help("save the file as plain UTF-8 text"),
                );
                return;
            }
            if c == '\n' {
                (line, column) = (line + 1, 1);
            } else {
                column += 1;
            }
        }
    }

    fn place(&self, line: usize, column: usize, length: usize) -> Span {
        let column = if line == 1 { column + self.column - 1 } else { column };
        Span { file: self.file.clone(), line: line + self.line - 1, column, length }
    }

    fn span(&self, start: Marker, end: Marker) -> Span {
        let length = if end.line() == start.line() {
            end.col().saturating_sub(start.col()).max(1)
        } else {
            1
        };
        self.place(start.line(), start.col() + 1, length)
    }

    fn end(&self, end: Marker) -> (usize, usize) {
        let place = self.place(end.line(), end.col() + 1, 1);
        (place.line, place.column)
    }

    fn syntax(&self, error: &granit_parser::ScanError, text: &str) -> Box<Diagnostic> {
        let mark = *error.marker();
        let at = self.span(mark, mark);
        let plain =
            |message: &str, help: &str| Diagnostic::error("LMB0100", message.to_owned()).help(help);
        let tab = || plain("a tab in the indentation", "indent with spaces");
        let problem = match error.kind() {
            ErrorKind::RecursionLimitExceeded => return self.too_deep(at),
            ErrorKind::DirectiveDisallowed => Diagnostic::error("LMB0109", "a `%` directive")
                .help("remove the line: a pipeline is plain YAML 1.2"),
            ErrorKind::UnknownAnchor => plain(
                "an alias without its anchor",
                "write `&name` before the value that `*name` repeats",
            ),
            ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation => tab(),
            ErrorKind::TabInPlainScalar => {
                // The scanner names the start of the scalar that the line would continue.
                let line = tab_after(text, mark.line()).unwrap_or_else(|| mark.line());
                return Box::new(tab().at(self.place(line, 1, 1)));
            }
            ErrorKind::MappingValueNotAllowed => plain(
                "a `:` where no key can stand",
                "one key a line; put a text that holds `: ` in quotes",
            ),
            ErrorKind::UnclosedQuotedScalar => {
                plain("a quote that is never closed", "close it on this line")
            }
            ErrorKind::UnclosedFlowCollection { .. } => plain(
                "a bracket that is never closed",
                "close it: every `[` and `{` needs its partner",
            ),
            _ => Diagnostic::error("LMB0100", format!("not valid YAML: {}", error.info())).help(
                "look at this line and the one before for a missing bracket, quote, colon or blank",
            ),
        };
        Box::new(problem.at(at))
    }

    fn too_deep(&self, at: Span) -> Box<Diagnostic> {
        Box::new(
            Diagnostic::error("LMB0108", format!("nested deeper than {MAX_DEPTH} levels"))
                .at(at)
                .help(format!("a pipeline has at most {MAX_DEPTH} levels of lists and mappings")),
        )
    }

    fn event(&mut self, event: Event<'_>, span: granit_parser::Span) -> Step {
        match event {
            Event::DocumentStart(..) => self.document(span),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), span);
                let value = match style {
                    ScalarStyle::Plain => resolve_plain(&text),
                    _ => Value::Text(text.as_ref().into()),
                };
                let is_plain = matches!(style, ScalarStyle::Plain);
                let node =
                    Node { value, span: self.span(span.start, span.end), end: self.end(span.end) };
                self.count(1, &node.span)?;
                self.add(Anchored { node: Arc::new(node), size: 1, depth: 0 }, anchor, is_plain)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), span);
                self.open(span, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), span);
                self.open(
                    span,
                    anchor,
                    Content::Map { entries: Vec::new(), seen: HashSet::new(), key: None },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(id) => self.alias(id, span),
            _ => Ok(()),
        }
    }

    fn document(&mut self, span: granit_parser::Span) -> Step {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        Err(Box::new(
            Diagnostic::error("LMB0109", "a second document in the file")
                .at(self.span(span.start, span.end))
                .help("one pipeline a file: remove the `---` and what follows"),
        ))
    }

    fn refuse_tag(&mut self, tag: Option<&granit_parser::Tag>, span: granit_parser::Span) {
        let Some(tag) = tag else { return };
        let start = span.tag_start.unwrap_or(span.start);
        let written = shorten(&tag.original());
        let at = self.place(start.line(), start.col() + 1, written.chars().count().max(1));
        self.problems.push(
            Diagnostic::error("LMB0109", format!("a tag `{written}`"))
                .at(at)
                .help("remove it; put a value in quotes to make it text"),
        );
    }

    fn count(&mut self, more: usize, at: &Span) -> Step {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(Box::new(
            Diagnostic::error("LMB0108", format!("more than {MAX_NODES} values, aliases expanded"))
                .at(at.clone())
                .help("a pipeline is settings, not data: put data into a dataset file"),
        ))
    }

    fn open(&mut self, span: granit_parser::Span, anchor: usize, content: Content) -> Step {
        let at = self.span(span.start, span.end);
        self.count(1, &at)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(self.too_deep(at));
        }
        self.stack.push(Frame {
            start: span.start,
            end: span.end,
            anchor,
            size: 1,
            depth: 1,
            content,
        });
        Ok(())
    }

    fn close(&mut self, span: granit_parser::Span) -> Step {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        // A block collection ends where the next token starts: its last child says more.
        let end = if span.end.line() > frame.end.line() && span.end.col() == 0 {
            frame.end
        } else {
            span.end
        };
        let value = match frame.content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, .. } => Value::Map(entries),
        };
        let node = Node { value, span: self.span(frame.start, end), end: self.end(span.end) };
        self.add(
            Anchored { node: Arc::new(node), size: frame.size, depth: frame.depth },
            frame.anchor,
            false,
        )
    }

    fn alias(&mut self, id: usize, span: granit_parser::Span) -> Step {
        let at = self.span(span.start, span.end);
        self.aliases += 1;
        if self.aliases > MAX_ALIASES {
            return Err(Box::new(
                Diagnostic::error("LMB0108", format!("more than {MAX_ALIASES} aliases"))
                    .at(at)
                    .help("a pipeline is settings, not data"),
            ));
        }
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(Box::new(
                Diagnostic::error("LMB0100", "an alias inside the value it repeats")
                    .at(at)
                    .help("a value cannot contain itself"),
            ));
        };
        let copy = Anchored { node: anchored.node.clone(), ..*anchored };
        self.count(copy.size, &at)?;
        if self.stack.len() + copy.depth > MAX_DEPTH {
            return Err(self.too_deep(at));
        }
        if let Some(Frame { content: Content::Map { key: key @ None, .. }, .. }) =
            self.stack.last_mut()
        {
            // Keep the place of the value that follows: a key must still come first.
            *key = Some(("".into(), at.clone()));
            self.problems.push(
                Diagnostic::error("LMB0109", "an alias as a key").at(at).help("write the key out"),
            );
            return Ok(());
        }
        self.add(copy, 0, false)
    }

    /// Puts a finished node into the innermost open collection.
    fn add(&mut self, done: Anchored, anchor: usize, is_plain: bool) -> Step {
        let Anchored { node, size, depth } = &done;
        match self.stack.last_mut() {
            None => self.root = Some(node.clone()),
            Some(frame) => {
                frame.size += size;
                frame.depth = frame.depth.max(depth + 1);
                match &mut frame.content {
                    Content::List(items) => items.push(node.clone()),
                    Content::Map { entries, seen, key } => match key.take() {
                        Some((key, key_span)) => {
                            entries.push(Entry { key, key_span, node: node.clone() })
                        }
                        None => {
                            let (name, problem) = check_key(node, is_plain, seen);
                            *key = Some((name, node.span.clone()));
                            self.problems.extend(problem);
                        }
                    },
                }
            }
        }
        if anchor != 0 {
            self.anchors.insert(anchor, done);
        }
        Ok(())
    }
}

/// The first line from `line` on (both from 1) that is indented with a tab.
fn tab_after(text: &str, line: usize) -> Option<usize> {
    let indented = |l: &str| l.trim_start_matches(' ').starts_with('\t');
    text.lines()
        .enumerate()
        .skip(line.saturating_sub(1))
        .find(|(_, l)| indented(l))
        .map(|(i, _)| i + 1)
}

/// The text of a key and what is wrong with it.
fn check_key(
    node: &Node,
    is_plain: bool,
    seen: &mut HashSet<Box<str>>,
) -> (Box<str>, Option<Diagnostic>) {
    let Value::Text(key) = &node.value else {
        let problem =
            Diagnostic::error("LMB0109", format!("a key must be text, found {}", node.describe()))
                .at(node.span.clone())
                .help(if is_plain { "put it in quotes" } else { "write a name before the colon" });
        return ("".into(), Some(problem));
    };
    let fresh = seen.insert(key.clone());
    let problem = (!fresh).then(|| {
        Diagnostic::error("LMB0107", format!("key `{}` is given twice", shorten(key)))
            .at(node.span.clone())
            .help("keep one of the two")
    });
    (key.clone(), problem)
}
