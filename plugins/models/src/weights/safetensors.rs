//! One safetensors file: its header, checked against the length of the file, and one tensor at a time.
//!
//! Refuses entries that overlap, leave gaps, overflow or go beyond the file, before a tensor is read. Invariant: the
//! bytes of all tensors together are exactly the file after its header.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::{WeightsError, open_regular};

/// Longest header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor's entry in the header, offsets counted from the end of the header.
#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// An open file with a checked header.
pub(super) struct Reader {
    path: PathBuf,
    file: File,
    /// Length of what precedes the data.
    start: u64,
    entries: BTreeMap<String, Entry>,
}

impl Reader {
    /// Opens a file and checks its header.
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let (mut file, length) = open_regular(path)?;
        let io = |source| WeightsError::Io { path: path.to_owned(), source };
        let malformed =
            |problem: String| WeightsError::Malformed { path: path.to_owned(), problem };
        let mut prefix = [0u8; 8];
        if length < 8 {
            return Err(malformed(format!("{length} bytes are too few for a safetensors header")));
        }
        file.read_exact(&mut prefix).map_err(io)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > length - 8 {
            let problem = format!(
                "a header of {header_length} bytes goes beyond the file, which has {length} bytes"
            );
            return Err(malformed(problem));
        }
        if header_length > MAX_HEADER {
            return Err(malformed(format!(
                "a header of {header_length} bytes, above {MAX_HEADER}"
            )));
        }
        let mut header = vec![0u8; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let start = 8 + header_length;
        let entries = parse(path, &header)?;
        check_layout(path, &entries, length - start)?;
        Ok(Self { path: path.to_owned(), file, start, entries })
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Checks that a tensor is there, of this shape and of floats.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<(), WeightsError> {
        self.entry(name, shape).map(|_| ())
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<(DType, [u64; 2]), WeightsError> {
        let wrong = |problem: String| WeightsError::Tensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            problem,
        };
        let entry = self.entries.get(name).ok_or_else(|| WeightsError::Missing {
            path: self.path.clone(),
            names: vec![name.to_owned()],
        })?;
        if !entry.shape.iter().map(|&d| d as usize).eq(shape.iter().copied()) {
            return Err(wrong(format!(
                "has shape {:?}, the configuration asks for {shape:?}",
                entry.shape
            )));
        }
        let dtype = float(&entry.dtype).ok_or_else(|| {
            wrong(format!("has dtype {}, not F32, F16, BF16 or F64", entry.dtype))
        })?;
        Ok((dtype, entry.data_offsets))
    }

    /// One tensor of `shape`, converted to `dtype`.
    pub(super) fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, WeightsError> {
        let (found, [begin, end]) = self.entry(name, shape)?;
        // check_layout has compared both with the length of the file.
        let mut bytes = vec![0u8; (end - begin) as usize];
        self.file
            .seek(SeekFrom::Start(self.start + begin))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|source| WeightsError::Io { path: self.path.clone(), source })?;
        Tensor::from_raw_buffer(&bytes, found, shape, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(dtype)?.to_device(device))
            .map_err(|error| WeightsError::Tensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                problem: format!("cannot be converted: {error}"),
            })
    }
}

fn float(dtype: &str) -> Option<DType> {
    match dtype {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        "F64" => Some(DType::F64),
        _ => None,
    }
}

/// Bits of an element of each dtype that the format knows.
fn bits(dtype: &str) -> Option<u64> {
    match dtype {
        "F4" => Some(4),
        "F6_E2M3" | "F6_E3M2" => Some(6),
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => Some(8),
        "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some(8),
        "U16" | "I16" | "F16" | "BF16" => Some(16),
        "U32" | "I32" | "F32" => Some(32),
        "U64" | "I64" | "F64" | "C64" => Some(64),
        _ => None,
    }
}

/// The entries of a header without `__metadata__`.
fn parse(path: &Path, header: &[u8]) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let malformed = |problem: String| WeightsError::Malformed { path: path.to_owned(), problem };
    let raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|error| malformed(format!("the header is no JSON object: {error}")))?;
    raw.into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, value)| match serde_json::from_value(value) {
            Ok(entry) => Ok((name, entry)),
            Err(error) => Err(WeightsError::Tensor {
                path: path.to_owned(),
                tensor: name,
                problem: format!("has a malformed entry: {error}"),
            }),
        })
        .collect()
}

/// Checks that the entries fill `length` bytes without gap or overlap and that sizes follow from shapes.
fn check_layout(
    path: &Path,
    entries: &BTreeMap<String, Entry>,
    length: u64,
) -> Result<(), WeightsError> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut next = 0;
    for (name, entry) in order {
        let wrong = |problem: String| WeightsError::Tensor {
            path: path.to_owned(),
            tensor: name.clone(),
            problem,
        };
        let [begin, end] = entry.data_offsets;
        if begin != next || end < begin {
            return Err(wrong(format!("lies at {begin}..{end}, its neighbor ends at {next}")));
        }
        if end > length {
            return Err(wrong(format!("ends at byte {end} of the data, the file has {length}")));
        }
        let bits = bits(&entry.dtype)
            .ok_or_else(|| wrong(format!("has the unknown dtype `{}`", entry.dtype)))?;
        let size = entry.shape.iter().try_fold(bits, |size, &dim| size.checked_mul(dim));
        if size.is_none_or(|size| !size.is_multiple_of(8) || size / 8 != end - begin) {
            let problem = format!(
                "of {} and shape {:?} does not fill its {} bytes",
                entry.dtype,
                entry.shape,
                end - begin
            );
            return Err(wrong(problem));
        }
        next = end;
    }
    if next != length {
        return Err(WeightsError::Malformed {
            path: path.to_owned(),
            problem: format!("the tensors end at byte {next} of the data, the file has {length}"),
        });
    }
    Ok(())
}
