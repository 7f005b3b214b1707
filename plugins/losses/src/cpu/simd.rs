//! Lanes of f32 in the registers of each instruction set, with the arithmetic of `number`.
//!
//! AVX-512 and AVX2 by intrinsics, because loops over arrays vectorise by luck; the portable lanes are plain Rust.
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    macro_rules! register {
        ($name:ident($raw:ty) $lanes:literal: $doc:literal, $load:ident $store:ident $splat:ident $add:ident $sub:ident $mul:ident $div:ident $fma:ident $max:ident) => {
            #[doc = $doc]
            #[derive(Clone, Copy)]
            pub struct $name($raw);

            operator! { $name,
                // SAFETY: see the head of this file; so for all intrinsics below.
                Add add |a, b| unsafe { Self($add(a.0, b.0)) },
                // SAFETY: as above.
                Sub sub |a, b| unsafe { Self($sub(a.0, b.0)) },
                // SAFETY: as above.
                Mul mul |a, b| unsafe { Self($mul(a.0, b.0)) },
                // SAFETY: as above.
                Div div |a, b| unsafe { Self($div(a.0, b.0)) }
            }
            impl Neg for $name {
                type Output = Self;
                #[inline(always)]
                fn neg(self) -> Self {
                    Self::all(0.0) - self
                }
            }
            number!($name);

            impl Simd for $name {
                type Scalar = f32;
                const LANES: usize = $lanes;
                #[inline(always)]
                fn load(from: &[f32]) -> Self {
                    let from: &[f32] = &from[..$lanes];
                    // SAFETY: as above; the slice has as many entries.
                    unsafe { Self($load(from.as_ptr())) }
                }
                #[inline(always)]
                fn store(self, to: &mut [f32]) {
                    let to: &mut [f32] = &mut to[..$lanes];
                    // SAFETY: as above; the slice has as many entries.
                    unsafe { $store(to.as_mut_ptr(), self.0) }
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
                    let mut lanes = [0.0; $lanes];
                    self.store(&mut lanes);
                    sum(&lanes)
                }
                #[inline(always)]
                fn top(self) -> f32 {
                    let mut lanes = [0.0; $lanes];
                    self.store(&mut lanes);
                    largest(&lanes)
                }
            }
        };
    }

    register! { Zmm(__m512) 16: "AVX-512.",
    _mm512_loadu_ps _mm512_storeu_ps _mm512_set1_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps _mm512_div_ps
    _mm512_fmadd_ps _mm512_max_ps }
    register! { Ymm(__m256) 8: "AVX2 with FMA.",
    _mm256_loadu_ps _mm256_storeu_ps _mm256_set1_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps _mm256_div_ps
    _mm256_fmadd_ps _mm256_max_ps }

    /// What the two registers have alike, under other names.
    macro_rules! lanes {
        ($name:ident, $fma:ident $max:ident $splat:ident; $to_int:ident $to_float:ident $from_int:ident
         $int_splat:ident $int_add:ident $int_sub:ident $int_and:ident $shift:ident; $($own:tt)*) => {
            impl Lanes for $name {
                #[inline(always)]
                fn all(x: f32) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($splat(x)) }
                }
                #[inline(always)]
                fn fma(self, b: Self, c: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($fma(self.0, b.0, c.0)) }
                }
                #[inline(always)]
                fn larger(self, other: Self) -> Self {
                    // SAFETY: as above. The instruction gives the second operand where one is NaN.
                    unsafe { Self($max(self.0, other.0)) }
                }
                #[inline(always)]
                fn split(self) -> (Self, Self) {
                    // SAFETY: as above.
                    unsafe {
                        let half = $int_splat(HALF_SQRT);
                        let bits = $int_sub($to_int(self.0), half);
                        let exponent = $from_int($shift::<23>(bits));
                        let low = $int_and(bits, $int_splat(0x007f_ffff));
                        (Self(exponent), Self($to_float($int_add(low, half))))
                    }
                }
                $($own)*
            }
        };
    }

    lanes! { Zmm, _mm512_fmadd_ps _mm512_max_ps _mm512_set1_ps;
        _mm512_castps_si512 _mm512_castsi512_ps _mm512_cvtepi32_ps
        _mm512_set1_epi32 _mm512_add_epi32 _mm512_sub_epi32 _mm512_and_si512 _mm512_srai_epi32;
        #[inline(always)]
        fn fraction(self) -> (Self, Self) {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            // SAFETY: as above.
            let integer = unsafe { Self(_mm512_roundscale_ps::<NEAREST>(self.0)) };
            (self - integer, integer)
        }
        #[inline(always)]
        fn scaled(self, integer: Self, x: Self) -> Self {
            // SAFETY: as above. NaN is not less than anything, so it stays.
            unsafe {
                let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, _mm512_set1_ps(-126.0));
                Self(_mm512_maskz_scalef_ps(kept, self.0, integer.0))
            }
        }
        #[inline(always)]
        fn reciprocal(self) -> Self {
            // SAFETY: as above. 14 bits, and one step of Newton.
            unsafe {
                let r = _mm512_rcp14_ps(self.0);
                let miss = _mm512_fnmadd_ps(self.0, r, _mm512_set1_ps(1.0));
                Self(_mm512_fmadd_ps(r, miss, r))
            }
        }
        #[inline(always)]
        fn choose_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0);
                Self(_mm512_mask_blend_ps(less, otherwise.0, then.0))
            }
        }
        #[inline(always)]
        fn choose_zero(self, then: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, _mm512_setzero_ps());
                Self(_mm512_mask_blend_ps(zero, otherwise.0, then.0))
            }
        }
        #[inline(always)]
        fn choose_nan(self, then: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                Self(_mm512_mask_blend_ps(nan, otherwise.0, then.0))
            }
        }
    }

    impl Ymm {
        #[inline(always)]
        fn power(rounded: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let k = _mm256_add_epi32(_mm256_castps_si256(rounded.0), _mm256_set1_epi32(127));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(k)))
            }
        }
    }

    lanes! { Ymm, _mm256_fmadd_ps _mm256_max_ps _mm256_set1_ps;
        _mm256_castps_si256 _mm256_castsi256_ps _mm256_cvtepi32_ps
        _mm256_set1_epi32 _mm256_add_epi32 _mm256_sub_epi32 _mm256_and_si256 _mm256_srai_epi32;
        by_rounding!();
        #[inline(always)]
        fn choose_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let less = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0);
                Self(_mm256_blendv_ps(otherwise.0, then.0, less))
            }
        }
        #[inline(always)]
        fn choose_zero(self, then: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, _mm256_setzero_ps());
                Self(_mm256_blendv_ps(otherwise.0, then.0, zero))
            }
        }
        #[inline(always)]
        fn choose_nan(self, then: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
                Self(_mm256_blendv_ps(otherwise.0, then.0, nan))
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Ymm, Zmm};
