//! Finds libraries: search order, manifest, lock, staging, opening.
//!
//! A library's code runs only after its manifest, place and hash have passed; which of them fails decides the code.

use super::{Catalogue, Entry, PluginInfo, Refused, SearchPath, satisfies};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::load::codes;
use crate::load::library::{self, Library, LibraryError};
use crate::load::lock::{Lock, Verdict};
use crate::load::manifest::{self, Manifest, ManifestError};
use crate::load::staging::{self, Opened, StagingError};
use crate::plan::PinnedPlugin;
use limbeck_abi as abi;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// How far a place is trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Beside the executable: whoever can write there owns the program already.
    Builtin,
    /// Must be locked and in a safe place.
    Locked,
}

pub(super) fn discover(search: &SearchPath) -> Result<(Catalogue, Diagnostics), Diagnostics> {
    let lock = search.lock.as_deref().map_or_else(|| Ok(Lock::default()), Lock::load);
    let lock = lock.map_err(|e| {
        let help = "restore it from version control, or write it anew with `limbeck plugin lock`";
        vec![with_source(codes::BAD_LOCK, &e).help(help)]
    })?;
    let mut discovery = Discovery {
        search,
        lock,
        catalogue: Catalogue {
            entries: BTreeMap::new(),
            refused: BTreeMap::new(),
            unlocked: Vec::new(),
        },
        warnings: Vec::new(),
    };
    let mut errors: Diagnostics = Vec::new();
    for pinned in &search.pinned {
        if let Err(problem) = discovery.pinned(pinned) {
            errors.push(problem.at(pinned.span.clone()));
        }
    }
    for dir in &search.directories {
        discovery.directory(dir, &format!("in {}", dir.display()), Trust::Locked);
    }
    if let Some(dir) = &search.builtin {
        discovery.directory(dir, "beside the executable", Trust::Builtin);
    }
    for dir in &search.data {
        discovery.directory(dir, &format!("in {}", dir.display()), Trust::Locked);
    }
    if errors.is_empty() {
        return Ok((discovery.catalogue, discovery.warnings));
    }
    errors.append(&mut discovery.warnings);
    Err(errors)
}

struct Discovery<'a> {
    search: &'a SearchPath,
    lock: Lock,
    catalogue: Catalogue,
    warnings: Diagnostics,
}

/// A message and its causes in one line.
fn with_source(code: &'static str, error: &dyn std::error::Error) -> Diagnostic {
    let mut diagnostic = Diagnostic::error(code, error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        diagnostic = diagnostic.note(cause.to_string());
        source = cause.source();
    }
    diagnostic
}

fn staging_problem(error: &StagingError) -> Diagnostic {
    match error {
        StagingError::Read { .. } => with_source(codes::FILE_MISSING, error),
        StagingError::Unsafe { .. } => with_source(codes::UNSAFE_PLACE, error).help(
            "plugins run with all your rights: keep them where only you can write (chmod go-w)",
        ),
        StagingError::Cache { .. } => with_source(codes::STAGING, error)
            .help("set LIMBECK_CACHE to a directory that you can write"),
    }
}

fn library_problem(path: &Path, error: &LibraryError) -> Diagnostic {
    let file = path.display();
    match error {
        LibraryError::Abi => abi_problem(&format!("library {file}"), None),
        LibraryError::Init(_) => {
            Diagnostic::error(codes::INIT_FAILED, format!("library {file}: {error}"))
        }
        LibraryError::Contract(_) => {
            Diagnostic::error(codes::MANIFEST_DISAGREES, format!("library {file}: {error}"))
        }
        LibraryError::Open(_) | LibraryError::NoEntry => {
            Diagnostic::error(codes::OPEN_FAILED, format!("library {file}: {error}"))
        }
    }
}

fn abi_problem(who: &str, built_for: Option<(u32, u32)>) -> Diagnostic {
    let this = format!("this program speaks {}.{}", abi::ABI_MAJOR, abi::ABI_MINOR);
    let text = match built_for {
        Some((major, minor)) => {
            format!("{who} was built for ABI {major}.{minor}, {this}; not loaded")
        }
        None => format!("{who} was built for another ABI, {this}; not loaded"),
    };
    Diagnostic::error(codes::ABI, text).help("get a build of it for this version of Limbeck")
}

