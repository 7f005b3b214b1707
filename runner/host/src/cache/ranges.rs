//! Sets of row numbers as half-open ranges: `[[0, 500], [700, 701]]`.
//!
//! Ranges are ascending, not empty and do not touch.

use serde::{Deserialize, Serialize};

/// A set of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Of rows in any order, doubles among them.
    pub fn new(rows: impl IntoIterator<Item = usize>) -> Self {
        let mut rows: Vec<usize> = rows.into_iter().collect();
        rows.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for row in rows {
            let row = row as u64;
            match ranges.last_mut() {
                Some((_, to)) if row < *to => {}
                Some((_, to)) if row == *to => *to += 1,
                _ => ranges.push((row, row + 1)),
            }
        }
        Self(ranges)
    }

    /// Rows.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| to.saturating_sub(*from)).sum()
    }

    /// Whether a row is among them.
    pub fn contains(&self, row: usize) -> bool {
        let row = row as u64;
        let after = self.0.partition_point(|(from, _)| *from <= row);
        after.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|(_, to)| row < *to)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().flat_map(|(from, to)| *from as usize..*to as usize)
    }
}
