//! `limbeck plugin list`.

use super::inputs::search_path;
use super::{Answer, Shell};
use crate::exit;
use crate::render::table;
use limbeck_host::load::Catalogue;
use serde_json::json;

/// Shows every plugin, its library, and where that was found.
///
/// # Errors
/// None in practice: broken files are warnings.
pub fn list(shell: &Shell) -> Answer {
    let (catalogue, warnings) = Catalogue::discover(&search_path(None, shell))?;
    shell.renderer.problems(&warnings);
    let mut rows =
        vec![["plugin", "kind", "version", "ABI", "found", "library"].map(str::to_owned).to_vec()];
    for info in catalogue.plugins() {
        let abi = format!("{}.{}", info.abi.0, info.abi.1);
        if shell.renderer.is_json() {
            let value = json!({
                "type": "plugin", "id": info.id, "kind": info.kind.name(), "version": info.version, "abi": abi,
                "found": info.found, "library": info.library, "sha256": info.sha256, "summary": info.summary,
            });
            shell.renderer.answer("", &value);
        }
        rows.push(vec![
            info.id.clone(),
            info.kind.name().to_owned(),
            info.version.clone(),
            abi,
            info.found.clone(),
            info.library.display().to_string(),
        ]);
    }
    if !shell.renderer.is_json() {
        shell.renderer.document(&table::columns(&rows));
    }
    Ok(exit::DONE)
}
