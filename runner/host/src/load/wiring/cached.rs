//! A teacher that is a cache: what it offers, and whether it serves this stage.
//!
//! Refuses a cache of other data, another tokenizer, a teacher that changed since, rows that it lacks and a temperature
//! that it was not made for. Reads manifests and headers, never an output.

use super::capture::LoadedCapture;
use super::{CachedTeacher, LoadedTeacher, LoadedTerm, Source};
use crate::cache::{self, Manifest, Ranges, TOP_K};
use crate::data::{Dataset, Datasets};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::load::codes;
use crate::load::instance::Port;
use crate::plan::{CacheAt, CachePlan, Metric, StagePlan, TrainPlan};
use crate::tensor::DType;
use std::path::Path;

/// Rows that a cache has (or will have) from one source.
struct Held {
    datasets: Vec<String>,
    source: String,
    files: Vec<String>,
    rows: Ranges,
}

/// The cache of a stage.
///
/// # Errors
/// All that keeps it from serving, in the words of the stage.
pub(super) fn open(
    stage: &StagePlan,
    train: &TrainPlan,
    plan: &CachePlan,
    captures: &[Option<LoadedCapture>],
    data: &Datasets,
    part: &str,
) -> Result<CachedTeacher, Diagnostics> {
    let place = |problem: Diagnostic| {
        problem.at(plan.span.clone()).within(format!("stage `{}`, {part}", stage.name))
    };
    let (ports, held, temperature) = match &plan.at {
        CacheAt::Stage(index) => {
            let Some(capture) = captures.get(*index).and_then(Option::as_ref) else {
                // Its own problems were told.
                return Err(Vec::new());
            };
            let held = held_by(&capture.data, data);
            (capture.outputs.clone(), held, capture.topk.map(|t| t.temperature))
        }
        CacheAt::Dir(dir) => {
            let manifest = manifest(dir).map_err(|problem| vec![place(problem)])?;
            let ports = manifest.outputs.iter().map(|o| port(&o.name, &o.shape)).collect();
            let temperature = manifest.topk.map(|t| t.temperature);
            let held = manifest.sources.into_iter().map(|s| Held {
                datasets: s.datasets,
                source: s.source,
                files: s.files,
                rows: s.rows,
            });
            (ports, held.collect(), temperature)
        }
    };
    let needed = needed(train).into_iter().filter_map(|id| data.get(id));
    let problems: Diagnostics =
        needed.clone().filter_map(|d| lacking(d, &held)).map(place).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut sources: Vec<(i64, String)> =
        needed.map(|d| (d.first_id(), d.source().to_owned())).collect();
    sources.dedup();
    Ok(CachedTeacher { ports, at: plan.at.clone(), sources, temperature, open: None })
}

/// A port of a cache.
pub(super) fn port(name: &str, shape: &str) -> Port {
    let integers = name == TOP_K[0];
    Port {
        name: name.to_owned(),
        shape: shape.to_owned(),
        rows: String::new(),
        doc: String::new(),
        dtypes: vec![if integers { DType::I32 } else { DType::F32 }],
        flags: limbeck_abi::PORT_OUTPUT,
    }
}

fn manifest(dir: &Path) -> Result<Manifest, Diagnostic> {
    let manifest = cache::read(dir).map_err(|(file, why)| {
        let message = format!("teacher cache: cannot use {}: {why}", file.display());
        Diagnostic::error(codes::CACHE_UNREADABLE, message)
            .help("name a directory that a `capture` stage wrote to its end")
    })?;
    match manifest.teacher.changed_file() {
        None => Ok(manifest),
        Some(file) => {
            let message = format!(
                "teacher cache {} is stale: {} is no longer what it was",
                dir.display(),
                file.display()
            );
            Err(stale(message))
        }
    }
}

fn stale(message: String) -> Diagnostic {
    Diagnostic::error(codes::CACHE_STALE, message)
        .help("run the pipeline with its `capture` stage again")
}

