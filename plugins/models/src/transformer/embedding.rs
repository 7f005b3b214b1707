//! From token numbers to the first block's input, and back to the tables.
//!
//! Refuses nothing: numbers were checked with the batch. Invariant: rows are added to a table in the order of the batch,
//! on one thread.

use super::pass::{ParamGrads, Pass};
use crate::layers::element::Element;
use crate::layers::rows::{add, norm, norm_backward};

impl<T: Element> Pass<'_, T> {
    /// Rows of the word embeddings, or of `embeds`, `[B, T, dim]`.
    pub(super) fn words(&self, embeds: Option<&[T]>) -> Vec<T> {
        let dim = self.encoder.dim;
        let mut out = Vec::with_capacity(self.batch.sequences.rows() * dim);
        for (&id, &source) in self.batch.ids.iter().zip(&self.batch.sequences.sources) {
            match embeds {
                Some(embeds) => out.extend_from_slice(&embeds[source * dim..(source + 1) * dim]),
                None => out.extend_from_slice(&self.weights.all[0][id * dim..(id + 1) * dim]),
            }
        }
        out
    }

    fn drop_embeddings(&self, rows: &mut [T]) {
        let Some(dropout) = self.embedding_dropout() else { return };
        let dim = self.encoder.dim;
        for (row, &source) in rows.chunks_mut(dim).zip(&self.batch.sequences.sources) {
            dropout.row(source, dim, row);
        }
    }

    /// State before the first block, with its normalized form and scales.
    pub(super) fn embed(&self, embeds: Option<&[T]>) -> [Vec<T>; 3] {
        let dim = self.encoder.dim;
        let mut x = self.words(embeds);
        for (i, row) in x.chunks_mut(dim).enumerate() {
            let position = self.batch.positions[i];
            add(row, &self.weights.all[1][position * dim..(position + 1) * dim]);
            if let Some(&kind) = self.batch.types.get(i) {
                add(row, &self.weights.all[2][kind * dim..(kind + 1) * dim]);
            }
        }
        let (mut normalized, mut scales) =
            (x.clone(), vec![T::of(0.0); self.batch.sequences.rows()]);
        let (weight, bias) = self.weights.norm();
        norm(&mut x, &[], &mut normalized, &mut scales, weight, bias, self.encoder.norm_eps);
        self.drop_embeddings(&mut x);
        [x, normalized, scales]
    }

    /// From the gradient of the first block's input to those of the tables, their normalization and `inputs_embeds`.
    /// `words` is the cotangent of the word embeddings.
    pub(super) fn embed_back(
        &self,
        mut dx: Vec<T>,
        normalized: &[T],
        scales: &[T],
        words: Option<&[T]>,
        grads: &mut ParamGrads<'_, T>,
        d_embeds: Option<&mut [T]>,
    ) {
        let dim = self.encoder.dim;
        self.drop_embeddings(&mut dx);
        let mut sums = [vec![T::of(0.0); dim], vec![T::of(0.0); dim]];
        let [dw, db] = &mut sums;
        let (weight, _) = self.weights.norm();
        for ((dx, t), scales) in
            dx.chunks_mut(64 * dim).zip(normalized.chunks(64 * dim)).zip(scales.chunks(64))
        {
            norm_backward(dx, t, scales, weight, dw, db);
        }
        let places = [&self.batch.ids, &self.batch.positions, &self.batch.types];
        let tables = self.weights.embeddings - 2;
        for (grad, sums) in grads.iter_mut().skip(tables).take(2).zip(&sums) {
            if let Some(grad) = grad {
                add(grad, sums);
            }
        }
        let scatter = |grad: &mut [T], rows: &[T], places: &[usize], left_out: Option<usize>| {
            for (row, &place) in rows.chunks(dim).zip(places) {
                if Some(place) != left_out {
                    add(&mut grad[place * dim..(place + 1) * dim], row);
                }
            }
        };
        let padding = self.encoder.padding_rows();
        for (table, grad) in grads.iter_mut().take(tables).enumerate().skip(1) {
            if let Some(grad) = grad {
                scatter(grad, &dx, places[table], padding[table]);
            }
        }
        if let Some(words) = words {
            add(&mut dx, words);
        }
        match (d_embeds, grads.first_mut()) {
            (Some(d_embeds), _) => scatter(d_embeds, &dx, &self.batch.sequences.sources, None),
            (None, Some(Some(grad))) => scatter(grad, &dx, places[0], padding[0]),
            _ => {}
        }
    }
}
