//! Tier `lifecycle`: creation and destruction, illegal orders, memory that comes back.

use super::effects::resident_pages;
use super::live::{Live, ctx};
use super::subject::{ensure, fine};
use super::{ALL, Check, Miss, Outcome, Subject};
use crate::load::services::ErrorSlot;
use limbeck_abi as abi;

/// Instances created and destroyed; memory must be flat after a third.
const CYCLES: usize = 30_000;
/// Longest time for the cycles; fewer are done by plugins that are slow to create.
const BUDGET: std::time::Duration = std::time::Duration::from_secs(10);
/// Pages that may come and go: over 20,000 instances 13 bytes each, less than the smallest block of malloc.
const SLACK_PAGES: u64 = 64;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "lifecycle.create-destroy",
        clause: "R5: nothing is left behind",
        kinds: ALL,
        run: create_destroy,
    },
    Check {
        id: "lifecycle.many",
        clause: "two instances share no mutable state",
        kinds: ALL,
        run: many,
    },
    Check {
        id: "lifecycle.order",
        clause: "a call out of order returns LMB_INVALID_STATE",
        kinds: ALL,
        run: order,
    },
    Check {
        id: "lifecycle.cycles",
        clause: "activate - deactivate - (activate ...)",
        kinds: ALL,
        run: cycles,
    },
];

fn create_destroy(subject: &mut Subject) -> Outcome {
    let id = subject.plugin.clone().unwrap_or_default();
    let settings = subject.settings()?.to_string();
    drop(subject.create()?);
    let begin = std::time::Instant::now();
    let mut baseline = None;
    let mut done = 0;
    // The last third is measured against the second: a heap may settle, a leak goes on.
    for cycle in 0..CYCLES {
        if begin.elapsed() > BUDGET {
            break;
        }
        let created = subject.create_with(&id, &settings)?;
        let live = created.map_err(|(_, said)| super::fail("create to succeed each time", said))?;
        live.ports()?;
        drop(live);
        done = cycle + 1;
        if cycle == CYCLES / 3 {
            baseline = resident_pages();
        }
    }
    let (Some(before), Some(after)) = (baseline, resident_pages()) else {
        return Err(Miss::Skip(format!(
            "only {done} instances in {} s: too few to see a leak",
            BUDGET.as_secs()
        )));
    };
    let grown = after.saturating_sub(before);
    ensure(grown <= SLACK_PAGES, "memory flat over 20,000 instances", || {
        format!(
            "{grown} pages more, about {} bytes an instance",
            grown * 4096 / (done - CYCLES / 3).max(1) as u64
        )
    })?;
    Ok(format!("{done} instances, {grown} pages"))
}

fn many(subject: &mut Subject) -> Outcome {
    let mut all: Vec<Live> = Vec::new();
    for _ in 0..8 {
        let live = subject.create()?;
        let fresh = all.iter().all(|o| o.as_ptr() != live.as_ptr());
        ensure(fresh, "another object for each instance", || "the same pointer".into())?;
        all.push(live);
    }
    for live in &mut all {
        live.activate()?;
    }
    // The other way round, to catch a plugin that counts on stack order.
    while !all.is_empty() {
        drop(all.remove(0));
    }
    fine()
}

/// Calls a kind function that is not legal now; its status.
fn kind_call(live: &Live, kind: i32) -> Option<abi::Status> {
    let slot = ErrorSlot::default();
    let context = ctx([1, 1]);
    let me = live.as_ptr();
    match kind {
        abi::KIND_LOSS => {
            let loss = live.interface::<abi::Loss>(abi::LOSS_ID)?;
            let mut bytes = 0;
            // SAFETY: out of order on purpose, with arguments that may not be read before the state is known.
            Some(unsafe { ((*loss).plan)(me, std::ptr::null(), 0, &raw mut bytes, slot.as_ptr()) })
        }
        abi::KIND_TEACHER | abi::KIND_STUDENT => {
            let teacher = live.interface::<abi::Teacher>(abi::TEACHER_ID)?;
            let call = abi::Forward {
                struct_size: abi::struct_size::<abi::Forward>(),
                ctx: &raw const context,
                flags: 0,
                inputs: std::ptr::null(),
                num_inputs: 0,
                wanted: std::ptr::null(),
                num_wanted: 0,
                outputs: std::ptr::null_mut(),
                tape: std::ptr::null_mut(),
            };
            // SAFETY: as above.
            Some(unsafe { ((*teacher).forward)(me, &raw const call, slot.as_ptr()) })
        }
        _ => None,
    }
}

fn state_call(live: &Live) -> Option<abi::Status> {
    unsafe extern "C" fn refuse(
        _: *mut std::ffi::c_void,
        _: *const std::ffi::c_void,
        _: u64,
    ) -> i64 {
        -1
    }
    let save = live.table().state_save?;
    let writer = abi::Writer { this: std::ptr::null_mut(), write: refuse };
    let (slot, context) = (ErrorSlot::default(), ctx([1, 1]));
    // SAFETY: out of order on purpose; every pointer is valid.
    Some(unsafe { save(live.as_ptr(), &raw const context, &raw const writer, slot.as_ptr()) })
}

fn refused(subject: &Subject, what: &str, status: Option<abi::Status>) -> Result<(), Miss> {
    (subject.doing)(what);
    let Some(status) = status else { return Ok(()) };
    ensure(status == abi::STATUS_INVALID_STATE, &format!("LMB_INVALID_STATE for {what}"), || {
        format!("status {status} ({})", crate::load::instance::meaning(status))
    })
}

fn order(subject: &mut Subject) -> Outcome {
    let kind = subject.described()?.kind;
    let mut live = subject.create()?;
    (subject.doing)("kind calls before activate");
    refused(subject, "a kind call before activate", kind_call(&live, kind))?;
    refused(subject, "state_save before activate", state_call(&live))?;
    live.activate()?;
    let (status, _) = live.try_activate(&std::env::temp_dir());
    refused(subject, "a second activate", Some(status))?;
    live.deactivate();
    refused(subject, "a kind call after deactivate", kind_call(&live, kind))?;
    refused(subject, "state_save after deactivate", state_call(&live))?;
    // Still usable after all that.
    live.activate()?;
    fine()
}

fn cycles(subject: &mut Subject) -> Outcome {
    let mut live = subject.create()?;
    let begin = std::time::Instant::now();
    let mut done = 0;
    let mut baseline = None;
    while done < 300 && begin.elapsed() < BUDGET {
        live.activate()?;
        live.deactivate();
        done += 1;
        if done == 100 {
            baseline = resident_pages();
        }
    }
    if let (Some(before), Some(after)) = (baseline, resident_pages()) {
        let grown = after.saturating_sub(before);
        // A model allocates and frees large blocks here; a page or two per cycle would be a leak of it.
        ensure(grown <= 64 + done, "memory flat over activations", || {
            format!("{grown} pages more")
        })?;
    }
    Ok(format!("{done} activations"))
}
