//! What the host offers to plugins: per-call context, services, device arithmetic.

use crate::{DLDataType, DLManagedTensorVersioned, Error, Kv, Status, Str, Stream, Tensor};
use core::ffi::c_void;

/// `lmb_ctx`: borrowed, one per call.
#[repr(C)]
pub struct Ctx {
    /// R3.
    pub struct_size: u64,
    /// The host's services.
    pub host: *const Host,
    /// R10.
    pub stream: Stream,
    /// Optimizer step of the stage.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro_step: u64,
    /// The only source of randomness: fresh per call, equal on replay.
    pub rng_key: [u64; 2],
    /// Opaque parent for log records.
    pub span: u64,
}

/// `lmb_writer`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Writer {
    /// The host's own.
    pub this: *mut c_void,
    /// May write fewer than `n` bytes; < 0 is an error.
    pub write: unsafe extern "C" fn(this: *mut c_void, buf: *const c_void, n: u64) -> i64,
}

/// `lmb_reader`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reader {
    /// The host's own.
    pub this: *mut c_void,
    /// May read fewer than `n` bytes; 0 is the end, < 0 an error.
    pub read: unsafe extern "C" fn(this: *mut c_void, buf: *mut c_void, n: u64) -> i64,
}

/// `lmb_log.level`: trace.
pub const LEVEL_TRACE: i32 = 0;
/// `lmb_log.level`: debug.
pub const LEVEL_DEBUG: i32 = 1;
/// `lmb_log.level`: info.
pub const LEVEL_INFO: i32 = 2;
/// `lmb_log.level`: warn.
pub const LEVEL_WARN: i32 = 3;
/// `lmb_log.level`: error.
pub const LEVEL_ERROR: i32 = 4;

/// `lmb_log`.
#[repr(C)]
pub struct Log {
    /// R3.
    pub struct_size: u64,
    /// A `LEVEL_*` constant.
    pub level: i32,
    /// Source line, 0 if unknown.
    pub line: i32,
    /// Module or component.
    pub target: Str,
    /// Source file.
    pub file: Str,
    /// Text.
    pub message: Str,
    /// Structured fields.
    pub fields: *const Kv,
    /// Entries of `fields`.
    pub num_fields: u64,
    /// `Ctx::span` of the call it belongs to, or 0.
    pub span: u64,
}

/// `lmb_alloc`.
#[repr(C)]
pub struct Alloc {
    /// R3.
    pub struct_size: u64,
    /// Memory of `stream.device`, usable in the stream's order.
    pub stream: Stream,
    /// Element type.
    pub dtype: DLDataType,
    /// Dimensions.
    pub ndim: i32,
    /// `ndim` sizes.
    pub shape: *const i64,
    /// What it is for.
    pub tag: Str,
}

/// `lmb_range_fn`.
pub type RangeFn = unsafe extern "C" fn(user: *mut c_void, begin: u64, end: u64, worker: u32);

