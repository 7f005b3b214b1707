//! The checker's loss tier in process: differences against gradients, and every promise of `lmb_loss.compute`.
//!
//! Differences are taken on f64 inputs and an f64 value buffer (central, step 1e-6), so they see errors of 1e-3.

use super::model::{grad_tensors, tensors};
use super::{MockHost, MockInstance, Slot, context};
use crate::views::{raw_slice, text};
use crate::{Column, DType, Error, Loss, LossParam, Port, Ports, Random, Result, View};
use limbeck_abi as abi;
use std::collections::BTreeMap;

/// One call of a loss.
#[derive(Clone, Debug)]
pub struct LossCase {
    /// One per input port; `None`: absent.
    pub inputs: Vec<Option<Column>>,
    /// Values of the loss's parameters.
    pub params: Vec<Column>,
    /// Counted rows of the whole step.
    pub normalizer: f64,
    /// Factor of the gradients.
    pub grad_scale: f64,
    /// What the gradient buffers hold before: NaN to overwrite, `Some(x)` to accumulate onto x.
    pub accumulate_onto: Option<f64>,
    /// Ask for no gradient.
    pub value_only: bool,
}

impl LossCase {
    /// A case that overwrites, with scale and normalizer 1.
    pub fn new(inputs: Vec<Option<Column>>) -> Self {
        Self {
            inputs,
            params: Vec::new(),
            normalizer: 1.0,
            grad_scale: 1.0,
            accumulate_onto: None,
            value_only: false,
        }
    }
}

/// What a loss gave.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutcome {
    /// Value.
    pub value: f64,
    /// Gradients of the differentiable inputs, in their dtype; `None` for others.
    pub grads: Vec<Option<Column>>,
    /// Gradients of the parameters.
    pub param_grads: Vec<Column>,
    /// Metrics, in port order.
    pub metrics: Vec<f64>,
}

fn filled(like: &Column, value: f64) -> Result<Column> {
    let n = like.shape().iter().product::<i64>() as usize;
    crate::views::with_dtype!(like.dtype(), T => {
        let values = vec![<T as crate::Element>::from_f64(value); n];
        Column::new(like.name(), like.shape(), &values)
    })
}

