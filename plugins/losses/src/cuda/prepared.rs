//! Rows on their way to a launch: from matrices and settings to the arguments of a row kernel.
//!
//! Knows no call of the contract, so that programs without a host launch the same way.

use super::arguments::*;
use super::launch::Device;
use super::plan::{self, Facts, Route, Shape};
use super::rows::Found;
use crate::settings::{Dense, Divergence, NonFinite, Softening, Vocab};
use limbeck_sdk::{Error, Result};
use std::f64::consts::LOG2_E;
use std::ffi::c_void;

/// The kernels of a divergence; `None`: it has none.
pub fn family(divergence: Divergence) -> Option<&'static str> {
    use Divergence as D;
    Some(match divergence {
        D::ForwardKl => "fkl",
        D::SoftCe => "soft_ce",
        D::ReverseKl => "rkl",
        D::SymKl { .. } => "sym_kl",
        D::Tvd => "tvd",
        D::Gjsd { .. } => "gjsd",
        D::Skl { .. } => "skl",
        D::Srkl { .. } => "srkl",
        D::LogitMse => "logit_mse",
        _ => return None,
    })
}

/// The two numbers of a divergence's arithmetic, and how large ∂ℓ/∂q can get.
fn parameters(divergence: Divergence) -> (f32, f32, f64) {
    use Divergence as D;
    match divergence {
        D::Gjsd { beta } => (beta as f32, 0.0, 1.0),
        D::Skl { alpha } => (alpha as f32, 0.0, (1.0 - alpha) / alpha),
        D::Srkl { alpha, detach } => {
            let through = if detach { 0.0 } else { alpha as f32 };
            ((1.0 - alpha) as f32, through, 1.0)
        }
        D::SymKl { lambda } => (lambda as f32, 0.0, 1.0),
        _ => (0.0, 0.0, 1.0),
    }
}

/// Columns that enter of so many of the student and the teacher.
pub fn entering(vocab: Vocab, student: usize, teacher: usize) -> usize {
    if vocab == Vocab::StudentTail { student } else { student.min(teacher) }
}

/// Where rows are computed, which of them count, and where their shares go.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// The GPU.
    pub device: &'static Device,
    /// Its stream.
    pub stream: *mut c_void,
    /// Which rows count.
    pub rows: Rows,
    /// A slot a row.
    pub slots: *mut c_void,
    /// grad_scale / normalizer.
    pub grad_factor: f64,
}

/// Where a gradient goes.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    /// The buffer.
    pub to: Found,
    /// Adds to what is there.
    pub adds: bool,
}

/// Where sums over rows go.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// f32\[1\].
    pub value: *mut c_void,
    /// f32\[1\] or NULL: rows without a live logit.
    pub dead: *mut c_void,
    /// f32\[1\] or NULL: rows whose loss is not finite.
    pub infinite: *mut c_void,
    /// Divides all three.
    pub normalizer: f64,
}

impl Sums {
    /// Adds up `count` slots from `slots` on.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// Slots that rows of this stream write, outputs of this device that stay until the stream has passed.
    pub unsafe fn launch(
        &self,
        device: &Device,
        stream: *mut c_void,
        slots: *const c_void,
        count: usize,
    ) -> Result<()> {
        let arguments = FinishArgs {
            slots,
            count: count as i64,
            value: self.value,
            dead: self.dead,
            infinite: self.infinite,
            normalizer: self.normalizer,
        };
        let shape = Shape { threads: 256, cluster: 1, shared_bytes: plan::SUM_SHARED };
        // SAFETY: arguments of `finish`; the caller's promise.
        unsafe { device.launch("finish", shape, 1, &arguments, stream) }
    }
}

/// The rows of a launch before what is particular to a loss.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    /// The kernel's arguments so far.
    pub arguments: RowArgs,
    /// What the choice of the kernel needs to know.
    pub facts: Facts,
    /// Their number.
    pub rows: usize,
    device: &'static Device,
    stream: *mut c_void,
}

