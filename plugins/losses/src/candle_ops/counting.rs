//! Which rows of a call count, how much, and what their sum is divided by.

use candle_core::{Result, bail};

/// Labels, weights and normalizer; all rows count 1 without them.
#[derive(Clone, Debug, Default)]
pub struct Counting {
    pub labels: Option<Vec<i64>>,
    pub weights: Option<Vec<f64>>,
    pub normalizer: Option<f64>,
}

impl Counting {
    /// Refuses labels and weights of another number of rows.
    pub fn check(&self, rows: usize) -> Result<()> {
        let lengths = [self.labels.as_ref().map(Vec::len), self.weights.as_ref().map(Vec::len)];
        if let Some(found) = lengths.into_iter().flatten().find(|found| *found != rows) {
            bail!("{found} labels or weights for {rows} rows");
        }
        Ok(())
    }

    /// w of row `n`; `None`: it does not count.
    pub fn weight(&self, n: usize) -> Option<f64> {
        let ignored = self.labels.as_ref().is_some_and(|labels| labels[n] == -100);
        (!ignored).then(|| self.weights.as_ref().map_or(1.0, |weights| weights[n]))
    }

    /// The normalizer of so many rows: those that count unless it was given.
    pub fn divisor(&self, rows: usize) -> f64 {
        let count = || (0..rows).filter(|n| self.weight(*n).is_some()).count().max(1) as f64;
        self.normalizer.unwrap_or_else(count)
    }
}

/// Builders of a loss with a field `counting`.
macro_rules! counts {
    ($loss:ty) => {
        impl $loss {
            /// Rows with label −100 do not count; others are not looked at.
            #[must_use]
            pub fn labels(mut self, labels: Vec<i64>) -> Self {
                self.counting.labels = Some(labels);
                self
            }

            /// A weight for each row.
            #[must_use]
            pub fn weights(mut self, weights: Vec<f64>) -> Self {
                self.counting.weights = Some(weights);
                self
            }

            /// What the sum over rows is divided by; the counted rows unless given.
            #[must_use]
            pub fn normalizer(mut self, normalizer: f64) -> Self {
                self.counting.normalizer = Some(normalizer);
                self
            }
        }
    };
}
pub(super) use counts;
