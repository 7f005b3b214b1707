//! `limbeck.none`: does nothing, for comparison and as the smallest example.

use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};

/// Watches nothing and asks for nothing.
pub struct None;

impl Scheduler for None {
    const ID: &'static str = "limbeck.none";
    const SUMMARY: &'static str = "does nothing; the baseline of a stream";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task", "scenario.online"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    type Config = NoSettings;

    fn new(_: NoSettings, _: &Host) -> Result<Self> {
        Ok(Self)
    }
    fn ports(&self) -> Ports {
        Ports::new()
    }
    fn plan(&self) -> Result<Schedule> {
        Ok(Schedule::new())
    }
    fn definition(&self) -> Value {
        json!({"objective": "L on the task's rows"})
    }
    fn on_event(&mut self, _: &Event<'_>, _: &Requests<'_>) -> Result<()> {
        Ok(())
    }
}
