//! Central differences for the layers' tests.

use candle_core::{DType, Device, Result, Tensor, Var};

/// Deterministic values in ±`scale` without ties, f64.
pub(crate) fn wave(shape: &[usize], scale: f64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count)
        .map(|i| scale * (1.0 + 2.399_963 * i as f64 + shape.len() as f64).sin())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares the gradients of Σ y·c (c fixed, of mixed sign) in every entry of every tensor with central
/// differences: ε 1e-6, relative 1e-6, absolute 1e-8.
///
/// The tensors must be f64, and the function smooth within ε of them.
pub(crate) fn check_gradients(tensors: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let objective = |tensors: &[Tensor]| -> Result<Tensor> {
        let y = f(tensors)?;
        let weights = wave(y.dims(), 1.0);
        (y * weights)?.sum_all()
    };
    let vars: Vec<Var> = tensors.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = objective(&tracked).unwrap().backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("tensor {i} has no gradient"));
        assert_eq!(grad.dims(), var.dims(), "tensor {i}");
        let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let values = tensors[i].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let at = |j: usize, step: f64| {
            let mut values = values.clone();
            values[j] += step;
            let mut tensors = tensors.to_vec();
            tensors[i] = Tensor::from_vec(values, tensors[i].dims(), &Device::Cpu).unwrap();
            objective(&tensors).unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
        };
        for (j, &grad) in grad.iter().enumerate() {
            let wanted = (at(j, 1e-6) - at(j, -1e-6)) / 2e-6;
            assert!(
                (grad - wanted).abs() <= 1e-8 + 1e-6 * wanted.abs().max(1.0),
                "tensor {i}, entry {j}: {grad}, central difference {wanted}"
            );
        }
    }
}
