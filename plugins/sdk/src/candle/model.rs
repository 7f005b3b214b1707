//! One forward pass of a candle model: tensors in, named tensors out.
//!
//! Only wanted outputs need to be computed; batches without rows never reach a model.

use super::convert;
use crate::{Context, DType, Error, ForwardCall, Output, Port, Ports, Random, Result};
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeMap;

/// What a model is given in one forward pass.
pub struct ModelCall<'a> {
    context: Context<'a>,
    wanted: Vec<&'a str>,
    train: bool,
    recorded: bool,
    inputs: BTreeMap<String, Tensor>,
    device: Device,
}

impl<'a> ModelCall<'a> {
    /// An input, in its own element type.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is absent.
    pub fn input(&self, name: &str) -> Result<&Tensor> {
        self.input_opt(name).ok_or_else(|| {
            Error::invalid_argument(format!("input `{name}` is absent")).tensor(name)
        })
    }
    /// An input that may be absent.
    pub fn input_opt(&self, name: &str) -> Option<&Tensor> {
        self.inputs.get(name)
    }
    /// Whether an output is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.contains(&name)
    }
    /// The wanted outputs.
    pub fn wanted(&self) -> &[&'a str] {
        &self.wanted
    }
    /// Training behaviour: dropout, statistics are updated.
    pub fn train(&self) -> bool {
        self.train
    }
    /// Whether a backward pass may follow.
    pub fn recorded(&self) -> bool {
        self.recorded
    }
    /// The stream of draws of one use (`"dropout.3"`) inside this call; equal on replay.
    pub fn rng(&self, name: &str) -> Random {
        self.context.rng(name)
    }
    /// Context: step, cancellation, metrics.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }
    /// Device of the model.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// Where the gradients of one backward pass go, in the order of parameters, then of inputs.
pub struct GradSlot<'a> {
    /// Parameter or input.
    pub name: &'a str,
    /// Its elements, row-major.
    pub values: &'a mut [f32],
    /// Add to it instead of overwriting it.
    pub accumulate: bool,
}

/// A backward pass of the model's own: from the cotangents of outputs, by name, to all the slots.
pub type OwnBackward =
    Box<dyn FnOnce(Vec<(String, Tensor)>, Vec<GradSlot<'_>>) -> Result<()> + 'static>;

/// The outputs of a model by name.
#[derive(Default)]
pub struct Outputs {
    tensors: BTreeMap<String, Tensor>,
    backward: Option<OwnBackward>,
}

impl Outputs {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds one.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, tensor: Tensor) -> Self {
        self.put(name, tensor);
        self
    }
    /// Adds one.
    pub fn put(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }
    /// The model's own way back, for a [`ModelCall::recorded`] pass of a student. Without it, gradients flow through
    /// candle's graph.
    #[must_use]
    pub fn with_backward(mut self, backward: OwnBackward) -> Self {
        self.backward = Some(backward);
        self
    }
    pub(super) fn take_backward(&mut self) -> Option<OwnBackward> {
        self.backward.take()
    }
    /// Takes a wanted one.
    pub(super) fn take(&self, name: &str) -> Result<Tensor> {
        self.tensors.get(name).cloned().ok_or_else(|| {
            Error::internal(format!("the model did not compute its output `{name}`")).tensor(name)
        })
    }
}

/// Inputs as tensors; differentiable ones as variables, in port order, if their gradients are asked for.
pub(super) fn prepare<'a>(
    call: &ForwardCall<'a>,
    ports: &Ports,
    device: &Device,
) -> Result<(ModelCall<'a>, Vec<Option<Var>>)> {
    let mut inputs = BTreeMap::new();
    let mut vars = Vec::new();
    for (i, port) in ports.inputs().enumerate() {
        let tensor = match call.inputs().get(i)? {
            Some(view) => {
                let copied = convert::input(&view, device, call.context());
                Some(copied.map_err(|e| e.tensor(port.name()))?)
            }
            None => None,
        };
        let var = match &tensor {
            Some(tensor) if call.input_grad() && port.is_differentiable() => {
                Some(Var::from_tensor(tensor)?)
            }
            _ => None,
        };
        if let Some(tensor) = var.as_ref().map(|v| v.as_tensor().clone()).or(tensor) {
            inputs.insert(port.name().to_owned(), tensor);
        }
        vars.push(var);
    }
    let call = ModelCall {
        context: *call.context(),
        wanted: call.wanted().to_vec(),
        train: call.train(),
        recorded: call.param_grad() || call.input_grad(),
        inputs,
        device: device.clone(),
    };
    Ok((call, vars))
}

/// Whether an input with a row axis has no rows.
pub(super) fn has_no_rows(call: &ForwardCall<'_>, ports: &Ports) -> Result<bool> {
    for (i, port) in ports.inputs().enumerate() {
        if let (true, Some(view)) = (port.has_row_axis(), call.inputs().get(i)?) {
            return Ok(view.num_rows() == 0);
        }
    }
    Ok(false)
}

/// The wanted outputs of a batch without rows: the right shapes, no element.
pub(super) fn empty_outputs(call: &ForwardCall<'_>, ports: &Ports) -> Result<Vec<Output>> {
    let mut symbols: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, port) in ports.inputs().enumerate() {
        if let Some(view) = call.inputs().get(i)? {
            for (axis, size) in axes(port).zip(view.shape()) {
                symbols.insert(axis, (*size).max(0) as usize);
            }
        }
    }
    let empty = |name: &&str| {
        let port = ports
            .outputs()
            .find(|p| p.name() == *name)
            .ok_or_else(|| Error::not_found(format!("no output `{name}`")))?;
        let size = |axis: &str| match axis {
            // Rows may be flattened (N = B·T); none stay none.
            "B" | "N" => 0,
            _ => axis.parse().unwrap_or_else(|_| symbols.get(axis).copied().unwrap_or(0)),
        };
        let shape: Vec<usize> = axes(port).map(size).collect();
        if shape.iter().product::<usize>() != 0 {
            return Err(Error::invalid_argument("a batch without rows").tensor(*name));
        }
        match port.element_types().first() {
            Some(DType::F64) => Output::from_vec::<f64>(Vec::new(), &shape),
            Some(DType::BF16) => Output::from_vec::<half::bf16>(Vec::new(), &shape),
            Some(DType::F16) => Output::from_vec::<half::f16>(Vec::new(), &shape),
            Some(DType::I64) => Output::from_vec::<i64>(Vec::new(), &shape),
            _ => Output::from_vec::<f32>(Vec::new(), &shape),
        }
    };
    call.wanted().iter().map(empty).collect()
}

fn axes(port: &Port) -> impl Iterator<Item = &str> {
    port.shape().split(',').map(str::trim)
}
