//! Students: models that are trained. Autograd stays inside; the host sees forward passes and vector-Jacobian products.
//!
//! Invariant: `params()` is the whole model, so a copy of its values makes an equal model.

use crate::teacher::ForwardCall;
use crate::views::{GradView, View, Views, raw_slice, text};
use crate::{Activation, Context, DType, Error, Host, Output, Ports, Result, Settings};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::io::{Read, Write};

/// A student plugin with autograd of its own. With candle, implement [`crate::candle::CandleStudent`] instead.
/// Exported by `limbeck_sdk::export! { student MyStudent }`; the teacher interface comes with it.
pub trait Student: Send + Sized + 'static {
    /// Plugin id.
    const ID: &'static str;
    /// One line for `limbeck plugin list`.
    const SUMMARY: &'static str = "";
    /// See [`crate::Loss::FEATURES`].
    const FEATURES: &'static [&'static str] = &["deterministic"];
    /// `limbeck_abi::DL_*` device types.
    const DEVICES: &'static [i32] = &[abi::DL_CPU];
    /// Offers `save` and `load`.
    const STATE: bool = false;
    /// Offers `folder_config`.
    const FOLDER: bool = false;
    /// Settings: what stands under `with`.
    type Config: Settings;
    /// What one forward pass keeps for one backward pass.
    type Tape: 'static;

    /// \[main\] Cheap: no device, no weights.
    ///
    /// # Errors
    /// Settings out of range.
    fn new(config: Self::Config, host: &Host) -> Result<Self>;
    /// \[main\] May read small files, no weights.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    fn ports(&self) -> Result<Ports>;
    /// \[main\] As [`crate::Teacher::estimate`].
    ///
    /// # Errors
    /// Shapes that do not agree.
    fn estimate(&self, _inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
    /// \[main\] The `config.json` of a Hugging Face folder of this model, if [`Self::FOLDER`]; parameters have the names
    /// of that form then.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    fn folder_config(&self) -> Result<serde_json::Value> {
        Err(Error::unsupported("no Hugging Face form"))
    }
    /// \[step\] Makes parameters; initial weights come from [`Context::rng`].
    ///
    /// # Errors
    /// Files, memory.
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()>;
    /// \[step\] Releases everything.
    fn deactivate(&mut self);
    /// \[step\] All parameters and buffers in a fixed order, asked once per activation. Addresses hold until
    /// `deactivate`; the host reads and writes the values between calls.
    ///
    /// # Errors
    /// None that a correct student has.
    fn params(&mut self) -> Result<Vec<Parameter>>;
    /// \[step\] The host wrote parameters: refresh what was derived from them.
    ///
    /// # Errors
    /// None that a correct student has.
    fn params_changed(&mut self, _context: &Context<'_>) -> Result<()> {
        Ok(())
    }
    /// \[step\] One output per wanted name; a tape if a gradient is asked for.
    ///
    /// # Errors
    /// Inputs that do not fit.
    fn forward(&mut self, call: &ForwardCall<'_>) -> Result<(Vec<Output>, Option<Self::Tape>)>;
    /// \[step\] Cotangents of outputs to gradients of parameters and inputs.
    ///
    /// # Errors
    /// The gradients are garbage then.
    fn backward(&mut self, call: &BackwardCall<'_>, tape: Self::Tape) -> Result<()>;
    /// \[step\] Writes the state beyond `params()`.
    ///
    /// # Errors
    /// What the writer says.
    fn save(&mut self, _context: &Context<'_>, _to: &mut dyn Write) -> Result<()> {
        Err(Error::unsupported("this student has no state"))
    }
    /// \[step\] Reads it.
    ///
    /// # Errors
    /// Malformed bytes.
    fn load(&mut self, _context: &Context<'_>, _from: &mut dyn Read) -> Result<()> {
        Err(Error::unsupported("this student has no state"))
    }
}

/// A parameter or buffer of a student, in the student's memory.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name, as in a safetensors file.
    pub name: String,
    /// Sizes; contiguous.
    pub shape: Vec<i64>,
    /// Element type.
    pub dtype: DType,
    /// Where it lives.
    pub device: abi::DLDevice,
    /// First element.
    pub data: *mut c_void,
    /// Canonical name, when it shares that one's memory.
    pub tied_to: Option<String>,
    /// Unset: a buffer (running statistics), saved but not optimised.
    pub trainable: bool,
    /// No weight decay.
    pub no_decay: bool,
}

// SAFETY: an address that only the step thread uses (R9).
unsafe impl Send for Parameter {}

