//! One run, one writer.
//!
//! The file `owner` names the process that works on a run and is locked by it as long as it lives, so a dead owner is
//! recognized by the system itself. An owner on another machine cannot be asked and is never pushed aside.

use super::RunError;
use super::error::{RunResult, io_error};
use crate::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Serialize, Deserialize)]
struct Identity {
    host: String,
    pid: u32,
    boot: String,
}

impl Identity {
    fn mine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            pid: std::process::id(),
            boot: read("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// Ownership of a run; ends with [`Owner::release`] or with the process.
pub struct Owner {
    path: PathBuf,
    file: File,
}

fn lock(file: &File) -> bool {
    // SAFETY: an open descriptor; the call has no other argument.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

impl Owner {
    /// Becomes the owner of `dir`, taking over from a dead one.
    ///
    /// # Errors
    /// A living process, or one on another machine, owns it (73).
    pub fn acquire(dir: &Path) -> RunResult<Self> {
        let path = dir.join("owner");
        let fail = |e| io_error("open", &path, &e);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        let free = lock(&file);
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(fail)?;
        let before: Option<Identity> = serde_json::from_str(&text).ok();
        let mine = Identity::mine();
        let elsewhere = before.as_ref().is_some_and(|b| b.host != mine.host && b.boot != mine.boot);
        if !free || elsewhere {
            let by = before.unwrap_or_default();
            let message =
                format!("run {} is owned by process {} on {}", dir.display(), by.pid, by.host);
            let help = if free {
                format!("if that machine is gone, remove {}", path.display())
            } else {
                "wait for it, or stop it; `--fresh` starts a run of its own".to_owned()
            };
            let diagnostic = Diagnostic::error("LMB0703", message).help(help);
            return Err(RunError::new(diagnostic));
        }
        let json = serde_json::to_string(&mine).unwrap_or_default();
        file.set_len(0).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        file.write_all(json.as_bytes()).map_err(fail)?;
        Ok(Self { path, file })
    }

    /// Gives the run free.
    pub fn release(self) {
        // Best effort: an owner file without a lock is taken over anyway.
        let _ = std::fs::remove_file(&self.path);
        drop(self.file);
    }
}
