//! The scheduler interface: what a continual-learning method declares, sees and asks for.

use crate::{Ctx, Error, Kv, Param, Plugin, Status, Str, Tensor, Value};
use core::ffi::c_void;

/// Id of [`Scheduler`].
pub const SCHEDULER_ID: &str = "lmb.scheduler/1";

/// `LMB_GROUP_JOIN`.
pub const GROUP_JOIN: u64 = 1 << 0;
/// `LMB_GROUP_OWN_PASS`.
pub const GROUP_OWN_PASS: u64 = 1 << 1;
/// `LMB_GROUP_OWN_GRAD`.
pub const GROUP_OWN_GRAD: u64 = 1 << 2;

/// `lmb_group`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Local to the scheduler.
    pub name: Str,
    /// Bound of one step's rows.
    pub max_rows: u64,
    /// `GROUP_*` bits.
    pub flags: u64,
    /// 0.
    pub reserved: u64,
}

/// `lmb_term`: a loss the host adds to the objective.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Term {
    /// Key for its weight and its metric.
    pub name: Str,
    /// Plugin id.
    pub loss: Str,
    /// Settings of the loss.
    pub config_json: Str,
    /// Row group; empty = the fresh rows; `*` = all rows of the pass.
    pub rows: Str,
    /// Loss port to source.
    pub inputs: *const Kv,
    /// Entries of `inputs`.
    pub num_inputs: u64,
    /// Initial weight; while 0 the term is not computed.
    pub weight: f64,
    /// 0.
    pub reserved: u64,
}

/// `LMB_CLAIM_DATA`.
pub const CLAIM_DATA: u64 = 1 << 0;
/// `LMB_CLAIM_STUDENT`.
pub const CLAIM_STUDENT: u64 = 1 << 1;

/// `lmb_schedule`.
#[repr(C)]
pub struct Schedule {
    /// R3.
    pub struct_size: u64,
    /// Mask of `EVENT_*`.
    pub events: u64,
    /// Mask of `CLAIM_*`.
    pub claims: u64,
    /// Row groups.
    pub groups: *const Group,
    /// Entries of `groups`.
    pub num_groups: u64,
    /// Loss terms.
    pub terms: *const Term,
    /// Entries of `terms`.
    pub num_terms: u64,
    /// Frozen students this scheduler takes.
    pub snapshots: *const Str,
    /// Entries of `snapshots`.
    pub num_snapshots: u64,
    /// A JSON object for the run's record, or empty.
    pub definition: Str,
}

/// `LMB_EVENT_TASK_BEGIN`.
pub const EVENT_TASK_BEGIN: u64 = 1 << 0;
/// `LMB_EVENT_STEP_BEGIN`.
pub const EVENT_STEP_BEGIN: u64 = 1 << 1;
/// `LMB_EVENT_FORWARD`.
pub const EVENT_FORWARD: u64 = 1 << 2;
/// `LMB_EVENT_BACKWARD`.
pub const EVENT_BACKWARD: u64 = 1 << 3;
/// `LMB_EVENT_PENALTY`.
pub const EVENT_PENALTY: u64 = 1 << 4;
/// `LMB_EVENT_PROJECT`.
pub const EVENT_PROJECT: u64 = 1 << 5;
/// `LMB_EVENT_STEP_END`.
pub const EVENT_STEP_END: u64 = 1 << 6;
/// `LMB_EVENT_TASK_END`.
pub const EVENT_TASK_END: u64 = 1 << 7;
/// `LMB_EVENT_PROBE`.
pub const EVENT_PROBE: u64 = 1 << 8;
/// `LMB_EVENT_PROBE_END`.
pub const EVENT_PROBE_END: u64 = 1 << 9;
/// `LMB_EVENT_EVAL_BEGIN`.
pub const EVENT_EVAL_BEGIN: u64 = 1 << 10;
/// `LMB_EVENT_EVAL_BATCH`.
pub const EVENT_EVAL_BATCH: u64 = 1 << 11;
/// `LMB_EVENT_EVAL_END`.
pub const EVENT_EVAL_END: u64 = 1 << 12;

/// `lmb_grads`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Grads {
    /// Row group, empty for the step's own.
    pub group: Str,
    /// One per parameter, f32.
    pub grads: *const Tensor,
}

