//! Row kernels of a transformer: residual with layer normalization, masked softmax, activation with its derivative,
//! dropout, column sums. Plain slices in, plain slices out.
//!
//! Each forward kernel stands beside its backward one. Refuses nothing: callers pass slices that fit. Invariant: a row
//! is summed over sixteen interleaved partial sums in one order, so no result depends on threads or register width.

use super::Activation;
use super::element::Element;
use super::isa::kernel;
use crate::random::Stream;

const LANES: usize = 16;

/// Σ f(xᵢ, yᵢ).
#[inline(always)]
fn sum<T: Element>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::of(0.0); LANES];
    let (mut xs, mut ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (x, y) in xs.by_ref().zip(ys.by_ref()) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x, y);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            let other = lanes[i + width];
            lanes[i] += other;
        }
        width /= 2;
    }
    let mut rest = lanes[0];
    for (&x, &y) in xs.remainder().iter().zip(ys.remainder()) {
        rest += f(x, y);
    }
    rest
}

/// max xᵢ; -∞ for no element. NaN is left out: the exponential brings it back.
#[inline(always)]
fn largest<T: Element>(x: &[T]) -> T {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let rest = chunks.remainder().iter();
    lanes.iter().chain(rest).fold(T::of(f64::NEG_INFINITY), |m, &x| if x > m { x } else { m })
}

/// Rows of `data` of `width` elements, none for a width of 0.
#[inline(always)]
fn rows<T>(data: &[T], width: usize) -> std::slice::ChunksExact<'_, T> {
    data.chunks_exact(width.max(1))
}

#[inline(always)]
fn rows_mut<T>(data: &mut [T], width: usize) -> std::slice::ChunksExactMut<'_, T> {
    data.chunks_exact_mut(width.max(1))
}

kernel! {
    /// Fills every row of `y` with `bias`.
    fn fill_rows<T>(y: &mut [T], bias: &[T]) {
        rows_mut(y, bias.len()).for_each(|row| row.copy_from_slice(bias));
    }

    /// y += x.
    fn add<T>(y: &mut [T], x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// sums += Σ over the rows.
    fn add_columns<T>(sums: &mut [T], data: &[T]) {
        for row in rows(data, sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }

    /// Layer normalization of a residual: t = x + branch (t = x for an empty branch), x̂ = (t - μ)/√(σ² + ε),
    /// x := x̂ w + b. Rows of w's length; μ, σ² (biased) of each row. Writes x̂ and 1/√(σ² + ε).
    ///
    /// Source: Ba et al. 2016.
    fn norm<T>(x: &mut [T], branch: &[T], normalized: &mut [T], scales: &mut [T], w: &[T], b: &[T], eps: f64) {
        let width = w.len();
        let share = T::of(1.0 / width.max(1) as f64);
        let mut branches = rows(branch, width);
        let items = rows_mut(x, width).zip(rows_mut(normalized, width)).zip(scales);
        for ((x, normalized), scale) in items {
            match branches.next() {
                Some(branch) => {
                    for (t, (&x, &y)) in normalized.iter_mut().zip(x.iter().zip(branch)) {
                        *t = x + y;
                    }
                }
                None => normalized.copy_from_slice(x),
            }
            let mean = sum(normalized, normalized, |t, _| t) * share;
            let var = sum(normalized, normalized, |t, _| (t - mean) * (t - mean)) * share;
            *scale = T::of(1.0) / (var + T::of(eps)).sqrt();
            let factor = *scale;
            let affine = w.iter().zip(b);
            for ((t, y), (&w, &b)) in normalized.iter_mut().zip(x).zip(affine) {
                *t = (*t - mean) * factor;
                *y = *t * w + b;
            }
        }
    }

    /// y = x̂ w + b, row by row.
    fn affine<T>(y: &mut [T], normalized: &[T], w: &[T], b: &[T]) {
        for (y, normalized) in rows_mut(y, w.len()).zip(rows(normalized, w.len())) {
            let affine = w.iter().zip(b);
            for ((y, &t), (&w, &b)) in y.iter_mut().zip(normalized).zip(affine) {
                *y = t * w + b;
            }
        }
    }

    /// Backward of [`norm`]: `grad` holds dy and becomes dt = s (g - mean g - x̂ mean(g x̂)), g = dy w;
    /// dw += Σ dy x̂, db += Σ dy.
    fn norm_backward<T>(grad: &mut [T], normalized: &[T], scales: &[T], w: &[T], dw: &mut [T], db: &mut [T]) {
        let width = w.len();
        let share = T::of(1.0 / width.max(1) as f64);
        for ((grad, t), &scale) in rows_mut(grad, width).zip(rows(normalized, width)).zip(scales) {
            let sums = dw.iter_mut().zip(db.iter_mut());
            for (((g, &t), &w), (dw, db)) in grad.iter_mut().zip(t).zip(w).zip(sums) {
                *dw += *g * t;
                *db += *g;
                *g *= w;
            }
            let mean = sum(grad, t, |g, _| g) * share;
            let along = sum(grad, t, |g, t| g * t) * share;
            for (g, &t) in grad.iter_mut().zip(t) {
                *g = (*g - mean - t * along) * scale;
            }
        }
    }

    /// Softmax of each row in place over the columns that `keep` allows (all for an empty `keep`); 0 elsewhere, and
    /// everywhere when it allows none.
    fn softmax<T>(scores: &mut [T], width: usize, keep: &[bool]) {
        for row in rows_mut(scores, width) {
            for (s, &keep) in row.iter_mut().zip(keep) {
                *s = if keep { *s } else { T::of(f64::NEG_INFINITY) };
            }
            let max = largest(row);
            let max = if max > T::of(f64::NEG_INFINITY) { max } else { T::of(0.0) };
            for s in row.iter_mut() {
                *s = Element::exp(*s - max);
            }
            let total = sum(row, row, |s, _| s);
            let factor = if total == T::of(0.0) { total } else { T::of(1.0) / total };
            for s in row.iter_mut() {
                *s *= factor;
            }
        }
    }

    /// Backward of [`softmax`]: `grad` holds dp and becomes p (dp - Σ dp p).
    fn softmax_backward<T>(grad: &mut [T], p: &[T], width: usize) {
        for (grad, p) in rows_mut(grad, width).zip(rows(p, width)) {
            let along = sum(grad, p, |g, p| g * p);
            for (g, &p) in grad.iter_mut().zip(p) {
                *g = (*g - along) * p;
            }
        }
    }

    /// y = act(x).
    fn activate<T>(y: &mut [T], x: &[T], activation: Activation) {
        match activation {
            Activation::Identity => y.copy_from_slice(x),
            Activation::Relu => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = if x < T::of(0.0) { T::of(0.0) } else { x };
                }
            }
            Activation::Gelu => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * normal_cdf(x);
                }
            }
            Activation::GeluTanh => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * logistic(x).0;
                }
            }
            Activation::Tanh => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = Element::tanh(x);
                }
            }
        }
    }

    /// Backward of [`activate`]: `grad` holds dy and becomes dx = dy act'(x); `y` becomes act(x) again.
    fn activate_backward<T>(grad: &mut [T], y: &mut [T], x: &[T], activation: Activation) {
        // Loops, not closures: a closure that is not inlined loses the wide registers.
        match activation {
            Activation::Identity => y.copy_from_slice(x),
            Activation::Relu => {
                for ((g, y), &x) in grad.iter_mut().zip(y).zip(x) {
                    *y = if x < T::of(0.0) { T::of(0.0) } else { x };
                    *g = if x <= T::of(0.0) { T::of(0.0) } else { *g };
                }
            }
            Activation::Gelu => {
                let scale = T::of(0.398_942_280_401_432_7);
                for ((g, y), &x) in grad.iter_mut().zip(y).zip(x) {
                    let cdf = normal_cdf(x);
                    *y = x * cdf;
                    *g *= cdf + x * (Element::exp(-(x * x) * T::of(0.5)) * scale);
                }
            }
            Activation::GeluTanh => {
                for ((g, y), &x) in grad.iter_mut().zip(y).zip(x) {
                    let (share, slope) = logistic(x);
                    *y = x * share;
                    *g *= share + x * slope;
                }
            }
            Activation::Tanh => {
                for ((g, y), &x) in grad.iter_mut().zip(y).zip(x) {
                    *y = Element::tanh(x);
                    *g *= T::of(1.0) - *y * *y;
                }
            }
        }
    }

    /// x·m/(1-p) in place: element i takes draw i from block `first` on, and becomes 0 below `threshold`.
    fn drop_elements<T>(x: &mut [T], stream: Stream, first: u64, threshold: u32, scale: T) {
        let blocks = (first..).step_by(crate::random::LANES);
        for (chunk, block) in x.chunks_mut(4 * crate::random::LANES).zip(blocks) {
            let draws = stream.blocks(block);
            for (x, &draw) in chunk.iter_mut().zip(&draws) {
                *x = if draw < threshold { T::of(0.0) } else { *x * scale };
            }
        }
    }
}

