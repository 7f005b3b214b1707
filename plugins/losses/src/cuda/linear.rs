//! Losses on hidden states times a head: chunks of counted rows through products and the row kernel.
//!
//! Rows that do not count reach no product. Which rows count is read in host memory, so that sizes are known without
//! waiting for the device. Logits are f32; their gradient is rounded once, to the type of the head. The gradient of
//! the head is f32, summed over chunks. Refuses f16 students: their logits' gradients are too small for it.

use super::arguments::{ACCUMULATE, Column, CopyArgs, LISTED, ListArgs, Matrix, Rows, type_number};
use super::call::{grad_of, same_rows, sums, workspace};
use super::chunks::{Chunks, LinearShape, TILE, TeacherShape};
use super::launch::Device;
use super::lt::{Factor, Lt, Product};
use super::plan::{self, Layout, SLOT_BYTES, SUM_SHARED, Shape};
use super::prepared::{Gradient, Prepared, Site, Sums, entering};
use super::rows::Found;
use super::session::Session;
use crate::plugin::check_labels;
use crate::settings::{Dense, Linear};
use limbeck_sdk::{DType, Error, LossCall, Ports, Result, Views};
use std::ffi::c_void;
use std::ptr::null;

const COPY: Shape = Shape { threads: 256, cluster: 1, shared_bytes: SUM_SHARED };

/// Where the teacher's logits come from.
#[derive(Clone, Copy, Debug)]
pub enum Teacher {
    /// `[N, V']`, as they are.
    Logits(Found),
    /// States `[N, H']` times a head `[V', H']`.
    Product(Found, Found),
}

/// One call.
pub struct LinearCall<'a> {
    /// The GPU.
    pub device: &'static Device,
    /// Its products.
    pub lt: &'static Lt,
    /// Its stream.
    pub stream: *mut c_void,
    /// Student states `[N, H]`.
    pub hidden: Found,
    /// Student head `[V, H]`.
    pub head: Found,
    /// The teacher.
    pub teacher: Teacher,
    /// Gradient of the states.
    pub hidden_grad: Option<Gradient>,
    /// Gradient of the head.
    pub head_grad: Option<Gradient>,
    /// w of each row; `None`: it does not count.
    pub weights: &'a dyn Fn(usize) -> Option<f64>,
    /// grad_scale / normalizer.
    pub grad_factor: f64,
    /// Value and metrics.
    pub sums: Sums,
}

/// Rows, columns and type of a matrix.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    columns: usize,
    dtype: DType,
}

impl From<&Found> for Size {
    fn from(found: &Found) -> Self {
        Self { rows: found.rows, columns: found.columns, dtype: found.layout.dtype }
    }
}

/// What chunks depend on, from the student's states and head and the teacher's logits or states and head.
fn shape(linear: &Linear, [hidden, head]: [Size; 2], teacher: &[Size]) -> Result<LinearShape> {
    let one_type = |states: Size, head: Size, name: &str| {
        if states.dtype == head.dtype {
            return Ok(());
        }
        let [a, b] = [states.dtype.name(), head.dtype.name()];
        let message = format!("states are {a}, the head is {b}: a product takes one type");
        Err(Error::unsupported(message).tensor(name))
    };
    one_type(hidden, head, "student.head")?;
    if head.dtype == DType::F16 {
        let message = "the gradient of f16 logits underflows: use bf16 or f32 for the student";
        return Err(Error::unsupported(message).tensor("student.head"));
    }
    let (columns, teacher) = match teacher {
        [logits] => (logits.columns, TeacherShape::Logits),
        [states, head] => {
            one_type(*states, *head, "teacher.head")?;
            (head.rows, TeacherShape::Product(states.columns, head.dtype.bytes()))
        }
        _ => return Err(Error::internal("a teacher of neither logits nor states and head")),
    };
    let width = head.rows;
    let depths =
        [head.columns, if let TeacherShape::Product(depth, _) = teacher { depth } else { 1 }];
    if width == 0 || columns == 0 || depths.contains(&0) {
        return Err(Error::invalid_argument("a product of nothing").tensor("student.head"));
    }
    Ok(LinearShape {
        rows: hidden.rows,
        width,
        teacher_width: width.min(columns),
        entering: entering(linear.dense.vocab, width, columns),
        depth: head.columns,
        element: head.dtype.bytes(),
        teacher,
        asked: linear.chunk,
    })
}

fn side_by_side(matrix: &Found, name: &str) -> Result<()> {
    let Layout { row, column, .. } = matrix.layout;
    if column == 1 && row >= matrix.columns as i64 {
        return Ok(());
    }
    let message = format!("strides [{row}, {column}]: a product takes rows of neighbours");
    Err(Error::unsupported(message).tensor(name))
}

