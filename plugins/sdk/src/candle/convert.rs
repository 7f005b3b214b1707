//! Between views and candle tensors: copies in, exports without copy out, gradients into host buffers.
//!
//! On a GPU everything is ordered by the stream of the call and nothing waits. A device that this build cannot serve is
//! refused, never silently replaced.

use super::gpu;
use crate::vector::Vector;
use crate::{Context, DType, Error, GradView, Output, Result, View};
use candle_core::{CpuStorage, Device, DeviceLocation, InplaceOp1, Layout, Storage, Tensor};
use half::{bf16, f16};
use limbeck_abi as abi;
use std::cell::Cell;
use std::ffi::c_void;

/// The element type at the boundary.
pub(super) fn dtype(dtype: candle_core::DType) -> Result<DType> {
    Ok(match dtype {
        candle_core::DType::F32 => DType::F32,
        candle_core::DType::F64 => DType::F64,
        candle_core::DType::F16 => DType::F16,
        candle_core::DType::BF16 => DType::BF16,
        candle_core::DType::I64 => DType::I64,
        candle_core::DType::I32 => DType::I32,
        candle_core::DType::U8 => DType::U8,
        candle_core::DType::U32 => DType::U32,
        other => return Err(Error::unsupported(format!("element type {other:?}"))),
    })
}

/// The candle device of an instance.
pub(super) fn device(device: abi::DLDevice) -> Result<Device> {
    match device.device_type {
        abi::DL_CPU => Ok(Device::Cpu),
        abi::DL_CUDA => gpu::device(device.device_id),
        other => Err(Error::unsupported(format!("device type {other}"))),
    }
}

/// Where a candle device is, at the boundary.
pub(super) fn place(device: &Device) -> abi::DLDevice {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => {
            abi::DLDevice { device_type: abi::DL_CUDA, device_id: gpu_id as i32 }
        }
        _ => abi::DLDevice::CPU,
    }
}

fn sizes(view: &View<'_>) -> Vec<usize> {
    view.shape().iter().map(|d| (*d).max(0) as usize).collect()
}

/// The element type in candle.
pub(super) fn candle_dtype(dtype: DType) -> candle_core::DType {
    match dtype {
        DType::F32 => candle_core::DType::F32,
        DType::F64 => candle_core::DType::F64,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
        DType::I64 => candle_core::DType::I64,
        DType::I32 => candle_core::DType::I32,
        DType::U8 => candle_core::DType::U8,
        DType::U32 => candle_core::DType::U32,
    }
}

/// A copy of a view on the model's device, in its own element type; from a GPU it is made there by the host.
pub(super) fn input(view: &View<'_>, device: &Device, context: &Context<'_>) -> Result<Tensor> {
    if view.device() == abi::DLDevice::CPU {
        return tensor(view, device);
    }
    // SAFETY: the copy below writes every element, in the stream's order, before candle reads one.
    let copy = unsafe { Tensor::empty(sizes(view), candle_dtype(view.dtype()), device) }?;
    if view.elements() > 0 {
        with_abi(&copy, |to| context.copy(to, view.abi()))??;
    }
    Ok(copy)
}

/// Calls `f` with a contiguous tensor as the contract sees it.
fn with_abi<R>(tensor: &Tensor, f: impl FnOnce(&abi::Tensor) -> R) -> Result<R> {
    let mut shape: Vec<i64> = tensor.dims().iter().map(|d| *d as i64).collect();
    let mut strides = crate::views::contiguous_strides(&shape);
    let view = abi::Tensor {
        name: abi::Str::EMPTY,
        t: abi::DLTensor {
            data: address(tensor)?,
            device: place(tensor.device()),
            ndim: shape.len() as i32,
            dtype: dtype(tensor.dtype())?.dl(),
            shape: shape.as_mut_ptr(),
            strides: strides.as_mut_ptr(),
            byte_offset: 0,
        },
        flags: 0,
        reserved: 0,
    };
    Ok(f(&view))
}

/// A copy of a view in CPU memory, in its own element type.
pub(super) fn tensor(view: &View<'_>, device: &Device) -> Result<Tensor> {
    let shape = sizes(view);
    Ok(match view.dtype() {
        DType::F32 => Tensor::from_vec(view.to_vec::<f32>()?, shape, device)?,
        DType::F64 => Tensor::from_vec(view.to_vec::<f64>()?, shape, device)?,
        DType::F16 => Tensor::from_vec(view.to_vec::<f16>()?, shape, device)?,
        DType::BF16 => Tensor::from_vec(view.to_vec::<bf16>()?, shape, device)?,
        DType::I64 => Tensor::from_vec(view.to_vec::<i64>()?, shape, device)?,
        DType::I32 => Tensor::from_vec(view.to_vec::<i32>()?, shape, device)?,
        DType::U8 => Tensor::from_vec(view.to_vec::<u8>()?, shape, device)?,
        DType::U32 => Tensor::from_vec(view.to_vec::<u32>()?, shape, device)?,
    })
}

/// Finds the address of a storage through the one public way to a `&mut` of it, so that the pointer may be written.
struct Address(Cell<*mut c_void>);

