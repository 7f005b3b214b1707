//! Losses as candle expressions: the author writes one value per row, the SDK gets the gradients.
//!
//! Price: the inputs are copied and the graph holds several `[N, V]` tensors in f32; for large vocabularies write a
//! [`crate::Loss`]. Rows that do not count are taken out before the expression, so no NaN of theirs reaches it.

use super::convert;
use crate::{Activation, DType, Error, Host, Loss, LossCall, Port, Ports, Result, Settings, View};
use candle_core::{Device, Tensor, Var};

/// A loss written as a candle expression. Exported by `export! { candle_loss MyLoss }`.
pub trait CandleLoss: Send + Sized + 'static {
    /// Plugin id.
    const ID: &'static str;
    /// One line for `limbeck plugin list`.
    const SUMMARY: &'static str = "";
    /// See [`crate::Loss::FEATURES`].
    const FEATURES: &'static [&'static str] = &["deterministic"];
    /// Settings: what stands under `with`.
    type Config: Settings;

    /// \[main\] Cheap. Refuse settings with [`Error::config`].
    ///
    /// # Errors
    /// Settings out of range.
    fn new(config: Self::Config, host: &Host) -> Result<Self>;
    /// Inputs; those that get a gradient are `input_grad`.
    fn ports(&self) -> Ports;
    /// The value of each row, `[N]`, of operations that have gradients. Rows are only those that count.
    ///
    /// # Errors
    /// What candle says.
    fn value(&self, inputs: &Inputs) -> candle_core::Result<Tensor>;
}

/// Inputs of an expression by port name: floats as f32 (f64 stays f64), integers as they are.
pub struct Inputs {
    tensors: Vec<(String, Tensor)>,
}

impl Inputs {
    /// An input that must be there.
    ///
    /// # Errors
    /// It is not bound.
    pub fn get(&self, name: &str) -> candle_core::Result<Tensor> {
        self.opt(name).ok_or_else(|| candle_core::Error::Msg(format!("input `{name}` is absent")))
    }
    /// An input that may be absent.
    pub fn opt(&self, name: &str) -> Option<Tensor> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone())
    }
}

/// Makes a [`Loss`] of a [`CandleLoss`].
pub struct LossAdapter<T>(T);

impl<T: CandleLoss> Loss for LossAdapter<T> {
    const ID: &'static str = T::ID;
    const SUMMARY: &'static str = T::SUMMARY;
    const FEATURES: &'static [&'static str] = T::FEATURES;
    type Config = T::Config;

    fn new(config: T::Config, host: &Host) -> Result<Self> {
        Ok(Self(T::new(config, host)?))
    }
    fn ports(&self) -> Ports {
        self.0.ports()
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()> {
        crate::limit_rayon(&activation.host(), false);
        convert::device(activation.device()).map(|_| ())
    }
    fn compute(&mut self, call: &LossCall<'_>) -> Result<()> {
        let ports = self.0.ports();
        let rows = row_count(call, &ports)?;
        let counted = call.counted()?;
        let kept: Vec<(usize, f64)> =
            (0..rows).filter_map(|i| Some((i, counted.weight(i)?))).collect();
        let (inputs, vars) = copy_in(call, &ports, &kept, rows)?;
        if kept.is_empty() {
            call.set_value(0.0)?;
            return put_grads(call, &ports, &vars, None, &kept, rows);
        }
        let value = self.0.value(&inputs)?;
        if value.dims() != [kept.len()] {
            let message = format!(
                "the expression gave {:?}, not one value for each of {} rows",
                value.dims(),
                kept.len()
            );
            return Err(Error::internal(message));
        }
        let weights: Vec<f64> = kept.iter().map(|(_, w)| *w).collect();
        let total = if weights.iter().all(|w| *w == 1.0) {
            value.sum_all()?
        } else {
            let weights = Tensor::from_vec(weights, kept.len(), &Device::Cpu)?;
            (value.clone() * weights.to_dtype(value.dtype())?)?.sum_all()?
        };
        let rows_f64 = value.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
        let sum: f64 = rows_f64.iter().zip(&kept).map(|(v, (_, w))| v * w).sum();
        call.set_value(sum / call.normalizer())?;
        let grads = total.backward()?;
        put_grads(call, &ports, &vars, Some(&grads), &kept, rows)
    }
}

