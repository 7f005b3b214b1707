//! The folder of a run: layout, record, and finding a run again.
//!
//! `run.json` is replaced as a whole, so it is never torn. A run belongs to one process at a time (see
//! [`super::owner`]); a run of another resolved pipeline is never continued.

use super::checkpoint::sha256;
use super::error::{RunResult, bug, io_error};
use super::owner::Owner;
use super::place;
use super::vfs::{RealFs, Vfs, replace};
use super::{RunError, RunOptions};
use crate::diagnostic::Diagnostic;
use crate::plan::{Plan, StagePlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// State of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A process works on it, or died while it did.
    Running,
    /// Stopped by request; can be continued.
    Stopped,
    /// Ended by an error; can be continued.
    Failed,
    /// All stages are done.
    Done,
}

/// A plugin as it was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginRecord {
    /// semver.
    pub version: String,
    /// Of its library.
    pub sha256: String,
    /// Where it was found.
    pub library: PathBuf,
    /// `--allow-unlocked` let it in.
    pub unlocked: bool,
}

/// `run.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Format.
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// Pipeline name.
    pub name: String,
    /// Folder name.
    pub id: String,
    /// State.
    pub status: Status,
    /// Why it is in that state.
    pub reason: Option<String>,
    /// Seed; a random one has been drawn.
    pub seed: u64,
    /// The pipeline says `seed: random`.
    pub seed_is_drawn: bool,
    /// Size of the pool.
    pub threads: usize,
    /// `cpu`, `cuda:0`: where it computed last.
    #[serde(default)]
    pub device: Option<String>,
    /// Pipeline file as the user named it.
    pub file: PathBuf,
    /// Directory that relative inputs start from, absolute.
    pub base_dir: PathBuf,
    /// `--set` entries.
    pub sets: Vec<String>,
    /// Hash of the resolved pipeline.
    pub resolved: String,
    /// Plugins by id.
    pub plugins: BTreeMap<String, PluginRecord>,
    /// SHA-256 of data files by path.
    pub data: BTreeMap<PathBuf, String>,
    /// UTC.
    pub started: String,
    /// UTC.
    pub updated: String,
}

/// State of one stage: its `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageRecord {
    /// `pending` is a missing file.
    pub status: Status,
    /// Hash of the resolved stage.
    pub resolved: String,
    /// Steps done when the stage is.
    pub steps: u64,
    /// Length of `metrics.jsonl` at the beginning of the stage, then at its end.
    pub metrics_offset: u64,
    /// Final metrics.
    pub metrics: Vec<(String, Option<f64>)>,
    /// Where an export went.
    pub exported: Option<PathBuf>,
}

/// Plugins and data of a run, to be compared on resume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// By id.
    pub plugins: BTreeMap<String, PluginRecord>,
    /// By path.
    pub data: BTreeMap<PathBuf, String>,
}

impl Inputs {
    /// One hash over all.
    pub fn hash(&self) -> String {
        let plugins = self.plugins.iter().map(|(id, p)| format!("{id} {}\n", p.sha256));
        let data = self.data.iter().map(|(path, hash)| format!("{} {hash}\n", path.display()));
        sha256(plugins.chain(data).collect::<String>().as_bytes())
    }

    /// What differs from a record, in words.
    pub fn changes(&self, record: &Record) -> Vec<String> {
        let mut changes = Vec::new();
        for (id, now) in &self.plugins {
            match record.plugins.get(id) {
                Some(then) if then.sha256 == now.sha256 => {}
                Some(then) => changes.push(format!(
                    "plugin `{id}`: {} ({:.12}) was {} ({:.12})",
                    now.version, now.sha256, then.version, then.sha256
                )),
                None => changes.push(format!("plugin `{id}` is new")),
            }
        }
        for (path, now) in &self.data {
            match record.data.get(path) {
                Some(then) if then == now => {}
                Some(then) => changes
                    .push(format!("data {}: SHA-256 {now:.12} was {then:.12}", path.display())),
                None => changes.push(format!("data {} is new", path.display())),
            }
        }
        changes
    }
}

