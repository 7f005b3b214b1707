//! The set of named weights from which a model is built: once with variables, once detached.
//!
//! Invariant: both builds of one activation see the same storage under the same names, so the twin has every update.

use super::convert;
use crate::{Context, DType, Error, Parameter, Random, Result, derive_key};
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeMap;

/// Initial values of a weight.
#[derive(Clone, Debug)]
pub enum Init {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// One number everywhere.
    Const(f64),
    /// Normal with mean and standard deviation.
    Normal(f64, f64),
    /// Uniform in `[low, high)`.
    Uniform(f64, f64),
    /// These values (a file's).
    Values(Tensor),
}

/// A weight, under construction.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    name: String,
    shape: Vec<usize>,
    init: Init,
    no_decay: bool,
    frozen: bool,
}

impl ParamSpec {
    /// A trainable weight. Vectors (biases, norms) get no weight decay, matrices do.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        let shape = shape.into();
        let no_decay = shape.len() < 2;
        Self { name: name.into(), shape, init, no_decay, frozen: false }
    }
    /// Whether weight decay applies.
    #[must_use]
    pub fn decay(mut self, decay: bool) -> Self {
        self.no_decay = !decay;
        self
    }
    /// Not trained: exported as a buffer, without gradient.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.frozen = true;
        self
    }
}

/// State that is saved but not trained, such as running statistics.
#[derive(Clone, Debug)]
pub struct Buffer(Var);

impl Buffer {
    /// The present value, without gradient.
    pub fn get(&self) -> Tensor {
        self.0.as_detached_tensor()
    }
    /// Overwrites the value in place; both builds of the model see it. Only in a forward pass with TRAIN.
    ///
    /// # Errors
    /// Another shape or type.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        Ok(self.0.set(&value.detach())?)
    }
}

/// One named weight.
pub(super) struct Entry {
    pub(super) var: Var,
    pub(super) trainable: bool,
    no_decay: bool,
    tied_to: Option<String>,
}

/// Named weights, sorted by name.
pub struct Weights<'a> {
    context: Context<'a>,
    device: Device,
    entries: BTreeMap<String, Entry>,
    /// The second build: everything must be there already, detached.
    twin: bool,
    prefix: String,
    /// Teachers: detached from the first build on.
    detached: bool,
    /// Of trainable weights.
    dtype: candle_core::DType,
}

impl<'a> Weights<'a> {
    pub(super) fn new(context: Context<'a>, device: Device, detached: bool) -> Self {
        let entries = BTreeMap::new();
        let dtype = candle_core::DType::F32;
        Self { context, device, entries, twin: false, prefix: String::new(), detached, dtype }
    }

    /// Trainable weights get this type.
    pub(super) fn in_dtype(self, dtype: DType) -> Self {
        Self { dtype: convert::candle_dtype(dtype), ..self }
    }

    pub(super) fn into_twin(self) -> Self {
        Self { twin: true, prefix: String::new(), ..self }
    }

    pub(super) fn into_entries(self) -> BTreeMap<String, Entry> {
        self.entries
    }

