//! Calls of the losses that have a CPU kernel.
//!
//! Labels and masks are checked before anything is written. Results do not depend on the number of threads.

use super::memory::{HostPool, matrix, output, with_slots};
use super::oracle::refusal;
use crate::cpu::{
    Output, Sums, cross_entropy as ce, dense as kernel, hidden as states, linear as fused,
    projection as maps, sparse as topk,
};
use crate::names::layered;
use crate::reference::{SparseRow, sparse_teacher};
use crate::settings::{CrossEntropy, Dense, Hidden, HiddenKind, Linear, Projector, Sparse, Vocab};
use limbeck_sdk::{Counted, DType, Error, LossCall, Ports, Result, View};

fn named<'a>(call: &LossCall<'a>, name: &str) -> Result<View<'a>> {
    let absent = || Error::invalid_argument(format!("`{name}` is absent")).tensor(name);
    call.inputs().named(name)?.ok_or_else(absent)
}

fn grad_of<'a>(
    call: &LossCall<'a>,
    ports: &Ports,
    name: &str,
    size: (usize, usize),
    add: bool,
) -> Result<Option<Output<'a>>> {
    let missing = || Error::internal(format!("no port `{name}`"));
    let index = ports.input_index(name).ok_or_else(missing)?;
    call.grad(index)?.map(|grad| output(&grad, size.0, size.1, add)).transpose()
}

fn flags(call: &LossCall<'_>, port: &str) -> Result<Option<Vec<bool>>> {
    let Some(view) = call.inputs().named(port)? else { return Ok(None) };
    Ok(Some(view.to_vec::<f64>()?.into_iter().map(|kept| kept != 0.0).collect()))
}

/// Port of a mask, and whether it keeps a column of a row.
pub type Mask<'m> = (&'static str, &'m dyn Fn(usize, usize) -> bool);

/// Refuses a counted label outside `[0, width)`, and on a column that a mask removes from its row.
///
/// # Errors
/// BAD_DATA naming the row.
pub fn check_labels(
    counted: &Counted<'_>,
    rows: usize,
    width: usize,
    masks: &[Mask<'_>],
) -> Result<()> {
    for n in 0..rows {
        let Some(label) = counted.label(n) else { return Ok(()) };
        if counted.weight(n).is_none() {
            continue;
        }
        let class = usize::try_from(label).ok().filter(|class| *class < width);
        let Some(class) = class else {
            let message = format!("label {label} is outside 0..{width}");
            return Err(Error::bad_data(message).tensor("labels").row(n));
        };
        for (name, kept) in masks {
            if !kept(n, class) {
                let message = format!("label {label} is on a column that `{name}` removes");
                return Err(Error::bad_data(message).tensor("labels").row(n));
            }
        }
    }
    Ok(())
}

fn finish(call: &LossCall<'_>, sums: Sums, pairs: f64) -> Result<()> {
    let normalizer = call.normalizer() * pairs;
    let value = sums.value / normalizer;
    call.set_value(value)?;
    call.set_metric(0, sums.dead_rows / normalizer)?;
    // Finite in f64, but told as f32: one row stands for all.
    let told = (value as f32).is_finite() || sums.nonfinite_rows > 0.0;
    call.set_metric(1, if told { sums.nonfinite_rows } else { 1.0 } / normalizer)
}

/// A dense divergence.
pub fn dense(spec: &Dense, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let student = matrix(&named(call, "student.logits")?)?;
    let teacher = matrix(&named(call, "teacher.logits")?)?;
    let (rows, columns) = (student.rows(), student.width());
    let mask = flags(call, "class_mask")?;
    let counted = call.counted()?;
    check_labels(&counted, rows, columns, &[])?;
    let width = match spec.vocab {
        Vocab::StudentTail => columns,
        _ => columns.min(teacher.width()),
    };
    let kernel_call = kernel::DenseCall {
        student,
        teacher,
        grad: grad_of(call, ports, "student.logits", (rows, columns), false)?,
        width,
        class_mask: mask.as_deref(),
        weights: &|n| counted.weight(n),
        grad_factor: call.grad_factor(),
        softening: spec.softening,
        non_finite: spec.non_finite,
    };
    let sums = with_slots(call, rows, |slots, scratch| {
        kernel::run(spec.divergence, &kernel_call, slots, scratch, &HostPool(call))
    })?;
    finish(call, sums, 1.0)
}

/// Whether the student's states are f64, which the oracle computes.
pub fn is_wide(call: &LossCall<'_>) -> Result<bool> {
    Ok(named(call, "student.hidden")?.dtype() == DType::F64)
}

/// A dense divergence of hidden states times a head.
pub fn linear(spec: &Linear, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let hidden = matrix(&named(call, "student.hidden")?)?;
    let head = matrix(&named(call, "student.head")?)?;
    let counted = call.counted()?;
    check_labels(&counted, hidden.rows(), head.rows(), &[])?;
    let teacher = match call.inputs().named("teacher.logits")? {
        Some(logits) => fused::Teacher::Logits(matrix(&logits)?),
        None => {
            let states = matrix(&named(call, "teacher.hidden")?)?;
            fused::Teacher::Product(states, matrix(&named(call, "teacher.head")?)?)
        }
    };
    let of = |name: &str, m: &crate::cpu::Matrix<'_>| {
        grad_of(call, ports, name, (m.rows(), m.width()), false)
    };
    let dense = &spec.dense;
    let kernel_call = fused::LinearCall {
        hidden_grad: of("student.hidden", &hidden)?,
        head_grad: of("student.head", &head)?,
        hidden,
        head,
        teacher,
        weights: &|n| counted.weight(n),
        grad_factor: call.grad_factor(),
        divergence: dense.divergence,
        softening: dense.softening,
        vocab: dense.vocab,
        non_finite: dense.non_finite,
        chunk: spec.chunk,
    };
    finish(call, fused::run(&kernel_call, &HostPool(call))?, 1.0)
}

