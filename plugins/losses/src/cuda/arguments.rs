//! Arguments of the kernels, field by field as `cuda/args.h` has them. Strides in elements.

use limbeck_sdk::DType;
use std::ffi::c_void;

/// Element types, by number.
pub fn type_number(dtype: DType) -> Option<i32> {
    match dtype {
        DType::F32 => Some(0),
        DType::F16 => Some(1),
        DType::BF16 => Some(2),
        DType::F64 => Some(3),
        DType::I64 => Some(4),
        DType::I32 => Some(5),
        DType::U8 => Some(6),
        _ => None,
    }
}

/// A matrix on the device; without data: not there.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// First element.
    pub data: *mut c_void,
    /// Between rows.
    pub row: i64,
    /// Between columns.
    pub column: i64,
    /// [`type_number`].
    pub dtype: i32,
    /// 0.
    pub reserved: i32,
}

impl Matrix {
    /// None.
    pub const ABSENT: Self =
        Self { data: std::ptr::null_mut(), row: 0, column: 0, dtype: 0, reserved: 0 };
}

/// A vector on the device; without data: not bound.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// First element.
    pub data: *const c_void,
    /// Between elements.
    pub stride: i64,
    /// [`type_number`].
    pub dtype: i32,
    /// 0.
    pub reserved: i32,
}

impl Column {
    /// None.
    pub const ABSENT: Self = Self { data: std::ptr::null(), stride: 0, dtype: 0, reserved: 0 };
}

/// Which rows count.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Number of rows.
    pub count: i64,
    /// Class of each row; −100: it does not count.
    pub labels: Column,
    /// 0: it does not count.
    pub mask: Column,
    /// w.
    pub weights: Column,
}

/// Add to the gradient.
pub const ACCUMULATE: u32 = 1;
/// Drop infinite rows.
pub const ZERO_AND_COUNT: u32 = 2;
/// ∂ℓ/∂q may be kept in 16 bits.
pub const NARROW_U: u32 = 4;
/// The gradient's rows are 16-byte aligned and without gaps.
pub const VECTOR_STORE: u32 = 8;

/// Rows of student against rows of teacher.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RowArgs {
    /// `[N, V]`.
    pub student: Matrix,
    /// `[N, V']`.
    pub teacher: Matrix,
    /// `[N, V]`, absent: only the loss.
    pub grad: Matrix,
    /// `[V]`.
    pub class_mask: Column,
    /// `[N]`: negative turns a cosine round.
    pub targets: Column,
    /// Which rows count.
    pub rows: Rows,
    /// grad_scale / normalizer · F/T.
    pub grad_factor: f64,
    /// F.
    pub loss_factor: f64,
    /// log2(e)/T of the student.
    pub student_scale: f32,
    /// log2(e)/T of the teacher.
    pub teacher_scale: f32,
    /// β, α, λ, share, smoothing or margin.
    pub first: f32,
    /// α of `srkl` through the mixture.
    pub second: f32,
    /// Columns that enter.
    pub width: i32,
    /// Columns that the teacher has.
    pub teacher_width: i32,
    /// Columns of the gradient.
    pub columns: i32,
    /// Columns of a block of a cluster.
    pub slice: i32,
    /// [`ACCUMULATE`] and the others.
    pub flags: u32,
    /// 0.
    pub reserved: i32,
    /// One a row.
    pub slots: *mut c_void,
    /// `[N, V]`: columns that leave a row.
    pub row_classes: Matrix,
}

/// Rows of student against a teacher's top-k.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SparseArgs {
    /// The student's side.
    pub row: RowArgs,
    /// `[N, K]`.
    pub indices: Matrix,
    /// `[N, K]`.
    pub values: Matrix,
    /// `[N]`.
    pub tail: Column,
    /// K.
    pub kept: i32,
    /// 0 tail, 1 teacher renormalised, 2 both.
    pub mode: i32,
    /// Values are logits.
    pub raw: i32,
    /// 0.
    pub reserved: i32,
}

