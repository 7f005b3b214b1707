//! `limbeck.joint`: every task trains on all tasks so far, weights carried on; the upper end of a stream.
//!
//! Keeps the ids of all rows (8 bytes each) and mixes those of earlier tasks into the rows of the next. It is no
//! continual method: it says what forgetting costs.

use crate::replay::{row_ids_port, settings_text};
use limbeck_sdk::Probe;
use limbeck_sdk::abi;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{from_bytes, to_bytes};
use std::collections::BTreeSet;
use std::io::{Read, Write};

/// The scheduler.
pub struct Joint {
    /// Rows of the tasks that ended.
    rows: BTreeSet<i64>,
}

impl Scheduler for Joint {
    const ID: &'static str = "limbeck.joint";
    const SUMMARY: &'static str = "trains each task on the rows of all tasks so far; the upper end";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = NoSettings;

    fn new(_: NoSettings, _: &Host) -> Result<Self> {
        Ok(Self { rows: BTreeSet::new() })
    }

    fn ports(&self) -> Ports {
        Ports::new().with(row_ids_port())
    }

    fn plan(&self) -> Result<Schedule> {
        let events = abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END | abi::EVENT_PROBE;
        Ok(Schedule::new().events(events).claims(abi::CLAIM_DATA))
    }

    fn definition(&self) -> Value {
        json!({"objective": "L on the rows of all tasks so far, weights carried on"})
    }

    fn deactivate(&mut self) {
        self.rows.clear();
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            abi::EVENT_TASK_BEGIN if !self.rows.is_empty() => {
                let ids: Vec<i64> = self.rows.iter().copied().collect();
                requests.rows_union(&[Column::new("row_ids", &[ids.len() as i64], &ids)?])
            }
            abi::EVENT_TASK_END => {
                requests.probe(&Probe { name: "collect", model: "student", ..Probe::default() })
            }
            abi::EVENT_PROBE => {
                self.rows.extend(event.required("row_ids")?.to_vec::<i64>()?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&()))?;
        let rows: Vec<i64> = self.rows.iter().copied().collect();
        state.bytes(&to_bytes(&rows))?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&()))?;
        self.rows = from_bytes::<i64>(&state.bytes()?)?.into_iter().collect();
        state.finish()
    }
}
