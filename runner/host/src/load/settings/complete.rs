//! Fills in defaults and resolves input paths, walking schema and settings side by side.
//!
//! The settings are valid already. A path that does not exist is an error; nothing is fetched.

use super::{resolve, token};
use crate::diagnostic::Diagnostic;
use crate::load::catalogue::SettingError;
use crate::load::codes;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// Completes `settings` in place.
pub(super) fn complete(
    root: &Json,
    settings: &mut Json,
    base: Option<&Path>,
    problems: &mut Vec<SettingError>,
) {
    let mut walk = Walk { root, base, problems, inputs: &mut Vec::new() };
    walk.value(root, settings, String::new(), 0);
}

/// Completes `settings` and gathers the inputs that exist: as written and as found.
pub(super) fn inputs(
    root: &Json,
    settings: &mut Json,
    base: &Path,
    inputs: &mut Vec<(String, PathBuf)>,
) {
    let mut walk = Walk { root, base: Some(base), problems: &mut Vec::new(), inputs };
    walk.value(root, settings, String::new(), 0);
}

struct Walk<'a> {
    root: &'a Json,
    base: Option<&'a Path>,
    problems: &'a mut Vec<SettingError>,
    inputs: &'a mut Vec<(String, PathBuf)>,
}

impl<'a> Walk<'a> {
    fn value(&mut self, schema: &'a Json, value: &mut Json, pointer: String, depth: usize) {
        // A schema may refer to itself; settings are finite, but a default could feed the recursion.
        if depth > 64 {
            return;
        }
        let schema = resolve(self.root, schema);
        for part in schema.get("allOf").and_then(Json::as_array).into_iter().flatten() {
            self.value(part, value, pointer.clone(), depth + 1);
        }
        let variants =
            ["anyOf", "oneOf"].iter().find_map(|k| schema.get(*k)).and_then(Json::as_array);
        if let Some(variant) = variants.into_iter().flatten().find(|v| matches(self.root, v, value))
        {
            self.value(variant, value, pointer.clone(), depth + 1);
        }
        match value {
            Json::Object(_) => self.object(schema, value, &pointer, depth),
            Json::Array(list) => {
                let prefix = schema.get("prefixItems").and_then(Json::as_array);
                for (i, item) in list.iter_mut().enumerate() {
                    let own = prefix.and_then(|p| p.get(i)).or_else(|| schema.get("items"));
                    if let Some(own) = own {
                        self.value(own, item, format!("{pointer}/{i}"), depth + 1);
                    }
                }
            }
            Json::String(text) => {
                if schema.get("format").and_then(Json::as_str) == Some("input-path")
                    && let Some(base) = self.base
                {
                    match input_path(base, text) {
                        Ok(path) => {
                            self.inputs.push((text.clone(), PathBuf::from(&path)));
                            *text = path;
                        }
                        Err(diagnostic) => {
                            self.problems.push(SettingError {
                                pointer,
                                at_key: false,
                                diagnostic: *diagnostic,
                            });
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, schema: &'a Json, value: &mut Json, pointer: &str, depth: usize) {
        let Json::Object(map) = value else { return };
        let properties = schema.get("properties").and_then(Json::as_object);
        for (key, property) in properties.into_iter().flatten() {
            let default =
                property.get("default").or_else(|| resolve(self.root, property).get("default"));
            if let (None, Some(default)) = (map.get(key), default) {
                map.insert(key.clone(), default.clone());
            }
        }
        for (key, value) in map.iter_mut() {
            let own =
                properties.and_then(|p| p.get(key)).or_else(|| schema.get("additionalProperties"));
            if let Some(own) = own {
                self.value(own, value, format!("{pointer}/{}", token(key)), depth + 1);
            }
        }
    }
}

/// Whether an alternative is the one that the value was written for: type, tags and required keys fit.
fn matches(root: &Json, schema: &Json, value: &Json) -> bool {
    let schema = resolve(root, schema);
    let type_fits = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|v| v.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    let fits = match schema.get("type") {
        Some(Json::String(name)) => type_fits(name),
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).any(type_fits),
        _ => true,
    };
    let Some(map) = value.as_object().filter(|_| fits) else {
        return fits && schema.get("const").is_none_or(|c| c == value);
    };
    let required = schema.get("required").and_then(Json::as_array).into_iter().flatten();
    let has_required = required.filter_map(Json::as_str).all(|key| map.contains_key(key));
    let properties = schema.get("properties").and_then(Json::as_object);
    let is_closed = schema.get("additionalProperties") == Some(&Json::Bool(false));
    let keys_fit = map.iter().all(|(key, v)| match properties.and_then(|p| p.get(key)) {
        Some(property) => property.get("const").is_none_or(|c| c == v),
        None => !is_closed,
    });
    has_required && keys_fit
}

/// Absolute path of an input: relative to `base`, or `hf:org/name@revision` in the local Hugging Face cache.
fn input_path(base: &Path, text: &str) -> Result<String, Box<Diagnostic>> {
    let missing = |message: String| Box::new(Diagnostic::error(codes::INPUT_MISSING, message));
    if let Some(name) = text.strip_prefix("hf:") {
        return hub_path(name).map(|p| p.to_string_lossy().into_owned()).map_err(|why| {
            missing(format!("`{text}` is not in the local Hugging Face cache: {why}")).help_boxed(
                "nothing is fetched over a network: download it with its own tools first",
            )
        });
    }
    let path = base.join(text);
    // What a plugin and a record of its files get must not depend on the directory that the program runs in.
    let path = std::path::absolute(&path).unwrap_or(path);
    if path.exists() {
        return Ok(path.to_string_lossy().into_owned());
    }
    Err(missing(format!("input `{text}` does not exist")).help_boxed(&format!(
        "looked at {}; paths are relative to the pipeline file",
        path.display()
    )))
}

trait HelpBoxed {
    fn help_boxed(self, help: &str) -> Self;
}
impl HelpBoxed for Box<Diagnostic> {
    fn help_boxed(mut self, help: &str) -> Self {
        self.help = Some(help.to_owned());
        self
    }
}

/// `HF_HUB_CACHE` > `HF_HOME/hub` > `~/.cache/huggingface/hub`, then `models--org--name/snapshots/COMMIT`.
fn hub_path(name: &str) -> Result<PathBuf, String> {
    let (model, revision) = name.split_once('@').unwrap_or((name, "main"));
    let is_plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\']);
    let revision_fits = revision.split('/').all(is_plain);
    if model.split('/').count() > 2 || !model.split('/').all(is_plain) || !revision_fits {
        return Err("write hf:org/name or hf:org/name@revision".into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let hub = set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|h| h.join("hub")))
        .or_else(|| set("HOME").map(|h| h.join(".cache/huggingface/hub")))
        .ok_or("no cache directory is known")?;
    let folder = hub.join(format!("models--{}", model.replace('/', "--")));
    let commit = std::fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    if !is_plain(&commit) {
        return Err(format!("bad reference {}", folder.join("refs").join(revision).display()));
    }
    let snapshot = folder.join("snapshots").join(commit);
    if snapshot.is_dir() { Ok(snapshot) } else { Err(format!("no {}", snapshot.display())) }
}
