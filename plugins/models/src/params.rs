//! Named parameters: what a configuration asks for, how they start, and the tensors that stand for them.
//!
//! Refuses a name that is missing and a tensor of another shape. Invariant: initial values depend on the key and the
//! name alone, so a parameter that is added or renamed leaves the others as they were.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::error::{ModelError, setting};
use crate::random::Stream;

/// What the optimizer and the checkpoint may do with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained, with weight decay.
    Weight,
    /// Trained, without weight decay (biases, scales of normalization).
    NoDecay,
    /// Saved, never trained (running statistics).
    Buffer,
}

/// Distribution of a parameter's initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Init {
    /// Uniform in ±1/√fan_in, for weights and biases alike: the default of PyTorch's `Linear` and `Conv2d`.
    pub fn fan_in(fan_in: usize) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt() }
    }

    /// `count` values for the parameter `name` under `key`.
    pub fn values(self, name: &str, count: usize, key: [u64; 2]) -> Vec<f64> {
        let stream = Stream::named(key, name);
        match self {
            Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
            Self::Uniform { bound } => {
                stream.uniform(count).into_iter().map(|u| (2.0 * u - 1.0) * bound).collect()
            }
            Self::Normal { std } => stream.normal(count).into_iter().map(|u| u * std).collect(),
        }
    }
}

/// One parameter of an architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Name as in `model.safetensors`, e.g. `layers.0.weight`.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
    /// What may be done with it.
    pub role: Role,
}

impl ParamSpec {
    /// A spec; see the fields.
    pub fn new(name: impl Into<String>, shape: &[usize], init: Init, role: Role) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), init, role }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Initial values as a plain tensor of `dtype` on `device`.
    ///
    /// # Errors
    /// candle's, when the device has no room or the dtype is no float.
    pub fn initial(
        &self,
        key: [u64; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let values = self.init.values(&self.name, self.count(), key);
        Ok(Tensor::from_vec(values, self.shape.as_slice(), &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(device)?)
    }
}

/// Largest number of elements of one parameter, 2^40: beyond it a size is a mistake.
const MAX_COUNT: u128 = 1 << 40;

/// Checks that `factors` make a parameter of a size that can be allocated.
pub(crate) fn check_size(name: &'static str, factors: &[usize]) -> Result<(), ModelError> {
    let count = factors
        .iter()
        .try_fold(1u128, |product, &factor| product.checked_mul(factor as u128))
        .unwrap_or(u128::MAX);
    if count > MAX_COUNT {
        return Err(setting(name, format!("makes a parameter of {count} elements, above 2^40")));
    }
    Ok(())
}

/// Tensors by name: variables of a student, their detached twins, or a teacher's weights.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<String, Tensor>);

impl Params {
    /// Plain tensors with the initial values of `specs`.
    ///
    /// # Errors
    /// As [`ParamSpec::initial`].
    pub fn initial(
        specs: &[ParamSpec],
        key: [u64; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        specs
            .iter()
            .map(|spec| Ok((spec.name.clone(), spec.initial(key, dtype, device)?)))
            .collect()
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.0.insert(name.into(), tensor);
    }

    /// The tensor of a name, which must have `shape`.
    ///
    /// # Errors
    /// [`ModelError::MissingParam`], [`ModelError::ParamShape`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let tensor = self.0.get(name).ok_or_else(|| ModelError::MissingParam(name.to_owned()))?;
        if tensor.dims() != shape {
            return Err(ModelError::ParamShape {
                name: name.to_owned(),
                found: tensor.dims().to_vec(),
                wanted: shape.to_vec(),
            });
        }
        Ok(tensor.clone())
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

impl FromIterator<(String, Tensor)> for Params {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_depend_on_key_and_name_and_fill_the_bounds() {
        let init = Init::fan_in(25);
        let values = init.values("a", 4_000, [1, 2]);
        assert_eq!(values, init.values("a", 4_000, [1, 2]));
        assert_ne!(values, init.values("b", 4_000, [1, 2]));
        assert_ne!(values, init.values("a", 4_000, [1, 3]));
        let (low, high) = values.iter().fold((0f64, 0f64), |(l, h), &v| (l.min(v), h.max(v)));
        assert!(low >= -0.2 && high < 0.2, "{low} {high}");
        assert!(low < -0.199 && high > 0.199, "{low} {high}");
    }

    #[test]
    fn a_missing_name_and_a_wrong_shape_are_named() {
        let spec = ParamSpec::new("w", &[2, 3], Init::Ones, Role::Weight);
        let params = Params::initial(&[spec], [0, 0], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(params.get("v", &[2, 3]).unwrap_err().to_string(), "parameter `v` is missing");
        assert_eq!(
            params.get("w", &[3, 2]).unwrap_err().to_string(),
            "parameter `w` has shape [2, 3], the configuration asks for [3, 2]"
        );
    }

    #[test]
    fn a_size_that_overflows_is_refused() {
        assert!(check_size("hidden", &[usize::MAX, usize::MAX, 16]).is_err());
        assert!(check_size("hidden", &[1 << 20, 1 << 21]).is_err());
        assert!(check_size("hidden", &[1 << 20, 1 << 20]).is_ok());
    }
}
