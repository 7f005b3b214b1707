//! `limbeck.lock`: which plugin files a pipeline trusts, and what its input files held.
//!
//! Protects against change, not against malice at first use. Plugins beside the executable need no entry. Refuses
//! unknown keys, so that a damaged lock is never read as an empty one.

use super::manifest::{Manifest, ManifestPlugin};
use super::staging::Opened;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file beside the pipeline.
pub const FILE_NAME: &str = "limbeck.lock";

/// A lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Format, 1.
    pub version: u32,
    /// One entry per plugin id, sorted.
    #[serde(default)]
    pub plugins: Vec<Entry>,
    /// Files that settings name, sorted by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputEntry>,
}

/// One input: a file, or a directory with everything in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputEntry {
    /// As the pipeline writes it.
    pub path: String,
    /// By path below it; a single file by its name.
    pub files: BTreeMap<String, Digest>,
}

/// One trusted plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Plugin id.
    pub id: String,
    /// semver.
    pub version: String,
    /// `teacher`, `student`, `loss`, `scheduler`.
    pub kind: String,
    /// `1.0`.
    pub abi: String,
    /// Name of the library file, for people.
    pub file: String,
    /// By platform, e.g. `linux-x86_64`.
    pub platforms: BTreeMap<String, Digest>,
}

/// A file's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// Hex.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// Why a lock file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It cannot be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It is not a lock file.
    #[error("{} is not a lock file: {text}", path.display())]
    Malformed {
        /// File.
        path: PathBuf,
        /// What the parser said.
        text: String,
    },
}

/// Whether a file is what the lock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Locked, equal.
    Trusted,
    /// No entry for this id on this platform.
    NotLocked,
    /// Another file, or other facts in its manifest.
    Changed {
        /// What the lock holds.
        locked: String,
        /// What is there.
        found: String,
    },
}

/// `linux-x86_64`.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

impl Default for Lock {
    fn default() -> Self {
        Self { version: 1, plugins: Vec::new(), inputs: Vec::new() }
    }
}

impl Lock {
    /// Reads a lock file; one that does not exist is empty.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn load(path: &Path) -> Result<Self, LockError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(LockError::Io { path: path.to_owned(), source }),
        };
        let malformed = |text: String| LockError::Malformed { path: path.to_owned(), text };
        let lock: Self = serde_yaml::from_str(&text).map_err(|e| malformed(e.to_string()))?;
        if lock.version != 1 {
            return Err(malformed(format!("version {}, this program knows 1", lock.version)));
        }
        let mut ids = std::collections::BTreeSet::new();
        match lock.plugins.iter().find(|p| !ids.insert(&p.id)) {
            Some(entry) => Err(malformed(format!("`{}` twice", entry.id))),
            None => Ok(lock),
        }
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn save(&self, path: &Path) -> Result<(), LockError> {
        let fail = |source| LockError::Io { path: path.to_owned(), source };
        let body = serde_yaml::to_string(self).map_err(|e| fail(std::io::Error::other(e)))?;
        let text = format!(
            "# Written by `limbeck plugin lock`. Commit it: it pins the plugins this pipeline may load.\n{body}"
        );
        let temporary = path.with_extension(format!("lock.{}.tmp", std::process::id()));
        let write = || {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            fail(e)
        })
    }

    /// The entry of an id.
    pub fn find(&self, id: &str) -> Option<&Entry> {
        self.plugins.iter().find(|p| p.id == id)
    }

    /// Compares one plugin of a file with its entry for this platform.
    pub fn verify(&self, plugin: &ManifestPlugin, manifest: &Manifest, opened: &Opened) -> Verdict {
        let entry = self.find(&plugin.id);
        let Some((entry, digest)) = entry.and_then(|e| Some((e, e.platforms.get(&platform())?)))
        else {
            return Verdict::NotLocked;
        };
        let changed = |locked: String, found: String| Verdict::Changed { locked, found };
        if digest.sha256 != opened.sha256 || digest.size != opened.bytes.len() as u64 {
            return changed(
                format!("sha256 {} ({} bytes)", digest.sha256, digest.size),
                format!("sha256 {} ({} bytes)", opened.sha256, opened.bytes.len()),
            );
        }
        let facts = |kind: &str, version: &str, abi: &str| format!("{kind} {version}, ABI {abi}");
        let locked = facts(&entry.kind, &entry.version, &entry.abi);
        let found = facts(&plugin.kind, &plugin.version, &abi_text(manifest));
        if locked == found { Verdict::Trusted } else { changed(locked, found) }
    }

    /// Trusts every plugin of a file on this platform; entries of other platforms stay if the version is the same.
    pub fn pin(&mut self, manifest: &Manifest, opened: &Opened) {
        let file = opened.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest = Digest { sha256: opened.sha256.clone(), size: opened.bytes.len() as u64 };
        for plugin in &manifest.plugins {
            let old =
                self.plugins.iter().position(|p| p.id == plugin.id).map(|i| self.plugins.remove(i));
            let mut platforms = match old {
                Some(old) if old.version == plugin.version => old.platforms,
                _ => BTreeMap::new(),
            };
            platforms.insert(platform(), digest.clone());
            self.plugins.push(Entry {
                id: plugin.id.clone(),
                version: plugin.version.clone(),
                kind: plugin.kind.clone(),
                abi: abi_text(manifest),
                file: file.clone(),
                platforms,
            });
        }
        self.plugins.sort_by(|a, b| a.id.cmp(&b.id));
    }
}

