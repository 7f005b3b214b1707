//! Tier `descriptor`: what a plugin says about itself.

use super::subject::{ensure, fine, kind_name};
use super::{ALL, Check, Miss, Outcome, Subject, fail, file, sample};
use limbeck_abi as abi;
use serde_json::Value;

pub(super) const CHECKS: &[Check] = &[
    Check { id: "descriptor.fields", clause: "lmb_descriptor", kinds: ALL, run: fields },
    Check {
        id: "descriptor.manifest",
        clause: "the manifest agrees with the descriptors",
        kinds: ALL,
        run: manifest,
    },
    Check {
        id: "descriptor.schema",
        clause: "JSON Schema 2020-12 with defaults, closed",
        kinds: ALL,
        run: schema,
    },
    Check { id: "descriptor.unknown-id", clause: "LMB_NOT_FOUND", kinds: ALL, run: unknown_id },
    Check {
        id: "descriptor.interfaces",
        clause: "tables of a kind; NULL if unknown",
        kinds: ALL,
        run: interfaces,
    },
    Check { id: "descriptor.ports", clause: "lmb_port, R12", kinds: ALL, run: ports },
];

fn is_semver(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() == 3 && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

fn fields(subject: &mut Subject) -> Outcome {
    let all = subject.descriptors()?;
    let d = subject.described()?;
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    ensure(!d.id.is_empty() && d.id.bytes().all(legal), "an id of [a-z0-9.-]", || d.id.clone())?;
    ensure(all.iter().filter(|o| o.id == d.id).count() == 1, "an id that is unique", || {
        d.id.clone()
    })?;
    ensure(is_semver(&d.version), "a semantic version", || d.version.clone())?;
    ensure(kind_name(d.kind) != "unknown", "a known kind", || d.kind.to_string())?;
    ensure(d.device_mask & (1 << abi::DL_CPU) != 0 || d.device_mask != 0, "a device", || {
        "none".into()
    })?;
    if d.summary.is_empty() || d.license.is_empty() {
        return Err(Miss::Warn("summary or license is empty".to_owned()));
    }
    Ok(format!("{} {}, {}, {}", d.id, d.version, kind_name(d.kind), d.license))
}

fn manifest(subject: &mut Subject) -> Outcome {
    let d = subject.described()?;
    let listed = file::manifest_of(subject)?.plugins;
    let entry = listed.iter().find(|p| p.id == d.id);
    let entry = entry.ok_or_else(|| fail(format!("`{}` in the manifest", d.id), "not there"))?;
    let said = (entry.kind.clone(), entry.version.clone());
    let is = (kind_name(d.kind).to_owned(), d.version.clone());
    ensure(said == is, &format!("manifest and descriptor to agree on {is:?}"), || {
        format!("{said:?}")
    })?;
    let count = subject.descriptors()?.len();
    ensure(listed.len() == count, "as many plugins as descriptors", || listed.len().to_string())?;
    fine()
}

fn schema(subject: &mut Subject) -> Outcome {
    let d = subject.described()?;
    let schema: Value = serde_json::from_str(&d.schema)
        .map_err(|e| fail("JSON in config_schema", e.to_string()))?;
    let validator =
        jsonschema::validator_for(&schema).map_err(|e| fail("a JSON Schema", e.to_string()))?;
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    ensure(closed, "\"additionalProperties\": false", || "an open schema".into())?;
    let object = schema.get("type").and_then(Value::as_str) == Some("object");
    ensure(object, "\"type\": \"object\"", || {
        schema.get("type").map_or("none".into(), ToString::to_string)
    })?;
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut undocumented = Vec::new();
    for (name, property) in properties.into_iter().flatten() {
        if property.get("description").is_none() {
            undocumented.push(name.clone());
        }
        let Some(default) = property.get("default") else { continue };
        let mut settings = sample::minimal(&schema);
        if let Some(object) = settings.as_object_mut() {
            object.insert(name.clone(), default.clone());
        }
        if let Err(error) = validator.validate(&settings)
            && error.instance_path().to_string().starts_with(&format!("/{name}"))
        {
            return Err(fail("a schema that accepts its defaults", format!("{name}: {error}")));
        }
    }
    if undocumented.is_empty() {
        return fine();
    }
    Err(Miss::Warn(format!("settings without description: {}", undocumented.join(", "))))
}

fn unknown_id(subject: &mut Subject) -> Outcome {
    for id in ["", "no.such-plugin", "\u{0}", "limbeck", "../../etc/passwd", "\u{1F600}"] {
        match subject.create_with(id, "{}")? {
            Err((abi::STATUS_NOT_FOUND, _)) => {}
            Err((_, said)) => return Err(fail(format!("LMB_NOT_FOUND for id {id:?}"), said)),
            Ok(_) => return Err(fail(format!("LMB_NOT_FOUND for id {id:?}"), "an instance")),
        }
    }
    fine()
}

fn interfaces(subject: &mut Subject) -> Outcome {
    let kind = subject.described()?.kind;
    let live = subject.create()?;
    let mandatory: &[&str] = match kind {
        abi::KIND_TEACHER => &[abi::TEACHER_ID],
        abi::KIND_STUDENT => &[abi::STUDENT_ID, abi::TEACHER_ID],
        abi::KIND_LOSS => &[abi::LOSS_ID],
        _ => &[abi::SCHEDULER_ID],
    };
    for id in mandatory {
        let table = live.interface::<u64>(id);
        ensure(table.is_some(), &format!("a {} to offer {id}", kind_name(kind)), || "NULL".into())?;
        let again = live.interface::<u64>(id);
        ensure(table == again, "the same table each time", || format!("{table:?}, {again:?}"))?;
    }
    for id in ["", "lmb.loss/2", "lmb.none/1"] {
        ensure(live.interface::<u64>(id).is_none(), &format!("NULL for interface {id:?}"), || {
            "a table".into()
        })?;
    }
    let table = live.table();
    let both = table.state_save.is_some() == table.state_load.is_some();
    ensure(both, "state_save and state_load both or neither", || "one of them".into())?;
    fine()
}

fn ports(subject: &mut Subject) -> Outcome {
    let kind = subject.described()?.kind;
    let live = subject.create()?;
    let ports = live.ports()?;
    let mut names = Vec::new();
    for port in ports {
        let name = super::subject::text(port.name, "port.name")?;
        let shape = super::subject::text(port.shape, "port.shape")?;
        super::subject::text(port.doc, "port.doc")?;
        ensure(!name.is_empty(), "a name of each port", || "an empty one".into())?;
        ensure(!names.contains(&name), "port names that are unique", || name.clone())?;
        let legal = |axis: &str| {
            axis == "*"
                || (!axis.is_empty()
                    && axis.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        };
        let scalar = shape.is_empty();
        ensure(
            scalar || shape.split(',').all(|a| legal(a.trim())),
            "a shape such as \"N,V\" or \"*\"",
            || shape.clone(),
        )?;
        let any_column = name == "batch.*";
        ensure(port.num_dtypes > 0 || any_column, "element types of each port", || name.clone())?;
        let is_output = port.flags & abi::PORT_OUTPUT != 0;
        let is_metric = kind == abi::KIND_LOSS && is_output;
        ensure(!is_metric || shape == "1" || shape.is_empty(), "f32[1] metric ports", || {
            shape.clone()
        })?;
        names.push(name);
    }
    let again = live.ports()?;
    ensure(std::ptr::eq(ports, again), "the same ports each time", || "another list".into())?;
    Ok(names.join(" "))
}