/// `lmb_host`: the host's services, alive and unchanged until the process ends.
#[repr(C)]
pub struct Host {
    /// R3.
    pub struct_size: u64,
    /// ABI major of the host.
    pub abi_major: u32,
    /// ABI minor of the host.
    pub abi_minor: u32,
    /// The host's own.
    pub this: *mut c_void,
    /// Of the host program.
    pub version: Str,
    /// \[any\] A host service by id, NULL if unknown.
    pub get_interface: unsafe extern "C" fn(*const Host, id: Str) -> *const c_void,
    /// \[any\] Fills the slot of the failing call.
    pub error_set: unsafe extern "C" fn(*mut Error, Status, message: Str),
    /// \[any\] Adds a note to the slot.
    pub error_note: unsafe extern "C" fn(*mut Error, key: Str, value: Str),
    /// \[any\] Whether a record would be kept.
    pub log_enabled: unsafe extern "C" fn(*const Host, level: i32, target: Str) -> i32,
    /// \[any\] Keeps a record.
    pub log: unsafe extern "C" fn(*const Host, *const Log),
    /// \[any\] `total` 0 = unknown.
    pub progress: unsafe extern "C" fn(*const Host, *const Ctx, done: u64, total: u64, what: Str),
    /// \[any\] Non-zero: return [`crate::STATUS_CANCELLED`].
    pub cancelled: unsafe extern "C" fn(*const Host, *const Ctx) -> i32,
    /// \[any\] A number for the metrics file.
    pub metric: unsafe extern "C" fn(*const Host, *const Ctx, name: Str, value: f64),
    /// \[any\] Size of the host's pool.
    pub num_threads: unsafe extern "C" fn(*const Host) -> u32,
    /// \[main\] or \[step\]. Runs `f` over `[0, n)` on the host's pool and blocks.
    pub parallel_for: unsafe extern "C" fn(
        *const Host,
        n: u64,
        grain: u64,
        f: RangeFn,
        user: *mut c_void,
        *mut Error,
    ) -> Status,
    /// \[step\] Contiguous memory charged to the calling instance.
    pub tensor_alloc: unsafe extern "C" fn(
        *const Host,
        *const Alloc,
        out: *mut *mut DLManagedTensorVersioned,
        *mut Error,
    ) -> Status,
    /// \[step\] `dst = src`, equal shapes and dtypes.
    pub tensor_copy: unsafe extern "C" fn(
        *const Host,
        *const Ctx,
        dst: *const Tensor,
        src: *const Tensor,
        *mut Error,
    ) -> Status,
}

// SAFETY: the table is written once before any plugin sees it; its functions state their own thread rules.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// Id of the device arithmetic interface.
pub const VECTOR_ID: &str = "lmb.vector/1";

/// `lmb_adamw`.
#[repr(C)]
pub struct Adamw {
    /// R3.
    pub struct_size: u64,
    /// Parameters.
    pub params: *const Tensor,
    /// Gradients, any float type.
    pub grads: *const Tensor,
    /// First moments, f32.
    pub m: *const Tensor,
    /// Second moments, f32.
    pub v: *const Tensor,
    /// f32 copies that are updated and then rounded into `params`, or NULL.
    pub masters: *const Tensor,
    /// Learning rate per tensor.
    pub lr: *const f64,
    /// Decoupled weight decay per tensor.
    pub weight_decay: *const f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Gradients are multiplied by it first.
    pub grad_scale: f64,
    /// 1 for the first update.
    pub t: u64,
}

/// `lmb_vector`: arithmetic on lists of float tensors.
#[repr(C)]
pub struct Vector {
    /// R3.
    pub struct_size: u64,
    /// `DLDeviceType`; 0 in the host's table.
    pub device_type: i32,
    /// 0.
    pub reserved: i32,
    /// `y = a*x + b*y`.
    pub axpby: unsafe extern "C" fn(
        *const Vector,
        *const Ctx,
        n: u64,
        a: f64,
        x: *const Tensor,
        b: f64,
        y: *const Tensor,
        *mut Error,
    ) -> Status,
    /// `z = a*x*y + b*z`.
    pub mul: unsafe extern "C" fn(
        *const Vector,
        *const Ctx,
        n: u64,
        a: f64,
        x: *const Tensor,
        y: *const Tensor,
        b: f64,
        z: *const Tensor,
        *mut Error,
    ) -> Status,
    /// `*out = Σ x*y` over all entries.
    pub dot: unsafe extern "C" fn(
        *const Vector,
        *const Ctx,
        n: u64,
        x: *const Tensor,
        y: *const Tensor,
        out: *mut f64,
        *mut Error,
    ) -> Status,
    /// Optional: one AdamW update.
    pub adamw: Option<
        unsafe extern "C" fn(*const Vector, *const Ctx, n: u64, *const Adamw, *mut Error) -> Status,
    >,
}

// SAFETY: a static table of functions that state their own thread rules.
unsafe impl Send for Vector {}
// SAFETY: as above.
unsafe impl Sync for Vector {}

const _: () = {
    assert!(size_of::<Ctx>() == 72);
    assert!(size_of::<Writer>() == 16);
    assert!(size_of::<Reader>() == 16);
    assert!(size_of::<Log>() == 88);
    assert!(size_of::<Alloc>() == 56);
    assert!(size_of::<Host>() == 136);
    assert!(size_of::<Adamw>() == 104);
    assert!(size_of::<Vector>() == 48);
};
