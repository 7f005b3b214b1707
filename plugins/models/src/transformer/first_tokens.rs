//! The last block when a classifier alone reads it: keys and values of all rows, everything else of first tokens.
//!
//! A classifier sees one token of a sequence, so of T tokens T - 1 need neither a query nor a feed-forward part there:
//! with four blocks a fifth of all work. Refuses nothing. Invariant: values and gradients are those of the whole block
//! but for the rounding of their last digits.

use candle_core::Result;
use rayon::prelude::*;

use super::block::{Block, DOWN, KEY, OUTPUT, QUERY, Scratch, Sums, UP, VALUE};
use super::kept::{Gradients, Kept};
use super::pass::{Pass, Product, add_products, add_sums};
use super::sequences::Sequences;
use crate::layers::element::Element;
use crate::layers::rows::add;

impl<T: Element> Pass<'_, T> {
    /// Rows of first tokens.
    fn first_rows(&self, x: &[T]) -> Vec<T> {
        let (dim, sequences) = (self.encoder.dim, &self.batch.sequences);
        let starts = &sequences.starts[..sequences.shape.0];
        starts.iter().flat_map(|&row| &x[row * dim..(row + 1) * dim]).copied().collect()
    }

    /// States of the first tokens `top` after block `layer`, whose input is `x`.
    pub(super) fn run_firsts(
        &self,
        layer: usize,
        top: &Sequences,
        x: &[T],
        kept: &mut Kept<Vec<T>>,
    ) -> Result<Vec<T>> {
        let (dim, inner, all) = (self.encoder.dim, self.encoder.hidden_dim, &self.batch.sequences);
        let flipped = self.flipped(layer);
        let block = self.block(layer, &flipped.0);
        let of_top = Block { sequences: top, ..block };
        let mut states = self.first_rows(x);
        let jobs: Vec<_> =
            top.split(&mut states, dim).into_iter().zip(top.split(&mut kept.query, dim)).collect();
        jobs.into_par_iter().try_for_each(|(states, query)| block.linear(query, states, QUERY))?;
        let (keys, values) = (all.split(&mut kept.key, dim), all.split(&mut kept.value, dim));
        let contexts = all.split_sequences(&mut kept.context, dim);
        let query = &kept.query;
        let jobs: Vec<_> = all.groups.iter().zip(keys).zip(values).zip(contexts).collect();
        jobs.into_par_iter().try_for_each_init(
            Vec::new,
            |square, (((group, key), value), contexts)| {
                let rows = all.group_rows(group);
                let x = &x[rows.start * dim..rows.end * dim];
                block.linear(key, x, KEY)?;
                block.linear(value, x, VALUE)?;
                for (index, context) in group.clone().zip(contexts.chunks_mut(dim)) {
                    let query = &query[index * dim..(index + 1) * dim];
                    let (_, sequence) =
                        block.first_of_sequence(index, rows.start, [query, key, value]);
                    sequence.forward(block.heads, context, square, None)?;
                }
                Ok::<_, candle_core::Error>(())
            },
        )?;
        let parts = kept.split(top, dim, inner);
        let jobs: Vec<_> = top.groups.iter().zip(top.split(&mut states, dim)).zip(parts).collect();
        jobs.into_par_iter().try_for_each_init(
            Scratch::default,
            |scratch, ((group, states), mut kept)| {
                of_top.after_attention(top.starts[group.start], states, &mut kept, scratch)
            },
        )?;
        self.spares.put(flipped);
        Ok(states)
    }

    /// From `d_states`, the gradient of [`Self::run_firsts`]' result, to that of its `x`; `parts.input` is that `x`.
    pub(super) fn run_firsts_back(
        &self,
        layer: usize,
        top: &Sequences,
        mut d_states: Vec<T>,
        kept: &Kept<Vec<T>>,
        parts: &mut Gradients<Vec<T>>,
        own: &mut [Option<&mut [T]>],
    ) -> Result<Vec<T>> {
        let (dim, inner, all) = (self.encoder.dim, self.encoder.hidden_dim, &self.batch.sequences);
        let block = self.block(layer, &[]);
        let of_top = Block { sequences: top, ..block };
        let mut states = Gradients::default().sized(top.rows(), dim, inner);
        let mut d_context = vec![T::of(0.0); top.rows() * dim];
        let jobs = top.groups.iter().zip(top.split(&mut d_states, dim));
        let jobs = jobs.zip(top.split(&mut d_context, dim)).zip(states.split(top, dim, inner));
        let jobs: Vec<_> = jobs.collect();
        let mut sums: Vec<Sums<T>> = jobs
            .into_par_iter()
            .map(|(((group, d_states), d_context), mut grads)| {
                let rows = top.group_rows(group);
                let first = rows.start;
                let kept = kept.view(rows, dim, inner);
                let mut sums = Sums::new(block.weights);
                of_top
                    .back_to_attention(first, d_states, &kept, &mut grads, &mut sums, d_context)?;
                Ok(sums)
            })
            .collect::<Result<_>>()?;
        let mut dx = vec![T::of(0.0); all.rows() * dim];
        let (keys, values) = (all.split(&mut parts.key, dim), all.split(&mut parts.value, dim));
        let queries = all.split_sequences(&mut states.query, dim);
        let jobs = all.groups.iter().zip(all.split(&mut dx, dim));
        let jobs: Vec<_> = jobs.zip(keys).zip(values).zip(queries).collect();
        let more: Vec<Sums<T>> = jobs
            .into_par_iter()
            .map_init(Vec::new, |square, ((((group, dx), d_key), d_value), d_queries)| {
                let rows = all.group_rows(group);
                let part = rows.start * dim..rows.end * dim;
                d_key.fill(T::of(0.0));
                d_value.fill(T::of(0.0));
                for (index, d_query) in group.clone().zip(d_queries.chunks_mut(dim)) {
                    let own = index * dim..(index + 1) * dim;
                    let from = [
                        &kept.query[own.clone()],
                        &kept.key[part.clone()],
                        &kept.value[part.clone()],
                    ];
                    let (rows, sequence) = block.first_of_sequence(index, rows.start, from);
                    d_query.fill(T::of(0.0));
                    let to = [d_query, &mut d_key[rows.clone()], &mut d_value[rows]];
                    sequence.backward(block.heads, Some(&d_context[own]), None, to, square)?;
                }
                let mut sums = Sums::new(block.weights);
                block.back_to_input(KEY, dx, d_key, &mut sums)?;
                block.back_to_input(VALUE, dx, d_value, &mut sums)?;
                Ok(sums)
            })
            .collect::<Result<_>>()?;
        sums.extend(more);
        let mut last = Sums::new(block.weights);
        block.back_to_input(QUERY, &mut d_states, &states.query, &mut last)?;
        sums.push(last);
        for (row, grad) in all.starts.iter().zip(d_states.chunks(dim)) {
            add(&mut dx[row * dim..(row + 1) * dim], grad);
        }
        add_sums(&sums, own);
        let input = self.first_rows(&parts.input);
        let products: [Product<'_, T>; 6] = [
            (QUERY, &states.query, &input, dim),
            (KEY, &parts.key, &parts.input, dim),
            (VALUE, &parts.value, &parts.input, dim),
            (OUTPUT, &states.output, &kept.context, dim),
            (UP, &states.inner, &states.mid, dim),
            (DOWN, &states.down, &states.active, inner),
        ];
        add_products(&products, own)?;
        Ok(dx)
    }
}
