//! Calls of the losses without a kernel of their own: copied to f64, computed by the oracle, written back.
//!
//! Exact and deterministic; single-threaded, and an input costs 8 bytes an element while it runs.

use super::shapes;
use crate::reference::{Array, Inputs, Refusal, evaluate};
use crate::settings::Spec;
use limbeck_sdk::{Error, LossCall, Ports, Result, View};

fn array(view: &View<'_>) -> Result<Array> {
    let shape = view.shape().iter().map(|d| (*d).max(0) as usize).collect();
    Ok(Array { shape, data: view.to_vec::<f64>()? })
}

/// A refusal as the contract names it.
pub fn refusal(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Shape(message) => Error::invalid_argument(message),
        Refusal::Data(message) => Error::bad_data(message),
    }
}

/// Value, metrics and gradients.
pub fn compute(spec: &Spec, ports: &Ports, call: &LossCall<'_>) -> Result<()> {
    let views = call.inputs();
    let mut inputs = Inputs::new();
    for port in ports.inputs() {
        if let Some(view) = views.named(port.name())? {
            inputs.insert(port.name().to_owned(), array(&view)?);
        }
    }
    let params = shapes::params(spec, &views)?;
    for (index, param) in params.iter().enumerate() {
        inputs.insert(param.name.clone(), array(&call.param(index)?)?);
    }
    let outcome = evaluate(spec, &inputs, call.normalizer()).map_err(refusal)?;
    call.set_value(outcome.value)?;
    call.set_metric(0, outcome.dead_rows)?;
    // Losses on items other than rows of logits do not count them: one stands for all. The value is told as f32.
    let told = (outcome.value as f32).is_finite() || outcome.nonfinite_rows > 0.0;
    let nonfinite = if told { outcome.nonfinite_rows } else { 1.0 / call.normalizer() };
    call.set_metric(1, nonfinite)?;
    let none = |name: &str| Error::internal(format!("no gradient of `{name}`"));
    for (index, port) in ports.inputs().enumerate().filter(|(_, port)| port.is_differentiable()) {
        if let Some(mut grad) = call.grad(index)? {
            let found = outcome.grads.get(port.name()).ok_or_else(|| none(port.name()))?;
            grad.put(call.grad_scale(), &found.data)?;
        }
    }
    for (index, param) in params.iter().enumerate() {
        if let Some(mut grad) = call.param_grad(index)? {
            let found = outcome.grads.get(&param.name).ok_or_else(|| none(&param.name))?;
            grad.put(call.grad_scale(), &found.data)?;
        }
    }
    Ok(())
}
