//! The keys of the top level that are no stage defaults: name, seed, device, tokenizer, plugins, datasets, tasks.
//!
//! Knows no stage. Paths are made relative to the pipeline's directory and not looked at.

use super::dataset;
use super::values::{check_id, check_name, map_entries, resolve_path};
use super::{DatasetPlan, DeviceChoice, PinnedPlugin, StagePlan, TaskPlan, TokenizerPlan, Work};
use crate::diagnostic::{Diagnostic, Span, did_you_mean};
use crate::document::{Document, Fields, Node, Sink, Value, choice_of, count_of, listed};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The top level, read.
pub struct Top {
    pub name: String,
    pub description: Option<String>,
    pub seed: u64,
    pub seed_is_drawn: bool,
    pub deterministic: bool,
    pub device: DeviceChoice,
    pub datasets: BTreeMap<String, DatasetPlan>,
    pub tokenizer: Option<TokenizerPlan>,
    pub tokenizers: BTreeMap<String, TokenizerPlan>,
    pub plugins: Vec<PinnedPlugin>,
    pub tensorboard: bool,
    pub tasks: Vec<TaskPlan>,
    /// Datasets that a generator of tasks takes.
    pub generated_from: Vec<String>,
    /// `data` stands at top level.
    pub has_data: bool,
    /// `tasks` stands there.
    pub has_tasks: bool,
}

impl Top {
    /// Checks that a dataset is declared; returns whether it is.
    pub fn check_dataset(&self, sink: &Sink, id: &str, span: &Span) -> bool {
        let known = self.datasets.contains_key(id);
        if !known {
            let names: Vec<&str> = self.datasets.keys().map(String::as_str).collect();
            let problem = Diagnostic::error("LMB0201", format!("dataset `{id}` is not declared"))
                .at(span.clone());
            sink.report(help_among(problem, id, &names, "add it to `datasets`"));
        }
        known
    }
}

/// Adds did-you-mean, else the list of what there is, else `otherwise`.
pub fn help_among(problem: Diagnostic, found: &str, known: &[&str], otherwise: &str) -> Diagnostic {
    match did_you_mean(found, known.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None if known.is_empty() => problem.help(otherwise.to_owned()),
        None => problem.help(format!("declared: {}", listed(known))),
    }
}

/// Reads the top level except `stages` and the defaults.
pub fn read(fields: &Fields, document: &Document) -> Top {
    let base = document.base_dir.as_path();
    version(fields);
    let name = fields.need_text("name", "for example `name: digits`");
    if let (Some(field), false) = (fields.field("name"), name.is_empty()) {
        check_name(fields.sink, "a pipeline name", &name, &field.node.span, true);
    }
    let description = fields.text("description");
    let (seed, seed_is_drawn) = seed(fields);
    let deterministic = fields.flag_or("deterministic", false);
    let device = device(fields);
    super::scenario::read(fields);
    let tensorboard = trackers(fields);
    let plugins = plugins(fields, base);
    let tokenizer = tokenizer(fields, base);
    let tokenizers = tokenizers(fields, base);
    let datasets = datasets(fields, base);
    let mut top = Top {
        name,
        description,
        seed,
        seed_is_drawn,
        deterministic,
        device,
        datasets,
        tokenizer,
        tokenizers,
        plugins,
        tensorboard,
        tasks: Vec::new(),
        generated_from: Vec::new(),
        has_data: fields.field("data").is_some(),
        has_tasks: fields.field("tasks").is_some(),
    };
    let tasks = super::tasks::read(fields, &top);
    top.tasks = tasks.tasks;
    top.datasets.extend(tasks.made);
    top.generated_from = tasks.taken;
    top
}

fn version(fields: &Fields) {
    let Some(field) = fields.field("version") else {
        fields.missing("version", "start the file with `version: 1`");
        return;
    };
    match &field.node.value {
        Value::Int(1, _) => fields.keep("version", Json::from(1), Some(field)),
        Value::Int(_, found) => fields.sink.report(
            Diagnostic::error("LMB0116", format!("pipeline version {found} is not known"))
                .at(field.node.span.clone())
                .help("this program reads `version: 1`"),
        ),
        _ => fields.wrong_type("version", "the number 1", &field.node),
    }
}

