//! Schemas as schemars writes them.

use super::*;
use serde_json::json;

fn schema() -> Schema {
    Schema::new(json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["classes"],
        "properties": {
            "classes": {"type": "integer", "minimum": 2, "format": "uint64"},
            "temperature": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
            "mode": {"$ref": "#/$defs/Mode", "default": "all"},
            "init": {"anyOf": [{"$ref": "#/$defs/Init"}, {"type": "null"}], "default": null},
            "hidden": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "default": [8]},
        },
        "$defs": {
            "Mode": {"oneOf": [{"const": "all", "type": "string"}, {"const": "old", "type": "string"}]},
            "Init": {
                "type": "object", "additionalProperties": false, "required": ["path"],
                "properties": {
                    "path": {"type": "string", "format": "input-path"},
                    "scale": {"type": "number", "default": 0.5},
                },
            },
        },
    }))
    .unwrap()
}

fn problems(with: Json) -> Vec<(String, bool, &'static str, String, String)> {
    let errors = schema().check("limbeck.x", &with, None).unwrap_err();
    errors
        .into_iter()
        .map(|e| {
            let d = e.diagnostic;
            (e.pointer, e.at_key, d.code, d.message, d.help.unwrap_or_default())
        })
        .collect()
}

#[test]
fn a_typing_slip_is_found_with_type_range_and_default() {
    let found = problems(json!({"classes": 2, "temprature": 4.0}));
    assert_eq!(
        found,
        [(
            "/temprature".into(),
            true,
            "LMB0101",
            "unknown key `temprature` in `with` of `limbeck.x`".into(),
            "did you mean `temperature`? (number > 0, default 1.0)".into()
        )]
    );
}

#[test]
fn every_problem_is_reported_at_its_pointer() {
    let found = problems(json!({"temperature": -2, "hidden": [4, 0, "x"], "mode": "olt"}));
    let short: Vec<_> = found.iter().map(|(p, _, c, m, _)| (p.as_str(), *c, m.as_str())).collect();
    for wanted in [
        ("", "LMB0102", "missing key `classes` in `with` of `limbeck.x`"),
        ("/temperature", "LMB0105", "`temperature` must be above 0, found -2"),
        ("/hidden/1", "LMB0105", "`hidden[1]` must be at least 1, found 0"),
        ("/hidden/2", "LMB0103", "`hidden[2]` must be a integer, found \"x\""),
        ("/mode", "LMB0106", "`mode` must be one of `all`, `old`, found \"olt\""),
    ] {
        let wanted = (wanted.0, wanted.1, wanted.2.replace("a integer", "an integer"));
        assert!(
            short.contains(&(wanted.0, wanted.1, wanted.2.as_str())),
            "{wanted:?} not in {short:?}"
        );
    }
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(found.iter().any(|f| f.4 == "did you mean `old`?"));
}

#[test]
fn an_optional_mapping_is_followed_to_its_inner_key() {
    let found = problems(json!({"classes": 2, "init": {"path": "x", "scal": 1}}));
    assert_eq!(found[0].0, "/init/scal");
    assert_eq!(found[0].3, "unknown key `scal` in `init` of `limbeck.x`");
    assert!(found[0].4.starts_with("did you mean `scale`?"), "{found:?}");
    let found = problems(json!({"classes": 2, "init": 7}));
    assert_eq!((found[0].0.as_str(), found[0].2), ("/init", "LMB0103"), "{found:?}");
}

#[test]
fn defaults_are_filled_in_at_every_depth_and_nothing_is_overwritten() {
    let done = schema()
        .check("x", &json!({"classes": 3, "hidden": [2], "init": {"path": "p"}}), None)
        .unwrap();
    assert_eq!(
        done,
        json!({"classes": 3, "hidden": [2], "init": {"path": "p", "scale": 0.5}, "temperature": 1.0, "mode": "all"})
    );
    let done = schema().check("x", &json!({"classes": 3}), None).unwrap();
    assert_eq!(done["init"], Json::Null);
    assert_eq!(done["hidden"], json!([8]));
}

#[test]
fn input_paths_start_at_the_base_and_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("weights"), b"").unwrap();
    let with = json!({"classes": 2, "init": {"path": "weights"}});
    let done = schema().check("x", &with, Some(dir.path())).unwrap();
    assert_eq!(done["init"]["path"], json!(dir.path().join("weights")));
    let with = json!({"classes": 2, "init": {"path": "nowhere"}});
    let errors = schema().check("x", &with, Some(dir.path())).unwrap_err();
    assert_eq!((errors[0].pointer.as_str(), errors[0].diagnostic.code), ("/init/path", "LMB0316"));
    let with = json!({"classes": 2, "init": {"path": "hf:../../etc"}});
    assert!(schema().check("x", &with, Some(dir.path())).is_err());
}

#[test]
fn a_schema_that_refers_to_itself_ends() {
    let schema = Schema::new(json!({
        "type": "object",
        "properties": {"next": {"$ref": "#", "default": {}}},
    }))
    .unwrap();
    schema.check("x", &json!({}), None).unwrap();
}
