//! Reads a teacher's outputs for the rows of a batch.
//!
//! Shards stay on disk; their hashes are compared once, when the cache is opened. Rows come in the order asked for;
//! outputs with a token axis are filled up with zeros to the width of the batch.

use super::identity::file_hash;
use super::manifest::{Manifest, read};
use super::shard::{LENGTHS, ROWS, Shard};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A row: position of its source in the manifest, place in its files.
pub(crate) type Place = (usize, i64);

struct Part {
    shard: Shard,
    /// First token of each row, and the end of the last.
    starts: Vec<u64>,
}

/// An open cache.
pub(crate) struct Cache {
    pub manifest: Manifest,
    parts: Vec<Part>,
    index: HashMap<Place, (usize, usize)>,
}

impl Cache {
    /// Opens a directory and verifies it whole.
    ///
    /// # Errors
    /// In words, with the file.
    pub fn open(dir: &Path) -> Result<Self, (PathBuf, String)> {
        let manifest = read(dir)?;
        let (mut parts, mut index) = (Vec::new(), HashMap::new());
        for record in &manifest.shards {
            let file = dir.join(&record.file);
            let wrong = |why: String| (file.clone(), why);
            let found = file_hash(&file).map_err(|e| wrong(e.to_string()))?;
            if found != record.sha256 {
                return Err(wrong(format!("SHA-256 {found:.12}, was {:.12}", record.sha256)));
            }
            let shard = Shard::open(&file).map_err(&wrong)?;
            let rows = shard.integers(ROWS).map_err(&wrong)?.unwrap_or_default();
            let lengths = shard.integers(LENGTHS).map_err(&wrong)?;
            for (at, row) in rows.iter().enumerate() {
                index.insert((record.source, *row), (parts.len(), at));
            }
            let mut starts = vec![0u64];
            for length in lengths.unwrap_or_default() {
                let length = u64::try_from(length).map_err(|_| wrong("a length below 0".into()))?;
                starts.push(starts.last().copied().unwrap_or(0).saturating_add(length));
            }
            parts.push(Part { shard, starts });
        }
        Ok(Self { manifest, parts, index })
    }

    /// An output for these rows. `width`: tokens of a row of the batch; that of the longest row when left out.
    ///
    /// # Errors
    /// In words: a row or an output that is not there, a row longer than `width`.
    pub fn gather(
        &self,
        output: &str,
        rows: &[Place],
        width: Option<usize>,
    ) -> Result<Tensor, String> {
        let record = self.manifest.outputs.iter().find(|o| o.name == output);
        let record = record.ok_or_else(|| format!("no output `{output}`"))?;
        let mut found = Vec::with_capacity(rows.len());
        for place in rows {
            let at = self.index.get(place).ok_or_else(|| {
                let data = self.manifest.sources.get(place.0).map(|s| s.datasets.join(", "));
                format!("no row {} of `{}`", place.1, data.unwrap_or_default())
            })?;
            found.push(*at);
        }
        let stored = |part: usize| self.parts.get(part).and_then(|p| p.shard.tensor(output));
        let first = found.first().map_or(0, |(part, _)| *part);
        let Some(model) = stored(first) else { return Err(format!("no tensor `{output}`")) };
        let cell = model.row_bytes() as usize;
        let mut shape: Vec<i64> = vec![rows.len() as i64];
        let longest = || found.iter().map(|(p, r)| self.length(*p, *r)).max().unwrap_or(0);
        let width = match record.by_token {
            true => Some(width.unwrap_or_else(longest)),
            false => None,
        };
        shape.extend(width.map(|w| w as i64));
        shape.extend(model.shape.iter().skip(1).map(|d| *d as i64));
        let size = cell * width.unwrap_or(1);
        let mut result = Ok(());
        let tensor = Tensor::filled(model.dtype, &shape, |bytes| {
            let mut rows = bytes.chunks_exact_mut(size.max(1)).zip(&found);
            result = rows.try_for_each(|(to, (part, row))| {
                self.row(output, record.by_token, *part, *row, cell, to)
            });
        });
        result.map(|()| tensor)
    }

    fn length(&self, part: usize, row: usize) -> usize {
        let starts = self.parts.get(part).map(|p| p.starts.as_slice()).unwrap_or_default();
        match starts.get(row..row + 2) {
            Some([from, to]) => (to - from) as usize,
            _ => 0,
        }
    }

    fn row(
        &self,
        output: &str,
        by_token: bool,
        part: usize,
        row: usize,
        cell: usize,
        to: &mut [u8],
    ) -> Result<(), String> {
        let Some(at) = self.parts.get(part) else { return Err("no shard".into()) };
        let stored = at.shard.tensor(output).ok_or_else(|| format!("no tensor `{output}`"))?;
        if stored.row_bytes() as usize != cell {
            return Err(format!("`{output}` has rows of another size in another shard"));
        }
        if !by_token {
            return at.shard.read(stored, row as u64, to);
        }
        let length = self.length(part, row);
        let Some(own) = to.get_mut(..length * cell) else {
            return Err(format!(
                "a row of {length} tokens in a batch of {}",
                to.len() / cell.max(1)
            ));
        };
        at.shard.read(stored, at.starts.get(row).copied().unwrap_or(0), own)
    }
}
