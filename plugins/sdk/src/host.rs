//! The host as a plugin sees it: services, the context of a call, memory charged to the instance.
//!
//! Thread rules are those of `limbeck.h`; every method names its own.

use crate::views::text;
use crate::{DType, Error, Random, Result, View};
use limbeck_abi as abi;
use std::path::Path;
use std::ptr;

/// The host's services. They live until the process ends, so this is a plain handle.
#[derive(Clone, Copy)]
pub struct Host {
    raw: &'static abi::Host,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host({})", self.version())
    }
}

impl Host {
    /// Wraps the table.
    ///
    /// # Safety
    /// `raw` is the host's table, alive and unchanged until the process ends (limbeck.h, lmb_host).
    pub unsafe fn from_abi(raw: *const abi::Host) -> Self {
        // SAFETY: the caller's promise.
        Self { raw: unsafe { &*raw } }
    }

    /// The table of the contract.
    pub fn abi(&self) -> &'static abi::Host {
        self.raw
    }

    /// \[any\] Version of the host program.
    pub fn version(&self) -> &'static str {
        // SAFETY: lives as long as the table.
        unsafe { text(self.raw.version) }
    }

    /// \[any\] A host service by id, NULL if unknown.
    pub fn interface(&self, id: &str) -> *const std::ffi::c_void {
        // SAFETY: [any].
        unsafe { (self.raw.get_interface)(self.raw, abi::Str::new(id)) }
    }

    /// \[any\] Size of the host's pool, at least 1.
    pub fn num_threads(&self) -> usize {
        // SAFETY: [any].
        unsafe { (self.raw.num_threads)(self.raw) }.max(1) as usize
    }
}

/// Context of one call.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    raw: &'a abi::Ctx,
    host: Host,
}

impl<'a> Context<'a> {
    /// Wraps the context of a call.
    ///
    /// # Safety
    /// R5: `raw` is borrowed for the call and lives for `'a`.
    pub unsafe fn from_abi(raw: *const abi::Ctx, host: Host) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the context is NULL"));
        }
        // SAFETY: the caller's promise.
        Ok(Self { raw: unsafe { &*raw }, host })
    }

    /// The struct of the contract.
    pub fn abi(&self) -> &'a abi::Ctx {
        self.raw
    }
    /// The host.
    pub fn host(&self) -> Host {
        self.host
    }
    /// Device of the call.
    pub fn device(&self) -> abi::DLDevice {
        self.raw.stream.device
    }
    /// Stream of the call (R10).
    pub fn stream(&self) -> abi::Stream {
        self.raw.stream
    }
    /// Optimizer step of the stage.
    pub fn step(&self) -> u64 {
        self.raw.step
    }
    /// Micro-batch within the step.
    pub fn micro_step(&self) -> u64 {
        self.raw.micro_step
    }
    /// The key of all randomness in this call.
    pub fn rng_key(&self) -> [u64; 2] {
        self.raw.rng_key
    }
    /// The stream of draws of one use inside this call; equal on replay.
    pub fn rng(&self, name: &str) -> Random {
        Random::named(self.raw.rng_key, name)
    }
    /// \[any\] Tells how far a long call is; `total` 0 is unknown.
    pub fn progress(&self, done: u64, total: u64, what: &str) {
        let host = self.host.raw;
        // SAFETY: [any]; the text is borrowed for the call.
        unsafe { (host.progress)(host, self.raw, done, total, abi::Str::new(what)) }
    }
    /// \[any\] Poll it at least every 100 ms in long calls.
    ///
    /// # Errors
    /// CANCELLED once the user asked to stop.
    pub fn check_cancelled(&self) -> Result<()> {
        // SAFETY: [any].
        match unsafe { (self.host.raw.cancelled)(self.host.raw, self.raw) } {
            0 => Ok(()),
            _ => Err(Error::cancelled()),
        }
    }
    /// \[any\] A number for the metrics file.
    pub fn metric(&self, name: &str, value: f64) {
        let host = self.host.raw;
        // SAFETY: [any]; the text is borrowed for the call.
        unsafe { (host.metric)(host, self.raw, abi::Str::new(name), value) }
    }

    /// \[step\] Contiguous memory on the call's device, charged to the instance. Contents are garbage.
    ///
    /// # Errors
    /// OUT_OF_MEMORY and what else the host says.
    pub fn alloc(&self, name: &str, dtype: DType, shape: &[i64]) -> Result<Memory> {
        self.alloc_in(self.raw.stream, name, dtype, shape)
    }

    /// As [`Context::alloc`], in CPU memory.
    pub(crate) fn alloc_on_cpu(&self, name: &str, dtype: DType, shape: &[i64]) -> Result<Memory> {
        let cpu = abi::Stream { device: abi::DLDevice::CPU, handle: ptr::null_mut() };
        self.alloc_in(cpu, name, dtype, shape)
    }

    fn alloc_in(
        &self,
        stream: abi::Stream,
        name: &str,
        dtype: DType,
        shape: &[i64],
    ) -> Result<Memory> {
        let request = abi::Alloc {
            struct_size: abi::struct_size::<abi::Alloc>(),
            stream,
            dtype: dtype.dl(),
            ndim: shape.len() as i32,
            shape: shape.as_ptr(),
            tag: abi::Str::new(name),
        };
        let mut out = ptr::null_mut();
        self.host.call(|host, error| {
            // SAFETY: [step]; `request` and `out` outlive the call.
            unsafe { (host.tensor_alloc)(host, &request, &mut out, error) }
        })?;
        if out.is_null() {
            return Err(Error::internal("the host allocated nothing"));
        }
        Ok(Memory { name: name.to_owned(), managed: out })
    }

    /// \[step\] `dst = src`, equal shapes and types, any strides and devices.
    ///
    /// # Errors
    /// What the host says.
    pub fn copy(&self, dst: &abi::Tensor, src: &abi::Tensor) -> Result<()> {
        self.host.call(|host, error| {
            // SAFETY: [step]; both tensors outlive the call.
            unsafe { (host.tensor_copy)(host, self.raw, dst, src, error) }
        })
    }
}

