//! One call of one loss on given tensors: what an author compares with another implementation.
//!
//! Tensors go to the ports (and loss parameters) of their names. Refuses names that are neither, required ports
//! without a tensor, and element types that a port does not take. Whatever the plugin refuses comes back as a
//! diagnostic; nothing is guessed.

use crate::diagnostic::{Diagnostic, Diagnostics, did_you_mean};
use crate::load::Catalogue;
use crate::load::catalogue::PluginKind;
use crate::load::codes;
use crate::load::instance::{CallCtx, GradOut, Instance, LossCall, LossOut, PluginError, Port};
use crate::run::safetensors::Named;
use crate::tensor::{DType, Tensor, TensorSpec};
use half::{bf16, f16};
use limbeck_abi as abi;

/// What is asked of the loss.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// Plugin id.
    pub id: String,
    /// Settings, as under `with`.
    pub with: serde_json::Value,
    /// Floats of ports that take this type are converted to it first.
    pub dtype: Option<DType>,
    /// Counted rows of the step; `None`: those of the given tensors, at least 1.
    pub normalizer: Option<f64>,
    /// Factor of every gradient.
    pub grad_scale: f64,
}

/// What the loss gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The normaliser that was used.
    pub normalizer: f64,
    /// Value and metrics.
    pub out: LossOut,
    /// `value`, `metric.NAME`, `grad.PORT`, `grad.PARAMETER`.
    pub tensors: Named,
}

/// Runs the call on the CPU.
///
/// # Errors
/// Everything that is wrong with the request, else what the plugin says.
pub fn run(catalogue: &Catalogue, trial: &Trial, tensors: &Named) -> Result<Answer, Diagnostics> {
    let one = |diagnostic: Diagnostic| vec![diagnostic];
    let info = catalogue.find(&trial.id).ok_or_else(|| one(catalogue.missing(&trial.id)))?;
    if info.kind != PluginKind::Loss {
        let text =
            format!("`{}` is a {}, only losses can be evaluated", trial.id, info.kind.name());
        return Err(one(Diagnostic::error(codes::WRONG_KIND, text)));
    }
    let with = catalogue.check_settings(&trial.id, &trial.with).map_err(|errors| {
        errors.into_iter().map(|e| at_pointer(e.diagnostic, &e.pointer)).collect::<Vec<_>>()
    })?;
    let told = |error: PluginError| one(diagnostic(&error));
    let mut instance = catalogue.create(&trial.id, &with).map_err(told)?;
    instance.activate(CallCtx::default(), &std::env::temp_dir()).map_err(told)?;
    let answer = call(&mut instance, trial, tensors);
    instance.deactivate();
    answer
}

fn at_pointer(diagnostic: Diagnostic, pointer: &str) -> Diagnostic {
    if pointer.is_empty() {
        diagnostic
    } else {
        diagnostic.note(format!("at {pointer} of the settings"))
    }
}

/// Shapes that the plugin refuses are the request's fault, not a broken contract.
fn diagnostic(error: &PluginError) -> Diagnostic {
    let mut diagnostic = error.diagnostic();
    if error.status == abi::STATUS_INVALID_ARGUMENT {
        diagnostic.code = codes::SHAPES_DIFFER;
    }
    diagnostic
}

