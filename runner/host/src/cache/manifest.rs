//! `manifest.json` of a teacher cache.
//!
//! Refuses unknown fields and another format. Reading looks at the headers of all shards and at nothing behind them.

use super::identity::TeacherRecord;
use super::ranges::Ranges;
use super::shard::Shard;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Its name.
pub const FILE_NAME: &str = "manifest.json";
/// Form of the directory.
const FORMAT: u32 = 1;
/// Outputs of a top-k capture: columns, log-probabilities, log of the mass outside.
pub const TOP_K: [&str; 3] = ["topk.indices", "topk.values", "topk.tail"];

/// A cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Form of the directory.
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Who computed the outputs.
    pub teacher: TeacherRecord,
    /// Outputs.
    pub outputs: Vec<OutputRecord>,
    /// Batch column whose tokens the teacher read, if it read tokens.
    pub tokens: Option<String>,
    /// How the entries of [`TOP_K`] were made.
    pub topk: Option<TopKRecord>,
    /// Rows, by where they were read from.
    pub sources: Vec<SourceRecord>,
    /// Files.
    pub(crate) shards: Vec<ShardRecord>,
}

/// An output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputRecord {
    /// Output port.
    pub name: String,
    /// As the teacher declares it: `B,8`, `B,T,384`.
    pub shape: String,
    /// The second axis counts tokens: a row is as long as its text.
    pub by_token: bool,
}

/// `topk` of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopKRecord {
    /// Entries of a row.
    pub k: usize,
    /// Temperature of the log-probabilities.
    pub temperature: f64,
    /// Logits of a row of which they are the largest.
    pub width: usize,
}

/// Rows of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Datasets of the capture, for messages.
    pub datasets: Vec<String>,
    /// [`crate::data::Dataset::source`].
    pub source: String,
    /// SHA-256 of its files.
    pub files: Vec<String>,
    /// Rows by their place in the files.
    pub(crate) rows: Ranges,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardRecord {
    pub file: String,
    /// Position in `sources`.
    pub source: usize,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    /// One of this program, still without shards.
    pub fn new(
        teacher: TeacherRecord,
        outputs: Vec<OutputRecord>,
        tokens: Option<String>,
        topk: Option<TopKRecord>,
        sources: Vec<SourceRecord>,
    ) -> Self {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            format: FORMAT,
            program,
            teacher,
            outputs,
            tokens,
            topk,
            sources,
            shards: Vec::new(),
        }
    }

    /// A hash of everything that decides the contents.
    pub fn identity(&self) -> String {
        let Self { outputs, tokens, topk, sources, .. } = self;
        let of_sources: Vec<_> = sources.iter().map(|s| (&s.source, &s.rows)).collect();
        let teacher = self.teacher.identity();
        let all = format!("{FORMAT} {teacher} {outputs:?} {tokens:?} {topk:?} {of_sources:?}");
        crate::run::checkpoint::sha256(all.as_bytes())
    }
}

/// Reads the manifest of a directory and the headers of its shards.
///
/// # Errors
/// In words, with the file: no manifest, another format, a shard that is missing, cut or holds something else.
pub fn read(dir: &Path) -> Result<Manifest, (PathBuf, String)> {
    let path = dir.join(FILE_NAME);
    let wrong = |why: String| (path.clone(), why);
    let bytes = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(wrong(format!("format {}, this program reads {FORMAT}", manifest.format)));
    }
    for record in &manifest.shards {
        let plain = Path::new(&record.file).file_name().is_some_and(|n| *n == *record.file);
        if !plain || record.source >= manifest.sources.len() {
            return Err(wrong(format!("shard `{}` of source {}", record.file, record.source)));
        }
        let file = dir.join(&record.file);
        let shard = Shard::open(&file).map_err(|why| (file.clone(), why))?;
        if (shard.rows(), shard.bytes()) != (record.rows, record.bytes) {
            let found = format!("{} rows in {} bytes", shard.rows(), shard.bytes());
            let wanted = format!("{} rows in {} bytes", record.rows, record.bytes);
            return Err((file, format!("{found}, the manifest says {wanted}")));
        }
        for output in &manifest.outputs {
            if !shard.has(&output.name) {
                return Err((file, format!("no tensor `{}`", output.name)));
            }
        }
    }
    let there: u64 = manifest.shards.iter().map(|s| s.rows).sum();
    let promised: u64 = manifest.sources.iter().map(|s| s.rows.len()).sum();
    match there == promised {
        true => Ok(manifest),
        false => Err(wrong(format!("{there} rows in shards, {promised} rows in sources"))),
    }
}