impl MockInstance {
    /// Parameters of a loss for inputs of these shapes.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn loss_params(&self, inputs: &[Option<Column>]) -> Result<Vec<LossParam>> {
        let table: &abi::Loss = self.interface(abi::LOSS_ID)?;
        let Some(params) = table.params else { return Ok(Vec::new()) };
        let inputs = tensors(inputs, abi::TENSOR_SHAPE_ONLY);
        let (mut out, mut num, mut slot) = (std::ptr::null(), 0, Slot::default());
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe {
            let (inputs, n) = (inputs.as_ptr(), inputs.len() as u64);
            params(self.plugin, inputs, n, &mut out, &mut num, slot.as_abi())
        };
        slot.outcome(status)?;
        // SAFETY: plugin memory until deactivate.
        unsafe { raw_slice(out, num) }.iter().map(loss_param).collect()
    }

    /// `plan`: bytes of workspace.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn loss_plan(&self, inputs: &[Option<Column>]) -> Result<u64> {
        let table: &abi::Loss = self.interface(abi::LOSS_ID)?;
        let inputs = tensors(inputs, abi::TENSOR_SHAPE_ONLY);
        let (mut bytes, mut slot) = (0, Slot::default());
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe {
            let (inputs, n) = (inputs.as_ptr(), inputs.len() as u64);
            (table.plan)(self.plugin, inputs, n, &mut bytes, slot.as_abi())
        };
        slot.outcome(status)?;
        Ok(bytes)
    }

    /// `plan` and `compute`, with buffers that start as NaN (or as asked) and a workspace of garbage.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn compute(&self, case: &LossCase) -> Result<LossOutcome> {
        let table: &abi::Loss = self.interface(abi::LOSS_ID)?;
        let bytes = self.loss_plan(&case.inputs)?;
        // 256-byte alignment out of 8-byte words.
        let mut workspace = vec![u64::MAX; bytes.div_ceil(8) as usize + 32];
        let offset = workspace.as_ptr().align_offset(256);
        let start = case.accumulate_onto.unwrap_or(f64::NAN);
        let add = case.accumulate_onto.is_some();
        let buffer = |c: &Column| Ok::<_, Error>((filled(c, start)?, add));
        let ports = self.ports()?;
        let (outputs, inputs): (Vec<abi::Port>, Vec<abi::Port>) =
            ports.into_iter().partition(|p| p.flags & abi::PORT_OUTPUT != 0);
        let mut grads = Vec::new();
        for (port, column) in inputs.iter().zip(&case.inputs) {
            let wanted = port.flags & abi::PORT_DIFFERENTIABLE != 0 && !case.value_only;
            grads.push(column.as_ref().filter(|_| wanted).map(buffer).transpose()?);
        }
        let mut param_grads = Vec::new();
        for param in &case.params {
            param_grads.push(if case.value_only { None } else { Some(buffer(param)?) });
        }
        let mut value = Column::new("value", &[1], &[f64::NAN])?;
        let mut metrics = vec![Column::new("metric", &[1], &[f32::NAN])?; outputs.len()];
        let metric_tensors: Vec<abi::Tensor> = metrics.iter_mut().map(Column::abi_mut).collect();
        let params: Vec<abi::Tensor> = case.params.iter().map(Column::abi).collect();
        let input_tensors = tensors(&case.inputs, abi::TENSOR_READ_ONLY);
        let grad_list = grad_tensors(&mut grads);
        let param_grad_list = grad_tensors(&mut param_grads);
        let (value_tensor, ctx) = (value.abi_mut(), context(self.host, 1, [11, 12]));
        let call = abi::LossCall {
            struct_size: abi::struct_size::<abi::LossCall>(),
            ctx: &ctx,
            inputs: input_tensors.as_ptr(),
            num_inputs: input_tensors.len() as u64,
            grads: grad_list.as_ptr(),
            params: params.as_ptr(),
            param_grads: param_grad_list.as_ptr(),
            num_params: params.len() as u64,
            value: &value_tensor,
            metrics: metric_tensors.as_ptr(),
            num_metrics: metric_tensors.len() as u64,
            normalizer: case.normalizer,
            grad_scale: case.grad_scale,
            workspace: workspace.as_mut_ptr().wrapping_add(offset).cast(),
            workspace_bytes: bytes,
        };
        let mut slot = Slot::default();
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe { (table.compute)(self.plugin, &call, slot.as_abi()) };
        slot.outcome(status)?;
        Ok(LossOutcome {
            value: value.slice::<f64>()?[0],
            grads: grads.into_iter().map(|g| g.map(|(column, _)| column)).collect(),
            param_grads: param_grads.into_iter().flatten().map(|(column, _)| column).collect(),
            metrics: metrics
                .iter()
                .map(|m| Ok(f64::from(m.slice::<f32>()?[0])))
                .collect::<Result<_>>()?,
        })
    }
}

fn loss_param(raw: &abi::Param) -> Result<LossParam> {
    // SAFETY: plugin memory until deactivate.
    let view = unsafe { View::from_abi(&raw.value) }?
        .ok_or_else(|| Error::internal("an absent parameter"))?;
    // SAFETY: R6.
    let init = unsafe { text(raw.init) };
    let mut param = LossParam::new(view.name(), view.shape(), init);
    param.dtype = view.dtype();
    param.no_decay = raw.flags & abi::PARAM_NO_DECAY != 0;
    Ok(param)
}

/// Rows and widths to try: single, odd, and wider than one SIMD register.
const SIZES: [(i64, i64); 3] = [(1, 2), (5, 7), (34, 19)];