impl Discovery<'_> {
    fn pinned(&mut self, pinned: &PinnedPlugin) -> Result<(), Diagnostic> {
        let opened = staging::open(&pinned.path, true).map_err(|e| staging_problem(&e))?;
        let manifest = manifest::read(&opened.bytes).map_err(|e| no_plugin(&opened, &e))?;
        check_abi(&manifest, &opened)?;
        let file = pinned.path.display();
        let Some(plugin) = manifest.plugins.iter().find(|p| p.id == pinned.id) else {
            let ids: Vec<String> = manifest.plugins.iter().map(|p| format!("`{}`", p.id)).collect();
            let text = format!("{file} offers {}, not `{}`", ids.join(", "), pinned.id);
            return Err(Diagnostic::error(codes::PIN_UNMET, text));
        };
        if let Some(requirement) = &pinned.version {
            let text = match satisfies(&plugin.version, requirement) {
                Some(true) => None,
                Some(false) => Some(format!(
                    "`{}` in {file} is version {}, the pipeline asks for {requirement}",
                    pinned.id, plugin.version
                )),
                None => Some(format!("`{requirement}` is no version requirement (such as `^0.2`)")),
            };
            if let Some(text) = text {
                return Err(Diagnostic::error(codes::PIN_UNMET, text));
            }
        }
        self.check_lock(&manifest, &opened)?;
        self.open(&manifest, &opened, "`plugins` of the pipeline")
    }

    /// Every library in a directory, in the order of names. A directory that is not there is no problem.
    fn directory(&mut self, dir: &Path, found: &str, trust: Trust) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            tracing::debug!(target: "limbeck::host", dir = %dir.display(), "no plugin directory");
            return;
        };
        let is_library =
            |p: &PathBuf| p.extension().is_some_and(|e| e == std::env::consts::DLL_EXTENSION);
        let mut files: Vec<PathBuf> =
            entries.filter_map(|e| Some(e.ok()?.path())).filter(is_library).collect();
        files.sort();
        for file in files {
            if let Err(problem) = self.file(&file, found, trust) {
                self.warnings
                    .push(Diagnostic { severity: crate::diagnostic::Severity::Warning, ..problem });
            }
        }
    }

    fn file(&mut self, path: &Path, found: &str, trust: Trust) -> Result<(), Diagnostic> {
        // A first look without judging the place: most libraries in a directory need not be plugins.
        let opened = staging::open(path, false).map_err(|e| staging_problem(&e))?;
        let manifest = match manifest::read(&opened.bytes) {
            Err(ManifestError::Absent | ManifestError::NotElf(_)) => {
                tracing::debug!(target: "limbeck::host", file = %path.display(), "not a plugin");
                return Ok(());
            }
            other => other.map_err(|e| no_plugin(&opened, &e))?,
        };
        let serves = |id: &str| self.catalogue.entries.contains_key(id);
        if manifest.plugins.iter().all(|p| serves(&p.id)) {
            self.shadowed(&manifest, &opened);
            return Ok(());
        }
        let trusted = check_abi(&manifest, &opened).and_then(|()| match trust {
            Trust::Builtin => Ok(()),
            Trust::Locked => staging::check_place(path)
                .map_err(|e| staging_problem(&e))
                .and_then(|()| self.check_lock(&manifest, &opened)),
        });
        trusted.and_then(|()| self.open(&manifest, &opened, found)).inspect_err(|why| {
            for plugin in &manifest.plugins {
                let refused = Refused {
                    id: plugin.id.clone(),
                    library: path.to_owned(),
                    found: found.to_owned(),
                    why: why.clone(),
                };
                self.catalogue.refused.entry(plugin.id.clone()).or_insert(refused);
            }
        })
    }

    fn check_lock(&mut self, manifest: &Manifest, opened: &Opened) -> Result<(), Diagnostic> {
        let file = opened.path.display();
        let command = match &self.search.lock {
            Some(lock) => {
                format!("limbeck plugin lock PIPELINE.yaml (writes {})", lock.display())
            }
            None => "the same command with --allow-unlocked".to_owned(),
        };
        for plugin in &manifest.plugins {
            let id = &plugin.id;
            let problem = match self.lock.verify(plugin, manifest, opened) {
                Verdict::Trusted => continue,
                Verdict::NotLocked => Diagnostic::error(
                    codes::NOT_LOCKED,
                    format!("plugin `{id}` ({file}) is not in limbeck.lock"),
                )
                .note(format!("found: sha256 {} ({} bytes)", opened.sha256, opened.bytes.len()))
                .help(format!("if you trust it, run: {command}")),
                Verdict::Changed { locked, found } => Diagnostic::error(
                    codes::CHANGED,
                    format!("plugin `{id}` ({file}) is not the one in limbeck.lock"),
                )
                .note(format!("locked: {locked}"))
                .note(format!("found:  {found}"))
                .help(format!("if the change is wanted, run: {command}")),
            };
            if !self.search.allow_unlocked {
                return Err(problem);
            }
            self.catalogue.unlocked.push(id.clone());
            let text = format!("{}; used all the same (--allow-unlocked)", problem.message);
            self.warnings.push(Diagnostic::warning(codes::UNLOCKED_ALLOWED, text));
        }
        Ok(())
    }

    fn open(
        &mut self,
        manifest: &Manifest,
        opened: &Opened,
        found: &str,
    ) -> Result<(), Diagnostic> {
        let cache = self.search.cache.clone().unwrap_or_else(staging::cache_dir);
        let staged = staging::stage(opened, &cache).map_err(|e| staging_problem(&e))?;
        let library = library::open(&staged).map_err(|e| library_problem(&opened.path, &e))?;
        agree(manifest, library).map_err(|text| {
            Diagnostic::error(
                codes::MANIFEST_DISAGREES,
                format!("library {}: {text}", opened.path.display()),
            )
        })?;
        for described in &library.plugins {
            let id = described.id.to_owned();
            if let Some(first) = self.catalogue.entries.get(&id) {
                self.warnings.push(shadow(&id, &opened.path, &first.info.library));
                continue;
            }
            if let Some(interface) = described.unmet.first() {
                let text = format!(
                    "plugin `{id}` needs `{interface}`, which this program does not offer; not used"
                );
                let why = Diagnostic::error(codes::NEEDS_INTERFACE, text);
                let refused = Refused {
                    id: id.clone(),
                    library: opened.path.clone(),
                    found: found.to_owned(),
                    why,
                };
                self.catalogue.refused.insert(id, refused);
                continue;
            }
            let info = PluginInfo {
                id: id.clone(),
                kind: described.kind,
                version: described.version.to_owned(),
                summary: described.summary.clone(),
                license: described.license.clone(),
                schema: described.schema.clone(),
                device_mask: described.device_mask,
                features: described.features.clone(),
                abi: library.abi,
                build_info: library.build_info.clone(),
                library: opened.path.clone(),
                found: found.to_owned(),
                sha256: opened.sha256.clone(),
            };
            self.catalogue.refused.remove(&id);
            self.catalogue
                .entries
                .insert(id, Entry { info, library, described, schema: OnceLock::new() });
        }
        Ok(())
    }

    /// Everything in this file is served by earlier files; silent for an equal file and for pinned plugins.
    fn shadowed(&mut self, manifest: &Manifest, opened: &Opened) {
        for plugin in &manifest.plugins {
            let Some(first) = self.catalogue.entries.get(&plugin.id) else { continue };
            let pinned = self.search.pinned.iter().any(|p| p.id == plugin.id);
            if first.info.sha256 != opened.sha256 && !pinned {
                self.warnings.push(shadow(&plugin.id, &opened.path, &first.info.library));
            }
        }
    }
}

