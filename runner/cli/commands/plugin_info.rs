//! `limbeck plugin info ID|FILE`.

use super::inputs::search_path;
use super::{Answer, Shell};
use crate::exit;
use crate::render::table;
use limbeck_host::diagnostic::Diagnostic;
use limbeck_host::load::catalogue::PluginInfo;
use limbeck_host::load::{Catalogue, SearchPath};
use serde_json::{Value, json};
use std::path::Path;

const TRUST: &str = "A plugin is native code with all rights of the user who loads it.";

/// Shows what plugins say about themselves.
///
/// # Errors
/// No such plugin; a file that is none.
pub fn info(plugin: &str, shell: &Shell) -> Answer {
    let file = Path::new(plugin);
    let is_file = file.is_file();
    let search = if is_file { of_file(file) } else { search_path(None, shell) };
    let (catalogue, warnings) = Catalogue::discover(&search)?;
    let library = std::fs::canonicalize(file).ok();
    let in_file = |info: &&PluginInfo| std::fs::canonicalize(&info.library).ok() == library;
    let found: Vec<&PluginInfo> = if is_file {
        catalogue.plugins().filter(in_file).collect()
    } else {
        catalogue.find(plugin).into_iter().collect()
    };
    if found.is_empty() {
        return Err(not_found(plugin, is_file, &catalogue, warnings).into());
    }
    for info in found {
        let ports = ports(&catalogue, info);
        shell.renderer.answer(&as_text(info, &ports), &as_json(info, &ports));
    }
    shell.renderer.note(TRUST);
    Ok(exit::DONE)
}

/// Looks only beside the file: asking about it is asking to load it.
fn of_file(file: &Path) -> SearchPath {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let directories = absolute.parent().map(Path::to_owned).into_iter().collect();
    SearchPath { directories, allow_unlocked: true, ..SearchPath::default() }
}

fn not_found(
    plugin: &str,
    is_file: bool,
    catalogue: &Catalogue,
    warnings: Vec<Diagnostic>,
) -> Vec<Diagnostic> {
    if is_file {
        let name = Path::new(plugin).file_name().and_then(|n| n.to_str()).unwrap_or(plugin);
        let mut about: Vec<Diagnostic> =
            warnings.into_iter().filter(|w| w.message.contains(name)).collect();
        about.insert(0, Diagnostic::error("LMB0303", format!("`{plugin}` offers no plugin")));
        return about;
    }
    vec![catalogue.missing(plugin)]
}

/// Ports as (direction, name, shape, words), or why they are not known.
type Ports = Result<Vec<[String; 4]>, String>;

fn ports(catalogue: &Catalogue, info: &PluginInfo) -> Ports {
    let settings = catalogue.check_settings(&info.id, &json!({})).map_err(|problems| {
        let reasons = problems.iter().map(|p| p.diagnostic.message.clone());
        format!("depend on settings ({})", reasons.collect::<Vec<_>>().join("; "))
    })?;
    let instance = catalogue.create(&info.id, &settings).map_err(|e| e.to_string())?;
    let row = |port: &limbeck_host::load::instance::Port| {
        let direction = match (port.is_output(), port.is_optional()) {
            (true, _) => "output",
            (_, true) => "input, optional",
            _ => "input",
        };
        let types: Vec<&str> = port.dtypes.iter().map(|t| t.name()).collect();
        let shape = format!("[{}] {}", port.shape, types.join("|"));
        [direction.to_owned(), port.name.clone(), shape, port.doc.clone()]
    };
    Ok(instance.ports().iter().map(row).collect())
}

fn as_text(info: &PluginInfo, ports: &Ports) -> String {
    let mut lines = vec![
        format!("{} {}   {}   {}", info.id, info.version, info.kind.name(), info.license),
        format!("  {}", info.summary),
        format!("  library   {}", info.library.display()),
        format!("  found     {}", info.found),
        format!("  sha256    {}", info.sha256),
        format!("  ABI       {}.{}   {}", info.abi.0, info.abi.1, info.build_info),
    ];
    lines.push(format!("  devices   {}", info.devices().join(" ")));
    if !info.features.is_empty() {
        lines.push(format!("  features  {}", info.features.join(" ")));
    }
    match ports {
        Ok(ports) => {
            lines.push("  ports".to_owned());
            let rows: Vec<Vec<String>> = ports.iter().map(|p| p.to_vec()).collect();
            lines.extend(table::columns(&rows).lines().map(|l| format!("    {l}")));
        }
        Err(why) => lines.push(format!("  ports     {why}")),
    }
    lines.push("  settings".to_owned());
    let rows = settings(&info.schema);
    lines.extend(table::columns(&rows).lines().map(|l| format!("    {l}")));
    lines.join("\n")
}

/// Name, type, default and words of each setting.
fn settings(schema: &Value) -> Vec<Vec<String>> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return vec![vec!["none".to_owned()]];
    };
    let required = |name: &str| {
        let list = schema.get("required").and_then(Value::as_array);
        list.is_some_and(|l| l.iter().any(|r| r == name))
    };
    let row = |(name, property): (&String, &Value)| {
        let kind = match property.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")
            }
            _ => "see schema".to_owned(),
        };
        let default = match property.get("default") {
            Some(value) => format!("default {value}"),
            None if required(name) => "required".to_owned(),
            None => String::new(),
        };
        let doc = property.get("description").and_then(Value::as_str).unwrap_or_default();
        vec![name.clone(), kind, default, doc.lines().next().unwrap_or_default().to_owned()]
    };
    properties.iter().map(row).collect()
}

fn as_json(info: &PluginInfo, ports: &Ports) -> Value {
    let ports = match ports {
        Ok(ports) => {
            let port = |p: &[String; 4]| json!({"direction": p[0], "name": p[1], "shape": p[2], "doc": p[3]});
            ports.iter().map(port).collect()
        }
        Err(why) => json!({"unknown": why}),
    };
    json!({
        "type": "plugin", "id": info.id, "kind": info.kind.name(), "version": info.version,
        "abi": [info.abi.0, info.abi.1], "found": info.found, "library": info.library, "sha256": info.sha256,
        "summary": info.summary, "license": info.license, "features": info.features,
        "devices": info.devices(),
        "build_info": info.build_info, "schema": info.schema, "ports": ports,
    })
}
