//! Over which classes a row is trained and judged, in streams whose tasks have their own classes.
//!
//! Each class belongs to one task, so a row's label tells its task, whether it is fresh or replayed. A row without label
//! is over all classes.

use super::arith::to_i64;
use crate::plan::TrainClasses;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Makes the batch column `row_classes`.
#[derive(Clone, Debug)]
pub(crate) struct RowClasses {
    mode: TrainClasses,
    /// Columns of each task, 1 = its class.
    tasks: Vec<Vec<u8>>,
    /// Task of each class.
    task_of: BTreeMap<i64, usize>,
    /// Columns of the tasks so far.
    seen: Vec<u8>,
}

impl RowClasses {
    /// `tasks`: the classes of each declared task; `width`: columns of the student's logits.
    pub fn new(mode: TrainClasses, tasks: &[Vec<i64>], width: usize) -> Self {
        let columns = |classes: &Vec<i64>| {
            let mut row = vec![0u8; width];
            for class in classes {
                if let Some(column) = usize::try_from(*class).ok().and_then(|c| row.get_mut(c)) {
                    *column = 1;
                }
            }
            row
        };
        let of = |(task, classes): (usize, &Vec<i64>)| {
            classes.iter().map(|class| (*class, task)).collect::<Vec<_>>()
        };
        Self {
            mode,
            tasks: tasks.iter().map(columns).collect(),
            task_of: tasks.iter().enumerate().flat_map(of).collect(),
            seen: vec![0; width],
        }
    }

    /// These tasks were trained or are being trained.
    pub fn see(&mut self, tasks: impl IntoIterator<Item = usize>) {
        for task in tasks {
            for (seen, own) in self.seen.iter_mut().zip(self.tasks.get(task).into_iter().flatten())
            {
                *seen |= own;
            }
        }
    }

    /// `[N, V]` u8 for rows with these labels; 0: the column leaves the softmax of that row.
    pub fn mask(&self, labels: &Tensor) -> Option<Tensor> {
        let labels = to_i64(labels)?;
        let width = self.seen.len();
        let all = vec![1u8; width];
        let mut mask = Vec::with_capacity(labels.len() * width);
        for label in &labels {
            let task = self.task_of.get(label).and_then(|task| self.tasks.get(*task));
            mask.extend_from_slice(match (self.mode, task) {
                (TrainClasses::Task, Some(own)) => own,
                (TrainClasses::Seen, Some(_)) => &self.seen,
                _ => &all,
            });
        }
        Some(Tensor::from_slice(&mask, &[labels.len() as i64, width as i64]))
    }
}

/// Scores of one row with the classes of other tasks out of reach.
pub(crate) fn within(scores: &[f64], width: usize, classes: &[i64]) -> Vec<f64> {
    let kept = |column: usize| classes.contains(&(column as i64));
    let limited =
        |(i, z): (usize, &f64)| if kept(i % width.max(1)) { *z } else { f64::NEG_INFINITY };
    scores.iter().enumerate().map(limited).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_row_is_over_the_classes_of_its_own_task_whatever_it_joins() {
        let tasks = [vec![0, 1], vec![2, 3]];
        let labels = Tensor::from_slice(&[3i64, 0, -100], &[3]);
        let own = RowClasses::new(TrainClasses::Task, &tasks, 5);
        let mask = own.mask(&labels).unwrap();
        assert_eq!((mask.dtype(), mask.shape()), (DType::U8, &[3i64, 5][..]));
        let expected = [0u8, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1];
        assert_eq!(mask.data::<u8>().unwrap(), expected);
        let mut seen = RowClasses::new(TrainClasses::Seen, &tasks, 5);
        seen.see([0]);
        assert_eq!(&seen.mask(&labels).unwrap().data::<u8>().unwrap()[..5], [1, 1, 0, 0, 0]);
        seen.see([1]);
        assert_eq!(&seen.mask(&labels).unwrap().data::<u8>().unwrap()[..5], [1, 1, 1, 1, 0]);
    }

    #[test]
    fn within_a_task_the_best_of_its_own_classes_wins() {
        let scores = within(&[9.0, 1.0, 2.0, 0.0, 5.0, 4.0], 3, &[1, 2]);
        assert_eq!(super::super::scores::argmax(&scores[..3]), Some(2));
        assert_eq!(super::super::scores::argmax(&scores[3..]), Some(1));
    }
}