fn shadow(id: &str, path: &Path, first: &Path) -> Diagnostic {
    let text =
        format!("plugin `{id}` in {} is not used: {} comes first", path.display(), first.display());
    Diagnostic::warning(codes::SHADOWED, text)
}

fn no_plugin(opened: &Opened, error: &ManifestError) -> Diagnostic {
    Diagnostic::error(
        codes::NOT_A_PLUGIN,
        format!("{} cannot be used: {error}", opened.path.display()),
    )
}

fn check_abi(manifest: &Manifest, opened: &Opened) -> Result<(), Diagnostic> {
    if manifest.abi.0 == abi::ABI_MAJOR && manifest.pre.is_none() {
        return Ok(());
    }
    let who = match manifest.plugins.as_slice() {
        [only] => format!("plugin `{}`", only.id),
        _ => format!("library {}", opened.path.display()),
    };
    Err(abi_problem(&who, Some(manifest.abi)))
}

/// The manifest must say what the descriptors say, or a lock would pin something else than what runs.
fn agree(manifest: &Manifest, library: &Library) -> Result<(), String> {
    for described in &library.plugins {
        let stated = manifest.plugins.iter().find(|p| p.id == described.id);
        let Some(stated) = stated else {
            return Err(format!("offers `{}`, which its manifest does not name", described.id));
        };
        if stated.version != described.version || stated.kind != described.kind.name() {
            return Err(format!(
                "manifest says `{}` is {} {}, its descriptor {} {}",
                stated.id,
                stated.kind,
                stated.version,
                described.kind.name(),
                described.version
            ));
        }
    }
    let known = manifest.plugins.iter().filter(|p| p.known_kind().is_some());
    match known.into_iter().find(|p| !library.plugins.iter().any(|d| d.id == p.id)) {
        Some(plugin) => Err(format!("its manifest names `{}`, which it does not offer", plugin.id)),
        None => Ok(()),
    }
}