/// Checks a loss with made-up inputs: see [`crate::gradcheck!`].
///
/// # Errors
/// The first promise that is broken, with numbers.
pub fn gradcheck_loss<T: Loss>(config: &str) -> std::result::Result<(), String> {
    let host = MockHost::new();
    let mut instance = host.loss::<T>(config).map_err(|e| e.to_string())?;
    instance.activate([1, 2]).map_err(|e| e.to_string())?;
    let plugin: T = crate::parse_settings(config)
        .and_then(|c| T::new(c, &host.host()))
        .map_err(|e| e.to_string())?;
    let ports = plugin.ports();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let check =
            Check { host: &host, instance: &instance, ports: &ports, features: T::FEATURES };
        check.all(size, seed as u64).map_err(|e| format!("[N, V] = {size:?}: {e}"))?;
    }
    Ok(())
}

struct Check<'a> {
    host: &'a MockHost,
    instance: &'a MockInstance,
    ports: &'a Ports,
    features: &'a [&'static str],
}

type Verdict = std::result::Result<(), String>;

impl Check<'_> {
    fn all(&self, size: (i64, i64), seed: u64) -> Verdict {
        let say = |e: Error| e.to_string();
        let case = self.case(size, seed).map_err(say)?;
        let base = self.instance.compute(&case).map_err(say)?;
        if !base.value.is_finite() {
            return Err(format!("value {} on ordinary inputs", base.value));
        }
        self.overwritten(&base)?;
        self.differences(&case, &base, seed)?;
        self.promises(&case, &base).map_err(say)??;
        self.rows(&case, &base).map_err(say)?
    }

    fn case(&self, size: (i64, i64), seed: u64) -> Result<LossCase> {
        let mut symbols = BTreeMap::new();
        let mut inputs = Vec::new();
        for (k, port) in self.ports.inputs().enumerate() {
            let mut rng = Random::named([seed, 77], &format!("{k}"));
            inputs.push(made_up(port, size, &mut symbols, &mut rng)?);
        }
        let mut case = LossCase { normalizer: size.0 as f64 + 0.5, ..LossCase::new(inputs) };
        for param in self.instance.loss_params(&case.inputs)? {
            let n = param.shape.iter().product::<i64>();
            let mut rng = Random::named([seed, 78], &param.name);
            let values: Vec<f64> = (0..n).map(|_| 0.5 * rng.normal()).collect();
            case.params.push(Column::new(param.name, &param.shape, &values)?);
        }
        Ok(case)
    }

    fn overwritten(&self, base: &LossOutcome) -> Verdict {
        let grads = base.grads.iter().flatten().chain(&base.param_grads);
        for grad in grads {
            if values(grad).iter().any(|x| !x.is_finite()) {
                return Err(format!(
                    "gradient of `{}` is not all written, or not finite",
                    grad.name()
                ));
            }
        }
        match base.metrics.iter().position(|m| m.is_nan()) {
            Some(i) => Err(format!("metric {i} is not written")),
            None => Ok(()),
        }
    }

    /// Central differences along random directions and single entries.
    fn differences(&self, case: &LossCase, base: &LossOutcome, seed: u64) -> Verdict {
        let inputs = base.grads.iter().enumerate().filter_map(|(k, g)| Some((k, g.as_ref()?)));
        for (k, grad) in inputs {
            self.difference(case, grad, seed, |case| case.inputs[k].as_mut())?;
        }
        for (k, grad) in base.param_grads.iter().enumerate() {
            self.difference(case, grad, seed, |case| case.params.get_mut(k))?;
        }
        Ok(())
    }

    fn difference(
        &self,
        case: &LossCase,
        grad: &Column,
        seed: u64,
        pick: impl Fn(&mut LossCase) -> Option<&mut Column>,
    ) -> Verdict {
        let grad_values = values(grad);
        let mut rng = Random::named([seed, 79], grad.name());
        for trial in 0..8 {
            let direction: Vec<f64> = match trial {
                0..4 => grad_values.iter().map(|_| rng.normal()).collect(),
                _ => {
                    let at = rng.below(grad_values.len() as u64) as usize;
                    (0..grad_values.len()).map(|i| f64::from(u8::from(i == at))).collect()
                }
            };
            let value = |step: f64| -> std::result::Result<f64, String> {
                let mut moved = case.clone();
                let column = pick(&mut moved).ok_or("no such input")?;
                let target = column.slice_mut::<f64>().map_err(|e| e.to_string())?;
                target.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                moved.value_only = true;
                Ok(self.instance.compute(&moved).map_err(|e| e.to_string())?.value)
            };
            let numeric = (value(1e-6)? - value(-1e-6)?) / 2e-6;
            let analytic: f64 = grad_values.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let (difference, allowed) = ((numeric - analytic).abs(), 1e-5 + 1e-3 * numeric.abs());
            if difference > allowed && !self.features.contains(&"piecewise") {
                return Err(format!(
                    "gradient of `{}`: {analytic:.9} along a direction, differences give {numeric:.9}",
                    grad.name()
                ));
            }
        }
        Ok(())
    }

    /// ACCUMULATE, `grad_scale`, `normalizer`, no gradient wanted, other number of threads.
    fn promises(&self, case: &LossCase, base: &LossOutcome) -> Result<Verdict> {
        let run = |edit: &dyn Fn(&mut LossCase)| {
            let mut other = case.clone();
            edit(&mut other);
            self.instance.compute(&other)
        };
        let same = |what: &str, got: &LossOutcome, value: f64, f: &dyn Fn(f64) -> f64| {
            if (got.value - value).abs() > 1e-9 * (1.0 + value.abs()) {
                return Err(format!("{what}: value {}, expected {value}", got.value));
            }
            for (a, b) in pairs(got, base) {
                let wrong = values(a)
                    .iter()
                    .zip(values(b))
                    .any(|(a, b)| (a - f(b)).abs() > 1e-9 * (1.0 + f(b).abs()));
                if wrong {
                    return Err(format!("{what}: gradient of `{}` is wrong", a.name()));
                }
            }
            Ok(())
        };
        let added = run(&|c| c.accumulate_onto = Some(0.5))?;
        let scaled = run(&|c| c.grad_scale = 3.0)?;
        let divided = run(&|c| c.normalizer *= 2.0)?;
        let value_only = run(&|c| c.value_only = true)?;
        self.host.set_threads(5);
        let threads = run(&|_| {})?;
        self.host.set_threads(2);
        Ok(same("ACCUMULATE", &added, base.value, &|g| g + 0.5)
            .and_then(|()| same("grad_scale", &scaled, base.value, &|g| 3.0 * g))
            .and_then(|()| same("normalizer", &divided, base.value / 2.0, &|g| g / 2.0))
            .and_then(|()| match value_only.value == base.value {
                true => Ok(()),
                false => Err(format!("without gradients the value is {}", value_only.value)),
            })
            .and_then(|()| match &threads == base {
                true => Ok(()),
                false => Err("the number of threads changes the result".into()),
            }))
    }

    /// No rows; rows that do not count, also with NaN in them.
    fn rows(&self, case: &LossCase, base: &LossOutcome) -> Result<Verdict> {
        let mut none = case.clone();
        for (port, column) in self.ports.inputs().zip(&mut none.inputs) {
            if let (true, Some(c)) = (port.has_row_axis(), &column) {
                let mut shape = c.shape().to_vec();
                shape[0] = 0;
                *column = Some(Column::from_bytes(c.name(), c.dtype(), &shape, &[])?);
            }
        }
        let empty = self.instance.compute(&none)?;
        if empty.value != 0.0 {
            return Ok(Err(format!("a batch without rows has value {}", empty.value)));
        }
        let labels = self.ports.input_index("labels").filter(|k| case.inputs[*k].is_some());
        let mask = self.ports.input_index("row_mask").filter(|k| case.inputs[*k].is_some());
        let Some(at) = labels.or(mask) else { return Ok(Ok(())) };
        let mut poisoned = case.clone();
        for (port, column) in self.ports.inputs().zip(&mut poisoned.inputs) {
            if let (true, Some(c)) = (port.has_row_axis() && port.is_differentiable(), column) {
                let width = c.slice::<f64>()?.len() / c.shape()[0].max(1) as usize;
                c.slice_mut::<f64>()?[..width].fill(f64::NAN);
            }
        }
        if let Some(column) = &mut poisoned.inputs[at] {
            column.slice_mut::<i64>()?[0] = if labels.is_some() { crate::IGNORED_LABEL } else { 0 };
        }
        let got = self.instance.compute(&poisoned)?;
        if !got.value.is_finite() {
            return Ok(Err(format!(
                "a NaN in a row that does not count makes the value {}",
                got.value
            )));
        }
        for grad in got.grads.iter().flatten() {
            let width = values(grad).len() / grad.shape()[0].max(1) as usize;
            if values(grad)[..width].iter().any(|g| *g != 0.0) {
                return Ok(Err(format!(
                    "`{}`: a row that does not count has a gradient",
                    grad.name()
                )));
            }
        }
        let _ = base;
        Ok(Ok(()))
    }
}

