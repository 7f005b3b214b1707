//! `limbeck plugin check FILE`.

use super::{Answer, Shell, Stop};
use crate::args::PluginCheckArgs;
use crate::exit;
use crate::render::table;
use limbeck_host::check::driver::{self, DOING, Options, Silence};
use limbeck_host::check::{Check, Report, Subject, Verdict, checks, run_one};
use limbeck_host::diagnostic::Diagnostic;
use regex::Regex;
use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Runs the conformance checks; exit 76 if one fails.
///
/// # Errors
/// No such file; a flag that cannot be used.
pub fn check(args: &PluginCheckArgs, shell: &Shell) -> Answer {
    let usage = |text: String| Stop::from(Diagnostic::error("LMB1001", text));
    if args.device != "cpu" {
        let problem =
            Diagnostic::error("LMB0801", format!("device `{}` cannot be checked on", args.device));
        return Err(problem.help("this release checks on the CPU").into());
    }
    let file = std::fs::canonicalize(&args.file).ok().filter(|f| f.is_file());
    let file = file.ok_or_else(|| {
        Stop::from(Diagnostic::error(
            "LMB0302",
            format!("no plugin file `{}`", args.file.display()),
        ))
    })?;
    let with = args.with.as_deref().map(serde_json::from_str).transpose();
    let with = with.map_err(|e| usage(format!("--with is not JSON: {e}")))?;
    let subject = |plugin: Option<&str>| {
        let mut subject = Subject::new(file.clone(), plugin.map(str::to_owned), args.seed);
        subject.with.clone_from(&with);
        subject
    };
    if let Some(id) = &args.run_one {
        return Ok(run_in_this_process(id, subject(args.plugin.as_deref()), shell));
    }
    let pattern = args.include.as_deref().map(Regex::new).transpose();
    let pattern = pattern.map_err(|e| usage(format!("--include: {e}")))?;
    let wanted = |id: &str| pattern.as_ref().is_none_or(|p| p.is_match(id));
    let program =
        std::env::current_exe().map_err(|e| Diagnostic::error("LMB0901", e.to_string()))?;
    let command = |check: &Check, plugin: Option<&str>| child(&program, &file, check, plugin, args);
    let in_process: &dyn Fn(Option<&str>) -> Subject = &subject;
    let options = Options {
        command: &command,
        in_process: args.in_process.then_some(in_process),
        wanted: &wanted,
        plugin: args.plugin.as_deref(),
        timeout: Duration::from_secs(args.timeout),
        jobs: crate::startup::threads(shell.global.threads),
    };
    let mut shown = None;
    let reports = driver::run(&options, &mut |report| show(report, &mut shown, args, shell));
    if reports.is_empty() {
        let asked = args.include.as_deref().unwrap_or_default();
        return Err(usage(format!("no check of these plugins matches `{asked}`")));
    }
    Ok(summary(&reports, shell))
}

/// The command that runs one check.
fn child(
    program: &PathBuf,
    file: &PathBuf,
    check: &Check,
    plugin: Option<&str>,
    args: &PluginCheckArgs,
) -> Command {
    let mut command = Command::new(program);
    // One thread: the pools of the checked library must not outnumber the checks that run beside it.
    command.args(["--threads", "1", "--json", "plugin", "check"]).arg(file);
    command.args(["--run-one", check.id, "--seed", &args.seed.to_string()]);
    if let Some(id) = plugin {
        command.args(["--plugin", id]);
    }
    if let Some(with) = &args.with {
        command.args(["--with", with]);
    }
    command
}

/// Answers with the report as one line, whatever the plugin printed.
fn run_in_this_process(id: &str, mut subject: Subject, shell: &Shell) -> u8 {
    let Some(check) = checks().find(|c| c.id == id) else { return exit::USAGE };
    let renderer = shell.renderer;
    let last = RefCell::new(String::new());
    subject.doing = Box::new(move |what| {
        // Some checks do the same thing 30,000 times.
        if *last.borrow() != what {
            renderer.always(&format!("{DOING}{what}"));
            what.clone_into(&mut last.borrow_mut());
        }
    });
    let silence = Silence::begin();
    let report = run_one(check, &mut subject);
    drop(silence);
    let bad = report.verdict.is_bad();
    shell.renderer.document(&serde_json::to_string(&report).unwrap_or_default());
    if bad { exit::PLUGIN_BROKE } else { exit::DONE }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "ok   ",
        Verdict::Fail => "FAIL ",
        Verdict::Crash => "CRASH",
        Verdict::Hang => "HANG ",
        Verdict::Skip => "skip ",
        Verdict::Warn => "warn ",
    }
}

/// Prints a report; a heading when another plugin begins.
fn show(report: &Report, shown: &mut Option<String>, args: &PluginCheckArgs, shell: &Shell) {
    if shell.renderer.is_json() {
        let mut value = serde_json::to_value(report).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.remove("plugins");
            object.insert("type".into(), "check".into());
            object.insert("seed".into(), args.seed.into());
        }
        shell.renderer.answer("", &value);
        return;
    }
    if report.plugin.is_some() && *shown != report.plugin {
        shown.clone_from(&report.plugin);
        shell.renderer.document(report.plugin.as_deref().unwrap_or_default());
    }
    let mark = shell.renderer.mark(word(report.verdict));
    let mut line = format!("  {:<26} {mark} {}", report.check, report.text).trim_end().to_owned();
    if report.verdict.is_bad() {
        line += &format!("\n{:>34}rule: {}", "", report.clause);
        line += &format!("\n{:>34}again: --include '^{}$' --seed {}", "", report.check, args.seed);
    }
    shell.renderer.document(&line);
}

fn summary(reports: &[Report], shell: &Shell) -> u8 {
    let count = |wanted: fn(Verdict) -> bool| reports.iter().filter(|r| wanted(r.verdict)).count();
    let (bad, passed) = (count(Verdict::is_bad), count(|v| v == Verdict::Pass));
    let (skipped, warned) = (count(|v| v == Verdict::Skip), count(|v| v == Verdict::Warn));
    let code = if bad > 0 { exit::PLUGIN_BROKE } else { exit::DONE };
    let seconds: f64 = reports.iter().map(|r| r.seconds).sum();
    let value = serde_json::json!({
        "type": "checked", "failed": bad, "passed": passed, "skipped": skipped, "warned": warned, "exit": code,
    });
    let took = table::duration(Duration::from_secs_f64(seconds));
    let end = if bad > 0 { format!("   (exit {code})") } else { String::new() };
    let text = format!(
        "{bad} failed, {passed} passed, {warned} warned, {skipped} skipped, {took} of checks{end}"
    );
    shell.renderer.answer(&text, &value);
    code
}
