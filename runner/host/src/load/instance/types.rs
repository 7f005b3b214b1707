//! What goes into plugin calls and comes out of them, owned by the host.
//!
//! Plain data. Nothing here calls a plugin.

use super::Tape;
use crate::device::DeviceError;
use crate::tensor::{DType, Tensor, TensorSpec};

/// Of one call; the instance adds the host table and the stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallCtx {
    /// Optimizer step of the stage.
    pub step: u64,
    /// Micro-batch within it.
    pub micro_step: u64,
    /// Counter key of this call.
    pub rng_key: [u64; 2],
}

/// A port, owned.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// R12.
    pub name: String,
    /// Axes: `B,T,768`.
    pub shape: String,
    /// Scheduler outputs: row group.
    pub rows: String,
    /// For people.
    pub doc: String,
    /// Accepted or possible.
    pub dtypes: Vec<DType>,
    /// `limbeck_abi::PORT_*` bits.
    pub flags: u64,
}

impl Port {
    /// Whether it is an output.
    pub fn is_output(&self) -> bool {
        self.flags & limbeck_abi::PORT_OUTPUT != 0
    }
    /// Whether it may be left unbound.
    pub fn is_optional(&self) -> bool {
        self.flags & limbeck_abi::PORT_OPTIONAL != 0
    }
    /// Whether it wants CPU memory whatever the instance's device.
    pub fn is_host_memory(&self) -> bool {
        self.flags & limbeck_abi::PORT_HOST_MEMORY != 0
    }
    /// Whether gradients flow through it.
    pub fn is_differentiable(&self) -> bool {
        self.flags & limbeck_abi::PORT_DIFFERENTIABLE != 0
    }
}

/// A parameter of a student or of a loss.
#[derive(Clone, Debug)]
pub struct Param {
    /// Name.
    pub name: String,
    /// The plugin's memory; for loss parameters a spec only (see [`LossParam`]).
    pub value: Tensor,
    /// Canonical name when it shares that one's buffer.
    pub tied_to: Option<String>,
    /// Unset: a buffer.
    pub trainable: bool,
    /// No weight decay.
    pub no_decay: bool,
}

/// A parameter that the host owns for a loss.
#[derive(Clone, Debug)]
pub struct LossParam {
    /// Name.
    pub name: String,
    /// Shape and type.
    pub spec: TensorSpec,
    /// `zeros`, `ones`, `eye`, `normal(mean,std)`, `xavier_uniform`.
    pub init: String,
    /// Unset: a buffer.
    pub trainable: bool,
    /// No weight decay.
    pub no_decay: bool,
}

/// Flags of a forward pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardFlags {
    /// Dropout, statistics.
    pub train: bool,
    /// Record for parameter gradients.
    pub param_grad: bool,
    /// Record for input gradients.
    pub input_grad: bool,
}

/// What a forward pass gave.
pub struct ForwardOut {
    /// In the order asked for.
    pub outputs: Vec<Tensor>,
    /// When a gradient flag was set. Released on drop if not consumed.
    pub tape: Option<Tape>,
}

/// One call of a loss.
pub struct LossCall<'a> {
    /// One per input port; `None`: absent.
    pub inputs: &'a [Option<Tensor>],
    /// One per input port; `None`: not wanted.
    pub grads: &'a [Option<GradOut>],
    /// Host-owned parameters.
    pub params: &'a [Tensor],
    /// Their gradients.
    pub param_grads: &'a [GradOut],
    /// Counted items over the whole step.
    pub normalizer: f64,
    /// Factor of every gradient.
    pub grad_scale: f64,
}

/// Where a gradient goes.
#[derive(Clone, Debug)]
pub struct GradOut {
    /// Host buffer.
    pub buffer: Tensor,
    /// Add to it instead of overwriting.
    pub accumulate: bool,
}

/// What a loss gave.
#[derive(Clone, Debug, Default)]
pub struct LossOut {
    /// Sum over counted items / normalizer.
    pub value: f64,
    /// By output port name.
    pub metrics: Vec<(String, f64)>,
}

/// What a loss call gave, which is on its way while the device computes.
pub enum LossPending {
    /// Of a CPU.
    Read(LossOut),
    /// `[1 + metrics]`, f32.
    OnDevice {
        /// The value, then the metrics.
        values: Tensor,
        /// Of the metrics.
        names: Vec<String>,
    },
}

