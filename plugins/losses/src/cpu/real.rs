//! The two scalar arithmetics of the row kernels: f32 with vectorisable powers and logarithms, and plain f64.

use super::number::{EXP2, HALF_SQRT, LOG2, Number, ROUND};
use std::ops::AddAssign;

/// A float that kernels compute in.
pub trait Real: Number + PartialOrd + AddAssign {
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    fn wide(self) -> f64;
}

macro_rules! real {
    ($t:ident) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            #[inline(always)]
            fn wide(self) -> f64 {
                f64::from(self)
            }
        }
    };
}
real!(f32);
real!(f64);

macro_rules! selections {
    ($t:ident) => {
        #[inline(always)]
        fn of(x: f64) -> Self {
            x as $t
        }
        #[inline(always)]
        fn abs(self) -> Self {
            $t::abs(self)
        }
        #[inline(always)]
        fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            if self < other { then } else { otherwise }
        }
        #[inline(always)]
        fn times(self, r: Self) -> Self {
            if self == 0.0 { self } else { self * r }
        }
    };
}

impl Number for f64 {
    selections!(f64);
    #[inline(always)]
    fn exp2(self) -> Self {
        f64::exp2(self)
    }
    #[inline(always)]
    fn exp2_unbounded(self) -> Self {
        f64::exp2(self)
    }
    #[inline(always)]
    fn log2(self) -> Self {
        f64::log2(self)
    }
}

impl Number for f32 {
    selections!(f32);
    #[inline(always)]
    fn exp2(self) -> Self {
        // Comparisons, not min and max: those would drop NaN.
        let x = if self < -126.0 { -126.0 } else { self };
        let x = if x > 127.0 { 127.0 } else { x };
        let shifted = x + ROUND;
        let f = x - (shifted - ROUND);
        let mut p = EXP2[5];
        for k in (0..5).rev() {
            p = p * f + EXP2[k];
        }
        let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        let result = (p * f + 1.0) * power;
        if self < -126.0 { 0.0 } else { result }
    }
    #[inline(always)]
    fn exp2_unbounded(self) -> Self {
        if self > 127.5 { f32::INFINITY } else { Number::exp2(self) }
    }
    #[inline(always)]
    fn log2(self) -> Self {
        let bits = (self.to_bits() as i32).wrapping_sub(HALF_SQRT);
        let exponent = (bits >> 23) as f32;
        let mantissa = f32::from_bits((bits & 0x007f_ffff).wrapping_add(HALF_SQRT) as u32);
        let s = (mantissa - 1.0) / (mantissa + 1.0);
        let s2 = s * s;
        let mut p = LOG2[4];
        for k in (0..4).rev() {
            p = p * s2 + LOG2[k];
        }
        let result = exponent + s * p;
        let result = if self > 0.0 { result } else { f32::NEG_INFINITY };
        if self.is_nan() { self } else { result }
    }
}

#[cfg(test)]
mod tests {
    use super::Number;

    #[test]
    fn powers_are_right_to_two_units_and_vanish_below_the_smallest_normal() {
        for k in 0..200_000 {
            let x = -126.0 + k as f32 * 0.00126;
            let exact = f64::from(x).exp2();
            assert!((f64::from(Number::exp2(x)) / exact - 1.0).abs() <= 2.4e-7, "{x}");
        }
        for x in [-126.001_f32, -1e30, f32::NEG_INFINITY] {
            assert_eq!(Number::exp2(x), 0.0);
        }
        assert!(Number::exp2(f32::NAN).is_nan());
    }

    #[test]
    fn logarithms_are_right_also_next_to_one() {
        for k in 0..200_000 {
            let x = (-20.0 + k as f32 * 0.0002).exp2();
            let exact = f64::from(x).log2();
            let bound = 2.4e-7 * exact.abs() + 1e-13;
            assert!((f64::from(Number::log2(x)) - exact).abs() <= bound, "{x} {exact}");
        }
        assert_eq!(Number::log2(0.0_f32), f32::NEG_INFINITY);
        assert!(Number::log2(f32::NAN).is_nan());
    }
}