/// Datasets whose rows are shown to the teacher.
fn needed(train: &TrainPlan) -> Vec<&str> {
    let measured = train.eval.metrics.iter().any(|m| matches!(m, Metric::Agreement | Metric::Loss));
    let mut ids: Vec<&str> = train.tasks.iter().map(|t| t.train.as_str()).collect();
    if measured {
        ids.extend(train.tasks.iter().filter_map(|t| t.valid.as_deref()));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn hashes(dataset: &Dataset) -> Vec<String> {
    dataset.hashes().into_iter().map(|(_, hash)| hash).collect()
}

/// What a capture of these datasets is going to hold.
fn held_by(ids: &[String], data: &Datasets) -> Vec<Held> {
    let mut held: Vec<Held> = Vec::new();
    for dataset in ids.iter().filter_map(|id| data.get(id)) {
        let places = dataset.places().iter().copied();
        match held.iter_mut().find(|h| h.source == dataset.source()) {
            Some(same) => {
                same.rows = Ranges::new(same.rows.iter().chain(places));
                same.datasets.push(dataset.id().to_owned());
            }
            None => held.push(Held {
                datasets: vec![dataset.id().to_owned()],
                source: dataset.source().to_owned(),
                files: hashes(dataset),
                rows: Ranges::new(places),
            }),
        }
    }
    held
}

/// Why a dataset's rows are not in the cache.
fn lacking(dataset: &Dataset, held: &[Held]) -> Option<Diagnostic> {
    let id = dataset.id();
    let Some(found) = held.iter().find(|h| h.source == dataset.source()) else {
        let known: Vec<&str> = held.iter().flat_map(|h| &h.datasets).map(String::as_str).collect();
        let same_name = held.iter().find(|h| h.datasets.iter().any(|d| d == id));
        let files = hashes(dataset);
        let why = match same_name {
            Some(then) if then.files != files => "its files changed",
            Some(_) => "its columns or the tokenizer changed",
            None if held.iter().any(|h| h.files == files) => {
                "its files are in the cache with other columns or another tokenizer"
            }
            None => "it is not in the cache",
        };
        let problem = stale(format!("the teacher cache does not serve dataset `{id}`: {why}"));
        return Some(problem.note(format!("the cache holds {}", known.join(", "))));
    };
    let missing = dataset.places().iter().filter(|row| !found.rows.contains(**row)).count();
    (missing > 0).then(|| {
        let rows = dataset.rows();
        let message =
            format!("the teacher cache lacks {missing} of the {rows} rows of dataset `{id}`");
        stale(message).note(format!("it holds {} rows of these files", found.rows.len()))
    })
}

/// Terms that read log-probabilities of another temperature than their own.
pub(super) fn temperatures(
    train: &TrainPlan,
    teacher: &LoadedTeacher,
    terms: &[LoadedTerm],
    settings: impl Fn(usize) -> serde_json::Value,
) -> Diagnostics {
    let Some(kept) = teacher.cache().and_then(|cache| cache.temperature) else { return Vec::new() };
    let member = if teacher.name.is_empty() { String::new() } else { format!("{}.", teacher.name) };
    let reads = |term: &LoadedTerm| {
        let of_topk = |s: &Source| match s {
            Source::Teacher(name) => name.strip_prefix(&member).is_some_and(|n| TOP_K.contains(&n)),
            _ => false,
        };
        term.inputs.iter().flatten().any(of_topk)
    };
    let mut problems = Vec::new();
    for index in terms.iter().filter(|t| reads(t)).filter_map(|t| t.planned) {
        let (with, Some(term)) = (settings(index), train.loss.get(index)) else { continue };
        let own = with.get("teacher_temperature").filter(|t| !t.is_null());
        let Some(own) = own.or_else(|| with.get("temperature")).and_then(|t| t.as_f64()) else {
            continue;
        };
        if own != kept {
            let message = format!(
                "term `{}` wants the teacher at temperature {own}, the cache holds it at {kept}",
                term.name
            );
            problems.push(
                Diagnostic::error(codes::CACHE_STALE, message)
                    .at(term.span.clone())
                    .help("capture with `topk.temperature` equal to the term's"),
            );
        }
    }
    problems
}
