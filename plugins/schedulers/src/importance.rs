//! Vectors as long as the student's parameters, which `ewc` and `si` keep over tasks.
//!
//! Held in memory charged to the instance. A state that is loaded before the student was shown waits until it is.

use limbeck_sdk::prelude::*;
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{Vector, VectorSet, from_bytes, to_bytes};
use limbeck_sdk::{abi, vector};

/// `N` vectors; all zero at first.
pub struct Vectors<const N: usize> {
    names: [&'static str; N],
    sets: Vec<VectorSet>,
    /// Loaded, not yet in place.
    waiting: Vec<Vec<f32>>,
}

impl<const N: usize> Vectors<N> {
    pub fn new(names: [&'static str; N]) -> Self {
        Self { names, sets: Vec::new(), waiting: Vec::new() }
    }

    /// Whether anything was ever kept.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.waiting.is_empty()
    }

    /// The lists, in the order of the names; made on first use.
    pub fn lists(
        &mut self,
        context: &Context<'_>,
        like: &[abi::Tensor],
    ) -> Result<[Vec<abi::Tensor>; N]> {
        if self.sets.is_empty() {
            let make = |name: &&str| VectorSet::zeros_like(context, name, like);
            let mut sets = self.names.iter().map(make).collect::<Result<Vec<_>>>()?;
            for (set, values) in sets.iter_mut().zip(&self.waiting) {
                set.set(context, values)?;
            }
            self.waiting.clear();
            self.sets = sets;
        }
        let mut lists = std::array::from_fn(|_| Vec::new());
        for (list, set) in lists.iter_mut().zip(&self.sets) {
            *list = set.list();
        }
        match lists.iter().all(|list: &Vec<_>| list.len() == like.len()) {
            true => Ok(lists),
            false => Err(Error::invalid_argument("the student has other parameters than before")),
        }
    }

    /// Frees everything.
    pub fn clear(&mut self) {
        self.sets.clear();
        self.waiting.clear();
    }

    pub fn save(&self, context: &Context<'_>, state: &mut StateWriter<'_>) -> Result<()> {
        let values = match self.sets.is_empty() {
            true => self.waiting.clone(),
            false => self.sets.iter().map(|set| set.to_vec(context)).collect::<Result<_>>()?,
        };
        state.u64(values.len() as u64)?;
        values.iter().try_for_each(|v| state.bytes(&to_bytes(v)))
    }

    pub fn load(&mut self, state: &mut StateReader<'_>) -> Result<()> {
        let count = state.u64()?;
        if count != 0 && count != N as u64 {
            return Err(Error::bad_data(format!("{count} vectors in the state, expected {N}")));
        }
        self.clear();
        for _ in 0..count {
            self.waiting.push(from_bytes(&state.bytes()?)?);
        }
        Ok(())
    }
}

/// Parameters with a gradient, and their gradients, in one order.
pub fn with_grads(event: &Event<'_>) -> Result<(Vec<abi::Tensor>, Vec<abi::Tensor>)> {
    let grads =
        event.grads().ok_or_else(|| Error::invalid_argument("the event shows no gradients"))?;
    let params = event.params();
    if params.len() != grads.len() {
        let message = format!("{} gradients for {} parameters", grads.len(), params.len());
        return Err(Error::invalid_argument(message));
    }
    let pairs = params.iter().zip(grads).filter(|(p, _)| vector::is_owned_trainable(p));
    let (params, grads): (Vec<_>, Vec<_>) = pairs.map(|(p, g)| (p.value, *g)).unzip();
    match grads.iter().all(|g| g.flags & abi::TENSOR_ABSENT == 0) {
        true => Ok((params, grads)),
        false => Err(Error::invalid_argument("a trainable parameter without gradient")),
    }
}

/// `to += scale · weight ∘ (at − centre)`: the gradient of a quadratic penalty, in three vector calls.
pub fn add_pull(
    vector: &Vector<'_>,
    scratch: &VectorSet,
    scale: f64,
    weight: &[abi::Tensor],
    at: &[abi::Tensor],
    centre: &[abi::Tensor],
    to: &[abi::Tensor],
) -> Result<()> {
    let away = scratch.list();
    vector.axpby(1.0, at, 0.0, &away)?;
    vector.axpby(-1.0, centre, 1.0, &away)?;
    vector.mul(scale, weight, &away, 1.0, to)
}
