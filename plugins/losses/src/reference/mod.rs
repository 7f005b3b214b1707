//! The f64 oracle: every loss of the catalogue, value and gradient, written for reading.
//!
//! Shares no arithmetic with the fast path in `cpu/`; tests hold the two against each other, and this one
//! against golden numbers and central differences. It also *is* the path of the losses that have no fast one.
//! Invariant: a row that does not count is never read, so NaN in it reaches nothing.

mod align;
mod attention;
mod contrast;
mod dense;
mod dist;
mod divergence;
mod hidden;
mod items;
mod linear;
mod maps;
mod matrix;
mod relation;
mod softmax;
mod sparse;
#[cfg(test)]
mod tests;

use crate::settings::Spec;
use std::collections::BTreeMap;

pub(crate) use items::Rows;
pub(crate) use sparse::{SparseRow, teacher as sparse_teacher};

/// A tensor in row-major order; integers (labels, masks, indices) are held exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Entries, row-major.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of zeros with the shape of `other`.
    pub fn zeros_like(other: &Self) -> Self {
        Self { shape: other.shape.clone(), data: vec![0.0; other.data.len()] }
    }

    /// Size of axis `axis`, 1 beyond the last.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape.get(axis).copied().unwrap_or(1)
    }

    /// Entries of one index of the first axis.
    pub fn stride(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Index `n` of the first axis.
    pub fn row(&self, n: usize) -> &[f64] {
        let width = self.stride();
        &self.data[n * width..(n + 1) * width]
    }

    /// Index `n` of the first axis, writable.
    pub fn row_mut(&mut self, n: usize) -> &mut [f64] {
        let width = self.stride();
        &mut self.data[n * width..(n + 1) * width]
    }
}

/// Inputs by port name; an unbound port is absent.
pub type Inputs = BTreeMap<String, Array>;

/// Why a call cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Shapes or bound ports do not agree (`LMB_INVALID_ARGUMENT`).
    Shape(String),
    /// The data is malformed (`LMB_BAD_DATA`).
    Data(String),
}

/// What a call computed. Gradients are of the value: not scaled by a term's weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Σ w ℓ / normalizer.
    pub value: f64,
    /// By differentiable port (loss parameters among them).
    pub grads: BTreeMap<String, Array>,
    /// Counted rows with no live logit on a side.
    pub dead_rows: f64,
    /// Counted rows whose loss is not finite.
    pub nonfinite_rows: f64,
}

/// Computes a loss.
///
/// # Errors
/// [`Refusal`]: shapes that do not agree, a required port that is not bound, labels out of range.
pub fn evaluate(spec: &Spec, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    match spec {
        Spec::Dense(dense) => dense::evaluate(dense, inputs, normalizer),
        Spec::CrossEntropy(ce) => dense::cross_entropy(ce, inputs, normalizer),
        Spec::Bce(bce) => dense::binary(bce, inputs, normalizer),
        Spec::Linear(linear) => linear::evaluate(linear, inputs, normalizer),
        Spec::Sparse(sparse) => sparse::evaluate(sparse, inputs, normalizer),
        Spec::Dist(dist) => dist::evaluate(dist, inputs, normalizer),
        Spec::Hidden(hidden) => hidden::evaluate(hidden, inputs, normalizer),
        Spec::Attention(attention) => attention::evaluate(attention, inputs, normalizer),
        Spec::Map(map) => maps::evaluate(*map, inputs, normalizer),
        Spec::Batch(batch) => match batch {
            crate::settings::Batch::Mmd { .. } | crate::settings::Batch::Coral => {
                align::evaluate(batch, inputs, normalizer)
            }
            _ => relation::evaluate(batch, inputs, normalizer),
        },
    }
}

/// The input bound to `name`.
pub(crate) fn required<'a>(inputs: &'a Inputs, name: &str) -> Result<&'a Array, Refusal> {
    inputs.get(name).ok_or_else(|| Refusal::Shape(format!("port `{name}` is not bound")))
}

/// Refuses arrays whose `axis` differs.
pub(crate) fn same_dim(axis: usize, a: (&str, &Array), b: (&str, &Array)) -> Result<(), Refusal> {
    if a.1.dim(axis) == b.1.dim(axis) {
        return Ok(());
    }
    Err(Refusal::Shape(format!(
        "`{}` and `{}` differ on axis {axis}: {:?} and {:?}",
        a.0, b.0, a.1.shape, b.1.shape
    )))
}
