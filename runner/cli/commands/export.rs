//! `limbeck export RUN --to DIR`.

use super::{Answer, Shell, inputs};
use crate::args::{ExportArgs, ExportFormat};
use crate::exit;
use serde_json::json;

/// Writes a stage's student.
///
/// # Errors
/// No such run, stage or checkpoint; the directory cannot be written.
pub fn export(args: &ExportArgs, shell: &Shell) -> Answer {
    let ExportFormat::Hf = args.format;
    let (run, plan) = inputs::of_run(&args.stage.run, shell)?;
    let stage = inputs::stage(&plan, &args.stage)?;
    let inputs = inputs::open(plan, shell, inputs::Texts::LeftAlone)?;
    let which = args.stage.which.into();
    limbeck_host::run::export(&inputs.plan, inputs.loaded, &run.dir, stage, which, &args.to)?;
    let value = json!({"type": "exported", "to": args.to});
    shell.renderer.answer(&format!("wrote {}", args.to.display()), &value);
    Ok(exit::DONE)
}
