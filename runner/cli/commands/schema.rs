//! `limbeck schema [FILE]`.

use super::inputs::{plan_file, search_path};
use super::{Answer, Shell};
use crate::exit;
use limbeck_host::load::{Catalogue, catalogue::PluginInfo, catalogue::PluginKind};
use limbeck_host::plan::Plan;
use serde_json::{Value, json};
use std::path::Path;

/// The host's own part: JSON Schema of pipeline files, plugins left open.
const CORE: &str = include_str!("../schema.json");

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
    let plugins: Vec<&PluginInfo> = catalogue.plugins().filter(wanted).collect();
    let schema = with_plugins(&plugins);
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

/// Closes `$defs/KIND_use` of the core: `uses` names a plugin of that kind, `with` follows its schema.
fn with_plugins(plugins: &[&PluginInfo]) -> Value {
    // The text is part of the program and parsed by a test.
    let mut schema: Value = serde_json::from_str(CORE).unwrap_or_default();
    for kind in [PluginKind::Teacher, PluginKind::Student, PluginKind::Loss, PluginKind::Scheduler]
    {
        let of_kind: Vec<&&PluginInfo> = plugins.iter().filter(|p| p.kind == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let ids: Vec<&str> = of_kind.iter().map(|p| p.id.as_str()).collect();
        let rules: Vec<Value> = of_kind.iter().map(|p| rule(p)).collect();
        let name = format!("{}_plugin", kind.name());
        if let Some(slot) = schema.pointer_mut(&format!("/$defs/{name}")) {
            *slot = json!({"properties": {"uses": {"enum": ids}}, "allOf": rules});
        }
    }
    schema
}

fn rule(info: &PluginInfo) -> Value {
    let mut settings = info.schema.clone();
    if let Some(object) = settings.as_object_mut() {
        object.shift_remove("$schema");
        // A subschema with an id would resolve its own `$ref`s; plugins' definitions stay inside it that way.
        object.insert("$id".into(), json!(format!("urn:limbeck:plugin:{}", info.id)));
        if info.kind == PluginKind::Loss
            && let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut)
        {
            // The host's own key of every loss.
            properties.insert(
                "layers".into(),
                json!({"$ref": "https://limbeck.dev/schema/1#/$defs/layers"}),
            );
        }
    }
    json!({
        "if": {"properties": {"uses": {"const": info.id}}, "required": ["uses"]},
        "then": {"properties": {"with": settings}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_schema_is_json_and_has_a_slot_for_each_kind() {
        let core: Value = serde_json::from_str(CORE).unwrap();
        for kind in ["teacher", "student", "loss", "scheduler"] {
            assert!(core.pointer(&format!("/$defs/{kind}_plugin")).is_some(), "{kind}");
        }
    }
}
