//! `limbeck.agem`: averaged gradient episodic memory. A step may not raise the loss on a draw of old rows, to first order:
//!
//! r = gradient of the pipeline's terms on a draw from rows of earlier tasks; if `⟨g, r⟩ < 0`:
//! `g ← g − (⟨g, r⟩ / ⟨r, r⟩) r`.
//!
//! Happens before the optimizer's moments, so the result depends strongly on the optimizer. Source: Chaudhry et al. 2019
//! [1812.00420].

use crate::replay::{Insert, Replay, buffer, check_batch, row_ids_port, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::buffers::Policy;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{Vector, is_owned_trainable};
use limbeck_sdk::{schemars, serde};
use std::io::{Read, Write};

fn task_end() -> Insert {
    Insert::TaskEnd
}

/// Settings of `limbeck.agem`.
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
    /// Rows of the draw; absent: as many as fresh ones.
    #[serde(default)]
    #[schemars(range(min = 1))]
    batch: Option<u32>,
    /// When rows are offered to the buffer.
    #[serde(default = "task_end")]
    insert: Insert,
}

/// The scheduler.
pub struct Agem {
    config: Config,
    replay: Replay,
    /// Old rows are in the running step.
    joined: bool,
}

const GROUP: &str = "memory";

impl Agem {
    fn project(&mut self, event: &Event<'_>) -> Result<()> {
        if !std::mem::take(&mut self.joined) {
            return Ok(());
        }
        let own = event.group_grads(GROUP);
        let (Some(grads), Some(old)) = (event.grads(), own) else {
            return Err(Error::invalid_argument("the event lacks a gradient"));
        };
        let both = event.params().iter().zip(grads.iter().zip(old));
        let (g, r): (Vec<abi::Tensor>, Vec<abi::Tensor>) =
            both.filter(|(p, _)| is_owned_trainable(p)).map(|(_, (g, r))| (*g, *r)).unzip();
        let vector = Vector::new(event.context())?;
        let (along, square) = (vector.dot(&g, &r)?, vector.dot(&r, &r)?);
        if along < 0.0 && square > 0.0 {
            vector.axpby(-along / square, &r, 1.0, &g)?;
        }
        Ok(())
    }
}

impl Scheduler for Agem {
    const ID: &'static str = "limbeck.agem";
    const SUMMARY: &'static str =
        "averaged gradient episodic memory: no step against a draw of old rows";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        check_batch(config.batch)?;
        let buffer = buffer(Policy::Reservoir, config.capacity, config.max_bytes);
        let replay = Replay::new(buffer, config.insert, config.batch);
        Ok(Self { config, replay, joined: false })
    }

    fn ports(&self) -> Ports {
        Ports::new().with(row_ids_port())
    }

    fn plan(&self) -> Result<Schedule> {
        if self.config.capacity == 0 {
            return Ok(Schedule::new());
        }
        let group = Group::new(GROUP, self.replay.max_rows()).join().own_grad();
        Ok(Schedule::new().events(self.replay.events() | abi::EVENT_PROJECT).group(group))
    }

    fn definition(&self) -> Value {
        json!({
            "projection": "g - (<g,r>/<r,r>) r if <g,r> < 0, before clipping and moments, after all penalties",
            "reference": "gradient of the pipeline's terms on a draw from rows of earlier tasks",
            "buffer": self.replay.definition(&["row id"], "none"),
        })
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            abi::EVENT_STEP_BEGIN => {
                let drawn = self.replay.draw_past(event, GROUP)?;
                self.joined = !drawn.is_empty();
                match self.joined {
                    true => requests.rows_step(GROUP, &self.replay.columns(&drawn)?),
                    false => Ok(()),
                }
            }
            abi::EVENT_PROJECT => self.project(event),
            _ => self.replay.watch(event, requests, |_, _| 0, |_| Vec::new()),
        }
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        self.replay.save(&mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.replay.load(&mut state)?;
        state.finish()
    }
}
