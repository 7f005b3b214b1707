//! A loss as a candle expression: exported, and held to every promise of the contract.
#![cfg(feature = "candle")]

use limbeck_sdk::candle::prelude::*;
use limbeck_sdk::{schemars, serde};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    temperature: f64,
}
struct ForwardKl(f64);

impl CandleLoss for ForwardKl {
    const ID: &'static str = "org.example.forward-kl";
    type Config = Config;
    fn new(c: Config, _: &Host) -> Result<Self> {
        Ok(Self(c.temperature))
    }
    fn ports(&self) -> Ports {
        Ports::new().input_grad("student.logits", "N,V").input("teacher.logits", "N,V")
    }
    fn value(&self, x: &Inputs) -> Candle<Tensor> {
        let log_p = log_softmax(&(x.get("teacher.logits")? / self.0)?, D::Minus1)?;
        let log_q = log_softmax(&(x.get("student.logits")? / self.0)?, D::Minus1)?;
        (log_p.exp()? * (&log_p - &log_q)?)?.sum(D::Minus1)? * (self.0 * self.0)
    }
}
limbeck_sdk::export! { candle_loss ForwardKl }

#[test]
fn the_expression_keeps_every_promise() {
    limbeck_sdk::gradcheck!(candle ForwardKl, {"temperature": 2.0});
}
