//! A CNN against candle's own operations, and what it promises about outputs and gradients.

use candle_core::{DType, Device, Var};

use super::*;
use crate::layers::testing::{check_gradients, wave};

fn config(batch_norm: bool) -> Config {
    Config {
        image: [2, 6, 5],
        channels: vec![3, 4],
        kernel: 3,
        pool: Pool::Max,
        batch_norm,
        hidden: vec![6],
        classes: 3,
        activation: Activation::Relu,
        dropout: 0.0,
        flat: false,
    }
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

#[test]
fn logits_equal_candles_own_operations() {
    let config = config(false);
    let params = tensors(&config, DType::F64);
    let get = |name: &str| params.iter().find(|(n, _)| *n == name).unwrap().1.clone();
    let mut x = wave(&[5, 2, 6, 5], 1.0);
    let logits = forward(&config, &params, &x, &["logits"], Mode::Eval).remove(0);
    for index in 0..2 {
        let bias = get(&format!("conv.{index}.bias")).reshape((1, (), 1, 1)).unwrap();
        x = x.conv2d(&get(&format!("conv.{index}.weight")), 1, 1, 1, 1).unwrap();
        x = x.broadcast_add(&bias).unwrap().relu().unwrap().max_pool2d(2).unwrap();
    }
    let linear = |x: &Tensor, name: &str| {
        let y = x.matmul(&get(&format!("{name}.weight")).t().unwrap()).unwrap();
        y.broadcast_add(&get(&format!("{name}.bias"))).unwrap()
    };
    let x = linear(&x.flatten_from(1).unwrap(), "layers.0").relu().unwrap();
    let error = (logits - linear(&x, "classifier")).unwrap().abs().unwrap().max_all().unwrap();
    assert!(error.to_scalar::<f64>().unwrap() < 1e-13);
}

#[test]
fn gradients_of_all_parameters_match_central_differences() {
    for (batch_norm, mode) in
        [(false, Mode::Eval), (true, Mode::Eval), (true, Mode::Train { key: [3, 4] })]
    {
        for pool in [Pool::Max, Pool::Average, Pool::None] {
            let config = Config { pool, activation: Activation::Tanh, ..config(batch_norm) };
            let params = tensors(&config, DType::F64);
            let is_buffer = |name: &str| name.contains("running");
            let buffers: Vec<_> = params.iter().filter(|(name, _)| is_buffer(name)).collect();
            let names: Vec<&str> =
                params.iter().map(|(name, _)| name).filter(|name| !is_buffer(name)).collect();
            let mut all = vec![wave(&[3, 2, 6, 5], 1.0)];
            all.extend(
                names.iter().map(|name| params.iter().find(|(n, _)| n == name).unwrap().1.clone()),
            );
            check_gradients(&all, |x| {
                let copies = buffers.iter().map(|(n, t)| ((*n).to_owned(), t.copy().unwrap()));
                let rest = names.iter().map(|n| (*n).to_owned()).zip(x[1..].iter().cloned());
                let params = copies.chain(rest).collect();
                Ok(forward(&config, &params, &x[0], &["logits"], mode).remove(0))
            });
        }
    }
}

#[test]
fn every_trained_parameter_gets_a_finite_gradient_that_is_not_zero() {
    let config = Config { image: [1, 8, 8], channels: vec![8, 16], ..config(true) };
    let vars: Vec<(String, Var)> = tensors(&config, DType::F32)
        .iter()
        .map(|(n, t)| (n.to_owned(), Var::from_tensor(t).unwrap()))
        .collect();
    let params = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let x = wave(&[32, 1, 8, 8], 1.0).to_dtype(DType::F32).unwrap();
    let before = vars.iter().find(|(n, _)| n == "norm.0.running_mean").unwrap().1.copy().unwrap();
    let train = Mode::Train { key: [1, 2] };
    let logits = forward(&config, &params, &x, &["logits"], train).remove(0);
    let store = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(vars.len(), 16);
    for (name, var) in &vars {
        if name.contains("running") {
            assert!(store.get(var).is_none());
            continue;
        }
        let norm = store.get(var).unwrap().sqr().unwrap().sum_all().unwrap();
        let norm = norm.to_scalar::<f32>().unwrap();
        // A bias before a batch normalization has no effect: its gradient is rounding noise.
        assert!(norm.is_finite() && norm > 0.0, "{name} {norm}");
    }
    let after = &vars.iter().find(|(n, _)| n == "norm.0.running_mean").unwrap().1;
    assert_ne!(before.to_vec1::<f32>().unwrap(), after.to_vec1::<f32>().unwrap());
}

#[test]
fn ports_have_numbers_and_outputs_have_the_shapes_of_their_ports() {
    for flat in [false, true] {
        let config = Config { flat, ..config(false) };
        let params = tensors(&config, DType::F32);
        let shape = if flat { vec![7, 60] } else { vec![7, 2, 6, 5] };
        let x = wave(&shape, 1.0).to_dtype(DType::F32).unwrap();
        let ports = config.outputs();
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["logits", "hidden.0", "hidden.1", "hidden.2", "hidden.3", "features"]);
        let full = forward(&config, &params, &x, &names, Mode::Eval);
        for (port, tensor) in ports.iter().zip(&full) {
            let dims: Vec<String> = tensor.dims()[1..].iter().map(usize::to_string).collect();
            assert_eq!(port.shape, format!("B,{}", dims.join(",")), "{}", port.name);
            let alone = forward(&config, &params, &x, &[&port.name], Mode::Eval).remove(0);
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(&alone), bits(tensor), "{}", port.name);
        }
        assert_eq!(config.inputs()[0].shape, if flat { "B,60" } else { "B,2,6,5" });
    }
}

#[test]
fn bad_settings_are_named() {
    let error = |config: Config| config.params().unwrap_err().to_string();
    assert_eq!(error(Config { kernel: 4, ..config(false) }), "`kernel` must be odd, found 4");
    assert_eq!(
        error(Config { channels: vec![2, 2, 2], ..config(false) }),
        "`pool` leaves no pixel of 6 x 5 after block 3"
    );
    assert_eq!(
        error(Config { image: [0, 6, 5], ..config(false) }),
        "`image` must be at least 1, found 0"
    );
    assert!(error(Config { image: [1, usize::MAX, 5], ..config(false) }).contains("above 2^40"));
    let huge = Config { channels: vec![1 << 40], pool: Pool::None, ..config(false) };
    assert!(error(huge).contains("above 2^40"));
    let params = tensors(&config(false), DType::F32);
    let x = wave(&[2, 2, 5, 6], 1.0).to_dtype(DType::F32).unwrap();
    let inputs = Inputs::from([("pixel_values", x)]);
    let message = config(false).build(&params).unwrap().forward(&inputs, &["logits"], Mode::Eval);
    assert_eq!(
        message.unwrap_err().to_string(),
        "input `pixel_values` has shape [2, 2, 5, 6], the model takes B,2,6,5"
    );
}
