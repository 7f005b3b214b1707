//! Files that settings name (strings of format `input-path`): found, hashed, compared with the lock.
//!
//! Reads them whole, so it is called where a run begins and not while one is planned. A directory stands for every file
//! below it; links to files are followed, links to directories are not.

use super::codes;
use super::lock::{Digest, InputEntry, Lock};
use super::{Catalogue, staging};
use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::plan::{OtherRun, Plan, StagePlan};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most files of one input.
const MAX_FILES: usize = 10_000;

/// One input of a pipeline.
#[derive(Clone, Debug)]
pub struct Input {
    /// As the pipeline writes it.
    pub written: String,
    /// Absolute path of the file or directory.
    pub path: PathBuf,
    /// Place of the plugin that takes it.
    pub span: Option<Span>,
    /// SHA-256 and size by path below the input; of a single file by its name.
    pub files: BTreeMap<String, Digest>,
}

/// Finds and hashes every input of a pipeline's plugins, once each.
///
/// # Errors
/// Files that cannot be read (66).
pub fn read(plan: &Plan, catalogue: &Catalogue) -> Result<Vec<Input>, Diagnostics> {
    let mut found: BTreeMap<String, Input> = BTreeMap::new();
    let mut problems = Vec::new();
    for plugin in plan.stages.iter().flat_map(StagePlan::plugin_uses) {
        let base = plugin.base(plan);
        for (written, path) in catalogue.input_paths(&plugin.id, &plugin.with, base) {
            // What another run's settings write means another file here.
            let theirs = plugin.base.is_some().then(|| path.display().to_string());
            let written = theirs.unwrap_or(written);
            if found.contains_key(&written) {
                continue;
            }
            let span = plugin.with_span.clone().or_else(|| plugin.id_span.clone());
            match files_of(&path) {
                Ok(files) => {
                    found.insert(written.clone(), Input { written, path, span, files });
                }
                Err(why) => {
                    let text = format!("input `{written}` of `{}`: {why}", plugin.id);
                    problems.push(Diagnostic::error(codes::INPUT_MISSING, text).at(span));
                }
            }
        }
    }
    for from in plan.stages.iter().flat_map(StagePlan::forks) {
        let Some(run) = &from.run else { continue };
        let span = from.span.clone();
        match files_of_stage(run, from.stage) {
            Ok(files) => {
                let (written, path) = (run.written.clone(), run.dir.clone());
                let none = Input { written: written.clone(), path, span, files: BTreeMap::new() };
                found.entry(written).or_insert(none).files.extend(files);
            }
            Err(why) => {
                let text = format!("run `{}`: {why}", run.written);
                problems.push(Diagnostic::error(codes::INPUT_MISSING, text).at(span));
            }
        }
    }
    if problems.is_empty() { Ok(found.into_values().collect()) } else { Err(problems) }
}

/// What a stage of another run consists of: the run's pipeline, the stage's task matrix, and the manifests of its
/// checkpoints, which hold the hashes of all their files. By path below the run's directory.
fn files_of_stage(run: &OtherRun, stage: usize) -> Result<BTreeMap<String, Digest>, String> {
    let folder = run.plan.stages.get(stage).map(StagePlan::folder).unwrap_or_default();
    let mut names = vec!["config/pipeline.yaml".to_owned()];
    let matrix = format!("stages/{folder}/eval/task-matrix.json");
    if run.dir.join(&matrix).is_file() {
        names.push(matrix);
    }
    let checkpoints = run.dir.join("stages").join(&folder).join("ckpt");
    let entries = std::fs::read_dir(&checkpoints);
    for entry in entries.map_err(|e| format!("cannot read {}: {e}", checkpoints.display()))? {
        let step = entry.map_err(|e| e.to_string())?.file_name().to_string_lossy().into_owned();
        let manifest = format!("stages/{folder}/ckpt/{step}/manifest.json");
        if run.dir.join(&manifest).is_file() {
            names.push(manifest);
        }
    }
    names.into_iter().map(|name| Ok((name.clone(), digest(&run.dir.join(name))?))).collect()
}

