//! Candle models as teachers: built once, from detached weights, never with a graph.
//!
//! The same model code serves students and teachers: both are built from [`Weights`].

use super::weights::Weights;
use super::{ModelCall, Outputs, convert, model};
use crate::{
    Activation, Error, ForwardCall, Host, Output, Ports, Result, Settings, Teacher, Views,
};
use std::marker::PhantomData;

/// A teacher whose model is written with candle. Exported by `export! { candle_teacher MyTeacher }`.
///
/// `Self` is the built model.
pub trait CandleTeacher: Send + Sized + 'static {
    /// Plugin id.
    const ID: &'static str;
    /// One line for `limbeck plugin list`.
    const SUMMARY: &'static str = "";
    /// See [`crate::Loss::FEATURES`].
    const FEATURES: &'static [&'static str] = &["deterministic"];
    /// [`super::BUILT_FOR`] if every operation of the model has a CUDA half too.
    const DEVICES: &'static [i32] = &[limbeck_abi::DL_CPU];
    /// Settings: what stands under `with`.
    type Config: Settings;

    /// \[main\] Refuses settings out of range, with [`Error::config`].
    ///
    /// # Errors
    /// Settings that no model can have.
    fn check(_config: &Self::Config) -> Result<()> {
        Ok(())
    }
    /// \[main\] May read small files (`config.json`), no weights.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    fn ports(config: &Self::Config) -> Result<Ports>;
    /// \[main\] Bytes held and extra bytes at the peak of one call.
    ///
    /// # Errors
    /// Shapes that do not agree.
    fn estimate(_config: &Self::Config, _inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
    /// \[step\] Builds the model and reads its weights, usually by [`Weights::add`] with [`super::Init::Values`].
    ///
    /// # Errors
    /// Name file and tensor: [`Error::bad_file`], [`Error::tensor`].
    fn build(config: &Self::Config, weights: &mut Weights<'_>) -> Result<Self>;
    /// \[step\] Computes at least the wanted outputs.
    ///
    /// # Errors
    /// Inputs that do not fit.
    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs>;
}

/// Makes a [`Teacher`] of a [`CandleTeacher`].
pub struct TeacherAdapter<T: CandleTeacher> {
    config: T::Config,
    model: Option<T>,
    life: PhantomData<T>,
}

impl<T: CandleTeacher> Teacher for TeacherAdapter<T> {
    const ID: &'static str = T::ID;
    const SUMMARY: &'static str = T::SUMMARY;
    const FEATURES: &'static [&'static str] = T::FEATURES;
    const DEVICES: &'static [i32] = T::DEVICES;
    type Config = T::Config;

    fn new(config: T::Config, _: &Host) -> Result<Self> {
        T::check(&config)?;
        Ok(Self { config, model: None, life: PhantomData })
    }
    fn ports(&self) -> Result<Ports> {
        T::ports(&self.config)
    }
    fn estimate(&self, inputs: &Views<'_>) -> Result<Option<(u64, u64)>> {
        T::estimate(&self.config, inputs)
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()> {
        crate::limit_rayon(&activation.host(), true);
        let device = convert::device(activation.device())?;
        let mut weights = Weights::new(**activation, device, true);
        self.model = Some(T::build(&self.config, &mut weights)?);
        Ok(())
    }
    fn deactivate(&mut self) {
        self.model = None;
    }
    fn forward(&mut self, call: &ForwardCall<'_>) -> Result<Vec<Output>> {
        let model = self.model.as_ref().ok_or_else(|| Error::internal("no model"))?;
        let ports = T::ports(&self.config)?;
        if model::has_no_rows(call, &ports)? {
            return model::empty_outputs(call, &ports);
        }
        let device = convert::device(call.context().device())?;
        let (model_call, _) = model::prepare(call, &ports, &device)?;
        let outputs = model.forward(&model_call)?;
        let export = |name: &&str| convert::output(&outputs.take(name)?, &[]);
        call.wanted().iter().map(export).collect()
    }
}
