//! The same encoder in candle's tensors and the layers' operations, on whatever device its parameters are; gradients flow
//! through candle's graph.
//!
//! Reads no element of a tensor on the host, so a step on a GPU waits for nothing. Refuses what the operations refuse.
//! Invariant: equal keys drop the same elements as in `pass.rs`, padding included or not.

use candle_core::{DType, Result, Tensor};

use super::batch::Given;
use super::config::{Encoder, Family, Head};
use super::outputs::Wanted;
use super::pass::Weights;
use crate::layers::attend::Attend;
use crate::layers::rows::Dropout;
use crate::layers::{Activation, Drop, Linear, add_row, layer_norm, lookup};
use crate::random::Stream;

/// The tokens of a batch, on the device; i64.
pub(super) struct Tokens {
    /// `[B, T]`.
    pub(super) ids: Tensor,
    /// `[B, T]`, u8; `None`: every token is seen.
    pub(super) keep: Option<Tensor>,
    /// `[B, T]`.
    pub(super) types: Option<Tensor>,
}

impl Tokens {
    pub(super) fn new(given: &Given<'_>) -> Result<Self> {
        let keep = given.mask.map(|mask| mask.ne(0i64)?.contiguous()).transpose()?;
        let i64s = |tensor: &Tensor| tensor.to_dtype(DType::I64)?.contiguous();
        Ok(Self { ids: i64s(given.ids)?, keep, types: given.types.map(i64s).transpose()? })
    }
}

/// One pass over one batch.
pub(super) struct Graph<'a> {
    pub(super) encoder: &'a Encoder,
    pub(super) weights: Weights<&'a Tensor>,
    pub(super) tokens: &'a Tokens,
    /// `[B, T, dim]` in place of the word embeddings.
    pub(super) embeds: Option<&'a Tensor>,
    /// Source of dropout in training.
    pub(super) key: Option<[u64; 2]>,
}

/// Outputs in the order in which they were computed.
type Found = Vec<(Wanted, Tensor)>;

fn linear(x: &Tensor, at: &[&Tensor], activation: Activation) -> Result<Tensor> {
    Linear::over(at[0], at[1]).forward(x, activation)
}

