//! Writes a teacher cache shard by shard; what was written whole is kept when the work is taken up again.
//!
//! `capture.json` names what is being captured. A shard appears by one rename, in order; the manifest comes last. A
//! directory that holds anything but a cache is left alone.

use super::identity::file_hash;
use super::manifest::{FILE_NAME, Manifest, ShardRecord};
use super::ranges::Ranges;
use super::shard::{LENGTHS, ROWS, Shard};
use crate::run::safetensors::{Named, to_bytes};
use crate::run::vfs::{Vfs, replace};
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

const PROGRESS: &str = "capture.json";
/// Bytes of a shard, about.
const SHARD_BYTES: usize = 64 << 20;
/// Rows of a shard at most: what a crash can cost.
const SHARD_ROWS: usize = 4096;

/// Outputs of some rows, as one call of the teacher gave them.
pub(crate) struct Part {
    /// Places of the rows in their files.
    pub rows: Vec<i64>,
    /// Tokens of each row.
    pub lengths: Option<Vec<i64>>,
    /// Outputs, tokens of all rows end to end where there is a token axis.
    pub outputs: Named,
}

/// A cache that is being written.
pub(crate) struct Writer<'a> {
    vfs: &'a dyn Vfs,
    dir: PathBuf,
    manifest: Manifest,
    pending: Vec<Part>,
    source: usize,
    done: Vec<BTreeSet<i64>>,
}

/// What [`Writer::open`] found.
pub(crate) enum Opened<'a> {
    /// All is there.
    Whole,
    /// Something is left to be captured.
    Writer(Box<Writer<'a>>),
}

impl<'a> Writer<'a> {
    /// Opens a directory for the cache that `manifest` describes. Shards of an earlier cache of another identity are
    /// removed.
    ///
    /// # Errors
    /// The directory holds something else, or cannot be read or written.
    pub fn open(vfs: &'a dyn Vfs, dir: &Path, manifest: Manifest) -> io::Result<Opened<'a>> {
        vfs.create_dir_all(dir)?;
        let names = vfs.list(dir)?;
        let ours = |name: &String| {
            matches!(name.as_str(), FILE_NAME | PROGRESS)
                || name.starts_with(".tmp-")
                || name.starts_with("shard-") && name.ends_with(".safetensors")
        };
        if let Some(other) = names.iter().find(|name| !ours(name)) {
            let why = format!("it holds `{other}`, which no capture wrote");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        let identity = manifest.identity();
        let marker = serde_json::json!({ "identity": identity }).to_string();
        let same = vfs.read(&dir.join(PROGRESS)).is_ok_and(|bytes| bytes == marker.as_bytes());
        if same
            && let Ok(whole) = super::manifest::read(dir)
            && whole.identity() == identity
        {
            return Ok(Opened::Whole);
        }
        if !same {
            for name in &names {
                std::fs::remove_file(dir.join(name))?;
            }
            replace(vfs, &dir.join(PROGRESS), marker.as_bytes())?;
        }
        let done = vec![BTreeSet::new(); manifest.sources.len()];
        let (dir, pending) = (dir.to_owned(), Vec::new());
        let mut writer = Self { vfs, dir, manifest, pending, source: 0, done };
        writer.take_up()?;
        Ok(Opened::Writer(Box::new(writer)))
    }

    /// Keeps the whole shards that are there.
    fn take_up(&mut self) -> io::Result<()> {
        loop {
            let (source, file) = match self.found() {
                Some(found) => found,
                None => return Ok(()),
            };
            let path = self.dir.join(&file);
            let Ok(shard) = Shard::open(&path) else { return Ok(()) };
            let rows = shard.integers(ROWS).map_err(io::Error::other)?.unwrap_or_default();
            self.record(source, file, &rows, shard.bytes(), file_hash(&path)?);
        }
    }

    /// The next shard, if it exists: `shard-00003-of-source-1.safetensors`.
    fn found(&self) -> Option<(usize, String)> {
        let number = self.manifest.shards.len();
        (0..self.manifest.sources.len())
            .map(|source| (source, shard_name(number, source)))
            .find(|(_, name)| self.dir.join(name).exists())
    }

    fn record(&mut self, source: usize, file: String, rows: &[i64], bytes: u64, sha256: String) {
        if let Some(done) = self.done.get_mut(source) {
            done.extend(rows);
        }
        let rows = rows.len() as u64;
        self.manifest.shards.push(ShardRecord { file, source, rows, bytes, sha256 });
    }

    /// Rows of a source that are still to be captured.
    pub fn missing(&self, source: usize) -> Ranges {
        let (Some(wanted), Some(done)) = (self.manifest.sources.get(source), self.done.get(source))
        else {
            return Ranges::default();
        };
        Ranges::new(wanted.rows.iter().filter(|row| !done.contains(&(*row as i64))))
    }

    /// Adds rows of a source; writes a shard when there is enough.
    ///
    /// # Errors
    /// I/O.
    pub fn add(&mut self, source: usize, part: Part) -> io::Result<()> {
        if source != self.source {
            self.flush()?;
            self.source = source;
        }
        self.pending.push(part);
        let rows: usize = self.pending.iter().map(|p| p.rows.len()).sum();
        let bytes: usize =
            self.pending.iter().flat_map(|p| p.outputs.values()).map(Tensor::bytes).sum();
        if rows >= SHARD_ROWS || bytes >= SHARD_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what is there as a shard.
    ///
    /// # Errors
    /// I/O; outputs that do not fit together.
    pub fn flush(&mut self) -> io::Result<()> {
        let parts = std::mem::take(&mut self.pending);
        let rows: Vec<i64> = parts.iter().flat_map(|p| p.rows.iter().copied()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut named = Named::from([(ROWS.to_owned(), list(&rows))]);
        if parts.iter().any(|p| p.lengths.is_some()) {
            let lengths: Vec<i64> =
                parts.iter().flat_map(|p| p.lengths.iter().flatten().copied()).collect();
            named.insert(LENGTHS.into(), list(&lengths));
        }
        let outputs =
            parts.first().map(|p| p.outputs.keys().cloned().collect()).unwrap_or_default();
        let outputs: Vec<String> = outputs;
        for name in outputs {
            let tensors: Vec<&Tensor> = parts.iter().filter_map(|p| p.outputs.get(&name)).collect();
            let joined = crate::run::rows::concat(&tensors, false).map_err(io::Error::other)?;
            named.insert(name, joined);
        }
        let bytes = to_bytes(&named).map_err(io::Error::other)?;
        let file = shard_name(self.manifest.shards.len(), self.source);
        replace(self.vfs, &self.dir.join(&file), &bytes)?;
        let hash = crate::run::checkpoint::sha256(&bytes);
        self.record(self.source, file, &rows, bytes.len() as u64, hash);
        Ok(())
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// I/O.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let bytes = serde_json::to_vec_pretty(&self.manifest).map_err(io::Error::other)?;
        replace(self.vfs, &self.dir.join(FILE_NAME), &bytes)
    }
}

fn list(values: &[i64]) -> Tensor {
    Tensor::from_slice(values, &[values.len() as i64])
}

fn shard_name(number: usize, source: usize) -> String {
    format!("shard-{number:05}-of-source-{source}.safetensors")
}
