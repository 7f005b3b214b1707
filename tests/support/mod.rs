//! What several tests need: the program, its plugins, C compilers, throw-away folders.
//!
//! Asks Cargo where artifacts are instead of guessing paths; builds nothing twice in one process.

pub mod cc;
pub mod program;
pub mod rawhost;

use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder that is removed when the guard drops.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("limbeck-test-").tempdir().expect("a temporary folder")
}

/// Asks Cargo to build `args` and gives the cdylibs it made, by package name.
pub fn cargo_cdylibs(folder: &Path, args: &[&str]) -> Vec<(String, PathBuf)> {
    let output = std::process::Command::new(env!("CARGO"))
        .current_dir(folder)
        .args(["build", "--release", "--message-format=json"])
        .args(args)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo build {args:?} in {} failed", folder.display());
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let is_cdylib = message["target"]["crate_types"]
            .as_array()
            .is_some_and(|types| types.iter().any(|t| t == "cdylib"));
        if message["reason"] != "compiler-artifact" || !is_cdylib {
            continue;
        }
        let name = message["target"]["name"].as_str().unwrap_or_default().replace('_', "-");
        for file in message["filenames"].as_array().into_iter().flatten() {
            let path = PathBuf::from(file.as_str().unwrap_or_default());
            if path.extension().is_some_and(|e| e == "so" || e == "dylib") {
                found.push((name.clone(), path));
            }
        }
    }
    found
}
