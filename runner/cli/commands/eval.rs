//! `limbeck eval RUN`.

use super::{Answer, Shell, inputs, unknown};
use crate::args::EvalArgs;
use crate::exit;
use crate::render::events::number;
use limbeck_host::diagnostic::Diagnostic;
use limbeck_host::plan::Which;
use serde_json::json;

/// Prints the metrics of a stage's student, a line per dataset, and the task matrix of a stream, which is that of the
/// student as it went on, not of its best state or EMA.
///
/// # Errors
/// No such run, stage, dataset or checkpoint.
pub fn eval(args: &EvalArgs, shell: &Shell) -> Answer {
    let (run, plan) = inputs::of_run(&args.stage.run, shell)?;
    let stage = inputs::stage(&plan, &args.stage)?;
    if let Some(id) = args.data.as_ref().filter(|id| !plan.datasets.contains_key(*id)) {
        return Err(unknown("dataset", id, plan.datasets.keys().map(String::as_str)));
    }
    let inputs = inputs::open(plan, shell, inputs::Texts::Read)?;
    if let Some(id) = args.data.as_ref().filter(|id| inputs.datasets.get(id).is_none()) {
        let message = format!("no stage uses dataset `{id}`, so it is not read");
        return Err(Diagnostic::error("LMB1001", message).into());
    }
    let which: Which = args.stage.which.into();
    let results = limbeck_host::run::evaluate(
        &inputs.plan,
        inputs.loaded,
        &inputs.datasets,
        &run.dir,
        stage,
        which,
        args.data.as_deref(),
    )?;
    let name = inputs.plan.stages.get(stage).map_or("", |s| s.name.as_str());
    for (data, metrics) in &results {
        let text: String = metrics.iter().map(|(m, v)| format!("  {m} {}", number(*v))).collect();
        let object: serde_json::Map<_, _> =
            metrics.iter().map(|(m, v)| (m.clone(), json!(v))).collect();
        let value = json!({"type": "evaluated", "stage": name, "data": data, "metrics": object});
        shell.renderer.answer(&format!("{name} on {data}{text}"), &value);
    }
    if args.data.is_none()
        && which == Which::Last
        && let Some(matrix) = limbeck_host::run::task_matrix(&inputs.plan, &run.dir, stage)
    {
        let mut value = matrix.to_json();
        value["type"] = "task_matrix".into();
        shell.renderer.answer(&crate::render::matrix::text(&matrix), &value);
    }
    Ok(exit::DONE)
}
