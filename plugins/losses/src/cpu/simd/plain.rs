//! Lanes for every machine.

use super::*;

/// Sixteen lanes in plain Rust.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Plain([f32; 16]);

impl Plain {
    #[inline(always)]
    fn power(rounded: Self) -> Self {
        Self(rounded.0.map(|x| f32::from_bits(x.to_bits().wrapping_add(127) << 23)))
    }
    #[inline(always)]
    fn map2(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|l| f(self.0[l], other.0[l])))
    }
}

operator! { Plain,
    Add add |a, b| a.map2(b, |a, b| a + b), Sub sub |a, b| a.map2(b, |a, b| a - b),
    Mul mul |a, b| a.map2(b, |a, b| a * b), Div div |a, b| a.map2(b, |a, b| a / b)
}
impl Neg for Plain {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self(self.0.map(|x| -x))
    }
}

impl Lanes for Plain {
    #[inline(always)]
    fn all(x: f32) -> Self {
        Self([x; 16])
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        self * b + c
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.map2(other, |a, b| if a > b { a } else { b })
    }
    by_rounding!();
    #[inline(always)]
    fn split(self) -> (Self, Self) {
        let bits = self.0.map(|x| (x.to_bits() as i32).wrapping_sub(HALF_SQRT));
        let mantissa = |b: i32| f32::from_bits((b & 0x007f_ffff).wrapping_add(HALF_SQRT) as u32);
        (Self(bits.map(|b| (b >> 23) as f32)), Self(bits.map(mantissa)))
    }
    #[inline(always)]
    fn choose_less(self, other: Self, then: Self, otherwise: Self) -> Self {
        let pick = |l: usize| if self.0[l] < other.0[l] { then.0[l] } else { otherwise.0[l] };
        Self(std::array::from_fn(pick))
    }
    #[inline(always)]
    fn choose_zero(self, then: Self, otherwise: Self) -> Self {
        Self(std::array::from_fn(|l| if self.0[l] == 0.0 { then.0[l] } else { otherwise.0[l] }))
    }
    #[inline(always)]
    fn choose_nan(self, then: Self, otherwise: Self) -> Self {
        Self(std::array::from_fn(|l| if self.0[l].is_nan() { then.0[l] } else { otherwise.0[l] }))
    }
}
number!(Plain);

impl Simd for Plain {
    type Scalar = f32;
    const LANES: usize = 16;
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(std::array::from_fn(|l| from[l]))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..16].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        self.fma(b, c)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.larger(other)
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self::all(x)
    }
    #[inline(always)]
    fn total(self) -> f64 {
        sum(&self.0)
    }
    #[inline(always)]
    fn top(self) -> f32 {
        largest(&self.0)
    }
}
