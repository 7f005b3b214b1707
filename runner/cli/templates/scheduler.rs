//! `org.example.template`: old rows join every step. Replace the policy by your own; `limbeck_sdk::Schedule` and
//! `limbeck_sdk::Requests` say what else a scheduler may declare and ask for.

use limbeck_sdk::buffers::{Buffer, Policy, Slot};
use limbeck_sdk::prelude::*;
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{abi, schemars, serde, serde_json};
use std::io::{Read, Write};

/// Settings: what stands under `with`. Doc comments become the schema's descriptions.
#[derive(Deserialize, serde::Serialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Config {
    /// Rows kept.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 1_000_000))]
    capacity: u32,
}

fn hundred() -> u32 {
    100
}

/// The row group that joins the step.
const GROUP: &str = "old";

/// A reservoir of row ids.
struct Template {
    config: Config,
    buffer: Buffer,
}

impl Template {
    /// A saved state belongs to these settings.
    fn settings(&self) -> String {
        serde_json::to_string(&self.config).unwrap_or_default()
    }
}

impl Scheduler for Template {
    const ID: &'static str = "org.example.template";
    const SUMMARY: &'static str = "old rows join every step";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task", "scenario.online"];
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        if config.capacity == 0 {
            return Err(Error::config("/capacity", "must be above 0"));
        }
        let buffer = Buffer::new(Policy::Reservoir, config.capacity as usize);
        Ok(Self { config, buffer })
    }

    fn ports(&self) -> Ports {
        Ports::new().input_ids("row_ids", "B")
    }

    fn plan(&self) -> Result<Schedule> {
        let group = Group::new(GROUP, u64::from(self.config.capacity)).join();
        Ok(Schedule::new().events(abi::EVENT_STEP_BEGIN | abi::EVENT_FORWARD).group(group))
    }

    fn definition(&self) -> serde_json::Value {
        serde_json::json!({"buffer": {"capacity": self.config.capacity, "insert": "every_step"}})
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        // Neither rows that joined nor those of extra passes are offered again.
        if !event.phase().is_empty() || !event.group().is_empty() {
            return Ok(());
        }
        let fresh = event.required("row_ids")?.to_vec::<i64>()?;
        if event.kind() == abi::EVENT_FORWARD {
            let mut random = event.rng("insert");
            for row in fresh {
                self.buffer.offer(0, &mut random, || Slot { row, ..Slot::default() });
            }
            return Ok(());
        }
        let drawn = self.buffer.draw(fresh.len(), &mut event.rng("draw"));
        if drawn.is_empty() {
            return Ok(());
        }
        let rows: Vec<i64> = drawn.iter().map(|slot| slot.row).collect();
        requests.rows_step(GROUP, &[Column::new("row_ids", &[rows.len() as i64], &rows)?])
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &self.settings())?;
        self.buffer.save(&mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &self.settings())?;
        self.buffer.load(&mut state)?;
        state.finish()
    }
}

limbeck_sdk::export! { scheduler Template }