fn pairs<'a>(
    a: &'a LossOutcome,
    b: &'a LossOutcome,
) -> impl Iterator<Item = (&'a Column, &'a Column)> {
    let grads = a.grads.iter().flatten().zip(b.grads.iter().flatten());
    grads.chain(a.param_grads.iter().zip(&b.param_grads))
}

fn values(column: &Column) -> Vec<f64> {
    column.view(|v| v.to_vec::<f64>()).unwrap_or_default()
}

/// An input for a port: floats are f64, labels are classes, masks count every row; other optional ports stay absent.
fn made_up(
    port: &Port,
    (rows, width): (i64, i64),
    symbols: &mut BTreeMap<String, i64>,
    rng: &mut Random,
) -> Result<Option<Column>> {
    let optional = ["labels", "row_mask", "row_weights"].contains(&port.name());
    if port.is_optional() && !optional {
        return Ok(None);
    }
    let next = symbols.len() as i64;
    let shape: Vec<i64> = port
        .shape()
        .split(',')
        .map(|axis| match axis.trim() {
            "N" | "B" => rows,
            "V" => width,
            fixed if fixed.parse::<i64>().is_ok() => fixed.parse().unwrap_or(1),
            symbol => *symbols.entry(symbol.to_owned()).or_insert(width + next),
        })
        .collect();
    let n = shape.iter().product::<i64>();
    let column = if port.element_types().contains(&DType::F64) {
        let values: Vec<f64> = match port.name() {
            "row_weights" => (0..n).map(|_| 0.5 + rng.uniform()).collect(),
            _ => (0..n).map(|_| 2.0 * rng.normal()).collect(),
        };
        Column::new(port.name(), &shape, &values)?
    } else if port.element_types().contains(&DType::I64) {
        let value = |rng: &mut Random| match port.name() {
            "labels" => rng.below(width as u64) as i64,
            _ => 1,
        };
        let values: Vec<i64> = (0..n).map(|_| value(rng)).collect();
        Column::new(port.name(), &shape, &values)?
    } else {
        let message =
            format!("no inputs can be made up for `{}`: compute your own case", port.name());
        return Err(Error::unsupported(message));
    };
    Ok(Some(column))
}

/// Asserts that a [`crate::Loss`] keeps every promise of the contract: gradients against differences, ACCUMULATE, scale,
/// normalizer, threads, empty batches, rows that do not count.
///
/// `gradcheck!(MyLoss, {"temperature": 2.0})`, for a candle loss `gradcheck!(candle MyLoss, {...})`.
#[macro_export]
macro_rules! gradcheck {
    (candle $loss:ty, $($config:tt)+) => {
        $crate::gradcheck!($crate::candle::LossAdapter<$loss>, $($config)+)
    };
    ($loss:ty, $($config:tt)+) => {
        if let Err(error) = $crate::testing::gradcheck_loss::<$loss>(
            &$crate::serde_json::json!($($config)+).to_string(),
        ) {
            panic!("{}: {error}", <$loss as $crate::Loss>::ID);
        }
    };
}
