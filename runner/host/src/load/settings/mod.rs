//! A plugin's `with` against its JSON Schema: what is wrong and where, defaults filled in, input paths resolved.
//!
//! Knows JSON, not YAML: places are JSON Pointers, mapped to lines by the caller. Reports every problem.

mod complete;
mod describe;
mod explain;
#[cfg(test)]
mod tests;

use super::catalogue::SettingError;
use jsonschema::Validator;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// A compiled schema.
pub(crate) struct Schema {
    root: Json,
    validator: Validator,
}

impl Schema {
    /// Compiles a JSON Schema 2020-12; nothing is fetched from anywhere.
    pub fn new(root: Json) -> Result<Self, String> {
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .should_ignore_unknown_formats(true)
            .build(&root)
            .map_err(|e| e.to_string())?;
        Ok(Self { root, validator })
    }

    /// Checks settings, fills in defaults, resolves strings of format `input-path` against `base` (left alone
    /// without one).
    pub fn check(
        &self,
        plugin: &str,
        with: &Json,
        base: Option<&Path>,
    ) -> Result<Json, Vec<SettingError>> {
        let mut problems = Vec::new();
        for error in self.validator.iter_errors(with) {
            explain::explain(&self.root, plugin, &error, &mut problems);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut settings = with.clone();
        complete::complete(&self.root, &mut settings, base, &mut problems);
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }
}

impl Schema {
    /// Inputs that complete settings name: as written and as found. What is not there is left out.
    pub fn inputs(&self, with: &Json, base: &Path) -> Vec<(String, PathBuf)> {
        let mut settings = with.clone();
        let mut found = Vec::new();
        complete::inputs(&self.root, &mut settings, base, &mut found);
        found
    }
}

/// Follows `$ref` inside the document; the schema itself if there is none.
fn resolve<'a>(root: &'a Json, mut schema: &'a Json) -> &'a Json {
    for _ in 0..16 {
        let Some(reference) = schema.get("$ref").and_then(Json::as_str) else { break };
        let Some(target) = reference.strip_prefix('#').and_then(|p| root.pointer(p)) else { break };
        schema = target;
    }
    schema
}

/// Escapes a key for a JSON Pointer.
fn token(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
