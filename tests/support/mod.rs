//! What several tests need: the program, its plugins, C compilers, throw-away folders.
//!
//! Asks Cargo where artifacts are instead of guessing paths; builds nothing twice in one process.

pub mod cc;
pub mod rawhost;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

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
    let output = Command::new(env!("CARGO"))
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

/// Builds the workspace's plugins once and gives the folder that holds them.
pub fn plugin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let built = cargo_cdylibs(root(), &["--workspace"]);
        let plugins = ["teachers", "students", "losses", "schedulers"];
        for name in plugins {
            let wanted = format!("limbeck-{name}");
            assert!(built.iter().any(|(n, _)| *n == wanted), "no {wanted} among {built:?}");
        }
        let (_, first) = built.first().expect("checked just now");
        first.parent().expect("a file in a folder").to_owned()
    })
}

/// A plugin library of the workspace: `losses`, `students`, …
pub fn plugin_path(name: &str) -> PathBuf {
    plugin_dir().join(format!("liblimbeck_{name}.so"))
}

/// The program, with the workspace's plugins beside it and nothing from the user's settings.
pub fn limbeck() -> Command {
    plugin_dir();
    let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LIMBECK_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").env("XDG_CACHE_HOME", root().join("target/test-cache"));
    command
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None`: a signal.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// Text of stdout.
    pub out: String,
    /// Text of stderr.
    pub err: String,
}

impl Finished {
    /// JSON objects of stdout, a line each.
    pub fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }
}

/// Runs a program to its end.
pub fn finish(command: &mut Command) -> Finished {
    use std::os::unix::process::ExitStatusExt as _;
    let output = command.output().expect("the program starts");
    Finished {
        code: output.status.code(),
        signal: output.status.signal(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `limbeck plugin check` with JSON answers.
pub fn check(library: &Path, args: &[&str]) -> Finished {
    finish(limbeck().args(["--json", "plugin", "check"]).arg(library).args(args))
}
