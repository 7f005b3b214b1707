//! Settings: JSON Schema out, typed value in, with a JSON Pointer for what is wrong.
//!
//! The schema is closed: an unknown key is an error, whatever the author wrote on the struct.

use crate::{Error, Result};
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What stands under `with` in the pipeline: any struct that derives `Deserialize` and `JsonSchema`.
pub trait Settings: DeserializeOwned + schemars::JsonSchema + Send + 'static {}
impl<T: DeserializeOwned + schemars::JsonSchema + Send + 'static> Settings for T {}

/// For plugins without settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// The closed JSON Schema (2020-12) of `T`, without references unless the type is recursive.
pub fn schema<T: Settings>() -> String {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    close(&mut schema);
    schema.to_string()
}

/// Adds `additionalProperties: false` to every object schema that says nothing about other keys.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let is_object =
                map.get("type").is_some_and(|t| t == "object") || map.contains_key("properties");
            if is_object && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".into(), Value::Bool(false));
            }
            for (key, value) in map.iter_mut() {
                // Values of users, not schemas.
                if !matches!(key.as_str(), "default" | "const" | "enum" | "examples") {
                    close(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Reads settings.
///
/// # Errors
/// INVALID_CONFIG with a note `pointer`.
pub fn parse<T: Settings>(json: &str) -> Result<T> {
    let json = if json.trim().is_empty() { "{}" } else { json };
    let mut reader = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer = pointer(error.path());
        let text = error.into_inner().to_string();
        // serde_json adds a place in a text that the user never saw.
        let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Error::config(pointer, message)
    })?;
    reader.end().map_err(|error| Error::config("", error.to_string()))?;
    Ok(value)
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut out = String::new();
    for segment in path {
        let text = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.replace('~', "~0").replace('/', "~1"),
            Segment::Unknown => continue,
        };
        out.push('/');
        out.push_str(&text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> f64 {
        4.0
    }
    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    struct Inner {
        /// Layers.
        #[serde(default)]
        layers: Vec<u32>,
    }
    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    struct Config {
        #[serde(default = "four")]
        temperature: f64,
        inner: Option<Inner>,
    }

    #[test]
    fn the_schema_is_closed_at_every_level_and_has_defaults() {
        let schema: Value = serde_json::from_str(&schema::<Config>()).unwrap();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["temperature"]["default"], 4.0);
        assert!(
            schema.to_string().matches("\"additionalProperties\":false").count() == 2,
            "{schema}"
        );
        assert!(!schema.to_string().contains("$ref"), "{schema}");
        let empty: Value = serde_json::from_str(&super::schema::<NoSettings>()).unwrap();
        assert_eq!(empty["additionalProperties"], false);
    }

    #[test]
    fn a_wrong_element_is_reported_by_its_pointer() {
        let error = parse::<Config>(r#"{"inner": {"layers": [1, 2, "x"]}}"#).unwrap_err();
        assert_eq!(error.status(), limbeck_abi::STATUS_INVALID_CONFIG);
        assert_eq!(error.find_note("pointer"), Some("/inner/layers/2"));
        assert!(!error.message().contains("line"), "{error}");
        let good = parse::<Config>("").unwrap();
        assert_eq!((good.temperature, good.inner.is_none()), (4.0, true));
        assert!(parse::<Inner>(r#"{"layers": [1]}"#).unwrap().layers == [1]);
    }
}
