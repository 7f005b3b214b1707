//! Mean squared difference of hidden states through a learned linear map.
//!
//! Rows go in tiles, so that the matrix is read once per tile; its gradient is summed over rows in order,
//! so results do not depend on the number of threads. Costs a copy of the states in the kernel's arithmetic.

use super::hidden::{HiddenCall, mse, skip, slot};
use super::isa::{self, Kernel};
use super::matrix::{Float, Load, Store};
use super::real::Real;
use super::scratch::LANES;
use super::{Matrix, Output, Pool, SERIAL, Slot, Sums, each_row};
use std::ops::Range;

/// Rows that share one reading of the map.
const TILE: usize = 8;
/// Rows summed in the kernel's arithmetic before they go to f64.
const CHUNK: usize = 64;

/// A linear map from student to teacher width, host-owned.
pub struct Projection<'a> {
    /// `[Ht, H]`.
    pub weight: Matrix<'a>,
    /// `[Ht]`, one row.
    pub bias: Option<Matrix<'a>>,
    /// Gradient of the matrix.
    pub weight_grad: Option<Output<'a>>,
    /// Gradient of the bias, one row.
    pub bias_grad: Option<Output<'a>>,
}

/// Mean over Ht of (W h + b − t)², with the gradients of h, W and b.
///
/// # Errors
/// What the pool says.
pub fn run_projected<P: Pool>(
    call: &HiddenCall<'_>,
    projection: &Projection<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error> {
    match call.student.float() {
        Float::F64 => projected::<f64, P>(call, projection, slots, pool),
        _ => projected::<f32, P>(call, projection, slots, pool),
    }
}

fn projected<A: Real, P: Pool>(
    call: &HiddenCall<'_>,
    projection: &Projection<'_>,
    slots: &mut [Slot],
    pool: &P,
) -> Result<Sums, P::Error>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    let (rows, width, mapped) = (slots.len(), call.student.width(), projection.weight.rows());
    let mut weight = vec![A::ZERO; mapped * width];
    for (o, row) in weight.chunks_mut(width.max(1)).enumerate() {
        projection.weight.load(o, 0, row);
    }
    let mut bias = vec![A::ZERO; mapped];
    if let Some(bound) = &projection.bias {
        bound.load(0, 0, &mut bias);
    }
    let mut states = vec![A::ZERO; rows * width];
    let mut errors = vec![A::ZERO; rows * mapped];
    let sums = {
        let states = Split::new(&mut states, width);
        let errors = Split::new(&mut errors, mapped);
        each_row(pool, slots, width * mapped, |range, set| {
            for start in range.clone().step_by(TILE) {
                let tile = start..(start + TILE).min(range.end);
                // SAFETY: ranges, and tiles within them, are disjoint.
                let (states, errors) = unsafe { (states.rows(&tile), errors.rows(&tile)) };
                let map = Map { weight: &weight, bias: &bias, width };
                isa::run(TileKernel { call, map, tile, states, errors, set });
            }
        })?
    };
    let reduce = Reduce { states: &states, errors: &errors, width, mapped, projection };
    let body = |range: Range<usize>, _worker: usize| {
        for start in range.clone().step_by(TILE) {
            isa::run(ReduceKernel { reduce: &reduce, tile: start..(start + TILE).min(range.end) });
        }
    };
    if rows * width * mapped <= SERIAL {
        body(0..mapped, 0);
    } else {
        pool.run(mapped, TILE, &body)?;
    }
    // One row, whole: the bias gradient is summed by a single thread.
    if let Some(grad) = &projection.bias_grad {
        let column = |o: usize| (0..rows).map(|n| errors[n * mapped + o].wide()).sum::<f64>();
        let row: Vec<A> = (0..mapped).map(|o| A::of(column(o))).collect();
        grad.store(0, 0, &row);
    }
    Ok(sums)
}

/// A buffer cut into rows that different threads write.
struct Split<A> {
    first: *mut A,
    rows: usize,
    width: usize,
}

// SAFETY: `rows` promises that no two threads hold one row.
unsafe impl<A: Send> Sync for Split<A> {}

impl<A> Split<A> {
    fn new(data: &mut [A], width: usize) -> Self {
        let rows = data.len().checked_div(width).unwrap_or(0);
        Self { first: data.as_mut_ptr(), rows, width }
    }

    /// # Safety
    /// No other reference to these rows is alive; the buffer outlives the reference.
    unsafe fn rows<'a>(&self, range: &Range<usize>) -> &'a mut [A] {
        assert!(range.end <= self.rows || self.width == 0, "rows {range:?} of {}", self.rows);
        let first = self.first.wrapping_add(range.start * self.width);
        // SAFETY: inside the buffer, checked above; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(first, range.len() * self.width) }
    }
}

