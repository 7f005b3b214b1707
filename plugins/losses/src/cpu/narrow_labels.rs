//! Cross-entropy of rows of few columns, a row in each lane of a register.
//!
//! The arithmetic of [`cross_entropy`](super::cross_entropy), with the sums of all rows of a register taken together. A
//! row's bits do not depend on the rows beside it.

use super::Slot;
use super::cross_entropy::{CeKernel, CrossEntropyCall};
use super::dense::finish;
use super::narrow::{ROWS, Sum, Table};
use super::rows::{center_of, scale};
use super::simd::Simd;
use crate::settings::{CrossEntropy, NonFinite};

/// Rows of one worker.
#[inline(always)]
pub fn run<S: Simd<Scalar = f32>>(kernel: CeKernel<'_, f32>) {
    let mut group = Group {
        ce: kernel.ce,
        call: kernel.call,
        z: Table::new(),
        powers: Table::new(),
        rows: [Row::NOTHING; ROWS],
    };
    for first in kernel.range.clone().step_by(S::LANES) {
        let count = S::LANES.min(kernel.range.end - first);
        group.read(first, count);
        group.compute::<S>(first, count, kernel.set);
    }
}

/// What a row is computed with; weight 0: it does not count, and its lane holds anything.
#[derive(Clone, Copy)]
struct Row {
    weight: f64,
    label: usize,
    /// Logit of the label.
    target: f32,
}

impl Row {
    const NOTHING: Self = Self { weight: 0.0, label: 0, target: 0.0 };
}

/// What a row's gradient is made with.
#[derive(Clone, Copy)]
struct End {
    written: bool,
    /// Factor of the powers.
    on: f32,
    /// −ε/V_live · scale.
    share: f32,
    /// Of the label's column.
    at_label: f32,
}

impl End {
    const NOTHING: Self = Self { written: false, on: 0.0, share: 0.0, at_label: 0.0 };
}

/// Rows that are computed together.
struct Group<'k> {
    ce: &'k CrossEntropy,
    call: &'k CrossEntropyCall<'k>,
    /// The logits, later the gradient.
    z: Table,
    powers: Table,
    rows: [Row; ROWS],
}

impl Group<'_> {
    #[inline(always)]
    fn read(&mut self, first: usize, count: usize) {
        let (call, width) = (self.call, self.call.student.width());
        for lane in 0..count {
            let n = first + lane;
            self.rows[lane].weight = (call.weights)(n).unwrap_or(0.0);
            if self.rows[lane].weight == 0.0 {
                continue;
            }
            self.z.fill(lane, &call.student, n, width);
            let label = (call.labels)(n);
            (self.rows[lane].label, self.rows[lane].target) = (label, self.z.0[label][lane]);
            let masks = [call.class_mask, call.row_classes.map(|mask| &mask[n * width..])];
            for mask in masks.into_iter().flatten() {
                for (column, _) in self.z.0.iter_mut().zip(&mask[..width]).filter(|(_, k)| !**k) {
                    column[lane] = f32::NEG_INFINITY;
                }
            }
        }
    }

    #[inline(always)]
    fn compute<S: Simd<Scalar = f32>>(
        &mut self,
        first: usize,
        count: usize,
        set: &dyn Fn(usize, Slot),
    ) {
        let (width, smooth) = (self.call.student.width(), self.ce.smoothing != 0.0);
        let out = S::of(f64::NEG_INFINITY);
        let mut most = out;
        for column in &self.z.0[..width] {
            most = S::load(column).max(most);
        }
        let (center, k) = (center_of(most), S::splat(scale::<S>(1.0)));
        let (mut sum, mut mean, mut live) = (Sum::<S>::new(), Sum::<S>::new(), S::zero());
        for (z, power) in self.z.0[..width].iter().zip(&mut self.powers.0) {
            let z = S::load(z);
            let x = z - center;
            let e = (x * k).exp2();
            e.store(power);
            sum.add(e);
            if smooth {
                mean.add(out.if_less(z, x, S::zero()));
                live = live + out.if_less(z, S::one(), S::zero());
            }
        }
        let (mut centers, mut lives) = ([0.0; ROWS], [0.0; ROWS]);
        center.store(&mut centers);
        live.store(&mut lives);
        let (sums, means) = (sum.totals(), mean.totals());
        let mut ends = [End::NOTHING; ROWS];
        for lane in 0..count {
            let (row, n) = (self.rows[lane], first + lane);
            if row.weight == 0.0 {
                set(n, Slot::default());
                continue;
            }
            if sums[lane] == 0.0 {
                set(n, Slot { dead: 1, ..Slot::default() });
                continue;
            }
            let target = f64::from(row.target) - f64::from(centers[lane]);
            let (log_sum, live) = (sums[lane].ln(), f64::from(lives[lane]));
            let mut loss = (1.0 - self.ce.smoothing) * (log_sum - target);
            if smooth {
                loss += self.ce.smoothing * (log_sum - means[lane] / live);
            }
            set(n, finish(loss, row.weight, self.ce.non_finite));
            if loss.is_finite() || self.ce.non_finite == NonFinite::Propagate {
                ends[lane] = self.end(row.weight, target, sums[lane], live);
            }
        }
        self.gradient::<S>(first, &ends[..count]);
    }

    #[inline(always)]
    fn end(&self, weight: f64, target: f64, sum: f64, live: f64) -> End {
        let (scale, smoothing) = (self.call.grad_factor * weight, self.ce.smoothing);
        let share = if smoothing == 0.0 { 0.0 } else { smoothing / live };
        let of_label = if target == f64::NEG_INFINITY { 0.0 } else { share };
        let at_label = scale * (target.exp() / sum - (1.0 - smoothing) - of_label);
        End {
            written: true,
            on: (scale / sum) as f32,
            share: (-share * scale) as f32,
            at_label: at_label as f32,
        }
    }

    #[inline(always)]
    fn gradient<S: Simd<Scalar = f32>>(&mut self, first: usize, ends: &[End]) {
        let Some(grad) = &self.call.grad else { return };
        let width = self.call.student.width();
        let of = |part: fn(&End) -> f32| {
            let mut lanes = [0.0; ROWS];
            lanes.iter_mut().zip(ends).for_each(|(lane, end)| *lane = part(end));
            lanes
        };
        let (on, share) = (S::load(&of(|end| end.on)), S::load(&of(|end| end.share)));
        let out = S::of(f64::NEG_INFINITY);
        for (power, z) in self.powers.0[..width].iter().zip(&mut self.z.0) {
            let less = out.if_less(S::load(z), share, S::zero());
            S::load(power).mul_add(on, less).store(z);
        }
        for (lane, end) in ends.iter().enumerate() {
            if end.written {
                self.z.0[self.rows[lane].label][lane] = end.at_label;
                self.z.drain(lane, grad, first + lane, width);
            } else {
                grad.zero(first + lane, 0);
            }
        }
    }
}
