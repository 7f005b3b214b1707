//! A setting's schema in a few words: `number > 0, default 1.0`.

use super::resolve;
use serde_json::Value as Json;

/// Type, range, choices and default of a setting.
pub(super) fn describe(root: &Json, schema: &Json) -> String {
    let target = resolve(root, schema);
    let mut text = kind(root, target);
    text.push_str(&range(target));
    if let Some(default) = schema.get("default").or_else(|| target.get("default")) {
        text.push_str(&format!("{}default {default}", if text.is_empty() { "" } else { ", " }));
    }
    text
}

/// `number`, `one of "a", "b"`, `list of integers`.
fn kind(root: &Json, schema: &Json) -> String {
    if let Some(choices) = choices(root, schema) {
        return format!("one of {}", choices.join(", "));
    }
    match schema.get("type") {
        Some(Json::String(one)) => word(root, one, schema),
        Some(Json::Array(many)) => {
            let names: Vec<String> =
                many.iter().filter_map(Json::as_str).map(|n| word(root, n, schema)).collect();
            names.join(" or ")
        }
        _ => {
            let variants =
                ["anyOf", "oneOf"].iter().find_map(|k| schema.get(*k)).and_then(Json::as_array);
            let words: Vec<String> =
                variants.into_iter().flatten().map(|v| kind(root, resolve(root, v))).collect();
            words.join(" or ")
        }
    }
}

fn word(root: &Json, name: &str, schema: &Json) -> String {
    match name {
        "object" => "mapping".into(),
        "array" => match schema.get("items").map(|items| kind(root, resolve(root, items))) {
            Some(items) if !items.is_empty() => format!("list of {items}s"),
            _ => "list".into(),
        },
        "boolean" => "true or false".into(),
        "string" if schema.get("format").and_then(Json::as_str) == Some("input-path") => {
            "path".into()
        }
        other => other.into(),
    }
}

/// The words of an enumeration, whether written as `enum` or as `oneOf` of `const`s.
pub(super) fn choices(root: &Json, schema: &Json) -> Option<Vec<String>> {
    if let Some(choices) = schema.get("enum").and_then(Json::as_array) {
        return Some(choices.iter().map(plain).collect());
    }
    let variants =
        ["oneOf", "anyOf"].iter().find_map(|k| schema.get(*k)).and_then(Json::as_array)?;
    let mut all = Vec::new();
    for variant in variants {
        let variant = resolve(root, variant);
        match variant.get("const") {
            Some(value) => all.push(plain(value)),
            None => all.extend(variant.get("enum").and_then(Json::as_array)?.iter().map(plain)),
        }
    }
    Some(all)
}

/// A value as one would write it in YAML.
pub(super) fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn range(schema: &Json) -> String {
    let mut parts = Vec::new();
    for (key, sign) in
        [("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<=")]
    {
        if let Some(limit) = schema.get(key) {
            parts.push(format!("{sign} {limit}"));
        }
    }
    if parts.is_empty() { String::new() } else { format!(" {}", parts.join(" and ")) }
}
