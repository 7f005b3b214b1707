//! JSON Schema (2020-12) of the pipeline format, for editors.
//!
//! Says which keys and types there are; references between stages and what plugins add stay with the plan. The key
//! lists are those of the plan's readers: a test offers an unknown key at every place and compares both verdicts.

use super::MAX_MEMBERS;
use serde_json::{Value as Json, json};

/// The format without plugins: `with` may hold anything.
pub fn core_schema() -> Json {
    let mut properties = stage_properties();
    if let Json::Object(all) = &mut properties {
        all.extend(top_properties());
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Limbeck pipeline, version 1",
        "type": "object",
        "required": ["version", "name", "stages"],
        "properties": properties,
        "patternProperties": {"^x-": true},
        "additionalProperties": false,
        "$defs": defs(),
    })
}

/// The format with plugins: entries (id, kind, schema of `with`). Kinds: `teacher`, `student`, `loss`, `scheduler`.
/// An id of the list gets its own settings checked; another id may have any settings.
pub fn schema_with<'a>(plugins: impl IntoIterator<Item = (&'a str, &'a str, &'a Json)>) -> Json {
    let mut schema = core_schema();
    for (id, kind, with) in plugins {
        let mut with = with.clone();
        if kind == "loss" {
            // `layers` belongs to the host.
            if let Some(properties) = with.pointer_mut("/properties").and_then(Json::as_object_mut)
            {
                properties.insert("layers".into(), json!({"$ref": "#/$defs/layers"}));
            }
        }
        if let Some(object) = with.as_object_mut() {
            object.remove("$schema");
        }
        let rule = json!({
            "if": {"properties": {"uses": {"const": id}}, "required": ["uses"]},
            "then": {"properties": {"with": with}},
        });
        // A member of an ensemble and what is captured are teachers too.
        let slots =
            if kind == "teacher" { &["teacher", "member", "captured"][..] } else { &[kind] };
        for slot in slots {
            let slot = schema.pointer_mut(&format!("/$defs/{slot}")).and_then(Json::as_object_mut);
            let Some(slot) = slot else { continue };
            if let Json::Array(rules) = slot.entry("allOf").or_insert_with(|| json!([])) {
                rules.push(rule.clone());
            }
        }
    }
    schema
}

