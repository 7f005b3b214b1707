//! Problems as text with the line of the file, and as JSON.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Snippet};
use limbeck_host::diagnostic::{Diagnostic, Span};

/// Longest line that is shown; longer ones (JSON in one line) give the place alone.
const MAX_LINE: usize = 400;

/// A problem as people read it.
pub fn text(problem: &Diagnostic, color: bool) -> String {
    let level = if problem.is_error() { Level::ERROR } else { Level::WARNING };
    let source = problem.span.as_ref().and_then(source_line);
    let path = problem.span.as_ref().map(|s| s.file.display().to_string()).unwrap_or_default();
    let mut group = Group::with_title(level.primary_title(&problem.message).id(problem.code));
    group = match (&problem.span, &source) {
        (Some(span), Some(line)) => group.element(
            Snippet::source(line.as_str())
                .line_start(span.line)
                .path(path.as_str())
                .annotation(AnnotationKind::Primary.span(underline(line, span))),
        ),
        (Some(span), None) => {
            group.element(Origin::path(path.as_str()).line(span.line).char_column(span.column))
        }
        (None, _) => group,
    };
    let place = problem.context.as_ref().filter(|_| problem.span.is_none());
    group = group.elements(place.map(|c| Level::NOTE.message(format!("in {c}"))));
    group = group.elements(problem.notes.iter().map(|n| Level::NOTE.message(n.as_str())));
    group = group.elements(problem.help.as_ref().map(|h| Level::HELP.message(h.as_str())));
    let base = if color {
        annotate_snippets::Renderer::styled()
    } else {
        annotate_snippets::Renderer::plain()
    };
    let rendered = base.decor_style(DecorStyle::Ascii).render(&[group]);
    match &problem.context {
        Some(context) if problem.span.is_some() => after_place(&rendered, context),
        _ => rendered,
    }
}

/// Puts the words after the line with `-->`.
fn after_place(rendered: &str, context: &str) -> String {
    let mut lines: Vec<String> = rendered.lines().map(str::to_owned).collect();
    if let Some(line) = lines.iter_mut().find(|l| l.contains("-->")) {
        line.push_str("   ");
        line.push_str(context);
    }
    lines.join("\n")
}

/// The line of the file that the span is in, if it can be read and shown.
fn source_line(span: &Span) -> Option<String> {
    let bytes = std::fs::read(span.file.as_path()).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.split('\n').nth(span.line.checked_sub(1)?)?.trim_end_matches('\r');
    (line.len() <= MAX_LINE).then(|| line.to_owned())
}

/// Bytes of the span within its line, at least one where the line has any.
fn underline(line: &str, span: &Span) -> std::ops::Range<usize> {
    let byte = |column: usize| line.char_indices().nth(column).map_or(line.len(), |(at, _)| at);
    let first = span.column.saturating_sub(1);
    let start = byte(first);
    start..byte(first.saturating_add(span.length.max(1))).max(start)
}

/// A problem for programs: the same fields.
pub fn json(problem: &Diagnostic) -> serde_json::Value {
    let mut value = serde_json::to_value(problem).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("type".into(), "diagnostic".into());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn in_file(
        folder: &std::path::Path,
        text: &str,
        line: usize,
        column: usize,
        length: usize,
    ) -> Span {
        let file = folder.join("p.yaml");
        std::fs::write(&file, text).unwrap();
        Span { file: Arc::new(file), line, column, length }
    }

    #[test]
    fn message_has_code_place_line_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let source = "loss:\n  - {uses: limbeck.kl, with: {temprature: 4.0}}\n";
        let problem =
            Diagnostic::error("LMB0101", "unknown key `temprature` in `with` of `limbeck.kl`")
                .at(in_file(folder.path(), source, 2, 31, 10))
                .within("stage `distill`, term `kl`")
                .help("did you mean `temperature`? (number > 0, default 1.0)");
        let shown = text(&problem, false).replace(&folder.path().display().to_string(), "DIR");
        insta::assert_snapshot!(shown, @r"
        error[LMB0101]: unknown key `temprature` in `with` of `limbeck.kl`
         --> DIR/p.yaml:2:31   stage `distill`, term `kl`
          |
        2 |   - {uses: limbeck.kl, with: {temprature: 4.0}}
          |                               ^^^^^^^^^^
          |
          = help: did you mean `temperature`? (number > 0, default 1.0)
        ");
    }

    #[test]
    fn columns_count_characters_and_spans_past_the_end_are_shown_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let umlauts = in_file(folder.path(), "ä: ö: x\n", 1, 4, 1);
        assert!(text(&Diagnostic::error("LMB0101", "m").at(umlauts), false).contains("p.yaml:1:4"));
        for (line, column, length) in [(1, 99, 5), (1, 7, 99), (9, 1, 1), (0, 0, 0)] {
            let span = in_file(folder.path(), "a: b\n", line, column, length);
            assert!(text(&Diagnostic::error("LMB0101", "m").at(span), false).contains("LMB0101"));
        }
    }

    #[test]
    fn problem_without_a_place_keeps_its_context() {
        let problem = Diagnostic::warning("LMB0601", "non-finite gradient")
            .within("stage `a`")
            .note("term kl = inf");
        insta::assert_snapshot!(text(&problem, false), @r"
        warning[LMB0601]: non-finite gradient
         |
         = note: in stage `a`
         = note: term kl = inf
        ");
    }
}
