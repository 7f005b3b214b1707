//! What symbols of ports cannot say about shapes, and the parameters that follow from them.
//!
//! Sizes that are not known yet (−1) are not judged.

use crate::names::{indexed, layered};
use crate::settings::*;
use limbeck_sdk::{Error, LossParam, Result, Views};

/// Size of an axis of a bound input, if it is known.
pub fn dim(inputs: &Views<'_>, name: &str, axis: usize) -> Result<Option<i64>> {
    let size = inputs.named(name)?.and_then(|view| view.shape().get(axis).copied());
    Ok(size.filter(|size| *size >= 0))
}

/// Checks a call beyond its ports.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn check(spec: &Spec, inputs: &Views<'_>) -> Result<()> {
    match spec {
        Spec::Dense(dense) => check_dense(dense, inputs),
        Spec::Dist(_) => refuse_weights(inputs),
        Spec::Linear(_) => {
            let bound = |name: &str| Ok::<bool, Error>(inputs.named(name)?.is_some());
            let product = [bound("teacher.hidden")?, bound("teacher.head")?];
            match (bound("teacher.logits")?, product) {
                (true, [false, false]) | (false, [true, true]) => Ok(()),
                _ => Err(Error::invalid_argument(
                    "bind either `teacher.logits` or `teacher.hidden` and `teacher.head`",
                )),
            }
        }
        Spec::Batch(batch) => {
            refuse_weights(inputs)?;
            let two_sets = matches!(batch, Batch::Mmd { .. } | Batch::Coral);
            let bound =
                [inputs.named("domain")?.is_some(), inputs.named("teacher.hidden")?.is_some()];
            if two_sets && bound[0] == bound[1] {
                let message = "bind exactly one of `domain` and `teacher.hidden`";
                return Err(Error::invalid_argument(message));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn refuse_weights(inputs: &Views<'_>) -> Result<()> {
    match inputs.named("row_weights")? {
        Some(_) => {
            let message = "`row_weights` cannot be bound to a batch-coupled loss";
            Err(Error::invalid_argument(message).tensor("row_weights"))
        }
        None => Ok(()),
    }
}

fn check_dense(dense: &Dense, inputs: &Views<'_>) -> Result<()> {
    let student = dim(inputs, "student.logits", 1)?;
    let (Some(student), Some(teacher)) = (student, dim(inputs, "teacher.logits", 1)?) else {
        return Ok(());
    };
    if dense.narrow_teacher && teacher > student {
        let message =
            format!("the teacher's {teacher} units are more than the student's {student}");
        return Err(Error::invalid_argument(message).tensor("teacher.logits"));
    }
    if dense.divergence.needs_labels() && student < 2 {
        let message = "a decoupled loss needs at least two columns";
        return Err(Error::invalid_argument(message).tensor("student.logits"));
    }
    Ok(())
}

/// Trainable tensors of the loss, named and shaped.
///
/// # Errors
/// Widths that are not known.
pub fn params(spec: &Spec, inputs: &Views<'_>) -> Result<Vec<LossParam>> {
    let Spec::Hidden(hidden) = spec else { return Ok(Vec::new()) };
    let width = |side: &str, layer: Option<u32>| {
        let name = layered(side, layer);
        let unknown = || Error::invalid_argument("the width is not known yet").tensor(&name);
        dim(inputs, &name, 1)?.ok_or_else(unknown)
    };
    let mut params = Vec::new();
    for index in 0..hidden.layers.len().max(1) {
        let pair = hidden.layers.get(index);
        let name = |base: &str| indexed(base, pair.map(|_| index));
        match hidden.kind {
            HiddenKind::Mse { projector: Projector::Linear, bias } => {
                let student = width("student.hidden", pair.map(|pair| pair[0]))?;
                let teacher = width("teacher.hidden", pair.map(|pair| pair[1]))?;
                let shape = [teacher, student];
                params.push(LossParam::new(name("proj.weight"), &shape, "xavier_uniform"));
                if bias {
                    let bias = LossParam::new(name("proj.bias"), &[teacher], "zeros");
                    params.push(LossParam { no_decay: true, ..bias });
                }
            }
            HiddenKind::Vid { .. } => {
                let student = width("student.hidden", pair.map(|pair| pair[0]))?;
                let rho = LossParam::new(name("rho"), &[student], "zeros");
                params.push(LossParam { no_decay: true, ..rho });
            }
            _ => {}
        }
    }
    Ok(params)
}