impl Graph<'_> {
    fn sizes(&self) -> Result<(usize, usize)> {
        self.tokens.ids.dims2()
    }

    fn draws(&self, purpose: u64, p: f64) -> Option<Dropout> {
        Dropout::new(Stream::new(self.key?, purpose), p)
    }

    /// Dropout of states `[N, dim]`; row n takes draws of row `row_step · n`.
    fn drop(&self, x: &Tensor, purpose: u64, p: f64, row_step: usize) -> Result<Tensor> {
        match self.draws(purpose, p) {
            Some(dropout) => Drop { dropout, columns: self.encoder.dim, row_step }.apply(x),
            None => Ok(x.clone()),
        }
    }

    /// `norm(residual + drop(branch))`, the weights of the normalization at `at`.
    fn join(
        &self,
        branch: &Tensor,
        residual: &Tensor,
        purpose: u64,
        row_step: usize,
        at: &[&Tensor],
    ) -> Result<Tensor> {
        let sum = match self.draws(purpose, self.encoder.dropout) {
            Some(dropout) => {
                Drop { dropout, columns: self.encoder.dim, row_step }.add(branch, residual)
            }
            None => branch + residual,
        };
        layer_norm(&sum?, at[0], at[1], self.encoder.norm_eps)
    }

    /// The wanted outputs. Of the last block only first tokens are computed if nobody reads others.
    pub(super) fn forward(&self, wanted: &[Wanted]) -> Result<Found> {
        let encoder = self.encoder;
        let (batch, width) = self.sizes()?;
        let (depth, is_partial) = Wanted::reach(wanted, encoder.layers);
        let is_short = depth == encoder.layers && encoder.reads_first_tokens(wanted);
        let mut found = Found::new();
        let states = |x: &Tensor| x.reshape((batch, width, encoder.dim));
        let words = self.words()?;
        if wanted.contains(&Wanted::WordEmbeddings) {
            found.push((Wanted::WordEmbeddings, states(&words)?));
        }
        let mut x = self.embed(&words)?;
        for layer in 0..=depth {
            if wanted.contains(&Wanted::Hidden(layer)) {
                found.push((Wanted::Hidden(layer), states(&x)?));
            }
            if layer < depth {
                let is_short = is_short && layer + 1 == encoder.layers;
                x = self.block(layer, &x, is_short, wanted, &mut found)?;
            } else if is_partial {
                self.attention(layer, &x, &x, wanted, &mut found)?;
            }
        }
        if wanted.contains(&Wanted::Logits) || wanted.contains(&Wanted::Features) {
            self.head(&x, wanted, &mut found)?;
        }
        Ok(found)
    }

    /// `[B·T, dim]`.
    fn words(&self) -> Result<Tensor> {
        let (batch, width) = self.sizes()?;
        match self.embeds {
            Some(embeds) => embeds.reshape((batch * width, self.encoder.dim)),
            None => {
                let [padding, ..] = self.encoder.padding_rows();
                lookup(self.weights.all[0], &self.tokens.ids.flatten_all()?, padding)
            }
        }
    }

    /// The first block's input.
    fn embed(&self, words: &Tensor) -> Result<Tensor> {
        let (encoder, all) = (self.encoder, &self.weights.all);
        let (batch, width) = self.sizes()?;
        let [_, padding, _] = encoder.padding_rows();
        let mut x = if encoder.family == Family::Roberta {
            (words + lookup(all[1], &self.positions()?, padding)?)?
        } else {
            // One long row for all positions: its gradient is a sum over the batch.
            let row = all[1].narrow(0, 0, width)?.flatten_all()?;
            let x = words.reshape((batch, width * encoder.dim))?;
            add_row(&x, &row)?.reshape((batch * width, encoder.dim))?
        };
        if encoder.token_types > 0 {
            x = match &self.tokens.types {
                Some(types) => (x + lookup(all[2], &types.flatten_all()?, None)?)?,
                None => add_row(&x, &all[2].narrow(0, 0, 1)?.flatten_all()?)?,
            };
        }
        let (weight, bias) = self.weights.norm();
        let x = layer_norm(&x, weight, bias, encoder.norm_eps)?;
        self.drop(&x, u64::MAX, encoder.dropout, 1)
    }

    /// RoBERTa's position numbers; `[B·T]`.
    fn positions(&self) -> Result<Tensor> {
        let padding = self.encoder.pad_token_id as f64;
        let is_token = self.tokens.ids.ne(self.encoder.pad_token_id as i64)?;
        let is_token = is_token.to_dtype(DType::F32)?;
        let counted = (is_token.cumsum(1)? * is_token)?;
        (counted + padding)?.to_dtype(DType::I64)?.flatten_all()
    }

    /// `[N·Q, dim]` by head: `[N, A, Q, D]`.
    fn by_head(&self, rows: &Tensor, batch: usize) -> Result<Tensor> {
        let (heads, dim) = (self.encoder.heads, self.encoder.head_dim());
        let queries = rows.dim(0)?.checked_div(batch).unwrap_or(0);
        rows.reshape((batch, queries, heads, dim))?.transpose(1, 2)?.contiguous()
    }

    /// The context of the rows `asking`, `[B·Q, dim]`, in the states `x`.
    fn attention(
        &self,
        layer: usize,
        x: &Tensor,
        asking: &Tensor,
        wanted: &[Wanted],
        found: &mut Found,
    ) -> Result<Tensor> {
        let (encoder, w, number) = (self.encoder, self.weights.block(layer), layer + 1);
        let (batch, width) = self.sizes()?;
        let projection = |rows: &Tensor, part: usize| {
            let y = linear(rows, &w[2 * part..], Activation::Identity)?;
            self.by_head(&y, batch)
        };
        let [query, key, value] = [projection(asking, 0)?, projection(x, 1)?, projection(x, 2)?];
        for (part, tensor) in [&query, &key, &value].into_iter().enumerate() {
            let output = Wanted::Projection(number, part);
            if wanted.contains(&output) {
                found.push((output, tensor.clone()));
            }
        }
        let mut scale = 1.0 / (encoder.head_dim() as f64).sqrt();
        let mut scores = query.matmul(&key.t()?)?;
        if wanted.contains(&Wanted::Attention(number)) {
            scores = (scores * scale)?;
            scale = 1.0;
            found.push((Wanted::Attention(number), scores.clone()));
        }
        let queries = query.dim(2)?;
        let attend = Attend {
            keep: self.tokens.keep.clone(),
            scale,
            dropout: self.draws(4 * layer as u64, encoder.attention_dropout),
            row_step: width.checked_div(queries).unwrap_or(1),
        };
        let context = attend.apply(&scores)?.matmul(&value)?.transpose(1, 2)?;
        context.reshape((batch * queries, encoder.dim))
    }

    /// States after a block; of first tokens alone if `is_short`.
    fn block(
        &self,
        layer: usize,
        x: &Tensor,
        is_short: bool,
        wanted: &[Wanted],
        found: &mut Found,
    ) -> Result<Tensor> {
        let (w, first) = (self.weights.block(layer), 4 * layer as u64);
        let (asking, row_step) =
            if is_short { (self.first_rows(x)?, self.sizes()?.1) } else { (x.clone(), 1) };
        let context = self.attention(layer, x, &asking, wanted, found)?;
        let output = linear(&context, &w[6..], Activation::Identity)?;
        let mid = self.join(&output, &asking, first + 1, row_step, &w[8..])?;
        let inner = linear(&mid, &w[10..], self.encoder.activation)?;
        let down = linear(&inner, &w[12..], Activation::Identity)?;
        self.join(&down, &mid, first + 2, row_step, &w[14..])
    }

    /// The first row of each sequence; `x` itself if it has one row a sequence.
    fn first_rows(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, width) = self.sizes()?;
        if x.dim(0)? == batch {
            return Ok(x.clone());
        }
        x.reshape((batch, width, self.encoder.dim))?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
    }

    fn head(&self, x: &Tensor, wanted: &[Wanted], found: &mut Found) -> Result<()> {
        let (encoder, w) = (self.encoder, self.weights.head());
        let (batch, width) = self.sizes()?;
        let plain = Activation::Identity;
        let (last, p) = (u64::MAX - 2, encoder.head_dropout);
        match encoder.head {
            Head::Embedding => found.push((Wanted::Features, self.mean(x)?)),
            Head::Classification { .. } => {
                let mut x = self.first_rows(x)?;
                if encoder.family == Family::Roberta {
                    x = self.drop(&x, u64::MAX - 1, p, 1)?;
                }
                let features = linear(&x, w, encoder.head_activation())?;
                if wanted.contains(&Wanted::Logits) {
                    let logits = linear(&self.drop(&features, last, p, 1)?, &w[2..], plain)?;
                    found.push((Wanted::Logits, logits));
                }
                found.push((Wanted::Features, features));
            }
            Head::Tokens { classes } => {
                let logits = linear(&self.drop(x, last, p, 1)?, w, plain)?;
                found.push((Wanted::Logits, logits.reshape((batch, width, classes))?));
            }
            Head::MaskedLm => {
                let dense = linear(x, w, encoder.head_activation())?;
                let dense = layer_norm(&dense, w[2], w[3], encoder.norm_eps)?;
                let logits = linear(&dense, &[self.weights.all[0], w[4]], plain)?;
                let shape = (batch, width, encoder.vocab_size);
                found.push((Wanted::Logits, logits.reshape(shape)?));
            }
        }
        Ok(())
    }

    /// Mean of the states that the mask keeps; 0 of none.
    fn mean(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, width) = self.sizes()?;
        let x = x.reshape((batch, width, self.encoder.dim))?;
        let exact = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let shares = match &self.tokens.keep {
            Some(keep) => {
                let keep = keep.to_dtype(exact)?;
                keep.broadcast_div(&keep.sum_keepdim(1)?.clamp(1f64, f64::INFINITY)?)?
            }
            None => (Tensor::ones((batch, width), exact, x.device())? / width as f64)?,
        };
        shares.to_dtype(x.dtype())?.unsqueeze(1)?.matmul(&x)?.squeeze(1)
    }
}

#[cfg(test)]
mod tests;
