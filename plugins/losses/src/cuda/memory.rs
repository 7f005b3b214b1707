//! `lmb.device/1` on GPUs: the memory that the host trains in.
//!
//! Uploads go through a ring of pinned memory, so that they neither wait for the GPU nor keep the caller's memory.
//! Only `download` waits, and an upload that finds the whole ring on its way.

use super::driver::{Driver, Event, driver};
use super::launch::look;
use super::table;
use limbeck_sdk::{Error, Result, abi};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// The table; it is there whether or not a GPU is.
pub static TABLE: abi::Device = abi::Device {
    struct_size: abi::struct_size::<abi::Device>(),
    device_type: abi::DL_CUDA,
    reserved: 0,
    count,
    describe,
    open,
    alloc,
    free,
    clear,
    upload,
    download,
    copy,
};

const NAME: &str = "lmb.device/1";
/// Bytes of one piece of an upload: long enough for the full rate of the bus.
const PIECE: usize = 4 << 20;
/// Pieces on their way at most.
const PIECES: usize = 8;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: c_int = 4;

/// A GPU whose context this process holds.
struct Opened {
    context: *mut c_void,
    ring: Vec<Piece>,
    next: usize,
}
// SAFETY: handles that the driver lets any thread use; `OPEN` keeps users apart.
unsafe impl Send for Opened {}

/// Pinned memory, and the event behind the last copy out of it.
struct Piece {
    memory: *mut u8,
    event: Event,
}

static OPEN: Mutex<BTreeMap<i32, Opened>> = Mutex::new(BTreeMap::new());

/// A call's device: the driver, the ordinal, the stream.
struct Place {
    driver: &'static Driver,
    ordinal: i32,
    stream: *mut c_void,
}

/// # Safety
/// As [`table::run`].
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
        f(&Place { driver: found()?, ordinal: target.device_id, stream: ctx.stream.handle })
    };
    // SAFETY: the caller's promise.
    unsafe { table::run(NAME, ctx, error, body) }
}

fn found() -> Result<&'static Driver> {
    driver().map_err(|none| Error::device(none.to_string()))
}

unsafe extern "C" fn count(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    num: *mut u32,
    error: *mut abi::Error,
) -> abi::Status {
    let body = |_: &abi::Ctx| {
        let (driver, mut devices) = (found()?, 0);
        // SAFETY: an out-parameter of ours.
        driver.check("cuDeviceGetCount", unsafe { (driver.device_count)(&mut devices) })?;
        // SAFETY: the host's out-parameter.
        unsafe { num.write(devices.max(0) as u32) };
        Ok(())
    };
    // SAFETY: a call of the contract.
    unsafe { table::run(NAME, ctx, error, body) }
}

