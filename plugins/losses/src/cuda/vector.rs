//! `lmb.vector/1` on GPUs: the arithmetic of the host's optimizer, lists of tensors in few launches.
//!
//! Takes contiguous f32, f16 and bf16 of one GPU. Only `dot` waits, as the contract says; it also is the only
//! one that takes device memory, from the stream's pool, and gives it back.

use super::arguments::{TENSORS, TotalArgs, VectorArgs, VectorTensor, type_number};
use super::launch::{Device, device};
use super::plan::{SUM_SHARED, Shape, is_taken};
use limbeck_sdk::{DType, Error, Result, View, abi};
use std::ffi::c_void;

/// Elements of a block: `kChunk` of `vector.cu`.
const CHUNK: usize = 64 * 1024;
const SHAPE: Shape = Shape { threads: 256, cluster: 1, shared_bytes: SUM_SHARED };
const AXPBY: i32 = 0;
const MUL: i32 = 1;

/// The table; it is there whether or not a GPU is.
pub static TABLE: abi::Vector = abi::Vector {
    struct_size: abi::struct_size::<abi::Vector>(),
    device_type: abi::DL_CUDA,
    reserved: 0,
    axpby,
    mul,
    dot,
    adamw: Some(adamw),
};

/// Where a call runs.
struct Place {
    device: &'static Device,
    stream: *mut c_void,
}

/// Runs `f` on the GPU of the context; failures and panics become a status.
///
/// # Safety
/// `ctx` is a context of the contract, `error` a slot of its host or NULL.
unsafe fn run(
    ctx: *const abi::Ctx,
    error: *mut abi::Error,
    f: impl FnOnce(&Place) -> Result<()>,
) -> abi::Status {
    let body = |ctx: &abi::Ctx| {
        let target = ctx.stream.device;
        if target.device_type != abi::DL_CUDA {
            return Err(Error::unsupported("this table serves GPUs"));
        }
        f(&Place { device: device(target.device_id)?, stream: ctx.stream.handle })
    };
    // SAFETY: the caller's promise.
    unsafe { super::table::run("lmb.vector/1", ctx, error, body) }
}

/// A tensor of a list.
#[derive(Clone, Copy)]
struct Operand {
    data: *mut c_void,
    length: usize,
    dtype: i32,
}

impl Place {
    /// Entry `i` of a list.
    ///
    /// # Safety
    /// R5: a list of more than `i` tensors.
    unsafe fn operand(&self, list: *const abi::Tensor, i: usize) -> Result<Operand> {
        // SAFETY: the caller's promise.
        let view = unsafe { View::from_abi(&*list.add(i)) }?;
        let view = view.ok_or_else(|| Error::invalid_argument(format!("entry {i} is absent")))?;
        let here = abi::DLDevice { device_type: abi::DL_CUDA, device_id: self.device.ordinal() };
        if view.device() != here {
            let message = format!("not in the memory of GPU {}", self.device.ordinal());
            return Err(Error::invalid_argument(message).tensor(view.name()));
        }
        if !is_taken(view.dtype()) || !view.is_contiguous() {
            let message = format!("{} is not contiguous f32, f16 or bf16", view.dtype().name());
            return Err(Error::unsupported(message).tensor(view.name()));
        }
        let dtype = type_number(view.dtype()).unwrap_or_default();
        Ok(Operand { data: view.as_ptr().cast_mut(), length: view.elements(), dtype })
    }

    /// Launches `kernel` over `n` tensors that `tensor` describes.
    fn each(
        &self,
        kernel: &str,
        n: usize,
        fixed: &VectorArgs,
        mut tensor: impl FnMut(usize) -> Result<VectorTensor>,
    ) -> Result<()> {
        for first in (0..n).step_by(TENSORS) {
            let mut list = Box::new(fixed.clone());
            let mut chunks = 0;
            for i in first..n.min(first + TENSORS) {
                let described = VectorTensor { first_chunk: chunks as i32, ..tensor(i)? };
                if described.length > 0 {
                    list.tensors[list.count as usize] = described;
                    list.count += 1;
                    chunks += (described.length as usize).div_ceil(CHUNK);
                }
            }
            // SAFETY: arguments of the vector kernels; tensors of the call on this device, checked one by one.
            unsafe { self.device.launch(kernel, SHAPE, chunks, &*list, self.stream) }?;
        }
        Ok(())
    }
}

