//! A small host: tensors of any type and stride, a pool of real threads, and one call of one loss.
//!
//! Gradient buffers start as NaN between guard bytes, so that what is not overwritten, or overrun, shows.

use crate::buffer::{Buffer, DEVICE};
use crate::reference::{Array, Inputs};
use limbeck_sdk::abi;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub const DTYPES: [abi::DLDataType; 4] =
    [abi::DLDataType::F32, abi::DLDataType::F64, abi::DLDataType::F16, abi::DLDataType::BF16];

/// Threads of the pool in the next call.
pub static THREADS: AtomicU32 = AtomicU32::new(1);

#[derive(Debug, Default, PartialEq)]
pub struct Failure {
    pub status: i32,
    pub message: String,
    pub notes: BTreeMap<String, String>,
}

fn text(text: abi::Str) -> String {
    // SAFETY: borrowed for the call (R5).
    unsafe { text.text() }.expect("UTF-8").to_owned()
}

unsafe extern "C" fn get_interface(_: *const abi::Host, _: abi::Str) -> *const c_void {
    std::ptr::null()
}
unsafe extern "C" fn error_set(error: *mut abi::Error, status: i32, message: abi::Str) {
    // SAFETY: every `abi::Error` of this host is a `Failure`.
    let failure = unsafe { &mut *error.cast::<Failure>() };
    (failure.status, failure.message) = (status, text(message));
}
unsafe extern "C" fn error_note(error: *mut abi::Error, key: abi::Str, value: abi::Str) {
    // SAFETY: as above.
    unsafe { &mut *error.cast::<Failure>() }.notes.insert(text(key), text(value));
}
unsafe extern "C" fn log_enabled(_: *const abi::Host, _: i32, _: abi::Str) -> i32 {
    0
}
unsafe extern "C" fn log(_: *const abi::Host, _: *const abi::Log) {}
unsafe extern "C" fn progress(
    _: *const abi::Host,
    _: *const abi::Ctx,
    _: u64,
    _: u64,
    _: abi::Str,
) {
}
unsafe extern "C" fn cancelled(_: *const abi::Host, _: *const abi::Ctx) -> i32 {
    0
}
unsafe extern "C" fn metric(_: *const abi::Host, _: *const abi::Ctx, _: abi::Str, _: f64) {}
unsafe extern "C" fn num_threads(_: *const abi::Host) -> u32 {
    THREADS.load(Ordering::Relaxed)
}
unsafe extern "C" fn parallel_for(
    _: *const abi::Host,
    n: u64,
    grain: u64,
    body: abi::RangeFn,
    user: *mut c_void,
    _: *mut abi::Error,
) -> i32 {
    let threads = u64::from(THREADS.load(Ordering::Relaxed));
    let (share, user) = (n.div_ceil(threads).max(grain), user as usize);
    std::thread::scope(|scope| {
        for worker in 0..threads {
            let (begin, end) = ((worker * share).min(n), ((worker + 1) * share).min(n));
            if begin < end {
                // SAFETY: the caller's body and data, alive until this function returns.
                scope
                    .spawn(move || unsafe { body(user as *mut c_void, begin, end, worker as u32) });
            }
        }
    });
    abi::STATUS_OK
}
unsafe extern "C" fn tensor_alloc(
    _: *const abi::Host,
    _: *const abi::Alloc,
    _: *mut *mut abi::DLManagedTensorVersioned,
    _: *mut abi::Error,
) -> i32 {
    abi::STATUS_OUT_OF_MEMORY
}
unsafe extern "C" fn tensor_copy(
    _: *const abi::Host,
    _: *const abi::Ctx,
    _: *const abi::Tensor,
    _: *const abi::Tensor,
    _: *mut abi::Error,
) -> i32 {
    abi::STATUS_UNSUPPORTED
}

pub static HOST: abi::Host = abi::Host {
    struct_size: size_of::<abi::Host>() as u64,
    abi_major: abi::ABI_MAJOR,
    abi_minor: abi::ABI_MINOR,
    this: std::ptr::null_mut(),
    version: abi::Str::new("test"),
    get_interface,
    error_set,
    error_note,
    log_enabled,
    log,
    progress,
    cancelled,
    metric,
    num_threads,
    parallel_for,
    tensor_alloc,
    tensor_copy,
};

unsafe extern "C" {
    fn lmb_module_v1(host: *const abi::Host) -> *const abi::Module;
}

/// The library's module table, initialised once.
pub fn module() -> &'static abi::Module {
    static MODULE: OnceLock<&'static abi::Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let mut failure = Failure::default();
        // SAFETY: the entry of this library, linked in; the host's table is static.
        let module = unsafe { &*lmb_module_v1(&raw const HOST) };
        // SAFETY: once per process.
        let status = unsafe { module.init.expect("init")(&raw const HOST, slot(&mut failure)) };
        assert_eq!(status, abi::STATUS_OK, "{failure:?}");
        module
    })
}

