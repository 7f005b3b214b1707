//! Reads the golden cases: inputs by formula, expectations by norm, probe and samples.
//!
//! For tests of the oracle and of the plugins. Refuses nothing quietly: an unknown generator or field
//! panics, since a case that is not run proves nothing.

use crate::reference::{Array, Inputs};
use serde_json::Value;

/// The committed cases.
pub(crate) const TEXT: &str = include_str!("../tests/golden/losses.json");

/// A number or one of the strings `inf`, `-inf`, `nan`.
pub(crate) fn number(value: &Value) -> f64 {
    match value.as_str() {
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        Some("nan") => f64::NAN,
        Some(other) => panic!("not a number: {other}"),
        None => value.as_f64().expect("a number"),
    }
}

/// One input of a case.
pub(crate) fn generate(spec: &Value, earlier: &Inputs) -> Array {
    let field = |name: &str| number(&spec[name]);
    let shape: Vec<usize> = spec["shape"]
        .as_array()
        .map(|shape| shape.iter().map(|d| d.as_u64().expect("a size") as usize).collect())
        .unwrap_or_default();
    let len = shape.iter().product();
    let wave = || match spec["fn"].as_str() {
        Some("sin") => f64::sin,
        Some("cos") => f64::cos,
        other => panic!("unknown function {other:?}"),
    };
    let mut array = match spec["gen"].as_str() {
        Some("grid") => {
            let (a, b, c, d, f) = (field("a"), field("b"), field("c"), field("d"), wave());
            let at = |k: usize| a * f((b + c * (k / shape[1]) as f64) + d * (k % shape[1]) as f64);
            Array { data: (0..len).map(at).collect(), shape }
        }
        Some("flat") => {
            let (a, b, c, f) = (field("a"), field("b"), field("c"), wave());
            Array { data: (0..len).map(|k| a * f(b + c * k as f64)).collect(), shape }
        }
        Some("list") => {
            let data = spec["data"].as_array().expect("data");
            Array { data: data.iter().map(number).collect(), shape }
        }
        Some("fill") => Array { data: vec![field("value"); len], shape },
        Some("like") => earlier[spec["of"].as_str().expect("a name")].clone(),
        other => panic!("unknown generator {other:?}"),
    };
    if !spec["add"].is_null() {
        array.data.iter_mut().for_each(|x| *x += number(&spec["add"]));
    }
    for pair in spec["set"].as_array().into_iter().flatten() {
        array.data[pair[0].as_u64().expect("an index") as usize] = number(&pair[1]);
    }
    array
}

/// All inputs of a case; `like` inputs come after what they copy.
pub(crate) fn inputs(case: &Value) -> Inputs {
    let specs = case["inputs"].as_object().expect("inputs");
    let mut inputs = Inputs::new();
    for like in [false, true] {
        for (name, spec) in specs.iter().filter(|(_, spec)| (spec["gen"] == "like") == like) {
            let array = generate(spec, &inputs);
            inputs.insert(name.clone(), array);
        }
    }
    inputs
}

/// Tolerances: relative and absolute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
}

impl Tolerance {
    /// Of a case, in the arithmetic `f64` or `f32`.
    pub fn of(file: &Value, case: &Value, arithmetic: &str) -> Self {
        let base = &file["tolerance"][arithmetic];
        let own = match arithmetic {
            "f64" => &case["tol"],
            other => &case["tol"][other],
        };
        let pick = |name: &str| own[name].as_f64().or(base[name].as_f64()).expect("a tolerance");
        Self { rtol: pick("rtol"), atol: pick("atol") }
    }

    pub fn check(self, what: &str, found: f64, expected: f64, scale: f64) -> Result<(), String> {
        let same = found == expected || (found.is_nan() && expected.is_nan());
        if same || (found - expected).abs() <= self.atol + self.rtol * scale {
            return Ok(());
        }
        Err(format!("{what}: found {found:e}, expected {expected:e}"))
    }

    /// A gradient against its norm, probe, first and last entries.
    pub fn check_grad(self, name: &str, grad: &[f64], expected: &Value) -> Result<(), String> {
        let norm = number(&expected["norm"]);
        let found = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        self.check(&format!("{name} norm"), found, norm, norm)?;
        let probe: f64 =
            grad.iter().enumerate().map(|(k, g)| g * (0.3 + 0.7 * k as f64).cos()).sum();
        let wide = Self { rtol: self.rtol, atol: self.atol };
        let root = (grad.len() as f64).sqrt();
        let scaled = Self { rtol: wide.rtol * root, atol: wide.atol * root };
        scaled.check(&format!("{name} probe"), probe, number(&expected["probe"]), norm)?;
        let entries = |key: &str| -> Vec<f64> {
            expected[key].as_array().into_iter().flatten().map(number).collect()
        };
        let (first, last) = (entries("first"), entries("last"));
        let tail = grad.len() - last.len();
        let pairs = grad.iter().zip(&first).chain(grad[tail..].iter().zip(&last));
        for (k, (g, e)) in pairs.enumerate() {
            self.check(&format!("{name} entry {k}"), *g, *e, norm)?;
        }
        Ok(())
    }
}