fn call(instance: &mut Instance, trial: &Trial, tensors: &Named) -> Result<Answer, Diagnostics> {
    let told = |error: PluginError| vec![diagnostic(&error)];
    let ports: Vec<Port> = instance.inputs().cloned().collect();
    let inputs = bind(&ports, trial, tensors)?;
    let specs: Vec<_> = inputs.iter().map(|t| t.as_ref().map(spec)).collect();
    let own = instance.loss_params(&specs).map_err(told)?;
    let mut problems = Diagnostics::new();
    let mut params = Vec::with_capacity(own.len());
    for param in &own {
        match tensors.get(&param.name) {
            None => {
                let text = format!(
                    "no tensor for the loss's parameter `{}` {:?}",
                    param.name, param.spec.shape
                );
                problems.push(Diagnostic::error(codes::UNBOUND_PORT, text));
            }
            Some(found) if found.shape() != param.spec.shape => {
                let text = format!(
                    "parameter `{}` is {:?}, the tensor {:?}",
                    param.name,
                    param.spec.shape,
                    found.shape()
                );
                problems.push(Diagnostic::error(codes::SHAPES_DIFFER, text));
            }
            Some(found) => params.push(cast(found, param.spec.dtype)),
        }
    }
    let known: Vec<&str> =
        ports.iter().map(|p| p.name.as_str()).chain(own.iter().map(|p| p.name.as_str())).collect();
    for name in tensors.keys().filter(|name| !known.contains(&name.as_str())) {
        let problem =
            Diagnostic::error(codes::NO_SUCH_PORT, format!("`{}` has no port `{name}`", trial.id));
        problems.push(match did_you_mean(name, known.iter().copied()) {
            Some(close) => problem.help(format!("did you mean `{close}`?")),
            None => problem.help(format!("ports: {}", known.join(", "))),
        });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let grads: Vec<Option<GradOut>> = ports
        .iter()
        .zip(&inputs)
        .map(|(port, input)| input.as_ref().filter(|_| port.is_differentiable()).map(gradient))
        .collect();
    let param_grads: Vec<GradOut> = params.iter().map(gradient).collect();
    let normalizer = trial.normalizer.unwrap_or_else(|| counted(&ports, &inputs));
    let request = LossCall {
        inputs: &inputs,
        grads: &grads,
        params: &params,
        param_grads: &param_grads,
        normalizer,
        grad_scale: trial.grad_scale,
    };
    let out = instance.loss_compute(CallCtx::default(), &request).map_err(told)?;
    let number = |x: f64| Tensor::from_slice(&[x as f32], &[1]);
    let mut named = Named::from([("value".to_owned(), number(out.value))]);
    named.extend(out.metrics.iter().map(|(name, x)| (format!("metric.{name}"), number(*x))));
    let of_ports = ports.iter().zip(grads).filter_map(|(p, g)| Some((&p.name, g?.buffer)));
    let of_params = own.iter().zip(param_grads).map(|(p, g)| (&p.name, g.buffer));
    named.extend(of_ports.chain(of_params).map(|(name, t)| (format!("grad.{name}"), t)));
    Ok(Answer { normalizer, out, tensors: named })
}

/// Tensors in the order of the ports.
fn bind(
    ports: &[Port],
    trial: &Trial,
    tensors: &Named,
) -> Result<Vec<Option<Tensor>>, Diagnostics> {
    let mut problems = Diagnostics::new();
    let mut inputs = Vec::with_capacity(ports.len());
    for port in ports {
        let Some(tensor) = tensors.get(&port.name) else {
            if !port.is_optional() {
                let text = format!("no tensor for port `{}` [{}]", port.name, port.shape);
                problems.push(Diagnostic::error(codes::UNBOUND_PORT, text));
            }
            inputs.push(None);
            continue;
        };
        let asked = trial.dtype.filter(|d| tensor.dtype().is_float() && port.dtypes.contains(d));
        let tensor = asked.map_or_else(|| tensor.clone(), |dtype| cast(tensor, dtype));
        if !port.dtypes.contains(&tensor.dtype()) {
            let types: Vec<&str> = port.dtypes.iter().map(|t| t.name()).collect();
            let text = format!("port `{}` takes no {}", port.name, tensor.dtype().name());
            problems.push(
                Diagnostic::error(codes::TYPES_DIFFER, text)
                    .help(format!("it takes {}", types.join(", "))),
            );
        }
        inputs.push(Some(tensor));
    }
    if problems.is_empty() { Ok(inputs) } else { Err(problems) }
}

fn spec(tensor: &Tensor) -> TensorSpec {
    TensorSpec { dtype: tensor.dtype(), shape: tensor.shape().to_vec() }
}

fn gradient(of: &Tensor) -> GradOut {
    GradOut { buffer: Tensor::zeros(of.dtype(), of.shape()), accumulate: false }
}

/// Rows of the first port, without those that `labels` −100 or `row_mask` 0 take out; at least 1.
fn counted(ports: &[Port], inputs: &[Option<Tensor>]) -> f64 {
    let named = |name: &str| {
        let at = ports.iter().position(|p| p.name == name)?;
        inputs[at].as_ref().map(numbers)
    };
    let rows = inputs.iter().flatten().next().map_or(0, Tensor::rows);
    let (labels, mask) = (named("labels"), named("row_mask"));
    let counts = |n: &usize| {
        let labelled = labels.as_ref().is_none_or(|l| l.get(*n) != Some(&-100.0));
        labelled && mask.as_ref().is_none_or(|m| m.get(*n) != Some(&0.0))
    };
    (0..rows).filter(counts).count().max(1) as f64
}

/// The elements as f64; exact but for integers above 2⁵³.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    macro_rules! read {
        ($($dtype:ident $type:ty: $get:expr),*) => {
            match tensor.dtype() {
                $(DType::$dtype => {
                    let get: fn(&$type) -> f64 = $get;
                    tensor.data::<$type>().unwrap_or_default().iter().map(get).collect()
                })*
            }
        };
    }
    read! {
        F32 f32: |x| f64::from(*x), F64 f64: |x| *x, F16 f16: |x| x.to_f64(), BF16 bf16: |x| x.to_f64(),
        I64 i64: |x| *x as f64, I32 i32: |x| f64::from(*x), U8 u8: |x| f64::from(*x), U32 u32: |x| f64::from(*x)
    }
}

/// A float tensor in another float type, rounded to nearest even; itself if it has the type, or is of integers.
fn cast(tensor: &Tensor, dtype: DType) -> Tensor {
    if tensor.dtype() == dtype {
        return tensor.clone();
    }
    let (values, shape) = (numbers(tensor), tensor.shape());
    match dtype {
        DType::F32 => {
            Tensor::from_slice(&values.iter().map(|x| *x as f32).collect::<Vec<_>>(), shape)
        }
        DType::F64 => Tensor::from_slice(&values, shape),
        DType::F16 => {
            Tensor::from_slice(&values.iter().map(|x| f16::from_f64(*x)).collect::<Vec<_>>(), shape)
        }
        DType::BF16 => Tensor::from_slice(
            &values.iter().map(|x| bf16::from_f64(*x)).collect::<Vec<_>>(),
            shape,
        ),
        DType::I64 | DType::I32 | DType::U8 | DType::U32 => tensor.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_rounded_to_nearest_even_and_integers_stay() {
        let x = Tensor::from_slice(&[1.0f32, 1.003_906_3, -3.0], &[3]);
        assert_eq!(numbers(&cast(&x, DType::BF16)), [1.0, 1.0, -3.0]);
        assert_eq!(numbers(&cast(&x, DType::F64)), [1.0, f64::from(1.003_906_3_f32), -3.0]);
        let labels = Tensor::from_slice(&[3i64, -100], &[2]);
        assert_eq!(cast(&labels, DType::I32).dtype(), DType::I64);
    }
}
