//! Creates instances from a plan's `uses` and `with`, with the place of everything that is refused.
//!
//! Checks that the plugin exists, is of the wanted kind, keeps the run's promises (device, determinism) and accepts
//! its settings.

use super::catalogue::{Catalogue, PluginInfo, PluginKind, SettingError};
use super::{Instance, codes};
use crate::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::plan::{DeviceChoice, Plan, PluginUse};
use limbeck_abi as abi;

/// Creates one instance.
///
/// # Errors
/// Every problem, placed at the key or value that causes it, within `context`.
pub(crate) fn create(
    plan: &Plan,
    catalogue: &Catalogue,
    plugin: &PluginUse,
    kind: PluginKind,
    context: &str,
) -> Result<Instance, Diagnostics> {
    let at_id = |d: Diagnostic| vec![d.at(plugin.id_span.clone()).within(context)];
    let info = catalogue.find(&plugin.id).ok_or_else(|| at_id(catalogue.missing(&plugin.id)))?;
    let mut problems: Diagnostics = promises(plan, info, kind)
        .into_iter()
        .map(|d| d.at(plugin.id_span.clone()).within(context))
        .collect();
    if info.kind != kind {
        return Err(problems);
    }
    let place = |e: SettingError| {
        let span = span_of(plugin, &e.pointer, e.at_key);
        e.diagnostic.at(span).within(context)
    };
    match catalogue.check_settings_in(&plugin.id, &plugin.with, Some(plugin.base(plan))) {
        Err(errors) => problems.extend(errors.into_iter().map(place)),
        Ok(with) if problems.is_empty() => match catalogue.create(&plugin.id, &with) {
            Ok(instance) => return Ok(instance),
            Err(error) => {
                let pointer = error.note("pointer").unwrap_or_default();
                let span = span_of(plugin, pointer, false);
                problems.push(error.diagnostic().at(span).within(context));
            }
        },
        Ok(_) => {}
    }
    Err(problems)
}

/// What a run asks of every plugin, whatever its settings.
fn promises(plan: &Plan, info: &PluginInfo, kind: PluginKind) -> Diagnostics {
    let mut problems = Vec::new();
    let id = &info.id;
    if info.kind != kind {
        let (is, wanted) = (info.kind.name(), kind.name());
        let problem = Diagnostic::error(
            codes::WRONG_KIND,
            format!("`{id}` is a {is}, a {wanted} is needed here"),
        );
        let from = info.kind == PluginKind::Student && kind == PluginKind::Teacher;
        problems.push(if from {
            problem.help("a student teaches as `teacher: {from: STAGE}`, `{ema: {decay: …}}` or `{self: true}`")
        } else {
            problem
        });
    }
    if plan.deterministic && !info.features.iter().any(|f| f == "deterministic") {
        let text = format!(
            "`deterministic: true` refuses `{id}`, which does not promise equal bits on repetition"
        );
        problems.push(Diagnostic::error(codes::NOT_DETERMINISTIC, text));
    }
    let (device, name) = match plan.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => (abi::DL_CPU, "the CPU".to_owned()),
        DeviceChoice::Cuda(ordinal) => (abi::DL_CUDA, format!("cuda:{ordinal}")),
    };
    if info.device_mask & (1 << device) == 0 {
        let problem =
            Diagnostic::error(codes::NO_DEVICE, format!("`{id}` does not compute on {name}"));
        problems.push(match plan.device {
            DeviceChoice::Cuda(_) => problem
                .note(
                    "this build of its library does not; plugins/cuda/build.sh builds all that can",
                )
                .help(
                    "use `device: cpu`, or `device: auto`, which takes a GPU where all plugins can",
                ),
            _ => problem,
        });
    }
    problems
}

/// The place of a JSON Pointer into `with`; of the closest mapping around it if it is not written there.
fn span_of(plugin: &PluginUse, pointer: &str, at_key: bool) -> Option<Span> {
    let mut pointer = pointer;
    loop {
        if let Some(place) = plugin.spans.get(pointer).filter(|_| !pointer.is_empty()) {
            let (key, value) = (place.key.clone(), place.value.clone());
            return if at_key { key.or(value) } else { value.or(key) };
        }
        match pointer.rsplit_once('/') {
            Some((parent, _)) => pointer = parent,
            None => return plugin.with_span.clone().or_else(|| plugin.id_span.clone()),
        }
    }
}

/// `` `limbeck.mlp` (digits.yaml:21:5) ``.
pub(crate) fn place(id: &str, span: Option<&Span>) -> String {
    match span {
        Some(s) => format!("`{id}` ({}:{}:{})", s.file.display(), s.line, s.column),
        None => format!("`{id}`"),
    }
}
