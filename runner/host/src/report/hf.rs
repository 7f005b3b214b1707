//! Writes a student as a Hugging Face directory: `config.json`, weights, tokenizer, model card.
//!
//! The directory appears whole by one rename. A directory that holds anything but an earlier export is left alone.

use super::{card, safetensors};
use crate::diagnostic::Diagnostic;
use crate::tensor::Tensor;
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Files of a tokenizer that are copied when they exist.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// A trained student and what is told about it.
#[derive(Clone, Debug)]
pub struct ExportedModel {
    /// Plugin id of the student.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// Its settings, an object with defaults filled in.
    pub settings: Json,
    /// The plugin's own `config.json`, for models that other programs know; settings otherwise.
    pub config: Option<Map<String, Json>>,
    /// Parameters and buffers by name, in host memory; canonical ones only or with their ties in `tied`.
    pub parameters: Vec<(String, Tensor)>,
    /// Parameters that share another one's values: name -> canonical name. Not written a second time.
    pub tied: BTreeMap<String, String>,
    /// Metrics by dataset or task.
    pub metrics: Vec<(String, Vec<(String, f64)>)>,
    /// What it was trained and measured on, a line each.
    pub data: Vec<String>,
    /// Pipeline.
    pub pipeline_name: String,
    /// Its `description`.
    pub description: Option<String>,
    /// Its text.
    pub pipeline_text: String,
    /// Stage that trained the student.
    pub stage: String,
    /// Seed of the run.
    pub seed: u64,
    /// What taught it.
    pub teacher: Option<TeacherInfo>,
    /// Directory of the tokenizer (or its `tokenizer.json`), whose files are copied.
    pub tokenizer: Option<PathBuf>,
}

/// The teacher, for the model card.
#[derive(Clone, Debug)]
pub struct TeacherInfo {
    /// Plugin id, or `stage teacher`.
    pub description: String,
    /// Number of parameters, if known.
    pub parameters: Option<u64>,
    /// Metrics by dataset or task, if measured.
    pub metrics: Vec<(String, Vec<(String, f64)>)>,
}

impl ExportedModel {
    /// That of the plugin's own config, else `limbeck-mlp` for `limbeck.mlp`.
    pub fn model_type(&self) -> String {
        let own = self.config.as_ref().and_then(|c| c.get("model_type")?.as_str());
        own.map_or_else(|| self.plugin.replace('.', "-"), str::to_owned)
    }

    /// Elements of all parameters, tied ones once.
    pub fn num_parameters(&self) -> u64 {
        self.canonical().map(|(_, t)| t.elements() as u64).sum()
    }

    fn canonical(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters
            .iter()
            .filter(|(name, _)| !self.tied.contains_key(name))
            .map(|(name, tensor)| (name.as_str(), tensor))
    }
}

/// Writes `model` to the directory `to`, which may be absent, empty or an earlier export of the same pipeline.
///
/// # Errors
/// `LMB0741` if `to` holds something else, `LMB0742` if a file cannot be read or written. `to` is as before then.
pub fn export(to: &Path, model: &ExportedModel) -> Result<(), Diagnostic> {
    export_with(to, model, safetensors::SHARD_BYTES)
}