pub fn slot(failure: &mut Failure) -> *mut abi::Error {
    std::ptr::from_mut(failure).cast()
}

pub fn context() -> abi::Ctx {
    abi::Ctx {
        struct_size: size_of::<abi::Ctx>() as u64,
        host: &raw const HOST,
        stream: abi::Stream { device: DEVICE.get(), handle: std::ptr::null_mut() },
        step: 0,
        micro_step: 0,
        rng_key: [0, 0],
        span: 0,
    }
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of float inputs.
    pub dtype: abi::DLDataType,
    /// Of gradients; of a head f32 if this is narrower.
    pub grad_dtype: abi::DLDataType,
    pub normalizer: f64,
    pub grad_scale: f64,
    /// Extra elements between rows, and before the first.
    pub layout: (usize, usize),
    /// Start gradients at this value and add to them.
    pub accumulate: Option<f64>,
    /// Write the gradient of `student.logits` over it.
    pub alias: bool,
    /// Lend the workspace that `plan` asked for.
    pub workspace: bool,
    /// Ask for gradients.
    pub grads: bool,
}

impl Options {
    pub fn of(dtype: abi::DLDataType, normalizer: f64) -> Self {
        Self {
            dtype,
            grad_dtype: dtype,
            normalizer,
            grad_scale: 1.0,
            layout: (0, 0),
            accumulate: None,
            alias: false,
            workspace: true,
            grads: true,
        }
    }
}

/// What a call gave.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub value: f64,
    pub metrics: Vec<f64>,
    pub grads: BTreeMap<String, Vec<f64>>,
}

/// A live instance, destroyed on drop.
pub struct Instance {
    plugin: *const abi::Plugin,
    active: bool,
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: R9: one thread; the order of the lifecycle.
        unsafe {
            if self.active {
                ((*self.plugin).deactivate)(self.plugin);
            }
            ((*self.plugin).destroy)(self.plugin);
        }
    }
}

fn checked(status: i32, failure: Failure) -> Result<(), Failure> {
    if status == abi::STATUS_OK { Ok(()) } else { Err(Failure { status, ..failure }) }
}

