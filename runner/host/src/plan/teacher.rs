//! `teacher`: a plugin, a student of an earlier stage, a cache, a moving copy, the student itself, or an ensemble.
//!
//! An ensemble is one model: its logits are the logarithm of the mean of its members' probabilities. Its members keep
//! their own outputs under their names (`teacher.NAME.OUTPUT`).

use super::slots::{no_plugin, one_of};
use super::stages::Around;
use super::top::report_double;
use super::values::{check_name, inputs, out_of_range, plugin_use, resolve_path};
use super::{Bound, CacheAt, CachePlan, FromStage, MAX_MEMBERS, MemberPlan, TeacherPlan, Work};
use crate::diagnostic::Diagnostic;
use crate::document::{Bounds, Fields, Node, Value};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// `teacher`: exactly one of `uses`, `from`, `ensemble`, `ema`, `self`, `cache`.
pub fn teacher(around: &Around, fields: &Fields) -> (Option<TeacherPlan>, BTreeMap<String, Bound>) {
    let Some(part) = fields.part("teacher") else { return (None, BTreeMap::new()) };
    one_of(&part, &["uses", "from", "ensemble", "ema", "self", "cache"]);
    let plan = if let Some(frozen) = frozen_teacher(around, &part) {
        frozen
    } else if part.field("cache").is_some() {
        cached_teacher(around, &part)
    } else if part.field("ensemble").is_some() {
        ensemble(around, &part)
    } else if let Some(ema) = part.part("ema") {
        if ema.field("decay").is_none() {
            ema.missing("decay", "for example `ema: {decay: 0.999}`");
        }
        let decay = ema.number("decay", Bounds::DECAY).unwrap_or(0.0);
        part.keep_part("ema", ema.finish());
        Some(TeacherPlan::Ema { decay })
    } else {
        self_teacher(&part)
    };
    let bound = inputs(&part);
    fields.keep_part("teacher", part.finish());
    (plan, bound)
}

/// `ensemble`: each member exactly one of `uses`, `from`, `cache`.
fn ensemble(around: &Around, part: &Fields) -> Option<TeacherPlan> {
    let span = part.field("ensemble").map(|f| f.node.span.clone());
    let mut members: Vec<MemberPlan> = Vec::new();
    let broken = each_member(part, |member, name| {
        one_of(member, &["uses", "from", "cache"]);
        let teacher = match frozen_teacher(around, member) {
            Some(frozen) => frozen,
            None => cached_teacher(around, member),
        };
        let inputs = inputs(member);
        let span = Some(member.span.clone());
        members.extend(teacher.map(|teacher| MemberPlan { name, teacher, inputs, span }));
    });
    (!broken).then_some(TeacherPlan::Ensemble { members, span })
}

/// `ensemble` of an `eval` stage: students of earlier stages, each stage once.
pub fn students(around: &Around, part: &Fields) -> Vec<FromStage> {
    let mut students: Vec<FromStage> = Vec::new();
    each_member(part, |member, _| {
        if member.field("from").is_none() {
            member.missing("from", "the name of an earlier stage");
        }
        let Some(from) = around.read_own(member) else { return };
        // Members that share a name were reported.
        if member.field("name").is_some() && students.iter().any(|s| s.stage == from.stage) {
            report_double(around.sink, "this member", from.span.as_ref().unwrap_or(&member.span));
        }
        students.push(from);
    });
    students
}

/// Reads the members; whether something about the list as a whole is wrong.
fn each_member(part: &Fields, mut read: impl FnMut(&Fields, String)) -> bool {
    let Some(field) = part.field("ensemble") else { return true };
    let nodes = part.list("ensemble");
    if nodes.is_empty() || nodes.len() > MAX_MEMBERS {
        if matches!(field.node.value, Value::List(_)) {
            let allowed = format!("a list of 1 to {MAX_MEMBERS} models");
            out_of_range(part.sink, "ensemble", &allowed, &field.node);
        }
        return true;
    }
    let (mut names, mut json): (Vec<String>, Vec<Json>) = (Vec::new(), Vec::new());
    for (index, node) in nodes.iter().enumerate() {
        let name = member_name(node, index);
        let what = format!("member `{name}`");
        let member = part.below(node, &format!("ensemble.{name}"), what.clone(), field.inherited);
        match member.field("name") {
            Some(written) => {
                member.text("name");
                check_name(part.sink, "a member's name", &name, &written.node.span, false);
            }
            None => member.keep("name", Json::from(name.as_str()), None),
        }
        if names.contains(&name) {
            report_double(part.sink, &what, &node.span);
        }
        read(&member, name.clone());
        names.push(name);
        json.push(member.finish());
    }
    part.keep_part("ensemble", Json::Array(json));
    false
}

