//! Compiles a kernel for several instruction sets and runs the best one this machine has.
//!
//! `LIMBECK_CPU=portable|avx2|avx512` narrows the choice, for tests. A kernel's body is inlined into each
//! version; the arithmetic is the same, only the registers are wider.

use super::simd::{Plain, Simd};
#[cfg(target_arch = "x86_64")]
use super::simd::{Ymm, Zmm};
use std::sync::OnceLock;

/// A body to be compiled per instruction set; `run` must be `#[inline(always)]`.
pub trait Kernel {
    type Result;
    fn run(self) -> Self::Result;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    Avx2,
    Avx512,
}

fn detect() -> Isa {
    let asked = match std::env::var("LIMBECK_CPU").as_deref() {
        Ok("portable") => Isa::Portable,
        Ok("avx2") => Isa::Avx2,
        _ => Isa::Avx512,
    };
    available().min(asked)
}

#[cfg(target_arch = "x86_64")]
fn available() -> Isa {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma");
    match is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        true if avx512 => Isa::Avx512,
        true => Isa::Avx2,
        false => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn available() -> Isa {
    Isa::Portable
}

/// The instruction set in use.
pub fn chosen() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(detect)
}

/// A body written for lanes; `run` must be `#[inline(always)]`.
pub trait LaneKernel {
    type Result;
    fn run<S: Simd<Scalar = f32>>(self) -> Self::Result;
}

/// Runs `kernel` in the registers in use.
#[inline]
pub fn run_lanes<K: LaneKernel>(kernel: K) -> K::Result {
    run_lanes_on(chosen(), kernel)
}

/// Runs `kernel` in the registers of `isa`, or less if the machine has less.
#[inline]
pub fn run_lanes_on<K: LaneKernel>(isa: Isa, kernel: K) -> K::Result {
    #[cfg(target_arch = "x86_64")]
    match isa.min(chosen()) {
        // SAFETY: `chosen` is at most what the machine was found to have.
        Isa::Avx512 => return unsafe { lanes_avx512(kernel) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { lanes_avx2(kernel) },
        Isa::Portable => {}
    }
    let _ = isa;
    kernel.run::<Plain>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn lanes_avx512<K: LaneKernel>(kernel: K) -> K::Result {
    kernel.run::<Zmm>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn lanes_avx2<K: LaneKernel>(kernel: K) -> K::Result {
    kernel.run::<Ymm>()
}

/// Runs `kernel` with the instruction set in use.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Result {
    run_on(chosen(), kernel)
}

/// Runs `kernel` with `isa`, or less if the machine has less.
#[inline]
pub fn run_on<K: Kernel>(isa: Isa, kernel: K) -> K::Result {
    #[cfg(target_arch = "x86_64")]
    match isa.min(chosen()) {
        // SAFETY: `chosen` is at most what the machine was found to have.
        Isa::Avx512 => return unsafe { avx512(kernel) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { avx2(kernel) },
        Isa::Portable => {}
    }
    let _ = isa;
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Result {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Result {
    kernel.run()
}

/// Whether a slice begins at a line of the cache.
#[inline(always)]
pub fn is_line<A>(slice: &[A]) -> bool {
    slice.as_ptr().addr().is_multiple_of(64)
}

/// Lets other threads see what was written past the caches.
#[inline(always)]
pub fn end_streams() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every machine of this kind has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
