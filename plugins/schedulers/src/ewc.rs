//! `limbeck.ewc`: elastic weight consolidation. A quadratic pull towards the parameters after earlier tasks, weighted by
//! the Fisher information F, the mean over rows of a task of squared per-example gradients of `ln p`:
//!
//! * offline: `(λ/2) Σ_k Σ_i F_i^k (θ_i − θ*_{k,i})²`, kept as A = Σ F^k and the weighted centre
//!   c ← (A∘c + F∘θ*)/(A + F), 0 where A + F = 0; added gradient `λ A∘(θ − c)`.
//! * online: `F̃ ← γ F̃ + F`; added gradient `λ γ F̃∘(θ − θ*)`.
//!
//! In streams whose tasks have their own classes, p is over the classes of the row (`row_classes`).
//!
//! λ means nothing without `fisher` and `rows`. Source: Kirkpatrick et al. 2017 [1612.00796]; online: Schwarz et al.
//! 2018 [1805.06370].

use crate::importance::{Vectors, add_pull, with_grads};
use crate::replay::{check_strength, row_ids_port, settings_text};
use limbeck_sdk::abi;
use limbeck_sdk::numeric::softmax;
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{Vector, VectorSet, combine, owned_trainable};
use limbeck_sdk::{DType, Port, Probe, Random, schemars, serde};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// How tasks add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One pull per task, all kept.
    #[default]
    Offline,
    /// One running importance and the last centre.
    Online,
}

/// Whose labels the gradients are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fisher {
    /// Every class, weighted by its probability.
    #[default]
    Exact,
    /// One class drawn from the student's distribution.
    Sampled,
    /// The pipeline's own terms with the true labels.
    Empirical,
}

fn one() -> f64 {
    1.0
}
fn rows() -> u32 {
    400
}

/// Settings of `limbeck.ewc`.
#[derive(Clone, Debug, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Strength; 0 changes nothing.
    #[schemars(range(min = 0.0))]
    lambda: f64,
    /// How tasks add up.
    #[serde(default)]
    mode: Mode,
    /// Online: how much of the earlier importance stays.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0, max = 1.0))]
    gamma: f64,
    /// Whose labels the gradients are of.
    #[serde(default)]
    fisher: Fisher,
    /// Rows of a task that the information is estimated from, drawn at random; 0 is all.
    #[serde(default = "rows")]
    rows: u32,
}

/// An estimate in progress, from TASK_END to the last PROBE_END.
#[derive(Default)]
struct Estimate {
    /// Rows looked at and their class probabilities.
    rows: Vec<(i64, Vec<f64>)>,
    places: BTreeMap<i64, usize>,
    /// Probes with gradients still to come.
    left: usize,
    /// Per-example gradients summed so far (weights of one row add up to 1).
    seen: f64,
}

/// The scheduler.
pub struct Ewc {
    config: Config,
    /// A (or F̃) and c.
    kept: Vectors<2>,
    /// F of the task at hand.
    fisher: Option<VectorSet>,
    scratch: Option<VectorSet>,
    estimate: Estimate,
}

const LOOK: &str = "look";
const CLASS: &str = "class.";
const LABELS: &str = "fisher_labels";
const TERM: &str = "fisher";
const OWN: &str = "row_classes";

impl Ewc {
    fn is_off(&self) -> bool {
        self.config.lambda == 0.0
    }

    fn task_end(&mut self, requests: &Requests<'_>) -> Result<()> {
        self.estimate = Estimate::default();
        self.fisher = None;
        let max_rows = u64::from(self.config.rows);
        let probe = match self.config.fisher {
            Fisher::Empirical => {
                self.estimate.left = 1;
                Probe {
                    name: CLASS,
                    model: "student",
                    term: "*",
                    max_rows,
                    batch_rows: 1,
                    ..Probe::default()
                }
            }
            Fisher::Exact | Fisher::Sampled => {
                Probe { name: LOOK, model: "student", max_rows, ..Probe::default() }
            }
        };
        requests.probe(&probe)
    }

    fn look(&mut self, event: &Event<'_>) -> Result<()> {
        let ids = event.required("row_ids")?.to_vec::<i64>()?;
        let logits = event.required("student.logits")?.rows()?;
        if logits.len() != ids.len() {
            let message = format!(
                "{} rows of logits for {} examples: one each is needed",
                logits.len(),
                ids.len()
            );
            return Err(Error::unsupported(message).tensor("student.logits"));
        }
        let own = event.tensor(OWN)?.map(|mask| mask.rows()).transpose()?;
        for (i, id) in ids.into_iter().enumerate() {
            let live = |v: usize, z: f64| match own {
                Some(own) if own.row(i).get(v) == 0.0 => f64::NEG_INFINITY,
                _ => z,
            };
            let row: Vec<f64> =
                logits.row(i).into_iter().enumerate().map(|(v, z)| live(v, z)).collect();
            self.estimate.places.insert(id, self.estimate.rows.len());
            self.estimate.rows.push((id, softmax(row, 1.0)));
        }
        Ok(())
    }

