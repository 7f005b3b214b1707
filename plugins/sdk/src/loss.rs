//! Losses: value, metrics and gradients in one call.
//!
//! [`LossCall::sum_rows`] does counting, weights, scale, ACCUMULATE, element types, zero rows and threads; the rest of
//! [`LossCall`] is the contract as it is, for losses with kernels of their own.

use crate::ports::Ports;
use crate::views::{GradView, Rows, View, Views, raw_slice};
use crate::{Activation, Context, DType, Error, Host, Random, Result, Settings};
use limbeck_abi as abi;
use std::io::{Read, Write};
use std::ops::Range;

/// A loss plugin. Exported by `limbeck_sdk::export! { loss MyLoss }`.
pub trait Loss: Send + Sized + 'static {
    /// Plugin id: `[a-z0-9.-]`, e.g. `org.example.reverse-kl`.
    const ID: &'static str;
    /// One line for `limbeck plugin list`.
    const SUMMARY: &'static str = "";
    /// `deterministic` promises bitwise repeatability, `piecewise` admits jumps (top-k, routing).
    const FEATURES: &'static [&'static str] = &["deterministic"];
    /// `limbeck_abi::DL_*` device types.
    const DEVICES: &'static [i32] = &[abi::DL_CPU];
    /// Offers `save` and `load`.
    const STATE: bool = false;
    /// Settings: what stands under `with`.
    type Config: Settings;

    /// \[main\] Cheap. Refuse settings with [`Error::config`].
    ///
    /// # Errors
    /// Settings out of range.
    fn new(config: Self::Config, host: &Host) -> Result<Self>;
    /// Inputs, and one output per metric.
    fn ports(&self) -> Ports;
    /// \[step\] Gets what is slow or large.
    ///
    /// # Errors
    /// The host releases everything and may try again.
    fn activate(&mut self, _activation: &Activation<'_>) -> Result<()> {
        Ok(())
    }
    /// \[step\] Releases it.
    fn deactivate(&mut self) {}
    /// \[step\] Trainable tensors that the host owns for the loss (projectors). `inputs` have shapes only.
    ///
    /// # Errors
    /// Shapes from which no parameter follows.
    fn params(&mut self, _inputs: &Views<'_>) -> Result<Vec<LossParam>> {
        Ok(Vec::new())
    }
    /// \[step\] Before the first `compute` and whenever input shapes change; the SDK has checked the inputs against
    /// the ports. Gives the bytes of workspace that `compute` needs.
    ///
    /// # Errors
    /// Shapes that do not agree.
    fn plan(&mut self, _inputs: &Views<'_>) -> Result<u64> {
        Ok(0)
    }
    /// \[step\] Value, metrics and wanted gradients. Keeps no state.
    ///
    /// # Errors
    /// Value, metrics and gradients are garbage then.
    fn compute(&mut self, call: &LossCall<'_>) -> Result<()>;
    /// \[step\] Writes the state.
    ///
    /// # Errors
    /// What the writer says.
    fn save(&mut self, _context: &Context<'_>, _to: &mut dyn Write) -> Result<()> {
        Err(Error::unsupported("this loss has no state"))
    }
    /// \[step\] Reads it.
    ///
    /// # Errors
    /// Malformed bytes.
    fn load(&mut self, _context: &Context<'_>, _from: &mut dyn Read) -> Result<()> {
        Err(Error::unsupported("this loss has no state"))
    }
}

/// A trainable tensor that the host allocates, initialises, optimises and saves for a loss.
#[derive(Clone, Debug, PartialEq)]
pub struct LossParam {
    /// Name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<i64>,
    /// Element type, f32 unless there is a reason.
    pub dtype: DType,
    /// `zeros`, `ones`, `eye`, `normal(0,0.02)`, `xavier_uniform`.
    pub init: String,
    /// No weight decay.
    pub no_decay: bool,
}

impl LossParam {
    /// An f32 parameter with weight decay.
    pub fn new(name: impl Into<String>, shape: &[i64], init: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: DType::F32,
            init: init.into(),
            no_decay: false,
        }
    }
}

/// One call of a loss.
pub struct LossCall<'a> {
    raw: &'a abi::LossCall,
    ports: &'a Ports,
    context: Context<'a>,
}

// SAFETY: views and buffers of one call; writes through it are ruled by `GradView`.
unsafe impl Sync for LossCall<'_> {}

