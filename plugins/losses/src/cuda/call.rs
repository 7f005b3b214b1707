//! A call of a loss as launches: one for the rows, one for the sums.

use super::arguments::*;
use super::plan::{self, Facts, Route};
use super::rows::Found;
use super::session::Session;
use crate::names::layered;
use crate::settings::*;
use limbeck_sdk::{Error, LossCall, Ports, Result};
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

/// Value, metrics and gradients.
pub fn compute(session: &Session, spec: &Spec, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let (rows, pairs) = match spec {
        Spec::Dense(dense) => (dense_rows(session, dense, ports, call)?, 1),
        Spec::CrossEntropy(ce) => (labelled_rows(session, ce, ports, call)?, 1),
        Spec::Sparse(sparse) => (sparse_rows(session, sparse, ports, call)?, 1),
        Spec::Hidden(hidden) => hidden_rows(session, hidden, ports, call)?,
        _ => return Err(Error::unsupported("this loss has no CUDA kernel")),
    };
    finish(session, call, rows * pairs, pairs)
}

/// Where rows of pair `pair` leave their shares.
fn slots(call: &LossCall<'_>, rows: usize, pair: usize) -> Result<*mut c_void> {
    let (start, bytes) = call.workspace();
    let needed = (pair + 1) * rows * plan::SLOT_BYTES;
    if bytes < needed as u64 || (rows > 0 && start.is_null()) {
        let message = format!("a workspace of {bytes} bytes, plan() asked for {needed} or more");
        return Err(Error::invalid_argument(message));
    }
    Ok(start.wrapping_add(pair * rows * plan::SLOT_BYTES).cast())
}

fn finish(session: &Session, call: &LossCall<'_>, count: usize, pairs: usize) -> Result<()> {
    let raw = call.abi();
    let metric = |i: u64| match i < raw.num_metrics {
        true => session.scalar(raw.metrics.wrapping_add(i as usize)),
        false => Ok(std::ptr::null_mut()),
    };
    let arguments = FinishArgs {
        slots: slots(call, count, 0)?,
        count: count as i64,
        value: session.scalar(raw.value)?,
        dead: metric(0)?,
        infinite: metric(1)?,
        normalizer: call.normalizer() * pairs as f64,
    };
    let shape = plan::Shape { threads: 256, cluster: 1, shared_bytes: plan::SUM_SHARED };
    let stream = call.context().abi().stream.handle;
    // SAFETY: arguments of `finish`; buffers of the call on this device (checked), lent in the stream's order (R10).
    unsafe { session.device.launch("finish", shape, 1, &arguments, stream) }
}

/// The rows of a call before what is particular to a loss.
struct Prepared {
    arguments: RowArgs,
    facts: Facts,
    rows: usize,
}