fn abi_text(manifest: &Manifest) -> String {
    format!("{}.{}", manifest.abi.0, manifest.abi.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Manifest, Opened) {
        let plugin =
            ManifestPlugin { id: "org.x".into(), kind: "loss".into(), version: "0.1.0".into() };
        let bytes = b"code".to_vec();
        let sha256 = super::super::staging::sha256(&bytes);
        (
            Manifest { abi: (1, 0), pre: None, plugins: vec![plugin] },
            Opened { path: "plugins/libx.so".into(), bytes, sha256 },
        )
    }

    #[test]
    fn a_lock_survives_saving_and_notices_a_changed_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let (manifest, mut opened) = sample();
        let mut lock = Lock::load(&path).unwrap();
        assert_eq!(lock.verify(&manifest.plugins[0], &manifest, &opened), Verdict::NotLocked);
        lock.pin(&manifest, &opened);
        lock.save(&path).unwrap();
        let lock = Lock::load(&path).unwrap();
        assert_eq!(lock.verify(&manifest.plugins[0], &manifest, &opened), Verdict::Trusted);
        opened.bytes = b"evil".to_vec();
        opened.sha256 = super::super::staging::sha256(&opened.bytes);
        let verdict = lock.verify(&manifest.plugins[0], &manifest, &opened);
        let Verdict::Changed { locked, found } = verdict else { panic!("{verdict:?}") };
        assert!(locked.contains("sha256") && found.contains(&opened.sha256));
    }

    #[test]
    fn other_platforms_stay_locked_until_the_version_changes() {
        let (mut manifest, opened) = sample();
        let mut lock = Lock::default();
        lock.pin(&manifest, &opened);
        let digest = Digest { sha256: "00".into(), size: 1 };
        lock.plugins[0].platforms.insert("plan9-mips".into(), digest);
        lock.pin(&manifest, &opened);
        assert_eq!(lock.plugins[0].platforms.len(), 2);
        manifest.plugins[0].version = "0.2.0".into();
        lock.pin(&manifest, &opened);
        assert_eq!(lock.plugins[0].platforms.len(), 1);
    }

    #[test]
    fn a_damaged_lock_is_an_error_and_not_an_empty_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for text in
            ["version: 2\n", "version: 1\nplugin: []\n", "[", "version: 1\nplugins: [{id: x}]\n"]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Lock::load(&path), Err(LockError::Malformed { .. })), "{text}");
        }
    }
}
