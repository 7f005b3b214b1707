//! The C and C++ compilers, as tests use them.

use super::root;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folder of `limbeck.h`.
pub fn include() -> PathBuf {
    root().join("plugins/abi/include")
}

/// A fixture's source.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn compiler(source: &Path) -> Command {
    let is_cpp = source.extension().is_some_and(|e| e == "cpp");
    let mut command = Command::new(if is_cpp { "c++" } else { "cc" });
    command.arg(if is_cpp { "-std=c++11" } else { "-std=c99" });
    command
}

/// Runs the compiler; its messages come back when it fails or warns.
///
/// # Errors
/// What the compiler printed.
pub fn run(source: &Path, args: &[&str]) -> Result<(), String> {
    let output =
        compiler(source).args(args).arg(source).output().expect("a C compiler is installed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && text.is_empty() { Ok(()) } else { Err(text) }
}

/// Compiles a source file to a plugin `lib<stem>.so` in `folder`.
pub fn plugin(source: &Path, folder: &Path, extra: &[&str]) -> PathBuf {
    let stem = source.file_stem().and_then(|s| s.to_str()).expect("a file name");
    let out = folder.join(format!("lib{stem}.so"));
    let include = format!("-I{}", include().display());
    let output = out.to_str().expect("UTF-8 path");
    let mut args = vec!["-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"];
    if source.extension().is_some_and(|e| e == "cpp") {
        args.push("-fno-gnu-unique");
    }
    args.extend(extra);
    args.extend([include.as_str(), "-o", output, "-lm"]);
    // The library must follow the source for the linker, so the source goes in here too.
    let status =
        compiler(source).arg(source).args(&args).output().expect("a C compiler is installed");
    assert!(
        status.status.success(),
        "{} does not compile:\n{}",
        source.display(),
        String::from_utf8_lossy(&status.stderr)
    );
    out
}

/// Compiles and runs a C program; gives what it printed.
pub fn program_output(source: &str, include: &Path) -> String {
    let folder = super::temp_dir();
    let file = folder.path().join("program.c");
    std::fs::write(&file, source).expect("write");
    let binary = folder.path().join("program");
    let flag = format!("-I{}", include.display());
    run(&file, &["-Wall", &flag, "-o", binary.to_str().expect("UTF-8 path")]).expect("compiles");
    let output = Command::new(&binary).output().expect("runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("UTF-8")
}
