//! A student's initial weights from an encoder of another family or depth: embeddings, some of its blocks, and the head
//! where it is the same.
//!
//! Refuses other widths, unknown blocks and positions that are counted in another way. Invariant: what has no
//! counterpart keeps its fresh values, and with all blocks and equal heads the student computes what the source does.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::config::{Encoder, Family};
use super::names::Place;
use crate::error::{ModelError, setting};
use crate::params::Params;

/// Which block of a source of `theirs` blocks each of `ours` starts from when nothing is said: spread evenly, the first
/// one included.
pub fn spread(ours: usize, theirs: usize) -> Vec<usize> {
    (0..ours).map(|layer| layer * theirs / ours.max(1)).collect()
}

impl Encoder {
    /// Checks that this encoder can start from `source` with these blocks.
    ///
    /// # Errors
    /// [`ModelError::Setting`] for the first difference.
    pub fn check_source(&self, source: &Self, layers: &[usize]) -> Result<(), ModelError> {
        let equal = [
            ("dim", self.dim, source.dim),
            ("hidden_dim", self.hidden_dim, source.hidden_dim),
            ("heads", self.heads, source.heads),
            ("vocab_size", self.vocab_size, source.vocab_size),
        ];
        for (name, ours, theirs) in equal {
            if ours != theirs {
                return Err(setting(name, format!("is {ours}, the source of `init` has {theirs}")));
            }
        }
        if self.max_positions > source.max_positions {
            let (ours, theirs) = (self.max_positions, source.max_positions);
            let problem = format!("is {ours}, the source of `init` has {theirs}");
            return Err(setting("max_positions", problem));
        }
        if (self.family == Family::Roberta) != (source.family == Family::Roberta) {
            let problem = "holds positions that are counted in another way than this student's";
            return Err(setting("init", problem));
        }
        if layers.len() != self.layers {
            let problem = format!("lists {} blocks for {} layers", layers.len(), self.layers);
            return Err(setting("init", problem));
        }
        match layers.iter().find(|&&layer| layer >= source.layers) {
            Some(layer) => {
                let last = source.layers - 1;
                Err(setting("init", format!("lists block {layer}, the source has 0 to {last}")))
            }
            None => Ok(()),
        }
    }

    /// The parameters of this encoder that have a counterpart in `source`, whose parameters are `read`.
    ///
    /// An encoder without token types gets those of type 0 in its position embeddings; one with types from a source
    /// without them starts with types of 0.
    ///
    /// # Errors
    /// As [`Encoder::check_source`]; candle's.
    pub fn start_from(
        &self,
        source: &Self,
        read: &Params,
        layers: &[usize],
    ) -> Result<Params, ModelError> {
        self.check_source(source, layers)?;
        let theirs: BTreeMap<Place, _> = source.places().into_iter().collect();
        let find = |place: Place| -> Result<Option<Tensor>, ModelError> {
            let Some(spec) = theirs.get(&place) else { return Ok(None) };
            read.get(&spec.name, &spec.shape).map(Some)
        };
        let is_same_head = self.family == source.family
            && std::mem::discriminant(&self.head) == std::mem::discriminant(&source.head);
        let mut params = Params::default();
        for (place, spec) in self.places() {
            let found = match place {
                Place::Block(layer, part) => find(Place::Block(layers[layer], part))?,
                Place::Head(_) if !is_same_head => None,
                other => find(other)?,
            };
            let found = match (place, found) {
                (Place::Position, Some(table)) => {
                    let table = table.narrow(0, 0, self.max_positions)?;
                    match find(Place::Type)? {
                        Some(types) if self.token_types == 0 => {
                            Some(table.broadcast_add(&types.narrow(0, 0, 1)?)?)
                        }
                        _ => Some(table),
                    }
                }
                (Place::Type, None) => Some(Tensor::zeros(
                    spec.shape.as_slice(),
                    candle_core::DType::F32,
                    &candle_core::Device::Cpu,
                )?),
                (_, found) => found.filter(|tensor| tensor.dims() == spec.shape),
            };
            if let Some(tensor) = found {
                params.insert(spec.name, tensor.contiguous()?);
            }
        }
        Ok(params)
    }
}
