//! Inputs for a loss, made from its ports.
//!
//! Sizes come from the symbols of the shapes, values from the names of the ports: labels are class numbers, masks are
//! ones, everything else is drawn from a normal distribution of a scale that logits have.

use crate::load::instance::Port;
use crate::run::random::Random;
use crate::tensor::DType;
use std::collections::BTreeMap;

/// Rows of an ordinary case.
pub const ROWS: usize = 5;
/// Classes, vocabulary: odd, so that no vector loop fits it.
const CLASSES: i64 = 7;
/// Standard deviation of drawn inputs.
const SPREAD: f64 = 1.5;
/// Label that takes a row out of the count.
pub const IGNORED: f64 = -100.0;

/// One input of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// Port name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<i64>,
    /// Values in row-major order.
    pub values: Vec<f64>,
    /// Whether the first axis is the row axis.
    pub by_row: bool,
    /// Whether a gradient can be asked for.
    pub differentiable: bool,
    /// Whether the gradient may be written over the input.
    pub may_alias: bool,
}

impl Input {
    /// Values per row; all of them without a row axis.
    pub fn row_len(&self, rows: usize) -> usize {
        if self.by_row && rows > 0 { self.values.len() / rows } else { self.values.len() }
    }
}

/// A call's inputs and numbers.
#[derive(Clone, Debug)]
pub struct Case {
    /// One per input port; `None`: absent.
    pub inputs: Vec<Option<Input>>,
    /// Rows.
    pub rows: usize,
    /// Counted rows of the step.
    pub normalizer: f64,
    /// Factor of gradients.
    pub grad_scale: f64,
    /// Values of the loss's own parameters.
    pub params: Vec<Vec<f64>>,
}

fn is_row_axis(symbol: &str) -> bool {
    matches!(symbol, "N" | "B")
}

fn size(symbol: &str, rows: usize, first: bool) -> i64 {
    match symbol {
        _ if first && is_row_axis(symbol) => rows as i64,
        "N" | "B" => rows as i64,
        "V" | "C" => CLASSES,
        // Entries of a sparse teacher: fewer than classes.
        "K" if !first => 3,
        "K" => CLASSES,
        "T" => 3,
        "*" if first => rows as i64,
        "*" => 6,
        _ => {
            symbol.parse().unwrap_or_else(|_| 4 + (symbol.bytes().map(i64::from).sum::<i64>() % 3))
        }
    }
}

/// Shape of a port with so many rows, and whether its first axis is the row axis.
fn shape_of(port: &Port, rows: usize) -> (Vec<i64>, bool) {
    let axes: Vec<&str> = port.shape.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
    if axes == ["*"] {
        return (vec![rows as i64, 6], false);
    }
    let shape = axes.iter().enumerate().map(|(i, a)| size(a, rows, i == 0)).collect();
    (shape, axes.first().is_some_and(|a| is_row_axis(a)))
}

/// The element type to use: f32 if accepted, else the first.
pub fn preferred(port: &Port) -> Option<DType> {
    let has_f32 = port.dtypes.contains(&DType::F32);
    if has_f32 { Some(DType::F32) } else { port.dtypes.first().copied() }
}

fn values_of(port: &Port, dtype: DType, count: usize, draw: &mut Random) -> Vec<f64> {
    let last = port.name.rsplit('.').next().unwrap_or_default();
    let mut one = |index: usize| match last {
        "row_mask" | "row_classes" | "class_mask" | "attention_mask" => 1.0,
        "old_classes" => f64::from(u8::from(index.is_multiple_of(2))),
        "row_weights" => 0.5 + draw.uniform(),
        "row_ids" => index as f64,
        // Source and target of domain adaptation, both present.
        "domain" => f64::from(u8::from(!index.is_multiple_of(2))),
        "task_index" | "token_type_ids" => 0.0,
        _ if dtype == DType::U8 => 1.0,
        _ if dtype.is_float() => SPREAD * draw.normal(),
        _ => draw.below(CLASSES as u64) as f64,
    };
    (0..count).map(&mut one).collect()
}