/// Bytes of workspace of a call of the contract.
///
/// # Errors
/// LMB_UNSUPPORTED for types without products and more columns than fit.
pub fn plan(session: &Session, linear: &Linear, inputs: &Views<'_>) -> Result<u64> {
    let size = |name: &str| -> Result<Option<Size>> {
        let Some(view) = inputs.named(name)? else { return Ok(None) };
        if !plan::is_taken(view.dtype()) {
            let message = format!("kernels take f32, f16 and bf16, not {}", view.dtype().name());
            return Err(Error::unsupported(message).tensor(name));
        }
        let of = |axis: usize| view.shape().get(axis).map_or(0, |size| (*size).max(0) as usize);
        if of(0).max(of(1)) > plan::MAX_COLUMNS {
            let message = format!("{:?}, at most {} each", view.shape(), plan::MAX_COLUMNS);
            return Err(Error::unsupported(message).tensor(name));
        }
        Ok(Some(Size { rows: of(0), columns: of(1), dtype: view.dtype() }))
    };
    let needed = |name: &str| {
        let absent = || Error::invalid_argument(format!("`{name}` is absent")).tensor(name);
        size(name)?.ok_or_else(absent)
    };
    let student = [needed("student.hidden")?, needed("student.head")?];
    let teacher = match size("teacher.logits")? {
        Some(logits) => vec![logits],
        None => vec![needed("teacher.hidden")?, needed("teacher.head")?],
    };
    let shape = shape(linear, student, &teacher)?;
    Ok(Chunks::of(&shape, session.device.capability()).bytes as u64)
}

/// A call of the contract.
///
/// # Errors
/// LMB_INVALID_ARGUMENT for what does not fit, what driver and cuBLASLt say.
pub fn compute(
    session: &Session,
    linear: &Linear,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<()> {
    let (hidden, head) =
        (session.matrix(call, "student.hidden")?, session.matrix(call, "student.head")?);
    let teacher = if call.inputs().named("teacher.logits")?.is_some() {
        let logits = session.matrix(call, "teacher.logits")?;
        same_rows(hidden.rows, &logits, "teacher.logits")?;
        Teacher::Logits(logits)
    } else {
        let states = session.matrix(call, "teacher.hidden")?;
        same_rows(hidden.rows, &states, "teacher.hidden")?;
        Teacher::Product(states, session.matrix(call, "teacher.head")?)
    };
    let counted = call.counted()?;
    check_labels(&counted, hidden.rows, head.rows, &[])?;
    let lt = session.lt.ok_or_else(|| Error::internal("activated without cuBLASLt"))?;
    let fused = LinearCall {
        device: session.device,
        lt,
        stream: call.context().abi().stream.handle,
        hidden_grad: grad_of(session, ports, call, "student.hidden", &hidden)?,
        head_grad: grad_of(session, ports, call, "student.head", &head)?,
        hidden,
        head,
        teacher,
        weights: &|n| counted.weight(n),
        grad_factor: call.grad_factor(),
        sums: sums(session, call, 1)?,
    };
    let chunks = fused.chunks(linear)?;
    let start = workspace(call, chunks.bytes)?;
    // SAFETY: views and workspace of the call on this device (checked), lent in the stream's order (R10).
    unsafe { fused.run(&linear.dense, &chunks, start) }
}

/// One chunk on its way.
struct Chunk<'a, 'c> {
    call: &'a LinearCall<'c>,
    chunks: &'a Chunks,
    start: *mut u8,
    /// With those that fill it up.
    rows: usize,
    /// Slots of the chunks before.
    before: usize,
}

impl LinearCall<'_> {
    /// How the call is cut.
    ///
    /// # Errors
    /// LMB_UNSUPPORTED for types and strides that no product takes.
    pub fn chunks(&self, linear: &Linear) -> Result<Chunks> {
        side_by_side(&self.head, "student.head")?;
        if let Some(grad) = &self.head_grad {
            side_by_side(&grad.to, "student.head")?;
            if grad.to.layout.dtype != DType::F32 {
                let name = grad.to.layout.dtype.name();
                let message =
                    format!("the gradient of the head is summed in f32, the buffer is {name}");
                return Err(Error::unsupported(message).tensor("student.head"));
            }
        }
        let teacher: Vec<Size> = match &self.teacher {
            Teacher::Logits(logits) => vec![logits.into()],
            Teacher::Product(states, head) => {
                side_by_side(head, "teacher.head")?;
                vec![states.into(), head.into()]
            }
        };
        let shape = shape(linear, [(&self.hidden).into(), (&self.head).into()], &teacher)?;
        Ok(Chunks::of(&shape, self.device.capability()))
    }

    /// Value, metrics and gradients.
    ///
    /// # Errors
    /// What driver and cuBLASLt say.
    ///
    /// # Safety
    /// Matrices, outputs and `chunks.bytes` from `start` on are memory of the device, valid in the stream's order
    /// until it has passed; nobody else uses gradients and workspace meanwhile.
    pub unsafe fn run(&self, dense: &Dense, chunks: &Chunks, start: *mut u8) -> Result<()> {
        let weight = |n: usize| (self.weights)(n).filter(|w| *w != 0.0);
        let counted: Vec<(usize, f64)> =
            (0..self.hidden.rows).filter_map(|n| weight(n).map(|w| (n, w))).collect();
        if counted.len() < self.hidden.rows {
            self.clear(self.hidden_grad)?;
        }
        if counted.is_empty() {
            self.clear(self.head_grad)?;
        }
        let mut before = 0;
        for range in chunks.ranges(counted.len()) {
            let first = range.start == 0;
            let listed = &counted[range];
            let rows = listed.len().next_multiple_of(TILE);
            let chunk = Chunk { call: self, chunks, start, rows, before };
            chunk.list(listed)?;
            chunk.logits()?;
            chunk.diverge(dense)?;
            chunk.gradients(first)?;
            before += rows;
        }
        let slots = start.wrapping_add(chunks.slots).cast_const().cast();
        // SAFETY: slots of the chunks; the caller's promise.
        unsafe { self.sums.launch(self.device, self.stream, slots, before) }
    }

    /// Zeros, unless it adds.
    fn clear(&self, grad: Option<Gradient>) -> Result<()> {
        let Some(Gradient { to, adds: false }) = grad else { return Ok(()) };
        let arguments = copy(Matrix::ABSENT, to.matrix, to.columns);
        // SAFETY: arguments of the kernel; `run`'s promise.
        unsafe { self.device.launch("linear_copy", COPY, to.rows, &arguments, self.stream) }
    }
}

