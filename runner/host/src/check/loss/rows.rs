//! Rows: none, one, split, permuted, ignored, extreme; and shapes that must be refused.

use super::super::subject::{ensure, fine};
use super::super::{Miss, Outcome, Subject, fail};
use super::case::{Case, IGNORED, Input, ROWS};
use super::rig::{Answer, Rig, Setup};
use super::{ROUNDING, distance};
use crate::run::random::Random;
use limbeck_abi as abi;

fn start(subject: &mut Subject, stream: u64) -> Result<(Rig, Case), Miss> {
    let rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, stream]);
    let case = rig.case(ROWS, true, &mut draw)?;
    if case.has_rows() { Ok((rig, case)) } else { Err(Miss::Skip("no row axis".to_owned())) }
}

/// Gradient rows of per-row inputs, in the order of the inputs.
fn row_gradients(case: &Case, answer: &Answer, row: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (input, grad) in case.inputs.iter().zip(&answer.grads) {
        let Some(input) = input.as_ref().filter(|i| i.by_row) else { continue };
        let len = input.row_len(case.rows);
        out.extend(grad.get(row * len..(row + 1) * len).unwrap_or_default());
    }
    out
}

pub fn empty(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 40)?;
    let none = case.take_rows(&[]);
    let answer = rig.evaluate(&none)?;
    ensure(answer.value == 0.0, "value 0 for no rows", || answer.value.to_string())?;
    let left = answer.param_grads.iter().flatten().filter(|g| **g != 0.0).count();
    ensure(left == 0, "parameter gradients 0 for no rows", || format!("{left} others"))?;
    fine()
}

pub fn one(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 41)?;
    let answer = rig.evaluate(&case.take_rows(&[2]))?;
    ensure(answer.numbers().all(f64::is_finite), "finite results for one row", || "others".into())?;
    fine()
}

pub fn additive(subject: &mut Subject) -> Outcome {
    if subject.has_feature("batch-coupled")? {
        return Err(Miss::Skip("declares that rows depend on each other".to_owned()));
    }
    let (rig, case) = start(subject, 42)?;
    let whole = rig.evaluate(&case)?;
    let (first, second) =
        (rig.evaluate(&case.take_rows(&[0, 1]))?, rig.evaluate(&case.take_rows(&[2, 3, 4]))?);
    let sum = first.value + second.value;
    let error = distance(&[whole.value], &[sum]);
    ensure(error <= ROUNDING, "loss(A and B) = loss(A) + loss(B) under one normalizer", || {
        format!("{} and {sum}", whole.value)
    })?;
    let metrics: Vec<f64> = first.metrics.iter().zip(&second.metrics).map(|(a, b)| a + b).collect();
    let error = distance(&whole.metrics, &metrics);
    ensure(error <= ROUNDING, "metrics that add up likewise", || {
        format!("{:?} and {metrics:?}", whole.metrics)
    })?;
    for (index, (a, b)) in first.param_grads.iter().zip(&second.param_grads).enumerate() {
        let sum: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
        let error = distance(&whole.param_grads[index], &sum);
        ensure(error <= ROUNDING, "parameter gradients that add up", || {
            format!("relative error {error:.1e}")
        })?;
    }
    fine()
}

pub fn permuted(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 43)?;
    let order = [3, 0, 4, 2, 1];
    let plain = rig.evaluate(&case)?;
    let moved_case = case.take_rows(&order);
    let moved = rig.evaluate(&moved_case)?;
    let error = distance(&[plain.value], &[moved.value]);
    ensure(error <= ROUNDING, "the same value in another order of rows", || {
        format!("relative error {error:.1e}")
    })?;
    for (to, from) in order.iter().enumerate() {
        let (a, b) = (row_gradients(&case, &plain, *from), row_gradients(&moved_case, &moved, to));
        let error = distance(&a, &b);
        ensure(error <= ROUNDING, "gradients that move with their rows", || {
            format!("relative error {error:.1e}")
        })?;
    }
    fine()
}

