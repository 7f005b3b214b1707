//! What a teacher is, for telling whether a cache was made by it.
//!
//! Two records are equal if plugin, version, settings and the contents of every file are. Where the files lie does not
//! matter, and neither do files that no model reads (`README.md`).

use crate::run::checkpoint::sha256;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Endings of files that decide what a model computes.
const MODEL_FILES: [&str; 3] = ["json", "safetensors", "gguf"];

/// A teacher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherRecord {
    /// Plugin id.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// Its settings with defaults filled in; paths of `files` are replaced by their position in that list.
    pub settings: Json,
    /// What the settings name on disk.
    pub files: Vec<FileRecord>,
    /// SHA-256 of the parameters of an earlier stage's student.
    pub parameters: Option<String>,
}

/// A file or directory of a teacher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Where it was.
    pub path: PathBuf,
    /// Of the file; of the names and hashes of the files of a directory.
    pub sha256: String,
}

impl TeacherRecord {
    /// A hash of all but places.
    pub fn identity(&self) -> String {
        let files: Vec<&str> = self.files.iter().map(|f| f.sha256.as_str()).collect();
        let Self { plugin, version, settings, parameters, .. } = self;
        sha256(format!("{plugin} {version} {settings} {files:?} {parameters:?}").as_bytes())
    }

    /// The first file that is there and no longer what it was.
    pub fn changed_file(&self) -> Option<&Path> {
        let changed = |file: &&FileRecord| {
            file.path.exists() && hash_of(&file.path).is_ok_and(|hash| hash != file.sha256)
        };
        self.files.iter().find(changed).map(|file| file.path.as_path())
    }
}

/// Hashes what settings (complete, paths absolute) name on disk and takes its places out of them.
///
/// # Errors
/// A file that cannot be read.
pub fn teacher_files(settings: &mut Json) -> std::io::Result<Vec<FileRecord>> {
    let mut files = Vec::new();
    collect(settings, &mut files)?;
    Ok(files)
}

fn collect(value: &mut Json, files: &mut Vec<FileRecord>) -> std::io::Result<()> {
    match value {
        Json::String(text) if Path::new(text.as_str()).is_absolute() => {
            let path = PathBuf::from(text.as_str());
            if path.exists() {
                *value = Json::from(files.len());
                files.push(FileRecord { sha256: hash_of(&path)?, path });
            }
            Ok(())
        }
        Json::Array(items) => items.iter_mut().try_for_each(|item| collect(item, files)),
        Json::Object(map) => map.values_mut().try_for_each(|item| collect(item, files)),
        _ => Ok(()),
    }
}

/// SHA-256 of a file; of a directory, over names and hashes of its model files.
fn hash_of(path: &Path) -> std::io::Result<String> {
    if !path.is_dir() {
        return file_hash(path);
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if file.is_file() && MODEL_FILES.contains(&ending) {
            names.push(file);
        }
    }
    names.sort();
    let mut all = String::new();
    for file in names {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push_str(&format!("{name} {}\n", file_hash(&file)?));
    }
    Ok(sha256(all.as_bytes()))
}

/// SHA-256 of a file, hex, read in pieces.
pub(super) fn file_hash(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
