//! `org.example.template`: watches a stream and asks for nothing. See `limbeck_sdk::buffers` for replay.

use limbeck_sdk::prelude::*;

struct Template;

impl Scheduler for Template {
    const ID: &'static str = "org.example.template";
    const SUMMARY: &'static str = "does nothing yet";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task", "scenario.online"];
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

    fn on_event(&mut self, _: &Event<'_>, _: &Requests<'_>) -> Result<()> {
        Ok(())
    }
}

limbeck_sdk::export! { scheduler Template }
