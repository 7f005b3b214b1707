//! What stands on top of the blocks: classifiers of sequences and tokens, the masked language model, mean pooling.
//!
//! Refuses nothing. Invariant: a sequence without any kept token has features of 0, and gives no gradient.

use candle_core::Result;

use super::config::{Encoder, Family, Head};
use super::sequences::Sequences;
use crate::layers::Activation;
use crate::layers::element::{Element, Matrix, add_rows, matmul};
use crate::layers::rows::{
    Dropout, activate, activate_backward, add, fill_rows, norm, norm_backward,
};

/// A head over its weights.
#[derive(Clone, Copy)]
pub(super) struct HeadPass<'a, T> {
    pub(super) encoder: &'a Encoder,
    pub(super) sequences: &'a Sequences,
    /// Its parameters in order.
    pub(super) weights: &'a [&'a [T]],
    /// The word embeddings, which the masked language model shares.
    pub(super) word: &'a [T],
    /// Of the head's input, and of the last layer's input.
    pub(super) dropouts: [Option<Dropout>; 2],
}

/// What the backward pass of a head reads.
#[derive(Default)]
pub(super) struct HeadKept<T> {
    /// Input of the first layer after dropout, its result, and the last layer's input after dropout.
    input: Vec<T>,
    dense: Vec<T>,
    last: Vec<T>,
    normalized: Vec<T>,
    scales: Vec<T>,
}

/// `logits` and `features`, as far as they are there.
pub(super) struct HeadOutputs<T> {
    pub(super) logits: Option<Vec<T>>,
    pub(super) features: Option<Vec<T>>,
}

/// Gradients of the head's parameters and of the word embeddings, as far as they are wanted.
pub(super) struct HeadGrads<'g, 'a, T> {
    pub(super) own: &'g mut [Option<&'a mut [T]>],
    pub(super) word: Option<&'g mut [T]>,
}

/// `x Wᵀ + b`.
fn linear<T: Element>(x: &[T], weight: &[T], bias: &[T]) -> Result<Vec<T>> {
    let inputs = weight.len() / bias.len().max(1);
    let rows = x.len() / inputs.max(1);
    let mut y = vec![T::of(0.0); rows * bias.len()];
    fill_rows(&mut y, bias);
    let w = Matrix::new(weight, bias.len(), inputs).transposed();
    matmul(&mut y, Matrix::new(x, rows, inputs), w, true)?;
    Ok(y)
}

/// `g W`.
fn back<T: Element>(grad: &[T], weight: &[T], inputs: usize) -> Result<Vec<T>> {
    let outputs = weight.len() / inputs.max(1);
    let rows = grad.len() / outputs.max(1);
    let mut dx = vec![T::of(0.0); rows * inputs];
    let g = Matrix::new(grad, rows, outputs);
    matmul(&mut dx, g, Matrix::new(weight, outputs, inputs), false)?;
    Ok(dx)
}

/// `dW += gᵀ x`.
fn add_weight<T: Element>(to: Option<&mut [T]>, grad: &[T], x: &[T], inputs: usize) -> Result<()> {
    let Some(to) = to else { return Ok(()) };
    let rows = x.len() / inputs.max(1);
    let outputs = to.len() / inputs.max(1);
    let g = Matrix::new(grad, rows, outputs).transposed();
    matmul(to, g, Matrix::new(x, rows, inputs), true)
}

impl Encoder {
    /// What follows the head's first layer.
    pub(super) fn head_activation(&self) -> Activation {
        match (self.head, self.family) {
            (Head::MaskedLm, _) => self.activation,
            (_, Family::DistilBert) => Activation::Relu,
            _ => Activation::Tanh,
        }
    }
}

