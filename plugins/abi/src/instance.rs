//! Plugin instances and the interfaces of teachers, students and losses.

use crate::{
    Ctx, DLDataType, DLManagedTensorVersioned, Error, Param, Port, Reader, Status, Str, Tape,
    Tensor, Writer,
};
use core::ffi::c_void;

/// Id of [`Teacher`].
pub const TEACHER_ID: &str = "lmb.teacher/1";
/// Id of [`Student`].
pub const STUDENT_ID: &str = "lmb.student/1";
/// Id of [`Folder`].
pub const FOLDER_ID: &str = "lmb.folder/1";
/// Id of [`Loss`].
pub const LOSS_ID: &str = "lmb.loss/1";

/// `lmb_activate`.
#[repr(C)]
pub struct Activate {
    /// R3.
    pub struct_size: u64,
    /// `ctx->stream.device` is the instance's device until `deactivate()`.
    pub ctx: *const Ctx,
    /// Private directory, the only place where the instance may write files.
    pub work_dir: Str,
    /// Rank of this process.
    pub rank: u32,
    /// Number of processes.
    pub world_size: u32,
    /// Students with the feature `bf16`: type of their trainable parameters.
    pub param_dtype: DLDataType,
    /// 0.
    pub reserved: u32,
}

/// `lmb_plugin`: one live instance.
#[repr(C)]
pub struct Plugin {
    /// R3.
    pub struct_size: u64,
    /// The plugin's own.
    pub this: *mut c_void,
    /// \[any\] An interface by id, NULL if unknown.
    pub get_interface: unsafe extern "C" fn(*const Plugin, id: Str) -> *const c_void,
    /// \[main\] The instance's ports.
    pub ports: unsafe extern "C" fn(
        *const Plugin,
        out: *mut *const Port,
        num: *mut u64,
        *mut Error,
    ) -> Status,
    /// \[step\] Gets all that is slow or large.
    pub activate: unsafe extern "C" fn(*const Plugin, *const Activate, *mut Error) -> Status,
    /// \[step\] Releases all of that.
    pub deactivate: unsafe extern "C" fn(*const Plugin),
    /// \[step\] Optional, with `state_load` or not at all.
    pub state_save: Option<
        unsafe extern "C" fn(*const Plugin, *const Ctx, *const Writer, *mut Error) -> Status,
    >,
    /// \[step\] Optional.
    pub state_load: Option<
        unsafe extern "C" fn(*const Plugin, *const Ctx, *const Reader, *mut Error) -> Status,
    >,
    /// \[main\] Not active. Cannot fail.
    pub destroy: unsafe extern "C" fn(*const Plugin),
}

/// `LMB_FORWARD_TRAIN`.
pub const FORWARD_TRAIN: u64 = 1 << 0;
/// `LMB_FORWARD_PARAM_GRAD`.
pub const FORWARD_PARAM_GRAD: u64 = 1 << 1;
/// `LMB_FORWARD_INPUT_GRAD`.
pub const FORWARD_INPUT_GRAD: u64 = 1 << 2;

/// `lmb_forward`.
#[repr(C)]
pub struct Forward {
    /// R3.
    pub struct_size: u64,
    /// Context.
    pub ctx: *const Ctx,
    /// `FORWARD_*` bits.
    pub flags: u64,
    /// One per input port, in that order.
    pub inputs: *const Tensor,
    /// Entries of `inputs`.
    pub num_inputs: u64,
    /// Output ports; nothing else is computed.
    pub wanted: *const Str,
    /// Entries of `wanted` and `outputs`.
    pub num_wanted: u64,
    /// Set by the plugin.
    pub outputs: *mut *mut DLManagedTensorVersioned,
    /// Out, when a GRAD flag is set.
    pub tape: *mut *mut Tape,
}

/// `lmb_teacher`.
#[repr(C)]
pub struct Teacher {
    /// R3.
    pub struct_size: u64,
    /// \[main\] Optional: bytes held, and extra bytes at the peak of one call.
    pub estimate: Option<
        unsafe extern "C" fn(
            *const Plugin,
            inputs: *const Tensor,
            num_inputs: u64,
            held: *mut u64,
            peak: *mut u64,
            *mut Error,
        ) -> Status,
    >,
    /// \[step\] Runs the model.
    pub forward: unsafe extern "C" fn(*const Plugin, *const Forward, *mut Error) -> Status,
}

