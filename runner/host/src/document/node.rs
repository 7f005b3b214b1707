//! A YAML value with the place where it was written.
//!
//! Knows YAML 1.2's core schema (`no` and `017` are text, `1e-4` is a number), not pipelines. Every node has a span;
//! nodes reached through an alias keep the place of their anchor.

use crate::diagnostic::Span;
use serde_json::{Map, Value as Json};
use std::sync::Arc;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it is written.
    pub span: Span,
    /// Line and column just after it.
    pub end: (usize, usize),
}

/// What a node holds.
#[derive(Clone, Debug)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number that fits `i64` or `u64`, with its spelling.
    Int(i128, Box<str>),
    /// Any other number, `.inf` and `.nan` too, with its spelling.
    Float(f64, Box<str>),
    /// Text.
    Text(Box<str>),
    /// A list.
    List(Vec<Arc<Node>>),
    /// A mapping in the order it was written.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Key.
    pub key: Box<str>,
    /// Place of the key.
    pub key_span: Span,
    /// Value.
    pub node: Arc<Node>,
}

impl Node {
    /// The entries of a mapping, else none.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list, else none.
    pub fn items(&self) -> &[Arc<Self>] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The value of `key` in a mapping.
    pub fn get(&self, key: &str) -> Option<&Arc<Self>> {
        self.entries().iter().find(|e| &*e.key == key).map(|e| &e.node)
    }

    /// The text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is `null` or empty.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The value in words for a message: ``text `abc` ``, `number 3`, `a list`.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(_, raw) | Value::Float(_, raw) => raw.to_string(),
            Value::Text(text) => format!("`{}`", shorten(text)),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }

    /// As JSON. Numbers that JSON cannot hold are given to `refuse` and become `null`.
    pub fn to_json(&self, refuse: &mut dyn FnMut(&Self)) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n, _) => i64::try_from(*n)
                .map(Json::from)
                .or_else(|_| u64::try_from(*n).map(Json::from))
                .unwrap_or(Json::Null),
            Value::Float(n, _) => {
                if !n.is_finite() {
                    refuse(self);
                }
                Json::from(*n)
            }
            Value::Text(text) => Json::from(&**text),
            Value::List(items) => items.iter().map(|n| n.to_json(refuse)).collect(),
            Value::Map(entries) => Json::Object(
                entries
                    .iter()
                    .map(|e| (e.key.to_string(), e.node.to_json(refuse)))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// At most 60 characters of a text, on one line, for messages.
pub(crate) fn shorten(text: &str) -> String {
    let mut line: String =
        text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        line.push('…');
    }
    line
}

/// The value of a plain (unquoted) scalar.
pub(crate) fn resolve_plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Some(n) = integer(text) {
        let fits = i64::try_from(n).is_ok() || u64::try_from(n).is_ok();
        return if fits { Value::Int(n, text.into()) } else { Value::Float(n as f64, text.into()) };
    }
    float(text).map_or_else(|| Value::Text(text.into()), |n| Value::Float(n, text.into()))
}

fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        _ => (10, digits),
    };
    let leading_zero = radix == 10 && digits.len() > 1 && digits.starts_with('0');
    if leading_zero || !digits.chars().all(|c| c.is_ascii_alphanumeric()) {
        return None;
    }
    let n = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -n } else { n })
}

fn float(text: &str) -> Option<f64> {
    match text.trim_start_matches(['+', '-']) {
        ".inf" | ".Inf" | ".INF" => {
            return Some(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
        }
        ".nan" | ".NaN" | ".NAN" if !text.starts_with(['+', '-']) => return Some(f64::NAN),
        _ => {}
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    let leading_zeros =
        digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    if !numeric || leading_zeros {
        return None;
    }
    text.parse::<f64>().ok().filter(|n| n.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document as the YAML organization's own crate reads it.
    fn other_reader(text: &str) -> Json {
        let value: serde_yaml::Value = serde_yaml::from_str(text).expect("valid YAML");
        serde_json::to_value(value).expect("JSON")
    }

    #[test]
    fn plain_scalars_are_read_as_the_other_yaml_crate_reads_them() {
        let samples = [
            "no",
            "017",
            "0",
            "-0",
            "00",
            "08",
            "1e-4",
            "1E3",
            "1.",
            ".5",
            "+3",
            "-17",
            "0x1F",
            "0o17",
            "0b101",
            "-0x10",
            "1_000",
            "~",
            "null",
            "Null",
            "nil",
            "true",
            "TRUE",
            "yes",
            "on",
            "12:30",
            "1.2.3",
            "e5",
            "0x",
            "18446744073709551615",
            "-9223372036854775808",
            "1e999",
            "inf",
            "nan",
            "+-3",
            "--3",
            "5e",
            "0.0625",
            "3e-3",
            "2026-01-01",
            "1/255",
            "6%",
            "500 steps",
        ];
        for sample in samples {
            let ours = Node {
                value: resolve_plain(sample),
                span: Span { file: Arc::default(), line: 1, column: 1, length: 1 },
                end: (1, 1),
            };
            let ours = ours.to_json(&mut |_| {});
            let theirs = other_reader(&format!("- {sample}"))[0].clone();
            match (ours.as_f64(), theirs.as_f64()) {
                (Some(a), Some(b)) => assert_eq!(a.to_bits() << 1, b.to_bits() << 1, "{sample}"),
                _ => assert_eq!(ours, theirs, "{sample}"),
            }
        }
    }

    #[test]
    fn infinity_and_nan_are_numbers_but_no_json() {
        for sample in [".inf", "-.inf", ".nan"] {
            let Value::Float(n, _) = resolve_plain(sample) else { panic!("{sample}") };
            assert!(!n.is_finite());
        }
        assert!(matches!(resolve_plain("-.nan"), Value::Text(_)));
    }
}
