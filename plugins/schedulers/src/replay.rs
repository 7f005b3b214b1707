//! What `er` and `derpp` share: when rows enter the buffer, and how many are drawn.
//!
//! Invariant: draw at STEP_BEGIN, insert at FORWARD, so no row is replayed in the step that inserted it. Only fresh rows
//! of ordinary training are offered; joined, mixed-in and extra-pass rows never are.

use limbeck_sdk::abi;
use limbeck_sdk::buffers::{Buffer, Policy, Slot};
use limbeck_sdk::prelude::*;
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

/// Phase of the probe that collects rows at the end of a task.
const COLLECT: &str = "collect";

/// A buffer with its policy of insertion.
pub struct Replay {
    buffer: Buffer,
    insert: Insert,
    batch: Option<u32>,
    /// Tasks begun: the key of a ring.
    tasks: u64,
}

impl Replay {
    pub fn new(policy: Policy, capacity: u32, insert: Insert, batch: Option<u32>) -> Self {
        Self { buffer: Buffer::new(policy, capacity as usize), insert, batch, tasks: 0 }
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
            abi::EVENT_TASK_END if self.insert == Insert::TaskEnd && self.capacity() > 0 => {
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
        let mut rng = event.rng("insert");
        for (i, row) in rows.iter().enumerate() {
            let key = key(self, i);
            self.buffer.offer(key, &mut rng, || (*row, values(i)));
        }
        Ok(())
    }

    /// Rows to replay in this step, drawn for one use (`"ce"`); empty outside ordinary training.
    pub fn draw(&self, event: &Event<'_>, name: &str) -> Result<Vec<&Slot>> {
        if !event.phase().is_empty() || self.buffer.is_empty() {
            return Ok(Vec::new());
        }
        let rows = match self.batch {
            Some(batch) => batch as usize,
            None => event.required("row_ids")?.elements(),
        };
        Ok(self.buffer.draw(rows, &mut event.rng(name)))
    }

    /// Bound of one step's rows.
    pub fn max_rows(&self) -> u64 {
        let capacity = self.capacity() as u64;
        self.batch.map_or(capacity, |b| u64::from(b).min(capacity))
    }

    pub fn tasks(&self) -> u64 {
        self.tasks
    }

    fn capacity(&self) -> usize {
        self.buffer.capacity()
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
