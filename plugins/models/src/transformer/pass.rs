//! A whole forward pass and its way back: embeddings, blocks group by group, head.
//!
//! Refuses cotangents of other sizes. Invariant: blocks above the highest wanted output are not computed, and a
//! parameter's gradient is a sum over rows in one order, whatever the number of threads.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::attention::Heads;
use super::batch::Batch;
use super::block::{Block, DOWN, Extent, GroupGrads, KEY, OUTPUT, QUERY, Scratch, Sums, UP, VALUE};
use super::config::Encoder;
use super::head::{HeadGrads, HeadKept, HeadPass};
use super::kept::{Gradients, Kept};
use super::names::BLOCK;
use super::outputs::Wanted;
use super::sequences::Sequences;
use super::spares::Spares;
use crate::layers::element::{Element, Matrix, Target, matmul_serial};
use crate::layers::rows::{Dropout, add, affine};
use crate::layers::transpose::transpose;
use crate::random::Stream;

/// Weights of an encoder in the order of its parameters: slices, or tensors.
#[derive(Clone)]
pub(super) struct Weights<W> {
    pub(super) all: Vec<W>,
    /// Parameters before the first block.
    pub(super) embeddings: usize,
    layers: usize,
}

impl<W: Copy> Weights<W> {
    pub(super) fn new(encoder: &Encoder, all: Vec<W>) -> Self {
        let embeddings = if encoder.token_types > 0 { 5 } else { 4 };
        Self { all, embeddings, layers: encoder.layers }
    }

    pub(super) fn norm(&self) -> (W, W) {
        (self.all[self.embeddings - 2], self.all[self.embeddings - 1])
    }

    fn first_of_block(&self, layer: usize) -> usize {
        self.embeddings + layer * BLOCK
    }

    pub(super) fn block(&self, layer: usize) -> &[W] {
        let first = self.first_of_block(layer);
        &self.all[first..first + BLOCK]
    }

    pub(super) fn head(&self) -> &[W] {
        &self.all[self.first_of_block(self.layers)..]
    }
}

/// Gradients of the parameters in their order; `None` where nobody wants one.
pub(super) type ParamGrads<'a, T> = Vec<Option<&'a mut [T]>>;

/// One pass over one batch.
pub(super) struct Pass<'a, T> {
    pub(super) encoder: &'a Encoder,
    pub(super) weights: Weights<&'a [T]>,
    pub(super) batch: &'a Batch,
    /// Source of dropout in training.
    pub(super) key: Option<[u64; 2]>,
    pub(super) spares: &'a Spares,
}

/// What the blocks keep for the backward pass.
enum Blocks<T> {
    All(Vec<Kept<Vec<T>>>),
    /// Their inputs alone.
    Inputs(Vec<Vec<T>>),
}

/// What the way back needs.
pub(super) struct Record<T> {
    /// The first block's input, and the normalized embeddings with their scales.
    first: Vec<T>,
    normalized: Vec<T>,
    scales: Vec<T>,
    blocks: Blocks<T>,
    /// Blocks that ran whole, and how far the one after them did.
    depth: usize,
    is_partial: bool,
    /// First tokens, if nobody read others of the last block.
    top: Option<Sequences>,
    head: Option<HeadKept<T>>,
    /// Whether the word embeddings came from outside.
    has_embeds: bool,
}

/// Outputs with their elements, row-major, and what the way back needs if it was asked for.
pub(super) type Forward<T> = (Vec<(Wanted, Vec<T>)>, Option<Record<T>>);

/// See [`Pass::flipped`].
pub(super) struct Flipped<T>(pub(super) Vec<Vec<T>>);

