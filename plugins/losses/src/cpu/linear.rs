//! Losses on hidden states times a head, with gradients of both, without the logits of a whole batch.
//!
//! Counted rows go through in chunks: logits of the chunk, the dense kernel over them in place, then their products
//! with head and states. Rows that do not count reach no product. f32 throughout; logits are never rounded to less,
//! since a gradient is the difference of near-equal distributions. Blocks are fixed, so results do not depend on
//! the number of threads.

use super::dense::{self, DenseCall};
use super::matrix::Float;
use super::{Matrix, Output, Pool, Slot, Sums, Weights};
use crate::settings::{Divergence, NonFinite, Softening, Vocab};
use std::ops::Range;

/// Rows of a chunk unless a call names them.
const CHUNK: usize = 128;
/// Rows of a head that a product takes at once.
const HEAD_ROWS: usize = 256;
/// Rows of a chunk that a product takes at once.
const CHUNK_ROWS: usize = 32;

/// Where the teacher's logits come from.
#[derive(Clone, Copy)]
pub enum Teacher<'a> {
    /// `[N, V']`, as they are.
    Logits(Matrix<'a>),
    /// States `[N, H']` times a head `[V', H']`.
    Product(Matrix<'a>, Matrix<'a>),
}

/// One call.
pub struct LinearCall<'a> {
    /// Student states `[N, H]`.
    pub hidden: Matrix<'a>,
    /// Student head `[V, H]`.
    pub head: Matrix<'a>,
    /// The teacher.
    pub teacher: Teacher<'a>,
    /// Gradient of the states.
    pub hidden_grad: Option<Output<'a>>,
    /// Gradient of the head.
    pub head_grad: Option<Output<'a>>,
    /// w of each row.
    pub weights: Weights<'a>,
    /// grad_scale / normalizer.
    pub grad_factor: f64,
    /// What is computed of the logits.
    pub divergence: Divergence,
    /// Temperatures and F.
    pub softening: Softening,
    /// Unequal widths.
    pub vocab: Vocab,
    /// What becomes of infinite rows.
    pub non_finite: NonFinite,
    /// Rows of a chunk; 0: 128.
    pub chunk: usize,
}

/// Computes value and gradients in f32.
///
/// # Errors
/// What the pool says.
pub fn run<P: Pool>(call: &LinearCall<'_>, pool: &P) -> Result<Sums, P::Error> {
    let weight = |n: usize| (call.weights)(n).filter(|w| *w != 0.0);
    let counted: Vec<usize> = (0..call.hidden.rows()).filter(|n| weight(*n).is_some()).collect();
    if let Some(grad) = &call.hidden_grad {
        (0..grad.rows()).filter(|n| weight(*n).is_none()).for_each(|n| grad.zero(n, 0));
    }
    if let Some(grad) = call.head_grad.as_ref().filter(|_| counted.is_empty()) {
        (0..grad.rows()).for_each(|v| grad.zero(v, 0));
    }
    let mut sums = Sums::default();
    let most = if call.chunk == 0 { CHUNK } else { call.chunk };
    for (index, rows) in counted.chunks(most).enumerate() {
        let head_grad = call.head_grad.map(|grad| if index == 0 { grad } else { grad.adding() });
        let part = chunk(call, rows, head_grad, pool)?;
        sums.value += part.value;
        sums.dead_rows += part.dead_rows;
        sums.nonfinite_rows += part.nonfinite_rows;
    }
    Ok(sums)
}

fn chunk<P: Pool>(
    call: &LinearCall<'_>,
    rows: &[usize],
    head_grad: Option<Output<'_>>,
    pool: &P,
) -> Result<Sums, P::Error> {
    let (width, depth) = (call.head.rows(), call.hidden.width());
    let states = gathered(&call.hidden, rows);
    let mut logits = product(&states, &call.head, pool)?;
    let (teacher, teacher_width) = match &call.teacher {
        Teacher::Logits(logits) => (gathered(logits, rows), logits.width()),
        Teacher::Product(states, head) => {
            (product(&gathered(states, rows), head, pool)?, head.rows())
        }
    };
    let first = logits.as_mut_ptr();
    let size = [rows.len(), width];
    let stride = [width as isize, 1];
    let wanted = call.hidden_grad.is_some() || head_grad.is_some();
    let dense = DenseCall {
        // SAFETY: `logits` has these rows and outlives the call; the kernel reads a block before it writes it.
        student: unsafe { Matrix::new(first.cast(), Float::F32, size, stride) },
        teacher: (&teacher[..], teacher_width).into(),
        // SAFETY: as above.
        grad: wanted.then(|| unsafe { Output::new(first.cast(), Float::F32, size, stride, false) }),
        width: match call.vocab {
            Vocab::StudentTail => width,
            _ => width.min(teacher_width),
        },
        class_mask: None,
        weights: &|n| (call.weights)(rows[n]),
        grad_factor: call.grad_factor,
        softening: call.softening,
        non_finite: call.non_finite,
    };
    let mut slots = vec![Slot::default(); rows.len()];
    let sums = dense::run(call.divergence, &dense, &mut slots, &mut [], pool)?;
    if let Some(grad) = &call.hidden_grad {
        pool.run(rows.len(), CHUNK_ROWS, &|range, _| {
            for part in parts(range, CHUNK_ROWS) {
                hidden_gradient(&logits, (part, width, depth), &call.head, rows, grad);
            }
        })?;
    }
    if let Some(grad) = &head_grad {
        pool.run(width, HEAD_ROWS, &|range, _| {
            for part in parts(range, HEAD_ROWS) {
                head_gradient(&logits, (part, width, depth), &states, grad);
            }
        })?;
    }
    Ok(sums)
}

