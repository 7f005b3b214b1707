//! Arguments of the kernels, field by field as `cuda/arguments.h` has them.

use super::super::Activation;
use super::super::rows;
use std::ffi::c_void;

/// First element of a contiguous tensor on the device.
pub(crate) type At = *const c_void;
/// The same, to be written.
pub(crate) type To = *mut c_void;

/// Draws of a dropout.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    key: [u32; 2],
    high: [u32; 2],
    threshold: u32,
    scale: f32,
}

impl From<Option<rows::Dropout>> for Dropout {
    fn from(dropout: Option<rows::Dropout>) -> Self {
        let none = Self { key: [0; 2], high: [0; 2], threshold: 0, scale: 1.0 };
        dropout.map_or(none, |dropout| {
            let (key, high, threshold, scale) = dropout.words();
            Self { key, high, threshold, scale: scale as f32 }
        })
    }
}

/// Number of an activation.
pub(crate) fn kind(activation: Activation) -> i32 {
    match activation {
        Activation::Identity => 0,
        Activation::Relu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::Tanh => 4,
    }
}

/// y = act(x + bias), or dx from x or y and dy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activate {
    pub(crate) x: At,
    /// NULL: none; backward: dy.
    pub(crate) bias: At,
    pub(crate) y: To,
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    pub(crate) kind: i32,
    pub(crate) reserved: i32,
}

/// y = residual + drop(x).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drop {
    pub(crate) x: At,
    /// NULL: none.
    pub(crate) residual: At,
    pub(crate) y: To,
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    pub(crate) row_step: i64,
    pub(crate) dropout: Dropout,
}

/// y = norm(x) · weight + other, or dx from x, weight and dy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) x: At,
    pub(crate) weight: At,
    /// Bias; backward: dy.
    pub(crate) other: At,
    pub(crate) y: To,
    /// Backward: mean and scale of each row, f32.
    pub(crate) stats: To,
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    pub(crate) eps: f32,
    pub(crate) reserved: i32,
}

/// Attention weights from scores, or the scores' gradient.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attend {
    pub(crate) scores: At,
    /// NULL: forward.
    pub(crate) grad: At,
    /// u8, `[sequences, columns]`; NULL: all are seen.
    pub(crate) keep: At,
    pub(crate) y: To,
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    pub(crate) sequence_rows: i64,
    pub(crate) row_step: i64,
    pub(crate) dropout: Dropout,
    pub(crate) scale: f32,
    pub(crate) reserved: i32,
}

/// Sums over strips of rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub(crate) x: At,
    pub(crate) grad: At,
    /// NULL: plain sums of x.
    pub(crate) stats: At,
    /// i64; NULL: all rows.
    pub(crate) ids: At,
    /// f32.
    pub(crate) partial: To,
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    pub(crate) value: i64,
}

/// Sums over the strips.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strips {
    pub(crate) partial: At,
    pub(crate) y: To,
    pub(crate) strips: i64,
    pub(crate) columns: i64,
}

/// Rows of a table, or the table's gradient.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    pub(crate) x: At,
    /// i64.
    pub(crate) ids: At,
    pub(crate) y: To,
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    pub(crate) table_rows: i64,
    /// −1: none.
    pub(crate) left_out: i64,
}

const _: () = {
    assert!(size_of::<Dropout>() == 24 && size_of::<Activate>() == 48 && size_of::<Drop>() == 72);
    assert!(size_of::<Norm>() == 64 && size_of::<Attend>() == 96 && size_of::<Sum>() == 64);
    assert!(size_of::<Strips>() == 32 && size_of::<Lookup>() == 56);
};
