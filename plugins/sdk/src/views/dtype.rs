//! Element types, in Rust and at the boundary.
//!
//! Knows no tensor. A type that is not listed here does not cross the boundary.

use half::{bf16, f16};
use limbeck_abi as abi;

/// Element types that cross the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit unsigned integer.
    U8,
    /// 32-bit unsigned integer.
    U32,
}

impl DType {
    /// The floating-point types, in the order in which plugins prefer them.
    pub const FLOATS: &'static [DType] = &[DType::F32, DType::BF16, DType::F16, DType::F64];

    /// As DLPack writes it.
    pub const fn dl(self) -> abi::DLDataType {
        match self {
            Self::F32 => abi::DLDataType::F32,
            Self::F64 => abi::DLDataType::F64,
            Self::F16 => abi::DLDataType::F16,
            Self::BF16 => abi::DLDataType::BF16,
            Self::I64 => abi::DLDataType::I64,
            Self::I32 => abi::DLDataType::I32,
            Self::U8 => abi::DLDataType::U8,
            Self::U32 => abi::DLDataType::U32,
        }
    }

    /// From DLPack; `None` for types that this SDK does not know.
    pub fn from_dl(dl: abi::DLDataType) -> Option<Self> {
        [Self::F32, Self::F64, Self::F16, Self::BF16, Self::I64, Self::I32, Self::U8, Self::U32]
            .into_iter()
            .find(|t| t.dl() == dl)
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        self.dl().bytes()
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    /// `f32`, `bf16`, `i64`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::U32 => "u32",
        }
    }
}

/// Rust types that are elements of tensors.
pub trait Element: Copy + Send + Sync + Default + 'static {
    /// Their [`DType`].
    const DTYPE: DType;
    /// Widened; exact for every type but large integers.
    fn to_f64(self) -> f64;
    /// Rounded to nearest.
    fn from_f64(value: f64) -> Self;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident, $to:expr, $from:expr;)*) => {$(
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
            fn to_f64(self) -> f64 { ($to)(self) }
            fn from_f64(value: f64) -> Self { ($from)(value) }
        }
    )*};
}
element! {
    f32 => F32, f64::from, |v| v as f32;
    f64 => F64, |v| v, |v| v;
    f16 => F16, f16::to_f64, f16::from_f64;
    bf16 => BF16, bf16::to_f64, bf16::from_f64;
    i64 => I64, |v| v as f64, |v| v as i64;
    i32 => I32, f64::from, |v| v as i32;
    u8 => U8, f64::from, |v| v as u8;
    u32 => U32, f64::from, |v| v as u32;
}

/// Runs `$body` with `$t` bound to the Rust type of `$dtype`.
macro_rules! with_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::DType::F16 => {
                type $t = ::half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $t = ::half::bf16;
                $body
            }
            $crate::DType::I64 => {
                type $t = i64;
                $body
            }
            $crate::DType::I32 => {
                type $t = i32;
                $body
            }
            $crate::DType::U8 => {
                type $t = u8;
                $body
            }
            $crate::DType::U32 => {
                type $t = u32;
                $body
            }
        }
    };
}

pub(crate) use with_dtype;
