//! A block on the rows of one group, forward and backward: attention and feed-forward part, each with its residual and
//! normalization after it.
//!
//! Runs on one thread; products are followed at once by what is done with their rows. Refuses nothing: slices fit by
//! construction. Invariant: the backward pass computes activations, probabilities and normalized states again from what
//! the forward pass kept, by the same kernels, so both see the same bits.

use std::ops::Range;

use candle_core::Result;

use super::attention::{Heads, Sequence};
use super::kept::{Gradients, Kept};
use super::names::BLOCK;
use super::sequences::Sequences;
use crate::layers::Activation;
use crate::layers::element::{Element, Matrix, Target, matmul_serial};
use crate::layers::rows::{
    Dropout, activate, activate_backward, add, add_columns, affine, fill_rows, norm, norm_backward,
};

/// Places of a block's weights; each is followed by its bias.
pub(super) const QUERY: usize = 0;
pub(super) const KEY: usize = 2;
pub(super) const VALUE: usize = 4;
pub(super) const OUTPUT: usize = 6;
pub(super) const MID_NORM: usize = 8;
pub(super) const UP: usize = 10;
pub(super) const DOWN: usize = 12;
pub(super) const END_NORM: usize = 14;

/// What is the same for all groups of a block.
#[derive(Clone, Copy)]
pub(super) struct Block<'a, T> {
    /// Weights and biases in order.
    pub(super) weights: &'a [&'a [T]],
    /// The matrices among them with rows and columns exchanged, at their places; empty: none.
    pub(super) flipped: &'a [Vec<T>],
    pub(super) sequences: &'a Sequences,
    pub(super) heads: Heads,
    pub(super) activation: Activation,
    pub(super) eps: f64,
    /// Of attention weights, of both branches.
    pub(super) dropouts: [Option<Dropout>; 3],
}

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Scratch<T> {
    branch: Vec<T>,
    active: Vec<T>,
    square: Vec<T>,
}

/// How much of a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Queries, keys and values, and scores if they are wanted.
    Projections,
    Whole,
}

/// `dx = g W`, or `dx += g W`.
fn back<T: Element>(dx: &mut [T], grad: &[T], weight: &[T], dim: usize, add: bool) -> Result<()> {
    let rows = dx.len() / dim.max(1);
    let outputs = weight.len() / dim.max(1);
    let (g, w) = (Matrix::new(grad, rows, outputs), Matrix::new(weight, outputs, dim));
    matmul_serial(Target { out: dx, row_stride: dim, accumulate: add, scale: T::of(1.0) }, g, w)
}

