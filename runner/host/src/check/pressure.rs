//! Tiers `cancel` and `memory`: a call that is asked to stop, or that gets no memory, ends cleanly and leaves an instance
//! that works.
//!
//! A plugin that needs neither passes: it may answer as if nothing had been asked.

use super::live::Live;
use super::loss::{self, Rig as LossRig};
use super::model::{self, Rig as ModelRig};
use super::state;
use super::subject::{ensure, fine, told};
use super::{ALL, Check, Miss, Outcome, Subject, fail};
use crate::load::catalogue::PluginKind;
use crate::load::services;
use limbeck_abi as abi;
use std::time::{Duration, Instant};

/// Longest time from the request to stop to the end of the call.
const PROMPT: Duration = Duration::from_secs(1);
/// Allocations of one call that are made to fail, one after the other.
const MAX_ALLOCATIONS: u64 = 256;

const LOSS: &[PluginKind] = &[PluginKind::Loss];
const MODELS: &[PluginKind] = &[PluginKind::Teacher, PluginKind::Student];

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "cancel.activate",
        clause: "cancelled: return LMB_CANCELLED; the instance stays usable",
        kinds: ALL,
        run: cancel_activate,
    },
    Check {
        id: "cancel.state",
        clause: "cancelled: return LMB_CANCELLED; the instance stays usable",
        kinds: ALL,
        run: cancel_state,
    },
    Check {
        id: "cancel.compute",
        clause: "cancelled: return LMB_CANCELLED; the instance stays usable",
        kinds: LOSS,
        run: cancel_compute,
    },
    Check {
        id: "cancel.forward",
        clause: "cancelled: return LMB_CANCELLED; the instance stays usable",
        kinds: MODELS,
        run: cancel_forward,
    },
    Check {
        id: "memory.activate",
        clause: "tensor_alloc may fail: LMB_OUT_OF_MEMORY, nothing kept",
        kinds: ALL,
        run: memory_activate,
    },
    Check {
        id: "memory.compute",
        clause: "tensor_alloc may fail: LMB_OUT_OF_MEMORY, nothing kept",
        kinds: LOSS,
        run: memory_compute,
    },
    Check {
        id: "memory.forward",
        clause: "tensor_alloc may fail: LMB_OUT_OF_MEMORY, nothing kept",
        kinds: MODELS,
        run: memory_forward,
    },
];

/// Runs a call while a stop is asked for; gives what it gave and how long it took.
fn cancelled<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    services::set_cancelled(Some(Box::new(|| true)));
    let begin = Instant::now();
    let result = call();
    let took = begin.elapsed();
    services::set_cancelled(None);
    (result, took)
}

fn is_prompt(took: Duration) -> Result<(), Miss> {
    ensure(took <= PROMPT, "an end within 1 s of the request to stop", || {
        format!("it came after {:.1} s", took.as_secs_f64())
    })
}

/// Whether the status is one of those that a request to stop may give; true: the plugin obeyed.
fn obeyed(status: abi::Status, said: &str) -> Result<bool, Miss> {
    match status {
        abi::STATUS_OK => Ok(false),
        abi::STATUS_CANCELLED => Ok(true),
        _ => Err(fail("LMB_OK or LMB_CANCELLED", said)),
    }
}

fn verdict(obeyed: bool) -> Outcome {
    Ok(if obeyed { "obeys" } else { "does not ask" }.to_owned())
}

fn cancel_activate(subject: &mut Subject) -> Outcome {
    let mut live = subject.create()?;
    live.ports()?;
    (subject.doing)("activate while cancelled");
    let dir = std::env::temp_dir();
    let ((status, slot), took) = cancelled(|| live.try_activate(&dir));
    if matches!(status, abi::STATUS_NOT_FOUND | abi::STATUS_IO) {
        let said = told(status, slot);
        return Err(Miss::Skip(format!("not activated: {said}; give settings with --with")));
    }
    let obeyed = obeyed(status, &told(status, slot))?;
    is_prompt(took)?;
    live.deactivate();
    (subject.doing)("activate after a cancelled one");
    live.activate()?;
    verdict(obeyed)
}

fn cancel_state(subject: &mut Subject) -> Outcome {
    let mut live = subject.create()?;
    live.activate()?;
    let bytes = state::save(&live, usize::MAX)?;
    (subject.doing)("state_save while cancelled");
    let (saved, took) = cancelled(|| state::try_save(&live, usize::MAX));
    let (status, _, said) = saved?;
    let save_obeyed = obeyed(status, &said)?;
    is_prompt(took)?;
    let again = state::save(&live, usize::MAX)?;
    ensure(again == bytes, "the same state after a cancelled save", || "other bytes".into())?;
    let mut other = subject.create()?;
    other.activate()?;
    (subject.doing)("state_load while cancelled");
    let (loaded, took) = cancelled(|| state::load(&other, &bytes, usize::MAX));
    let (status, said) = loaded?;
    let load_obeyed = obeyed(status, &said)?;
    is_prompt(took)?;
    other.deactivate();
    verdict(save_obeyed || load_obeyed)
}

