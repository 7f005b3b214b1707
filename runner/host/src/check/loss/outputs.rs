//! What a call may write, where, and how it depends on the call's numbers.

use super::super::effects::resident_pages;
use super::super::memory::Layout;
use super::super::subject::{ensure, fine};
use super::super::{Miss, Outcome, Subject, fail};
use super::case::{Case, ROWS, preferred};
use super::rig::{Answer, Rig, Setup};
use super::{ROUNDING, distance};
use crate::run::random::Random;
use crate::tensor::DType;

/// An instance and an ordinary case for it.
///
/// # Errors
/// It cannot be created here.
pub fn start(subject: &mut Subject, stream: u64) -> Result<(Rig, Case), Miss> {
    let rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, stream]);
    let case = rig.case(ROWS, true, &mut draw)?;
    Ok((rig, case))
}

/// Every gradient, as one list.
fn gradients(answer: &Answer) -> Vec<f64> {
    answer.grads.iter().chain(&answer.param_grads).flatten().copied().collect()
}

fn scaled(list: &[f64], factor: f64) -> Vec<f64> {
    list.iter().map(|x| x * factor).collect()
}

fn near(what: &str, expected: &[f64], found: &[f64]) -> Result<(), Miss> {
    let error = distance(expected, found);
    ensure(error <= ROUNDING, &format!("{what} within {ROUNDING}"), || {
        format!("relative error {error:.1e}")
    })
}

pub fn finite(subject: &mut Subject) -> Outcome {
    let rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 20]);
    for round in 0..10 {
        let case = rig.case(1 + round, true, &mut draw)?;
        let answer = rig.evaluate(&case)?;
        ensure(answer.value.is_finite(), "a finite value", || {
            format!("{} with status OK", answer.value)
        })?;
        let bad = answer.numbers().filter(|x| !x.is_finite()).count();
        ensure(bad == 0, "finite metrics and gradients", || {
            format!("{bad} that are not, with status OK")
        })?;
    }
    fine()
}

pub fn overwrite(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 21)?;
    // Buffers hold NaN before the call.
    let answer = rig.evaluate(&case)?;
    let left = gradients(&answer).iter().filter(|x| x.is_nan()).count();
    ensure(left == 0, "every element overwritten", || {
        format!("{left} elements still hold what was there")
    })?;
    let metrics = answer.metrics.iter().filter(|x| x.is_nan()).count();
    ensure(metrics == 0, "every metric written", || format!("{metrics} not"))?;
    fine()
}

pub fn accumulate(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 22)?;
    let alone = gradients(&rig.evaluate(&case)?);
    let base = 0.75;
    let sum = rig.with(&case, Setup { accumulate: Some(base), ..Setup::default() })?;
    let expected: Vec<f64> = alone.iter().map(|g| g + base).collect();
    let found = gradients(&sum);
    let worst = expected.iter().zip(&found).map(|(e, f)| (e - f).abs()).fold(0.0, f64::max);
    let size = alone.iter().fold(base, |m, g| m.max(g.abs()));
    let is_sum = worst <= ROUNDING * size && expected.len() == found.len();
    ensure(is_sum, "buffer + gradient", || {
        if distance(&alone, &found) < ROUNDING {
            "the gradient alone: ACCUMULATE is ignored".into()
        } else {
            format!("a difference of {worst:.3e}")
        }
    })?;
    fine()
}

pub fn grad_scale(subject: &mut Subject) -> Outcome {
    let (rig, mut case) = start(subject, 23)?;
    let plain = rig.evaluate(&case)?;
    for factor in [0.0, -2.0, 1024.0] {
        case.grad_scale = factor;
        let answer = rig.evaluate(&case)?;
        ensure(
            answer.value.to_bits() == plain.value.to_bits(),
            "the same value for any grad_scale",
            || format!("{} instead of {} at {factor}", answer.value, plain.value),
        )?;
        let what = format!("gradients times {factor}");
        near(&what, &scaled(&gradients(&plain), factor), &gradients(&answer))?;
    }
    fine()
}

pub fn normalizer(subject: &mut Subject) -> Outcome {
    let (rig, mut case) = start(subject, 24)?;
    let plain = rig.evaluate(&case)?;
    let before = case.normalizer;
    for factor in [0.5, 3.0, 1e4] {
        case.normalizer = before * factor;
        let answer = rig.evaluate(&case)?;
        let what = format!("value over {factor} at {factor} times the normalizer");
        near(&what, &[plain.value / factor], &[answer.value])?;
        near("gradients likewise", &scaled(&gradients(&plain), 1.0 / factor), &gradients(&answer))?;
    }
    fine()
}

pub fn absent(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 25)?;
    let all = rig.evaluate(&case)?;
    let none = rig.with(&case, Setup { no_grads: true, ..Setup::default() })?;
    near("the same value without gradients", &[all.value], &[none.value])?;
    for (index, expected) in all.grads.iter().enumerate().filter(|(_, g)| !g.is_empty()) {
        let one = rig.with(&case, Setup { only_grad: Some(index), ..Setup::default() })?;
        let found = one.grads.get(index).cloned().unwrap_or_default();
        near("the same gradient when it alone is wanted", expected, &found)?;
    }
    fine()
}

