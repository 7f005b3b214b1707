//! Tier `scheduler`: what a scheduler declares, and what it asks for in random legal streams of events.

use super::events::Rig;
use super::live::Live;
use super::subject::{ensure, fine, text, told};
use super::{Check, Miss, Outcome, Subject, fail, sample, state};
use crate::load::catalogue::PluginKind;
use crate::load::services::ErrorSlot;
use crate::run::random::Random;
use limbeck_abi as abi;

/// Drawn settings that are tried beside the smallest.
const DRAWN: usize = 6;
const SCHEDULER: &[PluginKind] = &[PluginKind::Scheduler];

pub(super) const CHECKS: &[Check] = &[
    Check { id: "scheduler.plan", clause: "lmb_schedule", kinds: SCHEDULER, run: plan },
    Check { id: "scheduler.plan-pure", clause: "plan is pure", kinds: SCHEDULER, run: pure },
    Check {
        id: "scheduler.events",
        clause: "requests of an event: declared names, known knobs, the events that allow them",
        kinds: SCHEDULER,
        run: legal,
    },
    Check {
        id: "scheduler.deterministic",
        clause: "all randomness comes from ctx.rng_key",
        kinds: SCHEDULER,
        run: repeatable,
    },
    Check {
        id: "scheduler.resume",
        clause: "all that another instance needs to go on bit for bit",
        kinds: SCHEDULER,
        run: resumes,
    },
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

/// Settings to try: those given, else the smallest and some drawn ones that the plugin takes.
fn variants(subject: &mut Subject) -> Result<Vec<String>, Miss> {
    let smallest = subject.settings()?.to_string();
    if subject.with.is_some() {
        return Ok(vec![smallest]);
    }
    let schema = serde_json::from_str(&subject.described()?.schema)
        .map_err(|e| fail("a JSON Schema in config_schema", e.to_string()))?;
    let mut draw = Random::new([subject.seed, 29]);
    let mut all = vec![smallest];
    all.extend((0..DRAWN).map(|_| sample::random(&schema, &mut draw).to_string()));
    Ok(all)
}

/// Runs `f` with two ways to get an active instance, for every variant that the plugin takes; counts them.
fn each_variant(
    subject: &mut Subject,
    mut f: impl FnMut(&str, &mut Subject) -> Result<bool, Miss>,
) -> Outcome {
    let (mut shown, mut idle) = (0, 0);
    for settings in variants(subject)? {
        let id = subject.plugin.clone().unwrap_or_default();
        if subject.create_with(&id, &settings)?.is_err() {
            continue;
        }
        match f(&settings, subject)? {
            true => shown += 1,
            false => idle += 1,
        }
    }
    Ok(format!("{shown} settings, {idle} more that listen to nothing"))
}

fn instance(subject: &mut Subject, settings: &str) -> Result<Live, Miss> {
    let id = subject.plugin.clone().unwrap_or_default();
    let made = subject.create_with(&id, settings)?;
    let mut live = made.map_err(|(_, said)| fail("create to succeed again", said))?;
    live.activate()?;
    Ok(live)
}

/// The log of a whole stream; at the border `cut` another instance goes on from the saved state.
fn log_of(
    subject: &mut Subject,
    settings: &str,
    cut: Option<u64>,
) -> Result<Option<Vec<String>>, Miss> {
    let (live, other) = (instance(subject, settings)?, instance(subject, settings)?);
    let mut other = Some(other);
    let mut rig = Rig::new(live, subject.seed, &*subject.doing)?;
    if rig.is_idle() {
        return Ok(None);
    }
    rig.stream(&mut |rig, place| {
        let Some(other) = other.take_if(|_| cut == Some(place)) else { return Ok(()) };
        if rig.live.table().state_save.is_some() {
            let bytes = state::save(&rig.live, usize::MAX)?;
            let (status, said) = state::load(&other, &bytes, usize::MAX)?;
            ensure(status == abi::STATUS_OK, "state_load to succeed", || said)?;
        }
        rig.replace(other);
        Ok(())
    })?;
    Ok(Some(rig.log))
}

fn legal(subject: &mut Subject) -> Outcome {
    each_variant(subject, |settings, subject| Ok(log_of(subject, settings, None)?.is_some()))
}

fn repeatable(subject: &mut Subject) -> Outcome {
    each_variant(subject, |settings, subject| {
        let first = log_of(subject, settings, None)?;
        let again = log_of(subject, settings, None)?;
        same(&first, &again, "the same requests from equal events", settings)?;
        Ok(first.is_some())
    })
}

fn resumes(subject: &mut Subject) -> Outcome {
    each_variant(subject, |settings, subject| {
        let whole = log_of(subject, settings, None)?;
        for cut in (1..=18).step_by(3) {
            let parts = log_of(subject, settings, Some(cut))?;
            same(
                &whole,
                &parts,
                &format!("the same requests after a cut at border {cut}"),
                settings,
            )?;
        }
        Ok(whole.is_some())
    })
}

fn same(
    one: &Option<Vec<String>>,
    two: &Option<Vec<String>>,
    expected: &str,
    settings: &str,
) -> Result<(), Miss> {
    let (one, two) = (one.clone().unwrap_or_default(), two.clone().unwrap_or_default());
    let differs = one.iter().zip(&two).find(|(a, b)| a != b);
    let found = match differs {
        Some((a, b)) => format!("`{a}`, then `{b}`"),
        None => format!("{} and {} entries", one.len(), two.len()),
    };
    ensure(one == two, &format!("{expected} ({settings})"), || found)
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
