//! `limbeck validate FILE`.

use super::inputs::{self, Inputs, search_path};
use super::{Answer, Shell, size};
use crate::args::ValidateArgs;
use crate::exit;
use crate::render::table;
use limbeck_host::data::{Datasets, Tokenize};
use limbeck_host::device::{cuda, describe, is_served};
use limbeck_host::diagnostic::{Diagnostic, Diagnostics, sort};
use limbeck_host::load::lock::{FILE_NAME, Lock};
use limbeck_host::load::place::unavailable;
use limbeck_host::load::{self, Catalogue, Loaded};
use limbeck_host::plan::{DeviceChoice, Plan};
use limbeck_host::run::check_parameters;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

/// One line of the check list.
struct Line {
    area: &'static str,
    problems: Diagnostics,
    fact: String,
    skipped: bool,
}

impl Line {
    fn new(area: &'static str, problems: Diagnostics, fact: String) -> Self {
        Self { area, problems, fact, skipped: false }
    }

    fn skipped(area: &'static str, why: &str) -> Self {
        Self { area, problems: Vec::new(), fact: why.to_owned(), skipped: true }
    }

    fn mark(&self, strict: bool) -> &'static str {
        let bad =
            self.problems.iter().any(Diagnostic::is_error) || (strict && !self.problems.is_empty());
        match (self.skipped, bad, self.problems.is_empty()) {
            (true, ..) => "skip",
            (_, true, _) => "FAIL",
            (_, _, false) => "warn",
            _ => "ok  ",
        }
    }
}

/// Goes through document, plugins, wiring, data and environment; tells every problem of each.
///
/// # Errors
/// None: problems are the answer.
pub fn validate(args: &ValidateArgs, shell: &Shell) -> Answer {
    let begin = Instant::now();
    let lines = check(args, shell);
    let mut problems: Diagnostics = lines.iter().flat_map(|l| l.problems.clone()).collect();
    sort(&mut problems);
    let mut code = exit::of_problems(&problems);
    if code == exit::DONE && args.strict && !problems.is_empty() {
        code = exit::PIPELINE;
    }
    let file = args.pipeline.file.display();
    if shell.renderer.is_json() {
        let areas: Vec<_> = lines
            .iter()
            .map(|l| json!({"area": l.area, "result": l.mark(args.strict).trim().to_lowercase(), "fact": l.fact}))
            .collect();
        let value = json!({
            "type": "validated", "file": file.to_string(), "valid": code == exit::DONE, "exit": code, "areas": areas,
        });
        shell.renderer.answer("", &value);
        shell.renderer.problems(&problems);
        return Ok(code);
    }
    shell.renderer.problems(&problems);
    let text = lines.iter().map(|l| {
        format!("  {:<11}  {} {}", l.area, shell.renderer.mark(l.mark(args.strict)), l.fact)
            .trim_end()
            .to_owned()
    });
    shell.renderer.document(&text.collect::<Vec<_>>().join("\n"));
    let took = begin.elapsed().as_secs_f64();
    let verdict = if code == exit::DONE { "valid" } else { "not valid" };
    shell.renderer.document(&format!("{file} is {verdict} ({took:.1} s)"));
    Ok(code)
}