impl<T> Default for Flipped<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, T: Element> Pass<'a, T> {
    fn dropout(&self, purpose: u64, p: f64) -> Option<Dropout> {
        Dropout::new(Stream::new(self.key?, purpose), p)
    }

    pub(super) fn embedding_dropout(&self) -> Option<Dropout> {
        self.dropout(u64::MAX, self.encoder.dropout)
    }

    /// Buffers for a block: keys and values of `rows` rows, all else of `states`.
    fn kept(&self, rows: usize, states: usize) -> Kept<Vec<T>> {
        let kept = self.spares.take::<Kept<Vec<T>>>();
        kept.sized(rows, states, self.encoder.dim, self.encoder.hidden_dim)
    }

    /// Matrices of a block with rows and columns exchanged, at their places: a product of each group would do that for
    /// itself. None for a single group.
    pub(super) fn flipped(&self, layer: usize) -> Flipped<T> {
        let mut flipped = self.spares.take::<Flipped<T>>();
        let has_groups = self.batch.sequences.groups.len() > 1;
        let weights = if has_groups { self.weights.block(layer) } else { &[] };
        flipped.0.resize_with(weights.len(), Vec::new);
        for place in [QUERY, KEY, VALUE, OUTPUT, UP, DOWN].into_iter().filter(|_| has_groups) {
            let columns = weights[place].len() / weights[place + 1].len().max(1);
            transpose(&mut flipped.0[place], weights[place], columns);
        }
        flipped
    }

    pub(super) fn block<'b>(&'b self, layer: usize, flipped: &'b [Vec<T>]) -> Block<'b, T> {
        let first = 4 * layer as u64;
        let state = |number| self.dropout(first + number, self.encoder.dropout);
        Block {
            weights: self.weights.block(layer),
            flipped,
            sequences: &self.batch.sequences,
            heads: Heads { count: self.encoder.heads, dim: self.encoder.head_dim() },
            activation: self.encoder.activation,
            eps: self.encoder.norm_eps,
            dropouts: [self.dropout(first, self.encoder.attention_dropout), state(1), state(2)],
        }
    }

    /// The head over rows of `sequences`.
    fn head<'b>(&'b self, sequences: &'b Sequences) -> HeadPass<'b, T> {
        let p = self.encoder.head_dropout;
        let is_roberta = self.encoder.family == super::Family::Roberta;
        let input = if is_roberta { self.dropout(u64::MAX - 1, p) } else { None };
        HeadPass {
            encoder: self.encoder,
            sequences,
            weights: self.weights.head(),
            word: self.weights.all[0],
            dropouts: [input, self.dropout(u64::MAX - 2, p)],
        }
    }

    /// Takes `x` through a block; `tap` receives its scores, `[B, A, T, T]`.
    fn run(
        &self,
        layer: usize,
        extent: Extent,
        x: &mut [T],
        kept: Option<&mut Kept<Vec<T>>>,
        tap: Option<&mut [T]>,
    ) -> Result<()> {
        let (dim, inner) = (self.encoder.dim, self.encoder.hidden_dim);
        let flipped = self.flipped(layer);
        let (block, batch) = (self.block(layer, &flipped.0), &self.batch.sequences);
        let mut kept = match kept {
            Some(kept) => kept.split(batch, dim, inner).into_iter().map(Some).collect(),
            None => Vec::new(),
        };
        kept.resize_with(batch.groups.len(), || None);
        let mut taps = match tap {
            Some(tap) => {
                let (_, width) = batch.shape;
                let size = self.encoder.heads * width * width;
                batch.split_sequences(tap, size).into_iter().map(Some).collect()
            }
            None => Vec::new(),
        };
        taps.resize_with(batch.groups.len(), || None);
        let jobs: Vec<_> =
            batch.groups.iter().zip(batch.split(x, dim)).zip(kept).zip(taps).collect();
        let done = jobs.into_par_iter().try_for_each_init(
            || (Scratch::default(), None),
            |(scratch, spare), (((group, x), kept), tap)| match kept {
                Some(mut kept) => block.forward(group, extent, x, &mut kept, tap, scratch),
                None => {
                    let rows = batch.group_rows(group).len();
                    let spare = Kept::enlarged(spare, rows, dim, inner);
                    let mut kept = spare.part(rows, dim, inner);
                    block.forward(group, extent, x, &mut kept, tap, scratch)
                }
            },
        );
        self.spares.put(flipped);
        done
    }

    /// The wanted outputs, and what the way back needs if `record`.
    pub(super) fn forward(
        &self,
        wanted: &[Wanted],
        embeds: Option<&[T]>,
        record: bool,
    ) -> Result<Forward<T>> {
        let encoder = self.encoder;
        let (depth, is_partial) = Wanted::reach(wanted, encoder.layers);
        let mut outputs: Vec<(Wanted, Vec<T>)> = Vec::new();
        if wanted.contains(&Wanted::WordEmbeddings) {
            outputs.push((Wanted::WordEmbeddings, self.words(embeds)));
        }
        let [mut x, normalized, scales] = self.embed(embeds);
        if wanted.contains(&Wanted::Hidden(0)) {
            outputs.push((Wanted::Hidden(0), x.clone()));
        }
        let is_kept = record && !encoder.checkpointing;
        let first = if is_kept { x.clone() } else { Vec::new() };
        let sequences = &self.batch.sequences;
        let firsts = || sequences.firsts().filter(|_| depth == encoder.layers);
        let top = if encoder.reads_first_tokens(wanted) { firsts() } else { None };
        let (mut all, mut inputs) = (Vec::new(), Vec::new());
        for layer in 0..depth + usize::from(is_partial) {
            let number = layer + 1;
            let extent = if layer < depth { Extent::Whole } else { Extent::Projections };
            let has = |part| wanted.contains(&Wanted::Projection(number, part));
            let needs_projections = (0..3).any(has);
            let needs_kept = is_kept || needs_projections;
            if record && !is_kept {
                inputs.push(x.clone());
            }
            if let Some(top) = top.as_ref().filter(|_| number == encoder.layers) {
                let mut kept = self.kept(sequences.rows(), top.rows());
                x = self.run_firsts(layer, top, &x, &mut kept)?;
                if is_kept {
                    all.push(kept);
                } else {
                    self.spares.put(kept);
                }
                continue;
            }
            let mut kept = needs_kept.then(|| self.kept(sequences.rows(), sequences.rows()));
            let mut tap = wanted.contains(&Wanted::Attention(number)).then(|| {
                let (batch, width) = sequences.shape;
                vec![T::of(0.0); batch * encoder.heads * width * width]
            });
            self.run(layer, extent, &mut x, kept.as_mut(), tap.as_deref_mut())?;
            outputs.extend(tap.map(|tap| (Wanted::Attention(number), tap)));
            if let Some(kept) = kept {
                for (part, rows) in [&kept.query, &kept.key, &kept.value].into_iter().enumerate() {
                    if has(part) {
                        outputs.push((Wanted::Projection(number, part), self.by_head(rows)));
                    }
                }
                if is_kept {
                    all.push(kept);
                } else {
                    self.spares.put(kept);
                }
            }
            if wanted.contains(&Wanted::Hidden(number)) && extent == Extent::Whole {
                outputs.push((Wanted::Hidden(number), x.clone()));
            }
        }
        let wants_logits = wanted.contains(&Wanted::Logits);
        let mut head = None;
        if wants_logits || wanted.contains(&Wanted::Features) {
            let rows = top.as_ref().unwrap_or(sequences);
            let (found, kept) = self.head(rows).forward(&x, wants_logits)?;
            outputs.extend(found.logits.map(|logits| (Wanted::Logits, logits)));
            outputs.extend(found.features.map(|features| (Wanted::Features, features)));
            head = Some(kept);
        }
        let blocks = if is_kept { Blocks::All(all) } else { Blocks::Inputs(inputs) };
        let has_embeds = embeds.is_some();
        let record = record.then_some(Record {
            first,
            normalized,
            scales,
            blocks,
            depth,
            is_partial,
            top,
            head,
            has_embeds,
        });
        Ok((outputs, record))
    }

    /// From the cotangents of outputs to the gradients of parameters, added to `grads`, and of `inputs_embeds`.
    pub(super) fn backward(
        &self,
        record: Record<T>,
        cotangents: &[(Wanted, &[T])],
        mut grads: ParamGrads<'_, T>,
        d_embeds: Option<&mut [T]>,
    ) -> Result<()> {
        let encoder = self.encoder;
        let (dim, inner) = (encoder.dim, encoder.hidden_dim);
        let sequences = &self.batch.sequences;
        let rows = sequences.rows();
        let given = |wanted: Wanted| -> Option<&[T]> {
            cotangents.iter().find(|(w, _)| *w == wanted).map(|(_, values)| *values)
        };
        let Record { first, normalized, scales, blocks, depth, is_partial, top, head, has_embeds } =
            record;
        let states = top.as_ref().unwrap_or(sequences);
        let mut dx = vec![T::of(0.0); states.rows() * dim];
        if let Some(kept) = head {
            let place = self.weights.first_of_block(encoder.layers);
            let place = place.min(grads.len());
            let (below, own) = grads.split_at_mut(place);
            let word = below.first_mut().and_then(Option::as_deref_mut);
            let (logits, features) = (given(Wanted::Logits), given(Wanted::Features));
            let grads = HeadGrads { own, word };
            self.head(states).backward(&kept, logits, features, &mut dx, grads)?;
        }
        let mut parts = self.spares.take::<Gradients<Vec<T>>>().sized(rows, dim, inner);
        for layer in (0..depth + usize::from(is_partial)).rev() {
            let number = layer + 1;
            let extent = if layer < depth { Extent::Whole } else { Extent::Projections };
            if let Some(grad) = given(Wanted::Hidden(number)) {
                add(&mut dx, grad);
            }
            let top = top.as_ref().filter(|_| number == encoder.layers);
            let mut again = None;
            let kept = match &blocks {
                Blocks::All(all) => {
                    self.input(layer, all, &first, &mut parts.input);
                    &all[layer]
                }
                Blocks::Inputs(inputs) => {
                    parts.input.copy_from_slice(&inputs[layer]);
                    if let Some(top) = top {
                        let kept = again.insert(self.kept(rows, top.rows()));
                        self.run_firsts(layer, top, &inputs[layer], kept)?;
                        &*kept
                    } else {
                        let mut x = inputs[layer].clone();
                        let kept = again.insert(self.kept(rows, rows));
                        self.run(layer, extent, &mut x, Some(kept), None)?;
                        &*kept
                    }
                }
            };
            let own = grads.get_mut(self.weights.first_of_block(layer)..).unwrap_or_default();
            let own = own.get_mut(..BLOCK).unwrap_or_default();
            if let Some(top) = top {
                dx = self.run_firsts_back(layer, top, dx, kept, &mut parts, own)?;
                again.into_iter().for_each(|kept| self.spares.put(kept));
                continue;
            }
            let to = [&mut parts.query, &mut parts.key, &mut parts.value];
            for (part, rows) in to.into_iter().enumerate() {
                match given(Wanted::Projection(number, part)) {
                    Some(grad) => self.by_row(grad, rows),
                    None => rows.fill(T::of(0.0)),
                }
            }
            let scores = given(Wanted::Attention(number));
            self.run_back((layer, extent), &mut dx, kept, &mut parts, scores, own)?;
            again.into_iter().for_each(|kept| self.spares.put(kept));
        }
        self.spares.put(parts);
        if let Blocks::All(all) = blocks {
            // The next pass takes them in the order in which they have their sizes.
            all.into_iter().rev().for_each(|kept| self.spares.put(kept));
        }
        if let Some(grad) = given(Wanted::Hidden(0)) {
            add(&mut dx, grad);
        }
        let words = given(Wanted::WordEmbeddings);
        if has_embeds && let Some(grad) = grads.first_mut() {
            *grad = None;
        }
        self.embed_back(dx, &normalized, &scales, words, &mut grads, d_embeds);
        Ok(())
    }

    /// The input of a block, from what the block below kept.
    fn input(&self, layer: usize, all: &[Kept<Vec<T>>], first: &[T], out: &mut [T]) {
        let Some(below) = layer.checked_sub(1) else {
            out.copy_from_slice(first);
            return;
        };
        let w = self.weights.block(below);
        let dim = self.encoder.dim;
        let sequences = &self.batch.sequences;
        let jobs: Vec<_> = sequences.groups.iter().zip(sequences.split(out, dim)).collect();
        jobs.into_par_iter().for_each(|(group, out)| {
            let rows = sequences.group_rows(group);
            let end = &all[below].end[rows.start * dim..rows.end * dim];
            affine(out, end, w[super::block::END_NORM], w[super::block::END_NORM + 1]);
        });
    }

    fn run_back(
        &self,
        (layer, extent): (usize, Extent),
        dx: &mut [T],
        kept: &Kept<Vec<T>>,
        parts: &mut Gradients<Vec<T>>,
        scores: Option<&[T]>,
        own: &mut [Option<&mut [T]>],
    ) -> Result<()> {
        let encoder = self.encoder;
        let (dim, inner, batch) = (encoder.dim, encoder.hidden_dim, &self.batch.sequences);
        let (_, width) = batch.shape;
        let size = encoder.heads * width * width;
        if scores.is_some_and(|scores| scores.len() != batch.shape.0 * size) {
            bail!("a cotangent of scores has another size");
        }
        let block = self.block(layer, &[]);
        let jobs = batch.groups.iter().zip(batch.split(dx, dim));
        let jobs: Vec<_> = jobs.zip(parts.split(batch, dim, inner)).collect();
        let sums: Vec<Sums<T>> = jobs
            .into_par_iter()
            .map_init(Scratch::default, |scratch, ((group, dx), mut grads)| {
                let kept = kept.view(batch.group_rows(group), dim, inner);
                let scores = scores.map(|all| &all[group.start * size..group.end * size]);
                let mut sums = Sums::new(block.weights);
                let to = GroupGrads { grads: &mut grads, sums: &mut sums, scores };
                block.backward(group, extent, dx, &kept, to, scratch)?;
                Ok(sums)
            })
            .collect::<Result<_>>()?;
        add_sums(&sums, own);
        let mut products: Vec<Product<'_, T>> = vec![
            (QUERY, &parts.query, &parts.input, dim),
            (KEY, &parts.key, &parts.input, dim),
            (VALUE, &parts.value, &parts.input, dim),
        ];
        if extent == Extent::Whole {
            products.push((OUTPUT, &parts.output, &kept.context, dim));
            products.push((UP, &parts.inner, &parts.mid, dim));
            products.push((DOWN, &parts.down, &parts.active, inner));
        }
        add_products(&products, own)
    }
}

