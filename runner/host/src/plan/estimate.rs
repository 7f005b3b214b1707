//! Optimizer steps of a stage, counted before it runs.
//!
//! One place for the arithmetic, so that `plan`, the learning-rate curve and the run agree. Rows that a scheduler adds
//! to a task (UNION) are known only to the run, which counts with its own number of rows.

use super::{Length, TrainPlan};

/// Micro-batches of one epoch: the last, shorter one counts.
pub fn micro_batches(rows: u64, batch_size: usize) -> u64 {
    rows.div_ceil(batch_size.max(1) as u64)
}

/// Optimizer steps of one epoch. No step reaches over the end of an epoch: its last step takes what is left.
pub fn steps_per_epoch(rows: u64, batch_size: usize, accumulate: usize) -> u64 {
    micro_batches(rows, batch_size).div_ceil(accumulate.max(1) as u64)
}

/// Optimizer steps of one task over so many rows.
pub fn task_steps(train: &TrainPlan, rows: u64) -> u64 {
    match train.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => {
            epochs.saturating_mul(steps_per_epoch(rows, train.batch_size, train.accumulate))
        }
    }
}

/// Optimizer steps of each task; `rows` gives the rows of a dataset by id. `None` where it does not know.
pub fn steps(train: &TrainPlan, rows: impl Fn(&str) -> Option<u64>) -> Vec<Option<u64>> {
    train
        .tasks
        .iter()
        .map(|task| match train.length {
            Length::Steps(steps) => Some(steps),
            Length::Epochs(_) => rows(&task.train).map(|rows| task_steps(train, rows)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_last_batch_is_a_step() {
        assert_eq!(steps_per_epoch(1437, 32, 1), 45);
        assert_eq!(steps_per_epoch(1440, 32, 1), 45);
        assert_eq!(steps_per_epoch(1441, 32, 1), 46);
        assert_eq!(steps_per_epoch(0, 32, 1), 0);
    }

    #[test]
    fn an_accumulated_step_ends_with_the_epoch() {
        assert_eq!(micro_batches(100, 8), 13);
        assert_eq!(steps_per_epoch(100, 8, 4), 4);
        assert_eq!(steps_per_epoch(100, 8, 13), 1);
        assert_eq!(steps_per_epoch(100, 8, 50), 1);
    }
}
