//! `limbeck.icarl`: incremental classifier and representation learning. The student trains on the task's rows and on
//! exemplars; for V_seen classes the objective is the mean over seen classes of binary cross-entropies, targets the old
//! student's sigmoids on old classes and 0/1 on the task's own:
//!
//! `V_new/V_seen · bce(task's classes) + V_old/V_seen · bce-kd(old classes, previous student)`.
//!
//! At a task's end each of its classes gives m = ⌊capacity / V_seen⌋ exemplars by herding, and old lists are cut to their
//! first m. An evaluation predicts the nearest class mean of exemplar features, recomputed when it begins; classes
//! without exemplars are never predicted, and before the first task the logits decide.
//!
//! The stage's own `loss` is to be empty. Source: Rebuffi et al. 2017 [1611.07725].

mod exemplars;

use crate::replay::{labels_port, row_ids_port, settings_text};
use exemplars::{Exemplars, Seen};
use limbeck_sdk::abi;
use limbeck_sdk::buffers::{mean, normalize};
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{Port, Probe, schemars, serde};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// Settings of `limbeck.icarl`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Exemplars in all, shared by the classes seen.
    #[schemars(range(min = 1), extend("format" = "at-least-classes", "examples" = [200]))]
    capacity: u32,
}

/// The scheduler.
pub struct Icarl {
    config: Config,
    exemplars: Exemplars,
    /// Columns of the logits, once known.
    width: u64,
    /// Rows of the running probe, by class.
    found: BTreeMap<i64, Vec<Seen>>,
    /// Normalised class means of the running evaluation.
    means: BTreeMap<i64, Vec<f64>>,
}

const PREVIOUS: &str = "previous";
const OWN_TERM: &str = "bce";
const OLD_TERM: &str = "bce-kd";
const OWN_MASK: &str = "new_classes";
const OLD_MASK: &str = "old_classes";
const SCORES: &str = "eval.scores";
/// Probe that tells how wide the logits are.
const WIDTH: &str = "width";
/// Probe of the rows that exemplars are chosen from.
const CHOOSE: &str = "choose";
/// Probe of the exemplars' features.
const MEANS: &str = "means";

impl Icarl {
    fn task_begin(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        let classes = event.tensor("task.classes")?;
        let classes = classes.ok_or_else(|| Error::unsupported("iCaRL needs labelled tasks"))?;
        self.exemplars.begin(classes.to_vec::<i64>()?);
        let rows = self.exemplars.rows();
        if !rows.is_empty() {
            requests.snapshot(PREVIOUS, 0.0)?;
            requests.rows_union(&[Column::new("row_ids", &[rows.len() as i64], &rows)?])?;
        }
        if self.width == 0 {
            let probe = Probe { name: WIDTH, model: "student", max_rows: 1, ..Probe::default() };
            return requests.probe(&probe);
        }
        self.announce(requests)
    }

    /// Which classes each term is about, and its share.
    fn announce(&self, requests: &Requests<'_>) -> Result<()> {
        let (own, old) = (self.exemplars.own(), self.exemplars.old());
        let seen = (own.len() + old.len()).max(1) as f64;
        let mask = |name: &str, classes: &[i64]| {
            let mask: Vec<u8> =
                (0..self.width as i64).map(|c| u8::from(classes.contains(&c))).collect();
            Column::new(name, &[mask.len() as i64], &mask)
        };
        requests.provide(&mask(OWN_MASK, &own)?)?;
        requests.set(&format!("weight/{OWN_TERM}"), own.len() as f64 / seen)?;
        requests.provide(&mask(OLD_MASK, &old)?)?;
        requests.set(&format!("weight/{OLD_TERM}"), old.len() as f64 / seen)
    }

    fn probe(&mut self, event: &Event<'_>) -> Result<()> {
        if event.phase() == WIDTH {
            let logits = event.required("student.logits")?;
            self.width = logits.shape().last().map_or(0, |v| (*v).max(0) as u64);
            return Ok(());
        }
        let rows = event.required("row_ids")?.to_vec::<i64>()?;
        let labels = event.required("labels")?.to_vec::<i64>()?;
        let features = event.required("student.features")?.rows()?;
        if features.len() != rows.len() || labels.len() != rows.len() {
            let message =
                format!("{} rows of features for {} examples", features.len(), rows.len());
            return Err(Error::unsupported(message).tensor("student.features"));
        }
        for (i, (row, label)) in rows.into_iter().zip(labels).enumerate() {
            let features = normalize(&features.row(i).to_vec());
            self.found.entry(label).or_default().push(Seen { row, features });
        }
        Ok(())
    }

    fn probe_end(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        let found = std::mem::take(&mut self.found);
        match event.phase() {
            WIDTH => self.announce(requests),
            CHOOSE => self.exemplars.choose(found, self.config.capacity as usize),
            _ => {
                let centre = |rows: &Vec<Seen>| normalize(&mean(rows.iter().map(|s| &s.features)));
                self.means = found.iter().map(|(class, rows)| (*class, centre(rows))).collect();
                Ok(())
            }
        }
    }

