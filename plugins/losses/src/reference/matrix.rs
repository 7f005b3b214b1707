//! Small dense matrices as rows, and unit vectors with their Jacobian.
//!
//! Written for clarity: the batch-coupled losses see at most some thousand rows. A vector whose norm is at
//! most 1e-12 has unit vector 0 and passes no gradient.

/// Rows of equal length.
pub type Matrix = Vec<Vec<f64>>;

pub const ZERO_NORM: f64 = 1e-12;

pub fn zeros(rows: usize, columns: usize) -> Matrix {
    vec![vec![0.0; columns]; rows]
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `into += factor * x`.
pub fn add(into: &mut [f64], factor: f64, x: &[f64]) {
    for (into, x) in into.iter_mut().zip(x) {
        *into += factor * x;
    }
}

/// a/‖a‖ and ‖a‖; a zero vector gives 0 and `None`.
pub fn unit(a: &[f64]) -> (Vec<f64>, Option<f64>) {
    let norm = norm(a);
    if norm <= ZERO_NORM {
        return (vec![0.0; a.len()], None);
    }
    (a.iter().map(|x| x / norm).collect(), Some(norm))
}

/// Gradient with respect to a of a function whose gradient with respect to a/‖a‖ is `g`.
pub fn through_unit(unit: &[f64], norm: Option<f64>, g: &[f64]) -> Vec<f64> {
    let Some(norm) = norm else { return vec![0.0; unit.len()] };
    let along = dot(g, unit);
    g.iter().zip(unit).map(|(g, u)| (g - along * u) / norm).collect()
}

/// A Bᵀ.
pub fn times_transposed(a: &Matrix, b: &Matrix) -> Matrix {
    a.iter().map(|a| b.iter().map(|b| dot(a, b)).collect()).collect()
}

/// A B.
pub fn times(a: &Matrix, b: &Matrix) -> Matrix {
    let width = b.first().map_or(0, Vec::len);
    let row = |a: &Vec<f64>| {
        let mut row = vec![0.0; width];
        for (factor, b) in a.iter().zip(b) {
            add(&mut row, *factor, b);
        }
        row
    };
    a.iter().map(row).collect()
}

pub fn transpose(a: &Matrix) -> Matrix {
    let width = a.first().map_or(0, Vec::len);
    (0..width).map(|v| a.iter().map(|row| row[v]).collect()).collect()
}

/// `f` on each pair of entries.
pub fn combine(a: &Matrix, b: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()).collect()
}

/// Sum of the products of all entries.
pub fn inner(a: &Matrix, b: &Matrix) -> f64 {
    a.iter().zip(b).map(|(a, b)| dot(a, b)).sum()
}

/// Subtracts each column's mean.
pub fn centre_columns(a: &Matrix) -> Matrix {
    let n = a.len() as f64;
    let width = a.first().map_or(0, Vec::len);
    let mean: Vec<f64> = (0..width).map(|v| a.iter().map(|row| row[v]).sum::<f64>() / n).collect();
    a.iter().map(|row| row.iter().zip(&mean).map(|(x, m)| x - m).collect()).collect()
}
