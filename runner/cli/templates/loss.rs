//! `org.example.template`: reverse KL on softened rows. Replace the formula by your own.

use limbeck_sdk::{numeric::log_softmax, prelude::*, schemars, serde};

/// Settings: what stands under `with`. Doc comments become the schema's descriptions.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    /// Divides both logits.
    #[serde(default = "one")]
    #[schemars(range(min = 0.01))]
    temperature: f64,
}

fn one() -> f64 {
    1.0
}

/// `T²/normalizer · Σ_n Σ_v q (ln q - ln p)`, p = softmax(t/T), q = softmax(s/T).
struct Template {
    temperature: f64,
}

impl Loss for Template {
    const ID: &'static str = "org.example.template";
    const SUMMARY: &'static str = "reverse KL on softened rows";
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        if config.temperature.is_finite() && config.temperature > 0.0 {
            Ok(Self { temperature: config.temperature })
        } else {
            Err(Error::config("/temperature", "must be above 0"))
        }
    }

    fn ports(&self) -> Ports {
        Ports::new().input_grad("student.logits", "N,V").input("teacher.logits", "N,V").counting()
    }

    fn compute(&mut self, call: &LossCall) -> Result<()> {
        let (student, teacher, t) = (call.rows(0)?, call.rows(1)?, self.temperature);
        call.sum_rows(|i, grad| {
            let log_q = log_softmax(student.row(i), t);
            let log_p = log_softmax(teacher.row(i), t);
            let kl: f64 = log_q.iter().zip(&log_p).map(|(q, p)| q.exp() * (q - p)).sum();
            for (g, (q, p)) in grad.iter_mut().zip(log_q.iter().zip(&log_p)) {
                *g = t * q.exp() * (q - p - kl);
            }
            t * t * kl
        })
    }
}

limbeck_sdk::export! { loss Template }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_is_that_of_the_value() {
        limbeck_sdk::gradcheck!(Template, {"temperature": 2.0});
    }
}
