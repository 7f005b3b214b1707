//! `tensor_alloc` and `tensor_copy`.
//!
//! Memory is zeroed, contiguous, aligned to 256 bytes and freed by the tensor's own deleter. Refuses devices that no
//! module serves, negative or overflowing shapes, copies between unequal shapes or types, and gaps off the CPU.

use super::slot::{lossy, report};
use crate::device::{self, DeviceError, DeviceMemory};
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

static LIVE: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
/// Allocations until one fails; negative = never.
static FAIL_AFTER: AtomicI64 = AtomicI64::new(-1);

/// Bytes that plugins hold through `tensor_alloc`.
pub fn live_bytes() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// For the conformance checker: the `n`th `tensor_alloc` from now and all after it fail; `None` ends that.
pub fn fail_allocations_after(n: Option<u64>) {
    FAIL_AFTER.store(n.map_or(-1, |n| n.min(i64::MAX as u64) as i64), Ordering::Relaxed);
}

/// Allocations that failed because the checker asked for it.
pub fn failed_allocations() -> u64 {
    FAILED.load(Ordering::Relaxed)
}

fn must_fail() -> bool {
    let left = FAIL_AFTER.load(Ordering::Relaxed);
    if left > 0 {
        FAIL_AFTER.store(left - 1, Ordering::Relaxed);
    }
    FAILED.fetch_add(u64::from(left == 0), Ordering::Relaxed);
    left == 0
}

