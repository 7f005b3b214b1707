//! Checkpoints that are either whole or not there.
//!
//! Written into `.tmp-step-N-PID/`, every file synced, `manifest.json` last, then renamed to `step-N`. The truth is
//! the set of directories whose manifest verifies by size and SHA-256; `LATEST` and `BEST` are hints. Knows no
//! meaning of the files inside. Only the owner of the run may call [`Store::clean`] and [`Store::write`].

use super::RunError;
use super::error::{RunResult, io_error};
use super::vfs::{Vfs, replace};
use crate::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

const FORMAT: u32 = 1;

/// Files by relative name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of the checkpoint.
    pub version: u32,
    /// Step of the stage.
    pub step: u64,
    /// Length of `metrics.jsonl` at this point.
    pub metrics_offset: u64,
    /// Hash of the resolved pipeline.
    pub resolved: String,
    /// Hash of what was loaded: plugins and data.
    pub inputs: String,
    /// Every other file.
    pub files: Vec<FileEntry>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative name with `/`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// What is written beside the files.
#[derive(Clone, Debug)]
pub struct Header {
    /// Step of the stage.
    pub step: u64,
    /// Length of `metrics.jsonl`, already durable.
    pub metrics_offset: u64,
    /// Hash of the resolved pipeline.
    pub resolved: String,
    /// Hash of plugins and data.
    pub inputs: String,
}

/// Which checkpoints survive a rotation.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// The newest ones.
    pub last: usize,
    /// Steps that stay whatever their age, best first.
    pub best: Vec<u64>,
}

/// A checkpoint that verified whole.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its files.
    pub files: Files,
}

/// The checkpoints of one stage.
pub struct Store<'a> {
    vfs: &'a dyn Vfs,
    dir: PathBuf,
}

/// `step-0000731`.
pub fn step_name(step: u64) -> String {
    format!("step-{step:07}")
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-").filter(|s| s.len() >= 7)?.parse().ok()
}

impl<'a> Store<'a> {
    /// Those in `dir` (a stage's `ckpt`).
    pub fn new(vfs: &'a dyn Vfs, dir: impl Into<PathBuf>) -> Self {
        Self { vfs, dir: dir.into() }
    }

