//! The CUDA driver by `dlopen`: the functions that launching and memory need, and its errors in words.
//!
//! Opened once, when a GPU is first asked for. Refuses drivers older than the kernels' toolkit. Creates no
//! context but the device's primary one (limbeck.h, R10).

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use limbeck_sdk::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// `libcuda.so.1`, which the driver's package installs.
const LIBRARY: &str = "libcuda.so.1";
/// CUDA 13.0, whose PTX the kernels are: driver 580.
const NEEDED: c_int = 13000;

/// A CUDA result; 0 is success.
pub type CuResult = c_int;
/// `CUkernel`: valid in every context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Kernel(pub *mut c_void);
// SAFETY: a handle, not memory of ours; the driver is thread-safe.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// `CUevent`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Event(pub *mut c_void);
// SAFETY: as `Kernel`.
unsafe impl Send for Event {}

/// `CUlaunchAttribute`, of which only the cluster dimension is used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttribute {
    /// `CUlaunchAttributeID`.
    pub id: c_int,
    /// Padding of the C struct.
    pub pad: [u8; 4],
    /// The union; a dimension is its first three.
    pub value: [u32; 16],
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Debug)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [c_uint; 3],
    /// Threads of a block.
    pub block: [c_uint; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: c_uint,
    /// `CUstream`.
    pub stream: *mut c_void,
    /// Attributes.
    pub attributes: *mut LaunchAttribute,
    /// Their number.
    pub num_attributes: c_uint,
}

const _: () = assert!(size_of::<LaunchAttribute>() == 72 && size_of::<LaunchConfig>() == 56);

macro_rules! driver {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*);)*) => {
        /// The driver's functions.
        #[derive(Clone, Copy, Debug)]
        #[expect(missing_docs, reason = "named as in cuda.h, which documents them")]
        pub struct Driver {
            $(pub $field: unsafe extern "C" fn($($arg),*) -> CuResult,)*
        }

        impl Driver {
            /// # Safety
            /// `library` is a CUDA driver that is never closed.
            unsafe fn load(library: &Library) -> Result<Self, String> {
                // SAFETY: types as in cuda.h 13.0, whose versioned symbols do not change.
                unsafe { Ok(Self { $($field: symbol(library, $symbol)?,)* }) }
            }
        }
    };
}

driver! {
    init = "cuInit": fn(c_uint);
    version = "cuDriverGetVersion": fn(*mut c_int);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_get = "cuDeviceGet": fn(*mut c_int, c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int);
    device_memory = "cuDeviceTotalMem_v2": fn(*mut usize, c_int);
    retain_context = "cuDevicePrimaryCtxRetain": fn(*mut *mut c_void, c_int);
    set_current = "cuCtxSetCurrent": fn(*mut c_void);
    default_pool = "cuDeviceGetDefaultMemPool": fn(*mut *mut c_void, c_int);
    pool_attribute = "cuMemPoolSetAttribute": fn(*mut c_void, c_int, *mut c_void);
    error_name = "cuGetErrorName": fn(CuResult, *mut *const c_char);
    error_text = "cuGetErrorString": fn(CuResult, *mut *const c_char);
    library_load = "cuLibraryLoadData":
        fn(*mut *mut c_void, *const c_void, *mut c_int, *mut *mut c_void, c_uint, *mut c_int, *mut *mut c_void, c_uint);
    library_kernel = "cuLibraryGetKernel": fn(*mut Kernel, *mut c_void, *const c_char);
    kernel_attribute = "cuKernelSetAttribute": fn(c_int, c_int, Kernel, c_int);
    max_clusters = "cuOccupancyMaxActiveClusters": fn(*mut c_int, Kernel, *const LaunchConfig);
    launch = "cuLaunchKernelEx": fn(*const LaunchConfig, Kernel, *mut *mut c_void, *mut *mut c_void);
    alloc = "cuMemAllocAsync": fn(*mut u64, usize, *mut c_void);
    free = "cuMemFreeAsync": fn(u64, *mut c_void);
    alloc_pinned = "cuMemHostAlloc": fn(*mut *mut c_void, usize, c_uint);
    fill = "cuMemsetD8Async": fn(u64, u8, usize, *mut c_void);
    send = "cuMemcpyHtoDAsync_v2": fn(u64, *const c_void, usize, *mut c_void);
    copy = "cuMemcpyDtoDAsync_v2": fn(u64, u64, usize, *mut c_void);
    event_create = "cuEventCreate": fn(*mut Event, c_uint);
    event_record = "cuEventRecord": fn(Event, *mut c_void);
    event_wait = "cuEventSynchronize": fn(Event);
    read_back = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, u64, usize, *mut c_void);
    wait = "cuStreamSynchronize": fn(*mut c_void);
}