impl<T: Element> HeadPass<'_, T> {
    fn dim(&self) -> usize {
        self.encoder.dim
    }

    fn drop(&self, dropout: Option<Dropout>, rows: &mut [T]) {
        let Some(dropout) = dropout else { return };
        let dim = self.dim();
        rows.chunks_mut(dim).enumerate().for_each(|(i, row)| dropout.row(i, dim, row));
    }

    /// From the states after the last block.
    pub(super) fn forward(
        &self,
        x: &[T],
        wants_logits: bool,
    ) -> Result<(HeadOutputs<T>, HeadKept<T>)> {
        let mut kept = HeadKept::default();
        let mut outputs = HeadOutputs { logits: None, features: None };
        let w = self.weights;
        match self.encoder.head {
            Head::Embedding => outputs.features = Some(self.mean(x)),
            Head::Classification { .. } => {
                kept.input = self.first_rows(x);
                self.drop(self.dropouts[0], &mut kept.input);
                kept.dense = linear(&kept.input, w[0], w[1])?;
                kept.last = vec![T::of(0.0); kept.dense.len()];
                activate(&mut kept.last, &kept.dense, self.encoder.head_activation());
                outputs.features = Some(kept.last.clone());
                if wants_logits {
                    self.drop(self.dropouts[1], &mut kept.last);
                    outputs.logits = Some(linear(&kept.last, w[2], w[3])?);
                }
            }
            Head::Tokens { .. } => {
                kept.last = x.to_vec();
                self.drop(self.dropouts[1], &mut kept.last);
                outputs.logits = Some(linear(&kept.last, w[0], w[1])?);
            }
            Head::MaskedLm => {
                kept.input = x.to_vec();
                kept.dense = linear(x, w[0], w[1])?;
                kept.last = vec![T::of(0.0); kept.dense.len()];
                activate(&mut kept.last, &kept.dense, self.encoder.head_activation());
                kept.normalized = vec![T::of(0.0); kept.dense.len()];
                kept.scales = vec![T::of(0.0); self.sequences.rows()];
                let (normalized, scales) = (&mut kept.normalized, &mut kept.scales);
                let eps = self.encoder.norm_eps;
                norm(&mut kept.last, &[], normalized, scales, w[2], w[3], eps);
                outputs.logits = Some(linear(&kept.last, self.word, w[4])?);
            }
        }
        Ok((outputs, kept))
    }

    /// Adds to `dx`, the gradient of the states after the last block, and to the parameters' gradients.
    pub(super) fn backward(
        &self,
        kept: &HeadKept<T>,
        d_logits: Option<&[T]>,
        d_features: Option<&[T]>,
        dx: &mut [T],
        grads: HeadGrads<'_, '_, T>,
    ) -> Result<()> {
        let (w, dim) = (self.weights, self.dim());
        let mut own = grads.own.iter_mut().map(Option::as_deref_mut);
        let mut next = || own.next().flatten();
        match self.encoder.head {
            Head::Embedding => {
                if let Some(grad) = d_features {
                    self.mean_backward(grad, dx);
                }
            }
            Head::Classification { .. } => {
                let (dense, dense_bias) = (next(), next());
                let mut grad = vec![T::of(0.0); kept.last.len()];
                if let Some(d_logits) = d_logits {
                    add_weight(next(), d_logits, &kept.last, dim)?;
                    if let Some(to) = next() {
                        add_rows(to, d_logits);
                    }
                    grad = back(d_logits, w[2], dim)?;
                    self.drop(self.dropouts[1], &mut grad);
                }
                if let Some(d_features) = d_features {
                    add(&mut grad, d_features);
                }
                let mut again = vec![T::of(0.0); grad.len()];
                activate_backward(
                    &mut grad,
                    &mut again,
                    &kept.dense,
                    self.encoder.head_activation(),
                );
                add_weight(dense, &grad, &kept.input, dim)?;
                if let Some(to) = dense_bias {
                    add_rows(to, &grad);
                }
                let mut grad = back(&grad, w[0], dim)?;
                self.drop(self.dropouts[0], &mut grad);
                for (i, row) in grad.chunks(dim).enumerate() {
                    let rows = self.sequences.sequence(i);
                    if !rows.is_empty() {
                        add(&mut dx[rows.start * dim..(rows.start + 1) * dim], row);
                    }
                }
            }
            Head::Tokens { .. } => {
                let Some(d_logits) = d_logits else { return Ok(()) };
                add_weight(next(), d_logits, &kept.last, dim)?;
                if let Some(to) = next() {
                    add_rows(to, d_logits);
                }
                let mut grad = back(d_logits, w[0], dim)?;
                self.drop(self.dropouts[1], &mut grad);
                add(dx, &grad);
            }
            Head::MaskedLm => {
                let Some(d_logits) = d_logits else { return Ok(()) };
                let [dense, dense_bias, scale, shift, bias] = std::array::from_fn(|_| next());
                if let Some(to) = bias {
                    add_rows(to, d_logits);
                }
                add_weight(grads.word, d_logits, &kept.last, dim)?;
                let mut grad = back(d_logits, self.word, dim)?;
                let mut spare = [vec![T::of(0.0); dim], vec![T::of(0.0); dim]];
                let [spare_scale, spare_shift] = &mut spare;
                let scale = scale.unwrap_or(spare_scale);
                let shift = shift.unwrap_or(spare_shift);
                norm_backward(&mut grad, &kept.normalized, &kept.scales, w[2], scale, shift);
                let mut again = vec![T::of(0.0); grad.len()];
                activate_backward(
                    &mut grad,
                    &mut again,
                    &kept.dense,
                    self.encoder.head_activation(),
                );
                add_weight(dense, &grad, &kept.input, dim)?;
                if let Some(to) = dense_bias {
                    add_rows(to, &grad);
                }
                add(dx, &back(&grad, w[0], dim)?);
            }
        }
        Ok(())
    }

    /// The first row of each sequence.
    fn first_rows(&self, x: &[T]) -> Vec<T> {
        let dim = self.dim();
        let mut out = vec![T::of(0.0); self.sequences.shape.0 * dim];
        for (i, out) in out.chunks_mut(dim).enumerate() {
            let rows = self.sequences.sequence(i);
            if !rows.is_empty() {
                out.copy_from_slice(&x[rows.start * dim..(rows.start + 1) * dim]);
            }
        }
        out
    }

    /// 1/kept rows of a sequence; 0 for none.
    fn share(&self, sequence: usize) -> T {
        let kept =
            self.sequences.sequence(sequence).filter(|&row| self.sequences.is_kept(row)).count();
        T::of(if kept == 0 { 0.0 } else { 1.0 / kept as f64 })
    }

    fn mean(&self, x: &[T]) -> Vec<T> {
        let dim = self.dim();
        let mut out = vec![T::of(0.0); self.sequences.shape.0 * dim];
        for (i, out) in out.chunks_mut(dim).enumerate() {
            for row in self.sequences.sequence(i).filter(|&row| self.sequences.is_kept(row)) {
                add(out, &x[row * dim..(row + 1) * dim]);
            }
            let share = self.share(i);
            out.iter_mut().for_each(|y| *y *= share);
        }
        out
    }

    fn mean_backward(&self, grad: &[T], dx: &mut [T]) {
        let dim = self.dim();
        for (i, grad) in grad.chunks(dim).enumerate() {
            let share = self.share(i);
            let grad: Vec<T> = grad.iter().map(|&g| g * share).collect();
            for row in self.sequences.sequence(i).filter(|&row| self.sequences.is_kept(row)) {
                add(&mut dx[row * dim..(row + 1) * dim], &grad);
            }
        }
    }
}