#[derive(Clone, Copy)]
struct Map<'k, A> {
    weight: &'k [A],
    bias: &'k [A],
    width: usize,
}

/// Rows of a tile: states in, scaled errors out, and the gradient of the states.
struct TileKernel<'k, A> {
    call: &'k HiddenCall<'k>,
    map: Map<'k, A>,
    tile: Range<usize>,
    states: &'k mut [A],
    errors: &'k mut [A],
    set: &'k dyn Fn(usize, Slot),
}

impl<A: Real> Kernel for TileKernel<'_, A>
where
    for<'m> Matrix<'m>: Load<A>,
    for<'m> Output<'m>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        let (width, mapped) = (self.map.width, self.map.bias.len());
        let weights: Vec<Option<f64>> =
            self.tile.clone().map(|n| (self.call.weights)(n).filter(|w| *w != 0.0)).collect();
        let live = |k: usize| weights[k].is_some();
        for (k, n) in self.tile.clone().enumerate().filter(|(k, _)| live(*k)) {
            self.call.student.load(n, 0, &mut self.states[k * width..(k + 1) * width]);
        }
        for (o, row) in self.map.weight.chunks(width).enumerate() {
            for k in (0..weights.len()).filter(|k| live(*k)) {
                let state = &self.states[k * width..(k + 1) * width];
                self.errors[k * mapped + o] = dot(row, state) + self.map.bias[o];
            }
        }
        let mut t = vec![A::ZERO; mapped];
        let mut grad_rows = vec![A::ZERO; weights.len() * width];
        for (k, n) in self.tile.clone().enumerate() {
            let Some(weight) = weights[k] else {
                skip(self.call, n);
                (self.set)(n, Slot::default());
                continue;
            };
            self.call.teacher.load(n, 0, &mut t);
            let errors = &mut self.errors[k * mapped..(k + 1) * mapped];
            let loss = mse(errors, &t, self.call.grad_factor * weight);
            (self.set)(n, slot(loss, weight));
        }
        let Some(grad) = &self.call.grad else { return };
        for (o, row) in self.map.weight.chunks(width).enumerate() {
            for k in (0..weights.len()).filter(|k| live(*k)) {
                let into = &mut grad_rows[k * width..(k + 1) * width];
                axpy(self.errors[k * mapped + o], row, into);
            }
        }
        for (k, n) in self.tile.clone().enumerate().filter(|(k, _)| live(*k)) {
            grad.store(n, 0, &grad_rows[k * width..(k + 1) * width]);
        }
    }
}

#[inline(always)]
fn dot<A: Real>(a: &[A], b: &[A]) -> A {
    let mut lanes = [A::ZERO; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    let mut sum = lanes.iter().fold(A::ZERO, |sum, x| sum + *x);
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += *a * *b;
    }
    sum
}

#[inline(always)]
fn axpy<A: Real>(factor: A, x: &[A], into: &mut [A]) {
    for (into, x) in into.iter_mut().zip(x) {
        *into += factor * *x;
    }
}

struct Reduce<'k, A> {
    states: &'k [A],
    errors: &'k [A],
    width: usize,
    mapped: usize,
    projection: &'k Projection<'k>,
}

/// dW of a tile of outputs: Σ over rows of error · state.
struct ReduceKernel<'k, A> {
    reduce: &'k Reduce<'k, A>,
    tile: Range<usize>,
}

impl<A: Real> Kernel for ReduceKernel<'_, A>
where
    for<'m> Output<'m>: Store<A>,
{
    type Result = ();
    #[inline(always)]
    fn run(self) {
        let Reduce { states, errors, width, mapped, projection } = *self.reduce;
        let Some(grad) = &projection.weight_grad else { return };
        let size = self.tile.len() * width;
        let (mut sum, mut part) = (vec![0.0_f64; size], vec![A::ZERO; size]);
        for (states, errors) in states.chunks(CHUNK * width).zip(errors.chunks(CHUNK * mapped)) {
            part.fill(A::ZERO);
            for (state, error) in states.chunks(width).zip(errors.chunks(mapped)) {
                for (k, o) in self.tile.clone().enumerate() {
                    axpy(error[o], state, &mut part[k * width..(k + 1) * width]);
                }
            }
            sum.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part.wide());
        }
        for (k, o) in self.tile.clone().enumerate() {
            let row: Vec<A> = sum[k * width..(k + 1) * width].iter().map(|x| A::of(*x)).collect();
            grad.store(o, 0, &row);
        }
    }
}
