//! The outputs of an encoder by name: how deep each reaches, and the layout of projections by head.
//!
//! Refuses numbers beyond the blocks. Invariant: an output has the name that `config.rs` gives its port.

use super::config::{Encoder, Head};
use super::pass::Pass;
use crate::layers::element::Element;

/// An output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Logits,
    Features,
    WordEmbeddings,
    /// After this many blocks.
    Hidden(usize),
    /// Scores of a block, from 1.
    Attention(usize),
    /// Queries (0), keys (1) or values (2) of a block, from 1.
    Projection(usize, usize),
}

impl Wanted {
    /// The output of a name.
    pub(super) fn parse(name: &str, encoder: &Encoder) -> Option<Self> {
        let (stem, number) = match name.split_once('.') {
            Some((stem, digits)) => {
                let number: usize = digits.parse().ok()?;
                let is_plain = number <= encoder.layers && number.to_string() == digits;
                (stem, is_plain.then_some(number)?)
            }
            None => (name, 0),
        };
        let block = number.checked_sub(1).map(|_| number);
        let is_offered = encoder.offers(name);
        match stem {
            "logits" if is_offered => Some(Self::Logits),
            "features" if is_offered => Some(Self::Features),
            "word_embeddings" if is_offered => Some(Self::WordEmbeddings),
            "hidden" if name.contains('.') => Some(Self::Hidden(number)),
            "attention" => block.map(Self::Attention),
            "query" => block.map(|block| Self::Projection(block, 0)),
            "key" => block.map(|block| Self::Projection(block, 1)),
            "value" => block.map(|block| Self::Projection(block, 2)),
            _ => None,
        }
    }

    /// Blocks that run whole, and whether the one after them runs up to its projections.
    fn depth(self, layers: usize) -> (usize, bool) {
        match self {
            Self::Logits | Self::Features => (layers, false),
            Self::WordEmbeddings => (0, false),
            Self::Hidden(number) => (number, false),
            Self::Attention(block) | Self::Projection(block, _) => (block - 1, true),
        }
    }

    /// Blocks that run whole for all of `wanted`, and whether the one after them runs up to its projections.
    pub(super) fn reach(wanted: &[Self], layers: usize) -> (usize, bool) {
        let depths = || wanted.iter().map(|wanted| wanted.depth(layers));
        let depth = depths().map(|(whole, _)| whole).max().unwrap_or(0);
        (depth, depths().any(|reach| reach == (depth, true)))
    }

    /// Whether it has a row for each place of the padded batch.
    pub(super) fn is_padded(self, encoder: &Encoder) -> bool {
        match self {
            Self::Logits => encoder.is_per_token(),
            Self::Features => false,
            _ => true,
        }
    }
}

impl Encoder {
    /// Whether of the last block's results only first tokens are read.
    pub(super) fn reads_first_tokens(&self, wanted: &[Wanted]) -> bool {
        matches!(self.head, Head::Classification { .. })
            && wanted.iter().all(|wanted| match *wanted {
                Wanted::Logits | Wanted::Features | Wanted::WordEmbeddings => true,
                Wanted::Hidden(block) | Wanted::Attention(block) | Wanted::Projection(block, _) => {
                    block < self.layers
                }
            })
    }
}

impl<T: Element> Pass<'_, T> {
    /// `[B·T, A·D]` to `[B, A, T, D]`.
    pub(super) fn by_head(&self, rows: &[T]) -> Vec<T> {
        let (heads, dim) = (self.encoder.heads, self.encoder.head_dim());
        let width = self.batch.sequences.shape.1;
        let mut out = Vec::with_capacity(rows.len());
        for sequence in rows.chunks((width * heads * dim).max(1)) {
            for head in 0..heads {
                for row in sequence.chunks(heads * dim) {
                    out.extend_from_slice(&row[head * dim..(head + 1) * dim]);
                }
            }
        }
        out
    }

    /// The other way round.
    pub(super) fn by_row(&self, parts: &[T], rows: &mut [T]) {
        let (heads, dim) = (self.encoder.heads, self.encoder.head_dim());
        let size = (self.batch.sequences.shape.1 * heads * dim).max(1);
        for (sequence, parts) in rows.chunks_mut(size).zip(parts.chunks(size)) {
            for (t, row) in sequence.chunks_mut(heads * dim).enumerate() {
                for (head, to) in row.chunks_mut(dim).enumerate() {
                    let from = (head * self.batch.sequences.shape.1 + t) * dim;
                    to.copy_from_slice(&parts[from..from + dim]);
                }
            }
        }
    }
}
