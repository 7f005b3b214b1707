//! One value as a number, a text or a word: types, ranges, choices.
//!
//! Each function reports what it refuses, with the place and how the value is written.

use super::amount::{self, Amount};
use super::node::{Node, Value, resolve_plain};
use super::reader::Sink;
use crate::diagnostic::{Diagnostic, did_you_mean};

/// `` `a`, `b`, `c` ``, at most 12.
pub(crate) fn listed(names: &[&str]) -> String {
    let mut text = names.iter().take(12).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > 12 {
        text.push_str(", …");
    }
    text
}

/// Allowed numbers.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    low: f64,
    low_open: bool,
    high: f64,
    high_open: bool,
}

impl Bounds {
    /// Any finite number.
    pub const FINITE: Self =
        Self { low: f64::NEG_INFINITY, low_open: true, high: f64::INFINITY, high_open: true };
    /// Above 0.
    pub const POSITIVE: Self = Self { low: 0.0, ..Self::FINITE };
    /// 0 or more.
    pub const NOT_NEGATIVE: Self = Self { low: 0.0, low_open: false, ..Self::FINITE };
    /// `[0, 1)`.
    pub const DECAY: Self = Self { low: 0.0, low_open: false, high: 1.0, high_open: true };

    /// In words: `above 0`, `at least 0 and below 1`.
    pub fn describe(self) -> String {
        let low = match (self.low.is_finite(), self.low_open) {
            (false, _) => None,
            (true, true) => Some(format!("above {}", self.low)),
            (true, false) => Some(format!("at least {}", self.low)),
        };
        let high = match (self.high.is_finite(), self.high_open) {
            (false, _) => None,
            (true, true) => Some(format!("below {}", self.high)),
            (true, false) => Some(format!("at most {}", self.high)),
        };
        match (low, high) {
            (Some(low), Some(high)) => format!("{low} and {high}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "finite".into(),
        }
    }

    fn holds(self, n: f64) -> bool {
        let low = if self.low_open { n > self.low } else { n >= self.low };
        let high = if self.high_open { n < self.high } else { n <= self.high };
        n.is_finite() && low && high
    }
}

/// Reports a value of a wrong type.
pub(crate) fn wrong_type(sink: &Sink, key: &str, wanted: &str, node: &Node) {
    let problem = Diagnostic::error(
        "LMB0103",
        format!("`{key}` must be {wanted}, found {}", node.describe()),
    )
    .at(node.span.clone());
    sink.report(problem.help(how_to_write(wanted, node)));
}

/// How a value of the wanted type is written.
pub(super) fn how_to_write(wanted: &str, node: &Node) -> String {
    let scalar = matches!(node.value, Value::Int(..) | Value::Float(..) | Value::Bool(_));
    let quoted_number = node.text().is_some_and(|t| !matches!(resolve_plain(t), Value::Text(_)));
    match wanted {
        _ if wanted.starts_with("text") && scalar => {
            format!("put it in quotes: \"{}\"", node.describe())
        }
        _ if quoted_number => "write it without quotes".into(),
        "true or false" => {
            "YAML knows `true` and `false`; `yes`, `no`, `on` and `off` are text".into()
        }
        "a mapping" => "write `{key: value, …}`, or indented lines of `key: value`".into(),
        _ if wanted.starts_with("text") => "write one text".into(),
        _ if wanted.starts_with("a list") => {
            "write `[…, …]`, or indented lines that start with `- `".into()
        }
        _ if wanted.starts_with("a whole number") => "write digits only, for example `10`".into(),
        _ => format!("write {wanted}, for example `0.5`, `1e-3` or `1/255`"),
    }
}

/// The text of a node.
pub(crate) fn text_of(sink: &Sink, key: &str, node: &Node) -> Option<String> {
    match node.text() {
        Some("") => {
            sink.report(
                Diagnostic::error("LMB0105", format!("`{key}` must not be empty"))
                    .at(node.span.clone()),
            );
            None
        }
        Some(text) => Some(text.to_owned()),
        None => {
            wrong_type(sink, key, "text", node);
            None
        }
    }
}

/// The number of a node, within bounds. A fraction such as `1/255` is a number.
pub(crate) fn number_of(sink: &Sink, key: &str, node: &Node, bounds: Bounds) -> Option<f64> {
    let number = match &node.value {
        Value::Int(n, _) => *n as f64,
        Value::Float(n, _) => *n,
        Value::Text(text) => match amount::parse(text) {
            Ok(Amount::Number(n)) if text.contains('/') => n,
            _ => {
                wrong_type(sink, key, "a number", node);
                return None;
            }
        },
        _ => {
            wrong_type(sink, key, "a number", node);
            return None;
        }
    };
    if bounds.holds(number) {
        return Some(number);
    }
    sink.report(
        Diagnostic::error(
            "LMB0105",
            format!("`{key}` must be {}, found {}", bounds.describe(), node.describe()),
        )
        .at(node.span.clone())
        .help(format!("allowed: a number {}", bounds.describe())),
    );
    None
}

/// The whole number of a node, at least `low`.
pub(crate) fn count_of(sink: &Sink, key: &str, node: &Node, low: u64) -> Option<u64> {
    let Value::Int(n, _) = &node.value else {
        wrong_type(sink, key, "a whole number", node);
        return None;
    };
    let count = u64::try_from(*n).ok().filter(|n| *n >= low && *n <= i64::MAX as u64);
    if count.is_none() {
        sink.report(
            Diagnostic::error(
                "LMB0105",
                format!("`{key}` must be at least {low}, found {}", node.describe()),
            )
            .at(node.span.clone())
            .help(format!("allowed: a whole number, {low} or more")),
        );
    }
    count
}

/// The word of a node, if it is one of the choices.
pub(crate) fn choice_of<'c, T: Copy>(
    sink: &Sink,
    key: &str,
    node: &Node,
    choices: &[(&'c str, T)],
) -> Option<(&'c str, T)> {
    let found = node.text().and_then(|text| choices.iter().find(|(word, _)| *word == text));
    if found.is_none() {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let problem =
            Diagnostic::error("LMB0106", format!("`{key}` cannot be {}", node.describe()))
                .at(node.span.clone());
        let allowed = listed(&words);
        sink.report(match node.text().and_then(|text| did_you_mean(text, words.iter().copied())) {
            Some(near) => problem.help(format!("did you mean `{near}`? allowed: {allowed}")),
            None => problem.help(format!("allowed: {allowed}")),
        });
    }
    found.copied()
}
