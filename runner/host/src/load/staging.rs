//! From a file anywhere to a private, verified, read-only copy that is safe to open.
//!
//! The file is opened once, without following a link, and hashed while it is copied, so what was checked is what is
//! loaded. Refuses files and directories that others can write.

use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest plugin file, in bytes.
const LIMIT: u64 = 4 << 30;

/// Why a file was not staged.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Others could replace or change it.
    #[error("{} {why}", path.display())]
    Unsafe {
        /// File or directory at fault.
        path: PathBuf,
        /// What is unsafe about it.
        why: String,
    },
    /// The private cache cannot be used.
    #[error("cannot use the plugin cache {}", path.display())]
    Cache {
        /// Cache path at fault.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// A file's bytes, hashed; nothing of it has run.
pub struct Opened {
    /// As it was named.
    pub path: PathBuf,
    /// Contents.
    pub bytes: Vec<u8>,
    /// SHA-256, hex.
    pub sha256: String,
}

/// SHA-256 of bytes, hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of what a reader gives, hex, and the number of bytes.
///
/// # Errors
/// What the reader says.
pub fn sha256_of(mut from: impl Read) -> std::io::Result<(String, u64)> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut block = vec![0; 1 << 20];
    loop {
        match from.read(&mut block)? {
            0 => return Ok((hex(&hash.finalize()), size)),
            n => {
                hash.update(&block[..n]);
                size += n as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, b| {
        use std::fmt::Write;
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Opens, reads and hashes a plugin file. With `strict`, refuses files and directories that others can write.
///
/// # Errors
/// See [`StagingError`].
pub fn open(path: &Path, strict: bool) -> Result<Opened, StagingError> {
    let read = |source| StagingError::Read { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => StagingError::Unsafe {
                path: path.to_owned(),
                why: "is a symbolic link; name the file itself".into(),
            },
            _ => read(e),
        })?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(StagingError::Unsafe {
            path: path.to_owned(),
            why: "is not a regular file".into(),
        });
    }
    if strict {
        check_owner(path, &metadata)?;
        check_parents(path)?;
    }
    if metadata.len() > LIMIT {
        return Err(StagingError::Unsafe {
            path: path.to_owned(),
            why: format!("has {} bytes", metadata.len()),
        });
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    Read::by_ref(&mut file).take(LIMIT).read_to_end(&mut bytes).map_err(read)?;
    let sha256 = sha256(&bytes);
    Ok(Opened { path: path.to_owned(), bytes, sha256 })
}

/// A file or directory is safe if only its owner can write it and the owner is this user or root.
fn check_owner(path: &Path, metadata: &std::fs::Metadata) -> Result<(), StagingError> {
    let refuse = |why: String| Err(StagingError::Unsafe { path: path.to_owned(), why });
    // SAFETY: cannot fail and touches no memory.
    let user = unsafe { libc::geteuid() };
    if metadata.uid() != user && metadata.uid() != 0 {
        return refuse(format!("belongs to user {}, not to you or root", metadata.uid()));
    }
    let mode = metadata.mode();
    // A sticky directory such as /tmp lets others add names but not replace ours; the file and the directories between
    // are checked on their own.
    let sticky = metadata.is_dir() && mode & libc::S_ISVTX != 0;
    if mode & 0o002 != 0 && !sticky {
        return refuse("can be written by everybody".into());
    }
    if mode & 0o020 != 0 && !sticky && !is_private_group(metadata) {
        return refuse(format!("can be written by group {}", metadata.gid()));
    }
    Ok(())
}

/// The user's own group (same number as the user, as most systems give each user one), or root's.
fn is_private_group(metadata: &std::fs::Metadata) -> bool {
    metadata.gid() == 0 || metadata.gid() == metadata.uid()
}

/// Refuses a file or directory that others can write; [`open`] does the same for what it opens.
///
/// # Errors
/// [`StagingError::Unsafe`].
pub fn check_place(path: &Path) -> Result<(), StagingError> {
    let metadata = std::fs::symlink_metadata(path)
        .map_err(|source| StagingError::Read { path: path.to_owned(), source })?;
    check_owner(path, &metadata)?;
    check_parents(path)
}

fn check_parents(path: &Path) -> Result<(), StagingError> {
    let absolute = std::path::absolute(path)
        .map_err(|source| StagingError::Read { path: path.to_owned(), source })?;
    let read = |path: &Path, source| StagingError::Read { path: path.to_owned(), source };
    let parent = absolute.parent().unwrap_or(Path::new("/"));
    // Links inside the path are resolved first: what counts is where the file lies.
    let real = std::fs::canonicalize(parent).map_err(|e| read(parent, e))?;
    let mut sticky_below = None;
    for (depth, dir) in real.ancestors().enumerate() {
        let metadata = std::fs::metadata(dir).map_err(|e| read(dir, e))?;
        check_owner(dir, &metadata)?;
        if depth == 0 && metadata.mode() & libc::S_ISVTX != 0 && metadata.mode() & 0o002 != 0 {
            sticky_below = Some(dir.to_owned());
        }
    }
    match sticky_below {
        // Directly in /tmp: the name could have been chosen by somebody else before us.
        Some(dir) => {
            Err(StagingError::Unsafe { path: dir, why: "can be written by everybody".into() })
        }
        None => Ok(()),
    }
}

/// Where files are kept between runs: `LIMBECK_CACHE`, else `$XDG_CACHE_HOME/limbeck`, else `~/.cache/limbeck`.
pub fn cache_root() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("LIMBECK_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|c| c.join("limbeck")))
        .or_else(|| set("HOME").map(|h| h.join(".cache/limbeck")))
        .unwrap_or_else(|| {
            // SAFETY: cannot fail and touches no memory.
            let user = unsafe { libc::geteuid() };
            std::env::temp_dir().join(format!("limbeck-{user}"))
        })
}

/// The private cache of plugins.
pub fn cache_dir() -> PathBuf {
    cache_root().join("plugins")
}

/// Puts the bytes into `cache` as `<sha256>/<name>` and gives that path; an equal copy is used again.
///
/// # Errors
/// [`StagingError::Cache`], [`StagingError::Unsafe`] if the cache is open to others.
pub fn stage(opened: &Opened, cache: &Path) -> Result<PathBuf, StagingError> {
    make_private(cache)?;
    let dir = cache.join(&opened.sha256);
    make_private(&dir)?;
    let name = opened.path.file_name().unwrap_or(OsStr::new("plugin.so"));
    let target = dir.join(name);
    if is_copy(&target, opened) {
        return Ok(target);
    }
    let fail = |source| StagingError::Cache { path: target.clone(), source };
    let temporary = dir.join(format!(".{}-{}", std::process::id(), name.to_string_lossy()));
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&temporary)
        .map_err(fail)?;
    let written = file.write_all(&opened.bytes).and_then(|()| file.sync_data());
    // Another process may have put its equal copy there meanwhile; a rename over it is as good.
    let placed = written.and_then(|()| std::fs::rename(&temporary, &target));
    if let Err(source) = placed {
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(source));
    }
    Ok(target)
}

/// Whether the copy is there, ours alone, and equal to the last byte.
fn is_copy(target: &Path, opened: &Opened) -> bool {
    let opening = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(target);
    let Ok(mut file) = opening else { return false };
    let ours = file
        .metadata()
        .is_ok_and(|m| m.len() == opened.bytes.len() as u64 && m.mode() & 0o222 == 0);
    ours && equal(&mut file, &opened.bytes)
}

fn equal(file: &mut File, bytes: &[u8]) -> bool {
    let mut buffer = vec![0; 1 << 18];
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rest.len().min(buffer.len());
        let (Some(block), Some(wanted)) = (buffer.get_mut(..n), rest.get(..n)) else {
            return false;
        };
        if file.read_exact(block).is_err() || block != wanted {
            return false;
        }
        rest = rest.get(n..).unwrap_or_default();
    }
    true
}

/// Creates the directory for this user alone, or checks that it is so.
fn make_private(dir: &Path) -> Result<(), StagingError> {
    let fail = |source| StagingError::Cache { path: dir.to_owned(), source };
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Ok(()) => {}
        Err(source) => return Err(fail(source)),
    }
    let metadata = std::fs::symlink_metadata(dir).map_err(fail)?;
    // SAFETY: cannot fail and touches no memory.
    let user = unsafe { libc::geteuid() };
    let why = if !metadata.is_dir() {
        "is not a directory"
    } else if metadata.uid() != user {
        "belongs to another user"
    } else if metadata.mode() & 0o022 != 0 {
        "can be written by others"
    } else {
        return Ok(());
    };
    Err(StagingError::Unsafe { path: dir.to_owned(), why: why.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn plugin(dir: &Path) -> PathBuf {
        let path = dir.join("libx.so");
        std::fs::write(&path, b"contents").unwrap();
        path
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn unsafe_because(path: &Path) -> String {
        match open(path, true) {
            Err(StagingError::Unsafe { why, .. }) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn a_private_directory_under_tmp_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(&plugin(dir.path()), true).unwrap();
        assert_eq!(
            opened.sha256,
            "d1b2a59fbea7e20077af9f91b27e95e865061b270be03ff539ab3b73587882e8"
        );
    }

    #[test]
    fn files_and_directories_open_to_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = plugin(dir.path());
        chmod(&path, 0o666);
        assert!(unsafe_because(&path).contains("everybody"));
        assert!(open(&path, false).is_ok(), "only strict checks places");
        chmod(&path, 0o644);
        chmod(dir.path(), 0o777);
        assert!(unsafe_because(&path).contains("everybody"));
        chmod(dir.path(), 0o1777);
        assert!(unsafe_because(&path).contains("everybody"), "directly in a sticky directory");
        chmod(dir.path(), 0o700);
        assert!(open(&path, true).is_ok());
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link.so");
        std::os::unix::fs::symlink(plugin(dir.path()), &link).unwrap();
        assert!(unsafe_because(&link).contains("symbolic link"));
        assert!(unsafe_because(dir.path()).contains("regular file"));
    }

    #[test]
    fn a_copy_is_private_reused_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache/plugins");
        let opened = open(&plugin(dir.path()), true).unwrap();
        let copy = stage(&opened, &cache).unwrap();
        assert_eq!(copy, cache.join(&opened.sha256).join("libx.so"));
        let inode = |p: &Path| std::fs::metadata(p).unwrap().ino();
        let first = inode(&copy);
        assert_eq!(std::fs::metadata(&copy).unwrap().mode() & 0o777, 0o400);
        assert_eq!(std::fs::metadata(&cache).unwrap().mode() & 0o777, 0o700);
        assert_eq!(inode(&stage(&opened, &cache).unwrap()), first);
        chmod(&copy, 0o600);
        std::fs::write(&copy, b"tampered").unwrap();
        chmod(&copy, 0o400);
        let mended = stage(&opened, &cache).unwrap();
        assert_eq!(std::fs::read(&mended).unwrap(), b"contents");
        chmod(&cache, 0o777);
        assert!(matches!(stage(&opened, &cache), Err(StagingError::Unsafe { .. })));
    }
}
