//! Copies of a student: from an earlier stage, as a frozen teacher, as a snapshot, as an EMA.
//!
//! A copy is an instance of the same plugin and settings whose parameters are overwritten by name.

use super::arith;
use super::optimizer::copy_exact;
use super::safetensors::Named;
use crate::load::instance::Param;
use crate::tensor::Tensor;

/// `to = decay * to + (1 - decay) * from`, parameter by parameter; buffers and integer tensors are copied.
///
/// # Errors
/// Parameters that do not correspond, in words.
pub(crate) fn blend(from: &[Param], to: &[Param], decay: f64) -> Result<(), String> {
    if from.len() != to.len() {
        return Err(format!("a copy has {} parameters instead of {}", to.len(), from.len()));
    }
    for (from, to) in from.iter().zip(to) {
        if from.name != to.name {
            return Err(format!("parameter `{}` stands where `{}` was", to.name, from.name));
        }
        if from.tied_to.is_some() {
            continue;
        }
        if decay == 0.0 || !from.trainable || !from.value.dtype().is_float() {
            put(&from.value, &to.value).map_err(|e| format!("`{}`: {e}", from.name))?;
        } else {
            arith::axpby(1.0 - decay, &from.value, decay, &to.value)
                .map_err(|e| e.diagnostic.message)?;
        }
    }
    Ok(())
}

/// The parameters' values by name, tied names left out.
pub(crate) fn named(params: &[Param], prefix: &str) -> Named {
    let own = params.iter().filter(|p| p.tied_to.is_none());
    own.map(|p| (format!("{prefix}{}", p.name), p.value.clone())).collect()
}

/// Overwrites a tensor with another's elements, bit for bit, or rounded where one is f32 and the other of 16 bits.
fn put(from: &Tensor, to: &Tensor) -> Result<(), String> {
    let widths = [from.dtype().bytes(), to.dtype().bytes()];
    let floats = from.dtype().is_float() && to.dtype().is_float();
    if !floats || from.shape() != to.shape() || !matches!(widths, [4, 2] | [2, 4]) {
        return copy_exact(from, to);
    }
    let here = from.to(to.device()).map_err(|e| e.message)?;
    arith::axpby(1.0, &here, 0.0, to).map_err(|e| e.diagnostic.message)
}

/// Overwrites parameters with saved values; those of 16 bits hold what f32 rounds to.
///
/// # Errors
/// A missing name, a different shape, a surplus name under the prefix; in words.
pub(crate) fn overwrite(params: &[Param], saved: &Named, prefix: &str) -> Result<(), String> {
    let mut used = 0;
    for param in params.iter().filter(|p| p.tied_to.is_none()) {
        let name = format!("{prefix}{}", param.name);
        let value = saved.get(&name).ok_or_else(|| format!("`{name}` is missing"))?;
        put(value, &param.value).map_err(|e| format!("`{name}`: {e}"))?;
        used += 1;
    }
    let there = saved.keys().filter(|k| k.starts_with(prefix)).count();
    if there != used {
        return Err(format!("{there} tensors where the model has {used}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn param(name: &str, values: &[f32], trainable: bool) -> Param {
        Param {
            name: name.into(),
            value: Tensor::from_slice(values, &[values.len() as i64]),
            tied_to: None,
            trainable,
            no_decay: false,
        }
    }

    #[test]
    fn an_ema_moves_parameters_and_copies_buffers() {
        let student = [param("w", &[1.0, 2.0], true), param("mean", &[5.0], false)];
        let copy = [param("w", &[0.0, 0.0], true), param("mean", &[0.0], false)];
        blend(&student, &copy, 0.75).unwrap();
        assert_eq!(copy[0].value.data::<f32>().unwrap(), [0.25, 0.5]);
        assert_eq!(copy[1].value.data::<f32>().unwrap(), [5.0]);
        blend(&student, &copy, 0.0).unwrap();
        assert_eq!(copy[0].value.raw(), student[0].value.raw());
        assert!(blend(&student, &copy[..1], 0.0).is_err());
    }

    #[test]
    fn saved_f32_is_rounded_into_bf16_and_bf16_is_widened() {
        let half = |values: &[f32]| {
            let values: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
            Param {
                value: Tensor::from_slice(&values, &[values.len() as i64]),
                ..param("w", &[0.0; 2], true)
            }
        };
        let (single, small) = ([param("w", &[1.0, 1.003_906_3], true)], [half(&[0.0, 0.0])]);
        overwrite(&small, &named(&single, ""), "").unwrap();
        assert_eq!(small[0].value.raw(), half(&[1.0, 1.0]).value.raw());
        assert_eq!(small[0].value.dtype(), DType::BF16);
        blend(&small, &single, 0.0).unwrap();
        assert_eq!(single[0].value.data::<f32>().unwrap(), [1.0, 1.0]);
        let whole =
            [Param { value: Tensor::from_slice(&[1i64, 2], &[2]), ..param("w", &[0.0; 2], true) }];
        assert!(overwrite(&whole, &named(&single, ""), "").is_err());
    }

    #[test]
    fn saved_values_must_fit_exactly() {
        let params = [param("w", &[1.0, 2.0], true)];
        let saved = named(&params, "");
        let other = [param("w", &[0.0, 0.0], true)];
        overwrite(&other, &saved, "").unwrap();
        assert_eq!(other[0].value.raw(), params[0].value.raw());
        assert!(overwrite(&[param("v", &[0.0], true)], &saved, "").unwrap_err().contains("`v`"));
        assert!(overwrite(&[param("w", &[0.0], true)], &saved, "").is_err());
        let mut more = saved.clone();
        more.insert("x".into(), Tensor::from_slice(&[1f32], &[1]));
        assert!(overwrite(&other, &more, "").is_err());
    }
}
