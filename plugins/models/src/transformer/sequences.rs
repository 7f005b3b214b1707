//! Where the rows of sequences lie: all places of the padded batch, or some of them.
//!
//! Refuses nothing. Invariant: rows of a sequence lie together and in order, and the groups of sequences follow from the
//! lengths alone.

use std::ops::Range;

/// Rows of a group: enough for full speed of a product, few enough that its rows stay in a core's cache.
const GROUP_ROWS: Range<usize> = 64..256;
/// Groups of a batch that is large enough, so that threads have equal shares.
const GROUPS: usize = 8;

/// Rows of sequences.
#[derive(Debug)]
pub(super) struct Sequences {
    /// Number of sequences and their padded length.
    pub(super) shape: (usize, usize),
    /// First row of each sequence, then the number of rows.
    pub(super) starts: Vec<usize>,
    /// Place of each row in the padded batch.
    pub(super) sources: Vec<usize>,
    /// Whether a row is seen by others; empty when all are.
    pub(super) keep: Vec<bool>,
    /// Ranges of sequences.
    pub(super) groups: Vec<Range<usize>>,
}

impl Sequences {
    pub(super) fn new(
        shape: (usize, usize),
        starts: Vec<usize>,
        sources: Vec<usize>,
        keep: Vec<bool>,
    ) -> Self {
        let groups = groups(&starts);
        Self { shape, starts, sources, keep, groups }
    }

    /// The first row of each alone; `None` if one has no row.
    pub(super) fn firsts(&self) -> Option<Self> {
        let starts = &self.starts[..self.shape.0];
        let is_whole = self.starts.windows(2).all(|pair| pair[0] < pair[1]);
        let sources = || starts.iter().map(|&row| self.sources[row]).collect();
        is_whole.then(|| Self::new(self.shape, (0..=self.shape.0).collect(), sources(), Vec::new()))
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.sources.len()
    }

    /// Rows of a sequence.
    pub(super) fn sequence(&self, index: usize) -> Range<usize> {
        self.starts[index]..self.starts[index + 1]
    }

    /// Rows of a group.
    pub(super) fn group_rows(&self, group: &Range<usize>) -> Range<usize> {
        self.starts[group.start]..self.starts[group.end]
    }

    /// Cuts what has `width` elements a row into the groups' parts.
    pub(super) fn split<'a, T>(&self, data: &'a mut [T], width: usize) -> Vec<&'a mut [T]> {
        let rows = self.groups.iter().map(|group| self.group_rows(group).len());
        cut(data, rows.map(|rows| rows * width))
    }

    /// Cuts what has `size` elements a sequence into the groups' parts.
    pub(super) fn split_sequences<'a, T>(
        &self,
        data: &'a mut [T],
        size: usize,
    ) -> Vec<&'a mut [T]> {
        cut(data, self.groups.iter().map(|group| group.len() * size))
    }

    /// Whether others see row `row`.
    pub(super) fn is_kept(&self, row: usize) -> bool {
        self.keep.get(row).copied().unwrap_or(true)
    }
}

fn cut<T>(mut data: &mut [T], sizes: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut parts = Vec::new();
    for size in sizes {
        let (part, rest) = data.split_at_mut(size.min(data.len()));
        parts.push(part);
        data = rest;
    }
    parts
}

fn groups(starts: &[usize]) -> Vec<Range<usize>> {
    let rows = starts.last().copied().unwrap_or(0);
    let enough = (rows / GROUPS).clamp(GROUP_ROWS.start, GROUP_ROWS.end);
    let mut groups = Vec::new();
    let mut first = 0;
    for end in 1..starts.len() {
        if starts[end] - starts[first] >= enough || end + 1 == starts.len() {
            groups.push(first..end);
            first = end;
        }
    }
    groups
}
