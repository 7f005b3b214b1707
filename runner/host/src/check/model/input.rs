//! Gradients of a student's inputs, as adversarial training asks for them.

use super::{CTX, LIMIT, Objective, Rig, STEP, broke, floats, inputs};
use crate::check::subject::ensure;
use crate::check::{Miss, Outcome, Subject, fail};
use crate::load::instance::{ForwardFlags, GradOut};
use crate::run::random::Random;
use crate::tensor::{DType, Tensor};

/// Gradients alone, without those of parameters, against differences.
pub fn gradient(subject: &mut Subject) -> Outcome {
    let mut rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 56]);
    let batch = inputs(rig.instance.ports(), &mut draw);
    let ports: Vec<(String, bool)> =
        rig.instance.inputs().map(|p| (p.name.clone(), p.is_differentiable())).collect();
    let is_wanted = |i: usize| {
        ports[i].1 && batch[i].as_ref().is_some_and(|tensor| tensor.dtype() == DType::F32)
    };
    let wanted: Vec<usize> = (0..ports.len()).filter(|i| is_wanted(*i)).collect();
    if wanted.is_empty() {
        return Err(Miss::Skip("no input says that its gradient can be produced".into()));
    }
    let objective = Objective::new(&mut rig, &batch, &mut draw)?;
    let flags = ForwardFlags { input_grad: true, ..ForwardFlags::default() };
    let out = rig.forward(&batch, &objective.names, flags)?;
    let tape = out.tape.ok_or_else(|| fail("a tape when INPUT_GRAD is set", "none"))?;
    let buffer = |i: usize| {
        let tensor = batch[i].as_ref().filter(|_| wanted.contains(&i))?;
        let fill = vec![f32::NAN; tensor.elements()];
        Some(GradOut { buffer: Tensor::from_slice(&fill, tensor.shape()), accumulate: false })
    };
    let grads: Vec<Option<GradOut>> = (0..ports.len()).map(buffer).collect();
    (subject.doing)("backward to inputs");
    rig.instance
        .backward(CTX, tape, &objective.cotangents, &[], &grads)
        .map_err(broke("backward without parameter gradients to succeed"))?;
    let mut worst: f64 = 0.0;
    for i in &wanted {
        let (Some(grad), Some(input)) = (&grads[*i], &batch[*i]) else { continue };
        let (name, gradient) = (&ports[*i].0, floats(&grad.buffer)?);
        ensure(
            gradient.iter().all(|g| g.is_finite()),
            &format!("every element of d`{name}` written, finite"),
            || "NaN or infinity".into(),
        )?;
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        if norm < 1e-6 {
            continue;
        }
        let original = floats(input)?;
        let mut at = |factor: f64| {
            let moved = original.iter().zip(&gradient);
            let moved: Vec<f32> =
                moved.map(|(x, g)| (x + factor * STEP * g / norm) as f32).collect();
            let mut batch = batch.clone();
            batch[*i] = Some(Tensor::from_slice(&moved, input.shape()));
            objective.value(&mut rig, &batch)
        };
        let (near, far) = (at(1.0)? - at(-1.0)?, at(2.0)? - at(-2.0)?);
        let found = (8.0 * near - far) / (12.0 * STEP);
        let error = (found - norm).abs() / norm.max(found.abs());
        worst = worst.max(error);
        ensure(
            error <= LIMIT,
            &format!("d`{name}` within {LIMIT} of central differences"),
            || format!("gradient says {norm:.5e}, differences say {found:.5e}"),
        )?;
    }
    Ok(format!("{} inputs, max relative error {worst:.1e} (limit {LIMIT})", wanted.len()))
}
