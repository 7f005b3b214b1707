//! A block on the rows of one group, forward and backward: attention and feed-forward part, each with its residual and
//! normalization after it.
//!
//! Runs on one thread; products are followed at once by what is done with their rows. Refuses nothing: slices fit by
//! construction. Invariant: the backward pass computes activations, probabilities and normalized states again from what
//! the forward pass kept, by the same kernels, so both see the same bits.

use std::ops::Range;

use candle_core::Result;

use super::attention::{Heads, Sequence};
use super::batch::Batch;
use super::names::BLOCK;
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
    pub(super) batch: &'a Batch,
    pub(super) heads: Heads,
    pub(super) activation: Activation,
    pub(super) eps: f64,
    /// Of attention weights, of both branches.
    pub(super) dropouts: [Option<Dropout>; 3],
}

/// What a forward pass keeps of a block: all rows, or a group's part of them.
pub(super) struct Kept<B> {
    pub(super) query: B,
    pub(super) key: B,
    pub(super) value: B,
    pub(super) context: B,
    /// Normalized states and their scales after attention, and after the feed-forward part.
    pub(super) mid: B,
    pub(super) mid_scales: B,
    pub(super) inner: B,
    pub(super) end: B,
    pub(super) end_scales: B,
}

impl<T: Element> Kept<Vec<T>> {
    pub(super) fn new(rows: usize, dim: usize, inner: usize) -> Self {
        let make = |width: usize| vec![T::of(0.0); rows * width];
        Self {
            query: make(dim),
            key: make(dim),
            value: make(dim),
            context: make(dim),
            mid: make(dim),
            mid_scales: make(1),
            inner: make(inner),
            end: make(dim),
            end_scales: make(1),
        }
    }

    /// `spare` with room for `rows` rows.
    pub(super) fn enlarged(
        spare: &mut Option<Self>,
        rows: usize,
        dim: usize,
        inner: usize,
    ) -> &mut Self {
        let is_large = |kept: &Self| kept.mid_scales.len() >= rows;
        if !spare.as_ref().is_some_and(is_large) {
            *spare = None;
        }
        spare.get_or_insert_with(|| Self::new(rows, dim, inner))
    }

    /// The first `rows` rows.
    pub(super) fn part(&mut self, rows: usize, dim: usize, inner: usize) -> Kept<&mut [T]> {
        Kept {
            query: &mut self.query[..rows * dim],
            key: &mut self.key[..rows * dim],
            value: &mut self.value[..rows * dim],
            context: &mut self.context[..rows * dim],
            mid: &mut self.mid[..rows * dim],
            mid_scales: &mut self.mid_scales[..rows],
            inner: &mut self.inner[..rows * inner],
            end: &mut self.end[..rows * dim],
            end_scales: &mut self.end_scales[..rows],
        }
    }

    /// Some rows, to read.
    pub(super) fn view(&self, rows: Range<usize>, dim: usize, inner: usize) -> Kept<&[T]> {
        let part = |width: usize| rows.start * width..rows.end * width;
        Kept {
            query: &self.query[part(dim)],
            key: &self.key[part(dim)],
            value: &self.value[part(dim)],
            context: &self.context[part(dim)],
            mid: &self.mid[part(dim)],
            mid_scales: &self.mid_scales[part(1)],
            inner: &self.inner[part(inner)],
            end: &self.end[part(dim)],
            end_scales: &self.end_scales[part(1)],
        }
    }

    /// The groups' parts.
    pub(super) fn split(&mut self, batch: &Batch, dim: usize, inner: usize) -> Vec<Kept<&mut [T]>> {
        let mut parts = [
            batch.split(&mut self.query, dim).into_iter(),
            batch.split(&mut self.key, dim).into_iter(),
            batch.split(&mut self.value, dim).into_iter(),
            batch.split(&mut self.context, dim).into_iter(),
            batch.split(&mut self.mid, dim).into_iter(),
            batch.split(&mut self.mid_scales, 1).into_iter(),
            batch.split(&mut self.inner, inner).into_iter(),
            batch.split(&mut self.end, dim).into_iter(),
            batch.split(&mut self.end_scales, 1).into_iter(),
        ];
        std::iter::from_fn(|| {
            let [query, key, value, context, mid, mid_scales, inner, end, end_scales] =
                parts.each_mut().map(Iterator::next);
            Some(Kept {
                query: query?,
                key: key?,
                value: value?,
                context: context?,
                mid: mid?,
                mid_scales: mid_scales?,
                inner: inner?,
                end: end?,
                end_scales: end_scales?,
            })
        })
        .collect()
    }
}

/// Gradients that the products of the parameters' gradients read: all rows, or a group's part of them.
pub(super) struct Gradients<B> {
    pub(super) query: B,
    pub(super) key: B,
    pub(super) value: B,
    pub(super) output: B,
    pub(super) inner: B,
    pub(super) down: B,
    /// The block's input, the state between its parts and the activation, computed again.
    pub(super) input: B,
    pub(super) mid: B,
    pub(super) active: B,
}

