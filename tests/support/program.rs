//! The program under test with its plugins beside it, built once a process.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The binary. Its plugins are fresh: Cargo is asked once.
pub fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let built = super::cargo_cdylibs(super::root(), &["--workspace"]);
        assert!(built.len() >= 4, "expected four plugin libraries, Cargo made {built:?}");
        PathBuf::from(env!("CARGO_BIN_EXE_limbeck"))
    })
}

/// The program with nothing of the machine's settings: no color, no plugin path, no logs.
pub fn limbeck() -> Command {
    let mut command = Command::new(path());
    command.env_remove("LIMBECK_PLUGIN_PATH").env_remove("LIMBECK_LOG").env("NO_COLOR", "1");
    command
}