pub fn ignored(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 44)?;
    let mut tried = Vec::new();
    for (name, mark) in [("labels", IGNORED), ("row_mask", 0.0)] {
        let Some(position) = case.position(name) else { continue };
        let out = [1, 3];
        let mut marked = case.clone();
        if let Some(input) = marked.inputs.get_mut(position).and_then(Option::as_mut) {
            for row in out {
                input.values[row] = mark;
            }
        }
        let answer = rig.evaluate(&marked)?;
        for row in out {
            let left = row_gradients(&marked, &answer, row).iter().filter(|g| **g != 0.0).count();
            ensure(
                left == 0,
                &format!("gradients exactly 0 on rows that {name} excludes"),
                || format!("{left} others in row {row}"),
            )?;
        }
        let kept = rig.evaluate(&marked.take_rows(&[0, 2, 4]))?;
        let error = distance(&[kept.value], &[answer.value]);
        ensure(
            error <= ROUNDING,
            &format!("a value without the rows that {name} excludes"),
            || format!("{} instead of {}", answer.value, kept.value),
        )?;
        tried.push(name);
    }
    if tried.is_empty() {
        return Err(Miss::Skip("neither labels nor row_mask".to_owned()));
    }
    Ok(tried.join(", "))
}

/// Rows of float inputs that break careless formulas.
fn patterns(row: usize, columns: usize, pattern: &str) -> Vec<f64> {
    let hot = |i: usize, high: f64, low: f64| if i == row % columns.max(1) { high } else { low };
    (0..columns)
        .map(|i| match pattern {
            "huge" => hot(i, 1e4, -1e4),
            "negative" => -1e4 - i as f64,
            "equal" => 3.0,
            "zero" => 0.0,
            "one-hot" => hot(i, 60.0, 0.0),
            _ => hot(i, -1e4, 1e4),
        })
        .collect()
}

/// Whether any number makes sense there. A sparse teacher's values are log-probabilities, `row_classes` are flags.
fn takes_extremes(input: &Input) -> bool {
    let is_matrix = input.by_row && input.dtype.is_float() && input.row_len(ROWS) > 1;
    is_matrix && !input.name.contains(".topk.") && input.name != "row_classes"
}

pub fn extremes(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 45)?;
    let floats: Vec<usize> = case
        .inputs
        .iter()
        .enumerate()
        .filter(|(_, i)| i.as_ref().is_some_and(takes_extremes))
        .map(|(i, _)| i)
        .collect();
    let names = ["huge", "negative", "equal", "zero", "one-hot", "opposite"];
    let mut refused = 0;
    for (first, second) in names.iter().flat_map(|a| names.iter().map(move |b| (*a, *b))) {
        let mut hard = case.clone();
        for (turn, index) in floats.iter().enumerate() {
            let Some(input) = hard.inputs.get_mut(*index).and_then(Option::as_mut) else {
                continue;
            };
            let pattern = if turn == 0 { first } else { second };
            let columns = input.row_len(ROWS);
            input.values = (0..ROWS).flat_map(|r| patterns(r, columns, pattern)).collect();
        }
        match rig.attempt(&hard, Setup::default()) {
            Ok(answer) => {
                let bad = answer.numbers().filter(|x| !x.is_finite()).count();
                ensure(
                    bad == 0,
                    &format!("finite results or LMB_NON_FINITE for {first} and {second} rows"),
                    || format!("{bad} numbers that are not finite, with status OK"),
                )?;
            }
            Err((abi::STATUS_NON_FINITE, _)) => refused += 1,
            Err((_, said)) => {
                return Err(fail(
                    format!("finite results or LMB_NON_FINITE for {first} and {second} rows"),
                    said,
                ));
            }
        }
    }
    Ok(format!("{} patterns, {refused} refused as not finite", names.len() * names.len()))
}

pub fn refuses(subject: &mut Subject) -> Outcome {
    let (rig, case) = start(subject, 46)?;
    let two: Vec<usize> = (0..case.inputs.len())
        .filter(|i| case.inputs[*i].as_ref().is_some_and(|i| i.by_row && i.shape.len() == 2))
        .collect();
    let (Some(first), true) = (two.first().copied(), two.len() > 1) else {
        return Err(Miss::Skip("fewer than two matrices".to_owned()));
    };
    // One row less in one input: rows no longer belong together.
    let mut short = case.clone();
    let less = case.take_rows(&[0, 1, 2, 3]);
    short.inputs[first] = less.inputs[first].clone();
    match rig.attempt(&short, Setup::default()) {
        Err((abi::STATUS_INVALID_ARGUMENT | abi::STATUS_UNSUPPORTED | abi::STATUS_BAD_DATA, _)) => {
            fine()
        }
        Err((_, said)) => {
            Err(fail("LMB_INVALID_ARGUMENT or LMB_UNSUPPORTED for unequal rows", said))
        }
        Ok(_) => Err(fail("an error for inputs with unequal rows", "status OK")),
    }
}
