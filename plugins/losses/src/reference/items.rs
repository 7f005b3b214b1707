//! Which items of a call count, and with which weight.
//!
//! Refuses masks and weights whose length is not the number of items. An item does not count if its label
//! is −100 or its mask is 0.

use super::{Array, Inputs, Refusal};

/// The label that takes a row out.
const IGNORE: f64 = -100.0;

/// Counting and weights of the first axis.
pub struct Rows<'a> {
    num: usize,
    labels: Option<&'a Array>,
    mask: Option<&'a Array>,
    weights: Option<&'a Array>,
}

impl<'a> Rows<'a> {
    /// Reads `labels`, `row_mask` and `row_weights` for `num` items.
    pub fn new(inputs: &'a Inputs, num: usize) -> Result<Self, Refusal> {
        let bound = |name: &str| match inputs.get(name) {
            Some(array) if array.data.len() != num => Err(Refusal::Shape(format!(
                "`{name}` has {} entries, the other inputs have {num} rows",
                array.data.len()
            ))),
            found => Ok(found),
        };
        let (labels, mask) = (bound("labels")?, bound("row_mask")?);
        Ok(Self { num, labels, mask, weights: bound("row_weights")? })
    }

    /// Refuses weights: a batch-coupled loss has no weight per row.
    pub fn refuse_weights(&self) -> Result<(), Refusal> {
        match self.weights {
            Some(_) => {
                Err(Refusal::Shape("`row_weights` cannot be bound to a batch-coupled loss".into()))
            }
            None => Ok(()),
        }
    }

    /// Whether item `n` counts.
    pub fn counts(&self, n: usize) -> bool {
        let labelled = self.labels.is_none_or(|labels| labels.data[n] != IGNORE);
        labelled && self.mask.is_none_or(|mask| mask.data[n] != 0.0)
    }

    /// Counted items, in order.
    pub fn counted(&self) -> Vec<usize> {
        (0..self.num).filter(|&n| self.counts(n)).collect()
    }

    /// w of item `n`.
    pub fn weight(&self, n: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights.data[n])
    }

    /// The class of counted row `n`, below `num_classes`.
    pub fn label(&self, n: usize, num_classes: usize) -> Result<Option<usize>, Refusal> {
        let Some(labels) = self.labels else { return Ok(None) };
        let label = labels.data[n];
        if label >= 0.0 && label < num_classes as f64 {
            return Ok(Some(label as usize));
        }
        Err(Refusal::Data(format!("row {n}: label {label} is outside 0..{num_classes}")))
    }
}
