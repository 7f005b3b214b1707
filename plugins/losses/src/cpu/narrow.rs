//! Rows of few columns: a row in each lane of a register, where [`rows`](super::rows) has a column.
//!
//! The same arithmetic turned round. What a wide row pays once (logarithms in f64, sums, decisions) would be most of
//! the work of a narrow one; here the sums of all rows of a register are taken together. They are compensated, so they
//! are as exact as sums in f64. A row's bits do not depend on the rows beside it.

use super::dense::{DenseCall, finish};
use super::divergence::Functor;
use super::rows::{RowKernel, center_of, scale};
use super::simd::Simd;
use super::{Matrix, Output, Slot};
use crate::settings::NonFinite;

/// Columns at most.
pub const COLUMNS: usize = 32;
/// Lanes of the widest register.
pub const ROWS: usize = 16;

/// A column of every row side by side, for each column.
#[repr(align(64))]
pub struct Table(pub [[f32; ROWS]; COLUMNS]);

impl Table {
    pub fn new() -> Self {
        Self([[0.0; ROWS]; COLUMNS])
    }

    /// Puts a row into a lane.
    #[inline(always)]
    pub fn fill(&mut self, lane: usize, matrix: &Matrix<'_>, n: usize, columns: usize) {
        let mut copy = [0.0; COLUMNS];
        let row = match matrix.slice::<f32>(n, 0, columns) {
            Some(row) => row,
            None => {
                matrix.load(n, 0, &mut copy[..columns]);
                &copy[..columns]
            }
        };
        for (to, x) in self.0.iter_mut().zip(row) {
            to[lane] = *x;
        }
    }

    /// Writes a lane to a row.
    #[inline(always)]
    pub fn drain(&self, lane: usize, grad: &Output<'_>, n: usize, columns: usize) {
        // SAFETY: the logits, which may be the same memory, are not read any more.
        if let Some(to) = unsafe { grad.slice::<f32>(n, 0, columns) } {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = from[lane];
            }
            return;
        }
        let mut row = [0.0; COLUMNS];
        for (to, from) in row[..columns].iter_mut().zip(&self.0) {
            *to = from[lane];
        }
        grad.store(n, 0, &row[..columns]);
    }
}

/// A sum in each lane, and what its roundings lost.
#[derive(Clone, Copy)]
pub struct Sum<S> {
    sum: S,
    lost: S,
}

impl<S: Simd<Scalar = f32>> Sum<S> {
    #[inline(always)]
    pub fn new() -> Self {
        Self { sum: S::zero(), lost: S::zero() }
    }

    #[inline(always)]
    pub fn add(&mut self, x: S) {
        let next = self.sum + x;
        let part = next - self.sum;
        self.lost = self.lost + ((self.sum - (next - part)) + (x - part));
        self.sum = next;
    }

    #[inline(always)]
    pub fn totals(self) -> [f64; ROWS] {
        let (mut sums, mut lost) = ([0.0f32; ROWS], [0.0f32; ROWS]);
        self.sum.store(&mut sums);
        self.lost.store(&mut lost);
        let total = |l: usize| {
            let (sum, lost) = (f64::from(sums[l]), f64::from(lost[l]));
            // Nothing is lost of an infinite sum, but the difference is no number.
            if sum.is_finite() { sum + lost } else { sum }
        };
        std::array::from_fn(total)
    }
}

/// Rows of one worker.
#[inline(always)]
pub fn run<S: Simd<Scalar = f32>, D: Functor>(kernel: RowKernel<'_, D, f32>) {
    let mut group = Group::<S> {
        call: kernel.call,
        scales: [kernel.call.softening.student, kernel.call.softening.teacher].map(scale::<S>),
        s: Table::new(),
        t: Table::new(),
        powers: Table::new(),
        weights: [0.0; ROWS],
    };
    let range = kernel.range.clone();
    for first in range.clone().step_by(S::LANES) {
        let count = S::LANES.min(range.end - first);
        group.read(first, count);
        group.rows(&kernel.functor, first, count, kernel.set);
    }
}

/// Rows that are computed together.
struct Group<'k, S: Simd> {
    call: &'k DenseCall<'k>,
    /// log₂e/T of both sides.
    scales: [S::Scalar; 2],
    s: Table,
    /// The teacher's logits, later base + qu, later the gradient.
    t: Table,
    powers: Table,
    /// 0: the row does not count, and its lane holds anything.
    weights: [f64; ROWS],
}

