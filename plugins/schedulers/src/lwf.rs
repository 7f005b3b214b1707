//! `limbeck.lwf`: learning without forgetting. The student as it was after the last task teaches on the current rows:
//!
//! `L + v · F · KL(previous ‖ student)`, v = `weight`, with `weighting: count` times the number of tasks before this one.
//!
//! Nothing in the first task. Which classes are distilled decides the result in class-incremental streams: with `old`
//! nothing stops the new logits from growing. Source: Li and Hoiem 2016 [1606.09282]; `count`: 1809.10635.

use crate::replay::{check_strength, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::Value;
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{from_bytes, to_bytes};
use limbeck_sdk::{DType, Port, schemars, serde, serde_json};
use std::collections::BTreeSet;
use std::io::{Read, Write};

/// Weight of the term over tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// `weight` times the number of tasks before this one.
    #[default]
    Count,
    /// `weight` from the second task on.
    Constant,
}

/// Classes that are distilled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Classes {
    /// All columns.
    #[default]
    All,
    /// Only classes of earlier tasks; right where the task is known at test time.
    Old,
}

fn two() -> f64 {
    2.0
}
fn one() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}

/// Settings of `limbeck.lwf`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Softens both sides; above 0.
    #[serde(default = "two")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    temperature: f64,
    /// Multiplies value and gradient by temperature².
    #[serde(default = "yes")]
    t2: bool,
    /// Weight of the term over tasks.
    #[serde(default)]
    weighting: Weighting,
    /// Factor of the term; 0 changes nothing.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    weight: f64,
    /// Classes that are distilled.
    #[serde(default)]
    classes: Classes,
}

/// The scheduler.
pub struct Lwf {
    config: Config,
    /// Tasks begun.
    tasks: u64,
    /// Classes of the tasks begun, for `classes: old`.
    seen: BTreeSet<i64>,
    /// Columns of the logits, once seen.
    width: u64,
}

const TERM: &str = "kl";
const SNAPSHOT: &str = "previous";
const MASK: &str = "old_classes";

impl Lwf {
    fn is_off(&self) -> bool {
        self.config.weight == 0.0
    }

    fn task_begin(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        self.tasks += 1;
        if self.tasks > 1 {
            requests.snapshot(SNAPSHOT, 0.0)?;
            let weight = match self.config.weighting {
                Weighting::Count => self.config.weight * (self.tasks - 1) as f64,
                Weighting::Constant => self.config.weight,
            };
            requests.set(&format!("weight/{TERM}"), weight)?;
            if self.config.classes == Classes::Old {
                requests.provide(&self.mask()?)?;
            }
        }
        if self.config.classes == Classes::Old {
            let classes = event.tensor("task.classes")?.ok_or_else(|| {
                Error::unsupported("`classes: old` needs labelled tasks; use `classes: all`")
            })?;
            self.seen.extend(classes.to_vec::<i64>()?);
        }
        Ok(())
    }

    /// 1 at the classes of earlier tasks.
    fn mask(&self) -> Result<Column> {
        if self.width == 0 {
            return Err(Error::invalid_state("a task began before any logits were seen"));
        }
        let mask: Vec<u8> =
            (0..self.width as i64).map(|c| u8::from(self.seen.contains(&c))).collect();
        Column::new(MASK, &[mask.len() as i64], &mask)
    }
}

impl Scheduler for Lwf {
    const ID: &'static str = "limbeck.lwf";
    const SUMMARY: &'static str =
        "learning without forgetting: the previous student teaches on new rows";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        let Config { temperature, weight, .. } = config;
        if !(temperature > 0.0 && temperature <= 1000.0) {
            let message =
                format!("`temperature` must be above 0 and at most 1000, found {temperature}");
            return Err(Error::config("/temperature", message));
        }
        check_strength("weight", weight)?;
        Ok(Self { config, tasks: 0, seen: BTreeSet::new(), width: 0 })
    }

    fn ports(&self) -> Ports {
        if self.config.classes == Classes::All {
            return Ports::new();
        }
        let mask = Port::output(MASK, "V").dtypes(&[DType::U8]).doc("1: class of an earlier task");
        Ports::new().with(Port::input("student.logits", "N,V").doc("for their width")).with(mask)
    }

    fn plan(&self) -> Result<Schedule> {
        if self.is_off() {
            return Ok(Schedule::new());
        }
        let settings =
            serde_json::json!({"temperature": self.config.temperature, "t2": self.config.t2});
        let teacher = format!("{SNAPSHOT}.logits");
        let term = Term::new(TERM, "limbeck.kl").config(&settings).input("teacher.logits", teacher);
        let (term, events) = match self.config.classes {
            Classes::All => (term, abi::EVENT_TASK_BEGIN),
            Classes::Old => (
                term.input("class_mask", format!("self.{MASK}")),
                abi::EVENT_TASK_BEGIN | abi::EVENT_FORWARD,
            ),
        };
        Ok(Schedule::new().events(events).snapshot(SNAPSHOT).term(term.weight(0.0)))
    }

    fn definition(&self) -> Value {
        let Config { temperature, t2, weighting, weight, classes } = &self.config;
        let factor = if *t2 { temperature * temperature } else { 1.0 };
        serde_json::json!({"kd": {
            "divergence": "kl", "direction": "KL(previous, student)", "T": temperature, "F": factor,
            "classes": classes, "weight": weight, "weighting": weighting,
            "reduction": "sum over classes, mean over the step's fresh rows",
        }})
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            _ if self.is_off() => Ok(()),
            abi::EVENT_TASK_BEGIN => self.task_begin(event, requests),
            abi::EVENT_FORWARD if self.width == 0 => {
                let logits = event.required("student.logits")?;
                self.width = logits.shape().last().map_or(0, |v| (*v).max(0) as u64);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        state.u64(self.tasks)?;
        state.u64(self.width)?;
        let seen: Vec<i64> = self.seen.iter().copied().collect();
        state.bytes(&to_bytes(&seen))?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.tasks = state.u64()?;
        self.width = state.u64()?;
        self.seen = from_bytes::<i64>(&state.bytes()?)?.into_iter().collect();
        state.finish()
    }
}