fn cancel_compute(subject: &mut Subject) -> Outcome {
    let (rig, case) = loss::start(subject, 60)?;
    let expected = rig.evaluate(&case)?;
    (subject.doing)("compute while cancelled");
    let (answer, took) = cancelled(|| rig.attempt(&case, loss::Setup::default()));
    let obeyed = match &answer {
        Ok(_) => false,
        Err((status, said)) => obeyed(*status, said)?,
    };
    is_prompt(took)?;
    let again = rig.evaluate(&case)?;
    same_answer(subject, &expected, &again)?;
    verdict(obeyed)
}

fn same_answer(subject: &mut Subject, a: &loss::Answer, b: &loss::Answer) -> Result<(), Miss> {
    if !subject.has_feature("deterministic")? {
        return Ok(());
    }
    let equal = a.bits() == b.bits();
    ensure(equal, "the same numbers as before the call that failed", || "others".into())
}

fn cancel_forward(subject: &mut Subject) -> Outcome {
    let (mut rig, batch) = model::start(subject, 61)?;
    let names = rig.outputs();
    let expected = rig.forward(&batch, &names, model::ForwardFlags::default())?;
    (subject.doing)("forward while cancelled");
    let (answer, took) = cancelled(|| rig.attempt(&batch, &names));
    let obeyed = match &answer {
        Ok(_) => false,
        Err(error) => obeyed(error.status, &error.message)?,
    };
    is_prompt(took)?;
    same_outputs(&mut rig, &batch, &names, &expected)?;
    verdict(obeyed)
}

fn same_outputs(
    rig: &mut ModelRig,
    batch: &[Option<crate::tensor::Tensor>],
    names: &[String],
    expected: &crate::load::instance::ForwardOut,
) -> Result<(), Miss> {
    let again = rig.forward(batch, names, model::ForwardFlags::default())?;
    let equal = again.outputs.iter().zip(&expected.outputs).all(|(a, b)| model::same(a, b));
    ensure(equal, "the same outputs as before the call that failed", || "others".into())
}

/// Makes the first, second, … allocation of a call fail until a call needs no more. `call` gives a status and words
/// (OK: it coped); `after` is asked each time whether everything works again.
fn each_allocation<S>(
    subject: &mut Subject,
    state: &mut S,
    mut call: impl FnMut(&mut S) -> Result<(abi::Status, String), Miss>,
    mut after: impl FnMut(&mut Subject, &mut S) -> Result<(), Miss>,
) -> Outcome {
    for n in 0..MAX_ALLOCATIONS {
        (subject.doing)(&format!("allocation {} fails", n + 1));
        let (before, held) = (services::failed_allocations(), services::live_bytes());
        services::fail_allocations_after(Some(n));
        let result = call(state);
        services::fail_allocations_after(None);
        let (status, said) = result?;
        if services::failed_allocations() == before {
            return Ok(format!("{n} allocations"));
        }
        let fits = matches!(status, abi::STATUS_OK | abi::STATUS_OUT_OF_MEMORY);
        ensure(fits, &format!("LMB_OUT_OF_MEMORY when allocation {} fails", n + 1), || said)?;
        if status != abi::STATUS_OK {
            let kept = services::live_bytes().saturating_sub(held);
            ensure(kept == 0, "nothing kept by a call that failed", || format!("{kept} bytes"))?;
        }
        after(subject, state)?;
    }
    Ok(format!("the first {MAX_ALLOCATIONS} allocations"))
}

fn memory_activate(subject: &mut Subject) -> Outcome {
    let mut live: Live = subject.create()?;
    live.ports()?;
    let dir = std::env::temp_dir();
    each_allocation(
        subject,
        &mut live,
        |live| {
            let (status, slot) = live.try_activate(&dir);
            if matches!(status, abi::STATUS_NOT_FOUND | abi::STATUS_IO) {
                let said = told(status, slot);
                return Err(Miss::Skip(format!(
                    "not activated: {said}; give settings with --with"
                )));
            }
            let said = told(status, slot);
            live.deactivate();
            Ok((status, said))
        },
        |_, live| {
            live.activate()?;
            live.deactivate();
            Ok(())
        },
    )
}

fn memory_compute(subject: &mut Subject) -> Outcome {
    let (mut rig, case) = loss::start(subject, 62)?;
    let expected = rig.evaluate(&case)?;
    each_allocation(
        subject,
        &mut rig,
        |rig: &mut LossRig| {
            Ok(match rig.attempt(&case, loss::Setup::default()) {
                Ok(_) => (abi::STATUS_OK, String::new()),
                Err(refused) => refused,
            })
        },
        |subject, rig| same_answer(subject, &expected, &rig.evaluate(&case)?),
    )
}

fn memory_forward(subject: &mut Subject) -> Outcome {
    let (mut rig, batch) = model::start(subject, 63)?;
    let names = rig.outputs();
    let expected = rig.forward(&batch, &names, model::ForwardFlags::default())?;
    each_allocation(
        subject,
        &mut rig,
        |rig| {
            Ok(match rig.attempt(&batch, &names) {
                Ok(_) => (abi::STATUS_OK, String::new()),
                Err(error) => (error.status, error.message),
            })
        },
        |_, rig| same_outputs(rig, &batch, &names, &expected),
    )?;
    fine()
}
