//! Several teachers as one: the logarithm of the mean of their probabilities.
//!
//! Members are asked only for what somebody reads; the mean is made from `logits` at temperature 1, whatever a loss does
//! with it afterwards.

use super::arith::to_f64;
use super::error::{RunResult, contract, plugin_error};
use super::forward::read_teacher;
use super::live::{Live, TEACHER};
use super::pass::{Pass, PassOut};
use super::random::Purpose;
use super::rows::contiguous;
use crate::load::instance::ForwardFlags;
use crate::load::wiring::TeacherModel;
use crate::tensor::Tensor;

/// `ln((1/M) sum_m softmax(z_m))` over the last axis, f32, from M tensors of one shape: Furlanello et al. 2018, section
/// 3.2. In f64 over log-probabilities, so a probability below the smallest f32 keeps its logarithm.
///
/// # Errors
/// No tensor, different shapes, values that cannot be read; in words.
pub(crate) fn mean_of_softmax(logits: &[Tensor]) -> Result<Tensor, String> {
    let shape = logits.first().ok_or("no logits")?.shape().to_vec();
    let width = shape.last().map_or(1, |d| *d as usize).max(1);
    let mut members = Vec::with_capacity(logits.len());
    for tensor in logits {
        if tensor.shape() != shape {
            return Err(format!("logits of shape {:?} beside {shape:?}", tensor.shape()));
        }
        let mut values =
            to_f64(&contiguous(tensor)).ok_or_else(|| format!("{tensor:?} cannot be read"))?;
        values.chunks_mut(width).for_each(|row| {
            let all = log_sum_exp(row.iter().copied());
            row.iter_mut().for_each(|v| *v -= all);
        });
        members.push(values);
    }
    let count = (members.len() as f64).ln();
    let entry = |i: usize| (log_sum_exp(members.iter().map(|m| m[i])) - count) as f32;
    let mean: Vec<f32> = (0..members[0].len()).map(entry).collect();
    Ok(Tensor::from_slice(&mean, &shape))
}

/// `ln sum exp v`; -inf of nothing but -inf, NaN if a value is NaN.
pub(crate) fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return values.fold(top, |all, v| all + v);
    }
    top + values.map(|v| (v - top).exp()).sum::<f64>().ln()
}

