// Trains a linear student on the logits of a fixed teacher with Limbeck's loss as an operation of candle.
use candle_core::{DType, Device, Result, Tensor, Var};
use limbeck_losses::candle_ops::LogitLoss;
use serde_json::json;

fn main() -> Result<()> {
    let device = Device::Cpu;
    let wave = |rows: usize, columns: usize, a: f32| {
        let data: Vec<f32> = (0..rows * columns).map(|k| (k as f32 * a).sin()).collect();
        Tensor::from_vec(data, (rows, columns), &device)
    };
    let (inputs, teacher) = (wave(64, 16, 1.7)?, wave(16, 10, 0.9)?);
    let teacher_logits = (inputs.matmul(&teacher)? * 2.0)?;
    let weight = Var::zeros((16, 10), DType::F32, &device)?;
    let loss = LogitLoss::new("kl", &json!({"temperature": 2.0}))?;
    let (mut first, mut last) = (None, 0.0);
    for _ in 0..200 {
        let value = loss.forward(&inputs.matmul(&weight)?, &teacher_logits)?;
        let grads = value.backward()?;
        let step = (grads.get(&weight).expect("the weight is used") * 0.5)?;
        weight.set(&(weight.as_tensor() - step)?)?;
        last = value.to_scalar::<f32>()?;
        first.get_or_insert(last);
    }
    let first = first.unwrap_or(last);
    assert!(last < 0.05 * first, "from {first} to {last}");
    Ok(())
}
