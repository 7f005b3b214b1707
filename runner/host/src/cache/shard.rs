//! One shard: a safetensors file of the outputs of some rows.
//!
//! `rows` (i64) holds each row's place in its files, `lengths` (i64) its tokens; an output is `[rows, …]`, or
//! `[sum of lengths, …]` if it has a token axis. Opening reads the header only, and refuses one that overlaps, has gaps
//! or disagrees with the file's length.

use crate::tensor::DType;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(super) const ROWS: &str = "rows";
pub(super) const LENGTHS: &str = "lengths";
/// Largest header, in bytes: far above that of any number of outputs.
const MAX_HEADER: u64 = 16 << 20;

/// A tensor of the header.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A tensor of a shard.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub dtype: DType,
    /// First axis included.
    pub shape: Vec<u64>,
    /// Where its bytes begin in the file.
    at: u64,
}

impl Stored {
    /// Bytes of one entry of the first axis.
    pub fn row_bytes(&self) -> u64 {
        self.shape.iter().skip(1).product::<u64>() * self.dtype.bytes() as u64
    }
}

/// An open shard.
pub(super) struct Shard {
    file: File,
    bytes: u64,
    tensors: BTreeMap<String, Stored>,
}

fn dtype(name: &str) -> Option<DType> {
    DType::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name))
}

impl Shard {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// In words.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let bytes = file.metadata().map_err(|e| e.to_string())?.len();
        let mut size = [0; 8];
        file.read_exact_at(&mut size, 0).map_err(|_| "shorter than a header".to_owned())?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size + 8 > bytes {
            return Err(format!("a header of {size} bytes in a file of {bytes}"));
        }
        let mut header = vec![0; size as usize];
        file.read_exact_at(&mut header, 8).map_err(|e| e.to_string())?;
        let entries: BTreeMap<String, Entry> =
            serde_json::from_slice(&header).map_err(|e| format!("header: {e}"))?;
        let tensors = place(entries, size + 8, bytes)?;
        let shard = Self { file, bytes, tensors };
        shard.check()?;
        Ok(shard)
    }

    fn check(&self) -> Result<(), String> {
        let rows = self.tensors.get(ROWS).ok_or("no tensor `rows`")?;
        if rows.dtype != DType::I64 || rows.shape.len() != 1 {
            return Err("`rows` is no list of i64".into());
        }
        match self.tensors.get(LENGTHS) {
            Some(l) if l.dtype != DType::I64 || l.shape != rows.shape => {
                Err("`lengths` is no list of i64 beside `rows`".into())
            }
            _ => Ok(()),
        }
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.tensors.get(ROWS).and_then(|t| t.shape.first()).copied().unwrap_or(0)
    }

    /// Whether it holds a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// `rows` or `lengths`; `None` if there is none.
    ///
    /// # Errors
    /// In words.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<i64>>, String> {
        let Some(stored) = self.tensors.get(name) else { return Ok(None) };
        let count = stored.shape.first().copied().unwrap_or(0);
        let mut bytes = vec![0; (count * 8) as usize];
        self.read(stored, 0, &mut bytes)?;
        let values = bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
        Ok(Some(values.collect()))
    }

    /// Entries of the first axis from `first` on, as many as fill `to`.
    ///
    /// # Errors
    /// In words.
    pub fn read(&self, stored: &Stored, first: u64, to: &mut [u8]) -> Result<(), String> {
        let rows = stored.shape.first().copied().unwrap_or(0);
        let end = first * stored.row_bytes() + to.len() as u64;
        if end > rows * stored.row_bytes() {
            return Err("a row past the end".into());
        }
        let at = stored.at + first * stored.row_bytes();
        self.file.read_exact_at(to, at).map_err(|e| e.to_string())
    }
}

/// Checks that tensors fill the file without gap or overlap.
fn place(
    entries: BTreeMap<String, Entry>,
    header: u64,
    bytes: u64,
) -> Result<BTreeMap<String, Stored>, String> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let Some(dtype) = dtype(&entry.dtype) else {
            return Err(format!("`{name}` has element type {}", entry.dtype));
        };
        let size = entry.shape.iter().try_fold(dtype.bytes() as u64, |a, b| a.checked_mul(*b));
        let (from, to) = entry.data_offsets;
        if entry.shape.is_empty() || to.checked_sub(from) != size || size.is_none() {
            return Err(format!("`{name}` of {:?} at {from}..{to}", entry.shape));
        }
        spans.push((from, to));
        tensors.insert(name, Stored { dtype, shape: entry.shape, at: header.saturating_add(from) });
    }
    spans.sort_unstable();
    let mut end = 0;
    for (from, to) in spans {
        if from != end {
            return Err(format!("a gap or an overlap at {end}"));
        }
        end = to;
    }
    match header.checked_add(end) == Some(bytes) {
        true => Ok(tensors),
        false => Err(format!("{bytes} bytes, the header describes {}", header.saturating_add(end))),
    }
}