impl<T: Element> Block<'_, T> {
    fn dim(&self) -> usize {
        self.weights[OUTPUT + 1].len()
    }

    /// `y = x Wᵀ + b` of the matrix at `place`.
    pub(super) fn linear(&self, y: &mut [T], x: &[T], place: usize) -> Result<()> {
        let (weight, bias) = (self.weights[place], self.weights[place + 1]);
        let outputs = bias.len();
        let (rows, inputs) = (y.len() / outputs.max(1), weight.len() / outputs.max(1));
        fill_rows(y, bias);
        let w = match self.flipped.get(place) {
            Some(flipped) => Matrix::new(flipped, inputs, outputs),
            None => Matrix::new(weight, outputs, inputs).transposed(),
        };
        let to = Target { out: y, row_stride: outputs, accumulate: true, scale: T::of(1.0) };
        matmul_serial(to, Matrix::new(x, rows, inputs), w)
    }

    /// A sequence of a group that begins at row `first`, as attention sees it from all of its rows; its part of rows.
    fn sequence<'s>(
        &'s self,
        index: usize,
        first: usize,
        [query, key, value]: [&'s [T]; 3],
    ) -> (Range<usize>, Sequence<'s, T>) {
        let rows = self.sequences.sequence(index);
        let dim = self.dim();
        let part = (rows.start - first) * dim..(rows.end - first) * dim;
        let sequence = Sequence {
            index,
            queries: rows.len(),
            length: rows.len(),
            width: self.sequences.shape.1,
            query: &query[part.clone()],
            key: &key[part.clone()],
            value: &value[part.clone()],
            keep: self.sequences.keep.get(rows).unwrap_or_default(),
            dropout: self.dropouts[0],
        };
        (part, sequence)
    }

    /// The same from its first row alone; `query` is that row.
    pub(super) fn first_of_sequence<'s>(
        &'s self,
        index: usize,
        first: usize,
        [query, key, value]: [&'s [T]; 3],
    ) -> (Range<usize>, Sequence<'s, T>) {
        let (part, sequence) = self.sequence(index, first, [key, key, value]);
        (part, Sequence { queries: 1, query, ..sequence })
    }

    /// Drops elements of a group's rows; element c of a row takes draw c of the row's place in the padded batch.
    fn drop(&self, dropout: Option<Dropout>, first: usize, rows: &mut [T]) {
        let Some(dropout) = dropout else { return };
        let dim = self.dim();
        for (row, source) in rows.chunks_mut(dim).zip(&self.sequences.sources[first..]) {
            dropout.row(*source, dim, row);
        }
    }

    /// The state of a group through the block: `x` becomes its output. Scores of all heads go to `tap`.
    pub(super) fn forward(
        &self,
        group: &Range<usize>,
        extent: Extent,
        x: &mut [T],
        kept: &mut Kept<&mut [T]>,
        mut tap: Option<&mut [T]>,
        scratch: &mut Scratch<T>,
    ) -> Result<()> {
        self.linear(kept.query, x, QUERY)?;
        self.linear(kept.key, x, KEY)?;
        self.linear(kept.value, x, VALUE)?;
        let first = self.sequences.starts[group.start];
        for (number, index) in group.clone().enumerate() {
            let (part, sequence) = self.sequence(index, first, [kept.query, kept.key, kept.value]);
            let size = self.heads.count * sequence.length * sequence.length;
            let tap = tap.as_deref_mut().map(|tap| &mut tap[number * size..(number + 1) * size]);
            if extent == Extent::Whole {
                let context = &mut kept.context[part];
                sequence.forward(self.heads, context, &mut scratch.square, tap)?;
            } else if let Some(tap) = tap {
                let square = sequence.length * sequence.length;
                for head in 0..self.heads.count {
                    let out = &mut tap[head * square..(head + 1) * square];
                    sequence.scores(self.heads, head, out)?;
                }
            }
        }
        match extent {
            Extent::Projections => Ok(()),
            Extent::Whole => self.after_attention(first, x, kept, scratch),
        }
    }

    /// From `kept.context` of the rows from `first` on to the block's output; `x` is its input before and its output
    /// after.
    pub(super) fn after_attention(
        &self,
        first: usize,
        x: &mut [T],
        kept: &mut Kept<&mut [T]>,
        scratch: &mut Scratch<T>,
    ) -> Result<()> {
        let w = self.weights;
        scratch.branch.resize(x.len(), T::of(0.0));
        scratch.active.resize(kept.inner.len(), T::of(0.0));
        let branch = &mut scratch.branch[..x.len()];
        let active = &mut scratch.active[..kept.inner.len()];
        self.linear(branch, kept.context, OUTPUT)?;
        self.drop(self.dropouts[1], first, branch);
        let (scale, bias) = (w[MID_NORM], w[MID_NORM + 1]);
        norm(x, branch, kept.mid, kept.mid_scales, scale, bias, self.eps);
        self.linear(kept.inner, x, UP)?;
        activate(active, kept.inner, self.activation);
        self.linear(branch, active, DOWN)?;
        self.drop(self.dropouts[2], first, branch);
        let (scale, bias) = (w[END_NORM], w[END_NORM + 1]);
        norm(x, branch, kept.end, kept.end_scales, scale, bias, self.eps);
        Ok(())
    }

    /// From the gradient of the block's output in `dx` to that of its input.
    pub(super) fn backward(
        &self,
        group: &Range<usize>,
        extent: Extent,
        dx: &mut [T],
        kept: &Kept<&[T]>,
        to: GroupGrads<'_, '_, T>,
        scratch: &mut Scratch<T>,
    ) -> Result<()> {
        let GroupGrads { grads, sums, scores } = to;
        let first = self.sequences.starts[group.start];
        scratch.branch.resize(dx.len(), T::of(0.0));
        let branch = &mut scratch.branch[..dx.len()];
        if extent == Extent::Whole {
            self.back_to_attention(first, dx, kept, grads, sums, branch)?;
        }
        for (number, index) in group.clone().enumerate() {
            let (part, sequence) = self.sequence(index, first, [kept.query, kept.key, kept.value]);
            let size = self.heads.count * sequence.length * sequence.length;
            let scores = scores.map(|scores| &scores[number * size..(number + 1) * size]);
            let context = (extent == Extent::Whole).then_some(&branch[part.clone()]);
            if context.is_none() && scores.is_none() {
                continue;
            }
            let to = [
                &mut grads.query[part.clone()],
                &mut grads.key[part.clone()],
                &mut grads.value[part],
            ];
            sequence.backward(self.heads, context, scores, to, &mut scratch.square)?;
        }
        self.back_to_input(QUERY, dx, grads.query, sums)?;
        self.back_to_input(KEY, dx, grads.key, sums)?;
        self.back_to_input(VALUE, dx, grads.value, sums)
    }

    /// From the gradient of the block's output in `dx` to those of its input past attention, in `dx`, and of the
    /// context.
    pub(super) fn back_to_attention(
        &self,
        first: usize,
        dx: &mut [T],
        kept: &Kept<&[T]>,
        grads: &mut Gradients<&mut [T]>,
        sums: &mut Sums<T>,
        d_context: &mut [T],
    ) -> Result<()> {
        let (w, dim) = (self.weights, self.dim());
        let (weight, bias) = sums.pair(END_NORM);
        norm_backward(dx, kept.end, kept.end_scales, w[END_NORM], weight, bias);
        grads.down.copy_from_slice(dx);
        self.drop(self.dropouts[2], first, grads.down);
        let inner = w[UP + 1].len();
        back(grads.inner, grads.down, w[DOWN], inner, false)?;
        activate_backward(grads.inner, grads.active, kept.inner, self.activation);
        affine(grads.mid, kept.mid, w[MID_NORM], w[MID_NORM + 1]);
        back(dx, grads.inner, w[UP], dim, true)?;
        let (weight, bias) = sums.pair(MID_NORM);
        norm_backward(dx, kept.mid, kept.mid_scales, w[MID_NORM], weight, bias);
        grads.output.copy_from_slice(dx);
        self.drop(self.dropouts[1], first, grads.output);
        back(d_context, grads.output, w[OUTPUT], dim, false)?;
        add_columns(sums.pair(DOWN).1, grads.down);
        add_columns(sums.pair(UP).1, grads.inner);
        add_columns(sums.pair(OUTPUT).1, grads.output);
        Ok(())
    }

    /// Adds to `dx` what the gradient of the projection at `place` gives.
    pub(super) fn back_to_input(
        &self,
        place: usize,
        dx: &mut [T],
        grad: &[T],
        sums: &mut Sums<T>,
    ) -> Result<()> {
        back(dx, grad, self.weights[place], self.dim(), true)?;
        add_columns(sums.pair(place).1, grad);
        Ok(())
    }
}

