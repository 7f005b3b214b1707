//! Which plugins exist and where they were found.
//!
//! Refuses what is not locked, changed or in a place that others can write, before any of its code runs. The first
//! library in the search order that offers an id serves it.

mod discover;
#[cfg(test)]
mod tests;
mod version;

pub use version::satisfies;

use super::codes;
use super::instance::{Instance, PluginError};
use super::library::{Described, Library};
use super::settings::Schema;
use crate::diagnostic::{Diagnostic, Diagnostics, did_you_mean};
use crate::plan::PinnedPlugin;
use limbeck_abi as abi;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where to look, in this order; never the working directory, never a bare name.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    /// `plugins[]` of the pipeline.
    pub pinned: Vec<PinnedPlugin>,
    /// `--plugin-dir`, then `LIMBECK_PLUGIN_PATH`.
    pub directories: Vec<PathBuf>,
    /// Beside the executable: trusted without a lock entry.
    pub builtin: Option<PathBuf>,
    /// User and system data directories.
    pub data: Vec<PathBuf>,
    /// `limbeck.lock` beside the pipeline.
    pub lock: Option<PathBuf>,
    /// `--allow-unlocked`.
    pub allow_unlocked: bool,
    /// Where verified copies are kept; the user's cache unless given.
    pub cache: Option<PathBuf>,
}

/// What a plugin says about itself, owned.
#[derive(Clone, Debug)]
pub struct PluginInfo {
    /// Plugin id.
    pub id: String,
    /// `teacher`, `student`, `loss`, `scheduler`.
    pub kind: PluginKind,
    /// semver.
    pub version: String,
    /// One line.
    pub summary: String,
    /// SPDX.
    pub license: String,
    /// JSON Schema of `with`.
    pub schema: serde_json::Value,
    /// `1 << DLDeviceType` bits.
    pub device_mask: u64,
    /// `deterministic`, `piecewise`, ...
    pub features: Vec<String>,
    /// ABI (major, minor) of its library.
    pub abi: (u32, u32),
    /// Compiler, SDK version.
    pub build_info: String,
    /// File it came from.
    pub library: PathBuf,
    /// `beside the executable`, `--plugin-dir`, ...
    pub found: String,
    /// SHA-256 of that file, hex.
    pub sha256: String,
}

impl PluginInfo {
    /// What this build of it can compute on: `cpu`, `cuda`.
    pub fn devices(&self) -> Vec<&'static str> {
        let known = [(limbeck_abi::DL_CPU, "cpu"), (limbeck_abi::DL_CUDA, "cuda")];
        let offered = known.into_iter().filter(|(kind, _)| self.device_mask & (1 << kind) != 0);
        offered.map(|(_, name)| name).collect()
    }
}

/// Kinds of plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PluginKind {
    /// Gives targets.
    Teacher,
    /// Is trained.
    Student,
    /// Value and gradients.
    Loss,
    /// Steers a stream of tasks.
    Scheduler,
}

impl PluginKind {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
            Self::Loss => "loss",
            Self::Scheduler => "scheduler",
        }
    }

    /// By lower-case name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Teacher, Self::Student, Self::Loss, Self::Scheduler]
            .into_iter()
            .find(|k| k.name() == name)
    }

    /// By `limbeck_abi::KIND_*`; `None` for kinds that this host does not know.
    pub fn from_abi(kind: i32) -> Option<Self> {
        match kind {
            abi::KIND_TEACHER => Some(Self::Teacher),
            abi::KIND_STUDENT => Some(Self::Student),
            abi::KIND_LOSS => Some(Self::Loss),
            abi::KIND_SCHEDULER => Some(Self::Scheduler),
            _ => None,
        }
    }
}

impl SearchPath {
    /// `plugin_dirs`, then `LIMBECK_PLUGIN_PATH`, beside the executable, then the user's and the system's data
    /// directories. Pinned plugins and the lock come from the pipeline: see [`SearchPath::for_pipeline`].
    pub fn standard(plugin_dirs: &[PathBuf]) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let mut directories = plugin_dirs.to_vec();
        if let Some(path) = set("LIMBECK_PLUGIN_PATH") {
            // An empty entry would mean the working directory, which is never searched.
            directories.extend(std::env::split_paths(&path).filter(|p| p.is_absolute()));
        }
        let home = set("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|h| PathBuf::from(h).join(".local/share")));
        let mut data: Vec<PathBuf> = home.into_iter().map(|d| d.join("limbeck/plugins")).collect();
        data.extend(["/usr/local/lib/limbeck", "/usr/lib/limbeck"].map(PathBuf::from));
        let executable = std::env::current_exe().ok();
        let builtin = executable.and_then(|e| e.parent().map(Path::to_owned));
        Self { directories, builtin, data, ..Self::default() }
    }

    /// Adds a pipeline's pinned plugins and the lock beside it.
    #[must_use]
    pub fn for_pipeline(mut self, plan: &crate::plan::Plan) -> Self {
        self.pinned = plan.plugins.clone();
        self.lock = Some(plan.base_dir.join(super::lock::FILE_NAME));
        self
    }
}

