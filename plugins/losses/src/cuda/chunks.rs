//! The chunks of a fused linear loss and where their parts lie in the workspace. Pure.
//!
//! Logits of a chunk are f32 and in memory at once, of both sides. Their gradient lies over the student's: in f32 for
//! an f32 head, else in 16 bits where a row is on chip before it is written, and beside them where it is not.

use super::lt::WORKSPACE_BYTES;
use super::plan::{Capability, Facts, Layout, Route, SLOT_BYTES, route};
use limbeck_sdk::DType;
use std::ops::Range;

/// Memory for the logits of a chunk, if the settings do not name its rows: 2048 rows of 128,256 columns.
const BUDGET_BYTES: usize = 2 << 30;
/// Fewer rows than this reread the head too often to be worth their memory.
const MIN_ROWS: usize = 512;
/// Chosen chunks are a multiple of this.
const STEP: usize = 256;
/// Rows of a chunk are filled up to a multiple of this with rows of weight 0: few sizes of products, whole tiles.
pub const TILE: usize = 64;
/// Start of a part, and columns of a row of logits: both keep rows at 16-byte addresses.
const PART: usize = 256;
const COLUMNS: usize = 8;

/// Where the teacher's logits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TeacherShape {
    /// As they are.
    Logits,
    /// States of that many columns times a head, of elements of so many bytes.
    Product(usize, usize),
}

/// What a call is, as far as chunks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// N.
    pub rows: usize,
    /// Columns of the student's logits.
    pub width: usize,
    /// Columns that enter on the teacher's side.
    pub teacher_width: usize,
    /// Columns that the kernel goes over.
    pub entering: usize,
    /// Columns of the student's states.
    pub depth: usize,
    /// Bytes of an element of the student's head.
    pub element: usize,
    /// The teacher.
    pub teacher: TeacherShape,
    /// Rows of a chunk; 0: as many as fit.
    pub asked: usize,
}

/// Offsets of the parts of a workspace, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// Rows that count of a chunk, at most.
    pub rows: usize,
    /// A slot a row, of all chunks.
    pub slots: usize,
    /// Numbers of the rows of a chunk.
    pub list: usize,
    /// Their weights.
    pub weights: usize,
    /// The student's states.
    pub states: usize,
    /// The teacher's.
    pub teacher_states: usize,
    /// Gradient of the states, f32.
    pub states_grad: usize,
    /// The student's logits, f32.
    pub logits: usize,
    /// Columns between their rows.
    pub stride: usize,
    /// The teacher's logits, f32.
    pub teacher_logits: usize,
    /// Columns between their rows.
    pub teacher_stride: usize,
    /// Gradient of the logits.
    pub logits_grad: usize,
    /// Elements between its rows.
    pub grad_stride: usize,
    /// For products.
    pub scratch: usize,
    /// All of it.
    pub bytes: usize,
}

/// Whether a 16-bit gradient of f32 logits can lie over them: a block that reads a row again while others write
/// would see their gradient.
fn lies_over(shape: &LinearShape, device: Capability) -> bool {
    let packed = Layout { address: 0, row: COLUMNS as i64, column: 1, dtype: DType::F32 };
    let facts = Facts {
        width: shape.entering,
        student: packed,
        teacher: Some(packed),
        grad: Some(packed),
        masked: false,
        clustered: true,
        kept: None,
    };
    shape.element == 4 || matches!(route(&facts, device), Route::Cluster { .. })
}

impl Chunks {
    /// The plan of a call on `device`.
    pub fn of(shape: &LinearShape, device: Capability) -> Self {
        let stride = shape.width.next_multiple_of(COLUMNS);
        let teacher_stride = shape.teacher_width.next_multiple_of(COLUMNS);
        let over = lies_over(shape, device);
        let beside = if over { 0 } else { shape.element * stride };
        let chosen = BUDGET_BYTES / (4 * (stride + teacher_stride) + beside).max(1);
        let chosen = chosen.max(MIN_ROWS) / STEP * STEP;
        let asked = if shape.asked == 0 { chosen } else { shape.asked };
        let rows = asked.min(shape.rows).max(1);
        let padded = rows.next_multiple_of(TILE);
        let slots = shape.rows / rows * padded + (shape.rows % rows).next_multiple_of(TILE);
        let (teacher_depth, teacher_element) = match shape.teacher {
            TeacherShape::Logits => (0, 0),
            TeacherShape::Product(depth, element) => (depth, element),
        };
        let mut bytes = 0;
        let mut part = |size: usize| {
            let start = bytes;
            bytes += size.next_multiple_of(PART);
            start
        };
        let mut plan = Self {
            rows,
            slots: part(slots * SLOT_BYTES),
            list: part(padded * size_of::<i32>()),
            weights: part(padded * size_of::<f64>()),
            states: part(padded * shape.depth * shape.element),
            teacher_states: part(padded * teacher_depth * teacher_element),
            states_grad: part(padded * shape.depth * size_of::<f32>()),
            logits: part(padded * stride * size_of::<f32>()),
            stride,
            teacher_logits: part(padded * teacher_stride * size_of::<f32>()),
            teacher_stride,
            logits_grad: part(padded * beside),
            grad_stride: stride,
            scratch: part(WORKSPACE_BYTES),
            bytes: 0,
        };
        if over {
            plan.logits_grad = plan.logits;
            plan.grad_stride = stride * size_of::<f32>() / shape.element.max(1);
        }
        plan.bytes = bytes;
        plan
    }

    /// Ranges of the chunks of so many rows that count.
    pub fn ranges(&self, counted: usize) -> impl Iterator<Item = Range<usize>> {
        let rows = self.rows;
        (0..counted).step_by(rows).map(move |start| start..(start + rows).min(counted))
    }
}
