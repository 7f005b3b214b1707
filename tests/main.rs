//! Every test of the program and of the boundary, in one target.
//!
//! A file in this folder that is not declared below would be dead; the last test refuses that.

mod abi;
mod cli;
mod conformance;
mod encoders;
mod ensemble;
mod faults;
mod fork;
mod invalid;
mod layers;
mod paths;
mod pipelines;
mod plugin_eval;
mod resume;
mod support;
mod text;

/// `mod` lines of this file, found in its own text.
fn declared() -> Vec<String> {
    let text = include_str!("main.rs");
    text.lines()
        .filter_map(|l| l.strip_prefix("mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_file_here_is_declared() {
    let folder = support::root().join("tests");
    let mut found: Vec<String> = std::fs::read_dir(&folder)
        .expect("tests/ can be listed")
        .map(|entry| entry.expect("entry").path())
        .filter_map(|path| {
            let stem = path.file_stem()?.to_str()?.to_owned();
            let is_module = path.extension().is_some_and(|e| e == "rs") && stem != "main";
            (is_module || path.join("mod.rs").exists()).then_some(stem)
        })
        .collect();
    found.sort();
    let mut declared = declared();
    declared.sort();
    assert!(found.len() >= 2, "saw only {found:?}");
    assert_eq!(
        found, declared,
        "files in tests/ on the left, `mod` lines of tests/main.rs on the right"
    );
}
