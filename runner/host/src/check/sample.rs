//! Settings out of a JSON Schema: a small valid sample, random valid ones, and damaged texts.
//!
//! Knows the parts of JSON Schema that plugins use: types, bounds, enums, defaults, references, `oneOf`. Where it
//! guesses wrong, the schema itself is asked afterwards, so a wrong guess costs a sample, not a false alarm.

use crate::run::random::Random;
use serde_json::{Map, Value, json};

/// Follows `$ref` inside the document.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
    target.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

/// Defaults everywhere, the smallest value where one is required and has no default.
pub fn minimal(schema: &Value) -> Value {
    value(schema, schema, None, 0)
}

/// A valid-looking value with random optional settings.
pub fn random(schema: &Value, draw: &mut Random) -> Value {
    value(schema, schema, Some(draw), 0)
}

fn pick<'a>(items: &'a [Value], draw: Option<&mut Random>) -> Option<&'a Value> {
    let index = draw.map_or(0, |d| d.below(items.len() as u64) as usize);
    items.get(index)
}

fn value(schema: &Value, root: &Value, mut draw: Option<&mut Random>, depth: usize) -> Value {
    let node = resolve(schema, root);
    if draw.is_none()
        && let Some(default) = schema.get("default").or_else(|| node.get("default"))
    {
        return default.clone();
    }
    if let Some(constant) = node.get("const") {
        return constant.clone();
    }
    for key in ["enum", "examples"] {
        if let Some(found) =
            node.get(key).and_then(Value::as_array).and_then(|a| pick(a, draw.as_deref_mut()))
        {
            return found.clone();
        }
    }
    for key in ["oneOf", "anyOf"] {
        let options = node.get(key).and_then(Value::as_array);
        if let Some(option) = options.and_then(|a| pick(a, draw.as_deref_mut())) {
            return if depth > 8 { Value::Null } else { value(option, root, draw, depth + 1) };
        }
    }
    if let Some(first) = node.get("allOf").and_then(Value::as_array).and_then(|a| a.first()) {
        return value(first, root, draw, depth + 1);
    }
    let kind = match node.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str).unwrap_or("null"),
        _ if node.get("properties").is_some() => "object",
        _ => "null",
    };
    match kind {
        "boolean" => json!(draw.is_some_and(|d| d.below(2) == 1)),
        "integer" => integer(node, draw),
        "number" => number(node, draw),
        "string" => json!("x"),
        "array" => array(node, root, draw, depth),
        "object" => object(node, root, draw, depth),
        _ => Value::Null,
    }
}

fn bound(node: &Value, inclusive: &str, exclusive: &str) -> Option<(f64, bool)> {
    let get = |key: &str| node.get(key).and_then(Value::as_f64);
    get(exclusive).map(|v| (v, true)).or_else(|| get(inclusive).map(|v| (v, false)))
}

/// A whole number in the bounds, small and above 1 where they allow it.
fn integer(node: &Value, draw: Option<&mut Random>) -> Value {
    let low =
        bound(node, "minimum", "exclusiveMinimum").map(|(v, open)| v as i64 + i64::from(open));
    let high =
        bound(node, "maximum", "exclusiveMaximum").map(|(v, open)| v as i64 - i64::from(open));
    let usual = 4.max(low.unwrap_or(4)).min(high.unwrap_or(i64::MAX));
    let value = draw.map_or(usual, |d| {
        let low = low.unwrap_or(0);
        let span = high.unwrap_or(low.saturating_add(8)).saturating_sub(low).clamp(0, 8);
        low + d.below(span as u64 + 1) as i64
    });
    json!(value)
}

/// A number in the bounds.
fn number(node: &Value, draw: Option<&mut Random>) -> Value {
    let low = bound(node, "minimum", "exclusiveMinimum");
    let high = bound(node, "maximum", "exclusiveMaximum");
    let part = draw.map_or(0.5, |d| 0.05 + 0.9 * d.uniform());
    let value = match (low, high) {
        (Some((low, _)), Some((high, _))) => low + (high - low) * part,
        (Some((low, _)), None) => low + 2.0 * part,
        (None, Some((high, _))) => high - 2.0 * part,
        (None, None) => 2.0 * part,
    };
    json!(value)
}