/// A run as its folder describes it; enough to plan again.
#[derive(Clone, Debug)]
pub struct Described {
    /// Folder.
    pub dir: PathBuf,
    /// Its record.
    pub record: Record,
    /// The stored copy of the pipeline file.
    pub pipeline: PathBuf,
    /// Directory that relative inputs start from.
    pub base_dir: PathBuf,
    /// `--set` entries; a drawn seed is among them.
    pub sets: Vec<String>,
}

/// An open run, owned by this process.
pub struct RunDir {
    /// Folder.
    pub dir: PathBuf,
    /// Its record.
    pub record: Record,
    /// Whether it existed before.
    pub continued: bool,
    owner: Owner,
}

/// Hash of the resolved pipeline.
pub fn resolved_hash(plan: &Plan) -> String {
    sha256(format!("{}\nseed {}", plan.resolved, plan.seed).as_bytes())
}

/// Hash of one resolved stage.
pub fn stage_hash(stage: &StagePlan) -> String {
    sha256(stage.resolved.to_string().as_bytes())
}

/// `20261123T160412Z`, from seconds since 1970.
pub fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{h:02}{m:02}{s:02}Z")
}

pub(super) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(dir.join("run.json")).ok()?).ok()
}

fn runs_under(dir: &Path) -> Vec<(PathBuf, Record)> {
    let names = RealFs.list(dir).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| {
            let dir = dir.join(name);
            read_record(&dir).map(|record| (dir, record))
        })
        .collect()
}

/// Finds a run by directory, id, or a prefix of the id or of its hexadecimal part.
///
/// # Errors
/// None or several match (exit 66).
pub fn find(runs_dir: &Path, reference: &str) -> Result<PathBuf, Diagnostic> {
    let direct = PathBuf::from(reference);
    if direct.join("run.json").is_file() {
        return Ok(direct);
    }
    let reference = reference.trim_end_matches('/');
    let names = RealFs.list(runs_dir).unwrap_or_default();
    let all: Vec<(PathBuf, Record)> =
        names.iter().flat_map(|name| runs_under(&runs_dir.join(name))).collect();
    let matches = |record: &Record| {
        let hex = record.id.rsplit('-').next().unwrap_or_default();
        let long = format!("{}/{}", record.name, record.id);
        [record.id.as_str(), hex, &long].iter().any(|text| text.starts_with(reference))
    };
    let found: Vec<&(PathBuf, Record)> = all.iter().filter(|(_, r)| matches(r)).collect();
    match found.as_slice() {
        [(dir, _)] => Ok(dir.clone()),
        [] => {
            let mut diagnostic = Diagnostic::error(
                "LMB0706",
                format!("no run `{reference}` under {}", runs_dir.display()),
            );
            if let Some((_, last)) = all.iter().max_by(|a, b| a.1.id.cmp(&b.1.id)) {
                diagnostic =
                    diagnostic.note(format!("the newest one is {}/{}", last.name, last.id));
            }
            Err(diagnostic.help("give the directory of a run, its id, or the beginning of the id"))
        }
        several => {
            let mut diagnostic =
                Diagnostic::error("LMB0706", format!("`{reference}` names {} runs", several.len()));
            for (_, record) in several {
                diagnostic = diagnostic.note(format!("{}/{}", record.name, record.id));
            }
            Err(diagnostic.help("give more of the id"))
        }
    }
}

/// What is needed to plan a run again.
///
/// # Errors
/// The folder holds no readable `run.json`.
pub fn describe(dir: &Path) -> Result<Described, Diagnostic> {
    let record = read_record(dir).ok_or_else(|| {
        Diagnostic::error("LMB0706", format!("{} is no run directory", dir.display()))
            .help("a run directory holds a readable run.json")
    })?;
    let mut sets = record.sets.clone();
    sets.retain(|s| !s.starts_with("seed="));
    sets.push(format!("seed={}", record.seed));
    Ok(Described {
        dir: dir.to_owned(),
        pipeline: dir.join("config").join("pipeline.yaml"),
        base_dir: record.base_dir.clone(),
        sets,
        record,
    })
}