/// Everything that one allocation needs to be described and freed.
struct Block {
    layout: Layout,
    /// `None`: CPU memory of that layout.
    on_device: Option<DeviceMemory>,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

unsafe extern "C" fn delete(tensor: *mut abi::DLManagedTensorVersioned) {
    super::guard((), || {
        if tensor.is_null() {
            return;
        }
        // SAFETY: made by `tensor_alloc`; the plugin calls the deleter once (R5).
        let tensor = unsafe { Box::from_raw(tensor) };
        // SAFETY: as above.
        let block = unsafe { Box::from_raw(tensor.manager_ctx.cast::<Block>()) };
        LIVE.fetch_sub(block.layout.size() as u64, Ordering::Relaxed);
        if block.on_device.is_none() {
            // SAFETY: allocated with this layout in `allocate`.
            unsafe { dealloc(tensor.dl_tensor.data.cast(), block.layout) };
        }
    });
}

fn allocate(
    device: abi::DLDevice,
    shape: Vec<i64>,
    dtype: abi::DLDataType,
) -> Result<*mut abi::DLManagedTensorVersioned, DeviceError> {
    let refuse = |status, why: &str| DeviceError { status, message: why.to_owned() };
    let layout = shape
        .iter()
        .try_fold(dtype.bytes(), |bytes, d| bytes.checked_mul(usize::try_from(*d).ok()?))
        .and_then(|bytes| Layout::from_size_align(bytes.max(1), 256).ok())
        .ok_or_else(|| refuse(abi::STATUS_INVALID_ARGUMENT, "a negative or overflowing shape"))?;
    if must_fail() {
        let why = "out of memory (asked for by the checker)";
        return Err(refuse(abi::STATUS_OUT_OF_MEMORY, why));
    }
    let (on_device, data) = if device == abi::DLDevice::CPU {
        // SAFETY: the size is not 0.
        (None, unsafe { alloc_zeroed(layout) })
    } else {
        let memory = DeviceMemory::new(device, layout.size())?;
        let data: *mut u8 = memory.address().cast();
        // SAFETY: fresh memory of that size.
        unsafe { device::clear(device, data.cast(), layout.size()) }?;
        (Some(memory), data)
    };
    if data.is_null() {
        return Err(refuse(abi::STATUS_OUT_OF_MEMORY, "out of memory"));
    }
    LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
    let strides = crate::tensor::contiguous_strides(&shape);
    let mut block = Box::new(Block { layout, on_device, shape, strides });
    let dl_tensor = abi::DLTensor {
        data: data.cast(),
        device,
        ndim: block.shape.len() as i32,
        dtype,
        shape: block.shape.as_mut_ptr(),
        strides: block.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    Ok(Box::into_raw(Box::new(abi::DLManagedTensorVersioned {
        version: abi::DLPackVersion { major: 1, minor: 0 },
        manager_ctx: Box::into_raw(block).cast(),
        deleter: Some(delete),
        flags: 0,
        dl_tensor,
    })))
}

pub(super) unsafe extern "C" fn tensor_alloc(
    _: *const abi::Host,
    wanted: *const abi::Alloc,
    out: *mut *mut abi::DLManagedTensorVersioned,
    error: *mut abi::Error,
) -> abi::Status {
    super::guard(abi::STATUS_INTERNAL, || {
        // SAFETY: R8: the slot of the running call or NULL.
        let fail = |status, text: &str| unsafe { report(error, status, text) };
        if wanted.is_null() || out.is_null() || !abi::has!(wanted, abi::Alloc, tag) {
            return fail(abi::STATUS_INVALID_ARGUMENT, "tensor_alloc: incomplete arguments");
        }
        // SAFETY: R3, R5: checked size, alive during the call.
        let wanted = unsafe { &*wanted };
        let ndim = usize::try_from(wanted.ndim).unwrap_or(usize::MAX);
        if ndim > 64 || (ndim > 0 && wanted.shape.is_null()) {
            return fail(abi::STATUS_INVALID_ARGUMENT, "tensor_alloc: bad number of dimensions");
        }
        let shape = match ndim {
            0 => Vec::new(),
            // SAFETY: R5: `shape` has `ndim` entries.
            _ => unsafe { std::slice::from_raw_parts(wanted.shape, ndim) }.to_vec(),
        };
        match allocate(wanted.stream.device, shape, wanted.dtype) {
            Ok(tensor) => {
                // SAFETY: checked above; the plugin's place for the result.
                unsafe { *out = tensor };
                abi::STATUS_OK
            }
            Err(why) => {
                // SAFETY: R6.
                let tag = unsafe { lossy(wanted.tag) };
                fail(why.status, &format!("tensor_alloc for `{tag}`: {why}"))
            }
        }
    })
}

pub(super) unsafe extern "C" fn tensor_copy(
    _: *const abi::Host,
    _: *const abi::Ctx,
    dst: *const abi::Tensor,
    src: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    super::guard(abi::STATUS_INTERNAL, || {
        // SAFETY: R8.
        let fail = |status, text: &str| unsafe { report(error, status, text) };
        if dst.is_null() || src.is_null() {
            return fail(abi::STATUS_INVALID_ARGUMENT, "tensor_copy: NULL tensor");
        }
        // SAFETY: R5: both views live during the call.
        let (dst, src) = unsafe { (&(*dst).t, &(*src).t) };
        // SAFETY: as above.
        let views = unsafe { (Tensor::borrowed(dst), Tensor::borrowed(src)) };
        let (Some(dst), Some(src)) = views else {
            return fail(abi::STATUS_INVALID_ARGUMENT, "tensor_copy: not a valid tensor");
        };
        match copy_strided(&dst, &src) {
            Ok(()) => abi::STATUS_OK,
            Err(error) => fail(error.status, &format!("tensor_copy: {error}")),
        }
    })
}

/// `dst = src`, any strides on the CPU, none where a device takes part.
///
/// # Errors
/// Unequal shapes or types, gaps on a device, what the driver says.
pub fn copy_strided(dst: &Tensor, src: &Tensor) -> Result<(), DeviceError> {
    let on_cpu = dst.device() == abi::DLDevice::CPU && src.device() == abi::DLDevice::CPU;
    let fits = dst.shape() == src.shape() && dst.dtype() == src.dtype();
    if !on_cpu || !fits || (dst.is_contiguous() && src.is_contiguous()) {
        return dst.copy_from(src);
    }
    if dst.elements() == 0 {
        return Ok(());
    }
    let size = dst.dtype().bytes();
    let mut index = vec![0i64; dst.shape().len()];
    loop {
        let offset = |t: &Tensor| {
            let elements: i64 = index.iter().zip(t.strides()).map(|(i, s)| i * s).sum();
            t.address().cast::<u8>().wrapping_offset(elements as isize * size as isize)
        };
        // SAFETY: the index lies inside the shape, so both addresses lie inside the views' memory.
        unsafe { std::ptr::copy(offset(src).cast_const(), offset(dst), size) };
        if !advance(&mut index, dst.shape()) {
            return Ok(());
        }
    }
}

/// Next index in row-major order; `false` after the last.
fn advance(index: &mut [i64], shape: &[i64]) -> bool {
    for (i, d) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < *d {
            return true;
        }
        *i = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_transposed_view_is_copied_element_by_element() {
        let src = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let mut view = src.view("src", 0).t;
        let (mut shape, mut strides) = ([3i64, 2], [1i64, 3]);
        view.shape = shape.as_mut_ptr();
        view.strides = strides.as_mut_ptr();
        // SAFETY: a transposed view of live memory.
        let transposed = unsafe { Tensor::borrowed(&view) }.unwrap();
        let dst = Tensor::zeros(DType::F32, &[3, 2]);
        copy_strided(&dst, &transposed).unwrap();
        assert_eq!(dst.data::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(copy_strided(&src, &dst).is_err());
    }

    #[test]
    fn allocations_are_counted_and_a_bad_shape_is_refused() {
        let before = live_bytes();
        let cpu = abi::DLDevice::CPU;
        let tensor = allocate(cpu, vec![3, 5], abi::DLDataType::F32).unwrap();
        assert_eq!(live_bytes(), before + 60);
        // SAFETY: just made, deleted once.
        unsafe { delete(tensor) };
        assert_eq!(live_bytes(), before);
        assert!(allocate(cpu, vec![-1], abi::DLDataType::F32).is_err());
        assert!(allocate(cpu, vec![i64::MAX, 2], abi::DLDataType::F64).is_err());
    }
}
