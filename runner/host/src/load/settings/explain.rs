//! A schema violation in words, with the place and the remedy.

use super::describe::{choices, describe, plain};
use super::{resolve, token};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::load::catalogue::SettingError;
use crate::load::codes;
use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use serde_json::Value as Json;

/// Appends what one violation says; alternatives (`anyOf`, `oneOf`) are followed into the closest one.
pub(super) fn explain(
    root: &Json,
    plugin: &str,
    error: &ValidationError<'_>,
    out: &mut Vec<SettingError>,
) {
    let pointer = error.instance_path().as_str().to_owned();
    let at = Place { root, plugin, pointer: &pointer, value: error.instance() };
    match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let schema = schema_of(root, error);
            out.extend(unexpected.iter().map(|key| at.unknown_key(schema, key)));
        }
        Kind::Required { property } => {
            out.push(at.missing_key(schema_of(root, error), &plain(property)))
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            let schema = schema_of(root, error);
            match schema.and_then(|s| choices(root, s)) {
                Some(choices) => out.push(at.not_a_choice(&choices)),
                None => closest(root, plugin, &at, schema, context, out),
            }
        }
        _ => out.push(at.bad_value(error, schema_of(root, error))),
    }
}

/// The schema whose keyword was violated.
fn schema_of<'a>(root: &'a Json, error: &ValidationError<'_>) -> Option<&'a Json> {
    let path = error.schema_path().as_str();
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    root.pointer(parent).map(|s| resolve(root, s))
}

/// The alternative that matches best: its violations lie deepest, then there are fewest of them.
fn closest(
    root: &Json,
    plugin: &str,
    at: &Place<'_>,
    schema: Option<&Json>,
    context: &[Vec<ValidationError<'static>>],
    out: &mut Vec<SettingError>,
) {
    let wrong_type = |errors: &[ValidationError<'_>]| {
        errors.iter().any(|e| {
            matches!(e.kind(), Kind::Type { .. }) && e.instance_path().as_str() == at.pointer
        })
    };
    let depth = |errors: &[ValidationError<'_>]| {
        errors.iter().map(|e| e.instance_path().as_str().matches('/').count()).max().unwrap_or(0)
    };
    let best = context
        .iter()
        .filter(|errors| !errors.is_empty() && !wrong_type(errors))
        .min_by_key(|errors| (std::cmp::Reverse(depth(errors)), errors.len()));
    match best {
        Some(errors) => errors.iter().for_each(|e| explain(root, plugin, e, out)),
        None => {
            let wanted = schema.map(|s| describe(root, s)).unwrap_or_default();
            out.push(at.error(
                codes::WRONG_TYPE,
                format!("{} must be {wanted}, found {}", at.name(), at.found()),
            ));
        }
    }
}

struct Place<'a> {
    root: &'a Json,
    plugin: &'a str,
    pointer: &'a str,
    value: &'a Json,
}