/// The plugins that were found; their libraries stay open until the process ends.
pub struct Catalogue {
    entries: BTreeMap<String, Entry>,
    refused: BTreeMap<String, Refused>,
    unlocked: Vec<String>,
}

/// A plugin that can be used.
struct Entry {
    info: PluginInfo,
    library: &'static Library,
    described: &'static Described,
    schema: OnceLock<Result<Schema, String>>,
}

/// A plugin whose file was found and not opened.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Plugin id, from the manifest.
    pub id: String,
    /// File.
    pub library: PathBuf,
    /// Where it was found.
    pub found: String,
    /// Why it may not be used; an error.
    pub why: Diagnostic,
}

impl Catalogue {
    /// Reads manifests, verifies the lock, stages and opens libraries.
    ///
    /// # Errors
    /// A pinned plugin that is missing, changed or unsafe. Broken files in directories become warnings.
    pub fn discover(search: &SearchPath) -> Result<(Self, Diagnostics), Diagnostics> {
        discover::discover(search)
    }

    /// All plugins, sorted by id.
    pub fn plugins(&self) -> impl Iterator<Item = &PluginInfo> {
        self.entries.values().map(|e| &e.info)
    }

    /// Plugins that were found and refused, sorted by id; none of their code has run.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    /// Ids that are used although they are not locked (`--allow-unlocked`), for the run record.
    pub fn unlocked(&self) -> &[String] {
        &self.unlocked
    }

    /// One plugin.
    pub fn find(&self, id: &str) -> Option<&PluginInfo> {
        self.entries.get(id).map(|e| &e.info)
    }

    /// The module that offers a plugin, for the conformance checker.
    pub fn module(&self, id: &str) -> Option<&'static abi::Module> {
        self.entries.get(id).map(|e| e.library.module())
    }

    /// Why there is no such plugin; the caller adds the place.
    pub fn missing(&self, id: &str) -> Diagnostic {
        if let Some(refused) = self.refused.get(id) {
            return refused.why.clone();
        }
        let diagnostic =
            Diagnostic::error(codes::UNKNOWN_PLUGIN, format!("no plugin `{id}` was found"));
        let known = self.entries.keys().chain(self.refused.keys()).map(String::as_str);
        match did_you_mean(id, known) {
            Some(close) => diagnostic.help(format!("did you mean `{close}`?")),
            None => diagnostic.help(
                "`limbeck plugin list` shows what was found; `plugins` in the pipeline or --plugin-dir adds libraries",
            ),
        }
    }

    /// Fills schema defaults into `with` after checking it. Errors carry JSON Pointers in [`SettingError`].
    ///
    /// # Errors
    /// Everything the schema refuses.
    pub fn check_settings(&self, id: &str, with: &Json) -> Result<Json, Vec<SettingError>> {
        self.check_settings_in(id, with, None)
    }

    /// As [`Catalogue::check_settings`], and makes strings of format `input-path` absolute: relative to `base`, or
    /// `hf:org/name@revision` in the local Hugging Face cache. They must exist.
    ///
    /// # Errors
    /// Everything the schema refuses, and inputs that do not exist.
    pub fn check_settings_in(
        &self,
        id: &str,
        with: &Json,
        base: Option<&Path>,
    ) -> Result<Json, Vec<SettingError>> {
        let whole =
            |diagnostic| vec![SettingError { pointer: String::new(), at_key: false, diagnostic }];
        let Some(entry) = self.entries.get(id) else { return Err(whole(self.missing(id))) };
        let schema = entry.schema.get_or_init(|| Schema::new(entry.info.schema.clone()));
        match schema {
            Ok(schema) => schema.check(id, with, base),
            Err(why) => {
                let text =
                    format!("plugin `{id}` has a settings schema that is no JSON Schema: {why}");
                Err(whole(Diagnostic::error(codes::MANIFEST_DISAGREES, text)))
            }
        }
    }

    /// Inputs that settings name: as written and as found.
    pub fn input_paths(&self, id: &str, with: &Json, base: &Path) -> Vec<(String, PathBuf)> {
        let Some(entry) = self.entries.get(id) else { return Vec::new() };
        match entry.schema.get_or_init(|| Schema::new(entry.info.schema.clone())) {
            Ok(schema) => schema.inputs(with, base),
            Err(_) => Vec::new(),
        }
    }

    /// Creates an instance; `with` has passed [`Catalogue::check_settings`].
    ///
    /// # Errors
    /// What the plugin said, with the JSON Pointer of the setting in its notes.
    pub fn create(&self, id: &str, with: &Json) -> Result<Instance, PluginError> {
        match self.entries.get(id) {
            Some(entry) => entry.library.create(entry.described, &with.to_string()),
            None => {
                let why = self.missing(id).message;
                Err(PluginError::new((id, "?"), "create", abi::STATUS_NOT_FOUND, why))
            }
        }
    }
}

/// A setting that a plugin's schema (or the plugin itself) refuses.
#[derive(Clone, Debug)]
pub struct SettingError {
    /// JSON Pointer into `with`.
    pub pointer: String,
    /// The key itself is wrong (unknown), not its value.
    pub at_key: bool,
    /// Message, code and help, without place.
    pub diagnostic: Diagnostic,
}
