//! `org.example.template`: a teacher that knows one rule. Replace it by a model that reads weights.

use limbeck_sdk::candle::prelude::*;
use limbeck_sdk::{schemars, serde};

/// Settings: what stands under `with`. Doc comments become the schema's descriptions.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    /// Values of one input.
    #[schemars(range(min = 1))]
    inputs: usize,
    /// Classes.
    #[schemars(range(min = 2))]
    classes: usize,
}

struct Template {
    weight: Tensor,
}

impl CandleTeacher for Template {
    const ID: &'static str = "org.example.template";
    const SUMMARY: &'static str = "a fixed linear map";
    type Config = Config;

    fn ports(c: &Config) -> Result<Ports> {
        Ok(Ports::new()
            .input("pixel_values", format!("B,{}", c.inputs))
            .output("logits", format!("B,{}", c.classes)))
    }

    fn build(c: &Config, weights: &mut Weights<'_>) -> Result<Self> {
        // A real teacher reads a file here and passes `Init::Values`.
        let spread = (1.0 / c.inputs as f64).sqrt();
        Ok(Self {
            weight: weights.param("weight", &[c.classes, c.inputs], Init::Normal(0.0, spread))?,
        })
    }

    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        let x = call.input("pixel_values")?;
        Ok(Outputs::new().with("logits", x.matmul(&self.weight.t()?)?))
    }
}

limbeck_sdk::export! { candle_teacher Template }
