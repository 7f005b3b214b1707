//! The tokens of a batch as rows: either all of them, padding included, or those alone that the mask keeps.
//!
//! Refuses ids outside of the vocabulary and sequences without position embeddings. Invariant: rows of a sequence lie
//! together and in order, and the groups of sequences follow from the lengths alone.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::config::{Encoder, Family};
use crate::architecture::Inputs;
use crate::error::ModelError;

/// Rows of a group: enough for full speed of a product, few enough that its rows stay in a core's cache.
const GROUP_ROWS: Range<usize> = 64..256;
/// Groups of a batch that is large enough, so that threads have equal shares.
const GROUPS: usize = 8;

/// The rows of a batch.
#[derive(Debug)]
pub(super) struct Batch {
    /// Number of sequences and their padded length.
    pub(super) shape: (usize, usize),
    /// First row of each sequence, then the number of rows.
    pub(super) starts: Vec<usize>,
    /// Place of each row in the padded batch.
    pub(super) sources: Vec<usize>,
    /// Whether a row is seen by others; empty when all are.
    pub(super) keep: Vec<bool>,
    /// Token, position and type number of each row; no types without a table of them.
    pub(super) ids: Vec<usize>,
    pub(super) positions: Vec<usize>,
    pub(super) types: Vec<usize>,
    /// Ranges of sequences.
    pub(super) groups: Vec<Range<usize>>,
}

impl Batch {
    /// `is_packed`: leave out what the mask does not keep, if every sequence keeps its first token.
    pub(super) fn new(
        encoder: &Encoder,
        inputs: &Inputs<'_>,
        is_packed: bool,
    ) -> Result<Self, ModelError> {
        let ids = inputs.get("input_ids")?;
        let &[batch, width] = ids.dims() else { return Err(shape_error("input_ids", ids, "B,T")) };
        if width > encoder.max_length() {
            let wanted = format!("B,T with T up to {}", encoder.max_length());
            return Err(shape_error("input_ids", ids, &wanted));
        }
        let optional = |name: &'static str| -> Result<Option<Vec<i64>>, ModelError> {
            let Some(tensor) = inputs.optional(name) else { return Ok(None) };
            if tensor.dims() != ids.dims() {
                return Err(shape_error(name, tensor, &format!("{batch},{width}")));
            }
            integers(tensor).map(Some)
        };
        let (mask, types) = (optional("attention_mask")?, optional("token_type_ids")?);
        let mut keep: Vec<bool> =
            mask.map_or_else(|| vec![true; batch * width], |m| m.iter().map(|&m| m != 0).collect());
        let is_packed = is_packed && keep.iter().step_by(width.max(1)).all(|&first| first);
        let sources: Vec<usize> = match is_packed {
            true => (0..batch * width).filter(|&i| keep[i]).collect(),
            false => (0..batch * width).collect(),
        };
        let mut starts = Vec::with_capacity(batch + 1);
        let mut start = 0;
        for kept in keep.chunks(width.max(1)) {
            starts.push(start);
            start += if is_packed { kept.iter().filter(|&&k| k).count() } else { width };
        }
        starts.resize(batch + 1, start);
        let all = integers(ids)?;
        let positions = positions(encoder, &all, width);
        let pick = |all: &[usize]| sources.iter().map(|&i| all[i]).collect::<Vec<_>>();
        let ids = checked("input_ids", &all, encoder.vocab_size)?;
        let types = match encoder.token_types {
            0 => Vec::new(),
            count => checked("token_type_ids", &types.unwrap_or(vec![0; batch * width]), count)?,
        };
        let types = if types.is_empty() { types } else { pick(&types) };
        let (ids, positions) = (pick(&ids), pick(&positions));
        if is_packed || keep.iter().all(|&k| k) {
            keep.clear();
        }
        let groups = groups(&starts);
        Ok(Self { shape: (batch, width), starts, sources, keep, ids, positions, types, groups })
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.sources.len()
    }

    /// Rows of a sequence.
    pub(super) fn sequence(&self, index: usize) -> Range<usize> {
        self.starts[index]..self.starts[index + 1]
    }

    /// Rows of a group.
    pub(super) fn group_rows(&self, group: &Range<usize>) -> Range<usize> {
        self.starts[group.start]..self.starts[group.end]
    }

    /// Cuts what has `width` elements a row into the groups' parts.
    pub(super) fn split<'a, T>(&self, data: &'a mut [T], width: usize) -> Vec<&'a mut [T]> {
        let rows = self.groups.iter().map(|group| self.group_rows(group).len());
        cut(data, rows.map(|rows| rows * width))
    }

    /// Cuts what has `size` elements a sequence into the groups' parts.
    pub(super) fn split_sequences<'a, T>(
        &self,
        data: &'a mut [T],
        size: usize,
    ) -> Vec<&'a mut [T]> {
        cut(data, self.groups.iter().map(|group| group.len() * size))
    }

    /// Whether others see row `row`.
    pub(super) fn is_kept(&self, row: usize) -> bool {
        self.keep.get(row).copied().unwrap_or(true)
    }
}

fn cut<T>(mut data: &mut [T], sizes: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut parts = Vec::new();
    for size in sizes {
        let (part, rest) = data.split_at_mut(size.min(data.len()));
        parts.push(part);
        data = rest;
    }
    parts
}

fn groups(starts: &[usize]) -> Vec<Range<usize>> {
    let rows = starts.last().copied().unwrap_or(0);
    let enough = (rows / GROUPS).clamp(GROUP_ROWS.start, GROUP_ROWS.end);
    let mut groups = Vec::new();
    let mut first = 0;
    for end in 1..starts.len() {
        if starts[end] - starts[first] >= enough || end + 1 == starts.len() {
            groups.push(first..end);
            first = end;
        }
    }
    groups
}

/// RoBERTa counts tokens that are no padding, from the number after padding's; padding itself has padding's number.
fn positions(encoder: &Encoder, ids: &[i64], width: usize) -> Vec<usize> {
    if encoder.family != Family::Roberta {
        return (0..ids.len()).map(|i| i % width.max(1)).collect();
    }
    let padding = encoder.pad_token_id;
    let mut positions = Vec::with_capacity(ids.len());
    for row in ids.chunks(width.max(1)) {
        let mut last = padding;
        for &id in row {
            let is_token = id != padding as i64;
            last += usize::from(is_token);
            positions.push(if is_token { last } else { padding });
        }
    }
    positions
}

fn checked(name: &'static str, values: &[i64], count: usize) -> Result<Vec<usize>, ModelError> {
    let check = |&value: &i64| {
        usize::try_from(value).ok().filter(|&value| value < count).ok_or_else(|| {
            let problem = format!("holds {value}, the model has 0 to {}", count - 1);
            ModelError::InputValue { name, problem }
        })
    };
    values.iter().map(check).collect()
}

fn integers(tensor: &Tensor) -> Result<Vec<i64>, ModelError> {
    Ok(tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
}

pub(super) fn shape_error(name: &'static str, found: &Tensor, wanted: &str) -> ModelError {
    ModelError::InputShape { name, found: found.dims().to_vec(), wanted: wanted.to_owned() }
}
