//! What the formulas of divergences are written in: one number, or lanes of them.
//!
//! Base 2 throughout. `exp2` is 0 below the smallest normal power (clamping would turn −inf into a probability)
//! and keeps NaN. Choices are selections, never branches, so one formula serves a lane and a register of lanes.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number or lanes of numbers.
pub trait Number:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Send
    + Sync
    + 'static
{
    fn of(x: f64) -> Self;
    fn abs(self) -> Self;
    /// 2^self for what occurs here: log-probabilities and their differences.
    fn exp2(self) -> Self;
    /// As `exp2`, +inf where that overflows.
    fn exp2_unbounded(self) -> Self;
    /// log₂ of a positive finite number, −inf of 0.
    fn log2(self) -> Self;
    /// `then` where self < other, else `otherwise`; `otherwise` where one is NaN.
    fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self;
    /// self · r, 0 where self is 0 whatever r.
    fn times(self, r: Self) -> Self;
    /// 1/self to a unit in the last place, for what is neither 0 nor below the smallest normal number.
    #[inline(always)]
    fn inverse(self) -> Self {
        Self::one() / self
    }
    #[inline(always)]
    fn zero() -> Self {
        Self::of(0.0)
    }
    #[inline(always)]
    fn one() -> Self {
        Self::of(1.0)
    }
    #[inline(always)]
    fn ln_2() -> Self {
        Self::of(std::f64::consts::LN_2)
    }
}

/// (2^f − 1)/f on [−½, ½]: Chebyshev fit of degree 5, relative error of 2^f 5.2e-9.
pub const EXP2: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_503_57,
    0.009_618_057,
    0.001_339_086_7,
    0.000_154_614_47,
];
/// 2/ln 2 · atanh(s) = Σ LOG2[k] s^(2k+1); |s| ≤ 0.172 leaves 3e-10.
pub const LOG2: [f32; 5] = [2.885_39, 0.961_796_7, 0.577_078, 0.412_198_58, 0.320_598_9];
/// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
pub const ROUND: f32 = 12_582_912.0;
/// Bits of √½: mantissas are taken from [√½, √2).
pub const HALF_SQRT: i32 = 0x3f35_04f3;