impl InplaceOp1 for Address {
    fn name(&self) -> &'static str {
        "address"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            candle_core::bail!("address of a tensor that is not contiguous")
        };
        macro_rules! pointer {
            ($v:expr) => {
                $v.as_mut_ptr().wrapping_add(start).cast()
            };
        }
        self.0.set(match storage {
            CpuStorage::F32(v) => pointer!(v),
            CpuStorage::F64(v) => pointer!(v),
            CpuStorage::F16(v) => pointer!(v),
            CpuStorage::BF16(v) => pointer!(v),
            CpuStorage::I64(v) => pointer!(v),
            CpuStorage::I32(v) => pointer!(v),
            CpuStorage::U8(v) => pointer!(v),
            CpuStorage::U32(v) => pointer!(v),
            _ => candle_core::bail!("address of an element type that does not cross the boundary"),
        });
        Ok(())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &mut candle_core::CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            candle_core::bail!("address of a tensor that is not contiguous")
        };
        self.0.set(gpu::address(storage, start)?);
        Ok(())
    }
}

/// Address of the first element of a contiguous tensor. It holds as long as the storage lives: candle writes
/// variables in place.
pub(super) fn address(tensor: &Tensor) -> Result<*mut c_void> {
    let address = Address(Cell::new(std::ptr::null_mut()));
    tensor.inplace_op1(&address)?;
    Ok(address.0.get())
}

/// Hands a tensor out without a copy, unless it is not contiguous or its memory is one of `not_these` (parameters,
/// which the host overwrites while an output must stay as it is).
pub(super) fn output(tensor: &Tensor, not_these: &[*mut c_void]) -> Result<Output> {
    let mut tensor = tensor.detach().contiguous()?;
    let dtype = dtype(tensor.dtype())?;
    let mut data = address(&tensor)?;
    if not_these.contains(&data) {
        tensor = tensor.copy()?;
        data = address(&tensor)?;
    }
    let shape = tensor.dims().to_vec();
    let place = place(tensor.device());
    // SAFETY: contiguous memory of the tensor that the box keeps alive; nothing writes it in place.
    Ok(unsafe { Output::from_raw(data, dtype, place, &shape, Box::new(tensor)) })
}

/// Calls `f` with the elements of a contiguous f32 or f64 CPU tensor.
fn with_values<R>(
    tensor: &Tensor,
    f32s: impl FnOnce(&[f32]) -> R,
    f64s: impl FnOnce(&[f64]) -> R,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::internal("a contiguous tensor without offsets"))?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(v)) => Ok(f32s(&v[start..end])),
        Storage::Cpu(CpuStorage::F64(v)) => Ok(f64s(&v[start..end])),
        _ => Err(Error::unsupported("expected an f32 or f64 tensor in host memory")),
    }
}

/// Writes or accumulates a gradient; `None` is exact zero.
pub(super) fn put_grad(
    mut to: GradView<'_>,
    scale: f64,
    grad: Option<&Tensor>,
    context: &Context<'_>,
) -> Result<()> {
    if to.device() != abi::DLDevice::CPU {
        return put_on_device(&to, scale, grad, context);
    }
    let Some(grad) = grad else { return to.put_zeros() };
    let grad = match grad.dtype() {
        candle_core::DType::F32 | candle_core::DType::F64 => grad.clone(),
        _ => grad.to_dtype(candle_core::DType::F32)?,
    };
    if to.dtype() == DType::F32 && to.is_contiguous() && grad.dtype() == candle_core::DType::F32 {
        let (add, name, target) = (to.accumulate(), to.name(), to.slice_mut::<f32>()?);
        return with_values(&grad, |values| put_f32(target, scale as f32, values, add), |_| false)?
            .then_some(())
            .ok_or_else(|| Error::invalid_argument("gradient of another size").tensor(name));
    }
    let (mut first, mut second) = (to, to);
    with_values(&grad, |v| first.put(scale, v), |v| second.put(scale, v))?
}

/// As [`put_grad`], by the device's `lmb.vector/1`.
fn put_on_device(
    to: &GradView<'_>,
    scale: f64,
    grad: Option<&Tensor>,
    context: &Context<'_>,
) -> Result<()> {
    let (vector, target) = (Vector::new(context)?, [to.abi()]);
    match grad {
        None if to.accumulate() => Ok(()),
        None => vector.scale(0.0, &target),
        Some(grad) => {
            let keep = if to.accumulate() { 1.0 } else { 0.0 };
            let add = |x: &abi::Tensor| vector.axpby(scale, std::slice::from_ref(x), keep, &target);
            with_abi(&grad.detach().contiguous()?, add)?
        }
    }
}

fn put_f32(to: &mut [f32], scale: f32, values: &[f32], add: bool) -> bool {
    if to.len() != values.len() {
        return false;
    }
    match (add, scale == 1.0) {
        (false, true) => to.copy_from_slice(values),
        (false, false) => to.iter_mut().zip(values).for_each(|(t, v)| *t = scale * v),
        (true, true) => to.iter_mut().zip(values).for_each(|(t, v)| *t += v),
        (true, false) => to.iter_mut().zip(values).for_each(|(t, v)| *t += scale * v),
    }
    true
}
