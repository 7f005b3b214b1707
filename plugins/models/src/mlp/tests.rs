//! An MLP against plain Rust in f64, and what it promises about outputs and gradients.

use candle_core::{DType, Device, Var};

use super::*;
use crate::layers::testing::{check_gradients, wave};
use crate::params::Role;

fn config(activation: Activation, dropout: f64) -> Config {
    Config { inputs: 6, hidden: vec![5, 7], classes: 3, activation, dropout }
}

fn tensors(config: &Config, dtype: DType) -> Params {
    Params::initial(&config.params().unwrap(), [1, 2], dtype, &Device::Cpu).unwrap()
}

fn forward(
    config: &Config,
    params: &Params,
    x: &Tensor,
    wanted: &[&str],
    mode: Mode,
) -> Vec<Tensor> {
    let inputs = Inputs::from([("pixel_values", x.clone())]);
    config.build(params).unwrap().forward(&inputs, wanted, mode).unwrap()
}

/// Logits, and the gradient of Σ logits·c in every parameter and the input, by loops over rows in f64.
struct Plain {
    weights: Vec<(Vec<Vec<f64>>, Vec<f64>)>,
    activation: Activation,
}

impl Plain {
    fn new(config: &Config, params: &Params) -> Self {
        let flat = |name: String| {
            let (_, tensor) = params.iter().find(|(n, _)| *n == name).unwrap();
            tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
        };
        let weights = (0..=config.hidden.len())
            .map(|index| {
                let name = config.layer_name(index);
                let (weight, bias) = (flat(format!("{name}.weight")), flat(format!("{name}.bias")));
                let inputs = weight.len() / bias.len();
                (weight.chunks(inputs).map(<[f64]>::to_vec).collect(), bias)
            })
            .collect();
        Self { weights, activation: config.activation }
    }

    fn act(&self, x: f64) -> (f64, f64) {
        match self.activation {
            Activation::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::Tanh => (x.tanh(), 1.0 - x.tanh().powi(2)),
            other => panic!("{other:?} is not written out here"),
        }
    }

    /// Logits of a row; adds to `grads` (weights and biases in order) and gives the input's gradient.
    fn row(
        &self,
        x: &[f64],
        cotangent: &[f64],
        grads: &mut [(Vec<f64>, Vec<f64>)],
    ) -> (Vec<f64>, Vec<f64>) {
        let mut inputs = vec![x.to_vec()];
        let mut slopes = Vec::new();
        let mut logits = Vec::new();
        for (index, (weight, bias)) in self.weights.iter().enumerate() {
            let last = inputs.last().unwrap().clone();
            let z: Vec<f64> = weight
                .iter()
                .zip(bias)
                .map(|(w, b)| w.iter().zip(&last).map(|(w, x)| w * x).sum::<f64>() + b)
                .collect();
            if index + 1 == self.weights.len() {
                logits = z;
            } else {
                slopes.push(z.iter().map(|&z| self.act(z).1).collect::<Vec<_>>());
                inputs.push(z.iter().map(|&z| self.act(z).0).collect());
            }
        }
        let mut grad = cotangent.to_vec();
        for index in (0..self.weights.len()).rev() {
            let (weight, _) = &self.weights[index];
            let width = inputs[index].len();
            for (o, &g) in grad.iter().enumerate() {
                grads[index].1[o] += g;
                for (i, &x) in inputs[index].iter().enumerate() {
                    grads[index].0[o * width + i] += g * x;
                }
            }
            let mut back = vec![0.0; width];
            for (w, &g) in weight.iter().zip(&grad) {
                back.iter_mut().zip(w).for_each(|(b, w)| *b += w * g);
            }
            if index > 0 {
                back.iter_mut().zip(&slopes[index - 1]).for_each(|(b, s)| *b *= s);
            }
            grad = back;
        }
        (logits, grad)
    }
}