/// A teacher that kept its top-k.
pub fn sparse(spec: &Sparse, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let student = matrix(&named(call, "student.logits")?)?;
    let (rows, columns) = (student.rows(), student.width());
    let counted = call.counted()?;
    check_labels(&counted, rows, columns, &[])?;
    let teachers = teachers(spec, call, &counted, (rows, columns))?;
    let kernel_call = topk::SparseCall {
        student,
        teachers: &teachers,
        grad: grad_of(call, ports, "student.logits", (rows, columns), false)?,
        weights: &|n| counted.weight(n),
        grad_factor: call.grad_factor(),
        mode: spec.mode,
        softening: spec.softening,
        non_finite: spec.non_finite,
    };
    let sums = with_slots(call, rows, |slots, scratch| {
        topk::run(&kernel_call, slots, scratch, &HostPool(call))
    })?;
    finish(call, sums, 1.0)
}

/// What the teacher says of each row that counts; refuses indices and log-probabilities that cannot be.
fn teachers(
    spec: &Sparse,
    call: &LossCall<'_>,
    counted: &Counted<'_>,
    (rows, columns): (usize, usize),
) -> Result<Vec<Option<topk::Teacher>>> {
    let list = |name: &str| named(call, name)?.to_vec::<f64>();
    let (indices, values) = (list("teacher.topk.indices")?, list("teacher.topk.values")?);
    let tail = call.inputs().named("teacher.topk.tail")?.map(|view| view.to_vec::<f64>());
    let tail = tail.transpose()?;
    let kept = indices.len().checked_div(rows).unwrap_or(0);
    let of_row = |n: usize| {
        if counted.weight(n).is_none() {
            return Ok(None);
        }
        let at = n * kept..(n + 1) * kept;
        let tail = tail.as_ref().map(|tail| tail[n]);
        let found = sparse_teacher(spec, (&indices[at.clone()], &values[at]), tail, columns, n);
        let teacher = |row: SparseRow| topk::Teacher { kept: row.kept, rest: row.rest };
        found.map(|row| row.map(teacher)).map_err(refusal)
    };
    (0..rows).map(of_row).collect()
}

