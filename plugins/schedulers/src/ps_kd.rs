//! `limbeck.ps-kd`: progressive self-knowledge distillation. A row's target is softened by what the student itself said of
//! it an epoch ago, more so from epoch to epoch:
//!
//! `L = CE(target, s)` with `target = (1 − α_e) · onehot(y) + α_e · softmax(s_{e−1})`, `α_e = alpha · e / epochs`, `e` from 1;
//! in its first epoch a row has its label alone. Takes the place of the pipeline's `ce`.
//!
//! Keeps one row of `classes` numbers for every training row. Source: Kim et al. 2021 [2006.12000].

use crate::replay::{check_strength, labels_port, row_ids_port, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{DType, Port, schemars, serde};
use std::collections::BTreeMap;
use std::io::{Read, Write};

const IGNORED: i64 = -100;

fn most() -> f64 {
    0.8
}

/// Settings of `limbeck.ps-kd`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Classes of the student.
    #[schemars(range(min = 1), extend("examples" = [5]))]
    classes: u32,
    /// Epochs over which the share of the own prediction grows; it stays there afterwards.
    #[schemars(range(min = 1))]
    epochs: u32,
    /// Share of the own prediction in the last epoch.
    #[serde(default = "most")]
    #[schemars(range(min = 0.0, max = 1.0))]
    alpha: f64,
}

/// The scheduler.
pub struct PsKd {
    config: Config,
    /// softmax of the logits that a row was last given, by row id.
    last: BTreeMap<i64, Vec<f32>>,
}

impl PsKd {
    fn share(&self, epoch: u64) -> f64 {
        let e = (epoch + 1).min(u64::from(self.config.epochs)) as f64;
        self.config.alpha * e / f64::from(self.config.epochs)
    }

    /// Logarithms of the targets: their softmax is the target itself.
    fn targets(&self, event: &Event<'_>) -> Result<Column> {
        let rows = event.required("row_ids")?.to_vec::<i64>()?;
        let labels = event.required("labels")?.to_vec::<i64>()?;
        let (classes, share) = (self.config.classes as usize, self.share(event.epoch()));
        let mut values = Vec::with_capacity(rows.len() * classes);
        for (n, (row, label)) in rows.iter().zip(&labels).enumerate() {
            if !(0..classes as i64).contains(label) && *label != IGNORED {
                let message = format!("label {label} is outside 0..{classes} (`classes`)");
                return Err(Error::bad_data(message).tensor("labels").row(n));
            }
            let own = self.last.get(row);
            for class in 0..classes {
                let hard = f64::from(u8::from(class as i64 == *label));
                let target = match own {
                    Some(own) => (1.0 - share) * hard + share * f64::from(own[class]),
                    None => hard,
                };
                values.push(target.ln() as f32);
            }
        }
        Column::new("target", &[rows.len() as i64, classes as i64], &values)
    }

    fn keep(&mut self, event: &Event<'_>) -> Result<()> {
        let rows = event.required("row_ids")?.to_vec::<i64>()?;
        let view = event.required("student.logits")?;
        let (logits, classes) = (view.rows()?, self.config.classes as usize);
        if logits.len() != rows.len() || view.shape().last() != Some(&(classes as i64)) {
            let message =
                format!("{:?} for {} rows of {classes} classes", view.shape(), rows.len());
            return Err(Error::invalid_argument(message).tensor("student.logits"));
        }
        for (n, row) in rows.into_iter().enumerate() {
            let logits: Vec<f64> = logits.row(n).into_iter().collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
            let sum: f64 = powers.iter().sum();
            if !sum.is_finite() {
                let message = "logits without a softmax";
                return Err(Error::bad_data(message).tensor("student.logits").row(n));
            }
            self.last.insert(row, powers.iter().map(|p| (p / sum) as f32).collect());
        }
        Ok(())
    }
}

impl Scheduler for PsKd {
    const ID: &'static str = "limbeck.ps-kd";
    const SUMMARY: &'static str =
        "progressive self-distillation: targets softened by the last epoch's own predictions";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        for (pointer, value) in [("/classes", config.classes), ("/epochs", config.epochs)] {
            if value == 0 {
                let message = format!("`{}` must be above 0", &pointer[1..]);
                return Err(Error::config(pointer, message));
            }
        }
        check_strength("alpha", config.alpha)?;
        if config.alpha > 1.0 {
            return Err(Error::config("/alpha", "`alpha` is a share: at most 1"));
        }
        Ok(Self { config, last: BTreeMap::new() })
    }

    fn ports(&self) -> Ports {
        let classes = self.config.classes;
        let target = Port::output("target", format!("B,{classes}")).dtypes(&[DType::F32]);
        Ports::new()
            .with(row_ids_port())
            .with(labels_port("the hard part of the target"))
            .with(
                Port::input("student.logits", format!("B,{classes}"))
                    .doc("kept for the next epoch"),
            )
            .with(target.doc("logarithm of the target"))
    }

    fn plan(&self) -> Result<Schedule> {
        let term = Term::new("ps-kd", "limbeck.soft-ce").input("teacher.logits", "self.target");
        let term = term.config(&json!({"temperature": 1.0}));
        Ok(Schedule::new().events(abi::EVENT_STEP_BEGIN | abi::EVENT_FORWARD).term(term))
    }

    fn definition(&self) -> Value {
        json!({
            "objective": "CE against (1 - share) * onehot(label) + share * softmax(own logits an epoch ago)",
            "share": "alpha * epoch / epochs, epoch from 1; 0 for a row that was not seen before",
        })
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        if !event.phase().is_empty() || !event.group().is_empty() {
            return Ok(());
        }
        match event.kind() {
            abi::EVENT_STEP_BEGIN => requests.provide(&self.targets(event)?),
            abi::EVENT_FORWARD => self.keep(event),
            _ => Ok(()),
        }
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        state.u64(self.last.len() as u64)?;
        for (row, values) in &self.last {
            state.u64(*row as u64)?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            state.bytes(&bytes)?;
        }
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.last.clear();
        for _ in 0..state.u64()? {
            let row = state.u64()? as i64;
            let bytes = state.bytes()?;
            if bytes.len() != self.config.classes as usize * 4 {
                return Err(Error::bad_data(format!(
                    "{} bytes of a row's prediction",
                    bytes.len()
                )));
            }
            let (cells, _) = bytes.as_chunks::<4>();
            self.last.insert(row, cells.iter().map(|c| f32::from_le_bytes(*c)).collect());
        }
        state.finish()
    }
}
