//! Where a run lives: a directory of its own, or one that a killed start left behind.
//!
//! Invariant: whoever gets a directory from here owns it.

use super::error::{RunResult, io_error};
use super::owner::Owner;
use super::rundir::{now, timestamp};
use super::vfs::{RealFs, Vfs};
use std::path::{Path, PathBuf};

/// A directory of the same pipeline that a start left when it was killed before it wrote its record.
pub(super) fn abandoned(parent: &Path, hash: &str) -> Option<(String, PathBuf, Owner)> {
    let ending = format!("-{hash:.8}");
    let names = RealFs.list(parent).unwrap_or_default();
    names.into_iter().filter(|name| name.ends_with(&ending)).find_map(|name| {
        let dir = parent.join(&name);
        let bare = || dir.is_dir() && !dir.join("run.json").exists();
        if !bare() {
            return None;
        }
        let owner = Owner::acquire(&dir).ok()?;
        // Its starter may have been alive, and written the record meanwhile.
        if !bare() {
            return None;
        }
        sweep(&dir);
        Some((name, dir, owner))
    })
}

/// Removes half-written files of an owner that was killed. Directories of checkpoints are cleared by their store.
pub(super) fn sweep(dir: &Path) {
    for name in RealFs.list(dir).unwrap_or_default() {
        let path = dir.join(&name);
        if name.starts_with(".tmp-") {
            // Best effort: what stays is never read.
            let _ = std::fs::remove_file(&path);
        } else if path.is_dir() {
            sweep(&path);
        }
    }
}

/// A new directory with a name of its own.
pub(super) fn fresh(parent: &Path, hash: &str) -> RunResult<(String, PathBuf, Owner)> {
    let mut seconds = now();
    loop {
        let id = format!("{}-{hash:.8}", timestamp(seconds));
        let dir = parent.join(&id);
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                let owner = Owner::acquire(&dir)?;
                return Ok((id, dir, owner));
            }
            // A run of the same pipeline in the same second.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => seconds += 1,
            Err(e) => return Err(io_error("create", &dir, &e)),
        }
    }
}