/// Where a group's gradients go.
pub(super) struct GroupGrads<'g, 'a, T> {
    pub(super) grads: &'g mut Gradients<&'a mut [T]>,
    /// Biases and normalizations, at their places.
    pub(super) sums: &'g mut Sums<T>,
    /// Cotangent of the group's scores.
    pub(super) scores: Option<&'g [T]>,
}

/// A group's part of the gradients that are sums over rows: biases, and both vectors of the normalizations.
pub(super) struct Sums<T>(Vec<Vec<T>>);

impl<T: Element> Sums<T> {
    pub(super) fn new(weights: &[&[T]]) -> Self {
        let is_sum = |place: usize| place % 2 == 1 || matches!(place, MID_NORM | END_NORM);
        let make = |place: usize| match is_sum(place) {
            true => vec![T::of(0.0); weights[place].len()],
            false => Vec::new(),
        };
        Self((0..BLOCK).map(make).collect())
    }

    /// Those of a weight and the bias after it.
    fn pair(&mut self, place: usize) -> (&mut [T], &mut [T]) {
        let (first, second) = self.0.split_at_mut(place + 1);
        (&mut first[place], &mut second[0])
    }

    /// Adds to the gradient at `place`.
    pub(super) fn add_to(&self, place: usize, grad: &mut [T]) {
        add(grad, &self.0[place]);
    }

    /// Whether the gradient at `place` is such a sum.
    pub(super) fn has(&self, place: usize) -> bool {
        !self.0[place].is_empty()
    }
}
