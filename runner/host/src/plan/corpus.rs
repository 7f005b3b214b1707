//! The broken pipelines under `tests/invalid`: one mistake a file, one message a mistake.
//!
//! The first line of a file says what must come out: `# expect: CODE PLACE exit N`, PLACE is `line:column`, in another
//! file `FILE:line:column`. A second line `# phase: load` or `# phase: data` names the phase that finds the mistake,
//! document and plan otherwise. `NAME.expected` holds the message; `LIMBECK_BLESS=1` writes it.

use crate::data::{Datasets, Tokenize};
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::document;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Case {
    path: PathBuf,
    name: String,
    code: String,
    place: String,
    exit: u8,
    phase: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/invalid")
        .canonicalize()
        .expect("tests/invalid")
}

fn cases() -> Vec<Case> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("readable")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    paths.sort();
    paths.into_iter().map(case).collect()
}

fn case(path: PathBuf) -> Case {
    let bytes = std::fs::read(&path).expect("readable");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = text.lines();
    let head = lines
        .next()
        .and_then(|l| l.strip_prefix("# expect: "))
        .unwrap_or_else(|| panic!("{path:?}"));
    let words: Vec<&str> = head.split(' ').collect();
    let [code, place, "exit", exit] = words[..] else { panic!("{path:?}: {head}") };
    let phase = lines.next().and_then(|l| l.strip_prefix("# phase: ")).unwrap_or("plan").to_owned();
    let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
    Case {
        code: code.into(),
        place: place.into(),
        exit: exit.parse().expect("exit code"),
        phase,
        name,
        path,
    }
}

/// What document, plan and (if asked) data find.
fn problems(case: &Case) -> Option<Diagnostics> {
    let plan = document::load(&case.path, &[]).and_then(|d| super::plan(&d));
    match (case.phase.as_str(), plan) {
        ("plan", Ok(_)) => panic!("{}: planned without a problem", case.name),
        ("plan", Err(problems)) => Some(problems),
        (phase, Err(problems)) => panic!("{}: {phase} is never reached: {problems:#?}", case.name),
        ("data", Ok(plan)) => Some(Datasets::open(&plan, Tokenize::Always).1),
        _ => None,
    }
}

/// The place, files relative to the folder.
fn place(problem: &Diagnostic, case: &Case) -> String {
    let Some(span) = &problem.span else { return "-".into() };
    let file = span.file.canonicalize().unwrap_or_else(|_| span.file.to_path_buf());
    if file == case.path.canonicalize().expect("the file itself") {
        return format!("{}:{}", span.line, span.column);
    }
    let file = file.strip_prefix(folder()).map(Path::to_path_buf).unwrap_or(file);
    format!("{}:{}:{}", file.display(), span.line, span.column)
}

fn message(problem: &Diagnostic, case: &Case) -> String {
    let place = place(problem, case);
    let file = if place.matches(':').count() == 1 {
        format!("{}.yaml:", case.name)
    } else {
        String::new()
    };
    let folder = format!("{}/", folder().display());
    let mut text = format!("error[{}]: {}\n", problem.code, problem.message.replace(&folder, ""));
    let context = problem.context.as_ref().map(|c| format!("   {c}")).unwrap_or_default();
    writeln!(text, "  --> {file}{place}{context}").expect("a string");
    if let Some(help) = &problem.help {
        writeln!(text, "   = help: {}", help.replace(&folder, "")).expect("a string");
    }
    text
}

#[test]
fn each_broken_pipeline_gives_its_one_message_at_its_place() {
    let cases = cases();
    assert!(cases.len() >= 150, "only {} broken pipelines", cases.len());
    let bless = std::env::var_os("LIMBECK_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in &cases {
        let started = Instant::now();
        let Some(problems) = problems(case) else { continue };
        let errors: Vec<&Diagnostic> = problems.iter().filter(|p| p.is_error()).collect();
        let [problem] = errors[..] else {
            wrong.push(format!("{}: {} problems: {errors:#?}", case.name, errors.len()));
            continue;
        };
        let found = (problem.code, place(problem, case), codes::exit(problem.code));
        if found != (case.code.as_str(), case.place.clone(), case.exit) {
            wrong.push(format!(
                "{}: expected {} {}, found {found:?}: {}",
                case.name, case.code, case.place, problem.message
            ));
        }
        if problem.help.is_none() && case.phase == "plan" {
            wrong.push(format!("{}: no help: {}", case.name, problem.message));
        }
        let expected = case.path.with_extension("expected");
        let text = message(problem, case);
        if bless {
            std::fs::write(&expected, &text).expect("writable");
        }
        if std::fs::read_to_string(&expected).ok().as_ref() != Some(&text) {
            wrong.push(format!(
                "{}: the message is not that of {}:\n{text}",
                case.name,
                expected.display()
            ));
        }
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{} takes {:?}",
            case.name,
            started.elapsed()
        );
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_code_of_the_document_and_plan_series_has_a_broken_pipeline() {
    let cases = cases();
    let missing: Vec<&str> = codes::CODES
        .iter()
        .filter(|c| c.exit != 0 && c.code < "LMB0211" && c.code != "LMB0118")
        .map(|c| c.code)
        // --set and a missing file have no file of their own; LMB0204 needs the models' layers.
        .filter(|c| !["LMB0112", "LMB0117", "LMB0204"].contains(c))
        .filter(|c| !cases.iter().any(|case| case.code == *c))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