/// What differs from the lock. An input that the lock does not name is trusted, as data is.
pub fn verify(lock: &Lock, inputs: &[Input]) -> Diagnostics {
    let mut problems = Vec::new();
    for input in inputs {
        let Some(locked) = lock.inputs.iter().find(|l| l.path == input.written) else { continue };
        let names = locked.files.keys().chain(input.files.keys());
        let mut changed: Vec<&String> =
            names.filter(|n| locked.files.get(*n) != input.files.get(*n)).collect();
        changed.sort();
        changed.dedup();
        let Some(first) = changed.first() else { continue };
        let text = |digest: Option<&Digest>| {
            digest
                .map_or("not there".to_owned(), |d| format!("{:.16} ({} bytes)", d.sha256, d.size))
        };
        let message = format!("input `{}` changed since it was locked", input.written);
        let mut problem = Diagnostic::error(codes::INPUT_CHANGED, message)
            .note(format!("{first}: locked {}", text(locked.files.get(*first))))
            .note(format!("{first}: found  {}", text(input.files.get(*first))))
            .at(input.span.clone());
        if changed.len() > 1 {
            problem = problem.note(format!("and {} other files", changed.len() - 1));
        }
        problems.push(problem.help("`limbeck plugin lock FILE` locks it as it is now"));
    }
    problems
}

impl Lock {
    /// Locks the inputs as they are; those of other pipelines stay.
    pub fn pin_inputs(&mut self, inputs: &[Input]) {
        for input in inputs {
            self.inputs.retain(|l| l.path != input.written);
            self.inputs
                .push(InputEntry { path: input.written.clone(), files: input.files.clone() });
        }
        self.inputs.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

fn files_of(path: &Path) -> Result<BTreeMap<String, Digest>, String> {
    let mut files = BTreeMap::new();
    if !path.is_dir() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, digest(path)?);
        return Ok(files);
    }
    let mut waiting = vec![path.to_owned()];
    while let Some(folder) = waiting.pop() {
        let at = |e: std::io::Error| format!("cannot read {}: {e}", folder.display());
        for entry in std::fs::read_dir(&folder).map_err(at)? {
            let entry = entry.map_err(at)?;
            let file = entry.path();
            if entry.file_type().map_err(at)?.is_dir() {
                waiting.push(file);
            } else if file.is_file() {
                let below = file.strip_prefix(path).unwrap_or(&file);
                files.insert(below.to_string_lossy().into_owned(), digest(&file)?);
            }
            if files.len() > MAX_FILES {
                return Err(format!("more than {MAX_FILES} files in {}", path.display()));
            }
        }
    }
    Ok(files)
}

fn digest(path: &Path) -> Result<Digest, String> {
    let at = |e| format!("cannot read {}: {e}", path.display());
    let file = std::fs::File::open(path).map_err(at)?;
    let (sha256, size) = staging::sha256_of(file).map_err(at)?;
    Ok(Digest { sha256, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(path: &Path) -> Input {
        let files = files_of(path).unwrap();
        Input { written: "models/m".into(), path: path.into(), span: None, files }
    }

    #[test]
    fn a_changed_a_new_and_a_missing_file_are_noticed_and_an_equal_copy_is_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let (config, weights) = (dir.path().join("config.json"), dir.path().join("sub/w"));
        std::fs::write(&config, "{}").unwrap();
        std::fs::write(&weights, "weights").unwrap();
        let mut lock = Lock::default();
        assert!(verify(&lock, &[input(dir.path())]).is_empty(), "nothing is locked yet");
        lock.pin_inputs(&[input(dir.path())]);
        assert_eq!(lock.inputs[0].files.keys().collect::<Vec<_>>(), ["config.json", "sub/w"]);
        let text = serde_yaml::to_string(&lock).unwrap();
        let lock: Lock = serde_yaml::from_str(&text).unwrap();
        assert!(verify(&lock, &[input(dir.path())]).is_empty());
        let refused = || {
            let found = verify(&lock, &[input(dir.path())]);
            assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), [codes::INPUT_CHANGED]);
            found[0].notes.join("; ")
        };
        std::fs::write(&weights, "weighty").unwrap();
        assert!(refused().contains("sub/w: locked"));
        std::fs::write(&weights, "weights").unwrap();
        std::fs::write(dir.path().join("extra"), "").unwrap();
        assert!(refused().contains("extra: locked not there"));
        std::fs::remove_file(dir.path().join("extra")).unwrap();
        std::fs::remove_file(&config).unwrap();
        assert!(refused().contains("found  not there"));
    }
}