fn top_properties() -> serde_json::Map<String, Json> {
    let top = json!({
        "version": {"const": 1},
        "name": {"$ref": "#/$defs/lower_name"},
        "description": {"type": "string", "minLength": 1},
        "seed": {"oneOf": [{"type": "integer", "minimum": 0}, {"const": "random"}], "default": 0},
        "deterministic": {"type": "boolean", "default": false},
        "device": {"type": "string", "pattern": "^(auto|cpu|cuda:[0-9]+)$", "default": "auto"},
        "scenario": closed(json!({
            "kind": {"enum": ["domain", "class", "task"], "default": "domain"},
            "train_classes": {"enum": ["all", "seen", "task"]},
        }), &[]),
        "datasets": {
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/name"},
            "additionalProperties": {"$ref": "#/$defs/dataset"},
        },
        "tokenizer": {"$ref": "#/$defs/tokenizer"},
        "tokenizers": {
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/name"},
            "additionalProperties": {"$ref": "#/$defs/tokenizer"},
        },
        "plugins": list(closed(json!({
            "id": {"$ref": "#/$defs/id"},
            "path": {"$ref": "#/$defs/text"},
            "version": {"$ref": "#/$defs/text"},
        }), &["id", "path"])),
        "trackers": list(json!({"enum": ["tensorboard", "jsonl"]})),
        "tasks": tasks(),
        "stages": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/stage"}},
    });
    match top {
        Json::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

/// A list of tasks, or one of the generators.
fn tasks() -> Json {
    let text = || json!({"$ref": "#/$defs/text"});
    let generator = |own: &str, value: Json, tensor: bool| {
        let mut keys = json!({own: value, "train": text(), "valid": text()});
        if let (true, Json::Object(keys)) = (tensor, &mut keys) {
            keys.insert("tensor".into(), text());
        }
        closed(keys, &[own, "train", "valid"])
    };
    let classes =
        json!({"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}});
    let named = closed(
        json!({"name": {"$ref": "#/$defs/name"}, "train": text(), "valid": text()}),
        &["name", "train", "valid"],
    );
    json!({"oneOf": [
        list(named),
        generator("split", list(classes), false),
        generator("permuted", json!({"type": "integer", "minimum": 1, "maximum": 1000}), true),
        generator("rotated", list(json!({"$ref": "#/$defs/number"})), true),
    ]})
}

/// A mapping with these keys and no others.
fn closed(properties: Json, required: &[&str]) -> Json {
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn list(items: Json) -> Json {
    json!({"type": "array", "items": items})
}

/// Keys of a stage that may stand at top level.
fn stage_properties() -> Json {
    json!({
        "data": closed(json!({"train": {"$ref": "#/$defs/text"}, "valid": {"$ref": "#/$defs/text"}}), &["train"]),
        "student": {"$ref": "#/$defs/student"},
        "teacher": {"$ref": "#/$defs/teacher"},
        "loss": list(json!({"$ref": "#/$defs/loss"})),
        "scheduler": {"oneOf": [{"$ref": "#/$defs/scheduler"}, list(json!({"$ref": "#/$defs/scheduler"}))]},
        "batch": closed(json!({
            "size": {"type": "integer", "minimum": 1},
            "accumulate": {"type": "integer", "minimum": 1, "default": 1},
            "shuffle": {"type": "boolean", "default": true},
            "bucket": {"type": "integer", "minimum": 0, "default": 0},
        }), &["size"]),
        "epochs": {"type": "integer", "minimum": 1},
        "steps": {"type": "integer", "minimum": 1},
        "optimizer": {"$ref": "#/$defs/optimizer"},
        "lr_schedule": closed(json!({
            "kind": {"enum": ["constant", "linear", "cosine"], "default": "constant"},
            "warmup": {"$ref": "#/$defs/amount"},
        }), &[]),
        "dtype": {"enum": ["f32", "bf16"], "default": "f32"},
        "eval": closed(json!({
            "every": {"$ref": "#/$defs/amount"},
            "metrics": list(json!({"$ref": "#/$defs/metric"})),
            "best": closed(json!({"metric": {"$ref": "#/$defs/metric"}, "mode": {"enum": ["max", "min"]}}), &["metric"]),
        }), &[]),
        "checkpoint": closed(json!({
            "every": {"$ref": "#/$defs/amount"},
            "keep_last": {"type": "integer", "minimum": 1, "default": 2},
            "keep_best": {"type": "integer", "minimum": 0, "default": 1},
        }), &[]),
        "on_nonfinite": closed(json!({
            "action": {"enum": ["stop", "skip", "rollback"], "default": "stop"},
            "max_consecutive": {"type": "integer", "minimum": 1, "default": 5},
        }), &[]),
        "stop_if": closed(json!({
            "metric": {"$ref": "#/$defs/metric"},
            "patience": {"type": "integer", "minimum": 1},
        }), &["metric", "patience"]),
        "gates": list(json!({"$ref": "#/$defs/gate"})),
    })
}

fn defs() -> Json {
    json!({
        "text": {"type": "string", "minLength": 1},
        "lower_name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,63}$"},
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"},
        "id": {"type": "string", "pattern": "^[a-z0-9][a-z0-9.-]*$"},
        "number": {"oneOf": [{"type": "number"}, {"type": "string", "pattern": "^[-+0-9.eE]+ */ *[-+0-9.eE]+$"}]},
        "amount": {"type": "string", "pattern": "^([0-9].*|end)$", "examples": ["500 steps", "2 epochs", "10 min", "6%"]},
        "metric": {"type": "string", "pattern": "^(agreement|loss|(ema\\.)?(accuracy|macro_f1|f1|nll|(recall|precision)\\.[0-9]+))$"},
        "column": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}]},
        "layers": {"type": "array", "minItems": 1, "items": range()},
        "inputs": {"type": "object", "additionalProperties": {"$ref": "#/$defs/text"}},
        "from": closed(from_properties(), &["from"]),
        "measured": one_of(closed(json!({
            "from": {"$ref": "#/$defs/text"},
            "which": which(),
            "ensemble": {"type": "array", "minItems": 1, "maxItems": MAX_MEMBERS, "items": closed(json!({
                "name": {"$ref": "#/$defs/name"},
                "from": {"$ref": "#/$defs/text"},
                "which": which(),
            }), &["from"])},
        }), &[]), &["from", "ensemble"]),
        "member": one_of(closed(json!({
            "name": {"$ref": "#/$defs/name"},
            "uses": {"$ref": "#/$defs/id"},
            "with": {"type": "object"},
            "from": {"$ref": "#/$defs/text"},
            "run": {"$ref": "#/$defs/text"},
            "which": which(),
            "cache": cache(),
            "inputs": {"$ref": "#/$defs/inputs"},
        }), &[]), &["uses", "from", "cache"]),
        "tokenizer": closed(json!({
            "path": {"$ref": "#/$defs/text"},
            "max_length": {"type": "integer", "minimum": 1, "default": 512},
            "padding": {"enum": ["longest", "max"], "default": "longest"},
        }), &["path"]),
        "dataset": dataset(),
        "optimizer": optimizer(),
        "gate": closed(json!({
            "metric": {"$ref": "#/$defs/text"},
            "min": {"$ref": "#/$defs/number"},
            "max": {"$ref": "#/$defs/number"},
        }), &["metric"]),
        "student": one_of(closed(json!({
            "uses": {"$ref": "#/$defs/id"},
            "with": {"type": "object"},
            "from": {"$ref": "#/$defs/text"},
            "run": {"$ref": "#/$defs/text"},
            "which": which(),
            "inputs": {"$ref": "#/$defs/inputs"},
        }), &[]), &["uses", "from"]),
        "teacher": one_of(closed(json!({
            "uses": {"$ref": "#/$defs/id"},
            "with": {"type": "object"},
            "from": {"$ref": "#/$defs/text"},
            "run": {"$ref": "#/$defs/text"},
            "which": which(),
            "ema": closed(json!({"decay": {"$ref": "#/$defs/number"}}), &["decay"]),
            "self": {"const": true},
            "cache": cache(),
            "ensemble": {"type": "array", "minItems": 1, "maxItems": MAX_MEMBERS, "items": {"$ref": "#/$defs/member"}},
            "inputs": {"$ref": "#/$defs/inputs"},
        }), &[]), &["uses", "from", "ensemble", "ema", "self", "cache"]),
        "captured": one_of(closed(json!({
            "uses": {"$ref": "#/$defs/id"},
            "with": {"type": "object"},
            "from": {"$ref": "#/$defs/text"},
            "run": {"$ref": "#/$defs/text"},
            "which": which(),
            "inputs": {"$ref": "#/$defs/inputs"},
        }), &[]), &["uses", "from"]),
        "loss": closed(json!({
            "name": {"$ref": "#/$defs/name"},
            "uses": {"$ref": "#/$defs/id"},
            "with": {"type": "object"},
            "weight": {"$ref": "#/$defs/number"},
            "reduction": {"enum": ["token_mean", "seq_mean", "batchmean", "sum"], "default": "token_mean"},
            "view": {"const": "clean"},
            "rows": {"$ref": "#/$defs/text"},
            "inputs": {"$ref": "#/$defs/inputs"},
        }), &["uses"]),
        "scheduler": one_of(closed(json!({
            "name": {"$ref": "#/$defs/name"},
            "uses": {"$ref": "#/$defs/id"},
            "with": {"type": "object"},
            "from": {"$ref": "#/$defs/text"},
            "run": {"$ref": "#/$defs/text"},
            "terms": {
                "type": "object",
                "additionalProperties": closed(json!({"weight": {"$ref": "#/$defs/number"}}), &["weight"]),
            },
            "inputs": {"$ref": "#/$defs/inputs"},
        }), &[]), &["uses", "from"]),
        "stage": stage(),
    })
}

fn from_properties() -> Json {
    json!({"from": {"$ref": "#/$defs/text"}, "which": which()})
}

fn which() -> Json {
    json!({"enum": ["last", "best", "ema"], "default": "last"})
}

/// A directory, or a stage that captures.
fn cache() -> Json {
    let stage = closed(json!({"from": {"$ref": "#/$defs/text"}}), &["from"]);
    json!({"oneOf": [{"$ref": "#/$defs/text"}, stage]})
}

fn range() -> Json {
    json!({"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 0}})
}

fn one_of(mut schema: Json, keys: &[&str]) -> Json {
    if let Some(object) = schema.as_object_mut() {
        object.insert("oneOf".into(), keys.iter().map(|k| json!({"required": [k]})).collect());
    }
    schema
}

fn dataset() -> Json {
    let column = || json!({"$ref": "#/$defs/column"});
    let text = || json!({"oneOf": [column(), closed(json!({"column": column(), "pair": column()}), &["column"])]});
    closed(
        json!({
            "format": {"enum": ["csv", "jsonl", "idx", "parquet", "npy", "text"]},
            "path": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]},
            "text": text(),
            "texts": {
                "type": "object",
                "propertyNames": {"$ref": "#/$defs/name"},
                "additionalProperties": text(),
            },
            "label": column(),
            "tensors": {
                "type": "object",
                "additionalProperties": closed(json!({
                    "columns": {"oneOf": [column(), range()]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "scale": {"$ref": "#/$defs/number"},
                    "dtype": {"enum": ["f32", "f64", "i64", "i32", "u8"], "default": "f32"},
                    "permute": {"type": "integer", "minimum": 0},
                    "rotate": {"$ref": "#/$defs/number"},
                }), &[]),
            },
            "rows": range(),
            "classes": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
            "limit": {"type": "integer", "minimum": 1},
            "ignore_label": {"type": "integer"},
        }),
        &["format", "path"],
    )
}

fn optimizer() -> Json {
    let number = || json!({"$ref": "#/$defs/number"});
    let shared = json!({"lr": number(), "weight_decay": number(), "clip_norm": number()});
    let with = |own: Json| {
        let mut all = own;
        if let (Json::Object(all), Json::Object(shared)) = (&mut all, shared.clone()) {
            all.extend(shared);
        }
        closed(all, &["kind", "lr"])
    };
    json!({"oneOf": [
        with(json!({
            "kind": {"const": "adamw"},
            "betas": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}},
            "eps": number(),
        })),
        with(json!({"kind": {"const": "sgd"}, "momentum": number()})),
    ]})
}

