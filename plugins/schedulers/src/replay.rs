//! What replay methods share: when rows enter the buffer, what is kept of them, and how they are drawn.
//!
//! Invariant: draw at STEP_BEGIN, insert at FORWARD, so no row is replayed in the step that inserted it. Only fresh rows
//! of ordinary training are offered; joined, mixed-in and extra-pass rows never are.

use limbeck_sdk::abi;
use limbeck_sdk::buffers::{Buffer, Layout, Policy, Slot};
use limbeck_sdk::prelude::*;
use limbeck_sdk::serde_json::{Value, json};
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::{schemars, serde};

/// When rows are offered to the buffer. Moves results by tens of points, so it is never implicit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Insert {
    /// Each row in each step; columns are this step's forward pass, before the update.
    #[default]
    EveryStep,
    /// Only in the first pass over a task's rows.
    FirstPass,
    /// Each row once, at the end of its task, in evaluation mode.
    TaskEnd,
}

/// What is kept of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// Its id, 8 bytes: the host reads the row again.
    #[default]
    RowIds,
    /// Its columns, used as they were seen: for data that may not be read again.
    Inputs,
}

/// Phase of the probe that collects rows at the end of a task.
const COLLECT: &str = "collect";

/// A buffer with its policy of insertion.
pub struct Replay {
    buffer: Buffer,
    insert: Insert,
    store: Store,
    batch: Option<u32>,
    /// Tasks begun.
    tasks: u64,
}

impl Replay {
    pub fn new(buffer: Buffer, insert: Insert, batch: Option<u32>) -> Self {
        Self { buffer, insert, store: Store::RowIds, batch, tasks: 0 }
    }

    /// Keeps more than row ids.
    pub fn storing(mut self, store: Store) -> Self {
        self.store = store;
        self
    }

    /// Events that the insertion needs.
    pub fn events(&self) -> u64 {
        let insert = match self.insert {
            Insert::EveryStep | Insert::FirstPass => abi::EVENT_FORWARD,
            Insert::TaskEnd => abi::EVENT_TASK_END | abi::EVENT_PROBE,
        };
        abi::EVENT_TASK_BEGIN | abi::EVENT_STEP_BEGIN | insert
    }

    /// Handles all but STEP_BEGIN. `key` gives the balancing key of row i, `values` what is stored with it.
    pub fn watch(
        &mut self,
        event: &Event<'_>,
        requests: &Requests<'_>,
        key: impl Fn(&Self, usize) -> i64,
        values: impl Fn(usize) -> Vec<f32>,
    ) -> Result<()> {
        match event.kind() {
            abi::EVENT_TASK_BEGIN => {
                self.tasks += 1;
                Ok(())
            }
            abi::EVENT_FORWARD if self.takes(event) => self.offer(event, key, values),
            abi::EVENT_TASK_END if self.insert == Insert::TaskEnd && self.buffer.capacity() > 0 => {
                let name = COLLECT;
                requests.probe(&limbeck_sdk::Probe { name, model: "student", ..Default::default() })
            }
            abi::EVENT_PROBE if event.phase() == COLLECT => self.offer(event, key, values),
            _ => Ok(()),
        }
    }

    fn takes(&self, event: &Event<'_>) -> bool {
        let now = match self.insert {
            Insert::EveryStep => true,
            Insert::FirstPass => event.epoch() == 0,
            Insert::TaskEnd => false,
        };
        now && event.group().is_empty() && event.phase().is_empty()
    }

