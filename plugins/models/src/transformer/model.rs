//! An encoder with its tensors: passes between candle's tensors and the slices of `pass.rs`, or those of `graph.rs` on
//! another device than the CPU.
//!
//! Refuses, on the CPU, tensors that are not of f32 or f64, elsewhere checkpointing. Invariant: on the CPU a batch of which
//! only outputs of whole sequences are wanted is computed without its padding.

use std::sync::Arc;

use candle_core::{DType, Device, Storage, Tensor, bail};

use super::batch::{Batch, Given, shape_error};
use super::config::{Encoder, Head};
use super::graph::{Graph, Tokens};
use super::outputs::Wanted;
use super::pass::{ParamGrads, Pass, Record, Weights};
use super::spares::Spares;
use crate::architecture::{Grads, Inputs, Mode, Model, Recorded, Tape};
use crate::error::{ModelError, setting};
use crate::layers::element::{Element, elements, with_elements};
use crate::params::Params;

/// An encoder with its tensors.
pub(super) struct Transformer(Arc<Inner>);

struct Inner {
    encoder: Encoder,
    names: Vec<String>,
    tensors: Vec<Tensor>,
    spares: Spares,
}

impl Transformer {
    pub(super) fn new(encoder: Encoder, params: &Params) -> Result<Self, ModelError> {
        let specs = super::names::specs(&encoder);
        let tensors = specs.iter().map(|spec| params.get(&spec.name, &spec.shape));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let names = specs.into_iter().map(|spec| spec.name).collect();
        if encoder.checkpointing && !tensors.iter().all(|tensor| tensor.device().is_cpu()) {
            return Err(setting("checkpointing", "is there on the CPU alone; leave it out"));
        }
        Ok(Self(Arc::new(Inner { encoder, names, tensors, spares: Spares::default() })))
    }
}

/// The inputs of a pass.
struct Bound {
    wanted: Vec<Wanted>,
    batch: Batch,
    embeds: Option<Tensor>,
    key: Option<[u64; 2]>,
}

impl Inner {
    fn dtype(&self) -> DType {
        self.tensors.first().map_or(DType::F32, Tensor::dtype)
    }

    /// Whether the passes of `pass.rs` serve it.
    fn is_on_cpu(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.device().is_cpu())
    }

    fn wanted(&self, names: &[&str]) -> Result<Vec<Wanted>, ModelError> {
        let parse = |name: &&str| {
            Wanted::parse(name, &self.encoder)
                .ok_or_else(|| ModelError::UnknownOutput((*name).to_owned()))
        };
        names.iter().map(parse).collect()
    }

    /// `inputs_embeds` for sequences of this shape.
    fn embeds(
        &self,
        inputs: &Inputs<'_>,
        (rows, width): (usize, usize),
    ) -> Result<Option<Tensor>, ModelError> {
        let Some(embeds) = inputs.optional("inputs_embeds") else { return Ok(None) };
        if embeds.dims() != [rows, width, self.encoder.dim] {
            let wanted = format!("{rows},{width},{}", self.encoder.dim);
            return Err(shape_error("inputs_embeds", embeds, &wanted));
        }
        Ok(Some(embeds.to_dtype(self.dtype())?.contiguous()?))
    }

    fn bind(&self, inputs: &Inputs<'_>, wanted: &[&str], mode: Mode) -> Result<Bound, ModelError> {
        let wanted = self.wanted(wanted)?;
        let is_packed = !wanted.iter().any(|wanted| wanted.is_padded(&self.encoder));
        let batch = Batch::new(&self.encoder, inputs, is_packed)?;
        let embeds = self.embeds(inputs, batch.sequences.shape)?;
        Ok(Bound { wanted, batch, embeds, key: mode.key() })
    }

    /// The outputs by way of candle's graph.
    fn graph(
        &self,
        inputs: &Inputs<'_>,
        names: &[&str],
        mode: Mode,
    ) -> Result<Vec<Tensor>, ModelError> {
        let wanted = self.wanted(names)?;
        let given = Given::new(&self.encoder, inputs)?;
        let embeds = self.embeds(inputs, given.shape)?;
        let tokens = Tokens::new(&given)?;
        let graph = Graph {
            encoder: &self.encoder,
            weights: Weights::new(&self.encoder, self.tensors.iter().collect()),
            tokens: &tokens,
            embeds: embeds.as_ref(),
            key: mode.key(),
        };
        pick(&wanted, &graph.forward(&wanted)?)
    }

    /// Calls `f` with a pass over the weights as they are now.
    fn with_pass<T: Element, R>(
        &self,
        batch: &Batch,
        key: Option<[u64; 2]>,
        f: impl FnOnce(Pass<'_, T>) -> candle_core::Result<R>,
    ) -> candle_core::Result<R> {
        let guards: Vec<_> = self.tensors.iter().map(Tensor::storage_and_layout).collect();
        let mut all = Vec::with_capacity(guards.len());
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cpu(storage) => all.push(elements::<T>(storage, layout)?),
                _ => bail!("a transformer's parameter is not in host memory"),
            }
        }
        let weights = Weights::new(&self.encoder, all);
        f(Pass { encoder: &self.encoder, weights, batch, key, spares: &self.spares })
    }

    fn run<T: Element>(
        &self,
        bound: &Bound,
        record: bool,
    ) -> Result<(Vec<Tensor>, Option<Record<T>>), ModelError> {
        let forward = |embeds: Option<&[T]>| {
            self.with_pass(&bound.batch, bound.key, |pass| {
                pass.forward(&bound.wanted, embeds, record)
            })
        };
        let (found, record) = match &bound.embeds {
            Some(embeds) => with_elements(embeds, |embeds| forward(Some(embeds)))?,
            None => forward(None)?,
        };
        let mut tensors: Vec<(Wanted, Tensor)> = Vec::with_capacity(found.len());
        for (wanted, values) in found {
            let shape = self.shape(wanted, bound.batch.sequences.shape);
            tensors.push((wanted, Tensor::from_vec(values, shape, &Device::Cpu)?));
        }
        Ok((pick(&bound.wanted, &tensors)?, record))
    }

    fn shape(&self, wanted: Wanted, (batch, width): (usize, usize)) -> Vec<usize> {
        let encoder = &self.encoder;
        match wanted {
            Wanted::Logits => match encoder.head {
                Head::Classification { classes } => vec![batch, classes],
                Head::Tokens { classes } => vec![batch, width, classes],
                _ => vec![batch, width, encoder.vocab_size],
            },
            Wanted::Features => vec![batch, encoder.dim],
            Wanted::WordEmbeddings | Wanted::Hidden(_) => vec![batch, width, encoder.dim],
            Wanted::Attention(_) => vec![batch, encoder.heads, width, width],
            Wanted::Projection(..) => vec![batch, encoder.heads, width, encoder.head_dim()],
        }
    }
}

