//! One GPU of the process: its images, its kernels by name, launches on a stream of the host.
//!
//! Images load at the first kernel of theirs, kernels once. Handles are valid in every context of the device and
//! live as long as the process.

use super::driver::{Driver, Kernel, LaunchAttribute, LaunchConfig, driver};
use super::images::{IMAGES, of_kernel};
use super::plan::{Capability, PORTABLE_CLUSTER, Shape};
use limbeck_sdk::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

// Of cuda.h.
const COMPUTE_MAJOR: c_int = 75;
const COMPUTE_MINOR: c_int = 76;
const SHARED_OPT_IN: c_int = 97;
const FUNCTION_SHARED: c_int = 8;
const FUNCTION_CARVEOUT: c_int = 9;
const FUNCTION_WIDE_CLUSTERS: c_int = 14;
const CLUSTER_DIMENSION: c_int = 4;
/// What a block gets without asking.
const PLAIN_SHARED: usize = 48 * 1024;

/// A GPU.
#[derive(Debug)]
pub struct Device {
    driver: &'static Driver,
    handle: c_int,
    ordinal: i32,
    capability: Capability,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    images: [Option<Image>; IMAGES.len()],
    kernels: BTreeMap<String, Kernel>,
}

/// `CUlibrary`.
#[derive(Clone, Copy, Debug)]
struct Image(*mut c_void);
// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Image {}

/// GPU `ordinal`, opened at the first call.
///
/// # Errors
/// LMB_DEVICE without a driver or such a GPU, LMB_UNSUPPORTED for one older than 8.0.
pub fn device(ordinal: i32) -> Result<&'static Device> {
    static DEVICES: Mutex<BTreeMap<i32, &'static Device>> = Mutex::new(BTreeMap::new());
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = devices.get(&ordinal) {
        return Ok(found);
    }
    let opened: &'static Device = Box::leak(Box::new(Device::open(ordinal)?));
    devices.insert(ordinal, opened);
    Ok(opened)
}

/// Handle and capability of GPU `ordinal`, asked without a context.
///
/// # Errors
/// As [`device`].
pub fn look(driver: &Driver, ordinal: i32) -> Result<(c_int, Capability)> {
    let mut handle = 0;
    // SAFETY: an out-parameter of ours.
    let found = unsafe { (driver.device_get)(&mut handle, ordinal) };
    driver.check(&format!("GPU {ordinal}"), found)?;
    let attribute = |number| {
        let mut value = 0;
        // SAFETY: as above.
        let found = unsafe { (driver.device_attribute)(&mut value, number, handle) };
        driver.check("cuDeviceGetAttribute", found).map(|()| value.max(0))
    };
    let compute = (attribute(COMPUTE_MAJOR)? * 10 + attribute(COMPUTE_MINOR)?) as u32;
    if compute < 80 {
        let message = format!("GPU {ordinal} has compute capability {compute} / 10, 8.0 is needed");
        return Err(Error::unsupported(message));
    }
    let shared_bytes = attribute(SHARED_OPT_IN)? as usize;
    let max_cluster = if compute == 90 { PORTABLE_CLUSTER } else { 0 };
    Ok((handle, Capability { compute, shared_bytes, max_cluster }))
}

impl Device {
    fn open(ordinal: i32) -> Result<Self> {
        let driver = driver().map_err(|none| Error::device(none.to_string()))?;
        let (handle, capability) = look(driver, ordinal)?;
        let mut opened =
            Self { driver, handle, ordinal, capability, loaded: Mutex::new(Loaded::default()) };
        if capability.compute == 90 && opened.runs_wide_clusters()? {
            opened.capability.max_cluster = 2 * PORTABLE_CLUSTER;
        }
        Ok(opened)
    }

    /// Whether clusters of 16 blocks can run: a device may have too few SMs in a group.
    fn runs_wide_clusters(&self) -> Result<bool> {
        let shape = Shape { threads: 256, cluster: 2 * PORTABLE_CLUSTER, shared_bytes: 76_800 };
        // All cluster kernels ask for the same threads and memory.
        let kernel = self.kernel("fkl_bf16_cluster")?;
        let mut attribute = cluster_of(shape);
        let config = config(shape, shape.cluster, ptr::null_mut(), &mut attribute);
        let mut active = 0;
        // SAFETY: structs of cuda.h, out-parameter of ours.
        let found = unsafe { (self.driver.max_clusters)(&mut active, kernel, &config) };
        Ok(found == 0 && active > 0)
    }