/// Rows of the first input with a row axis; without one there is one item.
fn row_count(call: &LossCall<'_>, ports: &Ports) -> Result<usize> {
    for (k, port) in ports.inputs().enumerate() {
        if let (true, Some(view)) = (port.has_row_axis(), call.input(k)?) {
            return Ok(view.num_rows());
        }
    }
    Ok(1)
}

type Vars = Vec<Option<Var>>;

/// Copies inputs, counted rows only; those with a wanted gradient as variables.
fn copy_in(
    call: &LossCall<'_>,
    ports: &Ports,
    kept: &[(usize, f64)],
    rows: usize,
) -> Result<(Inputs, Vars)> {
    let (mut tensors, mut vars) = (Vec::new(), Vec::new());
    for (k, port) in ports.inputs().enumerate() {
        let Some(view) = call.input(k)? else {
            vars.push(None);
            continue;
        };
        let mut tensor = wide(&view)?;
        if port.has_row_axis() && kept.len() != rows {
            let index: Vec<u32> = kept.iter().map(|(i, _)| *i as u32).collect();
            let index = Tensor::from_vec(index, kept.len(), &Device::Cpu)?;
            tensor = tensor.index_select(&index, 0)?;
        }
        let wanted = port.is_differentiable() && call.grad(k)?.is_some();
        let var = if wanted { Some(Var::from_tensor(&tensor)?) } else { None };
        let tensor = var.as_ref().map_or(tensor, |v| v.as_tensor().clone());
        tensors.push((port.name().to_owned(), tensor));
        vars.push(var);
    }
    Ok((Inputs { tensors }, vars))
}

fn wide(view: &View<'_>) -> Result<Tensor> {
    let tensor = convert::tensor(view, &Device::Cpu)?;
    Ok(match view.dtype() {
        DType::F16 | DType::BF16 => tensor.to_dtype(candle_core::DType::F32)?,
        _ => tensor,
    })
}

/// Writes `grad_scale / normalizer * gradient`; exact zeros for rows that do not count and for inputs on which the
/// expression does not depend.
fn put_grads(
    call: &LossCall<'_>,
    ports: &Ports,
    vars: &Vars,
    grads: Option<&candle_core::backprop::GradStore>,
    kept: &[(usize, f64)],
    rows: usize,
) -> Result<()> {
    for (k, port) in ports.inputs().enumerate() {
        let Some(to) = call.grad(k)? else { continue };
        let var = vars.get(k).and_then(Option::as_ref);
        let grad = grads.zip(var).and_then(|(grads, var)| grads.get(var.as_tensor()));
        match grad {
            Some(grad) if by_rows(port, kept, rows) => {
                put_rows(&to, call.grad_factor(), grad, kept)?
            }
            grad => convert::put_grad(to, call.grad_factor(), grad, call.context())?,
        }
    }
    Ok(())
}

fn by_rows(port: &Port, kept: &[(usize, f64)], rows: usize) -> bool {
    port.has_row_axis() && kept.len() != rows
}

fn put_rows(
    to: &crate::GradView<'_>,
    factor: f64,
    grad: &Tensor,
    kept: &[(usize, f64)],
) -> Result<()> {
    let shape = to.shape();
    let width: usize = shape.iter().skip(1).map(|d| *d as usize).product();
    let rows = shape.first().map_or(1, |d| *d as usize);
    let values = grad.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut all = vec![0.0; rows * width];
    for ((i, _), row) in kept.iter().zip(values.chunks(width.max(1))) {
        all[i * width..(i + 1) * width].copy_from_slice(row);
    }
    let mut to = *to;
    to.put(factor, &all)
}