    /// Context of the activation: progress, cancellation.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }
    /// Device to build on.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// Whether this is the second build, for which no initial value is asked: skip reading files.
    pub fn is_twin(&self) -> bool {
        self.twin
    }
    /// The stream of initial values of a weight: a function of its name and the run's seed, not of the build order.
    pub fn rng(&self, name: &str) -> Random {
        Random::new(derive_key(self.context.rng_key(), &self.path(name)))
    }
    /// Runs `f` with `name.` before all names.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn scope<R>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let length = self.prefix.len();
        self.prefix.push_str(name);
        self.prefix.push('.');
        let out = f(self);
        self.prefix.truncate(length);
        out
    }
    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A trainable weight: f32, or bf16 for a student with the feature `bf16` whose pipeline says so.
    ///
    /// # Errors
    /// A name used twice; memory.
    pub fn param(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.add(ParamSpec::new(name, shape, init))
    }

    /// A weight.
    ///
    /// # Errors
    /// A name used twice, initial values of another shape; memory.
    pub fn add(&mut self, spec: ParamSpec) -> Result<Tensor> {
        let ParamSpec { name, shape, init, no_decay, frozen } = spec;
        let rng = self.rng(&name);
        self.add_with(&name, &shape, !frozen, no_decay, |device| {
            initial(&init, &shape, rng, device)
        })
    }

    /// A weight whose initial value is made (or read) only when it is needed: never for the twin.
    ///
    /// # Errors
    /// What `init` returns; a name used twice; another shape.
    pub fn add_with(
        &mut self,
        name: &str,
        shape: &[usize],
        trainable: bool,
        no_decay: bool,
        init: impl FnOnce(&Device) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let trainable = trainable && !self.detached;
        let path = self.path(name);
        let var = self.entry(&path, shape, trainable, no_decay, init)?;
        Ok(if self.twin || !trainable { var.as_detached_tensor() } else { var.as_tensor().clone() })
    }

    /// A buffer: saved, not trained.
    ///
    /// # Errors
    /// As [`Weights::add`].
    pub fn buffer(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Buffer> {
        let (path, rng) = (self.path(name), self.rng(name));
        let var = self.entry(&path, shape, false, true, |d| initial(&init, shape, rng, d))?;
        Ok(Buffer(var))
    }

    /// Another name for a weight that is there already: one buffer, one gradient. Both names are full (no scope).
    ///
    /// # Errors
    /// No weight `canonical`; `name` used twice.
    pub fn tie(&mut self, name: &str, canonical: &str) -> Result<Tensor> {
        let found = self.entries.get(canonical).ok_or_else(|| {
            Error::internal(format!("`{name}` is tied to `{canonical}`, which is not there"))
        })?;
        let (var, trainable, no_decay) = (found.var.clone(), found.trainable, found.no_decay);
        let tensor = if self.twin || !trainable {
            var.as_detached_tensor()
        } else {
            var.as_tensor().clone()
        };
        if !self.twin {
            let tied_to = Some(canonical.to_owned());
            let entry = Entry { var, trainable, no_decay, tied_to };
            if self.entries.insert(name.to_owned(), entry).is_some() {
                return Err(Error::internal(format!("two weights are called `{name}`")));
            }
        }
        Ok(tensor)
    }

    fn entry(
        &mut self,
        path: &str,
        shape: &[usize],
        trainable: bool,
        no_decay: bool,
        init: impl FnOnce(&Device) -> Result<Tensor>,
    ) -> Result<Var> {
        if let Some(entry) = self.entries.get(path) {
            if !self.twin {
                return Err(Error::internal(format!("two weights are called `{path}`")));
            }
            return Ok(entry.var.clone());
        }
        if self.twin {
            let message = format!("the second build asks for `{path}`, the first did not");
            return Err(Error::internal(message));
        }
        self.context.check_cancelled()?;
        let mut value = init(&self.device).map_err(|e| e.tensor(path))?;
        if trainable && self.dtype != candle_core::DType::F32 {
            value = value.to_dtype(self.dtype)?;
        }
        if value.dims() != shape {
            let message = format!("`{path}` is {:?}, the model needs {shape:?}", value.dims());
            return Err(Error::bad_data(message).tensor(path));
        }
        // A copy: the variable must own its memory alone, since the host writes it in place.
        let var = Var::from_tensor(&value.detach().contiguous()?.copy()?)?;
        let entry = Entry { var: var.clone(), trainable, no_decay, tied_to: None };
        self.entries.insert(path.to_owned(), entry);
        Ok(var)
    }
}

fn initial(init: &Init, shape: &[usize], mut rng: Random, device: &Device) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = match init {
        Init::Zeros => vec![0.0; n],
        Init::Ones => vec![1.0; n],
        Init::Const(c) => vec![*c as f32; n],
        Init::Normal(mean, std) => (0..n).map(|_| (mean + std * rng.normal()) as f32).collect(),
        Init::Uniform(low, high) => {
            (0..n).map(|_| (low + (high - low) * rng.uniform()) as f32).collect()
        }
        Init::Values(tensor) => return Ok(tensor.to_device(device)?),
    };
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// The weights as the contract sees them.
pub(super) fn parameters(entries: &BTreeMap<String, Entry>) -> Result<Vec<Parameter>> {
    let parameter = |(name, entry): (&String, &Entry)| {
        let dtype: DType = convert::dtype(entry.var.dtype()).map_err(|e| e.tensor(name))?;
        Ok(Parameter {
            name: name.clone(),
            shape: entry.var.dims().iter().map(|d| *d as i64).collect(),
            dtype,
            device: convert::place(entry.var.device()),
            data: convert::address(entry.var.as_tensor())?,
            tied_to: entry.tied_to.clone(),
            trainable: entry.trainable,
            no_decay: entry.no_decay,
        })
    };
    entries.iter().map(parameter).collect()
}
