//! Gradients against central differences of the value.
//!
//! The value crosses the boundary in f32, so a step is long (1e-2 of a unit) and fourth order:
//! `(8(v(+h) - v(-h)) - (v(+2h) - v(-2h))) / 12h`.

use super::super::{Miss, Outcome, Subject, fail};
use super::case::{Case, ROWS};
use super::rig::Rig;
use crate::run::random::Random;

/// Step of the differences.
const STEP: f64 = 1e-2;
/// Allowed relative error. Right losses stay below 2e-3; a gradient that is 10 % off shows 9e-2.
const LIMIT: f64 = 2e-2;
/// Rounding of one f32 value.
const F32_ROUNDING: f64 = 6e-8;
/// Random directions per input.
const DIRECTIONS: usize = 6;
/// Single entries per input.
const ENTRIES: usize = 6;

/// What is moved: an input or a parameter of the loss.
#[derive(Clone, Copy)]
enum Place {
    Input(usize),
    Param(usize),
}

impl Place {
    fn values<'a>(&self, case: &'a mut Case) -> Option<&'a mut Vec<f64>> {
        match *self {
            Self::Input(i) => case.inputs.get_mut(i)?.as_mut().map(|i| &mut i.values),
            Self::Param(i) => case.params.get_mut(i),
        }
    }
}

/// Slope of the value along a direction, and its own uncertainty.
fn slope(rig: &Rig, case: &Case, place: Place, direction: &[f64]) -> Result<(f64, f64), Miss> {
    let mut largest: f64 = 0.0;
    let mut value = |factor: f64| -> Result<f64, Miss> {
        let mut moved = case.clone();
        if let Some(values) = place.values(&mut moved) {
            for (x, d) in values.iter_mut().zip(direction) {
                *x += factor * STEP * d;
            }
        }
        let value = rig.evaluate(&moved)?.value;
        largest = largest.max(value.abs());
        Ok(value)
    };
    let near = value(1.0)? - value(-1.0)?;
    let far = value(2.0)? - value(-2.0)?;
    Ok(((8.0 * near - far) / (12.0 * STEP), 4.0 * F32_ROUNDING * largest / STEP))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Directions to try: along the gradient, random ones, single entries (the largest first).
fn directions(gradient: &[f64], draw: &mut Random) -> Vec<Vec<f64>> {
    let count = gradient.len();
    let norm = dot(gradient, gradient).sqrt();
    let mut all = Vec::new();
    if norm > 0.0 {
        let factor = (count as f64).sqrt() / norm;
        all.push(gradient.iter().map(|g| g * factor).collect());
    }
    for _ in 0..DIRECTIONS {
        all.push((0..count).map(|_| draw.normal()).collect());
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| gradient[*b].abs().total_cmp(&gradient[*a].abs()));
    let mut picked: Vec<usize> = order.iter().take(ENTRIES / 2).copied().collect();
    picked.extend((0..ENTRIES / 2).map(|_| draw.below(count as u64) as usize));
    for entry in picked {
        // Three units, so that one entry moves the value as much as a direction does.
        all.push((0..count).map(|i| if i == entry { 3.0 } else { 0.0 }).collect());
    }
    all
}

/// Relative errors beyond the limit, and the worst.
fn compare(
    rig: &Rig,
    case: &Case,
    place: Place,
    name: &str,
    gradient: &[f64],
    draw: &mut Random,
) -> Result<Tally, Miss> {
    let mut tally = Tally::default();
    let norm = dot(gradient, gradient).sqrt();
    for direction in directions(gradient, draw) {
        let expected = dot(gradient, &direction);
        let (found, noise) = slope(rig, case, place, &direction)?;
        let length = dot(&direction, &direction).sqrt();
        let usual = norm * length / (gradient.len() as f64).sqrt();
        let scale = found.abs().max(expected.abs()).max(usual).max(1e-12);
        let error = (found - expected).abs();
        tally.count += 1;
        tally.worst = tally.worst.max(error / scale);
        if error.is_nan() || error > LIMIT * scale + noise {
            tally
                .bad
                .push(format!("{name}: gradient says {expected:.6e}, differences say {found:.6e}"));
        }
    }
    Ok(tally)
}

#[derive(Default)]
struct Tally {
    count: usize,
    worst: f64,
    bad: Vec<String>,
}

pub fn differences(subject: &mut Subject) -> Outcome {
    let piecewise = subject.has_feature("piecewise")?;
    let rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 10]);
    let mut all = Tally::default();
    for round in 0..2 {
        let case = rig.case(ROWS, round == 0, &mut draw)?;
        let answer = rig.evaluate(&case)?;
        let inputs = case.inputs.iter().enumerate().filter_map(|(i, input)| {
            let input = input.as_ref().filter(|i| i.differentiable && !i.values.is_empty())?;
            Some((Place::Input(i), input.name.clone(), answer.grads.get(i)?))
        });
        let params = answer.param_grads.iter().enumerate();
        let params = params.map(|(i, g)| (Place::Param(i), format!("parameter {i}"), g));
        for (place, name, gradient) in inputs.chain(params) {
            let tally = compare(&rig, &case, place, &name, gradient, &mut draw)?;
            all.count += tally.count;
            all.worst = all.worst.max(tally.worst);
            all.bad.extend(tally.bad);
        }
    }
    if all.count == 0 {
        return Err(fail("a differentiable input", "none"));
    }
    // A selection may change within the step; then single directions may disagree.
    let allowed = if piecewise { all.count / 4 } else { 0 };
    if all.bad.len() > allowed {
        let first = all.bad.first().cloned().unwrap_or_default();
        return Err(fail(
            format!("gradients within {LIMIT} of central differences"),
            format!("{first} ({} of {} cases)", all.bad.len(), all.count),
        ));
    }
    Ok(format!("{} cases, max relative error {:.1e} (limit {LIMIT})", all.count, all.worst))
}
