//! `limbeck.derpp`: DER++. Old rows come with the logits that the student gave when they were stored, and with their
//! labels, in two independent draws:
//!
//! `L(fresh) + alpha · mean (s(x') − z')² + beta · CE(s(x''), y'')`, the square's mean over rows and classes.
//!
//! Stored logits are never refreshed. `beta: 0` is DER. Source: Buzzega et al. 2020 [2004.07211].

use crate::replay::{
    Insert, Replay, buffer, check_batch, check_strength, row_ids, row_ids_port, settings_text,
};
use limbeck_sdk::abi;
use limbeck_sdk::buffers::Policy;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{DType, Port, schemars, serde};
use std::io::{Read, Write};

fn half() -> f64 {
    0.5
}

/// Settings of `limbeck.derpp`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows kept; 0 keeps none and changes nothing.
    #[schemars(extend("format" = "at-least-classes"))]
    capacity: u32,
    /// Memory of the buffer in bytes; the first row decides how many rows fit.
    #[serde(default)]
    #[schemars(range(min = 1))]
    max_bytes: Option<u64>,
    /// Rows of each of the two draws; absent: as many as fresh ones.
    #[serde(default)]
    #[schemars(range(min = 1))]
    batch: Option<u32>,
    /// Weight of the stored logits.
    #[serde(default = "half")]
    #[schemars(range(min = 0.0))]
    alpha: f64,
    /// Weight of the stored labels; 0 is DER.
    #[serde(default = "half")]
    #[schemars(range(min = 0.0))]
    beta: f64,
    /// When rows are offered to the buffer.
    #[serde(default)]
    insert: Insert,
}

/// The scheduler.
pub struct Derpp {
    config: Config,
    replay: Replay,
}

/// Row group and draw of each term, named after the term.
const MSE: &str = "logit-mse";
const CE: &str = "ce";

impl Derpp {
    fn is_off(&self) -> bool {
        self.config.capacity == 0 || (self.config.alpha == 0.0 && self.config.beta == 0.0)
    }

    fn request(&self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        if self.config.alpha > 0.0 {
            let drawn = self.replay.draw(event, MSE)?;
            if let Some(first) = drawn.first() {
                let width = first.values.len();
                if drawn.iter().any(|s| s.values.len() != width) {
                    return Err(Error::bad_data("stored logits of different width"));
                }
                let values: Vec<f32> =
                    drawn.iter().flat_map(|s| s.values.iter().copied()).collect();
                let shape = [drawn.len() as i64, width as i64];
                let logits = Column::new("logits", &shape, &values)?;
                requests.rows_step(MSE, &[row_ids(&drawn)?, logits])?;
            }
        }
        if self.config.beta > 0.0 {
            let drawn = self.replay.draw(event, CE)?;
            if !drawn.is_empty() {
                requests.rows_step(CE, &[row_ids(&drawn)?])?;
            }
        }
        Ok(())
    }
}

impl Scheduler for Derpp {
    const ID: &'static str = "limbeck.derpp";
    const SUMMARY: &'static str = "dark experience replay: stored logits and labels of old rows";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task", "scenario.online"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        check_batch(config.batch)?;
        check_strength("alpha", config.alpha)?;
        check_strength("beta", config.beta)?;
        let buffer = buffer(Policy::Reservoir, config.capacity, config.max_bytes);
        let replay = Replay::new(buffer, config.insert, config.batch);
        Ok(Self { config, replay })
    }

    fn ports(&self) -> Ports {
        let logits = Port::input("student.logits", "N,V").doc("what is stored with each row");
        let stored = Port::output("logits", "N,V").dtypes(&[DType::F32]).rows(MSE);
        Ports::new()
            .with(row_ids_port())
            .with(logits)
            .with(stored.doc("logits of the student when the row was stored"))
    }

    fn plan(&self) -> Result<Schedule> {
        if self.is_off() {
            return Ok(Schedule::new());
        }
        let mut schedule = Schedule::new().events(self.replay.events());
        if self.config.alpha > 0.0 {
            let term = Term::new(MSE, "limbeck.logit-mse").input("teacher.logits", "self.logits");
            schedule = schedule
                .group(Group::new(MSE, self.replay.max_rows()))
                .term(term.rows(MSE).weight(self.config.alpha));
        }
        if self.config.beta > 0.0 {
            schedule = schedule
                .group(Group::new(CE, self.replay.max_rows()))
                .term(Term::new(CE, "limbeck.ce").rows(CE).weight(self.config.beta));
        }
        Ok(schedule)
    }

    fn definition(&self) -> Value {
        json!({
            "objective": "L(fresh) + alpha * logit_mse + beta * CE, the two on independent draws",
            "logit_mse": "mean over rows and columns, all columns whatever the task; logits never refreshed",
            "buffer": self.replay.definition(&["row id", "logits"], "none"),
        })
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        if self.is_off() {
            return Ok(());
        }
        if event.kind() == abi::EVENT_STEP_BEGIN {
            return self.request(event, requests);
        }
        if event.kind() & (abi::EVENT_FORWARD | abi::EVENT_PROBE) == 0 {
            return self.replay.watch(event, requests, |_, _| 0, |_| Vec::new());
        }
        let logits = event.required("student.logits")?;
        let (rows, ids) = (logits.rows()?, event.required("row_ids")?.elements());
        if rows.len() != ids {
            let message =
                format!("{} rows of logits for {ids} examples: one each is needed", rows.len());
            return Err(Error::unsupported(message).tensor("student.logits"));
        }
        let values = |i: usize| rows.row(i).into_iter().map(|x| x as f32).collect();
        self.replay.watch(event, requests, |_, _| 0, values)
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 2, &settings_text(&self.config))?;
        self.replay.save(&mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 2, &settings_text(&self.config))?;
        self.replay.load(&mut state)?;
        state.finish()
    }
}