/// From slots to value and metrics.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FinishArgs {
    /// One a row.
    pub slots: *const c_void,
    /// Their number.
    pub count: i64,
    /// f32\[1\].
    pub value: *mut c_void,
    /// f32\[1\] or NULL.
    pub dead: *mut c_void,
    /// f32\[1\] or NULL.
    pub infinite: *mut c_void,
    /// Divides all three.
    pub normalizer: f64,
}

/// Tensors of one launch over a list.
pub const TENSORS: usize = 256;

/// One tensor of a list; what the members mean depends on the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VectorTensor {
    /// First operand; AdamW: the parameter.
    pub x: *mut c_void,
    /// Second; AdamW: the gradient.
    pub y: *mut c_void,
    /// Third; AdamW: the master copy or NULL.
    pub z: *mut c_void,
    /// First moment.
    pub m: *mut c_void,
    /// Second moment.
    pub v: *mut c_void,
    /// Elements.
    pub length: i64,
    /// [`type_number`] of x.
    pub x_type: i32,
    /// Of y.
    pub y_type: i32,
    /// Of z.
    pub z_type: i32,
    /// Index of the first block of this tensor.
    pub first_chunk: i32,
    /// Learning rate.
    pub lr: f32,
    /// Weight decay.
    pub decay: f32,
}

impl VectorTensor {
    /// Nothing.
    pub const EMPTY: Self = Self {
        x: std::ptr::null_mut(),
        y: std::ptr::null_mut(),
        z: std::ptr::null_mut(),
        m: std::ptr::null_mut(),
        v: std::ptr::null_mut(),
        length: 0,
        x_type: 0,
        y_type: 0,
        z_type: 0,
        first_chunk: 0,
        lr: 0.0,
        decay: 0.0,
    };
}

/// A list of tensors.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct VectorArgs {
    /// The first `count` are used.
    pub tensors: [VectorTensor; TENSORS],
    /// A sum a block.
    pub partial: *mut c_void,
    /// Number of tensors.
    pub count: i32,
    /// 0: y = a x + b y; 1: z = a x y + b z.
    pub op: i32,
    /// Factor of x.
    pub a: f32,
    /// Factor of what is there.
    pub b: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Multiplies gradients.
    pub grad_scale: f32,
    /// 1 − beta1^t.
    pub correction1: f32,
    /// 1 − beta2^t.
    pub correction2: f32,
}

/// Sum of partial sums.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TotalArgs {
    /// f64.
    pub partial: *const c_void,
    /// Their number.
    pub count: i64,
    /// f64\[1\].
    pub total: *mut c_void,
}

/// Rows of one [`ListArgs`].
pub const LISTED: usize = 1024;

/// Rows of a chunk and their weights, carried by the launch itself.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct ListArgs {
    /// w of each.
    pub weights: [f64; LISTED],
    /// Number of each; −1: none.
    pub rows: [i32; LISTED],
    /// Where the weights go.
    pub to_weights: *mut c_void,
    /// Where the rows go.
    pub to_rows: *mut c_void,
    /// How many are used.
    pub count: i32,
    /// 0.
    pub reserved: i32,
}

/// Rows from one matrix to another.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CopyArgs {
    /// Absent: zeros.
    pub from: Matrix,
    /// Goal.
    pub to: Matrix,
    /// Source of each row, or NULL: its own number.
    pub from_rows: *const c_void,
    /// Goal of each row, or NULL: its own number.
    pub to_rows: *const c_void,
    /// Columns.
    pub columns: i32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

/// A matrix times a number on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScaleArgs {
    /// Multiplied where it lies.
    pub to: Matrix,
    /// f32\[1\].
    pub factor: *const c_void,
    /// Columns.
    pub columns: i32,
    /// 0.
    pub reserved: i32,
}

const _: () = {
    assert!(size_of::<RowArgs>() == 320 && size_of::<SparseArgs>() == 424);
    assert!(size_of::<FinishArgs>() == 48 && size_of::<TotalArgs>() == 24);
    assert!(size_of::<VectorTensor>() == 72 && size_of::<VectorArgs>() == 72 * TENSORS + 48);
    assert!(size_of::<ListArgs>() == 12 * LISTED + 24 && size_of::<CopyArgs>() == 88);
    assert!(size_of::<ScaleArgs>() == 48);
};
