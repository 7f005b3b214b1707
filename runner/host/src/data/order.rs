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
}

/// Positions `0..rows` in the order of that epoch; in file order unless `shuffle`.
pub fn epoch_order(rows: usize, shuffle: bool, epoch: EpochKey) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if shuffle {
        let parts = [epoch.seed, epoch.stage, epoch.task, epoch.epoch];
        Random::new(key(Purpose::Order, &parts)).shuffle(&mut order);
    }
    order
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

    const KEY: EpochKey = EpochKey { seed: 7, stage: 1, task: 0, epoch: 3 };

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
        ] {
            assert_ne!(order, epoch_order(100, true, other), "{other:?}");
        }
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
