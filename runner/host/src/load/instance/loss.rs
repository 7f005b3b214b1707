//! Calls of a loss.
//!
//! The value and metric buffers hold NaN before each call, so a loss that forgets one is seen. Workspace and argument
//! lists are kept, so a call on the CPU allocates nothing unless shapes changed or the loss has metrics. A call on a
//! device waits for nothing: its numbers are read when somebody asks for them.

use super::core::context;
use super::ports::SpecViews;
use super::{
    CallCtx, Instance, LossCall, LossOut, LossParam, LossPending, PluginError, Port, grad_view,
    input_views,
};
use crate::device::DeviceError;
use crate::tensor::{DType, Tensor, TensorSpec};
use limbeck_abi as abi;

/// What is kept between calls.
pub(super) struct LossState {
    planned: Option<Vec<Option<TensorSpec>>>,
    workspace: Option<Tensor>,
    workspace_bytes: u64,
    value: Tensor,
    metrics: Vec<(String, Tensor)>,
    metric_views: Vec<abi::Tensor>,
    param_names: Vec<String>,
}

impl LossState {
    pub fn new(ports: &[Port]) -> Self {
        let buffer = || Tensor::zeros(DType::F32, &[1]);
        let metrics =
            ports.iter().filter(|p| p.is_output()).map(|p| (p.name.clone(), buffer())).collect();
        Self {
            planned: None,
            workspace: None,
            workspace_bytes: 0,
            value: buffer(),
            metrics,
            metric_views: Vec::new(),
            param_names: Vec::new(),
        }
    }

    /// After `deactivate`: plan again.
    pub fn forget(&mut self) {
        // What lies on a device is freed before the device is.
        let buffer = || Tensor::zeros(DType::F32, &[1]);
        self.value = buffer();
        self.metrics.iter_mut().for_each(|(_, tensor)| *tensor = buffer());
        self.planned = None;
        self.workspace = None;
        self.workspace_bytes = 0;
        self.param_names.clear();
    }

    fn is_planned_for(&self, inputs: &[Option<Tensor>]) -> bool {
        let same = |(spec, input): (&Option<TensorSpec>, &Option<Tensor>)| match (spec, input) {
            (None, None) => true,
            (Some(spec), Some(t)) => spec.dtype == t.dtype() && spec.shape == t.shape(),
            _ => false,
        };
        self.planned
            .as_ref()
            .is_some_and(|p| p.len() == inputs.len() && p.iter().zip(inputs).all(same))
    }

    /// The value and the metrics on a device, NaN, as one tensor; the views are into it.
    fn begin_on(&mut self, device: abi::DLDevice) -> Result<Tensor, DeviceError> {
        let size = 1 + self.metrics.len();
        let values = Tensor::from_slice(&vec![f32::NAN; size], &[size as i64]).to(device)?;
        self.value = values.slice_rows(0, 1);
        for (i, (_, tensor)) in self.metrics.iter_mut().enumerate() {
            *tensor = values.slice_rows(i + 1, i + 2);
        }
        self.metric_views.clear();
        self.metric_views.extend(self.metrics.iter().map(|(name, t)| t.view(name, 0)));
        Ok(values)
    }

    /// NaN into the value and every metric.
    fn clear(&mut self) {
        for tensor in std::iter::once(&self.value).chain(self.metrics.iter().map(|(_, t)| t)) {
            // SAFETY: our own buffers; no reference to their elements is alive.
            let elements = unsafe { tensor.data_mut::<f32>() };
            elements.fill(f32::NAN);
        }
        self.metric_views.clear();
        self.metric_views.extend(self.metrics.iter().map(|(name, t)| t.view(name, 0)));
    }

    fn read(&self) -> LossOut {
        let number = |t: &Tensor| t.data::<f32>().map_or(f64::NAN, |d| f64::from(d[0]));
        LossOut {
            value: number(&self.value),
            metrics: self.metrics.iter().map(|(name, t)| (name.clone(), number(t))).collect(),
        }
    }
}

impl Instance {
    fn loss_table(&self, call: &'static str) -> Result<&abi::Loss, PluginError> {
        match self.tables.loss {
            // SAFETY: the table lives until `destroy`; checked in `Tables::ask`.
            Some(table) => Ok(unsafe { &*table }),
            None => Err(self.core.error(call, abi::STATUS_UNSUPPORTED, "no lmb.loss/1")),
        }
    }