fn absent() -> abi::Tensor {
    let t = abi::DLTensor {
        data: std::ptr::null_mut(),
        device: abi::DLDevice::CPU,
        ndim: 0,
        dtype: abi::DLDataType::F32,
        shape: std::ptr::null_mut(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    };
    abi::Tensor { name: abi::Str::EMPTY, t, flags: abi::TENSOR_ABSENT, reserved: 0 }
}

impl Instance {
    pub fn create(id: &str, config: &str) -> Result<Self, Failure> {
        let (mut failure, mut plugin) = (Failure::default(), std::ptr::null());
        let create = module().create;
        let (id, config) = (abi::Str::new(id), abi::Str::new(config));
        // SAFETY: [main] by test; all borrowed for the call.
        let status =
            unsafe { create(&raw const HOST, id, config, &mut plugin, slot(&mut failure)) };
        checked(status, failure)?;
        let mut instance = Self { plugin, active: false };
        instance.activate()?;
        Ok(instance)
    }

    fn activate(&mut self) -> Result<(), Failure> {
        let (mut failure, ctx) = (Failure::default(), context());
        let activate = abi::Activate {
            struct_size: size_of::<abi::Activate>() as u64,
            ctx: &raw const ctx,
            work_dir: abi::Str::EMPTY,
            rank: 0,
            world_size: 1,
            param_dtype: abi::DLDataType::F32,
            reserved: 0,
        };
        // SAFETY: a live plugin, not active.
        let status =
            unsafe { ((*self.plugin).activate)(self.plugin, &activate, slot(&mut failure)) };
        self.active = status == abi::STATUS_OK;
        checked(status, failure)
    }

    fn loss(&self) -> &'static abi::Loss {
        // SAFETY: lives until destroy(); tests drop the instance last.
        unsafe {
            let table = ((*self.plugin).get_interface)(self.plugin, abi::Str::new(abi::LOSS_ID));
            &*table.cast::<abi::Loss>()
        }
    }

    pub fn ports(&self) -> Vec<abi::Port> {
        let (mut failure, mut out, mut num) = (Failure::default(), std::ptr::null(), 0);
        // SAFETY: a live plugin; the list is plugin memory until destroy().
        unsafe {
            let status =
                ((*self.plugin).ports)(self.plugin, &mut out, &mut num, slot(&mut failure));
            assert_eq!(status, abi::STATUS_OK, "{failure:?}");
            std::slice::from_raw_parts(out, num as usize).to_vec()
        }
    }

    /// Plans and computes; parameters are taken from `inputs` by name.
    pub fn call(&self, inputs: &Inputs, options: Options) -> Result<Outcome, Failure> {
        self.call_timed(inputs, options, 1).map(|(outcome, _)| outcome)
    }

    /// Best time of one compute, in seconds.
    pub fn time(&self, inputs: &Inputs, options: Options, repeats: usize) -> f64 {
        let timed = self.call_timed(inputs, options, repeats);
        timed.map_or_else(|failure| panic!("{failure:?}"), |(_, seconds)| seconds)
    }

    fn call_timed(
        &self,
        inputs: &Inputs,
        options: Options,
        repeats: usize,
    ) -> Result<(Outcome, f64), Failure> {
        let ports = self.ports();
        let input_ports: Vec<&abi::Port> =
            ports.iter().filter(|port| port.flags & abi::PORT_OUTPUT == 0).collect();
        let num_metrics = ports.len() - input_ports.len();
        let mut buffers: Vec<Option<Buffer>> =
            input_ports.iter().map(|port| input_buffer(port, inputs, options)).collect();
        let tensors: Vec<abi::Tensor> =
            buffers.iter_mut().map(|b| b.as_mut().map_or_else(absent, Buffer::tensor)).collect();
        let specs = self.params(&tensors)?;
        let mut params: Vec<Buffer> = specs
            .iter()
            .map(|(name, dtype)| Buffer::new(name, *dtype, &inputs[name], (0, 0)))
            .collect();
        let workspace_bytes = self.plan(&tensors)?;
        let mut grads: Vec<Option<Buffer>> = input_ports
            .iter()
            .map(|port| {
                let wanted = options.grads && port.flags & abi::PORT_DIFFERENTIABLE != 0;
                let name = text(port.name);
                let narrow = name == "student.head" && options.grad_dtype.bytes() < 4;
                let dtype = if narrow { abi::DLDataType::F32 } else { options.grad_dtype };
                wanted.then(|| grad_buffer(&name, &inputs[&name], dtype, options))
            })
            .collect();
        let mut param_grads: Vec<Buffer> = specs
            .iter()
            .map(|(name, dtype)| grad_buffer(name, &inputs[name], *dtype, options))
            .collect();
        let mut grad_tensors: Vec<abi::Tensor> =
            grads.iter_mut().map(|g| g.as_mut().map_or_else(absent, Buffer::tensor)).collect();
        if options.alias {
            grad_tensors[0] = abi::Tensor { flags: 0, ..tensors[0] };
        }
        let scalar = |name: &str| {
            let array = Array { shape: vec![1], data: vec![f64::NAN] };
            Buffer::new(name, abi::DLDataType::F32, &array, (0, 0))
        };
        let mut value = scalar("value");
        let mut metrics: Vec<Buffer> = (0..num_metrics).map(|_| scalar("metric")).collect();
        let value_tensor = value.tensor();
        let metric_tensors: Vec<abi::Tensor> = metrics.iter_mut().map(Buffer::tensor).collect();
        let param_tensors: Vec<abi::Tensor> = params.iter_mut().map(Buffer::tensor).collect();
        let param_grad_tensors: Vec<abi::Tensor> =
            param_grads.iter_mut().map(Buffer::tensor).collect();
        let lent = if options.workspace { workspace_bytes } else { 0 };
        let mut workspace = vec![[u64::MAX; 32]; (lent as usize).div_ceil(256)];
        let ctx = context();
        let call = abi::LossCall {
            struct_size: size_of::<abi::LossCall>() as u64,
            ctx: &raw const ctx,
            inputs: tensors.as_ptr(),
            num_inputs: tensors.len() as u64,
            grads: grad_tensors.as_ptr(),
            params: param_tensors.as_ptr(),
            param_grads: param_grad_tensors.as_ptr(),
            num_params: param_tensors.len() as u64,
            value: &raw const value_tensor,
            metrics: metric_tensors.as_ptr(),
            num_metrics: num_metrics as u64,
            normalizer: options.normalizer,
            grad_scale: options.grad_scale,
            workspace: workspace.as_mut_ptr().cast(),
            workspace_bytes: lent,
        };
        let (loss, mut best) = (self.loss(), f64::INFINITY);
        for _ in 0..repeats {
            let (mut failure, start) = (Failure::default(), std::time::Instant::now());
            // SAFETY: an active plugin; everything is borrowed for the call.
            let status = unsafe { (loss.compute)(self.plugin, &call, slot(&mut failure)) };
            best = best.min(start.elapsed().as_secs_f64());
            checked(status, failure)?;
        }
        let mut found = BTreeMap::new();
        for ((name, buffer), input) in
            input_ports.iter().map(|port| text(port.name)).zip(&grads).zip(&buffers)
        {
            let buffer = if options.alias && name == "student.logits" { input } else { buffer };
            if let Some(buffer) = buffer.as_ref().filter(|_| options.grads) {
                assert!(buffer.guards_hold(), "{name}: written outside the gradient");
                if buffer.dtype != abi::DLDataType::I64 {
                    found.insert(name, buffer.read());
                }
            }
        }
        for (buffer, (name, _)) in param_grads.iter().zip(&specs) {
            assert!(buffer.guards_hold(), "{name}: written outside the gradient");
            found.insert(name.clone(), buffer.read());
        }
        found.retain(|name, _| {
            let named = |port: &&&abi::Port| text(port.name) == *name;
            let port = input_ports.iter().find(named);
            port.is_none_or(|port| port.flags & abi::PORT_DIFFERENTIABLE != 0)
        });
        let outcome = Outcome {
            value: value.read()[0],
            metrics: metrics.iter().map(|metric| metric.read()[0]).collect(),
            grads: found,
        };
        Ok((outcome, best))
    }

    fn params(&self, tensors: &[abi::Tensor]) -> Result<Vec<(String, abi::DLDataType)>, Failure> {
        let Some(params) = self.loss().params else { return Ok(Vec::new()) };
        let (mut failure, mut out, mut num) = (Failure::default(), std::ptr::null(), 0);
        let (first, len) = (tensors.as_ptr(), tensors.len() as u64);
        // SAFETY: an active plugin; the list is plugin memory until deactivate().
        let status =
            unsafe { params(self.plugin, first, len, &mut out, &mut num, slot(&mut failure)) };
        checked(status, failure)?;
        if num == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: as above.
        let list = unsafe { std::slice::from_raw_parts(out, num as usize) };
        Ok(list.iter().map(|param| (text(param.value.name), param.value.t.dtype)).collect())
    }

    fn plan(&self, tensors: &[abi::Tensor]) -> Result<u64, Failure> {
        let (mut failure, mut bytes) = (Failure::default(), 0);
        let (first, len) = (tensors.as_ptr(), tensors.len() as u64);
        // SAFETY: an active plugin; all borrowed for the call.
        let status =
            unsafe { (self.loss().plan)(self.plugin, first, len, &mut bytes, slot(&mut failure)) };
        checked(status, failure)?;
        Ok(bytes)
    }
}