    /// What it can do.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// Its number.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// The driver.
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Launches kernel `name` over `rows` rows, one a cluster; none for no rows.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// `arguments` is the struct of that kernel; all it points to is memory of this device that stays until the
    /// stream has passed the launch.
    pub unsafe fn launch<A>(
        &self,
        name: &str,
        shape: Shape,
        rows: usize,
        arguments: &A,
        stream: *mut c_void,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let blocks = u32::try_from(rows * shape.cluster as usize)
            .ok()
            .filter(|blocks| *blocks <= i32::MAX as u32)
            .ok_or_else(|| Error::unsupported(format!("{rows} rows are too many for a launch")))?;
        let kernel = self.kernel(name)?;
        let mut attribute = cluster_of(shape);
        let config = config(shape, blocks, stream, &mut attribute);
        let mut arguments = [ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
        // SAFETY: structs of cuda.h; the driver copies the argument before it returns; else the caller's promise.
        let launched = unsafe {
            (self.driver.launch)(&config, kernel, arguments.as_mut_ptr(), ptr::null_mut())
        };
        self.driver.check(name, launched)
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.kernels.get(name) {
            return Ok(*kernel);
        }
        let index = of_kernel(name);
        let Image(library) = match loaded.images[index] {
            Some(image) => image,
            None => *loaded.images[index].insert(self.load(index)?),
        };
        let text = CString::new(name).map_err(|_| Error::internal("a kernel's name has a NUL"))?;
        let mut kernel = Kernel(ptr::null_mut());
        // SAFETY: a loaded library, a name that lives during the call, an out-parameter of ours.
        let found = unsafe { (self.driver.library_kernel)(&mut kernel, library, text.as_ptr()) };
        self.driver.check(name, found)?;
        self.prepare(name, kernel)?;
        loaded.kernels.insert(name.to_owned(), kernel);
        Ok(kernel)
    }

    fn load(&self, index: usize) -> Result<Image> {
        let image = &IMAGES[index];
        let mut library = ptr::null_mut();
        // SAFETY: an embedded fat binary that lives as long as the process; no options.
        let loaded = unsafe {
            (self.driver.library_load)(
                &mut library,
                image.bytes.as_ptr().cast(),
                ptr::null_mut(),
                ptr::null_mut(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
                0,
            )
        };
        self.driver.check(&format!("kernels of {}.cu", image.source), loaded)?;
        Ok(Image(library))
    }

    /// Raises the limits that kernels of this library need.
    fn prepare(&self, name: &str, kernel: Kernel) -> Result<()> {
        let set = |attribute: c_int, value: c_int| {
            // SAFETY: a kernel of this device.
            let result =
                unsafe { (self.driver.kernel_attribute)(attribute, value, kernel, self.handle) };
            self.driver.check(name, result)
        };
        if name.ends_with("_cluster") || name.starts_with("sparse") {
            set(FUNCTION_SHARED, self.capability.shared_bytes as c_int)?;
        }
        if name.ends_with("_cluster") {
            set(FUNCTION_CARVEOUT, 100)?;
            set(FUNCTION_WIDE_CLUSTERS, 1)?;
        }
        Ok(())
    }

    /// Whether a block may use that much shared memory.
    pub fn has_shared(&self, shape: Shape) -> bool {
        shape.shared_bytes <= PLAIN_SHARED.max(self.capability.shared_bytes)
    }
}

fn cluster_of(shape: Shape) -> LaunchAttribute {
    let mut value = [0; 16];
    value[..3].copy_from_slice(&[shape.cluster, 1, 1]);
    LaunchAttribute { id: CLUSTER_DIMENSION, pad: [0; 4], value }
}

fn config(
    shape: Shape,
    blocks: u32,
    stream: *mut c_void,
    attribute: &mut LaunchAttribute,
) -> LaunchConfig {
    LaunchConfig {
        grid: [blocks, 1, 1],
        block: [shape.threads, 1, 1],
        shared_bytes: shape.shared_bytes as u32,
        stream,
        attributes: attribute,
        num_attributes: u32::from(shape.cluster > 1),
    }
}