/// Hard labels.
pub fn cross_entropy(spec: &CrossEntropy, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let student = matrix(&named(call, "student.logits")?)?;
    let (rows, columns) = (student.rows(), student.width());
    let (mask, own) = (flags(call, "class_mask")?, flags(call, "row_classes")?);
    let counted = call.counted()?;
    let in_mask = |_: usize, class: usize| mask.as_ref().is_none_or(|m| m[class]);
    let in_own = |n: usize, class: usize| own.as_ref().is_none_or(|m| m[n * columns + class]);
    let masks: [Mask<'_>; 2] = [("class_mask", &in_mask), ("row_classes", &in_own)];
    check_labels(&counted, rows, columns, &masks)?;
    let kernel_call = ce::CrossEntropyCall {
        student,
        grad: grad_of(call, ports, "student.logits", (rows, columns), false)?,
        class_mask: mask.as_deref(),
        row_classes: own.as_deref(),
        weights: &|n| counted.weight(n),
        // `check_labels` saw every row that counts; others are never asked for.
        labels: &|n| counted.label(n).and_then(|label| usize::try_from(label).ok()).unwrap_or(0),
        grad_factor: call.grad_factor(),
    };
    let sums = with_slots(call, rows, |slots, scratch| {
        ce::run(spec, &kernel_call, slots, scratch, &HostPool(call))
    })?;
    finish(call, sums, 1.0)
}

/// Cosine or mean squared difference of hidden states, the mean over pairs of layers.
pub fn hidden(spec: &Hidden, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let pairs = spec.layers.len().max(1);
    let mut sums = Sums::default();
    let mut written: Vec<String> = Vec::new();
    let mut next_param = 0;
    for index in 0..pairs {
        let pair = spec.layers.get(index);
        let student = layered("student.hidden", pair.map(|pair| pair[0]));
        let teacher = layered("teacher.hidden", pair.map(|pair| pair[1]));
        // A layer that stands in two pairs gets the sum of both gradients.
        let add = written.contains(&student);
        let one = hidden_pair(spec, ports, call, (&student, &teacher), add, &mut next_param)?;
        sums.value += one.value;
        sums.nonfinite_rows += one.nonfinite_rows;
        written.push(student);
    }
    finish(call, sums, pairs as f64)
}

fn hidden_pair(
    spec: &Hidden,
    ports: &Ports,
    call: &LossCall<'_>,
    (student, teacher): (&str, &str),
    add: bool,
    next_param: &mut usize,
) -> Result<Sums> {
    let (h, t) = (matrix(&named(call, student)?)?, matrix(&named(call, teacher)?)?);
    let (rows, width) = (h.rows(), h.width());
    let counted = call.counted()?;
    let targets = call.inputs().named("targets")?.map(|view| view.rows()).transpose()?;
    let opposite = |n: usize| targets.is_some_and(|targets| targets.row(n).get(0) < 0.0);
    let kernel_call = states::HiddenCall {
        student: h,
        teacher: t,
        grad: grad_of(call, ports, student, (rows, width), add)?,
        weights: &|n| counted.weight(n),
        grad_factor: call.grad_factor() / spec.layers.len().max(1) as f64,
    };
    let pool = HostPool(call);
    let comparison = match spec.kind {
        HiddenKind::Mse { projector: Projector::Linear, bias } => {
            let projection = projection(call, t.width(), width, bias, next_param)?;
            return with_slots(call, rows, |slots, _| {
                maps::run_projected(&kernel_call, &projection, slots, &pool)
            });
        }
        HiddenKind::Cosine { margin } => {
            states::Comparison::Cosine { margin, opposite: Some(&opposite) }
        }
        _ => states::Comparison::Mse,
    };
    with_slots(call, rows, |slots, _| states::run(comparison, &kernel_call, slots, &pool))
}

fn projection<'a>(
    call: &LossCall<'a>,
    mapped: usize,
    width: usize,
    bias: bool,
    next_param: &mut usize,
) -> Result<maps::Projection<'a>> {
    let mut take = |rows: usize, columns: usize| {
        let index = *next_param;
        *next_param += 1;
        let value = call.param(index)?;
        let found = matrix(&value)?;
        if (found.rows(), found.width()) != (rows, columns) {
            let message = format!("{:?} for [{rows}, {columns}]", value.shape());
            return Err(Error::invalid_argument(message).tensor(value.name()));
        }
        let grad = call.param_grad(index)?;
        Ok((found, grad.map(|grad| output(&grad, rows, columns, false)).transpose()?))
    };
    let (weight, weight_grad) = take(mapped, width)?;
    let (bias, bias_grad) = match bias {
        true => take(1, mapped).map(|(bias, grad)| (Some(bias), grad))?,
        false => (None, None),
    };
    Ok(maps::Projection { weight, bias, weight_grad, bias_grad })
}