    /// After the forward look: one probe per class, or one with drawn labels.
    fn ask_gradients(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        let Some((_, first)) = self.estimate.rows.first() else { return Ok(()) };
        let rows = self.estimate.rows.iter();
        let sets: Vec<Vec<(i64, i64)>> = match self.config.fisher {
            Fisher::Sampled => {
                let mut rng = event.rng("labels");
                vec![rows.map(|(id, p)| (*id, draw(p, &mut rng))).collect()]
            }
            // A class without probability adds nothing; it may not even be one of the row's.
            _ => (0..first.len())
                .map(|class| {
                    let possible = rows.clone().filter(|(_, p)| p.get(class) > Some(&0.0));
                    possible.map(|(id, _)| (*id, class as i64)).collect()
                })
                .collect(),
        };
        self.estimate.left = sets.iter().filter(|set| !set.is_empty()).count();
        for (class, set) in sets.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
            let (ids, labels): (Vec<i64>, Vec<i64>) = set.iter().copied().unzip();
            let shape = [ids.len() as i64];
            let columns =
                [Column::new("row_ids", &shape, &ids)?, Column::new(LABELS, &shape, &labels)?];
            requests.probe(&Probe {
                name: &format!("{CLASS}{class}"),
                model: "student",
                term: TERM,
                columns: &columns,
                max_rows: 0,
                batch_rows: 1,
            })?;
        }
        Ok(())
    }

    /// `F += w g²` for one example.
    fn add(&mut self, event: &Event<'_>) -> Result<()> {
        let weight = match self.config.fisher {
            Fisher::Exact => self.probability(event)?,
            Fisher::Sampled | Fisher::Empirical => 1.0,
        };
        self.estimate.seen += weight;
        let (params, grads) = with_grads(event)?;
        let fisher = match &mut self.fisher {
            Some(fisher) => fisher,
            none => none.insert(VectorSet::zeros_like(event.context(), "fisher", &params)?),
        };
        Vector::new(event.context())?.mul(weight, &grads, &grads, 1.0, &fisher.list())
    }

    /// Probability of the class that this probe is about, for the row it shows.
    fn probability(&self, event: &Event<'_>) -> Result<f64> {
        let class = event.phase().strip_prefix(CLASS).and_then(|c| c.parse::<usize>().ok());
        let ids = event.required("row_ids")?.to_vec::<i64>()?;
        let row = ids.first().and_then(|id| self.estimate.places.get(id));
        let row = row.and_then(|place| self.estimate.rows.get(*place));
        class
            .zip(row)
            .and_then(|(class, (_, p))| p.get(class).copied())
            .ok_or_else(|| Error::invalid_argument("a probe shows a row that was not asked for"))
    }

    /// Takes F and θ* into what is kept.
    fn consolidate(&mut self, event: &Event<'_>) -> Result<()> {
        let estimate = std::mem::take(&mut self.estimate);
        let Some(fisher) = self.fisher.take() else { return Ok(()) };
        let params = owned_trainable(event.params());
        let [importance, centre] = self.kept.lists(event.context(), &params)?;
        let (fisher, n) = (fisher.list(), estimate.seen.max(f64::MIN_POSITIVE));
        match self.config.mode {
            Mode::Offline => {
                combine(
                    event.context(),
                    &centre,
                    [&importance, &fisher, &params],
                    |c, [a, f, p]| {
                        let f = f / n;
                        if a + f == 0.0 { 0.0 } else { (a * c + f * p) / (a + f) }
                    },
                )?;
                combine(event.context(), &importance, [&fisher], |a, [f]| a + f / n)
            }
            Mode::Online => {
                let gamma = self.config.gamma;
                combine(event.context(), &centre, [&params], |_, [p]| p)?;
                combine(event.context(), &importance, [&fisher], |a, [f]| gamma * a + f / n)
            }
        }
    }

    fn penalty(&mut self, event: &Event<'_>) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let (params, grads) = with_grads(event)?;
        let [importance, centre] = self.kept.lists(event.context(), &params)?;
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => none.insert(VectorSet::zeros_like(event.context(), "scratch", &params)?),
        };
        let scale = match self.config.mode {
            Mode::Offline => self.config.lambda,
            Mode::Online => self.config.lambda * self.config.gamma,
        };
        let vector = Vector::new(event.context())?;
        add_pull(&vector, scratch, scale, &importance, &params, &centre, &grads)
    }
}