/// The wanted ones of what was computed, in their order.
fn pick(wanted: &[Wanted], found: &[(Wanted, Tensor)]) -> Result<Vec<Tensor>, ModelError> {
    let find = |wanted: &Wanted| {
        let tensor = found.iter().find(|(w, _)| w == wanted).map(|(_, tensor)| tensor.clone());
        tensor.ok_or_else(|| ModelError::Config(format!("the pass did not compute {wanted:?}")))
    };
    wanted.iter().map(find).collect()
}

impl Model for Transformer {
    fn forward(
        &self,
        inputs: &Inputs<'_>,
        wanted: &[&str],
        mode: Mode,
    ) -> Result<Vec<Tensor>, ModelError> {
        if !self.0.is_on_cpu() {
            return self.0.graph(inputs, wanted, mode);
        }
        let bound = self.0.bind(inputs, wanted, mode)?;
        match self.0.dtype() {
            DType::F32 => Ok(self.0.run::<f32>(&bound, false)?.0),
            _ => Ok(self.0.run::<f64>(&bound, false)?.0),
        }
    }

    fn record(
        &self,
        inputs: &Inputs<'_>,
        wanted: &[&str],
        mode: Mode,
    ) -> Result<Option<Recorded>, ModelError> {
        if !self.0.is_on_cpu() {
            return Ok(None);
        }
        let bound = self.0.bind(inputs, wanted, mode)?;
        let (outputs, record) = self.0.run::<f32>(&bound, true)?;
        let Some(record) = record else { return Ok(None) };
        let tape = Box::new(Taped { inner: Arc::clone(&self.0), bound, record });
        Ok(Some(Recorded { outputs, tape }))
    }
}

struct Taped {
    inner: Arc<Inner>,
    bound: Bound,
    record: Record<f32>,
}

impl Tape for Taped {
    fn backward(
        self: Box<Self>,
        cotangents: &[(usize, Tensor)],
        mut grads: Grads<'_, f32>,
    ) -> Result<(), ModelError> {
        let Self { inner, bound, record } = *self;
        let mut given = Vec::with_capacity(cotangents.len());
        for (place, cotangent) in cotangents {
            let Some(&wanted) = bound.wanted.get(*place) else { continue };
            if cotangent.dims() != inner.shape(wanted, bound.batch.sequences.shape) {
                return Err(shape_error("cotangent", cotangent, "the shape of its output"));
            }
            given.push((wanted, cotangent.flatten_all()?.to_vec1::<f32>()?));
        }
        let given: Vec<_> = given.iter().map(|(w, values)| (*w, values.as_slice())).collect();
        let mut own: ParamGrads<'_, f32> = Vec::with_capacity(inner.names.len());
        for (name, tensor) in inner.names.iter().zip(&inner.tensors) {
            let grad = grads.take(name);
            if let Some(grad) = &grad
                && grad.len() != tensor.elem_count()
            {
                let problem = format!("gradient of `{name}` has {} elements", grad.len());
                return Err(ModelError::Config(problem));
            }
            own.push(grad);
        }
        let embeds = grads.take("inputs_embeds").filter(|_| bound.embeds.is_some());
        grads.clear();
        Ok(inner.with_pass::<f32, _>(&bound.batch, bound.key, |pass| {
            pass.backward(record, &given, own, embeds)
        })?)
    }
}