impl<'a> LossCall<'a> {
    /// Wraps a call.
    ///
    /// # Safety
    /// R5: `raw` and all it points to live for `'a`; `ports` are those of the instance.
    pub(crate) unsafe fn from_abi(
        raw: *const abi::LossCall,
        ports: &'a Ports,
        host: Host,
    ) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the call is NULL"));
        }
        // SAFETY: the caller's promise.
        let raw: &'a abi::LossCall = unsafe { &*raw };
        // SAFETY: the caller's promise.
        let context = unsafe { Context::from_abi(raw.ctx, host) }?;
        let call = Self { raw, ports, context };
        if !(raw.normalizer > 0.0 && raw.normalizer.is_finite()) {
            let message = format!("normalizer must be above 0, is {}", raw.normalizer);
            return Err(Error::invalid_argument(message));
        }
        let metrics = ports.outputs().count() as u64;
        if raw.num_metrics != metrics {
            let message = format!("{} metrics for {metrics} output ports", raw.num_metrics);
            return Err(Error::invalid_argument(message));
        }
        ports.check(&call.inputs())?;
        Ok(call)
    }

    /// Context: step, stream, randomness, cancellation.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }
    /// The host.
    pub fn host(&self) -> Host {
        self.context.host()
    }
    /// The stream of draws of one use inside this call.
    pub fn rng(&self, name: &str) -> Random {
        self.context.rng(name)
    }
    /// The struct of the contract.
    pub fn abi(&self) -> &'a abi::LossCall {
        self.raw
    }
    /// The input ports' tensors.
    pub fn inputs(&self) -> Views<'a> {
        // SAFETY: `from_abi` promised the lifetime.
        unsafe { Views::from_abi(self.raw.inputs, self.raw.num_inputs) }
    }
    /// Input `i` in port order; `None` if absent.
    ///
    /// # Errors
    /// No such port.
    pub fn input(&self, i: usize) -> Result<Option<View<'a>>> {
        self.inputs().get(i)
    }
    /// Input `i` as rows of f64, whatever its type and strides; an absent one is an error.
    ///
    /// # Errors
    /// Absent, or not in host memory.
    pub fn rows(&self, i: usize) -> Result<Rows<'a>> {
        self.inputs().required(i)?.rows()
    }
    /// Where the gradient of input `i` goes; `None` if it is not wanted.
    ///
    /// # Errors
    /// No such port, or an unknown element type.
    pub fn grad(&self, i: usize) -> Result<Option<GradView<'a>>> {
        // SAFETY: as `inputs`; the host lends one buffer per input.
        let grads = unsafe { raw_slice(self.raw.grads, self.raw.num_inputs) };
        grad_at(grads, i)
    }
    /// Parameter `i`, in the order of [`Loss::params`].
    ///
    /// # Errors
    /// No such parameter.
    pub fn param(&self, i: usize) -> Result<View<'a>> {
        // SAFETY: as `inputs`.
        unsafe { Views::from_abi(self.raw.params, self.raw.num_params) }.required(i)
    }
    /// Number of parameters.
    pub fn num_params(&self) -> usize {
        self.raw.num_params as usize
    }
    /// Where the gradient of parameter `i` goes; `None` if it is not wanted.
    ///
    /// # Errors
    /// No such parameter.
    pub fn param_grad(&self, i: usize) -> Result<Option<GradView<'a>>> {
        // SAFETY: as `inputs`.
        let grads = unsafe { raw_slice(self.raw.param_grads, self.raw.num_params) };
        grad_at(grads, i)
    }
    /// Counted items over all micro-batches and ranks of this step, above 0.
    pub fn normalizer(&self) -> f64 {
        self.raw.normalizer
    }
    /// Every gradient is multiplied by it; the value is not.
    pub fn grad_scale(&self) -> f64 {
        self.raw.grad_scale
    }
    /// `grad_scale / normalizer`: factor of the gradient of a plain sum over rows.
    pub fn grad_factor(&self) -> f64 {
        self.raw.grad_scale / self.raw.normalizer
    }
    /// Writes the value, already divided by the normalizer.
    ///
    /// # Errors
    /// The host's buffer is not one f32 in host memory.
    pub fn set_value(&self, value: f64) -> Result<()> {
        set_scalar(self.raw.value, value)
    }
    /// Writes the metric of output port `i` (counted among outputs), already divided by the normalizer.
    ///
    /// # Errors
    /// No such metric.
    pub fn set_metric(&self, i: usize, value: f64) -> Result<()> {
        // SAFETY: as `inputs`.
        let metrics = unsafe { raw_slice(self.raw.metrics, self.raw.num_metrics) };
        let metric = metrics
            .get(i)
            .ok_or_else(|| Error::internal(format!("no metric {i}, {} declared", metrics.len())))?;
        set_scalar(metric, value)
    }
    /// The workspace asked for in [`Loss::plan`]: on the call's device, 256-byte aligned, contents garbage.
    pub fn workspace(&self) -> (*mut u8, u64) {
        (self.raw.workspace.cast(), self.raw.workspace_bytes)
    }
    /// Runs `body(range, worker)` over `[0, n)` on the host's pool, in ranges of at least `grain`; see
    /// [`Host::parallel_for`].
    ///
    /// # Errors
    /// A panic of the body, or what the host says.
    pub fn parallel_for(
        &self,
        n: usize,
        grain: usize,
        body: impl Fn(Range<usize>, usize) + Sync,
    ) -> Result<()> {
        self.host().parallel_for(n, grain, body)
    }

    /// Which rows count, by the bound `labels`, `row_mask` and `row_weights`.
    ///
    /// # Errors
    /// They are not in host memory.
    pub fn counted(&self) -> Result<Counted<'a>> {
        let rows = |name| match self.inputs().named(name)? {
            Some(view) => Ok::<_, Error>(Some(view)),
            None => Ok(None),
        };
        let labels = rows("labels")?.map(|v| v.typed_rows::<i64>()).transpose()?;
        let mask = rows("row_mask")?.map(|v| v.rows()).transpose()?;
        let weights = rows("row_weights")?.map(|v| v.rows()).transpose()?;
        Ok(Counted { labels, mask, weights })
    }

    /// Sums a loss over the counted rows, with the gradient of the first differentiable input.
    ///
    /// `f(i, grad)` gives the value of row `i` and writes d(value)/d(row) into `grad`, which comes zeroed and as wide
    /// as the row. It runs on several threads; the sum is taken in row order, so it repeats bit for bit.
    /// Value: `Σ w_i f_i / normalizer`; gradient: `grad_scale · w_i / normalizer · grad`. Rows that do not count are
    /// not asked for and get exact zeros.
    ///
    /// # Errors
    /// Not in host memory, a panic of `f`, or what the host says.
    pub fn sum_rows(&self, f: impl Fn(usize, &mut [f64]) -> f64 + Sync) -> Result<()> {
        let target = self.ports.inputs().position(|p| p.is_differentiable());
        self.sum_rows_each(|i, grads| match target.and_then(|t| grads.get_mut(t)) {
            Some(grad) => f(i, grad),
            None => f(i, &mut []),
        })
    }

    /// As [`LossCall::sum_rows`], with the gradients of all inputs: `grads[k]` is zeroed and as wide as a row of input
    /// `k` if that is differentiable and bound, else empty.
    ///
    /// # Errors
    /// As `sum_rows`.
    pub fn sum_rows_each(&self, f: impl Fn(usize, &mut [Vec<f64>]) -> f64 + Sync) -> Result<()> {
        crate::rows::sum(self, self.ports, &f)
    }
}

