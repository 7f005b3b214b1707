//! Distances between two sets of hidden rows: MMD and CORAL, losses.md section 5.
//!
//! The second set is either `teacher.hidden` (constant) or the rows with `domain` 1 of the same student
//! pass (both get gradients); binding both or neither is refused, as are other domain numbers and weights.

use super::matrix::{
    Matrix, add, centre_columns, combine, dot, inner, times, times_transposed, transpose, zeros,
};
use super::{Array, Inputs, Outcome, Refusal, Rows, required, same_dim};
use crate::settings::Batch;

pub fn evaluate(batch: &Batch, inputs: &Inputs, normalizer: f64) -> Result<Outcome, Refusal> {
    let h = required(inputs, "student.hidden")?;
    let rows = Rows::new(inputs, h.dim(0))?;
    rows.refuse_weights()?;
    let counted = rows.counted();
    let (first, second): (Vec<usize>, Option<Vec<usize>>) =
        match (inputs.get("domain"), inputs.get("teacher.hidden")) {
            (Some(domain), None) => {
                same_dim(0, ("student.hidden", h), ("domain", domain))?;
                let (first, second) = by_domain(domain, &counted)?;
                (first, Some(second))
            }
            (None, Some(_)) => (counted.clone(), None),
            _ => {
                let why = "bind exactly one of `domain` and `teacher.hidden`";
                return Err(Refusal::Shape(why.into()));
            }
        };
    let pick =
        |a: &Array, rows: &[usize]| rows.iter().map(|&n| a.row(n).to_vec()).collect::<Matrix>();
    let x = pick(h, &first);
    let y = match &second {
        Some(second) => pick(h, second),
        None => {
            let t = required(inputs, "teacher.hidden")?;
            same_dim(1, ("student.hidden", h), ("teacher.hidden", t))?;
            pick(t, &(0..t.dim(0)).collect::<Vec<_>>())
        }
    };
    let (value, dx, dy) = match batch {
        Batch::Mmd { .. } if x.is_empty() || y.is_empty() => nothing(&x, &y),
        Batch::Mmd { sigma2: None } => mmd_linear(&x, &y),
        Batch::Mmd { sigma2: Some(sigma2) } => mmd_gauss(&x, &y, sigma2),
        _ if x.len() < 2 || y.len() < 2 => nothing(&x, &y),
        _ => coral(&x, &y),
    };
    let share = counted.len() as f64 / normalizer;
    let mut outcome = Outcome { value: value * share, ..Outcome::default() };
    let mut grad = Array::zeros_like(h);
    for (&n, row) in first.iter().zip(&dx) {
        add(grad.row_mut(n), share, row);
    }
    for (&n, row) in second.iter().flatten().zip(&dy) {
        add(grad.row_mut(n), share, row);
    }
    outcome.grads.insert("student.hidden".into(), grad);
    Ok(outcome)
}

fn by_domain(domain: &Array, counted: &[usize]) -> Result<(Vec<usize>, Vec<usize>), Refusal> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for &n in counted {
        match domain.data[n] {
            0.0 => first.push(n),
            1.0 => second.push(n),
            other => {
                return Err(Refusal::Data(format!("row {n}: domain {other} is neither 0 nor 1")));
            }
        }
    }
    Ok((first, second))
}

fn width(x: &Matrix) -> usize {
    x.first().map_or(0, Vec::len)
}

fn nothing(x: &Matrix, y: &Matrix) -> (f64, Matrix, Matrix) {
    (0.0, zeros(x.len(), width(x)), zeros(y.len(), width(y)))
}

fn mmd_linear(x: &Matrix, y: &Matrix) -> (f64, Matrix, Matrix) {
    let mean = |x: &Matrix| {
        let mut mean = vec![0.0; width(x)];
        x.iter().for_each(|row| add(&mut mean, 1.0 / x.len() as f64, row));
        mean
    };
    let mut gap = mean(x);
    add(&mut gap, -1.0, &mean(y));
    let toward = |n: usize, sign: f64| {
        let row: Vec<f64> = gap.iter().map(|g| sign * 2.0 * g / n as f64).collect();
        vec![row; n]
    };
    (dot(&gap, &gap), toward(x.len(), 1.0), toward(y.len(), -1.0))
}

/// Adds `weight` · mean over σ² of exp(−‖a − b‖²/2σ²); its gradient to both rows.
fn kernel(a: (&[f64], &mut [f64]), b: (&[f64], &mut [f64]), sigma2: &[f64], weight: f64) -> f64 {
    let difference: Vec<f64> = a.0.iter().zip(b.0).map(|(a, b)| a - b).collect();
    let squared = dot(&difference, &difference);
    let mut value = 0.0;
    for &width in sigma2 {
        let k = weight * (-squared / (2.0 * width)).exp() / sigma2.len() as f64;
        value += k;
        add(a.1, -k / width, &difference);
        add(b.1, k / width, &difference);
    }
    value
}

fn mmd_gauss(x: &Matrix, y: &Matrix, sigma2: &[f64]) -> (f64, Matrix, Matrix) {
    let (n, m) = (x.len() as f64, y.len() as f64);
    let (mut dx, mut dy) = (zeros(x.len(), width(x)), zeros(y.len(), width(y)));
    let mut value = within(x, &mut dx, sigma2, 1.0 / (n * n));
    value += within(y, &mut dy, sigma2, 1.0 / (m * m));
    for (a, da) in x.iter().zip(&mut dx) {
        for (b, db) in y.iter().zip(&mut dy) {
            value += kernel((a, da), (b, db), sigma2, -2.0 / (n * m));
        }
    }
    (value, dx, dy)
}

fn within(x: &Matrix, dx: &mut Matrix, sigma2: &[f64], weight: f64) -> f64 {
    let mut value = 0.0;
    for i in 0..x.len() {
        for j in 0..x.len() {
            let (mut da, mut db) = (vec![0.0; x[i].len()], vec![0.0; x[j].len()]);
            value += kernel((&x[i], &mut da), (&x[j], &mut db), sigma2, weight);
            add(&mut dx[i], 1.0, &da);
            add(&mut dx[j], 1.0, &db);
        }
    }
    value
}

/// ‖C_x − C_y‖²/(4H²), covariances with divisor n − 1.
fn coral(x: &Matrix, y: &Matrix) -> (f64, Matrix, Matrix) {
    let (x, y) = (centre_columns(x), centre_columns(y));
    let covariance = |x: &Matrix| {
        let t = transpose(x);
        let mut c = times_transposed(&t, &t);
        c.iter_mut().flatten().for_each(|v| *v /= x.len() as f64 - 1.0);
        c
    };
    let gap = combine(&covariance(&x), &covariance(&y), |a, b| a - b);
    let size = (width(&x) * width(&x)) as f64;
    let backward = |x: &Matrix, sign: f64| {
        let mut d = times(x, &gap);
        d.iter_mut().flatten().for_each(|v| *v *= sign / (size * (x.len() as f64 - 1.0)));
        d
    };
    (inner(&gap, &gap) / (4.0 * size), backward(&x, 1.0), backward(&y, -1.0))
}
