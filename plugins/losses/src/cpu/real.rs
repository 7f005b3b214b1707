//! The two arithmetics of the row kernels: f32 with vectorisable powers and logarithms, and plain f64.
//!
//! Base 2 throughout. `exp2` is 0 below 2⁻¹²⁶ (clamping would turn −inf into a probability) and keeps NaN.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A float that kernels compute in.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Send
    + Sync
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const LN_2: Self;
    const NEG_INFINITY: Self;
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    fn abs(self) -> Self;
    /// 2^self for what occurs here: log-probabilities and their differences.
    fn exp2(self) -> Self;
    /// log₂ of a positive finite number, −inf of 0.
    fn log2(self) -> Self;
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const LN_2: Self = std::f64::consts::LN_2;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        f64::exp2(self)
    }
    #[inline(always)]
    fn log2(self) -> Self {
        f64::log2(self)
    }
}

/// (2^f − 1)/f on [−½, ½]: Chebyshev fit of degree 5, relative error of 2^f 5.2e-9.
const EXP2: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_503_57,
    0.009_618_057,
    0.001_339_086_7,
    0.000_154_614_47,
];
/// 2/ln 2 · atanh(s) = Σ LOG2[k] s^(2k+1); |s| ≤ 0.172 leaves 3e-10.
const LOG2: [f32; 5] = [2.885_39, 0.961_796_7, 0.577_078, 0.412_198_58, 0.320_598_9];
/// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const LN_2: Self = std::f32::consts::LN_2;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        // Comparisons, not min and max: those would drop NaN.
        let x = if self < -126.0 { -126.0 } else { self };
        let x = if x > 127.0 { 127.0 } else { x };
        let shifted = x + ROUND;
        let f = x - (shifted - ROUND);
        let mut p = EXP2[5];
        p = p * f + EXP2[4];
        p = p * f + EXP2[3];
        p = p * f + EXP2[2];
        p = p * f + EXP2[1];
        p = p * f + EXP2[0];
        let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        let result = (p * f + 1.0) * power;
        if self < -126.0 { 0.0 } else { result }
    }
    #[inline(always)]
    fn log2(self) -> Self {
        const HALF_SQRT: u32 = 0x3f35_04f3;
        let bits = self.to_bits().wrapping_sub(HALF_SQRT);
        let exponent = (bits as i32 >> 23) as f32;
        let mantissa = f32::from_bits((bits & 0x007f_ffff).wrapping_add(HALF_SQRT));
        let s = (mantissa - 1.0) / (mantissa + 1.0);
        let s2 = s * s;
        let mut p = LOG2[4];
        p = p * s2 + LOG2[3];
        p = p * s2 + LOG2[2];
        p = p * s2 + LOG2[1];
        p = p * s2 + LOG2[0];
        let result = exponent + s * p;
        let result = if self > 0.0 { result } else { f32::NEG_INFINITY };
        if self.is_nan() { self } else { result }
    }
}

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn powers_are_right_to_two_units_and_vanish_below_the_smallest_normal() {
        for k in 0..200_000 {
            let x = -126.0 + k as f32 * 0.00126;
            let exact = f64::from(x).exp2();
            assert!((f64::from(Real::exp2(x)) / exact - 1.0).abs() <= 2.4e-7, "{x}");
        }
        for x in [-126.001_f32, -1e30, f32::NEG_INFINITY] {
            assert_eq!(Real::exp2(x), 0.0);
        }
        assert!(Real::exp2(f32::NAN).is_nan());
    }

    #[test]
    fn logarithms_are_right_also_next_to_one() {
        for k in 0..200_000 {
            let x = (-20.0 + k as f32 * 0.0002).exp2();
            let exact = f64::from(x).log2();
            let bound = 2.4e-7 * exact.abs() + 1e-13;
            assert!((f64::from(Real::log2(x)) - exact).abs() <= bound, "{x} {exact}");
        }
        assert_eq!(Real::log2(0.0_f32), f32::NEG_INFINITY);
        assert!(Real::log2(f32::NAN).is_nan());
    }
}
