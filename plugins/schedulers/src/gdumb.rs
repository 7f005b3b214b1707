//! `limbeck.gdumb`: greedy sampler and dumb learner. The stream only fills a balanced buffer; at each task's end the student
//! starts again from its first weights and fits what is kept.
//!
//! Balanced: quota = ⌊capacity / keys seen⌋; a row whose key has its quota is dropped, else it enters and, when full, a
//! random row of the largest key leaves. Key = (task, label): in class-incremental streams that is the label, in
//! domain-incremental ones the label alone would keep the first task for ever. Source: Prabhu et al. 2020 (ECCV).

use crate::replay::{buffer, labels_port, row_ids, row_ids_port, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::buffers::{Buffer, Policy, Slot};
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{schemars, serde};
use std::io::{Read, Write};

fn fifty() -> u32 {
    50
}

/// Settings of `limbeck.gdumb`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows kept; 0 keeps none and changes nothing.
    #[schemars(extend("format" = "at-least-classes"))]
    capacity: u32,
    /// Passes over the buffer at each task's end.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1))]
    epochs: u32,
}

/// The scheduler.
pub struct Gdumb {
    config: Config,
    buffer: Buffer,
    /// Tasks begun.
    tasks: u64,
}

impl Gdumb {
    fn is_off(&self) -> bool {
        self.config.capacity == 0
    }

    /// Looks at the rows of a step instead of training on them; a task is over after one pass.
    fn step_begin(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        if !event.phase().is_empty() {
            return Ok(());
        }
        requests.set("step.skip", true)?;
        if event.epoch() > 0 {
            return requests.set("task.end", true);
        }
        let rows = event.required("row_ids")?.to_vec::<i64>()?;
        let labels = event.required("labels")?.to_vec::<i64>()?;
        if labels.len() != rows.len() {
            let message = format!("{} labels for {} examples", labels.len(), rows.len());
            return Err(Error::unsupported(message).tensor("labels"));
        }
        let (mut rng, task) = (event.rng("insert"), self.tasks);
        for (row, label) in rows.into_iter().zip(labels) {
            // Classes are below 2^32 in any model that fits in memory; -100 keeps a key of its own.
            let key = (task as i64) << 32 | i64::from(label as u32);
            self.buffer.offer(key, &mut rng, || Slot { row, task, ..Slot::default() });
        }
        Ok(())
    }

    fn task_end(&self, requests: &Requests<'_>) -> Result<()> {
        requests.restore("init")?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let all: Vec<&Slot> = self.buffer.slots().iter().collect();
        requests.rows_pass("fit", self.config.epochs, &[row_ids(&all)?])
    }
}

impl Scheduler for Gdumb {
    const ID: &'static str = "limbeck.gdumb";
    const SUMMARY: &'static str =
        "greedy sampler and dumb learner: fits a balanced buffer from scratch after each task";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task", "scenario.online"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        if config.epochs == 0 {
            return Err(Error::config("/epochs", "`epochs` must be above 0"));
        }
        let buffer = buffer(Policy::Balanced, config.capacity, None);
        Ok(Self { config, buffer, tasks: 0 })
    }

    fn ports(&self) -> Ports {
        Ports::new().with(row_ids_port()).with(labels_port("classes, for equal shares"))
    }

    fn plan(&self) -> Result<Schedule> {
        if self.is_off() {
            return Ok(Schedule::new());
        }
        let events = abi::EVENT_TASK_BEGIN | abi::EVENT_STEP_BEGIN | abi::EVENT_TASK_END;
        Ok(Schedule::new().events(events).claims(abi::CLAIM_DATA | abi::CLAIM_STUDENT))
    }

    fn definition(&self) -> Value {
        json!({
            "objective": "L on the buffer alone, from the first weights, after each task",
            "buffer": {
                "capacity": self.config.capacity, "policy": "balanced by (task, label)",
                "insert": "first_pass", "fields": ["row id"],
            },
        })
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            _ if self.is_off() => Ok(()),
            abi::EVENT_TASK_BEGIN => {
                self.tasks += 1;
                Ok(())
            }
            abi::EVENT_STEP_BEGIN => self.step_begin(event, requests),
            abi::EVENT_TASK_END => self.task_end(requests),
            _ => Ok(()),
        }
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        state.u64(self.tasks)?;
        self.buffer.save(&mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.tasks = state.u64()?;
        self.buffer.load(&mut state)?;
        state.finish()
    }
}
