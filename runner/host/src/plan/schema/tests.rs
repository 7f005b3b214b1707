//! The schema against the plan's readers: what one refuses, the other refuses.

use super::*;
use crate::document;
use std::path::Path;

fn pipeline(name: &str) -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines").join(name);
    document::load(&path, &[]).expect("valid YAML").root.to_json(&mut |_| {})
}

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&core_schema()).expect("a valid schema")
}

/// Both verdicts on a document.
fn verdicts(validator: &jsonschema::Validator, document: &Json) -> (bool, bool) {
    let text = serde_json::to_string(document).expect("JSON");
    let planned =
        document::parse(Path::new("p.yaml"), &text, &[]).and_then(|d| super::super::plan(&d));
    (validator.is_valid(document), planned.is_ok())
}

#[test]
fn the_pipelines_of_the_repository_fit_the_schema() {
    let validator = validator();
    for name in ["digits.yaml", "continual-digits.yaml", "born-again.yaml"] {
        let errors: Vec<String> = validator
            .iter_errors(&pipeline(name))
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
    }
}

/// Pointers of all mappings, those under `with` and `x-` left out: there any key is welcome.
fn mappings(value: &Json, pointer: String, out: &mut Vec<String>) {
    match value {
        Json::Object(map) => {
            for (key, inner) in map {
                if key != "with" && !key.starts_with("x-") {
                    mappings(inner, format!("{pointer}/{key}"), out);
                }
            }
            out.push(pointer);
        }
        Json::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                mappings(inner, format!("{pointer}/{index}"), out);
            }
        }
        _ => {}
    }
}

#[test]
fn an_unknown_key_is_refused_everywhere_by_schema_and_plan() {
    let validator = validator();
    let mut places = 0;
    for name in ["digits.yaml", "continual-digits.yaml", "born-again.yaml"] {
        let document = pipeline(name);
        let mut pointers = Vec::new();
        mappings(&document, String::new(), &mut pointers);
        for pointer in
            pointers.iter().filter(|p| !p.ends_with("/datasets") && !p.ends_with("/tensors"))
        {
            let mut broken = document.clone();
            let place =
                broken.pointer_mut(pointer).and_then(Json::as_object_mut).expect("a mapping");
            place.insert("no_such_key".into(), json!(1));
            assert_eq!(verdicts(&validator, &broken), (false, false), "{name} {pointer}");
            places += 1;
        }
    }
    assert!(places > 80, "only {places} places");
}

#[test]
fn a_resolved_pipeline_with_every_default_fits_the_schema() {
    let validator = validator();
    for name in ["digits.yaml", "continual-digits.yaml", "born-again.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines").join(name);
        let plan = document::load(&path, &[]).and_then(|d| super::super::plan(&d)).expect("valid");
        let errors: Vec<String> = validator
            .iter_errors(&plan.resolved)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
    }
}

#[test]
fn settings_of_a_known_plugin_are_checked_and_of_another_not() {
    let with = json!({
        "type": "object",
        "properties": {"temperature": {"type": "number"}},
        "additionalProperties": false,
    });
    let schema = schema_with([("limbeck.kl", "loss", &with)]);
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    let document = |with: Json| {
        let mut document = pipeline("digits.yaml");
        document["stages"][2]["loss"][0]["with"] = with;
        document
    };
    assert!(validator.is_valid(&document(json!({"temperature": 8.0}))));
    assert!(validator.is_valid(&document(json!({"temperature": 8.0, "layers": [[1, 2]]}))));
    assert!(!validator.is_valid(&document(json!({"temprature": 8.0}))));
    let mut other = document(json!({"temprature": 8.0}));
    other["stages"][2]["loss"][0]["uses"] = json!("org.example.other");
    assert!(validator.is_valid(&other));
}