    fn offer(
        &mut self,
        event: &Event<'_>,
        key: impl Fn(&Self, usize) -> i64,
        values: impl Fn(usize) -> Vec<f32>,
    ) -> Result<()> {
        let rows = event.required("row_ids")?.to_vec::<i64>()?;
        let mut stored = match self.store {
            Store::RowIds => Vec::new(),
            Store::Inputs => {
                let views = inputs(event)?;
                self.buffer.store(|| Layout::of(&views));
                self.buffer.layout().rows(&views)?
            }
        };
        let mut rng = event.rng("insert");
        let task = self.tasks;
        for (i, row) in rows.iter().enumerate() {
            let key = key(self, i);
            self.buffer.offer(key, &mut rng, || Slot {
                row: *row,
                key,
                task,
                values: values(i),
                stored: stored.get_mut(i).map(std::mem::take).unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// Rows to replay in this step, drawn for one use (`"ce"`); empty outside ordinary training.
    pub fn draw(&self, event: &Event<'_>, name: &str) -> Result<Vec<&Slot>> {
        self.draw_by(event, name, |n, rng| self.buffer.draw(n, rng))
    }

    /// As [`Replay::draw`], the classes (keys) in turn.
    pub fn draw_balanced(&self, event: &Event<'_>, name: &str) -> Result<Vec<&Slot>> {
        self.draw_by(event, name, |n, rng| self.buffer.draw_balanced(n, rng))
    }

    /// As [`Replay::draw`], rows of earlier tasks alone.
    pub fn draw_past(&self, event: &Event<'_>, name: &str) -> Result<Vec<&Slot>> {
        self.draw_by(event, name, |n, rng| {
            self.buffer.draw_among(n, rng, |slot| slot.task < self.tasks)
        })
    }

    fn draw_by<'b>(
        &'b self,
        event: &Event<'_>,
        name: &str,
        draw: impl Fn(usize, &mut Random) -> Vec<&'b Slot>,
    ) -> Result<Vec<&'b Slot>> {
        if !event.phase().is_empty() || self.buffer.is_empty() {
            return Ok(Vec::new());
        }
        let rows = match self.batch {
            Some(batch) => batch as usize,
            None => event.required("row_ids")?.elements(),
        };
        Ok(draw(rows, &mut event.rng(name)))
    }

    /// What brings drawn rows back: their ids, or their columns.
    pub fn columns(&self, drawn: &[&Slot]) -> Result<Vec<Column>> {
        match self.store {
            Store::RowIds => Ok(vec![row_ids(drawn)?]),
            Store::Inputs => {
                self.buffer.layout().columns(drawn.iter().map(|slot| slot.stored.as_slice()))
            }
        }
    }

    /// Bound of one step's rows.
    pub fn max_rows(&self) -> u64 {
        let capacity = self.buffer.capacity() as u64;
        self.batch.map_or(capacity, |b| u64::from(b).min(capacity))
    }

    pub fn tasks(&self) -> u64 {
        self.tasks
    }

    /// The buffer's part of the definition that a run logs.
    pub fn definition(&self, fields: &[&str], balance: &str) -> Value {
        json!({
            "capacity": self.buffer.capacity(),
            "policy": format!("{:?}", self.buffer.policy()).to_lowercase(),
            "insert": self.insert,
            "rows_offered": "fresh rows of ordinary training",
            "order": "drawn before the step's forward pass, inserted after it",
            "draw": "uniform without replacement",
            "balance": balance,
            "store": self.store,
            "fields": fields,
        })
    }

    pub fn save(&self, state: &mut StateWriter<'_>) -> Result<()> {
        state.u64(self.tasks)?;
        self.buffer.save(state)
    }

    pub fn load(&mut self, state: &mut StateReader<'_>) -> Result<()> {
        self.tasks = state.u64()?;
        self.buffer.load(state)
    }
}

/// Every batch column of the event but the row ids, by name.
fn inputs<'a>(event: &Event<'a>) -> Result<Vec<View<'a>>> {
    let views = event.tensors();
    let mut all = Vec::new();
    for i in 0..views.len() {
        all.extend(views.get(i)?.filter(|v| v.name() != "row_ids"));
    }
    all.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(all)
}

/// The ids of drawn rows as the column that makes the host read them again.
pub fn row_ids(drawn: &[&Slot]) -> Result<Column> {
    let ids: Vec<i64> = drawn.iter().map(|s| s.row).collect();
    Column::new("row_ids", &[ids.len() as i64], &ids)
}

/// The input port that every replay method needs.
pub fn row_ids_port() -> limbeck_sdk::Port {
    limbeck_sdk::Port::input("row_ids", "B")
        .dtypes(&[limbeck_sdk::DType::I64])
        .doc("which rows these are, unique in the run")
}

/// Classes of the rows.
pub fn labels_port(doc: &str) -> limbeck_sdk::Port {
    limbeck_sdk::Port::input("labels", "B").dtypes(&[limbeck_sdk::DType::I64]).doc(doc)
}

/// Text that a saved state must agree with.
pub fn settings_text<T: serde::Serialize>(config: &T) -> String {
    limbeck_sdk::serde_json::to_string(config).unwrap_or_default()
}

/// Refuses a batch of no rows.
pub fn check_batch(batch: Option<u32>) -> Result<()> {
    match batch {
        Some(0) => {
            Err(Error::config("/batch", "`batch` must be above 0; leave it out for the stage's"))
        }
        _ => Ok(()),
    }
}

/// Refuses a strength below 0.
pub fn check_strength(name: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(format!("/{name}"), format!("`{name}` must be at least 0, found {value}")))
}

/// A buffer of `capacity` rows and at most `max_bytes`.
pub fn buffer(policy: Policy, capacity: u32, max_bytes: Option<u64>) -> Buffer {
    Buffer::new(policy, capacity as usize).within(max_bytes)
}