fn check(args: &ValidateArgs, shell: &Shell) -> Vec<Line> {
    let plan = match inputs::plan_file(&args.pipeline.file, &args.pipeline.set) {
        Ok(plan) => plan,
        Err(problems) => {
            let fact = format!("{} problems", problems.len());
            return vec![Line::new("document", problems, fact)];
        }
    };
    let stages = plan.stages.len();
    let fact =
        format!("{stages} stage{}, {}", plural(stages), table::bytes(plan.text.len() as u64));
    let mut lines = vec![Line::new("document", plan.warnings.clone(), fact)];
    let (datasets, data_problems) = Datasets::open(&plan, Tokenize::Never);
    let found = Catalogue::discover(&search_path(Some(&plan), shell));
    let (catalogue, mut plugin_problems) = match found {
        Ok((catalogue, warnings)) => (Some(catalogue), warnings),
        Err(problems) => (None, problems),
    };
    let mut wiring_problems = Vec::new();
    let loaded = catalogue.as_ref().and_then(|c| match load::load(&plan, c, &datasets) {
        Ok(loaded) => Some(loaded),
        Err(problems) => {
            // Wiring is series 02; settings, files and plugins that refuse are the plugins' line.
            let (wiring, plugins) = problems.into_iter().partition(|p| p.code.starts_with("LMB02"));
            wiring_problems = wiring;
            plugin_problems.extend::<Vec<_>>(plugins);
            None
        }
    });
    let has_plugins = catalogue.is_some();
    let plugins = catalogue.as_ref().map(|c| plugin_fact(&plan, c)).unwrap_or_default();
    lines.push(Line::new("plugins", plugin_problems, plugins));
    lines.push(match &loaded {
        Some(loaded) => Line::new("wiring", loaded.warnings.clone(), wiring_fact(loaded)),
        None if wiring_problems.is_empty() => Line::skipped("wiring", "needs the above"),
        None => Line::new("wiring", wiring_problems, String::new()),
    });
    let data_ok = !data_problems.iter().any(Diagnostic::is_error);
    lines.push(Line::new("data", data_problems, data_fact(&plan, &datasets)));
    if !args.no_environment {
        let mut inputs = match (loaded, catalogue) {
            (Some(loaded), Some(catalogue)) if data_ok && has_plugins => {
                Some(Inputs { plan: plan.clone(), datasets, catalogue, loaded })
            }
            _ => None,
        };
        let found = inputs.as_mut().map(probe).unwrap_or_default();
        let mut line = environment(&plan, inputs.as_ref(), shell);
        line.problems.extend(found);
        lines.push(line);
    }
    lines
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Ids in use, `limbeck.` said once, and their versions.
fn plugin_fact(plan: &Plan, catalogue: &Catalogue) -> String {
    let mut used = BTreeSet::new();
    for train in plan.stages.iter().filter_map(|s| s.training()) {
        used.extend(train.plugin_uses().map(|p| p.id.clone()));
    }
    let mut by_version: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for info in used.iter().filter_map(|id| catalogue.find(id)) {
        let devices =
            if is_served() { format!(", {}", info.devices().join("+")) } else { String::new() };
        let version = format!("{} (ABI {}.{}{devices})", info.version, info.abi.0, info.abi.1);
        by_version.entry(version).or_default().push(info.id.clone());
    }
    let group = |(version, ids): (String, Vec<String>)| {
        let short = |(i, id): (usize, &String)| match id.strip_prefix("limbeck") {
            Some(rest) if i > 0 => rest.to_owned(),
            _ => id.clone(),
        };
        let ids: Vec<String> = ids.iter().enumerate().map(short).collect();
        format!("{} {version}", ids.join(" "))
    };
    by_version.into_iter().map(group).collect::<Vec<_>>().join("; ")
}

fn wiring_fact(loaded: &Loaded) -> String {
    let stages: Vec<_> = loaded.stages.iter().flatten().collect();
    let bound =
        |inputs: &[Option<limbeck_host::load::wiring::Source>]| inputs.iter().flatten().count();
    let inputs: usize = stages
        .iter()
        .map(|s| {
            let terms: usize = s.terms.iter().map(|t| bound(&t.inputs)).sum();
            let teachers: usize = s.teachers.iter().map(|t| bound(&t.inputs)).sum();
            bound(&s.student_inputs) + teachers + terms
        })
        .sum();
    let terms: usize = stages.iter().map(|s| s.terms.len()).sum();
    format!("{inputs} inputs bound, {terms} loss term{}", plural(terms))
}

fn data_fact(plan: &Plan, datasets: &Datasets) -> String {
    let fact = |id: &String| {
        let data = datasets.get(id)?;
        let classes = data.classes();
        let labels = match (classes.first(), classes.last()) {
            (Some(first), Some(last)) => format!(", labels {first}..{last}"),
            _ => String::new(),
        };
        Some(format!("{id} {} rows{labels}", table::thousands(data.rows() as u64)))
    };
    plan.datasets.keys().filter_map(fact).collect::<Vec<_>>().join("; ")
}

/// What only weights and whole input files show.
fn probe(inputs: &mut Inputs) -> Diagnostics {
    let work = std::env::temp_dir().join(format!("limbeck-validate-{}", std::process::id()));
    let found = check_parameters(&inputs.plan, &mut inputs.loaded, &work);
    // Plugins may have put files there; it is a folder of our own.
    let _ = std::fs::remove_dir_all(&work);
    let mut problems = found.unwrap_or_else(|e| vec![*e.diagnostic]);
    let lock = Lock::load(&inputs.plan.base_dir.join(FILE_NAME)).unwrap_or_default();
    if !lock.inputs.is_empty() {
        match load::inputs::read(&inputs.plan, &inputs.catalogue) {
            Ok(files) => problems.extend(load::inputs::verify(&lock, &files)),
            Err(more) => problems.extend(more),
        }
    }
    problems
}

/// Device and disk.
fn environment(plan: &Plan, inputs: Option<&Inputs>, shell: &Shell) -> Line {
    let mut problems = Vec::new();
    let threads = crate::startup::threads(shell.global.threads);
    let cpu = format!("cpu, {threads} thread{}", plural(threads));
    let device = match (inputs.map(|i| i.loaded.place(plan.device)), plan.device) {
        (Some(Ok(place)), _) => {
            problems.extend(place.warning(plan));
            match &place.why_not {
                _ if place.gpu.is_some() => place.to_string(),
                Some(why) if is_served() => format!("{cpu}, no GPU ({why})"),
                _ => cpu,
            }
        }
        (Some(Err(problem)), _) => {
            problems.push(problem);
            "no device".to_owned()
        }
        // Without plugins nobody knows what they can.
        (None, DeviceChoice::Cuda(n)) => match describe(cuda(n)) {
            Ok((name, _)) => format!("cuda:{n} ({name})"),
            Err(error) => {
                problems.push(unavailable(n, &error.message));
                "no device".to_owned()
            }
        },
        (None, _) => cpu,
    };
    let needed: Option<u64> = inputs.and_then(|inputs| {
        let stages = 0..inputs.plan.stages.len();
        stages.filter_map(|s| size::of_stage(inputs, s)).map(|s| s.disk).sum()
    });
    let free = free_bytes(&shell.global.runs);
    if let (Some(free), Some(needed)) = (free, needed)
        && free < needed
    {
        let message = format!(
            "{} free for runs in {}, about {} needed",
            table::bytes(free),
            shell.global.runs.display(),
            table::bytes(needed)
        );
        problems
            .push(Diagnostic::warning("LMB0701", message).help("`--runs DIR` puts runs elsewhere"));
    }
    let free = free.map(|f| format!("; {} free", table::bytes(f))).unwrap_or_default();
    let needed = needed.map(|n| format!(", about {} needed", table::bytes(n))).unwrap_or_default();
    Line::new("environment", problems, format!("{device}{free}{needed}"))
}

/// Free bytes where `path`, or the closest parent that exists, lies.
fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|p| p.exists())?;
    let name = std::ffi::CString::new(existing.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a NUL-terminated path and a struct of the right type; zeroed memory is a valid `statvfs`.
    let stat = unsafe {
        if libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some(stat.f_bavail * stat.f_frsize)
}
