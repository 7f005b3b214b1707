//! Devices that modules brought along: `lmb.device/1` by kind, and memory of theirs.
//!
//! The host links no driver. Refuses devices that no module serves. Memory is freed in its stream's order, so it must
//! drop on the step thread.

use crate::load::services::{ErrorSlot, host};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::sync::{PoisonError, RwLock};

static TABLES: RwLock<Vec<&'static abi::Device>> = RwLock::new(Vec::new());

/// Takes over a module's table for its kind of device; the first one for a kind stays.
pub(crate) fn register(table: &'static abi::Device) {
    let mut tables = TABLES.write().unwrap_or_else(PoisonError::into_inner);
    let taken = tables.iter().any(|t| t.device_type == table.device_type);
    if table.device_type > abi::DL_CPU && !taken {
        tables.push(table);
    }
}

/// Why a device did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    /// `LMB_DEVICE`, `LMB_OUT_OF_MEMORY`, …
    pub status: abi::Status,
    /// In words.
    pub message: String,
}

/// `cuda:0`, `cpu`.
pub fn name(device: abi::DLDevice) -> String {
    match device.device_type {
        abi::DL_CPU => "cpu".to_owned(),
        abi::DL_CUDA => format!("cuda:{}", device.device_id),
        other => format!("device {other}:{}", device.device_id),
    }
}

/// The `n`-th CUDA device.
pub fn cuda(n: u32) -> abi::DLDevice {
    abi::DLDevice { device_type: abi::DL_CUDA, device_id: n as i32 }
}

/// The stream of a device's step thread (R10): the per-thread one of CUDA, which candle uses.
pub(crate) fn stream(device: abi::DLDevice) -> abi::Stream {
    let per_thread = 2usize as *mut c_void;
    let handle = if device.device_type == abi::DL_CUDA { per_thread } else { std::ptr::null_mut() };
    abi::Stream { device, handle }
}

/// A context for host work on a device, outside any plugin call.
pub(crate) fn context(device: abi::DLDevice) -> abi::Ctx {
    abi::Ctx {
        struct_size: abi::struct_size::<abi::Ctx>(),
        host: host(),
        stream: stream(device),
        step: 0,
        micro_step: 0,
        rng_key: [0; 2],
        span: 0,
    }
}

/// Status of a call and its words as a result.
pub(crate) fn answer(
    doing: &str,
    call: impl FnOnce(*mut abi::Error) -> abi::Status,
) -> Result<(), DeviceError> {
    let slot = ErrorSlot::default();
    match call(slot.as_ptr()) {
        abi::STATUS_OK => Ok(()),
        status => {
            let said = slot.into_report().message;
            let words = if said.is_empty() { format!("status {status}") } else { said };
            Err(DeviceError { status, message: format!("{doing}: {words}") })
        }
    }
}

/// Whether a module brought a table for any device: whether this is a build for GPUs.
pub fn is_served() -> bool {
    !TABLES.read().unwrap_or_else(PoisonError::into_inner).is_empty()
}

fn table(device: abi::DLDevice) -> Result<&'static abi::Device, DeviceError> {
    let tables = TABLES.read().unwrap_or_else(PoisonError::into_inner);
    let found = tables.iter().copied().find(|t| t.device_type == device.device_type);
    found.ok_or_else(|| DeviceError {
        status: abi::STATUS_UNSUPPORTED,
        message:
            "no library of this build serves GPUs (plugins/cuda/build.sh builds one that does)"
                .to_owned(),
    })
}

/// What a device is called, and its bytes of memory.
///
/// # Errors
/// No such device, none at all, or one that cannot be used; in words for a user.
pub fn describe(device: abi::DLDevice) -> Result<(String, u64), DeviceError> {
    let (table, ctx, mut num) = (table(device)?, context(device), 0);
    // SAFETY: [any]; context, place and slot live during the call.
    answer("GPUs", |e| unsafe { (table.count)(table, &ctx, &mut num, e) }).map_err(plain)?;
    if device.device_id < 0 || device.device_id as u32 >= num {
        let message = format!("there {} {num} GPU{}", are(num), if num == 1 { "" } else { "s" });
        return Err(DeviceError { status: abi::STATUS_DEVICE, message });
    }
    let (mut name, mut bytes) = (abi::Str::EMPTY, 0);
    // SAFETY: [any]; as above.
    answer("GPU", |e| unsafe { (table.describe)(table, &ctx, &mut name, &mut bytes, e) })
        .map_err(plain)?;
    // SAFETY: R6: text of the module, which is never unloaded.
    Ok((unsafe { name.text() }.unwrap_or_default().to_owned(), bytes))
}