    /// Trainable tensors of a loss.
    ///
    /// # Errors
    /// What the plugin said, or how the list breaks the contract.
    pub fn loss_params(
        &mut self,
        inputs: &[Option<TensorSpec>],
    ) -> Result<Vec<LossParam>, PluginError> {
        self.core.need_active("params")?;
        self.check_inputs("params", inputs.len())?;
        let Some(params) = self.loss_table("params")?.params else { return Ok(Vec::new()) };
        let views = SpecViews::new(self.inputs(), inputs);
        let (inputs, num_inputs) = (views.tensors.as_ptr(), views.tensors.len() as u64);
        let (mut list, mut count) = (std::ptr::null(), 0u64);
        // SAFETY: [step], active; lists and places alive during the call.
        let run = |p, e| unsafe { params(p, inputs, num_inputs, &mut list, &mut count, e) };
        self.core.call("params", 0, run)?;
        if count > 65_536 || (count > 0 && list.is_null()) {
            return Err(self.core.broke("params", format!("{count} parameters at {list:?}")));
        }
        let mut owned: Vec<LossParam> = Vec::new();
        for i in 0..count as usize {
            // SAFETY: `list` has `count` entries, plugin memory until `deactivate`.
            let param = unsafe { &*list.add(i) };
            // SAFETY: as above.
            let param = unsafe { copy_param(param) }
                .map_err(|text| self.core.broke("params", format!("parameter {i}: {text}")))?;
            if owned.iter().any(|p| p.name == param.name) {
                return Err(self.core.broke("params", format!("parameter `{}` twice", param.name)));
            }
            owned.push(param);
        }
        self.loss.param_names = owned.iter().map(|p| p.name.clone()).collect();
        Ok(owned)
    }

    /// Checks shapes; the workspace is kept inside and reused.
    ///
    /// # Errors
    /// What the plugin said about the shapes.
    pub fn loss_plan(&mut self, inputs: &[Option<TensorSpec>]) -> Result<(), PluginError> {
        self.core.need_active("plan")?;
        self.check_inputs("plan", inputs.len())?;
        let plan = self.loss_table("plan")?.plan;
        let views = SpecViews::new(self.inputs(), inputs);
        let (list, count) = (views.tensors.as_ptr(), views.tensors.len() as u64);
        let mut bytes = 0u64;
        self.loss.planned = None;
        // SAFETY: [step], active; lists and place alive during the call.
        self.core.call("plan", 0, |p, e| unsafe { plan(p, list, count, &mut bytes, e) })?;
        if bytes > 1 << 40 {
            return Err(self.core.broke("plan", format!("a workspace of {bytes} bytes")));
        }
        let held = self.loss.workspace.as_ref().map_or(0, |w| w.bytes() as u64);
        if bytes > held {
            let memory = Tensor::zeros_on(self.device, DType::U8, &[bytes as i64]);
            let memory = memory.map_err(|e| self.core.error("plan", e.status, e.message))?;
            self.loss.workspace = Some(memory);
        }
        self.loss.workspace_bytes = bytes;
        self.loss.planned = Some(inputs.to_vec());
        Ok(())
    }

