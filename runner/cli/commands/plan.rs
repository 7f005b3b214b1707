//! `limbeck plan FILE`.

use super::{Answer, Shell, Stop, inputs, size};
use crate::args::{PlanArgs, Show};
use crate::exit;
use crate::render::table;
use limbeck_host::diagnostic::Diagnostic;
use limbeck_host::plan::{Plan, StagePlan, TrainPlan, Work};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Shows stages with their cost, or the resolved pipeline.
///
/// # Errors
/// Whatever would keep the pipeline from running.
pub fn plan(args: &PlanArgs, shell: &Shell) -> Answer {
    let plan = inputs::plan_file(&args.pipeline.file, &args.pipeline.set)?;
    if args.show == Some(Show::Config) {
        return show_config(&plan, shell);
    }
    let inputs = inputs::open(plan, shell, inputs::Texts::LeftAlone)?;
    let header = ["stage", "tasks", "student", "params", "steps", "peak", "disk"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for stage in &inputs.plan.stages {
        let size = size::of_stage(&inputs, stage.index).unwrap_or_default();
        let show =
            |number: Option<u64>, form: fn(u64) -> String| number.map_or_else(|| "-".into(), form);
        let (tasks, student) = describe(&inputs.plan, stage);
        if shell.renderer.is_json() {
            let value = json!({
                "type": "stage", "stage": stage.name, "tasks": tasks, "student": student, "steps": size.steps,
                "params": size.params, "peak_bytes": size.peak, "disk_bytes": size.disk,
            });
            shell.renderer.answer("", &value);
        }
        rows.push(vec![
            stage.name.clone(),
            tasks,
            student,
            show(size.params, table::count),
            show(size.steps, table::thousands),
            show(size.peak, table::bytes),
            show(size.disk, table::bytes),
        ]);
    }
    if !shell.renderer.is_json() {
        shell.renderer.document(&table::columns(&rows));
    }
    Ok(exit::DONE)
}

/// The columns `tasks` and `student`.
fn describe(plan: &Plan, stage: &StagePlan) -> (String, String) {
    let name = |index: usize| plan.stages.get(index).map_or("?", |s| s.name.as_str()).to_owned();
    match &stage.work {
        Work::Train(train) => {
            let from = train.student_from.as_ref();
            let origin = from.map(|f| match &f.run {
                None => name(f.stage),
                Some(run) => format!("{} of {}", f.plan(plan).stages[f.stage].name, run.written),
            });
            (tasks(train), origin.unwrap_or("new".into()))
        }
        Work::Capture(capture) => (capture.data.join(" "), "-".into()),
        Work::Eval(eval) => {
            let students: Vec<String> = eval.models.iter().map(|m| name(m.stage)).collect();
            (eval.data.join(" "), students.join(" "))
        }
        Work::Export(export) => ("-".into(), name(export.model.stage)),
    }
}

fn tasks(train: &TrainPlan) -> String {
    let name = |task: &limbeck_host::plan::TaskPlan| {
        if task.name.is_empty() { task.train.clone() } else { task.name.clone() }
    };
    train.tasks.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// The resolved pipeline, the origin of each value in a comment behind it.
fn show_config(plan: &Plan, shell: &Shell) -> Answer {
    shell.renderer.problems(&plan.warnings);
    if shell.renderer.is_json() {
        let value = json!({"type": "config", "resolved": plan.resolved, "origins": plan.origins});
        shell.renderer.answer("", &value);
        return Ok(exit::DONE);
    }
    let mut out = String::new();
    // Names with dots are quoted in origins; the walk below does not quote.
    let origins: Origins =
        plan.origins.iter().map(|(path, o)| (path.replace('"', ""), format!("  # {o}"))).collect();
    write_yaml(&plan.resolved, "", 0, &origins, &mut out)?;
    shell.renderer.document(&out);
    Ok(exit::DONE)
}

/// Comment of each resolved value, by path.
type Origins = BTreeMap<String, String>;

/// Writes one value as block YAML; lists of scalars stay on one line.
fn write_yaml(
    value: &Value,
    path: &str,
    depth: usize,
    origins: &Origins,
    out: &mut String,
) -> Result<(), Stop> {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let child_path =
                    if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let key = scalar(&Value::String(key.clone()))?;
                let origin = origins.get(&child_path).map_or("", String::as_str);
                if is_block(child) {
                    out.push_str(&format!("{indent}{key}:{origin}\n"));
                    write_yaml(child, &child_path, depth + 1, origins, out)?;
                } else {
                    out.push_str(&format!("{indent}{key}: {}{origin}\n", scalar(child)?));
                }
            }
        }
        Value::Array(items) => {
            for (index, child) in items.iter().enumerate() {
                let name = child.get("name").and_then(Value::as_str);
                let step = name.map_or_else(|| index.to_string(), str::to_owned);
                let mut lines = String::new();
                if is_block(child) {
                    write_yaml(child, &format!("{path}.{step}"), depth + 1, origins, &mut lines)?;
                } else {
                    lines = format!("{indent}  {}\n", scalar(child)?);
                }
                // The dash takes the place of the first line's last two blanks.
                out.push_str(&indent);
                out.push_str("- ");
                out.push_str(lines.get(indent.len() + 2..).unwrap_or_default());
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether a value takes lines of its own.
fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => items.iter().any(|i| i.is_object() || i.is_array()),
        _ => false,
    }
}

/// A value on one line, quoted where YAML needs it.
fn scalar(value: &Value) -> Result<String, Stop> {
    let text = match value {
        Value::Array(_) | Value::Object(_) => {
            serde_json::to_string(value).map_err(|e| e.to_string())
        }
        _ => serde_yaml::to_string(value).map_err(|e| e.to_string()),
    };
    let text = text.map_err(|e| {
        Stop::from(Diagnostic::error("LMB0901", format!("a value has no YAML form: {e}")))
    })?;
    let text = text.trim_end();
    // A block scalar (text with line breaks) does not fit on the line of its key.
    let is_one_line = !text.contains('\n');
    Ok(if is_one_line { text.to_owned() } else { serde_json::to_string(value).unwrap_or_default() })
}