#[test]
fn values_and_gradients_equal_plain_rust() {
    for (activation, dtype, tolerance) in [
        (Activation::Relu, DType::F64, 1e-12),
        (Activation::Tanh, DType::F64, 1e-12),
        (Activation::Relu, DType::F32, 2e-6),
        (Activation::Tanh, DType::F32, 2e-6),
    ] {
        let config = config(activation, 0.0);
        let params = tensors(&config, dtype);
        let vars: Vec<(String, Var)> =
            params.iter().map(|(n, t)| (n.to_owned(), Var::from_tensor(t).unwrap())).collect();
        let tracked = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
        let x = Var::from_tensor(&wave(&[9, 6], 1.0).to_dtype(dtype).unwrap()).unwrap();
        let cotangent = wave(&[9, 3], 1.0).to_dtype(dtype).unwrap();
        let logits = forward(&config, &tracked, &x, &["logits"], Mode::Eval).remove(0);
        let store = (&logits * &cotangent).unwrap().sum_all().unwrap().backward().unwrap();

        let rows = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let plain = Plain::new(&config, &params);
        let mut grads: Vec<_> = plain
            .weights
            .iter()
            .map(|(w, b)| (vec![0.0; w.len() * w[0].len()], vec![0.0; b.len()]))
            .collect();
        let close = |found: &[f64], wanted: &[f64], what: &str| {
            assert_eq!(found.len(), wanted.len());
            for (f, w) in found.iter().zip(wanted) {
                assert!((f - w).abs() < tolerance * w.abs().max(1.0), "{what}: {f} {w}");
            }
        };
        let input_grad = rows(store.get(&x).unwrap());
        for (row, ((x, c), logits)) in
            rows(&x).iter().zip(rows(&cotangent)).zip(rows(&logits)).enumerate()
        {
            let (wanted, grad) = plain.row(x, &c, &mut grads);
            close(&logits, &wanted, "logits");
            close(&input_grad[row], &grad, "input");
        }
        for (name, var) in &vars {
            let grad = store.get(var).unwrap().flatten_all().unwrap();
            let grad = grad.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            let (layer, part) = name.rsplit_once('.').unwrap();
            let index = layer.strip_prefix("layers.").map_or(2, |i| i.parse().unwrap());
            let wanted = if part == "weight" { &grads[index].0 } else { &grads[index].1 };
            close(&grad, wanted, name);
        }
    }
}

#[test]
fn gradients_of_all_parameters_match_central_differences_also_under_dropout() {
    for activation in [Activation::Gelu, Activation::Tanh, Activation::Relu] {
        let config = config(activation, 0.3);
        let params = tensors(&config, DType::F64);
        let names: Vec<String> = params.iter().map(|(name, _)| name.to_owned()).collect();
        let mut all = vec![wave(&[4, 6], 1.0)];
        all.extend(params.iter().map(|(_, tensor)| tensor.clone()));
        for (mode, wanted) in [
            (Mode::Eval, "logits"),
            (Mode::Train { key: [5, 6] }, "logits"),
            (Mode::Eval, "features"),
        ] {
            let used = if wanted == "logits" { all.len() } else { all.len() - 2 };
            // By name the classifier comes first; without it its tensors have no gradient.
            let skip = all.len() - used;
            let fixed: Vec<_> =
                names.iter().cloned().zip(all[1..].iter().cloned()).take(skip).collect();
            let mut moved = vec![all[0].clone()];
            moved.extend(all[1 + skip..].iter().cloned());
            check_gradients(&moved, |x| {
                let rest = names[skip..].iter().cloned().zip(x[1..].iter().cloned());
                let params = fixed.iter().cloned().chain(rest).collect();
                Ok(forward(&config, &params, &x[0], &[wanted], mode).remove(0))
            });
        }
    }
}

