//! AVX-512 and AVX2 by intrinsics, because loops over arrays vectorise by luck.

use super::*;
use std::arch::x86_64::*;

macro_rules! register {
    ($name:ident($raw:ty) $lanes:literal: $doc:literal, $load:ident $store:ident $stream:ident $splat:ident $add:ident $sub:ident $mul:ident $div:ident $fma:ident $max:ident) => {
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
            unsafe fn stream(self, to: &mut [f32]) {
                let to: &mut [f32] = &mut to[..$lanes];
                // SAFETY: as above; the caller promises the address.
                unsafe { $stream(to.as_mut_ptr(), self.0) }
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
_mm512_loadu_ps _mm512_storeu_ps _mm512_stream_ps _mm512_set1_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps _mm512_div_ps
_mm512_fmadd_ps _mm512_max_ps }
register! { Ymm(__m256) 8: "AVX2 with FMA.",
_mm256_loadu_ps _mm256_storeu_ps _mm256_stream_ps _mm256_set1_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps _mm256_div_ps
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