fn input_buffer(port: &abi::Port, inputs: &Inputs, options: Options) -> Option<Buffer> {
    let name = text(port.name);
    let array = inputs.get(&name)?;
    // SAFETY: plugin memory until destroy().
    let accepted = unsafe { std::slice::from_raw_parts(port.dtypes, port.num_dtypes as usize) };
    let dtype = if accepted.contains(&options.dtype) { options.dtype } else { accepted[0] };
    // A mask of floats is accepted too, but integers are what a host has.
    let integer = accepted.contains(&abi::DLDataType::I64);
    let dtype = if integer { abi::DLDataType::I64 } else { dtype };
    let mut buffer = Buffer::new(&name, dtype, array, options.layout);
    buffer.flags = abi::TENSOR_READ_ONLY;
    if port.flags & abi::PORT_HOST_MEMORY != 0 {
        buffer.device = abi::DLDevice::CPU;
    }
    Some(buffer)
}

fn grad_buffer(name: &str, array: &Array, dtype: abi::DLDataType, options: Options) -> Buffer {
    let start = options.accumulate.unwrap_or(f64::NAN);
    let array = Array { shape: array.shape.clone(), data: vec![start; array.data.len()] };
    let mut buffer = Buffer::new(name, dtype, &array, options.layout);
    if options.accumulate.is_some() {
        buffer.flags = abi::TENSOR_ACCUMULATE;
    }
    buffer
}

/// The plugin id of a golden file's loss.
pub fn plugin_id(loss: &str) -> String {
    match loss {
        "fkl" => "limbeck.kl".into(),
        // `limbeck.lwf` is the scheduler; ids are unique in a run.
        "lwf" => "limbeck.lwf-kl".into(),
        other => format!("limbeck.{}", other.replace('_', "-")),
    }
}

/// Creates, plans and computes.
pub fn run(
    loss: &str,
    config: &serde_json::Value,
    inputs: &Inputs,
    options: Options,
) -> Result<Outcome, Failure> {
    Instance::create(&plugin_id(loss), &config.to_string())?.call(inputs, options)
}
