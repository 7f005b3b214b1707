//! `limbeck schema [FILE]`.

use super::inputs::{plan_file, search_path};
use super::{Answer, Shell};
use crate::exit;
use limbeck_host::load::{Catalogue, catalogue::PluginInfo};
use limbeck_host::plan::Plan;
use limbeck_host::plan::schema::schema_with;
use serde_json::Value;
use std::path::Path;

/// Definitions inside definitions that are followed; deeper ones are left open.
const MAX_DEPTH: usize = 16;

/// Prints the core schema with the settings of the plugins found, or of those that `file` uses.
///
/// # Errors
/// `file` is no valid pipeline.
pub fn schema(file: Option<&Path>, shell: &Shell) -> Answer {
    let plan = file.map(|f| plan_file(f, &[])).transpose()?;
    let (catalogue, warnings) = Catalogue::discover(&search_path(plan.as_ref(), shell))?;
    shell.renderer.problems(&warnings);
    let used = plan.as_ref().map(used_ids);
    let wanted = |info: &&PluginInfo| used.as_ref().is_none_or(|ids| ids.contains(&info.id));
    let plugins: Vec<(&PluginInfo, Value)> =
        catalogue.plugins().filter(wanted).map(|info| (info, standalone(&info.schema))).collect();
    let entries = plugins.iter().map(|(info, with)| (info.id.as_str(), info.kind.name(), with));
    let schema = schema_with(entries);
    let text = if shell.renderer.is_json() {
        schema.to_string()
    } else {
        serde_json::to_string_pretty(&schema).unwrap_or_default()
    };
    shell.renderer.document(&text);
    Ok(exit::DONE)
}

fn used_ids(plan: &Plan) -> Vec<String> {
    let stages = plan.stages.iter().filter_map(|s| s.training());
    stages.flat_map(|train| train.plugin_uses().map(|p| p.id.clone())).collect()
}

/// The schema with its own definitions put in place: inside another document, `#/$defs/…` would name that one's.
fn standalone(schema: &Value) -> Value {
    let mut alone = inline(schema, schema, 0);
    if let Some(object) = alone.as_object_mut() {
        object.remove("$defs");
    }
    alone
}

fn inline(node: &Value, root: &Value, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Bool(true);
    }
    let reference = node.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
    match node {
        Value::Object(map) => {
            let target = reference.and_then(|pointer| root.pointer(pointer));
            let mut out = match target.map(|t| inline(t, root, depth + 1)) {
                Some(Value::Object(object)) => object,
                _ => serde_json::Map::new(),
            };
            let own = map.iter().filter(|(key, _)| target.is_none() || *key != "$ref");
            out.extend(own.map(|(key, value)| (key.clone(), inline(value, root, depth + 1))));
            Value::Object(out)
        }
        Value::Array(items) => items.iter().map(|i| inline(i, root, depth + 1)).collect(),
        _ => node.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn definitions_are_put_where_they_are_used() {
        let schema = json!({
            "properties": {"a": {"$ref": "#/$defs/x", "default": 1}},
            "$defs": {"x": {"type": "integer"}}
        });
        let expected = json!({"properties": {"a": {"type": "integer", "default": 1}}});
        assert_eq!(standalone(&schema), expected);
    }

    #[test]
    fn a_definition_of_itself_ends() {
        let schema = json!({"$ref": "#/$defs/x", "$defs": {"x": {"items": {"$ref": "#/$defs/x"}}}});
        assert!(standalone(&schema).to_string().len() < 10_000);
    }
}