/// A class drawn from `p`.
fn draw(p: &[f64], rng: &mut Random) -> i64 {
    let mut left = rng.uniform() * p.iter().sum::<f64>();
    for (class, share) in p.iter().enumerate() {
        left -= share;
        if left < 0.0 {
            return class as i64;
        }
    }
    p.len().saturating_sub(1) as i64
}

impl Scheduler for Ewc {
    const ID: &'static str = "limbeck.ewc";
    const SUMMARY: &'static str =
        "elastic weight consolidation: a pull towards what earlier tasks needed";
    const FEATURES: &'static [&'static str] =
        &["deterministic", "scenario.class", "scenario.domain", "scenario.task"];
    const DEVICES: &'static [i32] = crate::ANYWHERE;
    const STATE: bool = true;
    type Config = Config;

    fn new(config: Config, _: &Host) -> Result<Self> {
        let Config { lambda, gamma, .. } = config;
        check_strength("lambda", lambda)?;
        if !(0.0..=1.0).contains(&gamma) {
            return Err(Error::config(
                "/gamma",
                format!("`gamma` must be in [0, 1], found {gamma}"),
            ));
        }
        let kept = Vectors::new(["importance", "centre"]);
        Ok(Self { config, kept, fisher: None, scratch: None, estimate: Estimate::default() })
    }

    fn ports(&self) -> Ports {
        if self.config.fisher == Fisher::Empirical {
            return Ports::new();
        }
        let labels = Port::output(LABELS, "N").dtypes(&[DType::I64]);
        Ports::new()
            .with(row_ids_port())
            .with(Port::input("student.logits", "N,V").doc("for the probabilities of the classes"))
            .with(labels.doc("classes that the information is taken over"))
            .with(
                Port::input(OWN, "N,V")
                    .dtypes(&[DType::U8])
                    .optional()
                    .doc("0: no class of the row's task"),
            )
    }

    fn plan(&self) -> Result<Schedule> {
        if self.is_off() {
            return Ok(Schedule::new());
        }
        let probes = abi::EVENT_TASK_END | abi::EVENT_PROBE | abi::EVENT_PROBE_END;
        let schedule = Schedule::new().events(probes | abi::EVENT_PENALTY);
        Ok(match self.config.fisher {
            Fisher::Empirical => schedule,
            Fisher::Exact | Fisher::Sampled => {
                let term = Term::new(TERM, "limbeck.ce").input("labels", format!("self.{LABELS}"));
                schedule.term(term.weight(0.0))
            }
        })
    }

    fn definition(&self) -> Value {
        let Config { mode, gamma, fisher, rows, .. } = &self.config;
        let (penalty, across) = match mode {
            Mode::Offline => ("lambda*A*(theta-c), A = sum F_k, c = weighted centre", "sum"),
            Mode::Online => ("lambda*gamma*F*(theta-theta*)", "decayed"),
        };
        json!({
            "importance": {
                "kind": "diagonal Fisher", "fisher": fisher, "rows": rows, "batch_rows": 1,
                "normalised_by": "rows", "mode": "evaluation", "gamma": gamma,
            },
            "penalty_gradient": penalty,
            "across_tasks": across,
        })
    }

    fn deactivate(&mut self) {
        self.kept.clear();
        (self.fisher, self.scratch, self.estimate) = (None, None, Estimate::default());
    }

    fn on_event(&mut self, event: &Event<'_>, requests: &Requests<'_>) -> Result<()> {
        match event.kind() {
            _ if self.is_off() => Ok(()),
            abi::EVENT_PENALTY => self.penalty(event),
            abi::EVENT_TASK_END => self.task_end(requests),
            abi::EVENT_PROBE if event.phase() == LOOK => self.look(event),
            abi::EVENT_PROBE => self.add(event),
            abi::EVENT_PROBE_END if event.phase() == LOOK => self.ask_gradients(event, requests),
            abi::EVENT_PROBE_END => {
                self.estimate.left = self.estimate.left.saturating_sub(1);
                if self.estimate.left == 0 { self.consolidate(event) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn save(&mut self, context: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        let mut state = StateWriter::begin(to, Self::ID, 1, &settings_text(&self.config))?;
        self.kept.save(context, &mut state)?;
        state.finish()
    }

    fn load(&mut self, _: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        let mut state = StateReader::begin(from, Self::ID, 1, &settings_text(&self.config))?;
        self.kept.load(&mut state)?;
        state.finish()
    }
}