/// `lmb_backward`.
#[repr(C)]
pub struct Backward {
    /// R3.
    pub struct_size: u64,
    /// Context.
    pub ctx: *const Ctx,
    /// Consumed, on failure too.
    pub tape: *mut Tape,
    /// Named after outputs; a missing one is 0.
    pub cotangents: *const Tensor,
    /// Entries of `cotangents`.
    pub num_cotangents: u64,
    /// Host buffers in `params()` order.
    pub param_grads: *const Tensor,
    /// Entries of `param_grads`; 0: not wanted.
    pub num_params: u64,
    /// Host buffers in forward's input order.
    pub input_grads: *const Tensor,
    /// Entries of `input_grads`; 0: not wanted.
    pub num_inputs: u64,
}

/// `lmb_student`.
#[repr(C)]
pub struct Student {
    /// R3.
    pub struct_size: u64,
    /// \[step\] The whole model.
    pub params: unsafe extern "C" fn(
        *const Plugin,
        out: *mut *const Param,
        num: *mut u64,
        *mut Error,
    ) -> Status,
    /// \[step\] Optional: the host wrote parameters.
    pub params_changed:
        Option<unsafe extern "C" fn(*const Plugin, *const Ctx, *mut Error) -> Status>,
    /// \[step\] Cotangents to gradients.
    pub backward: unsafe extern "C" fn(*const Plugin, *const Backward, *mut Error) -> Status,
    /// \[step\] Drops a tape unused.
    pub tape_release: unsafe extern "C" fn(*const Plugin, *mut Tape),
}

/// `lmb_folder`.
#[repr(C)]
pub struct Folder {
    /// R3.
    pub struct_size: u64,
    /// \[main\] Writes the `config.json` of a Hugging Face folder of the model.
    pub config: unsafe extern "C" fn(*const Plugin, *const Writer, *mut Error) -> Status,
}

/// `lmb_loss_call`.
#[repr(C)]
pub struct LossCall {
    /// R3.
    pub struct_size: u64,
    /// Context.
    pub ctx: *const Ctx,
    /// In the order of the input ports.
    pub inputs: *const Tensor,
    /// Entries of `inputs` and `grads`.
    pub num_inputs: u64,
    /// Host buffers, one per input.
    pub grads: *const Tensor,
    /// Host memory, `params()` order.
    pub params: *const Tensor,
    /// Host memory, `params()` order.
    pub param_grads: *const Tensor,
    /// Entries of `params` and `param_grads`.
    pub num_params: u64,
    /// f32\[1\].
    pub value: *const Tensor,
    /// f32\[1\] per output port.
    pub metrics: *const Tensor,
    /// Entries of `metrics`.
    pub num_metrics: u64,
    /// Counted items over all micro-batches and ranks of this step, > 0.
    pub normalizer: f64,
    /// Every gradient is multiplied by it.
    pub grad_scale: f64,
    /// `plan()`'s bytes on the device, 256-byte aligned.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`.
    pub workspace_bytes: u64,
}

/// `lmb_loss`.
#[repr(C)]
pub struct Loss {
    /// R3.
    pub struct_size: u64,
    /// \[step\] Optional: trainable tensors of the loss.
    pub params: Option<
        unsafe extern "C" fn(
            *const Plugin,
            inputs: *const Tensor,
            num_inputs: u64,
            out: *mut *const Param,
            num: *mut u64,
            *mut Error,
        ) -> Status,
    >,
    /// \[step\] Checks shapes and dtypes, states the workspace.
    pub plan: unsafe extern "C" fn(
        *const Plugin,
        inputs: *const Tensor,
        num_inputs: u64,
        workspace_bytes: *mut u64,
        *mut Error,
    ) -> Status,
    /// \[step\] Value, metrics and wanted gradients in one call.
    pub compute: unsafe extern "C" fn(*const Plugin, *const LossCall, *mut Error) -> Status,
}

macro_rules! tables {
    ($($name:ident)*) => {$(
        // SAFETY: a table of functions and pointers that follow R5; threads are ruled by R9.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}
    )*};
}
tables! { Teacher Student Folder Loss }

const _: () = {
    assert!(size_of::<Activate>() == 48);
    assert!(size_of::<Plugin>() == 72);
    assert!(size_of::<Forward>() == 72);
    assert!(size_of::<Teacher>() == 24);
    assert!(size_of::<Backward>() == 72);
    assert!(size_of::<Student>() == 40);
    assert!(size_of::<Folder>() == 16);
    assert!(size_of::<LossCall>() == 120);
    assert!(size_of::<Loss>() == 32);
};
