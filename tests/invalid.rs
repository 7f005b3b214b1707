//! Every broken pipeline below `tests/invalid/` ends with its own message, at its own place, with its own exit code.
//!
//! The first lines of each file say what to expect: `# expect: LMB0101 12:5 exit 78` (`-` for no place).

use crate::support::{self, limbeck};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

struct Expectation {
    code: String,
    place: Option<String>,
    exit: i32,
}

fn expectation(path: &Path) -> Expectation {
    let text = String::from_utf8_lossy(&std::fs::read(path).expect("read")).into_owned();
    let line = text
        .lines()
        .find_map(|l| l.trim_start_matches('\u{feff}').strip_prefix("# expect: "))
        .unwrap_or_else(|| panic!("{} has no `# expect:` line", path.display()));
    let words: Vec<_> = line.split_whitespace().collect();
    let [code, place, "exit", exit] = words[..] else { panic!("{}: `{line}`", path.display()) };
    Expectation {
        code: code.to_owned(),
        place: (place != "-").then(|| place.to_owned()),
        exit: exit.parse().expect("a number"),
    }
}

fn files() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(support::root().join("tests/invalid"))
        .expect("tests/invalid")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

fn validate(path: &Path) -> Output {
    limbeck()
        .arg("validate")
        .arg(path.file_name().expect("name"))
        .current_dir(path.parent().expect("folder"))
        .output()
        .expect("starts")
}

#[test]
fn every_mistake_gets_its_message_its_place_and_its_exit_code() {
    let mut wrong = Vec::new();
    let files = files();
    assert!(files.len() >= 60, "only {} files", files.len());
    for path in &files {
        let expected = expectation(path);
        let output = validate(path);
        let text = String::from_utf8_lossy(&output.stderr);
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        // A place in a data file names the file; one in the pipeline only line and column.
        let place = expected
            .place
            .as_ref()
            .map(|p| if p.contains('/') { p.clone() } else { format!(":{p}") });
        let found = text.contains(&format!("[{}]", expected.code))
            && place.as_ref().is_none_or(|p| {
                text.lines().any(|l| {
                    let l = l.trim_start();
                    l.starts_with("-->")
                        && l.split_whitespace().nth(1).is_some_and(|w| w.ends_with(p))
                })
            });
        if !found || output.status.code() != Some(expected.exit) || text.contains("panicked") {
            wrong.push(format!(
                "{name}: expected {} at {:?} exit {}, got {:?}\n{text}",
                expected.code,
                expected.place,
                expected.exit,
                output.status.code()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

/// Runs `validate` on generated text; it must fail quickly with exit 78 and without a panic.
fn refused_quickly(text: &str, what: &str) {
    let folder = support::temp_dir();
    let path = folder.path().join("hostile.yaml");
    std::fs::write(&path, text).expect("write");
    limbeck(); // builds outside the measurement
    let start = Instant::now();
    let output = validate(&path);
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{what}: {said}");
    assert!(said.contains("error[LMB01"), "{what}: {said}");
    assert!(took.as_secs_f64() < 1.0, "{what} took {took:?}");
}

#[test]
fn nested_brackets_and_bombs_are_refused_in_under_a_second() {
    refused_quickly(&"[".repeat(200_000), "200 KB of brackets");
    refused_quickly(&"{a: ".repeat(50_000), "200 KB of nested maps");
    refused_quickly(&"- ".repeat(100_000), "200 KB of nested lists");
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for k in 1..12 {
        let row = vec![format!("*a{}", k - 1); 9].join(", ");
        bomb += &format!("a{k}: &a{k} [{row}]\n");
    }
    refused_quickly(&bomb, "a billion laughs");
    refused_quickly(&"x".repeat(2 << 20), "2 MiB of text");
}
