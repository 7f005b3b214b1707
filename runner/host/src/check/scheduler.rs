//! Tier `scheduler`: what a scheduler declares.

use super::subject::{ensure, fine, text, told};
use super::{Check, Miss, Outcome, Subject, fail};
use crate::load::catalogue::PluginKind;
use crate::load::services::ErrorSlot;
use limbeck_abi as abi;

const SCHEDULER: &[PluginKind] = &[PluginKind::Scheduler];

pub(super) const CHECKS: &[Check] = &[
    Check { id: "scheduler.plan", clause: "lmb_schedule", kinds: SCHEDULER, run: plan },
    Check { id: "scheduler.plan-pure", clause: "plan is pure", kinds: SCHEDULER, run: pure },
];

/// What a scheduler declared, as text; two plans of one instance must be equal.
fn declared(live: &super::live::Live) -> Result<(abi::Schedule, String), Miss> {
    let table = live.interface::<abi::Scheduler>(abi::SCHEDULER_ID);
    let table = table.ok_or_else(|| fail("lmb.scheduler/1", "NULL"))?;
    // SAFETY: a struct of numbers and pointers; "comes zeroed but for struct_size".
    let mut out: abi::Schedule = unsafe { std::mem::zeroed() };
    out.struct_size = abi::struct_size::<abi::Schedule>();
    let slot = ErrorSlot::default();
    // SAFETY: [main], after create.
    let status = unsafe { ((*table).plan)(live.as_ptr(), &raw mut out, slot.as_ptr()) };
    if status != abi::STATUS_OK {
        return Err(fail("plan to succeed", told(status, slot)));
    }
    let mut words = format!("events {:#x} claims {:#x}", out.events, out.claims);
    for i in 0..out.num_groups as usize {
        // SAFETY: plugin memory of `num_groups` entries until destroy.
        let group = unsafe { &*out.groups.add(i) };
        words += &format!(
            "; group {} {} {:#x}",
            text(group.name, "group")?,
            group.max_rows,
            group.flags
        );
    }
    for i in 0..out.num_terms as usize {
        // SAFETY: as above.
        let term = unsafe { &*out.terms.add(i) };
        let (name, loss) = (text(term.name, "term")?, text(term.loss, "term.loss")?);
        let (rows, config) =
            (text(term.rows, "term.rows")?, text(term.config_json, "term.config_json")?);
        words += &format!("; term {name} = {} {loss} on {rows:?} with {config}", term.weight);
    }
    for i in 0..out.num_snapshots as usize {
        // SAFETY: as above.
        words += &format!("; snapshot {}", text(unsafe { *out.snapshots.add(i) }, "snapshot")?);
    }
    Ok((out, words))
}

fn plan(subject: &mut Subject) -> Outcome {
    let live = subject.create()?;
    let (schedule, words) = declared(&live)?;
    let known = (abi::EVENT_EVAL_END << 1) - 1;
    ensure(schedule.events & !known == 0, "known events", || format!("{:#x}", schedule.events))?;
    let mut groups = Vec::new();
    for i in 0..schedule.num_groups as usize {
        // SAFETY: as in `declared`.
        let group = unsafe { &*schedule.groups.add(i) };
        ensure(group.max_rows > 0, "a bound on the rows of each group", || "max_rows 0".into())?;
        groups.push(text(group.name, "group")?);
    }
    for i in 0..schedule.num_terms as usize {
        // SAFETY: as in `declared`.
        let term = unsafe { &*schedule.terms.add(i) };
        let rows = text(term.rows, "term.rows")?;
        let exists = rows.is_empty() || rows == "*" || groups.contains(&rows);
        ensure(exists, "terms on declared groups", || rows.clone())?;
        ensure(term.weight.is_finite(), "finite weights", || term.weight.to_string())?;
        let config = text(term.config_json, "term.config_json")?;
        let json = serde_json::from_str::<serde_json::Value>(&config);
        ensure(json.is_ok(), "JSON in config_json", || config.clone())?;
    }
    Ok(words)
}

fn pure(subject: &mut Subject) -> Outcome {
    let (one, two) = (subject.create()?, subject.create()?);
    let first = declared(&one)?.1;
    let second = declared(&one)?.1;
    ensure(first == second, "the same plan when asked again", || second.clone())?;
    let other = declared(&two)?.1;
    ensure(first == other, "the same plan from equal settings", || other.clone())?;
    fine()
}
