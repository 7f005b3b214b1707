//! Which plugins exist and where they were found.

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::PinnedPlugin;
use std::path::PathBuf;

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
}

/// The plugins that were found; their libraries stay open until the process ends.
pub struct Catalogue {}

impl Catalogue {
    /// Reads manifests, verifies the lock, stages and opens libraries.
    ///
    /// # Errors
    /// A pinned plugin that is missing, changed or unsafe. Broken files in directories become warnings.
    pub fn discover(_search: &SearchPath) -> Result<(Self, Diagnostics), Diagnostics> {
        todo!()
    }

    /// All plugins, sorted by id.
    pub fn plugins(&self) -> impl Iterator<Item = &PluginInfo> {
        std::iter::empty()
    }

    /// One plugin.
    pub fn find(&self, _id: &str) -> Option<&PluginInfo> {
        todo!()
    }

    /// Fills schema defaults into `with` after checking it. Errors carry JSON Pointers in [`SettingError`].
    ///
    /// # Errors
    /// Everything the schema refuses.
    pub fn check_settings(
        &self,
        _id: &str,
        _with: &serde_json::Value,
    ) -> Result<serde_json::Value, Vec<SettingError>> {
        todo!()
    }

    /// Creates an instance; `with` has passed [`Catalogue::check_settings`].
    ///
    /// # Errors
    /// What the plugin said, with the JSON Pointer of the setting in its notes.
    pub fn create(
        &self,
        _id: &str,
        _with: &serde_json::Value,
    ) -> Result<super::Instance, super::instance::PluginError> {
        todo!()
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