    /// Steps that have a directory, newest first, verified or not.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn steps(&self) -> RunResult<Vec<u64>> {
        let names = self.vfs.list(&self.dir).map_err(|e| io_error("read", &self.dir, &e))?;
        let mut steps: Vec<u64> = names.iter().filter_map(|n| step_of(n)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Removes what an interrupted process left behind.
    ///
    /// # Errors
    /// The directory cannot be read or changed.
    pub fn clean(&self) -> RunResult<()> {
        let names = self.vfs.list(&self.dir).map_err(|e| io_error("read", &self.dir, &e))?;
        for name in names.iter().filter(|n| n.starts_with(".tmp-step-") || n.starts_with(".trash-"))
        {
            let path = self.dir.join(name);
            self.vfs.remove_dir_all(&path).map_err(|e| io_error("remove", &path, &e))?;
        }
        Ok(())
    }

    /// Writes a checkpoint, then the hints, then rotates. Gives folder and bytes.
    ///
    /// # Errors
    /// Any failed operation; older checkpoints are intact and named in the message.
    pub fn write(&self, header: &Header, files: &Files, keep: &Keep) -> RunResult<(PathBuf, u64)> {
        let size: u64 = files.values().map(|b| b.len() as u64).sum();
        let target = self.dir.join(step_name(header.step));
        let temporary =
            self.dir.join(format!(".tmp-{}-{}", step_name(header.step), std::process::id()));
        self.place(header, files, &temporary, &target).map_err(|e| {
            // Best effort: the next owner removes it as well.
            let _ = self.vfs.remove_dir_all(&temporary);
            self.write_failed(header.step, size, &e)
        })?;
        self.hints(header.step, keep).map_err(|e| io_error("write hints in", &self.dir, &e))?;
        self.rotate(header.step, keep)?;
        Ok((target, size))
    }

    fn place(&self, header: &Header, files: &Files, tmp: &Path, target: &Path) -> io::Result<()> {
        if self.vfs.list(tmp)?.is_empty() {
            self.vfs.create_dir_all(tmp)?;
        } else {
            self.vfs.remove_dir_all(tmp)?;
            self.vfs.create_dir_all(tmp)?;
        }
        let mut folders = std::collections::BTreeSet::new();
        let mut entries = Vec::new();
        for (name, bytes) in files {
            let path = tmp.join(name);
            if let Some(folder) = path.parent().filter(|f| *f != tmp)
                && folders.insert(folder.to_owned())
            {
                self.vfs.create_dir_all(folder)?;
            }
            self.vfs.write(&path, bytes)?;
            self.vfs.sync(&path)?;
            let (size, sha256) = (bytes.len() as u64, sha256(bytes));
            entries.push(FileEntry { name: name.clone(), size, sha256 });
        }
        let manifest = Manifest {
            version: FORMAT,
            step: header.step,
            metrics_offset: header.metrics_offset,
            resolved: header.resolved.clone(),
            inputs: header.inputs.clone(),
            files: entries,
        };
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        let path = tmp.join("manifest.json");
        self.vfs.write(&path, &bytes)?;
        self.vfs.sync(&path)?;
        for folder in &folders {
            self.vfs.sync_dir(folder)?;
        }
        self.vfs.sync_dir(tmp)?;
        if !self.vfs.list(target)?.is_empty() {
            // The same step at a later place (after its task's end): the older one gives way.
            let trash =
                self.dir.join(format!(".trash-{}-{}", step_name(header.step), std::process::id()));
            self.vfs.rename(target, &trash)?;
            self.vfs.rename(tmp, target)?;
            self.vfs.sync_dir(&self.dir)?;
            return self.vfs.remove_dir_all(&trash);
        }
        self.vfs.rename(tmp, target)?;
        self.vfs.sync_dir(&self.dir)
    }

    fn hints(&self, step: u64, keep: &Keep) -> io::Result<()> {
        let line = |step: u64| format!("{}\n", step_name(step)).into_bytes();
        replace(self.vfs, &self.dir.join("LATEST"), &line(step))?;
        match keep.best.first() {
            Some(best) => replace(self.vfs, &self.dir.join("BEST"), &line(*best)),
            None => Ok(()),
        }
    }

    fn rotate(&self, newest: u64, keep: &Keep) -> RunResult<()> {
        let steps = self.steps()?;
        let victims = steps.iter().enumerate().filter(|(place, step)| {
            **step != newest && *place >= keep.last.max(1) && !keep.best.contains(step)
        });
        for (_, step) in victims {
            let path = self.dir.join(step_name(*step));
            let trash =
                self.dir.join(format!(".trash-{}-{}", step_name(*step), std::process::id()));
            self.vfs.rename(&path, &trash).map_err(|e| io_error("remove", &path, &e))?;
            self.vfs.remove_dir_all(&trash).map_err(|e| io_error("remove", &trash, &e))?;
        }
        Ok(())
    }

    fn write_failed(&self, step: u64, size: u64, error: &io::Error) -> RunError {
        let name = step_name(step);
        let intact = self.steps().ok().and_then(|s| s.into_iter().find(|s| *s != step));
        let intact = intact.map_or_else(
            || "there is no older checkpoint in this stage".to_owned(),
            |step| format!("{} is intact", step_name(step)),
        );
        if error.kind() == io::ErrorKind::StorageFull
            || error.kind() == io::ErrorKind::QuotaExceeded
        {
            let free = self
                .vfs
                .free_bytes(&self.dir)
                .map_or_else(String::new, |free| format!(", {} free", readable_bytes(free)));
            let message = format!(
                "no space for checkpoint {name} (needs {}{free}); {intact}",
                readable_bytes(size)
            );
            return RunError::new(
                Diagnostic::error("LMB0701", message)
                    .note(format!("in {}", self.dir.display()))
                    .help("free some space, then give the same command"),
            );
        }
        let error = io_error("write checkpoint in", &self.dir.join(name), error);
        RunError { diagnostic: Box::new(error.diagnostic.note(intact)) }
    }

    /// Reads and verifies one checkpoint.
    ///
    /// # Errors
    /// Why it is not whole, in words.
    pub fn load(&self, step: u64) -> Result<Checkpoint, String> {
        let path = self.dir.join(step_name(step));
        let read = |name: &str| {
            self.vfs.read(&path.join(name)).map_err(|e| format!("cannot read {name}: {e}"))
        };
        let manifest: Manifest = serde_json::from_slice(&read("manifest.json")?)
            .map_err(|e| format!("manifest.json is damaged: {e}"))?;
        if manifest.version != FORMAT {
            return Err(format!("format {} is not {FORMAT}", manifest.version));
        }
        if manifest.step != step {
            return Err(format!("manifest.json belongs to step {}", manifest.step));
        }
        let mut files = Files::new();
        for entry in &manifest.files {
            let name = Path::new(&entry.name);
            if !name.components().all(|c| matches!(c, Component::Normal(_))) {
                return Err(format!("manifest.json names `{}`", entry.name));
            }
            let bytes = read(&entry.name)?;
            if bytes.len() as u64 != entry.size {
                let (found, wanted) = (bytes.len(), entry.size);
                return Err(format!("{} has {found} bytes instead of {wanted}", entry.name));
            }
            if sha256(&bytes) != entry.sha256 {
                return Err(format!("{} does not match its SHA-256", entry.name));
            }
            files.insert(entry.name.clone(), bytes);
        }
        Ok(Checkpoint { path, manifest, files })
    }

    /// The newest whole checkpoint; a warning for each newer one that is not. `None`: the stage has none at all.
    ///
    /// # Errors
    /// There are checkpoints, none of them whole: exit 65.
    pub fn newest(&self, warnings: &mut Vec<Diagnostic>) -> RunResult<Option<Checkpoint>> {
        let steps = self.steps()?;
        for step in &steps {
            match self.load(*step) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(reason) => warnings.push(
                    Diagnostic::warning(
                        "LMB0704",
                        format!("checkpoint {} is not whole: {reason}", step_name(*step)),
                    )
                    .note(format!("in {}", self.dir.display()))
                    .help("the one before it is used"),
                ),
            }
        }
        if steps.is_empty() {
            return Ok(None);
        }
        let message =
            format!("none of {} checkpoints in {} is whole", steps.len(), self.dir.display());
        let mut diagnostic = Diagnostic::error("LMB0705", message)
            .help("remove that directory to train the stage anew");
        diagnostic.notes.extend(warnings.iter().map(|w| w.message.clone()));
        Err(RunError::new(diagnostic))
    }

    /// Removes a checkpoint that was taken back, e.g. one that is newer than the place the run went back to.
    ///
    /// # Errors
    /// The directory cannot be changed.
    pub fn remove(&self, step: u64) -> RunResult<()> {
        let path = self.dir.join(step_name(step));
        let trash = self.dir.join(format!(".trash-{}-{}", step_name(step), std::process::id()));
        self.vfs.rename(&path, &trash).map_err(|e| io_error("remove", &path, &e))?;
        self.vfs.remove_dir_all(&trash).map_err(|e| io_error("remove", &trash, &e))
    }
}

/// `803 MB`: powers of 1000, three digits.
pub fn readable_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