fn copy(from: Matrix, to: Matrix, columns: usize) -> CopyArgs {
    let columns = columns as i32;
    CopyArgs { from, to, from_rows: null(), to_rows: null(), columns, flags: 0 }
}

impl Chunk<'_, '_> {
    fn at(&self, offset: usize) -> *mut c_void {
        self.start.wrapping_add(offset).cast()
    }

    /// A part of the workspace as rows of the chunk.
    fn part(&self, offset: usize, stride: usize, columns: usize, dtype: DType) -> Found {
        let (data, row) = (self.at(offset), stride as i64);
        let number = type_number(dtype).unwrap_or_default();
        Found {
            matrix: Matrix { data, row, column: 1, dtype: number, reserved: 0 },
            layout: Layout { address: data as usize, row, column: 1, dtype },
            rows: self.rows,
            columns,
        }
    }

    /// Numbers and weights of the rows; those that fill up have number −1 and weight 0.
    fn list(&self, listed: &[(usize, f64)]) -> Result<()> {
        for first in (0..self.rows).step_by(LISTED) {
            let count = LISTED.min(self.rows - first);
            let mut arguments = Box::new(ListArgs {
                weights: [0.0; LISTED],
                rows: [-1; LISTED],
                to_weights: self.at(self.chunks.weights + first * size_of::<f64>()),
                to_rows: self.at(self.chunks.list + first * size_of::<i32>()),
                count: count as i32,
                reserved: 0,
            });
            for (k, (row, weight)) in listed.iter().skip(first).take(count).enumerate() {
                arguments.rows[k] = *row as i32;
                arguments.weights[k] = *weight;
            }
            // SAFETY: arguments of the kernel; parts of the workspace.
            unsafe {
                self.call.device.launch("linear_list", COPY, 1, &*arguments, self.call.stream)
            }?;
        }
        Ok(())
    }

    /// The chunk's rows of a matrix, into the workspace.
    fn gather(&self, from: &Found, to: &Found) -> Result<()> {
        let mut arguments = copy(from.matrix, to.matrix, to.columns);
        arguments.from_rows = self.at(self.chunks.list).cast_const();
        let (device, stream) = (self.call.device, self.call.stream);
        // SAFETY: arguments of the kernel; rows that count of `from`, rows of the chunk in `to`.
        unsafe { device.launch("linear_copy", COPY, self.rows, &arguments, stream) }
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        let scratch = self.at(self.chunks.scratch);
        // SAFETY: `run`'s promise; the scratch is that of cuBLASLt.
        unsafe { self.call.lt.multiply(product, scratch, self.call.stream) }
    }