/// [`Parameter`]s with the arrays of the contract, at fixed addresses.
pub(crate) struct ParamTable {
    _params: Box<[Parameter]>,
    _inits: Vec<String>,
    _strides: Box<[Vec<i64>]>,
    pub(crate) abi: Box<[abi::Param]>,
}

// SAFETY: as `Parameter`.
unsafe impl Send for ParamTable {}

impl ParamTable {
    pub(crate) fn new(params: Vec<Parameter>, inits: Vec<String>, flags: u64) -> Self {
        let params = params.into_boxed_slice();
        let strides: Box<[Vec<i64>]> =
            params.iter().map(|p| crate::views::contiguous_strides(&p.shape)).collect();
        let abi = params.iter().zip(&strides).enumerate().map(|(i, (p, strides))| {
            let mut param_flags = 0;
            if p.trainable {
                param_flags |= abi::PARAM_TRAINABLE;
            }
            if p.no_decay {
                param_flags |= abi::PARAM_NO_DECAY;
            }
            abi::Param {
                value: abi::Tensor {
                    name: abi::Str::new(&p.name),
                    t: abi::DLTensor {
                        data: p.data,
                        device: p.device,
                        ndim: p.shape.len() as i32,
                        dtype: p.dtype.dl(),
                        shape: p.shape.as_ptr().cast_mut(),
                        strides: strides.as_ptr().cast_mut(),
                        byte_offset: 0,
                    },
                    flags,
                    reserved: 0,
                },
                tied_to: p.tied_to.as_deref().map_or(abi::Str::EMPTY, abi::Str::new),
                init: inits.get(i).map_or(abi::Str::EMPTY, |init| abi::Str::new(init)),
                flags: param_flags,
                reserved: 0,
            }
        });
        let abi = abi.collect();
        Self { _params: params, _inits: inits, _strides: strides, abi }
    }
}

/// One backward pass.
pub struct BackwardCall<'a> {
    raw: &'a abi::Backward,
    context: Context<'a>,
}

impl<'a> BackwardCall<'a> {
    /// # Safety
    /// R5: `raw` and all it points to live for `'a`.
    pub(crate) unsafe fn from_abi(raw: &'a abi::Backward, host: Host) -> Result<Self> {
        // SAFETY: the caller's promise.
        Ok(Self { raw, context: unsafe { Context::from_abi(raw.ctx, host) }? })
    }
    /// Context: step, stream, randomness.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }
    /// Cotangents with the names of their outputs; a missing one is 0.
    ///
    /// # Errors
    /// An unknown element type.
    pub fn cotangents(&self) -> Result<Vec<(&'a str, View<'a>)>> {
        // SAFETY: `from_abi` promised the lifetime.
        let tensors = unsafe { raw_slice(self.raw.cotangents, self.raw.num_cotangents) };
        let mut out = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            // SAFETY: as above.
            if let Some(view) = unsafe { View::from_abi(tensor) }? {
                // SAFETY: R6.
                out.push((unsafe { text(tensor.name) }, view));
            }
        }
        Ok(out)
    }
    /// Whether any parameter gradient may be wanted.
    pub fn wants_params(&self) -> bool {
        self.raw.num_params > 0
    }
    /// Where the gradient of parameter `i` goes; `None` if it is not wanted.
    ///
    /// # Errors
    /// The host gave fewer than there are parameters.
    pub fn param_grad(&self, i: usize) -> Result<Option<GradView<'a>>> {
        // SAFETY: `from_abi` promised the lifetime; host buffers lent for the call.
        unsafe { grad(self.raw.param_grads, self.raw.num_params, i, "parameter") }
    }
    /// Where the gradient of input `i` goes; `None` if it is not wanted.
    ///
    /// # Errors
    /// The host gave fewer than there are inputs.
    pub fn input_grad(&self, i: usize) -> Result<Option<GradView<'a>>> {
        // SAFETY: as above.
        unsafe { grad(self.raw.input_grads, self.raw.num_inputs, i, "input") }
    }
    /// The struct of the contract.
    pub fn abi(&self) -> &'a abi::Backward {
        self.raw
    }
}

/// # Safety
/// R5: `num` host buffers that live for `'a`.
unsafe fn grad<'a>(
    grads: *const abi::Tensor,
    num: u64,
    i: usize,
    what: &str,
) -> Result<Option<GradView<'a>>> {
    if num == 0 {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    match unsafe { raw_slice(grads, num) }.get(i) {
        // SAFETY: the caller's promise.
        Some(tensor) => unsafe { GradView::from_abi(tensor) },
        None => {
            Err(Error::invalid_argument(format!("{num} {what} gradients, number {i} asked for")))
        }
    }
}