/// `name`, else the stage that it comes from, else the last part of the id, else its number.
fn member_name(node: &Node, index: usize) -> String {
    let text = |key: &str| node.get(key).and_then(|n| n.text()).filter(|t| !t.is_empty());
    let cached = || node.get("cache").and_then(|c| c.get("from")).and_then(|n| n.text());
    let plugin = || text("uses").and_then(|id| id.rsplit('.').next()).filter(|t| !t.is_empty());
    let found = text("name").or_else(|| text("from")).or_else(cached).or_else(plugin);
    found.map_or_else(|| (index + 1).to_string(), str::to_owned)
}

/// `teacher` of a `capture` stage: exactly one of `uses`, `from`.
pub fn captured_teacher(
    around: &Around,
    fields: &Fields,
) -> (Option<TeacherPlan>, BTreeMap<String, Bound>) {
    let Some(part) = fields.part("teacher") else {
        fields
            .missing("teacher", "for example `teacher: {from: STAGE}` or `{uses: limbeck.hf, …}`");
        return (None, BTreeMap::new());
    };
    one_of(&part, &["uses", "from"]);
    let plan = frozen_teacher(around, &part).flatten();
    let bound = inputs(&part);
    fields.keep_part("teacher", part.finish());
    (plan, bound)
}

/// `uses` or `from`, if one of them is there.
fn frozen_teacher(around: &Around, part: &Fields) -> Option<Option<TeacherPlan>> {
    if part.field("uses").is_some() {
        return Some(Some(TeacherPlan::Plugin(plugin_use(part, "limbeck.hf"))));
    }
    part.field("from")?;
    Some(around.read_from(part).map(|from| {
        let student = around.trained(&from).map(|(from, t)| from.taken(&t.student));
        TeacherPlan::Stage { student: student.unwrap_or_else(no_plugin), from }
    }))
}

/// `cache: DIR` or `cache: {from: STAGE}`.
fn cached_teacher(around: &Around, part: &Fields) -> Option<TeacherPlan> {
    let field = part.field("cache")?;
    let span = Some(field.node.span.clone());
    if !matches!(field.node.value, Value::Map(_)) {
        let at = CacheAt::Dir(resolve_path(around.base, &part.text("cache")?));
        return Some(TeacherPlan::Cache(CachePlan { at, span }));
    }
    let inner = part.part("cache")?;
    let name = inner.need_text("from", "the name of a `capture` stage");
    let found = inner.field("from").map(|f| f.node.span.clone());
    part.keep_part("cache", inner.finish());
    let found = found.filter(|_| !name.is_empty())?;
    let stage = around.earlier(&name, &found)?;
    if around.is_broken(stage) {
        return None;
    }
    if !around.done.get(stage).is_some_and(|s| matches!(s.work, Work::Capture(_))) {
        around.sink.report(
            Diagnostic::error("LMB0207", format!("stage `{name}` captures no teacher"))
                .at(found)
                .help("name a stage of kind `capture`"),
        );
        return None;
    }
    Some(TeacherPlan::Cache(CachePlan { at: CacheAt::Stage(stage), span }))
}

fn self_teacher(part: &Fields) -> Option<TeacherPlan> {
    let field = part.field("self")?;
    if !part.flag_or("self", true) {
        part.sink.report(
            Diagnostic::error("LMB0105", "`self` must be true, found false")
                .at(field.node.span.clone())
                .help("leave `teacher` out to have none"),
        );
    }
    Some(TeacherPlan::SelfOutputs)
}
