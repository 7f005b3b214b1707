//! The tokens of a batch as rows: either all of them, padding included, or those alone that the mask keeps.
//!
//! Refuses ids outside of the vocabulary and sequences without position embeddings. Invariant: a row has one token,
//! one position and, with a table of them, one type.

use candle_core::{DType, Tensor};

use super::config::{Encoder, Family};
use super::sequences::Sequences;
use crate::architecture::Inputs;
use crate::error::ModelError;

/// The tokens of a batch as they are given, with their shapes checked.
pub(super) struct Given<'a> {
    pub(super) ids: &'a Tensor,
    pub(super) mask: Option<&'a Tensor>,
    pub(super) types: Option<&'a Tensor>,
    /// Number of sequences and their length.
    pub(super) shape: (usize, usize),
}

impl<'a> Given<'a> {
    pub(super) fn new(encoder: &Encoder, inputs: &'a Inputs<'_>) -> Result<Self, ModelError> {
        let ids = inputs.get("input_ids")?;
        let &[batch, width] = ids.dims() else { return Err(shape_error("input_ids", ids, "B,T")) };
        if width > encoder.max_length() {
            let wanted = format!("B,T with T up to {}", encoder.max_length());
            return Err(shape_error("input_ids", ids, &wanted));
        }
        let optional = |name: &'static str| match inputs.optional(name) {
            Some(tensor) if tensor.dims() != ids.dims() => {
                Err(shape_error(name, tensor, &format!("{batch},{width}")))
            }
            found => Ok(found),
        };
        let (mask, types) = (optional("attention_mask")?, optional("token_type_ids")?);
        Ok(Self { ids, mask, types, shape: (batch, width) })
    }
}

/// The rows of a batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) sequences: Sequences,
    /// Token, position and type number of each row; no types without a table of them.
    pub(super) ids: Vec<usize>,
    pub(super) positions: Vec<usize>,
    pub(super) types: Vec<usize>,
}

impl Batch {
    /// `is_packed`: leave out what the mask does not keep, if every sequence keeps its first token.
    pub(super) fn new(
        encoder: &Encoder,
        inputs: &Inputs<'_>,
        is_packed: bool,
    ) -> Result<Self, ModelError> {
        let Given { ids, mask, types, shape: (batch, width) } = Given::new(encoder, inputs)?;
        let (mask, types) = (mask.map(integers).transpose()?, types.map(integers).transpose()?);
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
        let sequences = Sequences::new((batch, width), starts, sources, keep);
        Ok(Self { sequences, ids, positions, types })
    }
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
