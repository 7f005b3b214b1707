//! The kernels on a machine whose threads are fibers, built from their sources by the C++ compiler: right where a GPU is
//! right, but for speed and the rounding of one approximate instruction.

use super::arguments::To;
use super::launches::{Grid, Machine};
use candle_core::{Result, bail};
use libloading::os::unix::{Library, RTLD_NOW};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Emulated, for one of the element types.
pub(super) struct Emulated {
    pub(super) suffix: &'static str,
    pub(super) element: usize,
}

type Launch = unsafe extern "C" fn(*const c_char, i64, c_int, usize, *const c_void) -> c_int;
type Shuffle = unsafe extern "C" fn(c_int);

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("layers.so");
        let mut build = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".into()));
        build.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]);
        build.args(["-Wno-unknown-pragmas", "-ffp-contract=off", "-x", "c++", "-o"]).arg(&file);
        build.arg(plugins.join("models/cuda/layers.cu"));
        build.arg(plugins.join("losses/cuda/emulate/machine.cc"));
        assert!(build.status().expect("a C++ compiler").success(), "the kernels do not compile");
        // SAFETY: our own library, whose only initialisers register kernels.
        unsafe { Library::open(Some(&file), RTLD_NOW) }.expect("the emulator opens")
    })
}

/// Threads take turns at random instead of in order: a missing barrier shows.
pub(super) fn shuffle(shuffled: bool) {
    // SAFETY: as declared in machine.cc.
    unsafe {
        let set = library().get::<Shuffle>(b"limbeck_emulate_shuffled").expect("machine.cc");
        set(c_int::from(shuffled));
    }
}

impl Machine for Emulated {
    type Memory = Vec<f32>;

    unsafe fn launch<A: Copy>(&self, name: &str, grid: Grid, arguments: &A) -> Result<()> {
        let kernel = CString::new(format!("{name}_{}", self.suffix)).expect("no NUL");
        // SAFETY: as declared in machine.cc; the caller's promise.
        let launched = unsafe {
            let launch = library().get::<Launch>(b"limbeck_emulate_launch").expect("machine.cc");
            launch(
                kernel.as_ptr(),
                i64::from(grid.blocks),
                grid.threads as c_int,
                grid.shared as usize,
                std::ptr::from_ref(arguments).cast(),
            )
        };
        if launched == 0 {
            bail!("no kernel {kernel:?} of {} threads", grid.threads);
        }
        Ok(())
    }

    /// NaN, so that whoever reads what nobody wrote is seen.
    fn scratch(&self, count: usize) -> Result<(Vec<f32>, To)> {
        let mut memory = vec![f32::NAN; count];
        let address = memory.as_mut_ptr().cast();
        Ok((memory, address))
    }

    fn element(&self) -> usize {
        self.element
    }
}
