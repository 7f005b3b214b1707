//! C plugins for this phase's tests: compiled by `cc` against the header, found and opened like any other.

use super::catalogue::{Catalogue, SearchPath};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loss, a student, a teacher and a scheduler in one C file.
pub(crate) const PLUGINS: &str = include_str!("testing/plugins.c");

/// Compiles `source` to `dir/lib<name>.so`.
pub(crate) fn compile(dir: &Path, name: &str, source: &str, defines: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/abi/include");
    let c = dir.join(format!("{name}.c"));
    let out = dir.join(format!("lib{name}.so"));
    std::fs::write(&c, source).unwrap();
    let status = Command::new("cc")
        .args([
            "-std=c99",
            "-O1",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
        ])
        .arg(&root)
        .args(defines.iter().map(|d| format!("-D{d}")))
        .arg(&c)
        .arg("-lm")
        .arg("-o")
        .arg(&out)
        .status()
        .unwrap();
    assert!(status.success());
    out
}

/// Compiles into a fresh directory and discovers it beside "the executable". Keep the directory alive.
pub(crate) fn catalogue(defines: &[&str]) -> (tempfile::TempDir, Catalogue) {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path(), "plugins", PLUGINS, defines);
    let (catalogue, warnings) = Catalogue::discover(&search(dir.path())).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    (dir, catalogue)
}

/// Searches `dir` as if it were the executable's.
pub(crate) fn search(dir: &Path) -> SearchPath {
    SearchPath {
        builtin: Some(dir.to_owned()),
        cache: Some(dir.join("cache")),
        ..SearchPath::default()
    }
}