fn stage() -> Json {
    let training = |kind: &str| {
        let mut properties = stage_properties();
        if let Json::Object(all) = &mut properties {
            all.insert("name".into(), json!({"$ref": "#/$defs/lower_name"}));
            all.insert("kind".into(), json!({"const": kind}));
            all.insert(
                "tasks".into(),
                json!({"type": "array", "minItems": 1, "items": {"type": "string"}}),
            );
            if kind == "train" {
                all.shift_remove("teacher");
            }
        }
        closed(properties, &["name", "kind"])
    };
    let text_or_list =
        || json!({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]});
    let eval = closed(
        json!({
            "name": {"$ref": "#/$defs/lower_name"},
            "kind": {"const": "eval"},
            "model": {"$ref": "#/$defs/measured"},
            "data": text_or_list(),
            "metrics": list(json!({"$ref": "#/$defs/metric"})),
            "gates": list(json!({"$ref": "#/$defs/gate"})),
            "batch": closed(json!({"size": {"type": "integer", "minimum": 1}}), &[]),
        }),
        &["name", "kind", "model", "data", "metrics"],
    );
    let export = closed(
        json!({
            "name": {"$ref": "#/$defs/lower_name"},
            "kind": {"const": "export"},
            "model": {"$ref": "#/$defs/from"},
            "format": {"const": "hf"},
            "to": {"$ref": "#/$defs/text"},
        }),
        &["name", "kind", "model"],
    );
    let capture = closed(
        json!({
            "name": {"$ref": "#/$defs/lower_name"},
            "kind": {"const": "capture"},
            "teacher": {"$ref": "#/$defs/captured"},
            "data": text_or_list(),
            "outputs": list(json!({"$ref": "#/$defs/text"})),
            "topk": closed(json!({
                "k": {"type": "integer", "minimum": 1},
                "temperature": {"$ref": "#/$defs/number"},
            }), &["k"]),
            "batch": closed(json!({"size": {"type": "integer", "minimum": 1}}), &[]),
            "to": {"$ref": "#/$defs/text"},
        }),
        &["name", "kind", "teacher", "data"],
    );
    let branch = |kind: &str, then: Json| {
        json!({
            "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": then,
        })
    };
    json!({
        "type": "object",
        "required": ["name", "kind"],
        "properties": {"kind": {"enum": ["train", "distill", "capture", "eval", "export"]}},
        "allOf": [
            branch("train", training("train")),
            branch("distill", training("distill")),
            branch("capture", capture),
            branch("eval", eval),
            branch("export", export),
        ],
    })
}

#[cfg(test)]
mod tests;
