//! Lanes of f32 in the registers of each instruction set, with the arithmetic of `number`.
//!
//! Values of a register type are only made by kernels that [`isa`](super::isa) runs on a machine that has it: that
//! is the promise behind every `unsafe` here.

use super::number::{EXP2, HALF_SQRT, LOG2, Number, ROUND};
use super::real::Real;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Lanes that blocks of a row are read into.
pub trait Simd: Number {
    /// Element of a block.
    type Scalar: Real;
    /// Entries of a value; divides 16.
    const LANES: usize;
    /// The first `LANES` entries.
    fn load(from: &[Self::Scalar]) -> Self;
    fn store(self, to: &mut [Self::Scalar]);
    /// As [`Simd::store`], past the caches where there is an instruction for it.
    ///
    /// # Safety
    /// `to` begins at a line of the cache or a whole number of values behind it, and
    /// [`isa::end_streams`](super::isa::end_streams) follows before another thread looks.
    #[inline(always)]
    unsafe fn stream(self, to: &mut [Self::Scalar]) {
        self.store(to);
    }
    fn splat(x: Self::Scalar) -> Self;
    /// self · b + c, rounded once where there is an instruction for it.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where self is NaN.
    fn max(self, other: Self) -> Self;
    /// Sum of the lanes, in f64 and in a fixed order.
    fn total(self) -> f64;
    /// The largest lane.
    fn top(self) -> Self::Scalar;
}

/// [`Simd::total`] of lanes of f32: halves onto halves, so that additions do not wait for each other.
#[inline(always)]
fn sum<const N: usize>(lanes: &[f32; N]) -> f64 {
    let mut wide = lanes.map(f64::from);
    let mut half = N / 2;
    while half > 0 {
        for k in 0..half {
            wide[k] += wide[k + half];
        }
        half /= 2;
    }
    wide[0]
}

/// [`Simd::top`] of lanes of f32.
#[inline(always)]
fn largest(lanes: &[f32]) -> f32 {
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

impl Simd for f64 {
    type Scalar = Self;
    const LANES: usize = 1;
    #[inline(always)]
    fn load(from: &[Self]) -> Self {
        from[0]
    }
    #[inline(always)]
    fn store(self, to: &mut [Self]) {
        to[0] = self;
    }
    #[inline(always)]
    fn splat(x: Self) -> Self {
        x
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        self * b + c
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn total(self) -> f64 {
        self
    }
    #[inline(always)]
    fn top(self) -> Self {
        self
    }
}

/// The operations that differ between register types.
trait Lanes: Copy {
    fn all(x: f32) -> Self;
    fn fma(self, b: Self, c: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    /// The part of a power of 2 that is no integer, in [−½, ½], and the integer as [`Lanes::scaled`] takes it.
    fn fraction(self) -> (Self, Self);
    /// self · 2^integer; 0 where `x`, the whole exponent, is below −126.
    fn scaled(self, integer: Self, x: Self) -> Self;
    /// 1/self but for a unit in the last place.
    fn reciprocal(self) -> Self;
    /// Exponent and mantissa in [√½, √2).
    fn split(self) -> (Self, Self);
    fn choose_less(self, other: Self, then: Self, otherwise: Self) -> Self;
    fn choose_zero(self, then: Self, otherwise: Self) -> Self;
    fn choose_nan(self, then: Self, otherwise: Self) -> Self;
}

macro_rules! number {
    ($name:ident) => {
        impl Number for $name {
            #[inline(always)]
            fn of(x: f64) -> Self {
                Self::all(x as f32)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.larger(-self)
            }
            #[inline(always)]
            fn exp2(self) -> Self {
                let (f, integer) = self.fraction();
                let mut p = Self::all(EXP2[5]);
                for k in (0..5).rev() {
                    p = p.fma(f, Self::all(EXP2[k]));
                }
                p.fma(f, Self::all(1.0)).scaled(integer, self)
            }
            #[inline(always)]
            fn inverse(self) -> Self {
                self.reciprocal()
            }
            #[inline(always)]
            fn exp2_unbounded(self) -> Self {
                Self::all(127.5).choose_less(self, Self::all(f32::INFINITY), self.exp2())
            }
            #[inline(always)]
            fn log2(self) -> Self {
                let (exponent, mantissa) = self.split();
                let one = Self::all(1.0);
                let s = (mantissa - one) * (mantissa + one).reciprocal();
                let s2 = s * s;
                let mut p = Self::all(LOG2[4]);
                for k in (0..4).rev() {
                    p = p.fma(s2, Self::all(LOG2[k]));
                }
                let result = s.fma(p, exponent);
                let zero = Self::all(0.0);
                let result = zero.choose_less(self, result, Self::all(f32::NEG_INFINITY));
                self.choose_nan(self, result)
            }
            #[inline(always)]
            fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self {
                self.choose_less(other, then, otherwise)
            }
            #[inline(always)]
            fn times(self, r: Self) -> Self {
                self.choose_zero(self, self * r)
            }
        }
    };
}

/// [`Lanes::fraction`] and [`Lanes::scaled`] of registers without instructions for them: `ROUND` puts the integer into
/// the low bits, from where `power` makes 2^integer.
macro_rules! by_rounding {
    () => {
        #[inline(always)]
        fn fraction(self) -> (Self, Self) {
            // NaN is the second operand, so it passes both bounds.
            let x = Self::all(-126.0).larger(self);
            let x = Self::all(127.0).choose_less(x, Self::all(127.0), x);
            let rounded = x + Self::all(ROUND);
            (x - (rounded - Self::all(ROUND)), rounded)
        }
        #[inline(always)]
        fn scaled(self, integer: Self, x: Self) -> Self {
            x.choose_less(Self::all(-126.0), Self::all(0.0), self * Self::power(integer))
        }
        #[inline(always)]
        fn reciprocal(self) -> Self {
            Self::all(1.0) / self
        }
    };
}

macro_rules! operator {
    ($name:ident, $($trait:ident $method:ident $op:expr),*) => {$(
        impl $trait for $name {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                let op: fn(Self, Self) -> Self = $op;
                op(self, other)
            }
        }
    )*};
}

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;
pub use plain::Plain;
#[cfg(target_arch = "x86_64")]
pub use x86::{Ymm, Zmm};
