//! The file operations that checkpoints and run records rest on, behind a trait so that tests can make them fail.
//!
//! Knows no file format. Nothing is durable before [`Vfs::sync`] of the file and [`Vfs::sync_dir`] of its directory
//! have both succeeded; a failed sync is never retried into success.

use std::io;
use std::path::{Path, PathBuf};

/// What durable storage has to offer.
pub trait Vfs: Send + Sync {
    /// Creates (or empties) a file and writes all of `bytes`; not durable yet.
    ///
    /// # Errors
    /// What the system says; the file may hold a part of the bytes then.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's contents durable.
    ///
    /// # Errors
    /// What the system says; the contents must be taken for lost then.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or a directory in one step.
    ///
    /// # Errors
    /// What the system says; nothing has changed then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Creates a directory and the ones above it.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all it holds.
    ///
    /// # Errors
    /// What the system says; a part may be gone.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Reads a whole file.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Names in a directory, sorted; empty if it does not exist.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Free bytes where `path` lies, if the system tells.
    fn free_bytes(&self, path: &Path) -> Option<u64>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl Vfs for RealFs {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        std::fs::write(path, bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        std::fs::File::open(path)?.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn free_bytes(&self, path: &Path) -> Option<u64> {
        use std::os::unix::ffi::OsStrExt;
        let text = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: a NUL-terminated path and room for one result.
        let status = unsafe { libc::statvfs(text.as_ptr(), stat.as_mut_ptr()) };
        if status != 0 {
            return None;
        }
        // SAFETY: filled by the successful call.
        let stat = unsafe { stat.assume_init() };
        Some(stat.f_bavail * stat.f_frsize)
    }
}

/// Replaces a small file as a whole: temporary file beside it, sync, rename, sync of the directory.
///
/// # Errors
/// The failed operation; the old file is intact then.
pub fn replace(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary: PathBuf = path.with_file_name(format!(".tmp-{name}-{}", std::process::id()));
    vfs.write(&temporary, bytes)?;
    vfs.sync(&temporary)?;
    vfs.rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => vfs.sync_dir(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod faulty {
    //! A file system in memory that forgets what was not synced, and fails where it is told to.

    use super::Vfs;
    use std::collections::BTreeMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Node {
        bytes: Vec<u8>,
        /// Contents as of the last sync; `None`: never synced.
        durable: Option<Vec<u8>>,
    }

    #[derive(Default)]
    struct State {
        files: BTreeMap<PathBuf, Node>,
        /// Names that survive a crash, by directory sync.
        durable: BTreeMap<PathBuf, Node>,
        operations: usize,
        fail_at: Option<(usize, i32)>,
        crash_at: Option<usize>,
        crashed: bool,
    }

    /// See the module.
    #[derive(Default)]
    pub struct FaultyFs {
        state: Mutex<State>,
    }

    impl FaultyFs {
        /// The next write-like operation number `n` (from 0) fails with `errno`.
        pub fn fail_at(&self, n: usize, errno: i32) {
            let mut state = self.state.lock().unwrap();
            state.operations = 0;
            state.fail_at = Some((n, errno));
        }
        /// Everything from operation `n` on is as if the machine had lost power.
        pub fn crash_at(&self, n: usize) {
            let mut state = self.state.lock().unwrap();
            state.operations = 0;
            state.crash_at = Some(n);
        }
        /// Operations since the last setting.
        pub fn operations(&self) -> usize {
            self.state.lock().unwrap().operations
        }
        /// Power comes back. `keep` says for each name changed but not synced whether the change reached the disk.
        pub fn recover(&self, mut keep: impl FnMut() -> bool) {
            let mut state = self.state.lock().unwrap();
            let mut after = BTreeMap::new();
            let names: std::collections::BTreeSet<PathBuf> =
                state.files.keys().chain(state.durable.keys()).cloned().collect();
            for name in names {
                let (now, then) = (state.files.get(&name), state.durable.get(&name));
                let node = if keep() { now.or(then) } else { then };
                if let Some(node) = node {
                    let whole = keep();
                    let bytes = match (&node.durable, whole) {
                        (_, true) if node.bytes.len() < 2 => node.bytes.clone(),
                        (Some(durable), _) => durable.clone(),
                        (None, true) => node.bytes.clone(),
                        (None, false) => node.bytes[..node.bytes.len() / 2].to_vec(),
                    };
                    after.insert(name, Node { durable: Some(bytes.clone()), bytes });
                }
            }
            state.files = after.clone();
            state.durable = after;
            state.crash_at = None;
            state.fail_at = None;
            state.crashed = false;
        }
        /// Damages a file.
        pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
            change(&mut self.state.lock().unwrap().files.get_mut(path).unwrap().bytes);
        }
        fn operation(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
            let mut state = self.state.lock().unwrap();
            let n = state.operations;
            state.operations += 1;
            if state.crash_at.is_some_and(|at| n >= at) {
                state.crashed = true;
            }
            if state.crashed {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if let Some((at, errno)) = state.fail_at
                && at == n
            {
                return Err(io::Error::from_raw_os_error(errno));
            }
            Ok(state)
        }
    }

    impl Vfs for FaultyFs {
        fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            match self.operation() {
                Ok(mut state) => {
                    state
                        .files
                        .insert(path.to_owned(), Node { bytes: bytes.to_vec(), durable: None });
                    Ok(())
                }
                Err(error) => {
                    let half = bytes[..bytes.len() / 2].to_vec();
                    let mut state = self.state.lock().unwrap();
                    if !state.crashed {
                        state.files.insert(path.to_owned(), Node { bytes: half, durable: None });
                    }
                    Err(error)
                }
            }
        }
        fn sync(&self, path: &Path) -> io::Result<()> {
            let mut state = self.operation()?;
            let node = state.files.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
            node.durable = Some(node.bytes.clone());
            let node = node.clone();
            if let Some(known) = state.durable.get_mut(path) {
                *known = node;
            }
            Ok(())
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            let mut state = self.operation()?;
            // Renamed directories: names below a directory are synced with the one that holds the directory's name.
            let under = |p: &PathBuf| p.starts_with(path);
            let now: Vec<_> = state
                .files
                .iter()
                .filter(|(p, _)| under(p))
                .map(|(p, n)| (p.clone(), n.clone()))
                .collect();
            state.durable.retain(|p, _| !under(p));
            state.durable.extend(now);
            Ok(())
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            let mut state = self.operation()?;
            let moved: Vec<PathBuf> =
                state.files.keys().filter(|p| p.starts_with(from)).cloned().collect();
            if moved.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let directory = moved.iter().any(|p| p != from);
            if directory && state.files.keys().any(|p| p.starts_with(to)) {
                return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
            }
            for path in moved {
                if let Some(node) = state.files.remove(&path) {
                    let rest = path.strip_prefix(from).unwrap();
                    let target =
                        if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                    state.files.insert(target, node);
                }
            }
            Ok(())
        }
        fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
            self.operation().map(|_| ())
        }
        fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
            let mut state = self.operation()?;
            state.files.retain(|p, _| !p.starts_with(path));
            Ok(())
        }
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            let state = self.state.lock().unwrap();
            state.files.get(path).map(|n| n.bytes.clone()).ok_or(io::ErrorKind::NotFound.into())
        }
        fn list(&self, path: &Path) -> io::Result<Vec<String>> {
            let state = self.state.lock().unwrap();
            let mut names: Vec<String> = state
                .files
                .keys()
                .filter_map(|p| p.strip_prefix(path).ok())
                .filter_map(|p| p.iter().next())
                .map(|p| p.to_string_lossy().into_owned())
                .collect();
            names.sort();
            names.dedup();
            Ok(names)
        }
        fn free_bytes(&self, _path: &Path) -> Option<u64> {
            Some(1 << 20)
        }
    }
}