/// # Safety
/// The symbol has type `T`.
pub(super) unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| format!("it has no {name}"))
}

/// Why there is no driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDriver(String);

impl std::fmt::Display for NoDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(why) = self;
        write!(f, "no CUDA driver: {why}. Install NVIDIA driver 580 or later, or use `device: cpu`")
    }
}

static CHOSEN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Opens `path` instead of `libcuda.so.1`; of no effect once a driver was asked for.
pub fn choose(path: &Path) {
    *CHOSEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
}

/// The process's driver, opened at the first call.
///
/// # Errors
/// [`NoDriver`], the same one each time.
pub fn driver() -> Result<&'static Driver, NoDriver> {
    static DRIVER: OnceLock<Result<Driver, NoDriver>> = OnceLock::new();
    let open = || {
        let chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Driver::open(&chosen.unwrap_or_else(|| LIBRARY.into()))
    };
    DRIVER.get_or_init(open).as_ref().map_err(NoDriver::clone)
}

fn decimal(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Driver {
    /// Opens and initialises the driver in library `path`, which then stays open.
    ///
    /// # Errors
    /// What is missing: the library, a function, CUDA 13.0, a GPU.
    pub fn open(path: &Path) -> Result<Self, NoDriver> {
        Self::try_open(path).map_err(NoDriver)
    }

    fn try_open(path: &Path) -> Result<Self, String> {
        // SAFETY: the driver's initialisers are its own affair; nothing of ours depends on them.
        let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
        let library =
            library.map_err(|error| format!("{} does not open: {error}", path.display()))?;
        // Never closed: handles of it live as long as the process.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: a CUDA driver by name; not closed.
        let driver = unsafe { Self::load(library) }?;
        let (mut version, mut devices) = (0, 0);
        // SAFETY: no arguments of ours.
        driver.check("cuInit", unsafe { (driver.init)(0) }).map_err(|e| e.message().to_owned())?;
        // SAFETY: an out-parameter of ours.
        unsafe { (driver.version)(&mut version) };
        if version < NEEDED {
            return Err(format!("it speaks CUDA {}, the kernels need 13.0", decimal(version)));
        }
        // SAFETY: as above.
        unsafe { (driver.device_count)(&mut devices) };
        if devices == 0 { Err("it sees no GPU".to_owned()) } else { Ok(driver) }
    }

    /// Success, or DEVICE with the driver's words and `native_code`.
    ///
    /// # Errors
    /// LMB_DEVICE, LMB_OUT_OF_MEMORY.
    pub fn check(&self, doing: &str, result: CuResult) -> Result<(), Error> {
        const OUT_OF_MEMORY: CuResult = 2;
        if result == 0 {
            return Ok(());
        }
        let (name, text) =
            (self.words(self.error_name, result), self.words(self.error_text, result));
        let message = format!("{doing}: {name} ({text})");
        let error = match result {
            OUT_OF_MEMORY => Error::out_of_memory(message),
            _ => Error::device(message),
        };
        Err(error.note("native_code", result.to_string()))
    }

    fn words(
        &self,
        of: unsafe extern "C" fn(CuResult, *mut *const c_char) -> CuResult,
        result: CuResult,
    ) -> String {
        let mut words = std::ptr::null();
        // SAFETY: an out-parameter of ours.
        let found = unsafe { of(result, &mut words) };
        if found != 0 || words.is_null() {
            return format!("error {result}");
        }
        // SAFETY: a static string of the driver.
        unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
    }
}
