//! The loss of the documentation compiles and exports.
use limbeck_sdk::{numeric::log_softmax, prelude::*, schemars, serde};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    temperature: f64,
}
struct ReverseKl(f64);

impl Loss for ReverseKl {
    const ID: &'static str = "org.example.reverse-kl";
    type Config = Config;
    fn new(c: Config, _: &Host) -> Result<Self> {
        Ok(Self(c.temperature))
    }
    fn ports(&self) -> Ports {
        Ports::new().input_grad("student.logits", "N,V").input("teacher.logits", "N,V")
    }
    fn compute(&mut self, call: &LossCall) -> Result<()> {
        let (s, q, t) = (call.rows(0)?, call.rows(1)?, self.0);
        call.sum_rows(|i, grad| {
            let (lp, lq) = (log_softmax(s.row(i), t), log_softmax(q.row(i), t));
            let kl: f64 = lp.iter().zip(&lq).map(|(p, q)| p.exp() * (p - q)).sum();
            for (g, (p, q)) in grad.iter_mut().zip(lp.iter().zip(&lq)) {
                *g = p.exp() * (p - q - kl) * t
            }
            kl * t * t
        })
    }
}
limbeck_sdk::export! { loss ReverseKl }

#[test]
fn the_crate_links() {}