impl Prepared {
    /// Rows at temperature 1 over all columns of the student.
    pub fn new(
        site: &Site,
        student: &Found,
        teacher: Option<&Found>,
        grad: Option<Gradient>,
    ) -> Self {
        let width = student.columns;
        let accumulate = if grad.is_some_and(|grad| grad.adds) { ACCUMULATE } else { 0 };
        let layout = grad.map(|grad| grad.to.layout);
        let vectors = if plan::stores_vectors(layout) { VECTOR_STORE } else { 0 };
        let arguments = RowArgs {
            student: student.matrix,
            teacher: teacher.map_or(Matrix::ABSENT, |teacher| teacher.matrix),
            grad: grad.map_or(Matrix::ABSENT, |grad| grad.to.matrix),
            class_mask: Column::ABSENT,
            targets: Column::ABSENT,
            rows: site.rows,
            grad_factor: site.grad_factor,
            loss_factor: 1.0,
            student_scale: LOG2_E as f32,
            teacher_scale: LOG2_E as f32,
            first: 0.0,
            second: 0.0,
            width: width as i32,
            teacher_width: teacher.map_or(0, |teacher| teacher.columns) as i32,
            columns: width as i32,
            slice: 0,
            flags: accumulate | vectors,
            reserved: 0,
            slots: site.slots,
            row_classes: Matrix::ABSENT,
        };
        let facts = Facts {
            width,
            student: student.layout,
            teacher: teacher.map(|teacher| teacher.layout),
            grad: layout,
            masked: false,
            clustered: false,
            kept: None,
        };
        let (rows, device, stream) = (student.rows, site.device, site.stream);
        Self { arguments, facts, rows, device, stream }
    }

    /// What becomes of infinite rows.
    pub fn drops(&mut self, non_finite: NonFinite) {
        if non_finite == NonFinite::ZeroAndCount {
            self.arguments.flags |= ZERO_AND_COUNT;
        }
    }

    /// Temperatures and F.
    pub fn soften(&mut self, softening: Softening) {
        self.arguments.student_scale = (LOG2_E / softening.student) as f32;
        self.arguments.teacher_scale = (LOG2_E / softening.teacher) as f32;
        self.arguments.grad_factor *= softening.factor / softening.student;
        self.arguments.loss_factor = softening.factor;
    }

    /// Columns that leave both sides.
    pub fn masks(&mut self, class_mask: Column) {
        self.arguments.class_mask = class_mask;
        self.facts.masked = !class_mask.data.is_null();
    }

    /// Columns that leave single rows.
    pub fn masks_rows(&mut self, row_classes: Matrix) {
        self.arguments.row_classes = row_classes;
        self.facts.masked = true;
    }

    /// A divergence from the teacher's rows, launched.
    ///
    /// # Errors
    /// LMB_UNSUPPORTED for one without kernels, what the driver says.
    ///
    /// # Safety
    /// As [`Device::launch`].
    pub unsafe fn diverge(mut self, dense: &Dense) -> Result<()> {
        self.drops(dense.non_finite);
        if dense.divergence != Divergence::LogitMse {
            self.soften(dense.softening);
            self.facts.clustered = true;
        }
        let columns = [self.arguments.columns, self.arguments.teacher_width].map(|n| n as usize);
        let width = entering(dense.vocab, columns[0], columns[1]);
        self.facts.width = width;
        self.arguments.width = width as i32;
        let (first, second, largest) = parameters(dense.divergence);
        (self.arguments.first, self.arguments.second) = (first, second);
        if plan::keeps_narrow(self.facts.grad, largest) {
            self.arguments.flags |= NARROW_U;
        }
        let family = family(dense.divergence)
            .ok_or_else(|| Error::unsupported("this divergence has no CUDA kernel"))?;
        // SAFETY: the caller's promise.
        unsafe { self.launch(family) }
    }

    /// The kernel; its slice goes into the arguments.
    pub fn route(&mut self) -> Route {
        let route = plan::route(&self.facts, self.device.capability());
        if let Route::Cluster { slice, .. } = route {
            self.arguments.slice = slice as i32;
        }
        route
    }

    /// Launches the rows with the kernel of `family`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// As [`Device::launch`].
    pub unsafe fn launch(mut self, family: &str) -> Result<()> {
        let route = self.route();
        let dtype = self.facts.student.dtype;
        let shape = route.shape(self.facts.width, dtype, None);
        let name = route.kernel(family, dtype);
        // SAFETY: arguments of the family's kernels; the caller's promise.
        unsafe { self.device.launch(&name, shape, self.rows, &self.arguments, self.stream) }
    }
}
