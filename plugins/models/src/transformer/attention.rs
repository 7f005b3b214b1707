//! Attention of one sequence: products per head on one thread, softmax over the keys that the mask keeps.
//!
//! Probabilities are not stored: the backward pass computes them again from queries and keys. Invariant: queries, keys
//! and values are rows of the model's width in which a head's part begins at its number times the head's width.

use candle_core::Result;

use crate::layers::element::{Element, Matrix, Target, matmul_serial};
use crate::layers::rows::{Dropout, softmax, softmax_backward};

/// Sizes of the heads.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    pub(super) dim: usize,
}

impl Heads {
    fn width(self) -> usize {
        self.count * self.dim
    }

    /// 1/√dim.
    fn scale<T: Element>(self) -> T {
        T::of(1.0 / (self.dim as f64).sqrt())
    }

    /// The part of head `head` of rows of the model's width.
    fn part<T>(self, rows: &[T], head: usize, length: usize) -> Matrix<'_, T> {
        Matrix::strided(&rows[head * self.dim..], length, self.dim, self.width())
    }

    /// `rows`'s part of `head` = or += scale · a·b.
    fn put<T: Element>(
        self,
        rows: &mut [T],
        head: usize,
        scale: T,
        a: Matrix<'_, T>,
        b: Matrix<'_, T>,
    ) -> Result<()> {
        let out = &mut rows[head * self.dim..];
        matmul_serial(Target { out, row_stride: self.width(), accumulate: true, scale }, a, b)
    }
}

/// What attention reads of a sequence.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a, T> {
    /// Number in the batch; rows that ask, rows that are seen, padded length.
    pub(super) index: usize,
    pub(super) queries: usize,
    pub(super) length: usize,
    pub(super) width: usize,
    /// Rows of the model's width.
    pub(super) query: &'a [T],
    pub(super) key: &'a [T],
    pub(super) value: &'a [T],
    /// Which keys are seen; empty: all.
    pub(super) keep: &'a [bool],
    pub(super) dropout: Option<Dropout>,
}

impl<T: Element> Sequence<'_, T> {
    /// `q kᵀ/√dim` of a head, `[queries, length]`.
    pub(super) fn scores(&self, heads: Heads, head: usize, out: &mut [T]) -> Result<()> {
        let query = heads.part(self.query, head, self.queries);
        let key = heads.part(self.key, head, self.length).transposed();
        let scale = heads.scale();
        matmul_serial(Target { out, row_stride: self.length, accumulate: false, scale }, query, key)
    }

    fn drop(&self, heads: Heads, head: usize, rows: &mut [T]) {
        let Some(dropout) = self.dropout else { return };
        for (t, row) in rows.chunks_mut(self.length.max(1)).enumerate() {
            let number = (self.index * heads.count + head) * self.width + t;
            dropout.row(number, self.width, row);
        }
    }

    /// `dropout(softmax(scores)) v` into `context`, rows of the model's width; scores of all heads into `tap`.
    pub(super) fn forward(
        &self,
        heads: Heads,
        context: &mut [T],
        scratch: &mut Vec<T>,
        mut tap: Option<&mut [T]>,
    ) -> Result<()> {
        let square = self.queries * self.length;
        if square == 0 {
            return Ok(());
        }
        scratch.resize(square, T::of(0.0));
        context.fill(T::of(0.0));
        for head in 0..heads.count {
            let scores = &mut scratch[..square];
            self.scores(heads, head, scores)?;
            if let Some(tap) = &mut tap {
                tap[head * square..(head + 1) * square].copy_from_slice(scores);
            }
            softmax(scores, self.length, self.keep);
            self.drop(heads, head, scores);
            let weights = Matrix::new(scores, self.queries, self.length);
            let value = heads.part(self.value, head, self.length);
            heads.put(context, head, T::of(1.0), weights, value)?;
        }
        Ok(())
    }

    /// Adds to `dq`, `dk`, `dv` what the cotangents of context (rows of the model's width) and scores give.
    pub(super) fn backward(
        &self,
        heads: Heads,
        d_context: Option<&[T]>,
        d_scores: Option<&[T]>,
        [dq, dk, dv]: [&mut [T]; 3],
        scratch: &mut Vec<T>,
    ) -> Result<()> {
        let square = self.queries * self.length;
        if square == 0 {
            return Ok(());
        }
        scratch.resize(3 * square, T::of(0.0));
        let one = T::of(1.0);
        for head in 0..heads.count {
            let (p, rest) = scratch.split_at_mut(square);
            let (grad, dropped) = rest.split_at_mut(square);
            match d_context {
                None => grad.fill(T::of(0.0)),
                Some(d_context) => {
                    self.scores(heads, head, p)?;
                    softmax(p, self.length, self.keep);
                    let weights = if self.dropout.is_some() {
                        dropped.copy_from_slice(p);
                        self.drop(heads, head, dropped);
                        &*dropped
                    } else {
                        &*p
                    };
                    let d_context = heads.part(d_context, head, self.queries);
                    let weights = Matrix::new(weights, self.queries, self.length).transposed();
                    heads.put(dv, head, one, weights, d_context)?;
                    let value = heads.part(self.value, head, self.length).transposed();
                    let to = Target {
                        out: &mut *grad,
                        row_stride: self.length,
                        accumulate: false,
                        scale: one,
                    };
                    matmul_serial(to, d_context, value)?;
                    self.drop(heads, head, grad);
                    softmax_backward(grad, p, self.length);
                }
            }
            if let Some(d_scores) = d_scores {
                crate::layers::rows::add(grad, &d_scores[head * square..(head + 1) * square]);
            }
            let grad = Matrix::new(grad, self.queries, self.length);
            let (query, key) = (
                heads.part(self.query, head, self.queries),
                heads.part(self.key, head, self.length),
            );
            heads.put(dq, head, heads.scale(), grad, key)?;
            heads.put(dk, head, heads.scale(), grad.transposed(), query)?;
        }
        Ok(())
    }
}
