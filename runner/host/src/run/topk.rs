//! The largest logits of each row, as log-probabilities, and the logarithm of the mass outside.

use super::arith::to_f64;
use super::ensemble::log_sum_exp;
use super::rows::contiguous;
use crate::plan::TopK;
use crate::tensor::Tensor;

/// Columns (i32), `ln p` (f32) and `ln (1 - sum p)` (f32) of the `k` largest entries of the last axis, largest first,
/// the lower column first of equals; p = softmax(logits / temperature). All sums in f64 over log-probabilities, so a
/// small mass outside keeps its digits; with nothing outside its logarithm is -inf.
///
/// # Errors
/// Logits that cannot be read, fewer than `k` of them, NaN; in words.
pub(crate) fn top_k(logits: &Tensor, plan: TopK) -> Result<[Tensor; 3], String> {
    let logits = contiguous(logits);
    let values = to_f64(&logits).ok_or_else(|| format!("{logits:?} cannot be read"))?;
    let Some((width, rows)) = logits.shape().split_last() else { return Err("no logits".into()) };
    let width = *width as usize;
    if plan.k > width {
        return Err(format!("{width} logits, {} wanted", plan.k));
    }
    let (mut columns, mut kept, mut tails) = (Vec::new(), Vec::new(), Vec::new());
    for row in values.chunks(width) {
        if row.iter().any(|v| v.is_nan()) {
            return Err("a logit is NaN".into());
        }
        let scaled: Vec<f64> = row.iter().map(|v| v / plan.temperature).collect();
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| scaled[*b].total_cmp(&scaled[*a]).then(a.cmp(b)));
        let (top, rest) = order.split_at(plan.k);
        let all = log_sum_exp(scaled.iter().copied());
        columns.extend(top.iter().map(|c| *c as i32));
        kept.extend(top.iter().map(|c| (scaled[*c] - all) as f32));
        tails.push((log_sum_exp(rest.iter().map(|c| scaled[*c])) - all) as f32);
    }
    let mut shape = rows.to_vec();
    let tail = Tensor::from_slice(&tails, &shape);
    shape.push(plan.k as i64);
    Ok([Tensor::from_slice(&columns, &shape), Tensor::from_slice(&kept, &shape), tail])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_tail_are_those_of_the_whole_softmax() {
        let rows = [[1.0f32, 4.0, 2.0, 4.0], [-1e4, 1e4, 0.0, 9990.0]];
        let logits = Tensor::from_slice(rows.as_flattened(), &[2, 4]);
        let [columns, values, tail] = top_k(&logits, TopK { k: 2, temperature: 2.0 }).unwrap();
        assert_eq!(columns.data::<i32>().unwrap(), [1, 3, 1, 3], "the lower column first");
        let p = |row: &[f32; 4], c: usize| {
            let top = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
            let e = |v: f32| ((f64::from(v) - top) / 2.0).exp();
            e(row[c]) / row.iter().map(|v| e(*v)).sum::<f64>()
        };
        let values = values.data::<f32>().unwrap();
        for (i, (row, column)) in [(0, 1), (0, 3), (1, 1), (1, 3)].into_iter().enumerate() {
            assert!((f64::from(values[i]).exp() - p(&rows[row], column)).abs() < 1e-7);
        }
        let tail = tail.data::<f32>().unwrap();
        assert!((f64::from(tail[0]).exp() - p(&rows[0], 0) - p(&rows[0], 2)).abs() < 1e-7);
        assert!((tail[1] + 5000.0).abs() < 0.01, "a mass of e^-5000 keeps its logarithm: {tail:?}");
        let [_, _, none] = top_k(&logits, TopK { k: 4, temperature: 1.0 }).unwrap();
        assert_eq!(none.data::<f32>().unwrap(), [f32::NEG_INFINITY; 2]);
        assert!(top_k(&logits, TopK { k: 5, temperature: 1.0 }).is_err());
        let nan = Tensor::from_slice(&[f32::NAN, 1.0], &[1, 2]);
        assert!(top_k(&nan, TopK { k: 1, temperature: 1.0 }).is_err());
    }
}