    fn evaluation(&mut self, requests: &Requests<'_>) -> Result<()> {
        self.means.clear();
        let rows = self.exemplars.rows();
        if rows.is_empty() {
            return Ok(());
        }
        let columns = [Column::new("row_ids", &[rows.len() as i64], &rows)?];
        let (name, model) = (MEANS, "student");
        requests.probe(&Probe { name, model, columns: &columns, ..Probe::default() })
    }

    /// Minus the squared distance to each class mean.
    fn scores(&self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        if self.means.is_empty() {
            return Ok(());
        }
        let features = event.required("student.features")?.rows()?;
        let width = self.width as i64;
        let mut scores = Vec::with_capacity(features.len() * self.width as usize);
        for i in 0..features.len() {
            let row = normalize(&features.row(i).to_vec());
            scores.extend((0..width).map(|class| {
                let distance = |mean: &Vec<f64>| -> f64 {
                    row.iter().zip(mean).map(|(a, b)| (a - b).powi(2)).sum()
                };
                self.means.get(&class).map_or(f32::MIN, |mean| -distance(mean) as f32)
            }));
        }
        requests.provide(&Column::new(SCORES, &[features.len() as i64, width], &scores)?)
    }
}

impl Scheduler for Icarl {
    const ID: &'static str = "limbeck.icarl";
    const SUMMARY: &'static str =
        "iCaRL: exemplars by herding, sigmoid distillation, nearest-mean prediction";
    const FEATURES: &'static [&'static str] = &["deterministic", "scenario.class"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        if config.capacity == 0 {
            return Err(Error::config("/capacity", "`capacity` must be above 0"));
        }
        let exemplars = Exemplars::default();
        Ok(Self { config, exemplars, width: 0, found: BTreeMap::new(), means: BTreeMap::new() })
    }

    fn ports(&self) -> Ports {
        let mask = |name: &str| Port::output(name, "V").dtypes(&[DType::U8]);
        Ports::new()
            .with(row_ids_port())
            .with(labels_port("classes of exemplars"))
            .with(Port::input("student.features", "N,H").doc("what class means are taken of"))
            .with(Port::input("student.logits", "N,V").doc("for their width"))
            .with(mask(OWN_MASK).doc("1: class of this task"))
            .with(mask(OLD_MASK).doc("1: class of an earlier task"))
            .with(Port::output(SCORES, "N,V").doc("minus the squared distance to class means"))
    }

    fn plan(&self) -> Result<Schedule> {
        let task = abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END;
        let probe = abi::EVENT_PROBE | abi::EVENT_PROBE_END;
        let evaluation = abi::EVENT_EVAL_BEGIN | abi::EVENT_EVAL_BATCH;
        let own = Term::new(OWN_TERM, "limbeck.bce")
            .input("class_mask", format!("self.{OWN_MASK}"))
            .weight(0.0);
        let old = Term::new(OLD_TERM, "limbeck.bce-kd")
            .config(&json!({"temperature": 1.0, "t2": false}))
            .input("teacher.logits", format!("{PREVIOUS}.logits"))
            .input("class_mask", format!("self.{OLD_MASK}"))
            .weight(0.0);
        Ok(Schedule::new()
            .events(task | probe | evaluation)
            .claims(abi::CLAIM_DATA)
            .snapshot(PREVIOUS)
            .term(own)
            .term(old))
    }

    fn definition(&self) -> Value {
        json!({
            "objective": "mean over seen classes of BCE; targets: old student's sigmoid on old classes, 0/1 on the task's",
            "kd": {"divergence": "bce", "T": 1, "F": 1, "classes": "old", "reduction": "mean over rows"},
            "exemplars": {
                "capacity": self.config.capacity, "per_class": "floor(capacity / classes seen)",
                "policy": "herding on L2-normalised features, at the task's end",
            },
            "prediction": "nearest normalised mean of normalised exemplar features, at each evaluation",
        })
    }

    fn deactivate(&mut self) {
        self.found.clear();
        self.means.clear();
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            abi::EVENT_TASK_BEGIN => self.task_begin(event, requests),
            abi::EVENT_TASK_END => {
                requests.probe(&Probe { name: CHOOSE, model: "student", ..Probe::default() })
            }
            abi::EVENT_PROBE => self.probe(event),
            abi::EVENT_PROBE_END => self.probe_end(event, requests),
            abi::EVENT_EVAL_BEGIN => self.evaluation(requests),
            abi::EVENT_EVAL_BATCH => self.scores(event, requests),
            _ => Ok(()),
        }
    }

    fn save(&mut self, _: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        state.u64(self.width)?;
        self.exemplars.save(&mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.width = state.u64()?;
        self.exemplars.load(&mut state)?;
        state.finish()
    }
}