impl<S: Simd<Scalar = f32>> Group<'_, S> {
    #[inline(always)]
    fn read(&mut self, first: usize, count: usize) {
        let (call, width) = (self.call, self.call.width);
        let teacher = call.teacher.width().min(width);
        for lane in 0..count {
            let n = first + lane;
            self.weights[lane] = (call.weights)(n).unwrap_or(0.0);
            if self.weights[lane] == 0.0 {
                continue;
            }
            self.s.fill(lane, &call.student, n, width);
            self.t.fill(lane, &call.teacher, n, teacher);
            for to in &mut self.t.0[teacher..width] {
                to[lane] = f32::NEG_INFINITY;
            }
        }
        if let Some(mask) = call.class_mask {
            for (v, _) in mask[..width].iter().enumerate().filter(|(_, kept)| !**kept) {
                self.s.0[v] = [f32::NEG_INFINITY; ROWS];
                self.t.0[v] = [f32::NEG_INFINITY; ROWS];
            }
        }
    }

    /// Largest logit of each row.
    #[inline(always)]
    fn center(&self, table: &Table) -> S {
        let mut most = S::of(f64::NEG_INFINITY);
        for column in &table.0[..self.call.width] {
            most = S::load(column).max(most);
        }
        center_of(most)
    }

    #[inline(always)]
    fn rows<D: Functor>(
        &mut self,
        functor: &D,
        first: usize,
        count: usize,
        set: &dyn Fn(usize, Slot),
    ) {
        let width = self.call.width;
        let (c_s, c_t) = (self.center(&self.s), self.center(&self.t));
        let [k_s, k_t] = self.scales.map(S::splat);
        let (mut sum_s, mut sum_t) = (Sum::<S>::new(), Sum::<S>::new());
        let sides = self.s.0[..width].iter().zip(&self.t.0[..width]);
        for ((s, t), power) in sides.zip(&mut self.powers.0) {
            let e = ((S::load(s) - c_s) * k_s).exp2();
            e.store(power);
            sum_s.add(e);
            sum_t.add(((S::load(t) - c_t) * k_t).exp2());
        }
        let (sum_s, sum_t) = (sum_s.totals(), sum_t.totals());
        let (d_s, d_t) = (logarithms::<S>(&sum_s), logarithms::<S>(&sum_t));
        let (mut loss, mut moment, mut mass) = (Sum::<S>::new(), Sum::<S>::new(), Sum::<S>::new());
        for (s, t) in self.s.0[..width].iter().zip(&mut self.t.0[..width]) {
            let x = ((S::load(s) - c_s) * k_s) + d_s;
            let y = ((S::load(t) - c_t) * k_t) + d_t;
            let q = x.exp2();
            let term = functor.term(q, y.exp2(), x, y);
            loss.add(term.loss);
            moment.add(term.qu);
            mass.add(q);
            (term.base + term.qu).store(t);
        }
        let (loss, moment, mass) = (loss.totals(), moment.totals(), mass.totals());
        let mut ends = [End::NOTHING; ROWS];
        for (lane, end) in ends.iter_mut().enumerate().take(count) {
            let (weight, n) = (self.weights[lane], first + lane);
            if weight == 0.0 {
                set(n, Slot::default());
            } else if sum_s[lane] == 0.0 || sum_t[lane] == 0.0 {
                set(n, Slot { dead: 1, ..Slot::default() });
            } else {
                let softening = self.call.softening;
                set(n, finish(loss[lane] * softening.factor, weight, self.call.non_finite));
                *end = self.end(loss[lane], moment[lane] / mass[lane], weight, sum_s[lane]);
            }
        }
        if let Some(grad) = &self.call.grad {
            self.gradient(grad, first, &ends[..count]);
        }
    }

    /// As a wide row decides.
    #[inline(always)]
    fn end(&self, loss: f64, sum: f64, weight: f64, normalizer: f64) -> End {
        let infinite = loss == f64::INFINITY && !sum.is_finite();
        let propagate = self.call.non_finite == NonFinite::Propagate && !infinite;
        if !loss.is_finite() && !propagate {
            return End::NOTHING;
        }
        let factor = self.call.softening.factor / self.call.softening.student;
        let scale = (self.call.grad_factor * weight * factor) as f32;
        End { written: true, scale, q: (1.0 / normalizer) as f32, sum: -sum as f32 }
    }

    #[inline(always)]
    fn gradient(&mut self, grad: &Output<'_>, first: usize, ends: &[End]) {
        let width = self.call.width;
        let of = |part: fn(&End) -> f32| {
            let mut lanes = [0.0; ROWS];
            lanes.iter_mut().zip(ends).for_each(|(lane, end)| *lane = part(end));
            lanes
        };
        let (scale, q, sum) = (of(|end| end.scale), of(|end| end.q), of(|end| end.sum));
        let (scale, q, sum) = (S::load(&scale), S::load(&q), S::load(&sum));
        for (power, to) in self.powers.0[..width].iter().zip(&mut self.t.0) {
            // One rounding of q·sum against qu: a one-hot row has gradient 0.
            ((S::load(power) * q).mul_add(sum, S::load(to)) * scale).store(to);
        }
        for (lane, end) in ends.iter().enumerate() {
            let n = first + lane;
            if !end.written {
                grad.zero(n, 0);
                continue;
            }
            self.t.drain(lane, grad, n, width);
            if grad.width() > width {
                grad.zero(n, width);
            }
        }
    }
}

/// What a row's gradient is made with.
#[derive(Clone, Copy)]
struct End {
    /// Otherwise zeros.
    written: bool,
    scale: f32,
    /// 1/Σ of the student's powers.
    q: f32,
    /// −Σ qu.
    sum: f32,
}

impl End {
    const NOTHING: Self = Self { written: false, scale: 0.0, q: 0.0, sum: 0.0 };
}

/// −log₂ of each sum, in f64 and rounded once.
#[inline(always)]
fn logarithms<S: Simd<Scalar = f32>>(sums: &[f64; ROWS]) -> S {
    let mut lanes = [0.0f32; ROWS];
    for (lane, sum) in lanes.iter_mut().zip(sums).take(S::LANES) {
        *lane = -sum.log2() as f32;
    }
    S::load(&lanes)
}