unsafe extern "C" fn describe(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    name: *mut abi::Str,
    bytes: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let (described, memory) = described(place)?;
        // SAFETY: the host's out-parameters.
        unsafe {
            name.write(abi::Str::new(described));
            bytes.write(memory);
        }
        Ok(())
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

/// Name and bytes of memory, asked once.
fn described(place: &Place) -> Result<(&'static str, u64)> {
    static KNOWN: Mutex<BTreeMap<i32, (&'static str, u64)>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(&place.ordinal) {
        return Ok(*found);
    }
    let (handle, _) = look(place.driver, place.ordinal)?;
    let (mut text, mut bytes) = ([0 as c_char; 256], 0usize);
    // SAFETY: an array of ours and its length.
    let result = unsafe { (place.driver.device_name)(text.as_mut_ptr(), 256, handle) };
    place.driver.check("cuDeviceGetName", result)?;
    // SAFETY: an out-parameter of ours.
    let result = unsafe { (place.driver.device_memory)(&mut bytes, handle) };
    place.driver.check("cuDeviceTotalMem", result)?;
    text[255] = 0;
    // SAFETY: it ends with NUL.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
    let entry = (&*Box::leak(text.into_boxed_str()), bytes as u64);
    known.insert(place.ordinal, entry);
    Ok(entry)
}

unsafe extern "C" fn open(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let context = match all.get(&place.ordinal) {
            Some(opened) => opened.context,
            None => {
                let context = retain(place)?;
                all.insert(place.ordinal, Opened { context, ring: Vec::new(), next: 0 });
                context
            }
        };
        // SAFETY: the device's primary context, which is never released.
        let result = unsafe { (place.driver.set_current)(context) };
        place.driver.check("cuCtxSetCurrent", result)
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

/// The primary context. The device's pool keeps freed memory from now on: candle and the host free and allocate at every
/// step, and the default gives it back to the system at each wait.
fn retain(place: &Place) -> Result<*mut c_void> {
    let driver = place.driver;
    let (handle, _) = look(driver, place.ordinal)?;
    let mut context = ptr::null_mut();
    // SAFETY: an out-parameter of ours.
    let result = unsafe { (driver.retain_context)(&mut context, handle) };
    driver.check("cuDevicePrimaryCtxRetain", result)?;
    let mut pool = ptr::null_mut();
    // SAFETY: as above.
    let result = unsafe { (driver.default_pool)(&mut pool, handle) };
    driver.check("cuDeviceGetDefaultMemPool", result)?;
    let mut all = u64::MAX;
    let all = (&raw mut all).cast();
    // SAFETY: the device's own pool and the eight bytes that this attribute has.
    let result = unsafe { (driver.pool_attribute)(pool, RELEASE_THRESHOLD, all) };
    driver.check("cuMemPoolSetAttribute", result)?;
    Ok(context)
}

unsafe extern "C" fn alloc(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    bytes: u64,
    out: *mut *mut c_void,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let mut address = 0;
        // SAFETY: an out-parameter of ours, the host's stream.
        let result = unsafe { (place.driver.alloc)(&mut address, bytes as usize, place.stream) };
        place.driver.check("cuMemAllocAsync", result)?;
        // SAFETY: the host's out-parameter.
        unsafe { out.write(address as *mut c_void) };
        Ok(())
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

unsafe extern "C" fn free(_: *const abi::Device, ctx: *const abi::Ctx, memory: *mut c_void) {
    let f = |place: &Place| {
        // SAFETY: of `alloc`, in the same stream.
        let result = unsafe { (place.driver.free)(memory as u64, place.stream) };
        place.driver.check("cuMemFreeAsync", result)
    };
    // SAFETY: a call of the contract; there is nobody to tell.
    let _ = unsafe { run(ctx, ptr::null_mut(), f) };
}

unsafe extern "C" fn clear(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    dst: *mut c_void,
    bytes: u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        // SAFETY: memory of the device, of that many bytes.
        let result = unsafe { (place.driver.fill)(dst as u64, 0, bytes as usize, place.stream) };
        place.driver.check("cuMemsetD8Async", result)
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

unsafe extern "C" fn upload(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    dst: *mut c_void,
    src: *const c_void,
    bytes: u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = all
            .get_mut(&place.ordinal)
            .ok_or_else(|| Error::new(abi::STATUS_INVALID_STATE, "upload before open"))?;
        let mut at = 0;
        while at < bytes as usize {
            let length = PIECE.min(bytes as usize - at);
            let (to, from) = (dst.wrapping_byte_add(at), src.wrapping_byte_add(at));
            // SAFETY: both hold `bytes` bytes.
            unsafe { opened.send(place, to, from, length) }?;
            at += length;
        }
        Ok(())
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

impl Opened {
    /// # Safety
    /// `to` is memory of the device, `from` memory of the CPU, of `length` <= [`PIECE`] bytes.
    unsafe fn send(
        &mut self,
        place: &Place,
        to: *mut c_void,
        from: *const c_void,
        length: usize,
    ) -> Result<()> {
        let driver = place.driver;
        if self.ring.len() < PIECES {
            self.ring.push(Piece::new(driver)?);
            self.next = self.ring.len() - 1;
        } else {
            // SAFETY: an event of ours, recorded when the piece was used last.
            let result = unsafe { (driver.event_wait)(self.ring[self.next].event) };
            driver.check("cuEventSynchronize", result)?;
        }
        let piece = &self.ring[self.next];
        self.next = (self.next + 1) % PIECES;
        // SAFETY: the caller's promise; no copy out of the piece is on its way.
        unsafe { ptr::copy_nonoverlapping(from.cast(), piece.memory, length) };
        // SAFETY: the caller's promise; pinned memory that stays until the event behind it.
        let result = unsafe { (driver.send)(to as u64, piece.memory.cast(), length, place.stream) };
        driver.check("cuMemcpyHtoDAsync", result)?;
        // SAFETY: an event of ours, the host's stream.
        driver.check("cuEventRecord", unsafe { (driver.event_record)(piece.event, place.stream) })
    }
}

impl Piece {
    fn new(driver: &Driver) -> Result<Self> {
        /// `CU_EVENT_DISABLE_TIMING`.
        const NO_TIMING: u32 = 2;
        let (mut memory, mut event) = (ptr::null_mut(), Event(ptr::null_mut()));
        // SAFETY: an out-parameter of ours.
        let result = unsafe { (driver.event_create)(&mut event, NO_TIMING) };
        driver.check("cuEventCreate", result)?;
        // SAFETY: as above.
        let result = unsafe { (driver.alloc_pinned)(&mut memory, PIECE, 0) };
        driver.check("cuMemHostAlloc", result)?;
        Ok(Self { memory: memory.cast(), event })
    }
}

unsafe extern "C" fn download(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    dst: *mut c_void,
    src: *const c_void,
    bytes: u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let driver = place.driver;
        // SAFETY: both hold `bytes` bytes; `dst` stays until the wait is over.
        let result = unsafe { (driver.read_back)(dst, src as u64, bytes as usize, place.stream) };
        driver.check("cuMemcpyDtoHAsync", result)?;
        // SAFETY: the host's stream.
        driver.check("cuStreamSynchronize", unsafe { (driver.wait)(place.stream) })
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}

unsafe extern "C" fn copy(
    _: *const abi::Device,
    ctx: *const abi::Ctx,
    dst: *mut c_void,
    src: *const c_void,
    bytes: u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |place: &Place| {
        let (to, from) = (dst as u64, src as u64);
        // SAFETY: both are memory of the device, of that many bytes.
        let result = unsafe { (place.driver.copy)(to, from, bytes as usize, place.stream) };
        place.driver.check("cuMemcpyDtoDAsync", result)
    };
    // SAFETY: a call of the contract.
    unsafe { run(ctx, error, f) }
}