impl Place<'_> {
    fn error(&self, code: &'static str, message: String) -> SettingError {
        SettingError {
            pointer: self.pointer.to_owned(),
            at_key: false,
            diagnostic: Diagnostic::error(code, message),
        }
    }

    /// `` `temperature` ``, `` `hidden[2]` ``, `` `with` `` for the whole.
    fn name(&self) -> String {
        let mut name = String::new();
        for part in self.pointer.split('/').skip(1) {
            let part = part.replace("~1", "/").replace("~0", "~");
            match part.parse::<usize>() {
                Ok(index) => name.push_str(&format!("[{index}]")),
                Err(_) if name.is_empty() => name = part,
                Err(_) => name.push_str(&format!(".{part}")),
            }
        }
        if name.is_empty() { "`with`".into() } else { format!("`{name}`") }
    }

    /// The mapping that this place is.
    fn inside(&self) -> String {
        match self.name().as_str() {
            "`with`" => format!("`with` of `{}`", self.plugin),
            name => format!("{name} of `{}`", self.plugin),
        }
    }

    fn found(&self) -> String {
        let text = self.value.to_string();
        match text.char_indices().nth(60) {
            Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
            None => text,
        }
    }

    fn unknown_key(&self, schema: Option<&Json>, key: &str) -> SettingError {
        let known = schema.and_then(|s| s.get("properties")).and_then(Json::as_object);
        let mut diagnostic = Diagnostic::error(
            codes::UNKNOWN_KEY,
            format!("unknown key `{key}` in {}", self.inside()),
        );
        if let Some(known) = known {
            let close = did_you_mean(key, known.keys().map(String::as_str));
            let help = match close.and_then(|name| Some((name, known.get(name)?))) {
                Some((name, schema)) => {
                    format!("did you mean `{name}`? ({})", describe(self.root, schema))
                }
                None if known.is_empty() => "it has no settings".to_owned(),
                None => {
                    let names: Vec<String> = known.keys().map(|k| format!("`{k}`")).collect();
                    format!("known keys: {}", names.join(", "))
                }
            };
            diagnostic = diagnostic.help(help);
        }
        SettingError {
            pointer: format!("{}/{}", self.pointer, token(key)),
            at_key: true,
            diagnostic,
        }
    }

    fn missing_key(&self, schema: Option<&Json>, key: &str) -> SettingError {
        let mut error =
            self.error(codes::MISSING_KEY, format!("missing key `{key}` in {}", self.inside()));
        let property = schema.and_then(|s| s.get("properties")?.get(key));
        if let Some(property) = property {
            error.diagnostic =
                error.diagnostic.help(format!("`{key}`: {}", describe(self.root, property)));
        }
        error
    }

    fn not_a_choice(&self, choices: &[String]) -> SettingError {
        let quoted: Vec<String> = choices.iter().map(|c| format!("`{c}`")).collect();
        let message =
            format!("{} must be one of {}, found {}", self.name(), quoted.join(", "), self.found());
        let mut error = self.error(codes::NOT_A_CHOICE, message);
        let close =
            self.value.as_str().and_then(|v| did_you_mean(v, choices.iter().map(String::as_str)));
        if let Some(close) = close {
            error.diagnostic = error.diagnostic.help(format!("did you mean `{close}`?"));
        }
        error
    }

    fn bad_value(&self, error: &ValidationError<'_>, schema: Option<&Json>) -> SettingError {
        let (name, found) = (self.name(), self.found());
        let range =
            |words: String| (codes::OUT_OF_RANGE, format!("{name} must {words}, found {found}"));
        let (code, message) = match error.kind() {
            Kind::Type { kind } => {
                (codes::WRONG_TYPE, format!("{name} must be {}, found {found}", types(kind)))
            }
            Kind::ExclusiveMinimum { limit } => range(format!("be above {limit}")),
            Kind::Minimum { limit } => range(format!("be at least {limit}")),
            Kind::ExclusiveMaximum { limit } => range(format!("be below {limit}")),
            Kind::Maximum { limit } => range(format!("be at most {limit}")),
            Kind::MinItems { limit } => range(format!("have at least {limit} entries")),
            Kind::MaxItems { limit } => range(format!("have at most {limit} entries")),
            Kind::MinLength { limit } => range(format!("have at least {limit} characters")),
            Kind::MaxLength { limit } => range(format!("have at most {limit} characters")),
            Kind::MultipleOf { multiple_of } => range(format!("be a multiple of {multiple_of}")),
            Kind::Constant { expected_value } => (
                codes::NOT_A_CHOICE,
                format!("{name} must be `{}`, found {found}", plain(expected_value)),
            ),
            Kind::Enum { options } => {
                let options = options.as_array().map(|o| o.iter().map(plain).collect::<Vec<_>>());
                return self.not_a_choice(&options.unwrap_or_default());
            }
            _ => (codes::SETTING_REFUSED, format!("{name}: {error}")),
        };
        let mut setting = self.error(code, message);
        let wanted = schema.map(|s| describe(self.root, s)).unwrap_or_default();
        if !wanted.is_empty() && !self.pointer.is_empty() {
            setting.diagnostic = setting.diagnostic.help(format!("{name}: {wanted}"));
        }
        setting
    }
}

fn types(kind: &TypeKind) -> String {
    let word = |t: String| match t.as_str() {
        "object" => "a mapping".to_owned(),
        "array" => "a list".to_owned(),
        "boolean" => "true or false".to_owned(),
        "integer" => "an integer".to_owned(),
        _ => format!("a {t}"),
    };
    match kind {
        TypeKind::Single(one) => word(one.to_string()),
        TypeKind::Multiple(many) => many
            .iter()
            .map(|t| word(t.to_string()))
            .filter(|t| t != "a null")
            .collect::<Vec<_>>()
            .join(" or "),
    }
}