fn array(node: &Value, root: &Value, mut draw: Option<&mut Random>, depth: usize) -> Value {
    let least = node.get("minItems").and_then(Value::as_u64).unwrap_or(0);
    let more = draw.as_deref_mut().map_or(0, |d| d.below(3));
    let most = node.get("maxItems").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let count = (least + more).min(most).min(8);
    let fixed = node.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let nothing = Value::Null;
    let items = node.get("items").unwrap_or(&nothing);
    let count = if depth > 8 { 0 } else { count.max(fixed.len() as u64) };
    (0..count as usize)
        .map(|i| value(fixed.get(i).unwrap_or(items), root, draw.as_deref_mut(), depth + 1))
        .collect()
}

fn object(node: &Value, root: &Value, mut draw: Option<&mut Random>, depth: usize) -> Value {
    let mut out = Map::new();
    let Some(properties) = node.get("properties").and_then(Value::as_object) else {
        return Value::Object(out);
    };
    let required = node.get("required").and_then(Value::as_array);
    for (name, property) in properties {
        let is_required = required.is_some_and(|r| r.iter().any(|n| n == name));
        let has_default = property.get("default").is_some();
        let drawn = draw.as_deref_mut().is_some_and(|d| d.below(2) == 1);
        if is_required || drawn {
            out.insert(name.clone(), value(property, root, draw.as_deref_mut(), depth + 1));
        } else if has_default {
            out.insert(name.clone(), value(property, root, None, depth + 1));
        }
    }
    Value::Object(out)
}

/// A damaged copy of a text: bytes flipped, cut, repeated, or replaced by awkward pieces. Always UTF-8 (R6).
pub fn mutate(text: &str, draw: &mut Random) -> String {
    const PIECES: &[&str] = &[
        "",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        "\\u0000",
        "\u{0}",
        "null",
        "-1",
        "1e999",
        "-0.0",
        "NaN",
        "0",
        "[[[[[[[[",
        "\u{1F600}",
        "{\"a\":1,\"a\":2}",
        "99999999999999999999",
        "true",
        "\"\\ud800\"",
        ",",
        ":",
    ];
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=draw.below(3) {
        let at = draw.below(bytes.len() as u64 + 1) as usize;
        let to = at + draw.below((bytes.len() - at) as u64 + 1).min(12) as usize;
        match draw.below(4) {
            0 => {
                let piece = PIECES[draw.below(PIECES.len() as u64) as usize];
                bytes.splice(at..to, piece.bytes());
            }
            1 => bytes.truncate(at),
            2 => {
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << draw.below(7);
                }
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object", "additionalProperties": false, "required": ["inputs", "mode", "nested"],
            "properties": {
                "inputs": {"type": "integer", "minimum": 1},
                "rate": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.25},
                "mode": {"enum": ["a", "b"]},
                "nested": {"$ref": "#/$defs/nested"},
                "list": {"type": "array", "items": {"type": "integer", "minimum": 2, "maximum": 3}}
            },
            "$defs": {"nested": {"type": "object", "properties": {"x": {"type": ["string", "null"], "default": null}}}}
        })
    }

    #[test]
    fn samples_are_valid_against_their_schema() {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        assert!(validator.is_valid(&minimal(&schema())), "{}", minimal(&schema()));
        let mut draw = Random::new([1, 2]);
        for _ in 0..200 {
            let sample = random(&schema(), &mut draw);
            assert!(validator.is_valid(&sample), "{sample}");
        }
    }

    #[test]
    fn damage_is_repeatable_and_real() {
        let text = minimal(&schema()).to_string();
        let damaged = |seed| mutate(&text, &mut Random::new([seed, 0]));
        assert_eq!(damaged(5), damaged(5));
        assert!((0..50).filter(|s| damaged(*s) != text).count() > 40);
    }
}
