//! Herding: exemplars whose mean follows the mean of their class.
//!
//! Source: Welling 2009; Rebuffi et al. 2017 [1611.07725], algorithm 4.

/// `x / ‖x‖₂`; a row of zeros stays.
pub fn normalize(row: &[f64]) -> Vec<f64> {
    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let by = if norm > 0.0 { norm } else { 1.0 };
    row.iter().map(|x| x / by).collect()
}

/// Mean of rows; empty without rows.
pub fn mean<'r>(rows: impl IntoIterator<Item = &'r Vec<f64>>) -> Vec<f64> {
    let (mut sum, mut count) = (Vec::new(), 0usize);
    for row in rows {
        sum.resize(row.len().max(sum.len()), 0.0);
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
        count += 1;
    }
    sum.iter_mut().for_each(|s| *s /= count.max(1) as f64);
    sum
}

/// Positions of up to `count` rows, best first: the next one is `argmin ‖μ − mean(chosen ∪ {candidate})‖`, the first of
/// equals; `rows` `[N, H]` L2-normalised, μ their normalised mean.
///
/// The first m do not depend on `count`, so a list is shortened by cutting it.
pub fn herding(rows: &[Vec<f64>], count: usize) -> Vec<usize> {
    let goal = normalize(&mean(rows));
    let mut sum = vec![0.0; goal.len()];
    let mut chosen: Vec<usize> = Vec::new();
    let mut taken = vec![false; rows.len()];
    while chosen.len() < count.min(rows.len()) {
        let n = (chosen.len() + 1) as f64;
        let distance = |row: &Vec<f64>| -> f64 {
            row.iter().zip(&sum).zip(&goal).map(|((x, s), g)| (g - (s + x) / n).powi(2)).sum()
        };
        let candidates = (0..rows.len()).filter(|i| !taken[*i]).map(|i| (i, distance(&rows[i])));
        let Some((best, _)) = candidates.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        taken[best] = true;
        sum.iter_mut().zip(&rows[best]).for_each(|(s, x)| *s += x);
        chosen.push(best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    fn rows(n: usize) -> Vec<Vec<f64>> {
        let mut random = Random::new([3, 9]);
        (0..n).map(|_| normalize(&[random.normal() + 1.0, random.normal(), 0.3])).collect()
    }

    #[test]
    fn the_first_exemplars_do_not_depend_on_how_many_are_wanted() {
        let rows = rows(40);
        let all = herding(&rows, 40);
        assert!((1..40).all(|m| herding(&rows, m) == all[..m]));
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn herded_means_are_nearer_than_those_of_the_first_rows() {
        let rows = rows(200);
        let goal = normalize(&mean(&rows));
        let off = |m: Vec<f64>| -> f64 { m.iter().zip(&goal).map(|(a, b)| (a - b).powi(2)).sum() };
        let herded = off(mean(herding(&rows, 10).into_iter().map(|i| &rows[i])));
        assert!(herded < off(mean(&rows[..10])) / 4.0, "{herded}");
    }

    #[test]
    fn nothing_to_choose_from_chooses_nothing() {
        assert!(herding(&[], 3).is_empty());
        assert_eq!(herding(&[vec![0.0, 0.0]], 3), [0]);
    }
}