fn arguments(op: i32, a: f64, b: f64) -> VectorArgs {
    VectorArgs {
        tensors: [VectorTensor::EMPTY; TENSORS],
        partial: std::ptr::null_mut(),
        count: 0,
        op,
        a: a as f32,
        b: b as f32,
        beta1: 0.0,
        beta2: 0.0,
        eps: 0.0,
        grad_scale: 1.0,
        correction1: 1.0,
        correction2: 1.0,
    }
}

fn same_length(a: Operand, b: Operand, i: usize) -> Result<()> {
    if a.length == b.length {
        return Ok(());
    }
    let message = format!("entry {i} has {} and {} elements", a.length, b.length);
    Err(Error::invalid_argument(message))
}

unsafe extern "C" fn axpby(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    a: f64,
    x: *const abi::Tensor,
    b: f64,
    y: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        place.each("vector_combine", n as usize, &arguments(AXPBY, a, b), |i| {
            // SAFETY: lists of n entries; x may be NULL if it is not read.
            let to = unsafe { place.operand(y, i) }?;
            // SAFETY: as above.
            let from = if a == 0.0 { to } else { unsafe { place.operand(x, i) }? };
            same_length(from, to, i)?;
            let (length, x_type, y_type) = (to.length as i64, from.dtype, to.dtype);
            Ok(VectorTensor {
                x: from.data,
                y: to.data,
                length,
                x_type,
                y_type,
                ..VectorTensor::EMPTY
            })
        })
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

unsafe extern "C" fn mul(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    a: f64,
    x: *const abi::Tensor,
    y: *const abi::Tensor,
    b: f64,
    z: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        place.each("vector_combine", n as usize, &arguments(MUL, a, b), |i| {
            // SAFETY: lists of n entries.
            let (x, y, z) =
                unsafe { (place.operand(x, i)?, place.operand(y, i)?, place.operand(z, i)?) };
            same_length(x, z, i)?;
            same_length(y, z, i)?;
            Ok(VectorTensor {
                x: x.data,
                y: y.data,
                z: z.data,
                length: z.length as i64,
                x_type: x.dtype,
                y_type: y.dtype,
                z_type: z.dtype,
                ..VectorTensor::EMPTY
            })
        })
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

/// Device memory of a stream's pool.
struct Pooled<'a> {
    place: &'a Place,
    address: u64,
}

impl<'a> Pooled<'a> {
    fn new(place: &'a Place, bytes: usize) -> Result<Self> {
        let (driver, mut address) = (place.device.driver(), 0);
        // SAFETY: an out-parameter of ours, the host's stream.
        let result = unsafe { (driver.alloc)(&mut address, bytes, place.stream) };
        driver.check("cuMemAllocAsync", result)?;
        Ok(Self { place, address })
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated in the same stream; what uses it was put there before.
        unsafe { (self.place.device.driver().free)(self.address, self.place.stream) };
    }
}

unsafe extern "C" fn dot(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    x: *const abi::Tensor,
    y: *const abi::Tensor,
    out: *mut f64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let mut pairs = Vec::with_capacity(n as usize);
        for i in 0..n as usize {
            // SAFETY: lists of n entries.
            let (x, y) = unsafe { (place.operand(x, i)?, place.operand(y, i)?) };
            same_length(x, y, i)?;
            pairs.push((x, y));
        }
        let total = total(place, &pairs)?;
        // SAFETY: the host's out-parameter.
        unsafe { out.write(total) };
        Ok(())
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

fn total(place: &Place, pairs: &[(Operand, Operand)]) -> Result<f64> {
    let chunks: usize = pairs.iter().map(|(x, _)| x.length.div_ceil(CHUNK)).sum();
    if chunks == 0 {
        return Ok(0.0);
    }
    let memory = Pooled::new(place, (chunks + 1) * size_of::<f64>())?;
    let partial = memory.address as *mut f64;
    let mut done = 0;
    for list in pairs.chunks(TENSORS) {
        let fixed =
            VectorArgs { partial: partial.wrapping_add(done).cast(), ..arguments(AXPBY, 1.0, 0.0) };
        place.each("vector_dot", list.len(), &fixed, |i| {
            let (x, y) = list[i];
            let (x_type, y_type, length) = (x.dtype, y.dtype, x.length as i64);
            Ok(VectorTensor { x: x.data, y: y.data, length, x_type, y_type, ..VectorTensor::EMPTY })
        })?;
        done += list.iter().map(|(x, _)| x.length.div_ceil(CHUNK)).sum::<usize>();
    }
    let sum = partial.wrapping_add(chunks).cast::<c_void>();
    let arguments = TotalArgs { partial: partial.cast(), count: chunks as i64, total: sum };
    // SAFETY: arguments of `vector_total`, in memory of this stream.
    unsafe { place.device.launch("vector_total", SHAPE, 1, &arguments, place.stream) }?;
    let (driver, mut total) = (place.device.driver(), 0.0f64);
    let to = (&raw mut total).cast();
    // SAFETY: eight bytes of ours, which stay until the wait is over.
    let copied = unsafe { (driver.read_back)(to, sum as u64, size_of::<f64>(), place.stream) };
    driver.check("cuMemcpyDtoHAsync", copied)?;
    // SAFETY: the host's stream.
    driver.check("cuStreamSynchronize", unsafe { (driver.wait)(place.stream) })?;
    Ok(total)
}

unsafe extern "C" fn adamw(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    step: *const abi::Adamw,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        // SAFETY: a call of the contract.
        let step = unsafe { &*step };
        let correction = |beta: f64| (1.0 - beta.powf(step.t as f64)) as f32;
        let fixed = VectorArgs {
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            eps: step.eps as f32,
            grad_scale: step.grad_scale as f32,
            correction1: correction(step.beta1),
            correction2: correction(step.beta2),
            ..arguments(AXPBY, 0.0, 0.0)
        };
        place.each("vector_adamw", n as usize, &fixed, |i| {
            // SAFETY: lists of n entries; masters may be NULL.
            unsafe { adamw_tensor(place, step, i) }
        })
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

/// # Safety
/// `step` is of the contract, with more than `i` entries.
unsafe fn adamw_tensor(place: &Place, step: &abi::Adamw, i: usize) -> Result<VectorTensor> {
    // SAFETY: the caller's promise.
    let of = |list| unsafe { place.operand(list, i) };
    let (x, y, m, v) = (of(step.params)?, of(step.grads)?, of(step.m)?, of(step.v)?);
    let master = if step.masters.is_null() { None } else { Some(of(step.masters)?) };
    let single = type_number(DType::F32).unwrap_or_default();
    for moment in [Some(m), Some(v), master].into_iter().flatten() {
        same_length(moment, x, i)?;
        if moment.dtype != single {
            return Err(Error::invalid_argument(format!(
                "moments and masters of entry {i} are f32"
            )));
        }
    }
    same_length(y, x, i)?;
    // SAFETY: the caller's promise: one number a tensor.
    let (lr, decay) = unsafe { (*step.lr.add(i), *step.weight_decay.add(i)) };
    Ok(VectorTensor {
        x: x.data,
        y: y.data,
        z: master.map_or(std::ptr::null_mut(), |master| master.data),
        m: m.data,
        v: v.data,
        length: x.length as i64,
        x_type: x.dtype,
        y_type: y.dtype,
        z_type: single,
        lr: lr as f32,
        decay: decay as f32,
        first_chunk: 0,
    })
}
