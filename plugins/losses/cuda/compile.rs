//! CUDA kernels in a build script: each crate with kernels includes this file.
//!
//! Does nothing unless the crate's feature `cuda` is on. Takes prebuilt images from `LIMBECK_KERNELS`, else nvcc from `NVCC`,
//! `CUDA_HOME`, `.toolchain` or `PATH`. The images depend on the sources and the toolkit alone: no path and no time gets
//! into them.

use std::env::var_os;
use std::path::{Path, PathBuf};
use std::process::Command;

const RECIPE: &str = "feature `cuda` needs nvcc 13.0: run plugins/losses/cuda/toolkit.sh, which needs \
                      python3 with pip and no root, or set NVCC, CUDA_HOME or LIMBECK_KERNELS";

/// Compiles the crate's `cuda/*.cu` into `OUT_DIR`. `list` is its `cuda/images.txt`: the compiler's flags, then a line an
/// image with its architectures; `check.py` reads it too.
pub fn images(list: &str) {
    println!("cargo:rerun-if-changed=build.rs");
    if var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["NVCC", "CUDA_HOME", "LIMBECK_KERNELS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for folder in ["cuda", "../losses/cuda"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    let out = PathBuf::from(var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut lines = list.lines().filter_map(|line| line.split_once(' '));
    let (_, flags) = lines.next().expect("images.txt begins with flags");
    if let Some(prebuilt) = var_os("LIMBECK_KERNELS").map(PathBuf::from) {
        for (name, _) in lines {
            let file = format!("{name}.fatbin");
            if let Err(error) = std::fs::copy(prebuilt.join(&file), out.join(&file)) {
                fail(&format!("LIMBECK_KERNELS has no {file}: {error}"));
            }
        }
        return;
    }
    let nvcc = nvcc();
    // The tests compile the emulated driver against this toolkit's cuda.h.
    println!("cargo:rustc-env=LIMBECK_NVCC={}", nvcc.display());
    std::thread::scope(|scope| {
        for (name, targets) in lines {
            let (nvcc, out) = (&nvcc, &out);
            scope.spawn(move || compile(nvcc, name, &format!("{flags} {targets}"), out));
        }
    });
}

fn nvcc() -> PathBuf {
    if let Some(given) = var_os("NVCC") {
        return given.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let homes = var_os("CUDA_HOME").map(PathBuf::from).into_iter();
    let homes = homes.chain([root.join(".toolchain/cu/nvidia/cu13")]);
    let paths = var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let folders = homes.map(|home| home.join("bin")).chain(paths.unwrap_or_default());
    let mut found = folders.map(|folder| folder.join("nvcc")).filter(|nvcc| nvcc.is_file());
    found.next().unwrap_or_else(|| fail(RECIPE))
}

fn compile(nvcc: &Path, name: &str, flags: &str, out: &Path) {
    let mut command = Command::new(nvcc);
    command.current_dir("cuda").args(flags.split(' ')).arg(format!("{name}.cu"));
    command.arg("-o").arg(out.join(format!("{name}.fatbin")));
    let output = command.output().unwrap_or_else(|error| fail(&format!("{nvcc:?}: {error}")));
    if !output.status.success() {
        fail(&format!("{nvcc:?} {name}.cu: {}", String::from_utf8_lossy(&output.stderr)));
    }
}

#[expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "cargo shows the stderr of a build script that fails"
)]
fn fail(why: &str) -> ! {
    eprintln!("error: {why}");
    std::process::exit(1)
}