/// The seed, and whether it was drawn.
fn seed(fields: &Fields) -> (u64, bool) {
    let Some(field) = fields.field("seed") else {
        fields.keep("seed", Json::from(0), None);
        return (0, false);
    };
    let (seed, is_drawn) = match field.node.text() {
        Some("random") => (draw_seed(), true),
        Some(_) => {
            fields.wrong_type("seed", "a whole number or `random`", &field.node);
            return (0, false);
        }
        None => (count_of(fields.sink, "seed", &field.node, 0).unwrap_or(0), false),
    };
    fields.keep("seed", Json::from(seed), Some(field));
    (seed, is_drawn)
}

/// 53 bits of the keys that the standard library draws for its hash maps: exact in every JSON reader.
fn draw_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 11
}

fn device(fields: &Fields) -> DeviceChoice {
    let Some(field) = fields.field("device") else {
        fields.keep("device", Json::from("auto"), None);
        return DeviceChoice::Auto;
    };
    let text = field.node.text().unwrap_or_default();
    let choice = match text {
        "auto" => Some(DeviceChoice::Auto),
        "cpu" => Some(DeviceChoice::Cpu),
        _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(DeviceChoice::Cuda),
    };
    if choice.is_none() {
        let problem =
            format!("`device` must be `auto`, `cpu` or `cuda:N`, found {}", field.node.describe());
        let help = if text == "cuda" {
            "write `cuda:0` for the first GPU"
        } else {
            "`auto` takes a GPU if there is one"
        };
        fields
            .sink
            .report(Diagnostic::error("LMB0106", problem).at(field.node.span.clone()).help(help));
    }
    fields.keep("device", Json::from(text), Some(field));
    choice.unwrap_or(DeviceChoice::Auto)
}

fn trackers(fields: &Fields) -> bool {
    let Some(field) = fields.field("trackers") else {
        fields.keep("trackers", Json::Array(Vec::new()), None);
        return false;
    };
    let mut names = BTreeSet::new();
    for item in fields.list("trackers") {
        let choices = [("tensorboard", ()), ("jsonl", ())];
        if let Some((name, ())) = choice_of(fields.sink, "trackers", item, &choices) {
            names.insert(name);
        }
    }
    fields.keep("trackers", names.iter().copied().collect(), Some(field));
    names.contains("tensorboard")
}

fn plugins(fields: &Fields, base: &Path) -> Vec<PinnedPlugin> {
    let mut out: Vec<PinnedPlugin> = Vec::new();
    let mut json = Vec::new();
    for (index, node) in fields.list("plugins").iter().enumerate() {
        let part = fields.below(node, &format!("plugins.{index}"), "an entry of `plugins`", false);
        let id = part.need_text("id", "for example `id: org.example.focal-kd`");
        let id_span = part.field("id").map_or(&node.span, |f| &f.node.span).clone();
        if !id.is_empty() {
            check_id(fields.sink, &id, &id_span);
        }
        if out.iter().any(|p| p.id == id && !id.is_empty()) {
            report_double(fields.sink, &format!("plugin `{id}`"), &id_span);
        }
        let path = part.need_text("path", "for example `path: plugins/libfocal_kd.so`");
        let version = part.text("version");
        if let (Some(version), Some(field)) = (&version, part.field("version")) {
            check_requirement(fields.sink, version, &field.node);
        }
        json.push(part.finish());
        out.push(PinnedPlugin {
            id,
            path: resolve_path(base, &path),
            version,
            span: Some(id_span),
        });
    }
    if !json.is_empty() {
        fields.keep_part("plugins", Json::Array(json));
    }
    out
}

/// `^0.2`, `=1.2.3`, `>=1, <2`, `~1.4`, `1.*`.
fn check_requirement(sink: &Sink, text: &str, node: &Node) {
    let one = |part: &str| {
        let digits = part.trim().trim_start_matches(['^', '~', '=', '>', '<']).trim_start();
        let numbers: Vec<&str> = digits.splitn(3, '.').collect();
        !digits.is_empty()
            && numbers.iter().all(|n| {
                let core = n.split(['-', '+']).next().unwrap_or_default();
                *n == "*" || (!core.is_empty() && core.bytes().all(|b| b.is_ascii_digit()))
            })
    };
    if !text.split(',').all(one) {
        sink.report(
            Diagnostic::error(
                "LMB0106",
                format!("`version` must be a version requirement, found {}", node.describe()),
            )
            .at(node.span.clone())
            .help("for example `^0.2`, `>=1.2, <2` or `=1.4.0`"),
        );
    }
}