fn grad_at(grads: &[abi::Tensor], i: usize) -> Result<Option<GradView<'_>>> {
    let tensor = grads
        .get(i)
        .ok_or_else(|| Error::internal(format!("no gradient {i}, {} given", grads.len())))?;
    // SAFETY: a host buffer lent for the call to this plugin alone (limbeck.h, lmb_loss_call.grads).
    unsafe { GradView::from_abi(tensor) }
}

fn set_scalar(tensor: *const abi::Tensor, value: f64) -> Result<()> {
    if tensor.is_null() {
        return Err(Error::invalid_argument("the buffer of the value is NULL"));
    }
    // SAFETY: a host buffer lent for the call (limbeck.h, lmb_loss_call.value).
    match unsafe { GradView::from_abi(&*tensor) }? {
        // f32 by contract; the testing host lends f64 to take differences of.
        Some(mut view) => view.put(1.0, &[value]),
        None => Ok(()),
    }
}

/// Which rows count and how much.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    labels: Option<crate::TypedRows<'a, i64>>,
    mask: Option<Rows<'a>>,
    weights: Option<Rows<'a>>,
}

/// Label of rows that do not count.
pub const IGNORED_LABEL: i64 = -100;

impl Counted<'_> {
    /// The weight of row `i`; `None` if it does not count.
    pub fn weight(&self, i: usize) -> Option<f64> {
        if self.label(i) == Some(IGNORED_LABEL) || self.mask.is_some_and(|m| m.row(i).get(0) == 0.0)
        {
            return None;
        }
        Some(self.weights.map_or(1.0, |w| w.row(i).get(0)))
    }
    /// The label of row `i`, also of one that does not count; `None` if no labels are bound.
    pub fn label(&self, i: usize) -> Option<i64> {
        self.labels.and_then(|l| l.row(i).first().copied())
    }
    /// Whether `row_weights` are bound: batch-coupled losses refuse them.
    pub fn has_weights(&self) -> bool {
        self.weights.is_some()
    }
}
