//! What a forward pass keeps of a block, and the gradients that the products of its parameters' gradients read.
//!
//! Refuses nothing. Invariant: a group's part begins where its rows do.

use std::ops::Range;

use super::sequences::Sequences;
use crate::layers::element::Element;

/// What a forward pass keeps of a block: all rows, or a group's part of them.
#[derive(Default)]
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
    /// Of this size, whatever its elements. Keys and values have `rows` rows, all else has `states`; where these are
    /// fewer, parts have keys and values that mean nothing.
    pub(super) fn sized(mut self, rows: usize, states: usize, dim: usize, inner: usize) -> Self {
        for (buffer, size) in [
            (&mut self.query, states * dim),
            (&mut self.key, rows * dim),
            (&mut self.value, rows * dim),
            (&mut self.context, states * dim),
            (&mut self.mid, states * dim),
            (&mut self.mid_scales, states),
            (&mut self.inner, states * inner),
            (&mut self.end, states * dim),
            (&mut self.end_scales, states),
        ] {
            buffer.resize(size, T::of(0.0));
        }
        self
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
        spare.get_or_insert_with(|| Self::default().sized(rows, rows, dim, inner))
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
    pub(super) fn split(
        &mut self,
        sequences: &Sequences,
        dim: usize,
        inner: usize,
    ) -> Vec<Kept<&mut [T]>> {
        let mut parts = [
            sequences.split(&mut self.query, dim).into_iter(),
            sequences.split(&mut self.key, dim).into_iter(),
            sequences.split(&mut self.value, dim).into_iter(),
            sequences.split(&mut self.context, dim).into_iter(),
            sequences.split(&mut self.mid, dim).into_iter(),
            sequences.split(&mut self.mid_scales, 1).into_iter(),
            sequences.split(&mut self.inner, inner).into_iter(),
            sequences.split(&mut self.end, dim).into_iter(),
            sequences.split(&mut self.end_scales, 1).into_iter(),
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
#[derive(Default)]
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
    /// Of this size, whatever its elements.
    pub(super) fn sized(mut self, rows: usize, dim: usize, inner: usize) -> Self {
        for (buffer, width) in [
            (&mut self.query, dim),
            (&mut self.key, dim),
            (&mut self.value, dim),
            (&mut self.output, dim),
            (&mut self.inner, inner),
            (&mut self.down, dim),
            (&mut self.input, dim),
            (&mut self.mid, dim),
            (&mut self.active, inner),
        ] {
            buffer.resize(rows * width, T::of(0.0));
        }
        self
    }

    pub(super) fn split(
        &mut self,
        sequences: &Sequences,
        dim: usize,
        inner: usize,
    ) -> Vec<Gradients<&mut [T]>> {
        let mut parts = [
            sequences.split(&mut self.query, dim).into_iter(),
            sequences.split(&mut self.key, dim).into_iter(),
            sequences.split(&mut self.value, dim).into_iter(),
            sequences.split(&mut self.output, dim).into_iter(),
            sequences.split(&mut self.inner, inner).into_iter(),
            sequences.split(&mut self.down, dim).into_iter(),
            sequences.split(&mut self.input, dim).into_iter(),
            sequences.split(&mut self.mid, dim).into_iter(),
            sequences.split(&mut self.active, inner).into_iter(),
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
