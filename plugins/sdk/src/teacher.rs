//! Teachers: frozen models that give targets. [`ForwardCall`] is shared with students.
//!
//! Without TRAIN a forward pass is pure: equal inputs and parameters give equal outputs.

use crate::views::{raw_slice, text};
use crate::{Activation, Context, Error, Host, Output, Ports, Result, Settings, Views};
use limbeck_abi as abi;
use std::io::{Read, Write};

/// A teacher plugin with a model of any kind. With candle, implement [`crate::candle::CandleTeacher`] instead.
/// Exported by `limbeck_sdk::export! { teacher MyTeacher }`.
pub trait Teacher: Send + Sized + 'static {
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
    /// Settings: what stands under `with`.
    type Config: Settings;

    /// \[main\] Cheap: no device, no weights.
    ///
    /// # Errors
    /// Settings out of range.
    fn new(config: Self::Config, host: &Host) -> Result<Self>;
    /// \[main\] May read small files (`config.json`), no weights.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    fn ports(&self) -> Result<Ports>;
    /// \[main\] Bytes held while active and extra bytes at the peak of one call, for inputs with shapes only.
    ///
    /// # Errors
    /// Shapes that do not agree.
    fn estimate(&self, _inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
    /// \[step\] Reads weights. Poll [`Context::check_cancelled`], report [`Context::progress`].
    ///
    /// # Errors
    /// Name file and tensor: [`Error::bad_file`], [`Error::tensor`].
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()>;
    /// \[step\] Releases everything.
    fn deactivate(&mut self);
    /// \[step\] One output per wanted name, in that order.
    ///
    /// # Errors
    /// Inputs that do not fit.
    fn forward(&mut self, call: &ForwardCall<'_>) -> Result<Vec<Output>>;
    /// \[step\] Writes the state.
    ///
    /// # Errors
    /// What the writer says.
    fn save(&mut self, _context: &Context<'_>, _to: &mut dyn Write) -> Result<()> {
        Err(Error::unsupported("this teacher has no state"))
    }
    /// \[step\] Reads it.
    ///
    /// # Errors
    /// Malformed bytes.
    fn load(&mut self, _context: &Context<'_>, _from: &mut dyn Read) -> Result<()> {
        Err(Error::unsupported("this teacher has no state"))
    }
}

/// One forward pass.
pub struct ForwardCall<'a> {
    raw: &'a abi::Forward,
    context: Context<'a>,
    wanted: Vec<&'a str>,
}

impl<'a> ForwardCall<'a> {
    /// # Safety
    /// R5: `raw` and all it points to live for `'a`.
    pub(crate) unsafe fn from_abi(raw: *const abi::Forward, host: Host) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the call is NULL"));
        }
        // SAFETY: the caller's promise.
        let raw: &'a abi::Forward = unsafe { &*raw };
        // SAFETY: the caller's promise.
        let (context, wanted) =
            unsafe { (Context::from_abi(raw.ctx, host)?, raw_slice(raw.wanted, raw.num_wanted)) };
        // SAFETY: R6.
        let wanted = wanted.iter().map(|name| unsafe { text(*name) }).collect();
        Ok(Self { raw, context, wanted })
    }
    /// Context: step, stream, randomness.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }
    /// One tensor per input port.
    pub fn inputs(&self) -> Views<'a> {
        // SAFETY: `from_abi` promised the lifetime.
        unsafe { Views::from_abi(self.raw.inputs, self.raw.num_inputs) }
    }
    /// Names of the outputs to compute, in the order to return them.
    pub fn wanted(&self) -> &[&'a str] {
        &self.wanted
    }
    /// Whether an output is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.contains(&name)
    }
    /// Training behaviour: dropout, statistics are updated.
    pub fn train(&self) -> bool {
        self.raw.flags & abi::FORWARD_TRAIN != 0
    }
    /// Record for parameter gradients.
    pub fn param_grad(&self) -> bool {
        self.raw.flags & abi::FORWARD_PARAM_GRAD != 0
    }
    /// Record for gradients of differentiable inputs.
    pub fn input_grad(&self) -> bool {
        self.raw.flags & abi::FORWARD_INPUT_GRAD != 0
    }
    /// The struct of the contract.
    pub fn abi(&self) -> &'a abi::Forward {
        self.raw
    }
}
