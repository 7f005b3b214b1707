//! The only code that prints. Answers go to stdout, all else to stderr; with `--json`, an object a line on both.
//!
//! A reader that goes away (`limbeck schema | head`) is not an error: output stops, the work goes on.

pub mod calls;
pub mod diagnostic;
pub mod events;
pub mod matrix;
pub mod table;

use crate::args::{Color, Global, Progress};
use indicatif::MultiProgress;
use limbeck_host::diagnostic::Diagnostic;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;

/// Bars on stderr; everything else that writes there goes through [`stderr`], so that lines do not cut bars.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// How this process prints.
#[derive(Clone, Copy, Debug)]
pub struct Renderer {
    json: bool,
    quiet: bool,
    stdout_color: bool,
    stderr_color: bool,
    progress: Progress,
}

/// Resolves `auto`: a terminal that shows color, and no NO_COLOR.
fn color(choice: Color, terminal: bool) -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && !forbidden && !dumb,
    }
}

impl Renderer {
    /// As the flags and the terminal say.
    pub fn new(global: &Global) -> Self {
        let progress = match global.progress {
            Progress::Auto if global.quiet || global.json => Progress::None,
            Progress::Auto if std::io::stderr().is_terminal() => Progress::Bar,
            Progress::Auto => Progress::Plain,
            asked => asked,
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            stdout_color: color(global.color, std::io::stdout().is_terminal()),
            stderr_color: color(global.color, std::io::stderr().is_terminal()),
            progress,
        }
    }

    /// Whether answers are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether stderr takes color.
    pub fn colors_stderr(&self) -> bool {
        self.stderr_color
    }

    /// An answer: the text, or with `--json` the value on one line.
    pub fn answer(&self, text: &str, value: &serde_json::Value) {
        if self.json { stdout(&value.to_string()) } else { stdout(text) }
    }

    /// An answer that has one form only: a schema, a completion script.
    pub fn document(&self, text: &str) {
        stdout(text);
    }

    /// Problems, sorted by place.
    pub fn problems(&self, problems: &[Diagnostic]) {
        for problem in problems.iter().filter(|p| p.is_error() || !self.quiet) {
            if self.json {
                stderr(&diagnostic::json(problem).to_string());
            } else {
                stderr(&diagnostic::text(problem, self.stderr_color));
            }
        }
    }

    /// One problem.
    pub fn problem(&self, problem: &Diagnostic) {
        self.problems(std::slice::from_ref(problem));
    }

    /// A word to people; nothing with `-q` or `--json`.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            stderr(text);
        }
    }

    /// A line on stderr whatever the flags: one process talking to another.
    pub fn always(&self, text: &str) {
        stderr(text);
    }

    /// `ok`, `FAIL` and their like, in their color on stdout.
    pub fn mark(&self, word: &str) -> String {
        use anstyle::{AnsiColor, Style};
        let color = match word.trim() {
            "ok" | "pass" => AnsiColor::Green,
            "warn" | "skip" => AnsiColor::Yellow,
            _ => AnsiColor::Red,
        };
        if !self.stdout_color {
            return word.to_owned();
        }
        let style = Style::new().fg_color(Some(color.into()));
        format!("{style}{word}{style:#}")
    }
}

/// A line on stdout. A closed pipe is no error (see above), and a full disk shows in the exit of the shell's writer.
fn stdout(text: &str) {
    let print = || {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", text.trim_end_matches('\n'));
        let _ = out.flush();
    };
    match BARS.get() {
        Some(bars) => bars.suspend(print),
        None => print(),
    }
}

/// A line on stderr.
/// A line on stderr.
pub fn stderr(text: &str) {
    stderr_bytes(format!("{}\n", text.trim_end_matches('\n')).as_bytes());
}

fn stderr_bytes(bytes: &[u8]) {
    let print = || {
        let _ = std::io::stderr().lock().write_all(bytes);
    };
    match BARS.get() {
        Some(bars) => bars.suspend(print),
        None => print(),
    }
}

/// Bars of this process.
fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

/// Log records to stderr, one write each.
pub struct StderrWriter;

/// For `tracing_subscriber`.
pub fn stderr_writer() -> StderrWriter {
    StderrWriter
}

impl Write for StderrWriter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        stderr_bytes(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the panic hook says.
pub fn crash(text: &str, place: &str, report: Option<&Path>) {
    let _ = writeln!(std::io::stderr(), "error[LMB0901]: limbeck has a bug: {text} ({place})");
    let _ = match report {
        Some(file) => {
            writeln!(std::io::stderr(), "   = help: please report it with {}", file.display())
        }
        None => writeln!(std::io::stderr(), "   = help: please report it with the command line"),
    };
}