fn export_with(to: &Path, model: &ExportedModel, shard_bytes: u64) -> Result<(), Diagnostic> {
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(refused(to, "it has no parent directory"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    sweep(parent, to, &name.to_string_lossy());
    let replaces = occupied(to, &model.pipeline_name)?;
    let beside = |what: &str| {
        parent.join(format!(".{}.{what}-{}", name.to_string_lossy(), std::process::id()))
    };
    let (staged, old) = (beside("tmp"), beside("old"));
    let result = fs::create_dir_all(parent)
        .and_then(|()| remove(&staged))
        .and_then(|()| fs::create_dir(&staged))
        .and_then(|()| fill(&staged, model, shard_bytes))
        .and_then(|()| {
            if replaces {
                remove(&old)?;
                fs::rename(to, &old)?;
            }
            fs::rename(&staged, to).inspect_err(|_| {
                if replaces {
                    let _ = fs::rename(&old, to);
                }
            })
        })
        .and_then(|()| File::open(parent)?.sync_all())
        .and_then(|()| remove(&old));
    result.map_err(|error| {
        let _ = remove(&staged);
        Diagnostic::error("LMB0742", format!("cannot write the export: {error}"))
            .note(format!("directory `{}`", to.display()))
    })
}

/// Clears away what exports to `to` left that were killed: what they had staged, and the export that they were about to
/// replace, which comes back if its place is empty. What cannot be cleared away harms nobody.
fn sweep(parent: &Path, to: &Path, name: &str) {
    let left = |what: &str, leaf: &str| {
        let pid = leaf.strip_prefix(&format!(".{name}.{what}-"))?.parse::<i32>().ok()?;
        // SAFETY: signal 0 is not sent; the call only tells whether there is such a process.
        let is_there = unsafe { libc::kill(pid, 0) } == 0
            || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH);
        (!is_there).then_some(())
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let leaf = entry.file_name().to_string_lossy().into_owned();
        let _ = match (left("tmp", &leaf), left("old", &leaf)) {
            (None, None) => Ok(()),
            (None, Some(())) if !to.exists() => fs::rename(entry.path(), to),
            _ => remove(&entry.path()),
        };
    }
}

/// Whether an earlier export of `pipeline` stands there.
fn occupied(to: &Path, pipeline: &str) -> Result<bool, Diagnostic> {
    let entries = match fs::read_dir(to) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(refused(to, &e.to_string())),
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|e| refused(to, &e.to_string()))?;
        found.insert(entry.file_name().to_string_lossy().into_owned());
    }
    if found.is_empty() {
        return Ok(false);
    }
    let config: Option<Json> =
        fs::read(to.join("config.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let Some(files) = config.as_ref().and_then(|c| c.pointer("/limbeck/files")?.as_array()) else {
        return Err(refused(to, "it is not empty and no earlier export"));
    };
    let other = config.as_ref().and_then(|c| c.pointer("/limbeck/pipeline")?.as_str());
    if let Some(other) = other.filter(|other| *other != pipeline) {
        return Err(refused(to, &format!("it holds the export of pipeline `{other}`")));
    }
    let known: BTreeSet<&str> = files.iter().filter_map(Json::as_str).collect();
    match found.iter().find(|name| !known.contains(name.as_str())) {
        Some(other) => Err(refused(to, &format!("it holds `{other}`, which no export wrote"))),
        None => Ok(true),
    }
}