fn prepare(
    session: &Session,
    call: &LossCall<'_>,
    student: &Found,
    teacher: Option<&Found>,
    grad: Option<Found>,
    accumulates: bool,
) -> Result<Prepared> {
    let width = student.columns;
    let accumulate = if accumulates { ACCUMULATE } else { 0 };
    let layout = grad.map(|grad| grad.layout);
    let vectors = if plan::stores_vectors(layout) { VECTOR_STORE } else { 0 };
    let arguments = RowArgs {
        student: student.matrix,
        teacher: teacher.map_or(Matrix::ABSENT, |teacher| teacher.matrix),
        grad: grad.map_or(Matrix::ABSENT, |grad| grad.matrix),
        class_mask: Column::ABSENT,
        targets: Column::ABSENT,
        rows: session.rows(call, student.rows)?,
        grad_factor: call.grad_factor(),
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
        slots: slots(call, student.rows, 0)?,
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
    Ok(Prepared { arguments, facts, rows: student.rows })
}

/// The gradient of input `name`, and whether it adds.
fn grad_of(
    session: &Session,
    ports: &Ports,
    call: &LossCall<'_>,
    name: &str,
    of: &Found,
) -> Result<(Option<Found>, bool)> {
    let missing = || Error::internal(format!("no port `{name}`"));
    let index = ports.input_index(name).ok_or_else(missing)?;
    let Some(view) = call.grad(index)? else { return Ok((None, false)) };
    Ok((Some(session.grad(&view, of)?), view.accumulate()))
}

impl Prepared {
    fn drops(&mut self, non_finite: NonFinite) {
        if non_finite == NonFinite::ZeroAndCount {
            self.arguments.flags |= ZERO_AND_COUNT;
        }
    }

    fn soften(&mut self, softening: Softening) {
        self.arguments.student_scale = (LOG2_E / softening.student) as f32;
        self.arguments.teacher_scale = (LOG2_E / softening.teacher) as f32;
        self.arguments.grad_factor *= softening.factor / softening.student;
        self.arguments.loss_factor = softening.factor;
    }

    fn masks(&mut self, class_mask: Column) {
        self.arguments.class_mask = class_mask;
        self.facts.masked = !class_mask.data.is_null();
    }

    /// The kernel; its slice goes into the arguments.
    fn route(&mut self, session: &Session) -> Route {
        let route = plan::route(&self.facts, session.device.capability());
        if let Route::Cluster { slice, .. } = route {
            self.arguments.slice = slice as i32;
        }
        route
    }

    /// Launches the rows.
    fn launch(&mut self, session: &Session, call: &LossCall<'_>, family: &str) -> Result<usize> {
        let route = self.route(session);
        let dtype = self.facts.student.dtype;
        let shape = route.shape(self.facts.width, dtype, None);
        let stream = call.context().abi().stream.handle;
        let name = route.kernel(family, dtype);
        // SAFETY: arguments of the family's kernels; views of the call on this device (checked), lent in the
        // stream's order (R10).
        unsafe { session.device.launch(&name, shape, self.rows, &self.arguments, stream) }?;
        Ok(self.rows)
    }
}

fn same_rows(student: &Found, teacher: &Found, name: &str) -> Result<()> {
    if student.rows == teacher.rows {
        return Ok(());
    }
    let message = format!("{} rows for {} of the student", teacher.rows, student.rows);
    Err(Error::invalid_argument(message).tensor(name))
}

fn dense_rows(
    session: &Session,
    dense: &Dense,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<usize> {
    let student = session.matrix(call, "student.logits")?;
    let teacher = session.matrix(call, "teacher.logits")?;
    same_rows(&student, &teacher, "teacher.logits")?;
    let (grad, adds) = grad_of(session, ports, call, "student.logits", &student)?;
    let mut row = prepare(session, call, &student, Some(&teacher), grad, adds)?;
    row.drops(dense.non_finite);
    row.masks(session.column(call, "class_mask")?);
    if dense.divergence != Divergence::LogitMse {
        row.soften(dense.softening);
        row.facts.clustered = true;
    }
    let width = match dense.vocab {
        Vocab::StudentTail => student.columns,
        _ => student.columns.min(teacher.columns),
    };
    row.facts.width = width;
    row.arguments.width = width as i32;
    let (first, second, largest) = parameters(dense.divergence);
    (row.arguments.first, row.arguments.second) = (first, second);
    if plan::keeps_narrow(row.facts.grad, largest) {
        row.arguments.flags |= NARROW_U;
    }
    let family = family(dense.divergence)
        .ok_or_else(|| Error::unsupported("this divergence has no CUDA kernel"))?;
    row.launch(session, call, family)
}

fn labelled_rows(
    session: &Session,
    ce: &CrossEntropy,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<usize> {
    let student = session.matrix(call, "student.logits")?;
    let (grad, adds) = grad_of(session, ports, call, "student.logits", &student)?;
    let mut row = prepare(session, call, &student, None, grad, adds)?;
    row.drops(ce.non_finite);
    row.masks(session.column(call, "class_mask")?);
    row.arguments.first = ce.smoothing as f32;
    row.facts.clustered = true;
    if row.arguments.rows.labels.data.is_null() {
        return Err(Error::invalid_argument("`labels` is absent").tensor("labels"));
    }
    row.launch(session, call, "ce")
}

fn sparse_rows(
    session: &Session,
    sparse: &Sparse,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<usize> {
    let student = session.matrix(call, "student.logits")?;
    let (grad, adds) = grad_of(session, ports, call, "student.logits", &student)?;
    let mut row = prepare(session, call, &student, None, grad, adds)?;
    row.drops(sparse.non_finite);
    row.soften(sparse.softening);
    let values = session.matrix(call, "teacher.topk.values")?;
    same_rows(&student, &values, "teacher.topk.values")?;
    let indices = session.matrix(call, "teacher.topk.indices")?;
    if (indices.rows, indices.columns) != (values.rows, values.columns) {
        let (rows, columns) = (indices.rows, indices.columns);
        let message =
            format!("[{rows}, {columns}] for values [{}, {}]", values.rows, values.columns);
        return Err(Error::invalid_argument(message).tensor("teacher.topk.indices"));
    }
    let tail = session.column(call, "teacher.topk.tail")?;
    if sparse.mode == SparseMode::Tail && sparse.values == TopkValues::Logits && tail.data.is_null()
    {
        let why = "raw logits need `teacher.topk.tail`: the mass outside the kept set is unknown";
        return Err(Error::invalid_argument(why).tensor("teacher.topk.tail"));
    }
    row.facts.clustered = true;
    row.facts.kept = Some(values.columns);
    let route = row.route(session);
    let arguments = SparseArgs {
        row: row.arguments,
        indices: indices.matrix,
        values: values.matrix,
        tail,
        kept: values.columns as i32,
        mode: match sparse.mode {
            SparseMode::Tail => 0,
            SparseMode::TeacherRenorm => 1,
            SparseMode::BothRenorm => 2,
        },
        raw: i32::from(sparse.values == TopkValues::Logits),
        reserved: 0,
    };
    let dtype = row.facts.student.dtype;
    let shape = route.shape(row.facts.width, dtype, Some(values.columns));
    if !session.device.has_shared(shape) {
        let message = format!("{} columns are too many for a sparse teacher", row.facts.width);
        return Err(Error::unsupported(message).tensor("student.logits"));
    }
    let stream = call.context().abi().stream.handle;
    let name = route.kernel("sparse", dtype);
    // SAFETY: arguments of the sparse kernels; as in `Prepared::launch`.
    unsafe { session.device.launch(&name, shape, row.rows, &arguments, stream) }?;
    Ok(row.rows)
}

/// Rows and pairs of layers.
fn hidden_rows(
    session: &Session,
    hidden: &Hidden,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<(usize, usize)> {
    let pairs = hidden.layers.len().max(1);
    let mut written: Vec<String> = Vec::new();
    let mut rows = 0;
    for index in 0..pairs {
        let pair = hidden.layers.get(index);
        let student_name = layered("student.hidden", pair.map(|pair| pair[0]));
        let teacher_name = layered("teacher.hidden", pair.map(|pair| pair[1]));
        let student = session.matrix(call, &student_name)?;
        let teacher = session.matrix(call, &teacher_name)?;
        same_rows(&student, &teacher, &teacher_name)?;
        let (grad, adds) = grad_of(session, ports, call, &student_name, &student)?;
        // A layer that stands in two pairs gets the sum of both gradients.
        let adds = adds || written.contains(&student_name);
        let mut row = prepare(session, call, &student, Some(&teacher), grad, adds)?;
        row.arguments.grad_factor /= pairs as f64;
        row.arguments.slots = slots(call, student.rows, index)?;
        let family = match hidden.kind {
            HiddenKind::Cosine { margin } => {
                row.arguments.first = margin as f32;
                row.arguments.targets = session.column(call, "targets")?;
                "cosine"
            }
            _ => "hidden_mse",
        };
        rows = row.launch(session, call, family)?;
        written.push(student_name);
    }
    Ok((rows, pairs))
}
