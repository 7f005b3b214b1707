//! `org.example.template`: one hidden layer on candle. Replace the model by your own.

use limbeck_sdk::candle::prelude::*;
use limbeck_sdk::{schemars, serde};

/// Settings: what stands under `with`. Doc comments become the schema's descriptions.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    /// Values of one input.
    #[schemars(range(min = 1))]
    inputs: usize,
    /// Width of the hidden layer.
    #[schemars(range(min = 1, max = 65536))]
    hidden: usize,
    /// Classes.
    #[schemars(range(min = 2))]
    classes: usize,
}

struct Template {
    hidden: (Tensor, Tensor),
    out: (Tensor, Tensor),
}

/// `x Wᵀ + b`.
fn linear(x: &Tensor, (weight, bias): &(Tensor, Tensor)) -> Result<Tensor> {
    Ok(x.matmul(&weight.t()?)?.broadcast_add(bias)?)
}

fn layer(w: &mut Weights<'_>, name: &str, out: usize, inputs: usize) -> Result<(Tensor, Tensor)> {
    w.scope(name, |w| {
        let spread = (1.0 / inputs as f64).sqrt();
        let weight = w.param("weight", &[out, inputs], Init::Normal(0.0, spread))?;
        Ok((weight, w.param("bias", &[out], Init::Zeros)?))
    })
}

impl CandleStudent for Template {
    const ID: &'static str = "org.example.template";
    const SUMMARY: &'static str = "one hidden layer";
    type Config = Config;

    fn ports(c: &Config) -> Result<Ports> {
        Ok(Ports::new()
            .input("pixel_values", format!("B,{}", c.inputs))
            .output_grad("logits", format!("B,{}", c.classes))
            .output_grad("hidden.1", format!("B,{}", c.hidden)))
    }

    fn build(c: &Config, weights: &mut Weights<'_>) -> Result<Self> {
        Ok(Self {
            hidden: layer(weights, "hidden", c.hidden, c.inputs)?,
            out: layer(weights, "out", c.classes, c.hidden)?,
        })
    }

    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        let hidden = linear(call.input("pixel_values")?, &self.hidden)?.tanh()?;
        let mut out = Outputs::new();
        if call.wants("logits") {
            out.put("logits", linear(&hidden, &self.out)?);
        }
        Ok(out.with("hidden.1", hidden))
    }
}

limbeck_sdk::export! { candle_student Template }
