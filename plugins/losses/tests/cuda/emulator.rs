//! The emulated driver, built from the kernels' sources by the C++ compiler, and a stand-in for cuBLASLt, opened in
//! place of libcuda.so.1 and libcublasLt.so.13.

use crate::buffer::DEVICE;
use crate::host::module;
use libloading::os::unix::{Library, RTLD_NOW};
use limbeck_losses::cuda::{driver, lt};
use limbeck_sdk::abi;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The GPU that says it is sm_90.
pub const HOPPER: i32 = 0;
/// The GPU that says it is sm_80.
pub const AMPERE: i32 = 1;

const SOURCES: [&str; 11] = [
    "dense_sm80.cu",
    "dense_sm90.cu",
    "single_sm80.cu",
    "single_sm90.cu",
    "pair.cu",
    "vector.cu",
    "linear.cu",
    "emulate/machine.cc",
    "emulate/driver.cc",
    "emulate/arithmetic.cc",
    PRODUCTS,
];
/// Goes into a library of its own.
const PRODUCTS: &str = "emulate/cublaslt.cc";

/// The kernels' folder.
pub fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

fn compile(source: &str, object: &Path) -> Command {
    let nvcc = Path::new(env!("LIMBECK_NVCC"));
    let include = nvcc.ancestors().nth(2).expect("bin/nvcc").join("include");
    let mut command = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".into()));
    command.args(["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror"]);
    command.args(["-Wno-unknown-pragmas", "-ffp-contract=off", "-x", "c++", "-c"]);
    command.arg("-isystem").arg(include).arg(kernels().join(source)).arg("-o").arg(object);
    command
}

/// The folder with both libraries.
fn build() -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the emulator");
    let objects: Vec<PathBuf> = SOURCES
        .iter()
        .map(|source| folder.join(source.replace('/', "-")).with_extension("o"))
        .collect();
    let running = SOURCES
        .iter()
        .zip(&objects)
        .map(|(source, object)| compile(source, object).spawn().expect("a C++ compiler"));
    for (mut running, source) in running.collect::<Vec<_>>().into_iter().zip(SOURCES) {
        assert!(running.wait().expect("it runs").success(), "{source} does not compile");
    }
    let (products, driver): (Vec<&PathBuf>, Vec<&PathBuf>) =
        objects.iter().partition(|object| object.ends_with("emulate-cublaslt.o"));
    for (library, objects) in [("libcuda.so.1", driver), ("libcublasLt.so.13", products)] {
        let mut link = Command::new("c++");
        link.arg("-shared").arg("-o").arg(folder.join(library)).args(objects);
        assert!(link.status().expect("a linker").success());
    }
    folder
}

/// The emulated driver, opened once and before the library asks for one.
pub fn emulator() -> &'static Library {
    static EMULATOR: OnceLock<Library> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let folder = build();
        let path = folder.join("libcuda.so.1");
        // SAFETY: our own library, whose only initialisers register kernels.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW) }.expect("the emulator opens");
        driver::choose(&path);
        driver::driver().expect("the emulated driver");
        lt::choose(&folder.join("libcublasLt.so.13"));
        for ordinal in [HOPPER, AMPERE] {
            lt::lt(ordinal).expect("the stand-in for cuBLASLt");
        }
        module();
        std::fs::remove_dir_all(&folder).expect("ours");
        library
    })
}

/// Makes all tensors of this thread those of GPU `ordinal`.
pub fn on(ordinal: i32) {
    emulator();
    DEVICE.set(abi::DLDevice { device_type: abi::DL_CUDA, device_id: ordinal });
}

/// Kernels launched so far.
pub fn launches() -> i64 {
    // SAFETY: as declared in driver.cc.
    unsafe {
        let count = emulator().get::<unsafe extern "C" fn() -> i64>(b"limbeck_emulated_launches");
        count.expect("driver.cc")()
    }
}

/// Threads take turns at random instead of in order.
pub fn shuffle(shuffled: bool) {
    // SAFETY: as declared in driver.cc.
    unsafe {
        let set = emulator().get::<unsafe extern "C" fn(c_int)>(b"limbeck_emulate_shuffled");
        set.expect("driver.cc")(c_int::from(shuffled));
    }
}

/// Whether there is a kernel of that name.
pub fn has_kernel(name: &str) -> bool {
    let name = std::ffi::CString::new(name).expect("no NUL");
    // SAFETY: as declared in driver.cc.
    unsafe {
        let find = emulator()
            .get::<unsafe extern "C" fn(*const std::ffi::c_char) -> c_int>(b"limbeck_emulates");
        find.expect("driver.cc")(name.as_ptr()) != 0
    }
}
