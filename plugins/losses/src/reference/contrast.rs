//! Contrastive losses with negatives in the batch: InfoNCE and CRD, losses.md section 5.
//!
//! Both see unit rows; a zero row has similarity 0 to everything and gets no gradient.

use super::matrix::{Matrix, dot, through_unit, times, transpose, unit, zeros};
use super::softmax::{log_add_exp, log_softmax};

struct Units {
    student: Vec<(Vec<f64>, Option<f64>)>,
    teacher: Matrix,
}

impl Units {
    fn new(x: &Matrix, y: &Matrix) -> Self {
        let student = x.iter().map(|a| unit(a)).collect();
        Self { student, teacher: y.iter().map(|a| unit(a).0).collect() }
    }

    /// û·ŵᵀ/τ.
    fn similarities(&self, tau: f64) -> Matrix {
        let row = |u: &[f64]| self.teacher.iter().map(|w| dot(u, w) / tau).collect();
        self.student.iter().map(|(u, _)| row(u)).collect()
    }

    /// From the gradient of the similarities (already divided by τ) to that of the rows.
    fn backward(&self, g: &Matrix) -> Matrix {
        let du = times(g, &self.teacher);
        self.student.iter().zip(du).map(|((u, norm), du)| through_unit(u, *norm, &du)).collect()
    }
}

/// Mean over rows of −ln π_ii, and π − I over n; of the columns with `by_column`.
fn direction(similarities: &Matrix) -> (f64, Matrix) {
    let n = similarities.len() as f64;
    let (mut value, mut grad) = (0.0, Vec::new());
    for (i, row) in similarities.iter().enumerate() {
        let log = log_softmax(row, 1.0);
        value -= log[i] / n;
        let target = |j: usize| if i == j { 1.0 } else { 0.0 };
        grad.push(log.iter().enumerate().map(|(j, l)| (l.exp() - target(j)) / n).collect());
    }
    (value, grad)
}

pub fn infonce(x: &Matrix, y: &Matrix, tau: f64, symmetric: bool) -> (f64, Matrix) {
    let units = Units::new(x, y);
    let similarities = units.similarities(tau);
    let (mut value, mut g) = direction(&similarities);
    if symmetric {
        let (other, other_g) = direction(&transpose(&similarities));
        value = (value + other) / 2.0;
        for (row, other) in g.iter_mut().zip(transpose(&other_g)) {
            row.iter_mut().zip(other).for_each(|(g, o)| *g = (*g + o) / 2.0);
        }
    }
    g.iter_mut().flatten().for_each(|g| *g /= tau);
    (value, units.backward(&g))
}

pub fn crd(
    x: &Matrix,
    y: &Matrix,
    tau: f64,
    negatives: Option<f64>,
    n_data: f64,
    z: f64,
) -> (f64, Matrix) {
    let n = x.len();
    let units = Units::new(x, y);
    let similarities = units.similarities(tau);
    let log_noise = (negatives.unwrap_or(n as f64 - 1.0) / n_data).ln();
    let mut value = 0.0;
    let mut g = zeros(n, n);
    for i in 0..n {
        for j in 0..n {
            let log_x = similarities[i][j] - z.ln();
            let log_sum = log_add_exp(log_x, log_noise);
            let same = i == j;
            value -= (if same { log_x } else { log_noise } - log_sum) / n as f64;
            let d = (log_x - log_sum).exp();
            g[i][j] = (d - if same { 1.0 } else { 0.0 }) / (n as f64 * tau);
        }
    }
    (value, units.backward(&g))
}