impl<T: Element> Gradients<Vec<T>> {
    pub(super) fn new(rows: usize, dim: usize, inner: usize) -> Self {
        let make = |width: usize| vec![T::of(0.0); rows * width];
        Self {
            query: make(dim),
            key: make(dim),
            value: make(dim),
            output: make(dim),
            inner: make(inner),
            down: make(dim),
            input: make(dim),
            mid: make(dim),
            active: make(inner),
        }
    }

    pub(super) fn split(
        &mut self,
        batch: &Batch,
        dim: usize,
        inner: usize,
    ) -> Vec<Gradients<&mut [T]>> {
        let mut parts = [
            batch.split(&mut self.query, dim).into_iter(),
            batch.split(&mut self.key, dim).into_iter(),
            batch.split(&mut self.value, dim).into_iter(),
            batch.split(&mut self.output, dim).into_iter(),
            batch.split(&mut self.inner, inner).into_iter(),
            batch.split(&mut self.down, dim).into_iter(),
            batch.split(&mut self.input, dim).into_iter(),
            batch.split(&mut self.mid, dim).into_iter(),
            batch.split(&mut self.active, inner).into_iter(),
        ];
        std::iter::from_fn(|| {
            let [query, key, value, output, inner, down, input, mid, active] =
                parts.each_mut().map(Iterator::next);
            Some(Gradients {
                query: query?,
                key: key?,
                value: value?,
                output: output?,
                inner: inner?,
                down: down?,
                input: input?,
                mid: mid?,
                active: active?,
            })
        })
        .collect()
    }
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

/// `y = x Wᵀ + b`.
fn linear<T: Element>(y: &mut [T], x: &[T], weight: &[T], bias: &[T]) -> Result<()> {
    let outputs = bias.len();
    let (rows, inputs) = (y.len() / outputs.max(1), weight.len() / outputs.max(1));
    fill_rows(y, bias);
    let (x, w) = (Matrix::new(x, rows, inputs), Matrix::new(weight, outputs, inputs));
    let to = Target { out: y, row_stride: outputs, accumulate: true, scale: T::of(1.0) };
    matmul_serial(to, x, w.transposed())
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

    fn sequence<'s>(
        &'s self,
        index: usize,
        first: usize,
        [query, key, value]: [&'s [T]; 3],
    ) -> (Range<usize>, Sequence<'s, T>) {
        let rows = self.batch.sequence(index);
        let dim = self.dim();
        let part = (rows.start - first) * dim..(rows.end - first) * dim;
        let sequence = Sequence {
            index,
            length: rows.len(),
            width: self.batch.shape.1,
            query: &query[part.clone()],
            key: &key[part.clone()],
            value: &value[part.clone()],
            keep: self.batch.keep.get(rows).unwrap_or_default(),
            dropout: self.dropouts[0],
        };
        (part, sequence)
    }

    /// Drops elements of a group's rows; element c of a row takes draw c of the row's place in the padded batch.
    fn drop(&self, dropout: Option<Dropout>, first: usize, rows: &mut [T]) {
        let Some(dropout) = dropout else { return };
        let dim = self.dim();
        for (row, source) in rows.chunks_mut(dim).zip(&self.batch.sources[first..]) {
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
        let w = self.weights;
        linear(kept.query, x, w[QUERY], w[QUERY + 1])?;
        linear(kept.key, x, w[KEY], w[KEY + 1])?;
        linear(kept.value, x, w[VALUE], w[VALUE + 1])?;
        let first = self.batch.starts[group.start];
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
        if extent == Extent::Projections {
            return Ok(());
        }
        scratch.branch.resize(x.len(), T::of(0.0));
        scratch.active.resize(kept.inner.len(), T::of(0.0));
        let branch = &mut scratch.branch[..x.len()];
        let active = &mut scratch.active[..kept.inner.len()];
        linear(branch, kept.context, w[OUTPUT], w[OUTPUT + 1])?;
        self.drop(self.dropouts[1], first, branch);
        let (scale, bias) = (w[MID_NORM], w[MID_NORM + 1]);
        norm(x, branch, kept.mid, kept.mid_scales, scale, bias, self.eps);
        linear(kept.inner, x, w[UP], w[UP + 1])?;
        activate(active, kept.inner, self.activation);
        linear(branch, active, w[DOWN], w[DOWN + 1])?;
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
        let (w, dim) = (self.weights, self.dim());
        let first = self.batch.starts[group.start];
        scratch.branch.resize(dx.len(), T::of(0.0));
        let branch = &mut scratch.branch[..dx.len()];
        if extent == Extent::Whole {
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
            back(branch, grads.output, w[OUTPUT], dim, false)?;
            add_columns(sums.pair(DOWN).1, grads.down);
            add_columns(sums.pair(UP).1, grads.inner);
            add_columns(sums.pair(OUTPUT).1, grads.output);
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
        for (place, grad) in [(QUERY, &*grads.query), (KEY, &*grads.key), (VALUE, &*grads.value)] {
            back(dx, grad, w[place], dim, true)?;
            add_columns(sums.pair(place).1, grad);
        }
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