fn refused(to: &Path, why: &str) -> Diagnostic {
    Diagnostic::error("LMB0741", format!("cannot export to `{}`: {why}", to.display()))
        .help("name a directory that is new, empty or an earlier export of this pipeline")
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn fill(dir: &Path, model: &ExportedModel, shard_bytes: u64) -> io::Result<()> {
    let mut tensors: Vec<(&str, &Tensor)> = model.canonical().collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut files = safetensors::write_model(dir, &tensors, shard_bytes)?;
    files.extend(copy_tokenizer(dir, model.tokenizer.as_deref())?);
    write_text(&dir.join("README.md"), &card::card(model))?;
    files.extend(["README.md".to_owned(), "config.json".to_owned()]);
    files.sort();
    let config = config(model, &files);
    write_text(&dir.join("config.json"), &format!("{config:#}\n"))?;
    File::open(dir)?.sync_all()
}

/// Settings at the top level, as other tools expect; what only Limbeck reads under `limbeck`.
fn config(model: &ExportedModel, files: &[String]) -> Json {
    let mut config = Map::new();
    config.insert("model_type".into(), json!(model.model_type()));
    let own = model.config.as_ref().or_else(|| model.settings.as_object());
    config.extend(
        own.into_iter()
            .flatten()
            .filter(|(key, _)| *key != "model_type" && *key != "limbeck")
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    config.insert(
        "limbeck".into(),
        json!({
            "pipeline": model.pipeline_name,
            "plugin": model.plugin,
            "version": model.version,
            "runner": env!("CARGO_PKG_VERSION"),
            "settings": model.settings,
            "tied": model.tied,
            "files": files,
        }),
    );
    Json::Object(config)
}

fn copy_tokenizer(dir: &Path, tokenizer: Option<&Path>) -> io::Result<Vec<String>> {
    let Some(path) = tokenizer else { return Ok(Vec::new()) };
    let from = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let mut copied = Vec::new();
    for name in TOKENIZER_FILES {
        match fs::read(from.join(name)) {
            // Not `fs::copy`: the new file gets its mode from the umask, not from the source.
            Ok(bytes) => write_bytes(&dir.join(name), &bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        }
        copied.push(name.to_owned());
    }
    Ok(copied)
}

fn write_text(path: &Path, text: &str) -> io::Result<()> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::safetensors::SafeTensors;

    fn model() -> ExportedModel {
        ExportedModel {
            plugin: "limbeck.mlp".into(),
            version: "0.1.0".into(),
            config: None,
            settings: json!({"inputs": 2, "hidden": [3], "classes": 2}),
            parameters: vec![
                ("layers.1.weight".into(), Tensor::from_slice(&[0.5f32; 6], &[2, 3])),
                (
                    "layers.0.weight".into(),
                    Tensor::from_slice(&[1.0f32, 2., 3., 4., 5., 6.], &[3, 2]),
                ),
                ("head.weight".into(), Tensor::from_slice(&[0.5f32; 6], &[2, 3])),
            ],
            tied: BTreeMap::from([("head.weight".into(), "layers.1.weight".into())]),
            metrics: vec![(
                "held-out".into(),
                vec![("accuracy".into(), 0.909), ("recall.3".into(), 0.68)],
            )],
            data: vec!["trained on `train`: `digits.csv.gz`".into()],
            pipeline_name: "digits".into(),
            description: Some("a student".into()),
            pipeline_text: "version: 1\nname: digits\n".into(),
            stage: "distilled".into(),
            seed: 7,
            teacher: Some(TeacherInfo {
                description: "stage teacher".into(),
                parameters: Some(85_002),
                metrics: vec![("held-out".into(), vec![("accuracy".into(), 0.938)])],
            }),
            tokenizer: None,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn weights_and_settings_come_back_and_ties_are_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("a/out");
        export(&to, &model()).unwrap();
        assert_eq!(names(&to), ["README.md", "config.json", "model.safetensors"]);
        let bytes = fs::read(to.join("model.safetensors")).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.names().len(), 2);
        assert_eq!(
            read.tensor("layers.0.weight").unwrap().data(),
            model().parameters[1].1.raw().unwrap()
        );
        let config: Json =
            serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["model_type"], "limbeck-mlp");
        assert_eq!(config["hidden"], json!([3]));
        assert_eq!(config["limbeck"]["plugin"], "limbeck.mlp");
        assert_eq!(config["limbeck"]["tied"]["head.weight"], "layers.1.weight");
        assert_eq!(names(&dir.path().join("a")), ["out"], "no temporary directory is left");
    }

    #[test]
    fn the_card_has_front_matter_the_comparison_and_the_pipeline() {
        let card = card::card(&model());
        let (front, body) = card.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
        let front: Json = serde_yaml::from_str(front).unwrap();
        assert_eq!(front["library_name"], "limbeck");
        assert_eq!(front["metrics"], json!(["accuracy", "recall.3"]));
        assert!(body.contains("| accuracy on `held-out` | 0.9090 | 0.9380 |"), "{body}");
        assert!(body.contains("| recall.3 on `held-out` | 0.6800 | – |"), "{body}");
        assert!(body.contains("| parameters | 12 | 85,002 |"), "{body}");
        assert!(body.contains("```yaml\nversion: 1\nname: digits\n```"), "{body}");
    }

    #[test]
    fn a_second_export_replaces_the_first_whole() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("out");
        export_with(&to, &model(), 30).unwrap();
        assert!(to.join("model-00001-of-00002.safetensors").is_file());
        export(&to, &model()).unwrap();
        assert_eq!(names(&to), ["README.md", "config.json", "model.safetensors"]);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn files_of_others_are_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let error = export(dir.path(), &model()).unwrap_err();
        assert_eq!(error.code, "LMB0741");
        assert_eq!(names(dir.path()), ["thesis.tex"]);
        let to = dir.path().join("out");
        export(&to, &model()).unwrap();
        fs::write(to.join("notes.txt"), "mine").unwrap();
        let error = export(&to, &model()).unwrap_err();
        assert!(error.message.contains("`notes.txt`"), "{error:?}");
        fs::remove_file(to.join("notes.txt")).unwrap();
        let other = ExportedModel { pipeline_name: "letters".into(), ..model() };
        let error = export(&to, &other).unwrap_err();
        assert!(error.message.contains("pipeline `digits`"), "{error:?}");
        assert!(fs::read_to_string(to.join("README.md")).unwrap().contains("# digits"));
        fs::write(to.join("notes.txt"), "mine").unwrap();
        assert!(to.join("notes.txt").is_file());
    }

    #[test]
    fn tokenizer_files_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = dir.path().join("tok");
        fs::create_dir(&tokenizer).unwrap();
        fs::write(tokenizer.join("tokenizer.json"), "{}").unwrap();
        fs::write(tokenizer.join("model.safetensors"), "not this one").unwrap();
        let to = dir.path().join("out");
        export(&to, &ExportedModel { tokenizer: Some(tokenizer), ..model() }).unwrap();
        assert_eq!(fs::read(to.join("tokenizer.json")).unwrap(), b"{}");
        assert_ne!(fs::read(to.join("model.safetensors")).unwrap(), b"not this one");
    }

    #[cfg(unix)]
    #[test]
    fn modes_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        let to = dir.path().join("out");
        export(&to, &model()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&to.join("model.safetensors")), mode(&plain));
        assert_eq!(mode(&to.join("config.json")), mode(&plain));
    }

    #[test]
    fn what_a_killed_export_left_goes_away_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("out");
        export(&to, &model()).unwrap();
        // No process has a number as large; the first one is always there.
        let dead = i32::MAX;
        fs::rename(&to, dir.path().join(format!(".out.old-{dead}"))).unwrap();
        fs::create_dir(dir.path().join(format!(".out.tmp-{dead}"))).unwrap();
        fs::create_dir(dir.path().join(".out.tmp-1")).unwrap();
        let other = ExportedModel { pipeline_name: "letters".into(), ..model() };
        let error = export(&to, &other).unwrap_err();
        assert!(
            error.message.contains("pipeline `digits`"),
            "the earlier export is back: {error:?}"
        );
        assert_eq!(names(dir.path()), [".out.tmp-1", "out"]);
        export(&to, &model()).unwrap();
        assert_eq!(names(dir.path()), [".out.tmp-1", "out"]);
    }

    #[test]
    fn a_failed_export_leaves_the_earlier_one_and_no_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("out");
        export(&to, &model()).unwrap();
        let before = fs::read(to.join("model.safetensors")).unwrap();
        let tokenizer = dir.path().join("tok");
        fs::create_dir_all(tokenizer.join("tokenizer.json")).unwrap();
        let error =
            export(&to, &ExportedModel { tokenizer: Some(tokenizer), ..model() }).unwrap_err();
        assert_eq!(error.code, "LMB0742");
        assert_eq!(fs::read(to.join("model.safetensors")).unwrap(), before);
        assert_eq!(names(dir.path()), ["out", "tok"]);
    }
}