#[test]
fn every_parameter_gets_a_finite_gradient_that_is_not_zero() {
    let config = Config { inputs: 64, hidden: vec![256, 256], classes: 10, ..Config::default() };
    let vars: Vec<(String, Var)> = tensors(&config, DType::F32)
        .iter()
        .map(|(n, t)| (n.to_owned(), Var::from_tensor(t).unwrap()))
        .collect();
    let params = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let x = wave(&[32, 64], 1.0).to_dtype(DType::F32).unwrap();
    let logits = forward(&config, &params, &x, &["logits"], Mode::Eval).remove(0);
    let store = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(vars.len(), 6);
    for (name, var) in vars {
        let norm = store.get(&var).unwrap().sqr().unwrap().sum_all().unwrap();
        let norm = norm.to_scalar::<f32>().unwrap();
        assert!(norm.is_finite() && norm > 0.0, "{name} {norm}");
    }
}

#[test]
fn wanted_outputs_equal_the_full_run_bit_for_bit() {
    let config = config(Activation::Relu, 0.2);
    let params = tensors(&config, DType::F32);
    let x = wave(&[9, 6], 1.0).to_dtype(DType::F32).unwrap();
    let names: Vec<String> = config.outputs().into_iter().map(|port| port.name).collect();
    assert_eq!(names, ["logits", "hidden.0", "hidden.1", "hidden.2", "features"]);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    for mode in [Mode::Eval, Mode::Train { key: [1, 1] }] {
        let full = forward(&config, &params, &x, &all, mode);
        for (name, full) in all.iter().zip(&full) {
            let alone = forward(&config, &params, &x, &[name], mode).remove(0);
            assert_eq!(alone.to_vec2::<f32>().unwrap(), full.to_vec2::<f32>().unwrap(), "{name}");
        }
        let same = full[3].to_vec2::<f32>().unwrap() == full[4].to_vec2::<f32>().unwrap();
        assert_eq!(same, mode == Mode::Eval, "features follow dropout, hidden states do not");
    }
}

#[test]
fn parameters_have_hugging_face_names_shapes_and_roles() {
    let specs = config(Activation::Relu, 0.0).params().unwrap();
    let found: Vec<_> = specs.iter().map(|s| (s.name.as_str(), s.shape.clone(), s.role)).collect();
    assert_eq!(found[0], ("layers.0.weight", vec![5, 6], Role::Weight));
    assert_eq!(found[1], ("layers.0.bias", vec![5], Role::NoDecay));
    assert_eq!(found[4], ("classifier.weight", vec![3, 7], Role::Weight));
    assert_eq!(found.len(), 6);
}

#[test]
fn bad_settings_and_inputs_are_named() {
    let good = config(Activation::Relu, 0.0);
    let error = |config: Config| config.params().unwrap_err().to_string();
    assert_eq!(
        error(Config { hidden: vec![3, 0], ..good.clone() }),
        "`hidden` must be at least 1 everywhere, entry 1 is 0"
    );
    assert_eq!(
        error(Config { dropout: 1.0, ..good.clone() }),
        "`dropout` must be at least 0 and below 1, found 1"
    );
    assert!(error(Config { dropout: f64::NAN, ..good.clone() }).contains("found NaN"));
    assert!(error(Config { inputs: usize::MAX, ..good.clone() }).contains("above 2^40"));
    let params = tensors(&good, DType::F32);
    let model = good.build(&params).unwrap();
    let x = wave(&[2, 5], 1.0).to_dtype(DType::F32).unwrap();
    let message = |inputs: &Inputs<'_>, wanted: &[&str]| {
        model.forward(inputs, wanted, Mode::Eval).unwrap_err().to_string()
    };
    assert_eq!(
        message(&Inputs::from([("pixel_values", x)]), &["logits"]),
        "input `pixel_values` has shape [2, 5], the model takes B,6"
    );
    assert_eq!(message(&Inputs::default(), &["logits"]), "input `pixel_values` is missing");
    let x = wave(&[2, 6], 1.0).to_dtype(DType::F32).unwrap();
    assert_eq!(
        message(&Inputs::from([("pixel_values", x)]), &["hidden.3"]),
        "the model has no output `hidden.3`"
    );
}