    /// states · headᵀ into logits: row-major on our side, so the head comes first, turned round.
    fn project(&self, states: &Found, head: &Found, logits: &Found) -> Result<()> {
        self.multiply(&Product {
            size: [logits.columns, self.rows, head.columns],
            a: factor(head, true),
            b: factor(states, false),
            to: logits.matrix.data,
            stride: logits.layout.row as usize,
            adds: false,
        })
    }

    fn states(&self) -> Found {
        let (columns, dtype) = (self.call.head.columns, self.call.head.layout.dtype);
        self.part(self.chunks.states, columns, columns, dtype)
    }
    fn student_logits(&self) -> Found {
        self.part(self.chunks.logits, self.chunks.stride, self.call.head.rows, DType::F32)
    }
    fn teacher_logits(&self) -> Found {
        let columns = match self.call.teacher {
            Teacher::Logits(logits) => logits.columns,
            Teacher::Product(_, head) => head.rows,
        };
        let columns = columns.min(self.call.head.rows);
        self.part(self.chunks.teacher_logits, self.chunks.teacher_stride, columns, DType::F32)
    }
    fn logits_grad(&self) -> Found {
        let (columns, dtype) = (self.call.head.rows, self.call.head.layout.dtype);
        self.part(self.chunks.logits_grad, self.chunks.grad_stride, columns, dtype)
    }

    /// Logits of both sides.
    fn logits(&self) -> Result<()> {
        let to = self.teacher_logits();
        match self.call.teacher {
            Teacher::Logits(logits) => self.gather(&logits, &to)?,
            Teacher::Product(states, head) => {
                let dtype = head.layout.dtype;
                let part =
                    self.part(self.chunks.teacher_states, states.columns, states.columns, dtype);
                self.gather(&states, &part)?;
                self.project(&part, &head, &to)?;
            }
        }
        let states = self.states();
        self.gather(&self.call.hidden, &states)?;
        self.project(&states, &self.call.head, &self.student_logits())
    }

    fn wants(&self) -> bool {
        self.call.hidden_grad.is_some() || self.call.head_grad.is_some()
    }

    fn diverge(&self, dense: &Dense) -> Result<()> {
        let weights = Column {
            data: self.at(self.chunks.weights).cast_const(),
            stride: 1,
            dtype: type_number(DType::F64).unwrap_or_default(),
            reserved: 0,
        };
        let (labels, mask) = (Column::ABSENT, Column::ABSENT);
        let site = Site {
            device: self.call.device,
            stream: self.call.stream,
            rows: Rows { count: self.rows as i64, labels, mask, weights },
            slots: self.at(self.chunks.slots + self.before * SLOT_BYTES),
            grad_factor: self.call.grad_factor,
        };
        let grad = self.wants().then(|| Gradient { to: self.logits_grad(), adds: false });
        let (student, teacher) = (self.student_logits(), self.teacher_logits());
        // SAFETY: parts of the workspace, written before in this stream.
        unsafe { Prepared::new(&site, &student, Some(&teacher), grad).diverge(dense) }
    }

    /// ds · W into the gradient of the states, dsᵀ · h into that of the head.
    fn gradients(&self, first: bool) -> Result<()> {
        let (head, ds) = (&self.call.head, self.logits_grad());
        let depth = head.columns;
        if let Some(grad) = self.call.hidden_grad {
            let dx = self.part(self.chunks.states_grad, depth, depth, DType::F32);
            self.multiply(&Product {
                size: [depth, self.rows, head.rows],
                a: factor(head, false),
                b: factor(&ds, false),
                to: dx.matrix.data,
                stride: depth,
                adds: false,
            })?;
            let mut arguments = copy(dx.matrix, grad.to.matrix, depth);
            arguments.to_rows = self.at(self.chunks.list).cast_const();
            arguments.flags = if grad.adds { ACCUMULATE } else { 0 };
            let (device, stream) = (self.call.device, self.call.stream);
            // SAFETY: arguments of the kernel; rows of the chunk, rows that count of the gradient.
            unsafe { device.launch("linear_copy", COPY, self.rows, &arguments, stream) }?;
        }
        if let Some(grad) = self.call.head_grad {
            self.multiply(&Product {
                size: [depth, head.rows, self.rows],
                a: factor(&self.states(), false),
                b: factor(&ds, true),
                to: grad.to.matrix.data,
                stride: grad.to.layout.row as usize,
                adds: grad.adds || !first,
            })?;
        }
        Ok(())
    }
}

/// A row-major matrix as the column-major one of its transpose.
fn factor(matrix: &Found, transposed: bool) -> Factor {
    Factor {
        data: matrix.matrix.data.cast_const(),
        dtype: matrix.layout.dtype,
        stride: matrix.layout.row as usize,
        transposed,
    }
}
