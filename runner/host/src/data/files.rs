//! Finds, opens and hashes data files.
//!
//! Only regular files are read. Compression is told by content, not by name, and a compressed file may not grow beyond
//! [`expansion_limit`]. The order of files is that of the list, and sorted within a glob.

use super::problem::listed;
use crate::diagnostic::{Diagnostic, did_you_mean};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 18;

/// Files of patterns. A pattern that names an existing file is that file, whatever characters it has.
///
/// # Errors
/// `LMB0501`: one per pattern that matches nothing.
pub(super) fn expand(patterns: &[PathBuf]) -> Result<Vec<PathBuf>, Vec<Diagnostic>> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    for pattern in patterns {
        if pattern.exists() {
            files.push(pattern.clone());
            continue;
        }
        let text = pattern.to_string_lossy();
        let matches: Vec<PathBuf> = if text.contains(['*', '?', '[']) {
            glob::glob(&text).map_or_else(
                |_| Vec::new(),
                |found| found.filter_map(Result::ok).filter(|p| p.is_file()).collect(),
            )
        } else {
            Vec::new()
        };
        if matches.is_empty() {
            problems.push(missing(pattern));
        }
        files.extend(matches);
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// Says which directory was looked into and what is there.
pub(super) fn missing(pattern: &Path) -> Diagnostic {
    let what = if pattern.to_string_lossy().contains(['*', '?', '[']) {
        format!("no file matches `{}`", pattern.display())
    } else {
        format!("no such file: `{}`", pattern.display())
    };
    let problem = Diagnostic::error("LMB0501", what);
    let parent = pattern.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(parent) else {
        let exists = parent.ancestors().find(|a| a.is_dir()).unwrap_or(Path::new("."));
        return problem.note(format!(
            "directory `{}` does not exist; `{}` does",
            parent.display(),
            if exists.as_os_str().is_empty() { "." } else { exists.to_str().unwrap_or(".") }
        ));
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let wanted = pattern.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let close = did_you_mean(&wanted, names.iter().map(String::as_str)).map(str::to_owned);
    let problem = problem.note(if names.is_empty() {
        format!("directory `{}` is empty", parent.display())
    } else {
        format!(
            "directory `{}` holds {}",
            parent.display(),
            listed(names.iter().map(String::as_str))
        )
    });
    match close {
        Some(close) => problem.help(format!("did you mean `{close}`?")),
        None => problem.help("paths are relative to the pipeline file"),
    }
}

/// Bytes that a compressed file of `length` bytes may become: text and numbers rarely shrink by more than 50.
pub(super) fn expansion_limit(length: u64) -> u64 {
    length.saturating_mul(100).max(1 << 30)
}

/// An open file, inflated if it is compressed.
pub(super) struct Opened {
    pub(super) reader: Box<dyn BufRead>,
    /// Bytes of content; `None` for a compressed file.
    pub(super) length: Option<u64>,
}

/// Opens a file for reading from its start.
///
/// # Errors
/// `LMB0501` if it is missing, `LMB0502` if it cannot be read or is no regular file.
pub(super) fn open(path: &Path) -> Result<Opened, Diagnostic> {
    let failed = |e: io::Error| unreadable(path, &e);
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "is a directory" } else { "is no regular file" };
        return Err(Diagnostic::error(
            "LMB0502",
            format!("cannot read `{}`: it {what}", path.display()),
        ));
    }
    let mut reader = BufReader::with_capacity(BUFFER, File::open(path).map_err(failed)?);
    if !reader.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]) {
        return Ok(Opened { reader: Box::new(reader), length: Some(meta.len()) });
    }
    let limit = expansion_limit(meta.len());
    let inflated = Limited { inner: MultiGzDecoder::new(reader), left: limit, limit };
    Ok(Opened { reader: Box::new(BufReader::with_capacity(BUFFER, inflated)), length: None })
}

/// Fails once more than `limit` bytes came.
struct Limited<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it grows beyond {} MiB, more than 100 times its size", self.limit >> 20),
            )
        })?;
        Ok(read)
    }
}

/// An error of the operating system or of the decompressor.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    match error.kind() {
        io::ErrorKind::NotFound => missing(path),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Diagnostic::error(
                "LMB0503",
                format!("broken compressed file `{}`: {error}", path.display()),
            )
            .help("compress it again, or give the file as it is before compression")
        }
        _ => Diagnostic::error("LMB0502", format!("cannot read `{}`: {error}", path.display())),
    }
}

/// SHA-256 of the file as it lies on the disk, hex.
///
/// # Errors
/// As [`open`].
pub(super) fn sha256(path: &Path) -> Result<String, Diagnostic> {
    let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(path, &e)),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn globs_are_sorted_and_lists_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b-2.csv", "b-1.csv", "a.csv", "c[1].csv"] {
            std::fs::write(dir.path().join(name), "1").unwrap();
        }
        let at = |name: &str| dir.path().join(name);
        assert_eq!(
            expand(&[at("c[1].csv"), at("b-*.csv"), at("a.csv")]).unwrap(),
            [at("c[1].csv"), at("b-1.csv"), at("b-2.csv"), at("a.csv")]
        );
    }

    #[test]
    fn a_missing_file_names_directory_and_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train.csv"), "1").unwrap();
        let problems =
            expand(&[dir.path().join("trian.csv"), dir.path().join("x-*.csv")]).unwrap_err();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].message.starts_with("no such file"), "{problems:?}");
        assert!(problems[0].notes[0].contains("holds `train.csv`"), "{problems:?}");
        assert_eq!(problems[0].help.as_deref(), Some("did you mean `train.csv`?"));
        assert!(problems[1].message.starts_with("no file matches"), "{problems:?}");
        let problem = &expand(&[dir.path().join("no/where/x.csv")]).unwrap_err()[0];
        assert!(problem.notes[0].contains("does not exist"), "{problem:?}");
    }

    #[test]
    fn a_compressed_bomb_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.gz");
        let mut gz = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::fast(),
        );
        let zeros = vec![b'0'; 1 << 20];
        for _ in 0..1100 {
            gz.write_all(&zeros).unwrap();
        }
        gz.finish().unwrap();
        let mut reader = open(&path).unwrap().reader;
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("grows beyond 1024 MiB"), "{error}");
    }

    #[test]
    fn directories_and_devices_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(dir.path()).err().unwrap().code, "LMB0502");
        #[cfg(unix)]
        assert_eq!(open(Path::new("/dev/zero")).err().unwrap().code, "LMB0502");
    }

    #[test]
    fn sha256_is_of_the_bytes_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