impl Live<'_> {
    /// Outputs of the teacher for rows `[from, to)`: of the one model, or of an ensemble's members and their mean.
    ///
    /// # Errors
    /// What a plugin says; members whose logits do not fit each other.
    pub fn ask_teacher(
        &mut self,
        pass: &Pass,
        wanted: &[usize],
        range: (usize, usize),
        micro: u64,
        out: &PassOut,
    ) -> RunResult<Vec<Tensor>> {
        let names: Vec<String> =
            wanted.iter().map(|i| self.bound.teacher_outputs[*i].clone()).collect();
        if self.loaded.ensemble.is_none() {
            return self.ask_model(0, pass, &names, range, micro, out);
        }
        let mean = names.iter().position(|name| name == "logits");
        let mut given: Vec<Option<Tensor>> = vec![None; names.len()];
        let mut logits = Vec::new();
        for m in 0..self.loaded.teachers.len() {
            let prefix = format!("{}.", self.loaded.teachers[m].name);
            let own = names.iter().enumerate();
            let own: Vec<(usize, String)> =
                own.filter_map(|(i, n)| Some((i, n.strip_prefix(&prefix)?.to_owned()))).collect();
            let mut asked: Vec<String> = own.iter().map(|(_, name)| name.clone()).collect();
            if mean.is_some() && !asked.iter().any(|name| name == "logits") {
                asked.push("logits".to_owned());
            }
            if asked.is_empty() {
                continue;
            }
            let outputs = self.ask_model(m, pass, &asked, range, micro, out)?;
            for (name, tensor) in asked.iter().zip(&outputs) {
                if mean.is_some() && name == "logits" {
                    logits.push(tensor.clone());
                }
            }
            for ((place, _), tensor) in own.iter().zip(outputs) {
                given[*place] = Some(tensor);
            }
        }
        if let Some(mean) = mean {
            let tensor = mean_of_softmax(&logits).map_err(|why| contract("ensemble", why))?;
            given[mean] = Some(tensor);
        }
        Ok(given.into_iter().flatten().collect())
    }

    /// Outputs of one teacher, by name.
    fn ask_model(
        &mut self,
        m: usize,
        pass: &Pass,
        names: &[String],
        range: (usize, usize),
        micro: u64,
        out: &PassOut,
    ) -> RunResult<Vec<Tensor>> {
        let Some(teacher) = self.loaded.teachers.get(m) else { return Ok(Vec::new()) };
        if let TeacherModel::Cache(cache) = &teacher.model {
            return read_teacher(cache, pass, names.iter().map(String::as_str), range);
        }
        let inputs = self.inputs(&self.bound.teacher_inputs[m], pass, out, range)?;
        let ctx = self.keys.ctx(Purpose::Forward, TEACHER + m as u64, self.now.step, micro);
        let Some(teacher) = self.loaded.teachers[m].instance_mut() else { return Ok(Vec::new()) };
        let given = teacher
            .forward(ctx, ForwardFlags::default(), &inputs, names)
            .map_err(|e| plugin_error(&e))?;
        Ok(given.outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_the_probabilities_and_not_of_the_logits() {
        let members = [[1.0f32, -2.0, 0.5, 3.0], [0.0, 4.0, -1.0, 2.5], [-3.0, 0.25, 2.0, 2.0]];
        let tensors: Vec<Tensor> = members.iter().map(|m| Tensor::from_slice(m, &[2, 2])).collect();
        let mean = mean_of_softmax(&tensors).unwrap();
        let p = |m: &[f32; 4], at: usize| {
            let other = f64::from(m[at ^ 1]);
            1.0 / (1.0 + (other - f64::from(m[at])).exp())
        };
        for (at, found) in mean.data::<f32>().unwrap().iter().enumerate() {
            let wanted = members.iter().map(|m| p(m, at)).sum::<f64>() / 3.0;
            assert!((f64::from(*found) - wanted.ln()).abs() < 1e-6 * wanted.ln().abs().max(1.0));
        }
    }

    #[test]
    fn extremes_keep_their_logarithm_and_mixed_shapes_are_refused() {
        let far = Tensor::from_slice(&[1e4f32, -1e4, 0.0], &[1, 3]);
        let mean = mean_of_softmax(&[far.clone(), far.clone()]).unwrap();
        assert_eq!(mean.data::<f32>().unwrap(), [0.0, -2e4, -1e4], "equal members change nothing");
        let even = Tensor::from_slice(&[0f32; 3], &[1, 3]);
        let mean = mean_of_softmax(&[far.clone(), even]).unwrap();
        let wanted = [(2f64 / 3.0).ln(), (1f64 / 6.0).ln(), (1f64 / 6.0).ln()];
        for (found, wanted) in mean.data::<f32>().unwrap().iter().zip(wanted) {
            assert!((f64::from(*found) - wanted).abs() < 1e-6);
        }
        let none = Tensor::from_slice(&[0.0f32, f32::NEG_INFINITY], &[1, 2]);
        let mean = mean_of_softmax(&[none.clone(), none]).unwrap();
        assert_eq!(mean.data::<f32>().unwrap(), [0.0, f32::NEG_INFINITY]);
        let nan = mean_of_softmax(&[Tensor::from_slice(&[f32::NAN, 0.0], &[1, 2])]).unwrap();
        assert!(nan.data::<f32>().unwrap().iter().all(|v| v.is_nan()));
        assert!(mean_of_softmax(&[far, Tensor::from_slice(&[0f32; 2], &[1, 2])]).is_err());
        assert!(mean_of_softmax(&[]).is_err());
    }
}
