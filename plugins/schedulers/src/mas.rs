//! `limbeck.mas`: memory aware synapses. Importance is how much a parameter moves the squared length of the output, found
//! without labels:
//!
//! `Ω_i += mean over rows of |∂‖f(x)‖²/∂θ_i|` at each task's end, f the logits over all columns; added gradient
//! `2 λ Ω∘(θ − θ*)`, of the penalty `λ Σ Ω (θ − θ*)²`, θ* the parameters after the last task.
//!
//! Source: Aljundi et al. 2018 [1711.09601], the global variant.

use crate::importance::{Vectors, add_pull, with_grads};
use crate::replay::{check_strength, row_ids_port, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{Vector, VectorSet, combine, owned_trainable};
use limbeck_sdk::{Port, Probe, schemars, serde};
use std::io::{Read, Write};

fn rows() -> u32 {
    400
}

/// Settings of `limbeck.mas`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Strength; 0 changes nothing.
    #[schemars(range(min = 0.0))]
    lambda: f64,
    /// Rows of a task that importance is estimated from, drawn at random; 0 is all.
    #[serde(default = "rows")]
    rows: u32,
}

/// The scheduler.
pub struct Mas {
    config: Config,
    /// Ω and θ*.
    kept: Vectors<2>,
    /// Sum of |gradient| over the rows looked at.
    sum: Option<VectorSet>,
    scratch: Option<VectorSet>,
    ids: Vec<i64>,
    width: usize,
    seen: f64,
}

const LOOK: &str = "look";
const NORM: &str = "norm";
const ZERO: &str = "zero";

impl Mas {
    fn is_off(&self) -> bool {
        self.config.lambda == 0.0
    }

    fn task_end(&mut self, requests: &Requests<'_>) -> Result<()> {
        (self.sum, self.width, self.seen) = (None, 0, 0.0);
        self.ids.clear();
        let max_rows = u64::from(self.config.rows);
        requests.probe(&Probe { name: LOOK, model: "student", max_rows, ..Probe::default() })
    }

    fn look(&mut self, event: &Event<'_>) -> Result<()> {
        let ids = event.required("row_ids")?.to_vec::<i64>()?;
        let logits = event.required("student.logits")?.rows()?;
        if logits.len() != ids.len() {
            let message = format!("{} rows of logits for {} examples", logits.len(), ids.len());
            return Err(Error::unsupported(message).tensor("student.logits"));
        }
        self.width = logits.width();
        self.ids.extend(ids);
        Ok(())
    }

    /// `mean (s − 0)²` over V columns has the gradient of `‖f‖² / V`.
    fn ask_gradients(&self, requests: &Requests<'_>) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let rows = self.ids.len() as i64;
        let zeros = vec![0f32; self.ids.len() * self.width];
        let columns = [
            Column::new("row_ids", &[rows], &self.ids)?,
            Column::new(ZERO, &[rows, self.width as i64], &zeros)?,
        ];
        let (name, term) = (NORM, NORM);
        let probe =
            Probe { name, model: "student", term, columns: &columns, batch_rows: 1, max_rows: 0 };
        requests.probe(&probe)
    }

    fn add(&mut self, event: &Event<'_>) -> Result<()> {
        let (params, grads) = with_grads(event)?;
        let sum = match &mut self.sum {
            Some(sum) => sum,
            none => none.insert(VectorSet::zeros_like(event.context(), "sum", &params)?),
        };
        self.seen += 1.0;
        combine(event.context(), &sum.list(), [&grads], |sum, [g]| sum + g.abs())
    }

    fn consolidate(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(sum) = self.sum.take() else { return Ok(()) };
        let params = owned_trainable(event.params());
        let [importance, centre] = self.kept.lists(event.context(), &params)?;
        let scale = self.width as f64 / self.seen;
        combine(event.context(), &importance, [&sum.list()], |own, [sum]| own + scale * sum)?;
        Vector::new(event.context())?.axpby(1.0, &params, 0.0, &centre)
    }

    fn penalty(&mut self, event: &Event<'_>) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let (params, grads) = with_grads(event)?;
        let [importance, centre] = self.kept.lists(event.context(), &params)?;
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => none.insert(VectorSet::zeros_like(event.context(), "scratch", &params)?),
        };
        let (vector, scale) = (Vector::new(event.context())?, 2.0 * self.config.lambda);
        add_pull(&vector, scratch, scale, &importance, &params, &centre, &grads)
    }
}

impl Scheduler for Mas {
    const ID: &'static str = "limbeck.mas";
    const SUMMARY: &'static str =
        "memory aware synapses: a pull weighted by each parameter's effect on the output";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        check_strength("lambda", config.lambda)?;
        let kept = Vectors::new(["importance", "centre"]);
        let ids = Vec::new();
        Ok(Self { config, kept, sum: None, scratch: None, ids, width: 0, seen: 0.0 })
    }

    fn ports(&self) -> Ports {
        Ports::new()
            .with(row_ids_port())
            .with(Port::input("student.logits", "N,V").doc("for their width"))
            .with(Port::output(ZERO, "N,V").doc("what the output's length is measured from"))
    }

    fn plan(&self) -> Result<Schedule> {
        if self.is_off() {
            return Ok(Schedule::new());
        }
        let probes = abi::EVENT_TASK_END | abi::EVENT_PROBE | abi::EVENT_PROBE_END;
        let term = Term::new(NORM, "limbeck.logit-mse")
            .input("teacher.logits", format!("self.{ZERO}"))
            .weight(0.0);
        Ok(Schedule::new().events(probes | abi::EVENT_PENALTY).term(term))
    }

    fn definition(&self) -> Value {
        json!({
            "importance": {
                "kind": "mean over rows of |d ||logits||^2 / d theta|, all columns",
                "rows": self.config.rows, "batch_rows": 1, "normalised_by": "rows",
                "mode": "evaluation",
            },
            "penalty_gradient": "2*lambda*Omega*(theta-theta*)",
            "across_tasks": "sum",
        })
    }

    fn deactivate(&mut self) {
        self.kept.clear();
        (self.sum, self.scratch) = (None, None);
        self.ids.clear();
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            _ if self.is_off() => Ok(()),
            abi::EVENT_PENALTY => self.penalty(event),
            abi::EVENT_TASK_END => self.task_end(requests),
            abi::EVENT_PROBE if event.phase() == LOOK => self.look(event),
            abi::EVENT_PROBE => self.add(event),
            abi::EVENT_PROBE_END if event.phase() == LOOK => self.ask_gradients(requests),
            abi::EVENT_PROBE_END => self.consolidate(event),
            _ => Ok(()),
        }
    }

    fn save(&mut self, context: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        self.kept.save(context, &mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.kept.load(&mut state)?;
        state.finish()
    }
}