/// Adds the groups' sums, in their order, to the gradients of a block.
pub(super) fn add_sums<T: Element>(sums: &[Sums<T>], own: &mut [Option<&mut [T]>]) {
    for (place, grad) in own.iter_mut().enumerate() {
        let Some(grad) = grad else { continue };
        for sums in sums.iter().filter(|sums| sums.has(place)) {
            sums.add_to(place, grad);
        }
    }
}

/// Place of a matrix in its block, gradient of its result, its input, the input's width.
pub(super) type Product<'a, T> = (usize, &'a [T], &'a [T], usize);

/// `dW += gᵀ x` of products of a block, in tiles of output rows.
pub(super) fn add_products<T: Element>(
    products: &[Product<'_, T>],
    own: &mut [Option<&mut [T]>],
) -> Result<()> {
    const TILE: usize = 256;
    let mut jobs = Vec::new();
    for (place, grad) in own.iter_mut().enumerate() {
        let product = products.iter().find(|(of, ..)| *of == place);
        let (Some(grad), Some(&(_, g, x, inputs))) = (grad, product) else { continue };
        for (tile, out) in grad.chunks_mut(TILE * inputs).enumerate() {
            jobs.push((tile, out, g, x, inputs));
        }
    }
    jobs.into_par_iter().try_for_each(|(tile, out, g, x, inputs)| {
        let rows = x.len() / inputs;
        let (width, outputs) = (out.len() / inputs, g.len() / rows.max(1));
        let g = g.get(tile * TILE..).unwrap_or_default();
        let g = Matrix::strided(g, rows, width, outputs).transposed();
        let to = Target { out, row_stride: inputs, accumulate: true, scale: T::of(1.0) };
        matmul_serial(to, g, Matrix::new(x, rows, inputs))
    })
}