impl LossPending {
    /// Waits for the numbers.
    ///
    /// # Errors
    /// What the driver says.
    pub fn read(self) -> Result<LossOut, DeviceError> {
        let (values, names) = match self {
            Self::Read(out) => return Ok(out),
            Self::OnDevice { values, names } => (values.to(limbeck_abi::DLDevice::CPU)?, names),
        };
        let mut numbers = values.data::<f32>().unwrap_or_default().iter().map(|v| f64::from(*v));
        let value = numbers.next().unwrap_or(f64::NAN);
        Ok(LossOut { value, metrics: names.into_iter().zip(numbers).collect() })
    }
}

/// A row group that a scheduler declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Local name.
    pub name: String,
    /// Bound of one step's rows.
    pub max_rows: u64,
    /// `limbeck_abi::GROUP_*`.
    pub flags: u64,
}

/// A term that a scheduler declares.
#[derive(Clone, Debug)]
pub struct SchedulerTerm {
    /// Local name.
    pub name: String,
    /// Loss plugin id.
    pub loss: String,
    /// Its settings.
    pub config: serde_json::Value,
    /// Row group; `""` fresh rows; `*` all.
    pub rows: String,
    /// Loss port -> source.
    pub inputs: Vec<(String, String)>,
    /// Initial weight.
    pub weight: f64,
}

/// What a scheduler declares.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// `limbeck_abi::EVENT_*` mask.
    pub events: u64,
    /// `limbeck_abi::CLAIM_*` mask.
    pub claims: u64,
    /// Row groups.
    pub groups: Vec<Group>,
    /// Loss terms.
    pub terms: Vec<SchedulerTerm>,
    /// Frozen students.
    pub snapshots: Vec<String>,
    /// What its strengths and buffers mean, for the run's record; null if it does not say.
    pub definition: serde_json::Value,
}

/// What a scheduler is shown.
pub struct Event<'a> {
    /// One `limbeck_abi::EVENT_*` bit.
    pub kind: u64,
    /// Task name, its index, number of tasks (0: not known), epoch.
    pub task: &'a str,
    /// Its place.
    pub task_index: u64,
    /// 0: not known.
    pub num_tasks: u64,
    /// Pass over the task's rows.
    pub epoch: u64,
    /// `""` = ordinary training.
    pub phase: &'a str,
    /// FORWARD: row group shown.
    pub group: &'a str,
    /// Named views; `None`: absent.
    pub tensors: &'a [(String, Option<Tensor>)],
    /// The student's parameters.
    pub params: &'a [Param],
    /// Parameters may be written in this event.
    pub params_writable: bool,
    /// By row group; the first is this step's and writable in PENALTY and PROJECT.
    pub grads: &'a [(String, Vec<Tensor>)],
    /// Metrics.
    pub metrics: &'a [(String, f64)],
}

/// A request of a scheduler, copied.
#[derive(Clone, Debug)]
pub enum Request {
    /// A knob.
    Set(String, Knob),
    /// Rows; columns by name.
    Rows {
        /// `limbeck_abi::ROWS_*`.
        mode: i32,
        /// PASS only.
        epochs: u32,
        /// Row group or phase.
        name: String,
        /// Copies.
        columns: Vec<(String, Tensor)>,
    },
    /// An extra look.
    Probe {
        /// Phase of its events.
        name: String,
        /// `student`, a teacher stage, a snapshot.
        model: String,
        /// `""` = forward only.
        term: String,
        /// Copies; empty = this task's training rows.
        columns: Vec<(String, Tensor)>,
        /// 0 = all.
        max_rows: u64,
        /// 0 = the stage's batch.
        batch_rows: u64,
    },
    /// `name = decay*name + (1-decay)*student`.
    Snapshot(String, f64),
    /// Student = snapshot.
    Restore(String),
    /// Value of an output port without row group.
    Provide(String, Tensor),
}

/// Value of a knob.
#[derive(Clone, Debug, PartialEq)]
pub enum Knob {
    /// Boolean.
    Bool(bool),
    /// Integer.
    I64(i64),
    /// Float.
    F64(f64),
    /// Text.
    Str(String),
}