/// The seed that an unfinished run of a pipeline with `seed: random` drew: the same command goes on with it.
pub fn drawn_before(plan: &Plan, options: &RunOptions) -> Option<u64> {
    if !plan.seed_is_drawn || options.fresh || options.resume.is_some() {
        return None;
    }
    let mut runs = runs_under(&options.runs_dir.join(&plan.name));
    runs.retain(|(_, record)| {
        record.seed_is_drawn
            && record.status != Status::Done
            && record.resolved == resolved_hash(&plan.with_seed(record.seed))
    });
    runs.into_iter().map(|(_, record)| record).max_by(|a, b| a.id.cmp(&b.id)).map(|r| r.seed)
}

/// What [`open`] found.
pub enum Opened {
    /// A run to work on.
    Run(Box<RunDir>),
    /// A run of this pipeline is done already.
    Done(PathBuf),
}

/// Opens the run to work on: the one asked for, an unfinished one of the same resolved pipeline, or a new one.
///
/// # Errors
/// Owned by a living process (73); plugins or data changed, another pipeline (78); I/O.
pub fn open(plan: &Plan, inputs: &Inputs, options: &RunOptions) -> RunResult<Opened> {
    let resolved = resolved_hash(plan);
    if let Some(dir) = &options.resume {
        let record = read_record(dir).ok_or_else(|| {
            let message = format!("{} is no run directory", dir.display());
            RunError::new(Diagnostic::error("LMB0706", message))
        })?;
        if record.resolved != resolved {
            let message = format!("run {} belongs to another resolved pipeline", record.id);
            let diagnostic = Diagnostic::error("LMB0708", message)
                .help("config/resolved.yaml in the run directory shows what it was started with");
            return Err(RunError::new(diagnostic));
        }
        return take(dir, record, inputs, options.accept_changes, plan);
    }
    if !options.fresh {
        let mut same = runs_under(&options.runs_dir.join(&plan.name));
        same.retain(|(_, record)| record.resolved == resolved);
        same.sort_by(|a, b| b.1.id.cmp(&a.1.id));
        if let Some((dir, record)) = same.iter().find(|(_, r)| r.status != Status::Done) {
            return take(dir, record.clone(), inputs, options.accept_changes, plan);
        }
        if let Some((dir, _)) = same.iter().find(|(_, r)| inputs.changes(r).is_empty()) {
            return Ok(Opened::Done(dir.clone()));
        }
    }
    create(plan, inputs, options, &resolved)
}

fn take(
    dir: &Path,
    mut record: Record,
    inputs: &Inputs,
    accept: bool,
    plan: &Plan,
) -> RunResult<Opened> {
    if record.status == Status::Done {
        return Ok(Opened::Done(dir.to_owned()));
    }
    let owner = Owner::acquire(dir)?;
    place::sweep(dir);
    let changes = inputs.changes(&record);
    if !changes.is_empty() && !accept {
        let message = format!("run {} was started with other plugins or data", record.id);
        let mut diagnostic = Diagnostic::error("LMB0707", message);
        diagnostic.notes = changes.clone();
        let diagnostic = diagnostic.help(format!(
            "`limbeck resume {} --accept-changes` goes on all the same, `--fresh` starts anew",
            record.id
        ));
        return Err(RunError::new(diagnostic));
    }
    record.plugins.clone_from(&inputs.plugins);
    record.data.clone_from(&inputs.data);
    record.base_dir = absolute(&plan.base_dir);
    let mut run = RunDir { dir: dir.to_owned(), record, continued: true, owner };
    let reason = (!changes.is_empty()).then(|| format!("changes accepted: {}", changes.join("; ")));
    run.set_status(Status::Running, reason)?;
    Ok(Opened::Run(Box::new(run)))
}

fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn create(plan: &Plan, inputs: &Inputs, options: &RunOptions, hash: &str) -> RunResult<Opened> {
    let parent = options.runs_dir.join(&plan.name);
    std::fs::create_dir_all(&parent).map_err(|e| match io_error("create", &parent, &e) {
        // Whatever the system says of it, the place asked for cannot hold runs.
        mut error if error.diagnostic.code == "LMB0702" => {
            error.diagnostic.code = "LMB0711";
            error
        }
        error => error,
    })?;
    let (id, dir, owner) = match place::abandoned(&parent, hash) {
        Some(found) => found,
        None => place::fresh(&parent, hash)?,
    };
    let record = Record {
        version: 1,
        program: env!("CARGO_PKG_VERSION").into(),
        name: plan.name.clone(),
        id,
        status: Status::Running,
        reason: None,
        seed: plan.seed,
        seed_is_drawn: plan.seed_is_drawn,
        threads: options.threads,
        device: None,
        file: plan.file.clone(),
        base_dir: absolute(&plan.base_dir),
        sets: options.sets.clone(),
        resolved: hash.to_owned(),
        plugins: inputs.plugins.clone(),
        data: inputs.data.clone(),
        started: timestamp(now()),
        updated: timestamp(now()),
    };
    let run = RunDir { dir, record, continued: false, owner };
    run.write_config(plan, options)?;
    run.save()?;
    Ok(Opened::Run(Box::new(run)))
}

impl RunDir {
    fn write_config(&self, plan: &Plan, options: &RunOptions) -> RunResult<()> {
        let config = self.dir.join("config");
        RealFs.create_dir_all(&config).map_err(|e| io_error("create", &config, &e))?;
        let resolved = serde_yaml::to_string(&plan.resolved).map_err(|e| bug(e.to_string()))?;
        let origins =
            serde_json::to_string_pretty(&plan.origins).map_err(|e| bug(e.to_string()))?;
        let command = options.command.join(" ") + "\n";
        for (name, text) in [
            ("pipeline.yaml", plan.text.as_str()),
            ("resolved.yaml", &resolved),
            ("origins.json", &origins),
            ("command.txt", &command),
        ] {
            let path = config.join(name);
            replace(&RealFs, &path, text.as_bytes()).map_err(|e| io_error("write", &path, &e))?;
        }
        if let Ok(lock) = std::fs::read(plan.base_dir.join("limbeck.lock")) {
            let path = self.dir.join("limbeck.lock");
            replace(&RealFs, &path, &lock).map_err(|e| io_error("write", &path, &e))?;
        }
        Ok(())
    }

    fn save(&self) -> RunResult<()> {
        let path = self.dir.join("run.json");
        let bytes = serde_json::to_vec_pretty(&self.record).map_err(|e| bug(e.to_string()))?;
        replace(&RealFs, &path, &bytes).map_err(|e| io_error("write", &path, &e))
    }

    /// Records a new state.
    ///
    /// # Errors
    /// I/O.
    pub fn set_status(&mut self, status: Status, reason: Option<String>) -> RunResult<()> {
        self.record.status = status;
        self.record.reason = reason;
        self.record.updated = timestamp(now());
        self.save()
    }

    /// Records where it computes; gives where it did before, if that is another kind of device.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn set_device(&mut self, name: String) -> RunResult<Option<String>> {
        let kind = |name: &str| name.split(':').next().map(str::to_owned);
        let then = self.record.device.replace(name.clone());
        self.save()?;
        Ok(then.filter(|then| kind(then) != kind(&name)))
    }

    /// Gives the run free for other processes.
    pub fn release(self) {
        self.owner.release();
    }

    /// Folder of a stage.
    pub fn stage(&self, stage: &StagePlan) -> PathBuf {
        stage_dir(&self.dir, stage)
    }
}

/// Folder of a stage.
pub fn stage_dir(run: &Path, stage: &StagePlan) -> PathBuf {
    run.join("stages").join(stage.folder())
}

/// A stage's `state.json`; `None`: pending.
pub fn read_stage(dir: &Path) -> Option<StageRecord> {
    serde_json::from_slice(&std::fs::read(dir.join("state.json")).ok()?).ok()
}

/// Writes a stage's `state.json`.
///
/// # Errors
/// I/O.
pub fn write_stage(dir: &Path, record: &StageRecord) -> RunResult<()> {
    RealFs.create_dir_all(dir).map_err(|e| io_error("create", dir, &e))?;
    let path = dir.join("state.json");
    let bytes = serde_json::to_vec_pretty(record).map_err(|e| bug(e.to_string()))?;
    replace(&RealFs, &path, &bytes).map_err(|e| io_error("write", &path, &e))
}

#[cfg(test)]
#[path = "rundir_tests.rs"]
mod tests;
