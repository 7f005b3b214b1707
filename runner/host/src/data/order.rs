//! The order of rows in an epoch.
//!
//! A function of seed, stage, task and epoch alone: nothing has to be saved, and any epoch can be had at once.

use crate::run::random::{Purpose, Random, key};

/// Which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochKey {
    /// Seed of the run.
    pub seed: u64,
    /// Stage, 0-based.
    pub stage: u64,
    /// Task of the stage, 0-based.
    pub task: u64,
    /// Pass over the task's rows, 0-based.
    pub epoch: u64,
    /// 0: the task's own training; else 1 + the number of the pass that a scheduler asked for.
    pub pass: u64,
}

/// Positions `0..rows` in the order of that epoch; in file order unless `shuffle`.
pub fn epoch_order(rows: usize, shuffle: bool, epoch: EpochKey) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if shuffle {
        let parts = [epoch.seed, epoch.stage, epoch.task, epoch.epoch, epoch.pass];
        Random::new(key(Purpose::Order, &parts)).shuffle(&mut order);
    }
    order
}

/// Puts rows of like length into one batch, to pad less: the order is cut into windows of `window` batches, each is
/// sorted by length (longest first, equal ones in order) and its batches are put in a new order. A short last batch
/// stays last. A function of its arguments; rows stay in their window, so an order of shuffled rows stays mixed.
pub fn bucketed(
    order: Vec<usize>,
    batch: usize,
    window: usize,
    length: impl Fn(usize) -> usize,
    epoch: EpochKey,
) -> Vec<usize> {
    let batch = batch.max(1);
    let mut out = Vec::with_capacity(order.len());
    for (n, rows) in order.chunks(batch.saturating_mul(window.max(1))).enumerate() {
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(length(*row)));
        let mut batches: Vec<&[usize]> = rows.chunks(batch).collect();
        let short = batches.pop_if(|last| last.len() < batch);
        let parts = [epoch.seed, epoch.stage, epoch.task, epoch.epoch, epoch.pass, n as u64];
        Random::new(key(Purpose::Bucket, &parts)).shuffle(&mut batches);
        out.extend(batches.into_iter().chain(short).flatten());
    }
    out
}

/// Batches of an epoch; the last may be short. 0 for `batch` = 0.
pub fn batches_per_epoch(rows: usize, batch: usize) -> usize {
    if batch == 0 { 0 } else { rows.div_ceil(batch) }
}

/// Positions of one batch of an order; empty past the end.
pub fn batch_of(order: &[usize], batch: usize, index: usize) -> &[usize] {
    let from = index.saturating_mul(batch).min(order.len());
    let to = from.saturating_add(batch).min(order.len());
    order.get(from..to).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: EpochKey = EpochKey { seed: 7, stage: 1, task: 0, epoch: 3, pass: 0 };

    #[test]
    fn an_epoch_is_a_permutation_and_always_the_same() {
        let order = epoch_order(1000, true, KEY);
        assert_eq!(order, epoch_order(1000, true, KEY));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, epoch_order(1000, false, KEY));
        assert_ne!(order, sorted);
    }

    #[test]
    fn seed_stage_task_and_epoch_each_change_it() {
        let order = epoch_order(100, true, KEY);
        for other in [
            EpochKey { seed: 8, ..KEY },
            EpochKey { stage: 2, ..KEY },
            EpochKey { task: 1, ..KEY },
            EpochKey { epoch: 4, ..KEY },
            EpochKey { pass: 1, ..KEY },
        ] {
            assert_ne!(order, epoch_order(100, true, other), "{other:?}");
        }
    }

    #[test]
    fn a_bucketed_order_is_a_permutation_that_pads_less_and_stays_mixed() {
        let length = |row: usize| row * 37 % 100;
        let order = epoch_order(1003, true, KEY);
        let bucketed = |key| bucketed(order.clone(), 8, 25, length, key);
        let got = bucketed(KEY);
        assert_eq!(got, bucketed(KEY));
        assert_ne!(got, bucketed(EpochKey { epoch: 4, ..KEY }));
        let mut sorted = got.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1003).collect::<Vec<_>>());
        assert_eq!(got[1000..].len(), 3, "the short batch is the last");
        let padded = |order: &[usize]| {
            let width = |rows: &[usize]| rows.iter().map(|r| length(*r)).max().unwrap_or(0);
            order.chunks(8).map(|rows| width(rows) * rows.len()).sum::<usize>()
        };
        let tokens: usize = (0..1003).map(length).sum();
        let (before, after) = (padded(&order) - tokens, padded(&got) - tokens);
        assert!(after * 8 < before, "{after} padded cells instead of {before}");
        let firsts: Vec<usize> = got.chunks(8).take(25).map(|rows| length(rows[0])).collect();
        assert!(!firsts.is_sorted_by(|a, b| a >= b), "batches of a window are in a new order");
    }

    #[test]
    fn the_last_short_batch_is_kept() {
        let order = epoch_order(10, true, KEY);
        assert_eq!(batches_per_epoch(10, 4), 3);
        let joined: Vec<usize> = (0..3).flat_map(|i| batch_of(&order, 4, i)).copied().collect();
        assert_eq!(joined, order);
        assert_eq!(batch_of(&order, 4, 2).len(), 2);
        assert!(batch_of(&order, 4, 3).is_empty());
    }
}
