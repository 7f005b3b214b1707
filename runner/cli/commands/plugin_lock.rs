//! `limbeck plugin lock [FILE]`.

use super::inputs::{plan_file, search_path};
use super::{Answer, Shell, Stop};
use crate::exit;
use limbeck_host::diagnostic::Diagnostic;
use limbeck_host::load::lock::{FILE_NAME, Lock};
use limbeck_host::load::{Catalogue, SearchPath, inputs, manifest, staging};
use limbeck_host::plan::{PinnedPlugin, Plan};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pins every plugin of a pipeline that does not lie beside the executable, and the files that settings name.
///
/// # Errors
/// The pipeline does not read; a plugin file is missing, unsafe, or none; the lock cannot be written.
pub fn lock(file: Option<&Path>, shell: &Shell) -> Answer {
    let file = match file {
        Some(file) => file.to_owned(),
        None => only_pipeline()?,
    };
    let plan = plan_file(&file, &[])?;
    let path = plan.base_dir.join(FILE_NAME);
    let mut lock = Lock::load(&path).map_err(|e| bad_lock(&e))?;
    lock.version = 1;
    let libraries = libraries(&plan, shell)?;
    for library in &libraries {
        let opened = staging::open(library, true).map_err(|e| {
            Stop::from(Diagnostic::error("LMB0307", format!("{}: {e}", library.display())))
        })?;
        let manifest = manifest::read(&opened.bytes).map_err(|e| {
            Stop::from(Diagnostic::error("LMB0303", format!("{}: {e}", library.display())))
        })?;
        for plugin in &manifest.plugins {
            let text = format!(
                "{} {}   {}   {:.16}   {}",
                plugin.id,
                plugin.version,
                plugin.kind,
                opened.sha256,
                library.display()
            );
            let value = json!({
                "type": "locked", "id": plugin.id, "version": plugin.version, "kind": plugin.kind,
                "sha256": opened.sha256, "library": library,
            });
            shell.renderer.answer(&text, &value);
        }
        lock.pin(&manifest, &opened);
    }
    let save =
        |lock: &Lock| lock.save(&path).map_err(|e| Diagnostic::error("LMB0702", e.to_string()));
    if !libraries.is_empty() {
        save(&lock)?;
    }
    // Settings are understood by their plugins, which are trusted from here on.
    let (catalogue, _) = Catalogue::discover(&search_path(Some(&plan), shell))?;
    let inputs = inputs::read(&plan, &catalogue)?;
    for input in &inputs {
        let value = json!({"type": "locked", "input": input.written, "files": input.files.len()});
        let (written, count) = (&input.written, input.files.len());
        shell.renderer.answer(&format!("{written}   input, {count} files"), &value);
    }
    lock.pin_inputs(&inputs);
    if libraries.is_empty() && inputs.is_empty() {
        shell.renderer.note(
            "every plugin lies beside the program, and no setting names a file: nothing to lock",
        );
        return Ok(exit::DONE);
    }
    save(&lock)?;
    shell.renderer.note(&format!("wrote {}", path.display()));
    shell
        .renderer
        .note("A lock protects against change, not against malice: look at what you lock.");
    Ok(exit::DONE)
}

fn bad_lock(error: &limbeck_host::load::lock::LockError) -> Stop {
    Diagnostic::error("LMB0310", error.to_string()).help("delete it and lock again").into()
}

fn only_pipeline() -> Result<PathBuf, Stop> {
    let entries = std::fs::read_dir(".").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (first, _) => {
            let message =
                if first.is_some() { "several pipelines here" } else { "no pipeline here" };
            Err(Diagnostic::error("LMB1001", message)
                .help("name one: limbeck plugin lock FILE")
                .into())
        }
    }
}

/// Library files that the pipeline needs and that are not built in. Looks without trust: nothing of them runs here.
fn libraries(plan: &Plan, shell: &Shell) -> Result<BTreeSet<PathBuf>, Stop> {
    let mut files: BTreeSet<PathBuf> =
        plan.plugins.iter().map(|p: &PinnedPlugin| p.path.clone()).collect();
    let pinned: BTreeSet<&str> = plan.plugins.iter().map(|p| p.id.as_str()).collect();
    let stages = plan.stages.iter().filter_map(|s| s.training());
    let used: BTreeSet<String> =
        stages.flat_map(|t| t.plugin_uses().map(|p| p.id.clone())).collect();
    // Plugins of other directories are refused before any code of them runs, but their files are known.
    let search =
        SearchPath { pinned: Vec::new(), allow_unlocked: false, ..search_path(Some(plan), shell) };
    let builtin = search.builtin.clone();
    let (catalogue, _) = Catalogue::discover(&search)?;
    let is_builtin = |file: &Path| builtin.as_deref().is_some_and(|b| file.parent() == Some(b));
    for id in used.iter().filter(|id| !pinned.contains(id.as_str())) {
        if let Some(refused) = catalogue.refused().find(|r| r.id == *id) {
            files.insert(refused.library.clone());
        } else if let Some(info) = catalogue.find(id) {
            if !is_builtin(&info.library) {
                files.insert(info.library.clone());
            }
        } else {
            return Err(catalogue.missing(id).into());
        }
    }
    Ok(files)
}
