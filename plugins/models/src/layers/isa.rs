//! Compiles a kernel for several instruction sets and runs the best one that this machine has.
//!
//! `LIMBECK_CPU=portable|avx2` narrows the choice, for tests. Invariant: the arithmetic is the same in every version,
//! only the registers are wider; no multiplication is fused with an addition.

use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    Portable,
    Avx2,
    Avx512,
}

#[cfg(target_arch = "x86_64")]
fn available() -> Isa {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match is_x86_feature_detected!("avx2") {
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
pub(crate) fn chosen() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let asked = match std::env::var("LIMBECK_CPU").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        };
        available().min(asked)
    })
}

/// Whether registers of AVX-512 hold sixteen of `T`.
#[inline(always)]
pub(crate) fn is_avx512<T>() -> bool {
    size_of::<T>() == 4 && chosen() == Isa::Avx512
}

/// Defines functions over an [`Element`](super::element::Element) type that run the version for this machine.
macro_rules! kernel {
    ($($(#[$meta:meta])* fn $name:ident<$T:ident>($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)+) => {$(
        $(#[$meta])*
        pub(crate) fn $name<$T: $crate::layers::element::Element>($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body<$T: $crate::layers::element::Element>($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$T: $crate::layers::element::Element>($($arg: $type),*) $(-> $out)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$T: $crate::layers::element::Element>($($arg: $type),*) $(-> $out)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            match $crate::layers::isa::chosen() {
                // SAFETY: no clause of the header is concerned; `chosen` is at most what the machine was found to have.
                $crate::layers::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                $crate::layers::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                $crate::layers::isa::Isa::Portable => {}
            }
            body($($arg),*)
        }
    )+};
}
pub(crate) use kernel;