/// Φ(x).
#[inline(always)]
fn normal_cdf<T: Element>(x: T) -> T {
    T::of(0.5) * (T::of(1.0) + Element::erf(x * T::of(std::f64::consts::FRAC_1_SQRT_2)))
}

/// ½ (1 + tanh z) = 1/(1 + e^(-2z)) at z = √(2/π) (x + 0.044715 x³), and its derivative by x.
#[inline(always)]
fn logistic<T: Element>(x: T) -> (T, T) {
    const C: f64 = 0.797_884_560_802_865_4;
    let (one, square) = (T::of(1.0), x * x);
    let z = T::of(C) * (x + T::of(0.044_715) * square * x);
    let share = one / (one + Element::exp(T::of(-2.0) * z));
    let dz = T::of(C) * (one + T::of(3.0 * 0.044_715) * square);
    (share, T::of(2.0) * share * (one - share) * dz)
}

/// Dropout of one place of a pass; the mask is a function of the stream and of an element's row and column.
#[derive(Clone, Copy)]
pub(crate) struct Dropout {
    stream: Stream,
    /// Drop a draw below this, in units of 2^-32.
    threshold: u32,
    scale: f64,
}

impl Dropout {
    /// `None` for p = 0.
    pub(crate) fn new(stream: Stream, p: f64) -> Option<Self> {
        let threshold = (p * 4_294_967_296.0) as u32;
        (p > 0.0).then_some(Self { stream, threshold, scale: 1.0 / (1.0 - p) })
    }

    /// What a kernel draws from: both words of key and stream, the threshold, the factor.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn words(self) -> ([u32; 2], [u32; 2], u32, f64) {
        let (key, high) = self.stream.words();
        (key, high, self.threshold, self.scale)
    }

    /// x·m/(1-p) of one row in place; also the backward pass. Column c of row r takes draw c of that row, of rows of
    /// `width` columns, of which `x` are the first.
    pub(crate) fn row<T: Element>(self, row: usize, width: usize, x: &mut [T]) {
        let first = row as u64 * width.div_ceil(4) as u64;
        drop_elements(x, self.stream, first, self.threshold, T::of(self.scale));
    }
}

#[cfg(test)]
mod tests;
