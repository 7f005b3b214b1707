//! `limbeck.si`: synaptic intelligence. Importance is the share of each parameter in the fall of the loss, summed along
//! the path that the optimizer took:
//!
//! `ω_i −= g_i Δθ_i` each step, g the gradient of the loss terms alone; at a task's end
//! `Ω_i += ω_i / ((θ_i − θ_i at its begin)² + ξ)`, ω = 0; added gradient `2 c Ω∘(θ − θ*)`, of the penalty `c Σ Ω (θ − θ*)²`.
//!
//! Source: Zenke et al. 2017 [1703.04200].

use crate::importance::{Vectors, add_pull, with_grads};
use crate::replay::{check_strength, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{Vector, VectorSet, combine, owned_trainable};
use limbeck_sdk::{schemars, serde};
use std::io::{Read, Write};

fn xi() -> f64 {
    0.1
}

/// Settings of `limbeck.si`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Strength; 0 changes nothing.
    #[schemars(range(min = 0.0))]
    c: f64,
    /// Damps the division by the squared way; above 0.
    #[serde(default = "xi")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    xi: f64,
}

/// The scheduler.
pub struct Si {
    config: Config,
    /// ω, Ω, θ at the task's begin, θ*.
    kept: Vectors<4>,
    /// Gradient and parameters of the running step.
    step: Option<(VectorSet, VectorSet)>,
    /// Tasks finished.
    tasks: u64,
}

impl Si {
    fn is_off(&self) -> bool {
        self.config.c == 0.0
    }

    fn task_begin(&mut self, event: &Event<'_>) -> Result<()> {
        let params = owned_trainable(event.params());
        let [_, _, begin, _] = self.kept.lists(event.context(), &params)?;
        Vector::new(event.context())?.axpby(1.0, &params, 0.0, &begin)
    }

    fn backward(&mut self, event: &Event<'_>) -> Result<()> {
        let (params, grads) = with_grads(event)?;
        if self.step.is_none() {
            let make = |name| VectorSet::zeros_like(event.context(), name, &params);
            self.step = Some((make("gradient")?, make("before")?));
        }
        let Some((gradient, before)) = &self.step else { return Ok(()) };
        let vector = Vector::new(event.context())?;
        vector.axpby(1.0, &grads, 0.0, &gradient.list())?;
        vector.axpby(1.0, &params, 0.0, &before.list())
    }

    /// `ω −= g Δθ`; `before` ends as −Δθ.
    fn step_end(&mut self, event: &Event<'_>) -> Result<()> {
        let params = owned_trainable(event.params());
        let [path, ..] = self.kept.lists(event.context(), &params)?;
        let Some((gradient, before)) = &self.step else { return Ok(()) };
        let (vector, back) = (Vector::new(event.context())?, before.list());
        vector.axpby(-1.0, &params, 1.0, &back)?;
        vector.mul(1.0, &gradient.list(), &back, 1.0, &path)?;
        // A step without BACKWARD (skipped) must not count this gradient again.
        vector.scale(0.0, &gradient.list())
    }

    fn task_end(&mut self, event: &Event<'_>) -> Result<()> {
        let params = owned_trainable(event.params());
        let [path, importance, begin, centre] = self.kept.lists(event.context(), &params)?;
        let xi = self.config.xi;
        combine(
            event.context(),
            &importance,
            [&path, &begin, &params],
            |own, [path, begin, now]| own + path / ((now - begin).powi(2) + xi),
        )?;
        let vector = Vector::new(event.context())?;
        vector.scale(0.0, &path)?;
        self.tasks += 1;
        vector.axpby(1.0, &params, 0.0, &centre)
    }

    fn penalty(&mut self, event: &Event<'_>) -> Result<()> {
        if self.tasks == 0 {
            return Ok(());
        }
        let (params, grads) = with_grads(event)?;
        let [_, importance, _, centre] = self.kept.lists(event.context(), &params)?;
        let scratch = VectorSet::zeros_like(event.context(), "scratch", &params)?;
        let (vector, scale) = (Vector::new(event.context())?, 2.0 * self.config.c);
        add_pull(&vector, &scratch, scale, &importance, &params, &centre, &grads)
    }
}

impl Scheduler for Si {
    const ID: &'static str = "limbeck.si";
    const SUMMARY: &'static str =
        "synaptic intelligence: a pull weighted by each parameter's share in learning";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        let Config { c, xi } = config;
        check_strength("c", c)?;
        if !(xi > 0.0 && xi.is_finite()) {
            return Err(Error::config("/xi", format!("`xi` must be above 0, found {xi}")));
        }
        let kept = Vectors::new(["path", "importance", "begin", "centre"]);
        Ok(Self { config, kept, step: None, tasks: 0 })
    }

    fn ports(&self) -> Ports {
        Ports::new()
    }

    fn plan(&self) -> Result<Schedule> {
        if self.is_off() {
            return Ok(Schedule::new());
        }
        let borders = abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END;
        let steps = abi::EVENT_BACKWARD | abi::EVENT_STEP_END | abi::EVENT_PENALTY;
        Ok(Schedule::new().events(borders | steps))
    }

    fn definition(&self) -> Value {
        json!({
            "importance": {
                "kind": "path integral of g * d theta / (way^2 + xi)", "rows": "all training steps",
                "gradient": "of the loss terms alone, mean over the step's rows", "xi": self.config.xi,
            },
            "penalty_gradient": "2*c*Omega*(theta-theta*)",
            "across_tasks": "sum",
        })
    }

    fn deactivate(&mut self) {
        self.kept.clear();
        (self.step, self.tasks) = (None, 0);
    }

    fn on_event(&mut self, event: &Event<'_>, _: &Requests<'_>) -> Result<()> {
        match event.kind() {
            _ if self.is_off() => Ok(()),
            abi::EVENT_TASK_BEGIN => self.task_begin(event),
            abi::EVENT_BACKWARD => self.backward(event),
            abi::EVENT_PENALTY => self.penalty(event),
            abi::EVENT_STEP_END => self.step_end(event),
            abi::EVENT_TASK_END => self.task_end(event),
            _ => Ok(()),
        }
    }

    fn save(&mut self, context: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        state.u64(self.tasks)?;
        self.kept.save(context, &mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.tasks = state.u64()?;
        self.kept.load(&mut state)?;
        state.finish()
    }
}