/// `lmb_event`.
#[repr(C)]
pub struct Event {
    /// R3.
    pub struct_size: u64,
    /// One `EVENT_*` bit.
    pub kind: u64,
    /// Context.
    pub ctx: *const Ctx,
    /// Name of the task.
    pub task: Str,
    /// Its place in the stream.
    pub task_index: u64,
    /// 0: not known.
    pub num_tasks: u64,
    /// Pass over the task's rows.
    pub epoch: u64,
    /// Empty = ordinary training, else the name of a pass or probe.
    pub phase: Str,
    /// FORWARD: the row group shown; empty = the fresh rows.
    pub group: Str,
    /// Bound input ports.
    pub tensors: *const Tensor,
    /// Entries of `tensors`.
    pub num_tensors: u64,
    /// The student's parameters.
    pub params: *const Param,
    /// Entries of `params`.
    pub num_params: u64,
    /// \[0\] this step's; then the OWN_GRAD groups.
    pub grads: *const Grads,
    /// Entries of `grads`.
    pub num_grads: u64,
    /// Metrics of a step or an evaluation.
    pub metrics: *const Kv,
    /// Entries of `metrics`.
    pub num_metrics: u64,
}

/// `LMB_ROWS_STEP`.
pub const ROWS_STEP: i32 = 0;
/// `LMB_ROWS_UNION`.
pub const ROWS_UNION: i32 = 1;
/// `LMB_ROWS_PASS`.
pub const ROWS_PASS: i32 = 2;

/// `lmb_rows`.
#[repr(C)]
pub struct Rows {
    /// R3.
    pub struct_size: u64,
    /// A `ROWS_*` constant.
    pub mode: i32,
    /// PASS only.
    pub epochs: u32,
    /// Row group or phase.
    pub name: Str,
    /// Equal first dimension.
    pub columns: *const Tensor,
    /// Entries of `columns`.
    pub num_columns: u64,
}

/// `lmb_probe`.
#[repr(C)]
pub struct Probe {
    /// R3.
    pub struct_size: u64,
    /// Phase shown in its events.
    pub name: Str,
    /// `student`, a teacher stage or a snapshot.
    pub model: Str,
    /// Gradient of a declared term, `*` of the pipeline's terms; empty = forward only.
    pub term: Str,
    /// As in [`Rows`]; none = this task's training rows.
    pub columns: *const Tensor,
    /// Entries of `columns`.
    pub num_columns: u64,
    /// 0 = all, else a random subset.
    pub max_rows: u64,
    /// 0 = the stage's batch; 1 = gradients per example.
    pub batch_rows: u64,
}

/// `lmb_requests`: alive for one `on_event()`.
#[repr(C)]
pub struct Requests {
    /// R3.
    pub struct_size: u64,
    /// The host's own.
    pub this: *mut c_void,
    /// A knob.
    pub set: unsafe extern "C" fn(*mut c_void, key: Str, *const Value, *mut Error) -> Status,
    /// Rows to join, unite or train on.
    pub rows: unsafe extern "C" fn(*mut c_void, *const Rows, *mut Error) -> Status,
    /// An extra look at some rows.
    pub probe: unsafe extern "C" fn(*mut c_void, *const Probe, *mut Error) -> Status,
    /// Frozen student `name` = decay*itself + (1-decay)*student.
    pub snapshot: unsafe extern "C" fn(*mut c_void, name: Str, decay: f64, *mut Error) -> Status,
    /// Student = snapshot.
    pub restore: unsafe extern "C" fn(*mut c_void, name: Str, *mut Error) -> Status,
    /// Value of an output port without row group.
    pub provide: unsafe extern "C" fn(*mut c_void, *const Tensor, *mut Error) -> Status,
}

/// `lmb_scheduler`.
#[repr(C)]
pub struct Scheduler {
    /// R3.
    pub struct_size: u64,
    /// \[main\] After create; pure.
    pub plan: unsafe extern "C" fn(*const Plugin, out: *mut Schedule, *mut Error) -> Status,
    /// \[step\] May write the writable views in place.
    pub on_event:
        unsafe extern "C" fn(*const Plugin, *const Event, *const Requests, *mut Error) -> Status,
}

// SAFETY: a static table of functions that state their own thread rules.
unsafe impl Send for Scheduler {}
// SAFETY: as above.
unsafe impl Sync for Scheduler {}

const _: () = {
    assert!(size_of::<Group>() == 40);
    assert!(size_of::<Term>() == 96);
    assert!(size_of::<Schedule>() == 88);
    assert!(size_of::<Grads>() == 24);
    assert!(size_of::<Event>() == 160);
    assert!(size_of::<Rows>() == 48);
    assert!(size_of::<Probe>() == 88);
    assert!(size_of::<Requests>() == 64);
    assert!(size_of::<Scheduler>() == 24);
};
