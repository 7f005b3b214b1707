//! Tier `load`: opening the library, its entry, what it does to the process.

use super::subject::{ensure, fine};
use super::{Check, Miss, Outcome, Subject};
use crate::load::services;
use limbeck_abi as abi;
use std::time::Duration;

/// The check whose report carries the library's plugins.
pub(super) const ENTRY: &str = "load.entry";

pub(super) const CHECKS: &[Check] = &[
    Check { id: ENTRY, clause: "lmb_module_v1", kinds: &[], run: entry },
    Check {
        id: "load.quiet",
        clause: "R11: process-wide state belongs to the host",
        kinds: &[],
        run: quiet,
    },
    Check { id: "load.fast", clause: "init is fast", kinds: &[], run: fast },
    Check {
        id: "load.twice",
        clause: "entry may be called again, no side effects",
        kinds: &[],
        run: twice,
    },
    Check {
        id: "load.newer-host",
        clause: "a higher host minor is never a reason to refuse",
        kinds: &[],
        run: newer,
    },
    Check {
        id: "load.other-major",
        clause: "NULL: cannot run on this host",
        kinds: &[],
        run: other_major,
    },
];

fn entry(subject: &mut Subject) -> Outcome {
    let module = subject.open()?.module;
    let descriptors = subject.descriptors()?;
    ensure(!descriptors.is_empty(), "at least one descriptor", || "none".into())?;
    let build = super::subject::text(module.build_info, "build_info")?;
    Ok(format!(
        "ABI {}.{}, {} plugins, {build}",
        module.abi_major,
        module.abi_minor,
        descriptors.len()
    ))
}

fn quiet(subject: &mut Subject) -> Outcome {
    let (before, after) = subject.open()?.pictures;
    let changes = before.changes(&after);
    ensure(changes.is_empty(), "the process unchanged by load and init", || changes.join("; "))?;
    fine()
}

fn fast(subject: &mut Subject) -> Outcome {
    let took = subject.open()?.took;
    let text = format!("{:.1} ms", took.as_secs_f64() * 1e3);
    if took > Duration::from_millis(100) {
        Err(Miss::Warn(format!("load took {text}")))
    } else {
        Ok(text)
    }
}

fn twice(subject: &mut Subject) -> Outcome {
    let opened = subject.open()?;
    // SAFETY: [main], may be called again.
    let again = unsafe { (opened.entry)(services::host()) };
    ensure(std::ptr::eq(again, opened.module), "the same module again", || format!("{again:?}"))?;
    fine()
}

/// A host table of a later minor: larger, with more behind it.
#[repr(C)]
struct LaterHost {
    base: abi::Host,
    unknown: [u64; 16],
}

fn host_of(major: u32, minor: u32) -> &'static LaterHost {
    let known = services::host();
    // SAFETY: a plain table of numbers and functions, copied bit for bit; leaked, as the contract wants it alive.
    let mut base = unsafe { std::ptr::read(known) };
    base.struct_size = size_of::<LaterHost>() as u64;
    base.abi_major = major;
    base.abi_minor = minor;
    Box::leak(Box::new(LaterHost { base, unknown: [0xDEAD; 16] }))
}

fn newer(subject: &mut Subject) -> Outcome {
    let opened = subject.open()?;
    let host = host_of(abi::ABI_MAJOR, 999);
    // SAFETY: a host table that lives for ever.
    let module = unsafe { (opened.entry)(&raw const host.base) };
    ensure(!module.is_null(), "a module for a host of ABI 1.999", || "NULL".into())?;
    fine()
}

fn other_major(subject: &mut Subject) -> Outcome {
    let opened = subject.open()?;
    let host = host_of(2, 0);
    // SAFETY: as above; the plugin must look at the major before anything else.
    let module = unsafe { (opened.entry)(&raw const host.base) };
    ensure(module.is_null(), "NULL for a host of ABI 2.0", || "a module".into())?;
    fine()
}