impl Host {
    /// Runs a host function that reports through an error slot: the slot of the plugin call that is running on this
    /// thread, so that the host's own text reaches the user.
    pub(crate) fn call(
        &self,
        f: impl FnOnce(&'static abi::Host, *mut abi::Error) -> abi::Status,
    ) -> Result<()> {
        let slot = crate::guard::current_slot();
        match f(self.raw, slot) {
            abi::STATUS_OK => Ok(()),
            status => Err(Error::from_host(status, !slot.is_null())),
        }
    }
}

/// Memory from [`Context::alloc`]; freed on drop, which must be on the step thread and before `deactivate` returns.
#[derive(Debug)]
pub struct Memory {
    name: String,
    managed: *mut abi::DLManagedTensorVersioned,
}

// SAFETY: an instance that owns memory is only touched by the thread that its calls are on (R9).
unsafe impl Send for Memory {}

impl Memory {
    /// The struct of the contract; valid while `self` is neither moved nor dropped.
    pub fn abi(&self) -> abi::Tensor {
        abi::Tensor {
            name: abi::Str::new(&self.name),
            // SAFETY: the host made it; alive until the deleter is called.
            t: unsafe { (*self.managed).dl_tensor },
            flags: 0,
            reserved: 0,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the plugin owns it and calls the deleter once (limbeck.h, tensor_alloc).
        unsafe {
            if let Some(deleter) = (*self.managed).deleter {
                deleter(self.managed);
            }
        }
    }
}

/// What `activate` is given: a [`Context`] and the instance's own directory.
#[derive(Clone, Copy)]
pub struct Activation<'a> {
    context: Context<'a>,
    raw: &'a abi::Activate,
}

impl<'a> Activation<'a> {
    /// # Safety
    /// R5: `raw` lives for `'a`.
    pub(crate) unsafe fn from_abi(raw: *const abi::Activate, host: Host) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the activation is NULL"));
        }
        // SAFETY: the caller's promise.
        let raw: &'a abi::Activate = unsafe { &*raw };
        // SAFETY: the caller's promise.
        Ok(Self { context: unsafe { Context::from_abi(raw.ctx, host) }?, raw })
    }
    /// The only place where the instance may write files.
    pub fn work_dir(&self) -> &'a Path {
        // SAFETY: R5.
        Path::new(unsafe { text(self.raw.work_dir) })
    }
    /// Rank of this process.
    pub fn rank(&self) -> u32 {
        self.raw.rank
    }
    /// Number of processes.
    pub fn world_size(&self) -> u32 {
        self.raw.world_size
    }
    /// Type that the trainable parameters of a student with the feature `bf16` have: f32 or bf16.
    pub fn param_dtype(&self) -> DType {
        let end = std::mem::offset_of!(abi::Activate, param_dtype) + size_of::<abi::DLDataType>();
        let known = self.raw.struct_size >= end as u64;
        let asked = known.then(|| DType::from_dl(self.raw.param_dtype)).flatten();
        asked.filter(|dtype| *dtype == DType::BF16).unwrap_or(DType::F32)
    }
}

impl<'a> std::ops::Deref for Activation<'a> {
    type Target = Context<'a>;
    fn deref(&self) -> &Context<'a> {
        &self.context
    }
}

/// Whether all views are on the CPU, as plugins without device code need.
///
/// # Errors
/// UNSUPPORTED naming the first that is not.
pub fn require_cpu(view: &View<'_>) -> Result<()> {
    if view.device() == abi::DLDevice::CPU {
        return Ok(());
    }
    Err(Error::unsupported("this plugin computes in host memory").tensor(view.name()))
}
