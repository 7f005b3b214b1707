//! `limbeck plugin eval ID --inputs FILE --out FILE`.

use super::inputs::search_path;
use super::{Answer, Shell, Stop};
use crate::args::{FloatArg, PluginEvalArgs};
use crate::exit;
use limbeck_host::diagnostic::Diagnostic;
use limbeck_host::load::Catalogue;
use limbeck_host::run::safetensors::{Named, from_bytes, to_bytes};
use limbeck_host::tensor::DType;
use limbeck_host::trial::{self, Trial};
use serde_json::json;
use std::path::Path;

/// Runs a loss once on the tensors of a file.
///
/// # Errors
/// Flags, files, names, shapes and settings that cannot be used; what the plugin says.
pub fn eval(args: &PluginEvalArgs, shell: &Shell) -> Answer {
    if args.device != "cpu" {
        let problem = Diagnostic::error(
            "LMB0801",
            format!("a loss cannot be evaluated on `{}`", args.device),
        );
        return Err(problem.help("this release evaluates on the CPU").into());
    }
    let usage = |text: String| Stop::from(Diagnostic::error("LMB1001", text));
    if let Some(normalizer) = args.normalizer.filter(|n| !(n.is_finite() && *n > 0.0)) {
        return Err(usage(format!("--normalizer must be above 0, found {normalizer}")));
    }
    let with = serde_json::from_str(&args.with);
    let with = with.map_err(|e| usage(format!("--with is not JSON: {e}")))?;
    let (catalogue, _) = Catalogue::discover(&search_path(None, shell))?;
    let request = Trial {
        id: args.id.clone(),
        with,
        dtype: args.dtype.map(dtype),
        normalizer: args.normalizer,
        grad_scale: args.grad_scale,
    };
    let answer = trial::run(&catalogue, &request, &read(&args.inputs)?)?;
    write(&args.out, &answer.tensors)?;
    let metrics = answer.out.metrics.iter().map(|(name, x)| (name.clone(), number(*x)));
    let value = json!({
        "type": "evaluated", "id": args.id, "value": number(answer.out.value), "normalizer": answer.normalizer,
        "metrics": metrics.collect::<serde_json::Map<_, _>>(), "out": args.out,
    });
    let metrics = answer.out.metrics.iter().map(|(name, x)| format!("  {name} {x}"));
    let text = format!(
        "{}  value {}  normalizer {}{}",
        args.id,
        answer.out.value,
        answer.normalizer,
        metrics.collect::<String>()
    );
    shell.renderer.answer(&text, &value);
    Ok(exit::DONE)
}

/// JSON has no infinity: text then.
fn number(x: f64) -> serde_json::Value {
    if x.is_finite() { json!(x) } else { json!(x.to_string()) }
}

fn dtype(asked: FloatArg) -> DType {
    match asked {
        FloatArg::F32 => DType::F32,
        FloatArg::F64 => DType::F64,
        FloatArg::F16 => DType::F16,
        FloatArg::Bf16 => DType::BF16,
    }
}

fn read(file: &Path) -> Result<Named, Stop> {
    let bytes = std::fs::read(file).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let code = if missing { "LMB0501" } else { "LMB0502" };
        Diagnostic::error(code, format!("cannot read {}: {error}", file.display()))
    })?;
    let bad = |error| Diagnostic::error("LMB0510", format!("{}: {error}", file.display()));
    Ok(from_bytes(&bytes).map_err(bad)?)
}

fn write(file: &Path, tensors: &Named) -> Result<(), Stop> {
    let bug = |error| Diagnostic::error("LMB0901", format!("{error}"));
    let bytes = to_bytes(tensors).map_err(bug)?;
    let fail =
        |error| Diagnostic::error("LMB0702", format!("cannot write {}: {error}", file.display()));
    Ok(std::fs::write(file, bytes).map_err(fail)?)
}
