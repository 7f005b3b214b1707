//! A call of a loss as launches: one for the rows, one for the sums.

use super::arguments::*;
use super::plan;
use super::prepared::{Gradient, Prepared, Site, Sums};
use super::rows::Found;
use super::session::Session;
use crate::names::layered;
use crate::settings::*;
use limbeck_sdk::{Error, LossCall, Ports, Result};
use std::ffi::c_void;

/// Value, metrics and gradients.
pub fn compute(session: &Session, spec: &Spec, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let (rows, pairs) = match spec {
        Spec::Dense(dense) => (dense_rows(session, dense, ports, call)?, 1),
        Spec::CrossEntropy(ce) => (labelled_rows(session, ce, ports, call)?, 1),
        Spec::Sparse(sparse) => (sparse_rows(session, sparse, ports, call)?, 1),
        Spec::Hidden(hidden) => hidden_rows(session, hidden, ports, call)?,
        Spec::Linear(linear) => return super::linear::compute(session, linear, ports, call),
        _ => return Err(Error::unsupported("this loss has no CUDA kernel")),
    };
    let slots = slots(call, rows * pairs, 0)?;
    let stream = call.context().abi().stream.handle;
    // SAFETY: slots of the rows above; outputs of the call on this device (checked), lent in the stream's order (R10).
    unsafe { sums(session, call, pairs)?.launch(session.device, stream, slots, rows * pairs) }
}

/// Where rows of pair `pair` leave their shares.
fn slots(call: &LossCall<'_>, rows: usize, pair: usize) -> Result<*mut c_void> {
    let needed = (pair + 1) * rows * plan::SLOT_BYTES;
    let start = workspace(call, needed)?;
    Ok(start.wrapping_add(pair * rows * plan::SLOT_BYTES).cast())
}

/// The workspace, if it has so many bytes.
pub(super) fn workspace(call: &LossCall<'_>, needed: usize) -> Result<*mut u8> {
    let (start, bytes) = call.workspace();
    if bytes < needed as u64 || (needed > 0 && start.is_null()) {
        let message = format!("a workspace of {bytes} bytes, plan() asked for {needed} or more");
        return Err(Error::invalid_argument(message));
    }
    Ok(start)
}

/// Where value and metrics go, for the mean over `pairs`.
pub(super) fn sums(session: &Session, call: &LossCall<'_>, pairs: usize) -> Result<Sums> {
    let raw = call.abi();
    let metric = |i: u64| match i < raw.num_metrics {
        true => session.scalar(raw.metrics.wrapping_add(i as usize)),
        false => Ok(std::ptr::null_mut()),
    };
    let (value, dead, infinite) = (session.scalar(raw.value)?, metric(0)?, metric(1)?);
    Ok(Sums { value, dead, infinite, normalizer: call.normalizer() * pairs as f64 })
}

/// Rows of the call, `pair` of the pairs of layers.
fn site(session: &Session, call: &LossCall<'_>, rows: usize, pair: usize) -> Result<Site> {
    Ok(Site {
        device: session.device,
        stream: call.context().abi().stream.handle,
        rows: session.rows(call, rows)?,
        slots: slots(call, rows, pair)?,
        grad_factor: call.grad_factor(),
    })
}

/// Where the gradient of input `name` goes, if it is wanted.
pub(super) fn grad_of(
    session: &Session,
    ports: &Ports,
    call: &LossCall<'_>,
    name: &str,
    of: &Found,
) -> Result<Option<Gradient>> {
    let missing = || Error::internal(format!("no port `{name}`"));
    let index = ports.input_index(name).ok_or_else(missing)?;
    let Some(view) = call.grad(index)? else { return Ok(None) };
    Ok(Some(Gradient { to: session.grad(&view, of)?, adds: view.accumulate() }))
}

/// Refuses a teacher of another number of rows.
pub(super) fn same_rows(rows: usize, teacher: &Found, name: &str) -> Result<()> {
    if rows == teacher.rows {
        return Ok(());
    }
    let message = format!("{} rows for {rows} of the student", teacher.rows);
    Err(Error::invalid_argument(message).tensor(name))
}

/// Rows of `student.logits`, beside those of a dense teacher if there is one.
fn logit_rows(
    session: &Session,
    ports: &Ports,
    call: &LossCall<'_>,
    teacher: Option<&str>,
) -> Result<Prepared> {
    let student = session.matrix(call, "student.logits")?;
    let found = teacher.map(|name| session.matrix(call, name)).transpose()?;
    if let (Some(found), Some(name)) = (&found, teacher) {
        same_rows(student.rows, found, name)?;
    }
    let grad = grad_of(session, ports, call, "student.logits", &student)?;
    Ok(Prepared::new(&site(session, call, student.rows, 0)?, &student, found.as_ref(), grad))
}

fn dense_rows(
    session: &Session,
    dense: &Dense,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<usize> {
    let mut row = logit_rows(session, ports, call, Some("teacher.logits"))?;
    row.masks(session.column(call, "class_mask")?);
    let rows = row.rows;
    // SAFETY: views of the call on this device (checked), lent in the stream's order (R10).
    unsafe { row.diverge(dense) }?;
    Ok(rows)
}

fn labelled_rows(
    session: &Session,
    ce: &CrossEntropy,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<usize> {
    let mut row = logit_rows(session, ports, call, None)?;
    row.drops(ce.non_finite);
    row.masks(session.column(call, "class_mask")?);
    if call.inputs().named("row_classes")?.is_some() {
        row.masks_rows(session.matrix(call, "row_classes")?.matrix);
    }
    row.arguments.first = ce.smoothing as f32;
    row.facts.clustered = true;
    if row.arguments.rows.labels.data.is_null() {
        return Err(Error::invalid_argument("`labels` is absent").tensor("labels"));
    }
    let rows = row.rows;
    // SAFETY: as in `dense_rows`.
    unsafe { row.launch("ce") }?;
    Ok(rows)
}

fn sparse_rows(
    session: &Session,
    sparse: &Sparse,
    ports: &Ports,
    call: &LossCall<'_>,
) -> Result<usize> {
    let mut row = logit_rows(session, ports, call, None)?;
    row.drops(sparse.non_finite);
    row.soften(sparse.softening);
    let values = session.matrix(call, "teacher.topk.values")?;
    same_rows(row.rows, &values, "teacher.topk.values")?;
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
    let route = row.route();
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
    // SAFETY: arguments of the sparse kernels; as in `dense_rows`.
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
        same_rows(student.rows, &teacher, &teacher_name)?;
        let mut grad = grad_of(session, ports, call, &student_name, &student)?;
        // A layer that stands in two pairs gets the sum of both gradients.
        if let Some(grad) = grad.as_mut().filter(|_| written.contains(&student_name)) {
            grad.adds = true;
        }
        let site = site(session, call, student.rows, index)?;
        let mut row = Prepared::new(&site, &student, Some(&teacher), grad);
        row.arguments.grad_factor /= pairs as f64;
        let family = match hidden.kind {
            HiddenKind::Cosine { margin } => {
                row.arguments.first = margin as f32;
                row.arguments.targets = session.column(call, "targets")?;
                "cosine"
            }
            _ => "hidden_mse",
        };
        rows = row.rows;
        // SAFETY: as in `dense_rows`.
        unsafe { row.launch(family) }?;
        written.push(student_name);
    }
    Ok((rows, pairs))
}