fn are(num: u32) -> &'static str {
    if num == 1 { "is" } else { "are" }
}

/// The words alone: nothing was being done.
fn plain(error: DeviceError) -> DeviceError {
    let message = error.message.split_once(": ").map_or("", |(_, rest)| rest).to_owned();
    DeviceError { message, ..error }
}

/// Makes a device ready on this thread, which is its step thread from now on. The CPU is always ready.
///
/// # Errors
/// What the driver says.
pub(crate) fn open(device: abi::DLDevice) -> Result<(), DeviceError> {
    if device == abi::DLDevice::CPU {
        return Ok(());
    }
    let (table, ctx) = (table(device)?, context(device));
    // SAFETY: [step]: this thread is the one; context and slot live during the call.
    answer(&name(device), |e| unsafe { (table.open)(table, &ctx, e) })
}

/// Memory of a device, 256-byte aligned.
pub(crate) struct DeviceMemory {
    table: &'static abi::Device,
    device: abi::DLDevice,
    address: *mut c_void,
}

impl DeviceMemory {
    /// That many bytes (1 for 0), garbage.
    ///
    /// # Errors
    /// No room.
    pub fn new(device: abi::DLDevice, bytes: usize) -> Result<Self, DeviceError> {
        let (table, ctx) = (table(device)?, context(device));
        let mut address = std::ptr::null_mut();
        let (wanted, out) = (bytes.max(1) as u64, &raw mut address);
        let doing = format!("{bytes} bytes on {}", name(device));
        // SAFETY: [step]; context, place and slot live during the call.
        answer(&doing, |e| unsafe { (table.alloc)(table, &ctx, wanted, out, e) })?;
        Ok(Self { table, device, address })
    }

    /// Its first byte.
    pub fn address(&self) -> *mut c_void {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let ctx = context(self.device);
        // SAFETY: [step]; of `alloc`, freed once.
        unsafe { (self.table.free)(self.table, &ctx, self.address) };
    }
}

/// Clears device memory.
///
/// # Errors
/// What the driver says.
///
/// # Safety
/// `to` is memory of the device, of that many bytes.
pub(crate) unsafe fn clear(
    device: abi::DLDevice,
    to: *mut c_void,
    bytes: usize,
) -> Result<(), DeviceError> {
    if bytes == 0 {
        return Ok(());
    }
    let (table, ctx) = (table(device)?, context(device));
    // SAFETY: [step]; the caller's promise.
    answer("clear", |e| unsafe { (table.clear)(table, &ctx, to, bytes as u64, e) })
}

/// Copies bytes between two places, at least one of them a device.
///
/// # Errors
/// Two devices of different kind or number; what the driver says.
///
/// # Safety
/// Both hold that many bytes and do not overlap.
pub(crate) unsafe fn transfer(
    to: (abi::DLDevice, *mut c_void),
    from: (abi::DLDevice, *const c_void),
    bytes: usize,
) -> Result<(), DeviceError> {
    if bytes == 0 {
        return Ok(());
    }
    let device = if to.0 == abi::DLDevice::CPU { from.0 } else { to.0 };
    let (table, ctx) = (table(device)?, context(device));
    let (doing, run) = match (to.0 == abi::DLDevice::CPU, from.0 == abi::DLDevice::CPU) {
        (true, _) => ("copy from the device", table.download),
        (false, true) => ("copy to the device", table.upload),
        (false, false) if to.0 == from.0 => ("copy on the device", table.copy),
        (false, false) => {
            let message = format!("cannot copy from {} to {}", name(from.0), name(to.0));
            return Err(DeviceError { status: abi::STATUS_UNSUPPORTED, message });
        }
    };
    // SAFETY: [step]; the caller's promise.
    answer(doing, |e| unsafe { run(table, &ctx, to.1, from.1, bytes as u64, e) })
}
