//! The loops. Generic over element types, written so that the compiler vectorizes them.
//!
//! Lists may alias as the header allows (`z` may be `x` or `y`), so elements are read and written through raw
//! pointers, each element's inputs before its output.

use super::super::pool::parallel_ranges;
use super::{VectorError, View, only_f32, same_sizes};
use crate::tensor::DType;
use half::{bf16, f16};

/// Fewest elements that are worth a thread.
const GRAIN: usize = 1 << 15;
/// Elements per partial sum of `dot`; part of the result's definition.
const BLOCK: usize = 4096;
/// Lanes per partial sum.
const LANES: usize = 8;

/// An element type of the tables.
trait Float: Copy + 'static {
    fn get(self) -> f32;
    fn put(value: f32) -> Self;
}
impl Float for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        value
    }
}
impl Float for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
}
impl Float for f16 {
    #[inline(always)]
    fn get(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Runs `$body` with `$T` bound to the Rust type of `$dtype`.
macro_rules! typed {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

/// A pointer that may be used from pool threads, each on its own range.
struct Shared<T>(*mut T);
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}
// SAFETY: ranges of one `parallel_ranges` call are disjoint and the lists are borrowed until it returns (R5).
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn of(view: View) -> Self {
        Self(view.data.cast())
    }
    /// # Safety
    /// `i` lies inside the tensor.
    #[inline(always)]
    unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

pub(super) fn axpby(a: f64, x: &[View], b: f64, y: &[View]) -> Result<(), VectorError> {
    if a != 0.0 {
        same_sizes(y, x)?;
    }
    for (i, y) in y.iter().enumerate() {
        match x.get(i).filter(|_| a != 0.0) {
            Some(x) => {
                typed!(x.dtype, X => typed!(y.dtype, Y => axpby_one::<X, Y>(a as f32, *x, b as f32, *y)))
            }
            None => typed!(y.dtype, Y => scale_one::<Y>(b as f32, *y)),
        }
    }
    Ok(())
}

fn axpby_one<X: Float, Y: Float>(a: f32, x: View, b: f32, y: View) {
    let (xs, ys) = (Shared::<X>::of(x), Shared::<Y>::of(y));
    parallel_ranges(y.len, GRAIN, &|range, _| {
        for i in range {
            // SAFETY: `i < len` of both; lists checked by the caller.
            let (x, y) = unsafe { (xs.at(i), ys.at(i)) };
            // SAFETY: as above; the header lets `y` be unreadable garbage only if b is 0.
            unsafe {
                let scaled = a * (*x).get();
                *y = Y::put(if b == 0.0 { scaled } else { scaled + b * (*y).get() });
            }
        }
    });
}

fn scale_one<Y: Float>(b: f32, y: View) {
    let ys = Shared::<Y>::of(y);
    parallel_ranges(y.len, GRAIN, &|range, _| {
        for i in range {
            // SAFETY: `i < len`.
            let y = unsafe { ys.at(i) };
            // SAFETY: as above.
            unsafe { *y = Y::put(if b == 0.0 { 0.0 } else { b * (*y).get() }) };
        }
    });
}

pub(super) fn mul(a: f64, x: &[View], y: &[View], b: f64, z: &[View]) -> Result<(), VectorError> {
    if a != 0.0 {
        same_sizes(z, x)?;
        same_sizes(z, y)?;
    }
    for (i, z) in z.iter().enumerate() {
        match (a != 0.0).then(|| (x[i], y[i])) {
            Some((x, y)) => typed!(x.dtype, X => typed!(y.dtype, Y => typed!(z.dtype, Z => {
                mul_one::<X, Y, Z>(a as f32, x, y, b as f32, *z)
            }))),
            None => typed!(z.dtype, Z => scale_one::<Z>(b as f32, *z)),
        }
    }
    Ok(())
}

fn mul_one<X: Float, Y: Float, Z: Float>(a: f32, x: View, y: View, b: f32, z: View) {
    let (xs, ys, zs) = (Shared::<X>::of(x), Shared::<Y>::of(y), Shared::<Z>::of(z));
    parallel_ranges(z.len, GRAIN, &|range, _| {
        for i in range {
            // SAFETY: `i < len` of all three.
            let (x, y, z) = unsafe { (xs.at(i), ys.at(i), zs.at(i)) };
            // SAFETY: as above.
            unsafe {
                let product = a * (*x).get() * (*y).get();
                *z = Z::put(if b == 0.0 { product } else { product + b * (*z).get() });
            }
        }
    });
}

pub(super) fn dot(x: &[View], y: &[View]) -> Result<f64, VectorError> {
    same_sizes(x, y)?;
    let mut total = 0.0;
    for (x, y) in x.iter().zip(y) {
        total += typed!(x.dtype, X => typed!(y.dtype, Y => dot_one::<X, Y>(*x, *y)));
    }
    Ok(total)
}

fn dot_one<X: Float, Y: Float>(x: View, y: View) -> f64 {
    let (xs, ys) = (Shared::<X>::of(x), Shared::<Y>::of(y));
    let blocks = x.len.div_ceil(BLOCK);
    let mut sums = vec![0.0f64; blocks];
    let sums_at = Shared(sums.as_mut_ptr());
    parallel_ranges(blocks, GRAIN / BLOCK, &|range, _| {
        for block in range {
            let end = x.len.min((block + 1) * BLOCK);
            // SAFETY: the block lies inside both tensors.
            let sum = unsafe { block_dot(xs, ys, block * BLOCK, end) };
            // SAFETY: `block < blocks`; ranges are disjoint.
            let place = unsafe { sums_at.at(block) };
            // SAFETY: as above.
            unsafe { *place = sum };
        }
    });
    sums.iter().sum()
}

/// # Safety
/// `from..to` lies inside both.
unsafe fn block_dot<X: Float, Y: Float>(x: Shared<X>, y: Shared<Y>, from: usize, to: usize) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let whole = from + (to - from) / LANES * LANES;
    // SAFETY: the caller's promise.
    let product = |i: usize| unsafe { f64::from((*x.at(i)).get()) * f64::from((*y.at(i)).get()) };
    for i in (from..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += product(i + lane);
        }
    }
    for (lane, i) in (whole..to).enumerate() {
        lanes[lane] += product(i);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Checked lists of one update.
pub(super) struct AdamwViews<'a> {
    pub params: Vec<View>,
    pub grads: Vec<View>,
    pub m: Vec<View>,
    pub v: Vec<View>,
    pub masters: Option<Vec<View>>,
    pub lr: &'a [f64],
    pub weight_decay: &'a [f64],
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub grad_scale: f64,
    pub t: u64,
}

/// Factors of one tensor's update, rounded to f32 once.
#[derive(Clone, Copy)]
struct Factors {
    keep: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction: f32,
    eps: f32,
    step: f32,
    grad_scale: f32,
}

pub(super) fn adamw(u: &AdamwViews<'_>) -> Result<(), VectorError> {
    for list in [&u.grads, &u.m, &u.v].into_iter().chain(u.masters.as_ref()) {
        same_sizes(&u.params, list)?;
    }
    for list in [&u.m, &u.v].into_iter().chain(u.masters.as_ref()) {
        only_f32(list)?;
    }
    if u.lr.len() != u.params.len() || u.weight_decay.len() != u.params.len() {
        return Err(VectorError::Length(u.lr.len(), u.params.len()));
    }
    let t = u.t.max(1) as f64;
    let (bias1, bias2) = (1.0 - u.beta1.powf(t), 1.0 - u.beta2.powf(t));
    for (i, p) in u.params.iter().enumerate() {
        let factors = Factors {
            keep: (1.0 - u.lr[i] * u.weight_decay[i]) as f32,
            beta1: u.beta1 as f32,
            one_minus_beta1: (1.0 - u.beta1) as f32,
            beta2: u.beta2 as f32,
            one_minus_beta2: (1.0 - u.beta2) as f32,
            root_correction: bias2.sqrt() as f32,
            eps: u.eps as f32,
            step: (u.lr[i] / bias1) as f32,
            grad_scale: u.grad_scale as f32,
        };
        let master = u.masters.as_ref().map(|m| m[i]);
        typed!(p.dtype, P => typed!(u.grads[i].dtype, G => {
            adamw_one::<P, G>(*p, u.grads[i], u.m[i], u.v[i], master, factors)
        }));
    }
    Ok(())
}

fn adamw_one<P: Float, G: Float>(
    p: View,
    g: View,
    m: View,
    v: View,
    master: Option<View>,
    f: Factors,
) {
    let (ps, gs) = (Shared::<P>::of(p), Shared::<G>::of(g));
    let (ms, vs) = (Shared::<f32>::of(m), Shared::<f32>::of(v));
    match master.map(Shared::<f32>::of) {
        None => parallel_ranges(p.len, GRAIN, &|range, _| {
            for i in range {
                // SAFETY: `i < len` of every list.
                let (p, g, m, v) = unsafe { (ps.at(i), gs.at(i), ms.at(i), vs.at(i)) };
                // SAFETY: as above.
                unsafe { *p = P::put(update((*p).get(), (*g).get(), &mut *m, &mut *v, f)) };
            }
        }),
        Some(masters) => parallel_ranges(p.len, GRAIN, &|range, _| {
            for i in range {
                // SAFETY: `i < len` of every list.
                let (p, w, g, m, v) =
                    unsafe { (ps.at(i), masters.at(i), gs.at(i), ms.at(i), vs.at(i)) };
                // SAFETY: as above.
                unsafe {
                    *w = update(*w, (*g).get(), &mut *m, &mut *v, f);
                    *p = P::put(*w);
                }
            }
        }),
    }
}

#[inline(always)]
fn update(p: f32, g: f32, m: &mut f32, v: &mut f32, f: Factors) -> f32 {
    let g = g * f.grad_scale;
    let p = p * f.keep;
    *m = f.beta1 * *m + f.one_minus_beta1 * g;
    *v = f.beta2 * *v + f.one_minus_beta2 * g * g;
    p - f.step * (*m / (v.sqrt() / f.root_correction + f.eps))
}
