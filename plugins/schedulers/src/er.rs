//! `limbeck.er`: experience replay. Old rows join each step, and the pipeline's own terms count them like fresh ones.
//!
//! Source: Chaudhry et al. 2019 [1902.10486]; reservoir: Vitter 1985, algorithm R.

use crate::replay::{
    Insert, Replay, Store, buffer, check_batch, labels_port, row_ids_port, settings_text,
};
use limbeck_sdk::abi;
use limbeck_sdk::buffers;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{Port, schemars, serde};
use std::io::{Read, Write};

/// How rows enter and leave the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Every offered row is kept with equal probability.
    #[default]
    Reservoir,
    /// Every class has an equal share; needs labels, one per example.
    Balanced,
    /// Every task keeps its newest rows.
    Ring,
}

/// How rows are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Every kept row with equal probability.
    #[default]
    None,
    /// The classes (under `ring`: the tasks) in turn.
    Class,
}

/// Settings of `limbeck.er`.
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
    /// Rows replayed in a step; absent: as many as fresh ones.
    #[serde(default)]
    #[schemars(range(min = 1))]
    batch: Option<u32>,
    /// When rows are offered to the buffer.
    #[serde(default)]
    insert: Insert,
    /// Which rows are kept.
    #[serde(default)]
    policy: Policy,
    /// How rows are drawn.
    #[serde(default)]
    balance: Balance,
    /// What is kept of a row.
    #[serde(default)]
    store: Store,
}

/// The scheduler.
pub struct Er {
    config: Config,
    replay: Replay,
}

const GROUP: &str = "replay";

impl Er {
    fn reads_labels(&self) -> bool {
        let by_class = self.config.balance == Balance::Class && self.config.policy != Policy::Ring;
        by_class || self.config.policy == Policy::Balanced
    }
}

impl Scheduler for Er {
    const ID: &'static str = "limbeck.er";
    const SUMMARY: &'static str = "experience replay: old rows join every step";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task", "scenario.online"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        check_batch(config.batch)?;
        let policy = match config.policy {
            Policy::Reservoir => buffers::Policy::Reservoir,
            Policy::Balanced => buffers::Policy::Balanced,
            Policy::Ring => buffers::Policy::Ring,
        };
        let buffer = buffer(policy, config.capacity, config.max_bytes);
        let replay = Replay::new(buffer, config.insert, config.batch).storing(config.store);
        Ok(Self { config, replay })
    }

    fn ports(&self) -> Ports {
        let mut ports = Ports::new().with(row_ids_port());
        if self.reads_labels() {
            ports = ports.with(labels_port("classes, for equal shares"));
        }
        match self.config.store {
            Store::RowIds => ports,
            Store::Inputs => ports.with(Port::input("batch.*", "*").doc("what is stored")),
        }
    }

    fn plan(&self) -> Result<Schedule> {
        if self.config.capacity == 0 {
            return Ok(Schedule::new());
        }
        let group = Group::new(GROUP, self.replay.max_rows()).join();
        Ok(Schedule::new().events(self.replay.events()).group(group))
    }

    fn definition(&self) -> Value {
        let balance = match self.config.balance {
            Balance::None => "none",
            Balance::Class => "keys in turn",
        };
        let buffer = self.replay.definition(&["row id or columns"], balance);
        json!({"objective": "L on fresh and replayed rows together, one mean over both", "buffer": buffer})
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        if event.kind() == abi::EVENT_STEP_BEGIN {
            let drawn = match self.config.balance {
                Balance::None => self.replay.draw(event, GROUP)?,
                Balance::Class => self.replay.draw_balanced(event, GROUP)?,
            };
            return match drawn.is_empty() {
                true => Ok(()),
                false => requests.rows_step(GROUP, &self.replay.columns(&drawn)?),
            };
        }
        let labels = match (self.reads_labels(), event.tensor("labels")?) {
            (true, Some(labels)) => labels.to_vec::<i64>()?,
            _ => Vec::new(),
        };
        let policy = self.config.policy;
        let key = |replay: &Replay, i: usize| match policy {
            Policy::Reservoir | Policy::Balanced => labels.get(i).copied().unwrap_or(0),
            Policy::Ring => replay.tasks() as i64,
        };
        self.replay.watch(event, requests, key, |_| Vec::new())
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