    /// Value, metrics, gradients. Plans again by itself when shapes changed.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn loss_compute(
        &mut self,
        ctx: CallCtx,
        call: &LossCall<'_>,
    ) -> Result<LossOut, PluginError> {
        let given = self.loss_start(ctx, call)?;
        given.read().map_err(|e| self.core.error("compute", e.status, e.message))
    }

    /// As [`Instance::loss_compute`], without waiting for a device.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn loss_start(
        &mut self,
        ctx: CallCtx,
        call: &LossCall<'_>,
    ) -> Result<LossPending, PluginError> {
        self.core.need_active("compute")?;
        self.check_inputs("compute", call.inputs.len())?;
        self.check_loss_call(call)?;
        if !self.loss.is_planned_for(call.inputs) {
            let spec = |t: &Tensor| TensorSpec { dtype: t.dtype(), shape: t.shape().to_vec() };
            let specs: Vec<_> = call.inputs.iter().map(|t| t.as_ref().map(spec)).collect();
            self.loss_plan(&specs)?;
        }
        let compute = self.loss_table("compute")?.compute;
        let ctx = context(ctx, self.device);
        let inputs = self.bring("compute", call.inputs)?;
        self.fill_scratch(call, &inputs);
        let on_device = if self.device == abi::DLDevice::CPU {
            self.loss.clear();
            None
        } else {
            let values = self.loss.begin_on(self.device);
            Some(values.map_err(|e| self.core.error("compute", e.status, e.message))?)
        };
        let value = self.loss.value.view("value", 0);
        let s = &self.scratch;
        let raw = abi::LossCall {
            struct_size: abi::struct_size::<abi::LossCall>(),
            ctx: &ctx,
            inputs: s.inputs.as_ptr(),
            num_inputs: s.inputs.len() as u64,
            grads: s.grads.as_ptr(),
            params: s.params.as_ptr(),
            param_grads: s.param_grads.as_ptr(),
            num_params: s.params.len() as u64,
            value: &value,
            metrics: self.loss.metric_views.as_ptr(),
            num_metrics: self.loss.metric_views.len() as u64,
            normalizer: call.normalizer,
            grad_scale: call.grad_scale,
            workspace: self.loss.workspace.as_ref().map_or(std::ptr::null_mut(), Tensor::address),
            workspace_bytes: self.loss.workspace_bytes,
        };
        // SAFETY: [step], active, planned for these shapes; lists and buffers alive during the call.
        self.core.call("compute", ctx.step, |p, e| unsafe { compute(p, &raw, e) })?;
        Ok(match on_device {
            None => LossPending::Read(self.loss.read()),
            Some(values) => {
                let names = self.loss.metrics.iter().map(|(name, _)| name.clone()).collect();
                LossPending::OnDevice { values, names }
            }
        })
    }

    fn check_loss_call(&self, call: &LossCall<'_>) -> Result<(), PluginError> {
        let bad =
            |text: String| Err(self.core.error("compute", abi::STATUS_INVALID_ARGUMENT, text));
        if call.grads.len() != call.inputs.len() || call.param_grads.len() != call.params.len() {
            return bad(format!("{} gradients for {} inputs", call.grads.len(), call.inputs.len()));
        }
        if call.normalizer.is_nan() || call.normalizer <= 0.0 {
            return bad(format!("normalizer {}", call.normalizer));
        }
        if call.params.len() != self.loss.param_names.len() {
            return bad(format!(
                "{} parameters for {}",
                call.params.len(),
                self.loss.param_names.len()
            ));
        }
        Ok(())
    }

    fn fill_scratch(&mut self, call: &LossCall<'_>, inputs: &[Option<Tensor>]) {
        let s = &mut self.scratch;
        input_views(&self.ports, inputs, &mut s.inputs);
        s.grads.clear();
        let ports = self.ports.iter().filter(|p| !p.is_output());
        s.grads.extend(ports.zip(call.grads).map(|(p, g)| grad_view(&p.name, g.as_ref())));
        let names = &self.loss.param_names;
        s.params.clear();
        s.params
            .extend(names.iter().zip(call.params).map(|(n, t)| t.view(n, abi::TENSOR_READ_ONLY)));
        s.param_grads.clear();
        s.param_grads
            .extend(names.iter().zip(call.param_grads).map(|(n, g)| grad_view(n, Some(g))));
    }
}

/// # Safety
/// A SHAPE_ONLY parameter of an active loss.
unsafe fn copy_param(param: &abi::Param) -> Result<LossParam, String> {
    // SAFETY: R6.
    let (name, init) = unsafe { (param.value.name.text(), param.init.text()) };
    let name = name.filter(|n| !n.is_empty()).ok_or("no UTF-8 name")?;
    let init = init.ok_or("init is not UTF-8")?;
    let t = &param.value.t;
    let ndim = usize::try_from(t.ndim).map_err(|_| format!("`{name}`: {} dimensions", t.ndim))?;
    let shape = match ndim {
        0 => Vec::new(),
        _ if t.shape.is_null() => return Err(format!("`{name}`: no shape")),
        // SAFETY: `shape` has `ndim` entries.
        _ => unsafe { std::slice::from_raw_parts(t.shape, ndim) }.to_vec(),
    };
    if shape.iter().any(|d| *d < 0) {
        return Err(format!("`{name}`: shape {shape:?} is not known"));
    }
    let dtype = DType::from_dl(t.dtype).ok_or_else(|| format!("`{name}`: unknown element type"))?;
    Ok(LossParam {
        name: name.to_owned(),
        spec: TensorSpec { dtype, shape },
        init: init.to_owned(),
        trainable: param.flags & abi::PARAM_TRAINABLE != 0,
        no_decay: param.flags & abi::PARAM_NO_DECAY != 0,
    })
}