fn tokenizer(fields: &Fields, base: &Path) -> Option<TokenizerPlan> {
    let part = fields.part("tokenizer")?;
    let plan = tokenizer_of(&part, base);
    fields.keep_part("tokenizer", part.finish());
    Some(plan)
}

/// `tokenizers.NAME`: of the texts that a dataset lists under the same name.
fn tokenizers(fields: &Fields, base: &Path) -> BTreeMap<String, TokenizerPlan> {
    let mut out = BTreeMap::new();
    let mut json = Map::new();
    let Some(field) = fields.field("tokenizers") else { return out };
    for entry in map_entries(fields.sink, "tokenizers", &field.node) {
        let name = entry.key.to_string();
        check_name(fields.sink, "a tokenizer name", &name, &entry.key_span, false);
        let what = format!("tokenizer `{name}`");
        let part = fields.below(&entry.node, &format!("tokenizers.{name}"), what, false);
        out.insert(name.clone(), tokenizer_of(&part, base));
        json.insert(name, part.finish());
    }
    fields.keep_part("tokenizers", Json::Object(json));
    out
}

fn tokenizer_of(part: &Fields, base: &Path) -> TokenizerPlan {
    let path = part.need_text("path", "a directory with `tokenizer.json`, or that file");
    let max_length = part.count_or("max_length", 1, 512);
    let pad_longest = part.choice_or_first("padding", ("longest", true), &[("max", false)]);
    TokenizerPlan {
        path: resolve_path(base, &path),
        max_length: max_length as usize,
        pad_longest,
        span: Some(part.span.clone()),
    }
}

fn datasets(fields: &Fields, base: &Path) -> BTreeMap<String, DatasetPlan> {
    let mut out = BTreeMap::new();
    let mut json = Map::new();
    let Some(part) = fields.part("datasets") else { return out };
    for field in part.all() {
        let id = field.key.to_string();
        check_name(fields.sink, "a dataset id", &id, &field.key_span, false);
        let (dataset, resolved) = dataset::read(&part, field, base);
        json.insert(id.clone(), resolved);
        out.insert(id, dataset);
    }
    fields.keep_part("datasets", Json::Object(json));
    out
}

/// Reports a name that is already taken.
pub fn report_double(sink: &Sink, what: &str, span: &Span) {
    sink.report(
        Diagnostic::error("LMB0205", format!("{what} is declared twice"))
            .at(span.clone())
            .help("give each its own name"),
    );
}

/// Warns about datasets and pinned plugins that no stage uses.
pub fn report_unused(top: &Top, stages: &[StagePlan], sink: &Sink) {
    let mut data: BTreeSet<&str> = top.generated_from.iter().map(String::as_str).collect();
    let mut plugins = BTreeSet::new();
    for task in &top.tasks {
        data.extend([Some(task.train.as_str()), task.valid.as_deref()].into_iter().flatten());
    }
    for stage in stages {
        match &stage.work {
            Work::Train(train) => {
                for task in &train.tasks {
                    data.extend(
                        [Some(task.train.as_str()), task.valid.as_deref()].into_iter().flatten(),
                    );
                }
                plugins.extend(train.plugin_uses().map(|p| p.id.as_str()));
            }
            Work::Capture(capture) => {
                data.extend(capture.data.iter().map(String::as_str));
                plugins.extend(capture.plugin().map(|p| p.id.as_str()));
            }
            Work::Eval(eval) => data.extend(eval.data.iter().map(String::as_str)),
            Work::Export(_) => {}
        }
    }
    let warn = |what: String, span: &Option<Span>| {
        sink.report(
            Diagnostic::warning("LMB0220", format!("{what} is used by no stage")).at(span.clone()),
        );
    };
    for dataset in top.datasets.values().filter(|d| !data.contains(d.id.as_str())) {
        warn(format!("dataset `{}`", dataset.id), &dataset.span);
    }
    for plugin in top.plugins.iter().filter(|p| !plugins.contains(p.id.as_str())) {
        warn(format!("plugin `{}`", plugin.id), &plugin.span);
    }
}