/// A case with so many rows; `optional`: bind optional ports too.
pub fn make(ports: &[Port], rows: usize, optional: bool, draw: &mut Random) -> Case {
    let input = |port: &Port| {
        let dtype = preferred(port)?;
        if port.is_optional() && !optional {
            return None;
        }
        let (shape, by_row) = shape_of(port, rows);
        let count = shape.iter().product::<i64>() as usize;
        Some(Input {
            name: port.name.clone(),
            dtype,
            values: values_of(port, dtype, count, draw),
            shape,
            by_row,
            differentiable: port.is_differentiable(),
            may_alias: port.flags & limbeck_abi::PORT_GRAD_MAY_ALIAS != 0,
        })
    };
    let mut input = input;
    let mut inputs: Vec<Option<Input>> =
        ports.iter().filter(|p| !p.is_output()).map(&mut input).collect();
    make_sparse(&mut inputs, rows, draw);
    let normalizer = if rows == 0 { 3.0 } else { rows as f64 };
    Case { inputs, rows, normalizer, grad_scale: 1.0, params: Vec::new() }
}

/// A sparse teacher's three ports belong together: distinct classes, their log-probabilities, the log of the rest.
fn make_sparse(inputs: &mut [Option<Input>], rows: usize, draw: &mut Random) {
    let position = |inputs: &[Option<Input>], end: &str| {
        inputs.iter().position(|i| i.as_ref().is_some_and(|i| i.name.ends_with(end)))
    };
    let Some(indices) = position(inputs, "topk.indices") else { return };
    let kept = inputs[indices].as_ref().map_or(0, |i| i.row_len(rows));
    let (values, tail) = (position(inputs, "topk.values"), position(inputs, "topk.tail"));
    for row in 0..rows {
        let scores: Vec<f64> = (0..CLASSES).map(|_| SPREAD * draw.normal()).collect();
        let total: f64 = scores.iter().map(|s| s.exp()).sum();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        draw.shuffle(&mut order);
        let mut put = |at: Option<usize>, index: usize, value: f64| {
            let input = at.and_then(|at| inputs.get_mut(at)).and_then(Option::as_mut);
            if let Some(slot) = input.and_then(|i| i.values.get_mut(index)) {
                *slot = value;
            }
        };
        let mut rest = 1.0;
        for (entry, class) in order.iter().take(kept).enumerate() {
            let log_p = scores[*class] - total.ln();
            rest -= log_p.exp();
            put(Some(indices), row * kept + entry, *class as f64);
            put(values, row * kept + entry, log_p);
        }
        put(tail, row, rest.max(1e-12).ln());
    }
}

impl Case {
    /// Whether every per-row input has a row axis and there is one.
    pub fn has_rows(&self) -> bool {
        self.inputs.iter().flatten().any(|i| i.by_row)
    }

    /// Position of an input by the last part of its name.
    pub fn position(&self, name: &str) -> Option<usize> {
        let is = |i: &Option<Input>| i.as_ref().is_some_and(|i| i.name == name);
        self.inputs.iter().position(is)
    }

    /// The case with only these rows, in this order. Normalizer and parameters stay.
    pub fn take_rows(&self, rows: &[usize]) -> Self {
        let mut out = self.clone();
        for input in out.inputs.iter_mut().flatten().filter(|i| i.by_row) {
            let len = input.row_len(self.rows);
            let row = |r: &usize| input.values[r * len..(r + 1) * len].to_vec();
            input.values = rows.iter().flat_map(row).collect();
            input.shape[0] = rows.len() as i64;
        }
        out.rows = rows.len();
        out
    }

    /// Shapes by name, for messages.
    pub fn words(&self) -> String {
        let one = |i: &Input| format!("{} {:?}", i.name, i.shape);
        let names: BTreeMap<_, _> =
            self.inputs.iter().flatten().map(|i| (&i.name, one(i))).collect();
        names.into_values().collect::<Vec<_>>().join(", ")
    }
}