/// Pieces of a range, none longer than `most`.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(most).map(move |start| start..(start + most).min(range.end))
}

/// These rows, side by side.
fn gathered(matrix: &Matrix<'_>, rows: &[usize]) -> Vec<f32> {
    let width = matrix.width();
    let mut data = vec![0.0; rows.len() * width];
    for (row, data) in rows.iter().zip(data.chunks_exact_mut(width.max(1))) {
        matrix.load(*row, 0, data);
    }
    data
}

fn block(head: &Matrix<'_>, rows: Range<usize>) -> Vec<f32> {
    gathered(head, &rows.collect::<Vec<usize>>())
}

/// Columns that threads write apart from each other.
struct Columns(*mut f32);
// SAFETY: each column has one writer, by the disjoint ranges of a pool.
unsafe impl Sync for Columns {}

impl Columns {
    fn from(&self, column: usize) -> *mut f32 {
        self.0.wrapping_add(column)
    }
}

/// states `[C, H]` · headᵀ, `[C, V]`.
fn product<P: Pool>(states: &[f32], head: &Matrix<'_>, pool: &P) -> Result<Vec<f32>, P::Error> {
    let (width, depth) = (head.rows(), head.width());
    let count = states.len().checked_div(depth).unwrap_or(0);
    let mut out = vec![0.0; count * width];
    let columns = Columns(out.as_mut_ptr());
    pool.run(width, HEAD_ROWS, &|range, _| {
        for part in parts(range, HEAD_ROWS) {
            let weight = block(head, part.clone());
            let (to, size) = (columns.from(part.start), (count, part.len(), depth));
            // SAFETY: columns `part` of `out`, `count` rows `width` apart; nobody else writes them.
            unsafe { multiply(size, (to, width), false, (states, depth, 1), (&weight, 1, depth)) };
        }
    })?;
    Ok(out)
}

/// Rows `part` of the chunk: ds · W.
fn hidden_gradient(
    logits: &[f32],
    (part, width, depth): (Range<usize>, usize, usize),
    head: &Matrix<'_>,
    rows: &[usize],
    grad: &Output<'_>,
) {
    let mut out = vec![0.0; part.len() * depth];
    for columns in parts(0..width, HEAD_ROWS) {
        let weight = block(head, columns.clone());
        let from = &logits[part.start * width + columns.start..];
        let size = (part.len(), depth, columns.len());
        let to = (out.as_mut_ptr(), depth);
        // SAFETY: `out` has the rows and columns of the product.
        unsafe { multiply(size, to, true, (from, width, 1), (&weight, depth, 1)) };
    }
    for (row, values) in rows[part].iter().zip(out.chunks_exact(depth.max(1))) {
        grad.store(*row, 0, values);
    }
}

/// Rows `part` of the head: dsᵀ · h.
fn head_gradient(
    logits: &[f32],
    (part, width, depth): (Range<usize>, usize, usize),
    states: &[f32],
    grad: &Output<'_>,
) {
    let mut out = vec![0.0; part.len() * depth];
    let count = logits.len().checked_div(width).unwrap_or(0);
    let size = (part.len(), depth, count);
    let to = (out.as_mut_ptr(), depth);
    // SAFETY: `out` has the rows and columns of the product.
    unsafe { multiply(size, to, false, (&logits[part.start..], 1, width), (states, depth, 1)) };
    for (row, values) in part.zip(out.chunks_exact(depth.max(1))) {
        grad.store(row, 0, values);
    }
}

/// out `[m, n]` (+)= a `[m, k]` · b `[k, n]`; factors with the strides of their rows and columns.
///
/// # Safety
/// `out` has `m` rows of `n` elements, its stride apart, that nobody else touches.
unsafe fn multiply(
    (m, n, k): (usize, usize, usize),
    (out, stride): (*mut f32, usize),
    add: bool,
    (a, a_row, a_column): (&[f32], usize, usize),
    (b, b_row, b_column): (&[f32], usize, usize),
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.len() > (m - 1) * a_row + (k - 1) * a_column, "the left factor is too short");
    assert!(b.len() > (k - 1) * b_row + (n - 1) * b_column, "the right factor is too short");
    // SAFETY: the factors reach as far as asked, checked just now; the caller's promise for `out`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride as isize,
            add,
            a.as_ptr(),
            a_column as isize,
            a_row as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