pub fn optional(subject: &mut Subject) -> Outcome {
    let rig = Rig::new(subject)?;
    let has = rig.ports.iter().any(|p| !p.is_output() && p.is_optional());
    if !has {
        return Err(Miss::Skip("no optional input".to_owned()));
    }
    let mut draw = Random::new([subject.seed, 26]);
    let case = rig.case(ROWS, false, &mut draw)?;
    let answer = rig.evaluate(&case)?;
    ensure(answer.numbers().all(f64::is_finite), "finite results", || "others".into())?;
    let left = rig.left_out(&rig.case(ROWS, true, &mut draw)?);
    if left.is_empty() {
        fine()
    } else {
        Ok(format!("not bound beside the others: {}", left.join(" ")))
    }
}

pub fn strided(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 27)?;
    let plain = rig.evaluate(&case)?;
    let answer = rig.with(&case, Setup { layout: Layout::Strided, ..Setup::default() })?;
    near("the same value from strided memory", &[plain.value], &[answer.value])?;
    near("the same gradients in strided memory", &gradients(&plain), &gradients(&answer))?;
    fine()
}

pub fn bounds(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 28)?;
    // Bytes beside every buffer are compared by every call.
    rig.evaluate(&case)?;
    (subject.doing)("compute with read-only inputs and untouchable neighbours");
    let answer = rig.with(&case, Setup { layout: Layout::Edge, ..Setup::default() })?;
    ensure(answer.value.is_finite(), "a finite value", || answer.value.to_string())?;
    fine()
}

pub fn alias(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 29)?;
    if !case.inputs.iter().flatten().any(|i| i.may_alias && i.differentiable) {
        return Err(Miss::Skip("no input allows it".to_owned()));
    }
    let own = Setup { grad_dtype: None, ..Setup::default() };
    let apart = rig.with(&case, own)?;
    let over = rig.with(&case, Setup { alias: true, ..own })?;
    ensure(apart.bits() == over.bits(), "bitwise the same when written over the input", || {
        "other numbers".into()
    })?;
    fine()
}

pub fn stateless(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 30)?;
    let mut draw = Random::new([subject.seed, 31]);
    let other = rig.case(ROWS + 3, true, &mut draw)?;
    let first = rig.evaluate(&case)?;
    rig.evaluate(&other)?;
    let again = rig.evaluate(&case)?;
    let same = first.bits() == again.bits();
    let exact = subject.has_feature("deterministic")?;
    if exact {
        ensure(same, "bitwise the same after another call", || "other numbers".into())?;
    }
    near("the same value after another call", &[first.value], &[again.value])?;
    near("the same gradients", &gradients(&first), &gradients(&again))?;
    Ok(if same { "bit for bit".to_owned() } else { "up to rounding".to_owned() })
}

pub fn workspace(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 32)?;
    let zeros = rig.with(&case, Setup { garbage: 0, ..Setup::default() })?;
    // 0xFF bytes are NaN in every float type.
    let nans = rig.with(&case, Setup { garbage: 0xFF, ..Setup::default() })?;
    ensure(zeros.bits() == nans.bits(), "results that ignore old workspace contents", || {
        "other numbers".into()
    })?;
    fine()
}

pub fn memory(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 33)?;
    for _ in 0..500 {
        rig.evaluate(&case)?;
    }
    let before = resident_pages();
    for _ in 0..2000 {
        rig.evaluate(&case)?;
    }
    let grown = resident_pages().unwrap_or(0).saturating_sub(before.unwrap_or(0));
    ensure(grown <= 16, "memory flat over 2,000 calls", || {
        format!("{grown} pages more, about {} bytes a call", grown * 4096 / 2000)
    })?;
    fine()
}

pub fn dtypes(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 34)?;
    let ports: Vec<_> = rig.ports.iter().filter(|p| !p.is_output()).cloned().collect();
    let mut seen = Vec::new();
    for (dtype, limit) in [(DType::F64, ROUNDING), (DType::BF16, 2.5e-3), (DType::F16, 4e-4)] {
        let mut other = case.clone();
        let mut plain = case.clone();
        let mut changed = false;
        for (port, (input, same)) in
            ports.iter().zip(other.inputs.iter_mut().zip(&mut plain.inputs))
        {
            let (Some(input), Some(same)) = (input, same) else { continue };
            if !port.dtypes.contains(&dtype) || preferred(port) != Some(DType::F32) {
                continue;
            }
            // Both runs see values that both types hold.
            let memory = super::super::memory::Watched::filled(
                dtype,
                &input.shape,
                Layout::Banded,
                &input.values,
            );
            let as_f32: Vec<f64> = memory.read().iter().map(|x| f64::from(*x as f32)).collect();
            input.values.clone_from(&as_f32);
            same.values = as_f32;
            input.dtype = dtype;
            changed = true;
        }
        if !changed {
            continue;
        }
        let expected = rig.evaluate(&plain)?;
        let found = rig.evaluate(&other)?;
        let error = distance(&gradients(&expected), &gradients(&found));
        let value = distance(&[expected.value], &[found.value]);
        if error.max(value) > limit || error.is_nan() {
            return Err(fail(
                format!("{} inputs to give the f32 result within {limit:.1e}", dtype.name()),
                format!("value off by {value:.1e}, gradients by {error:.1e}"),
            ));
        }
        seen.push(dtype.name());
    }
    if seen.is_empty() { Err(Miss::Skip("f32 only".to_owned())) } else { Ok(seen.join(" ")) }
}
