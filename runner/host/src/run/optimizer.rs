//! AdamW and SGD with momentum over parameter views and f32 gradients, with clipping by global norm.
//!
//! The host owns moments and step count, so one checkpoint format serves every student. A frozen tensor keeps value
//! and moments. Moments and master copies are f32 whatever the parameter's type.

use super::arith;
use super::error::{RunResult, bug, contract};
use super::safetensors::Named;
use crate::device;
use crate::load::instance::Param;
use crate::load::services::{parallel_ranges, vector};
use crate::plan::{OptimizerKind, OptimizerPlan};
use crate::tensor::{DType, Tensor};
use limbeck_abi as abi;
use std::sync::{Mutex, PoisonError};

/// One tensor that is optimised.
pub(crate) struct Slot {
    /// Name in checkpoints; loss parameters are `loss/<term>/<name>`.
    pub name: String,
    value: Tensor,
    grad: Tensor,
    /// f32 copy that is updated and rounded into `value`, for 16-bit parameters. Invariant: `value` is its rounding.
    master: Option<Tensor>,
    m: Tensor,
    v: Option<Tensor>,
    decay: bool,
    /// Factor of the learning rate, from `lr/<glob>`.
    pub lr_factor: f64,
    /// From `freeze/<glob>`.
    pub frozen: bool,
}

/// The optimizer of one stage.
pub(crate) struct Optimizer {
    plan: OptimizerPlan,
    /// Everything it updates.
    pub slots: Vec<Slot>,
    /// Updates since the moments were cleared.
    pub t: u64,
}

impl Optimizer {
    /// No tensors yet.
    pub fn new(plan: &OptimizerPlan) -> Self {
        Self { plan: plan.clone(), slots: Vec::new(), t: 0 }
    }

    /// Adds a tensor. `grad` is f32 of the same shape, read at every [`Optimizer::update`].
    ///
    /// # Errors
    /// The parameter is not contiguous or not a float.
    pub fn add(&mut self, name: String, value: Tensor, grad: Tensor, decay: bool) -> RunResult<()> {
        let kind = value.dtype();
        if !matches!(kind, DType::F32 | DType::BF16 | DType::F16) || !value.is_contiguous() {
            return Err(contract(
                &name,
                "a trainable parameter must be contiguous f32, bf16 or f16",
            ));
        }
        let shape = value.shape().to_vec();
        let adam = matches!(self.plan.kind, OptimizerKind::Adamw { .. });
        let zeros = || Tensor::zeros_on(value.device(), DType::F32, &shape);
        let master = (kind != DType::F32).then(zeros).transpose()?;
        if let Some(master) = &master {
            arith::axpby(1.0, &value, 0.0, master)?;
        }
        let slot = Slot {
            m: zeros()?,
            v: adam.then(zeros).transpose()?,
            lr_factor: 1.0,
            frozen: false,
            name,
            value,
            grad,
            master,
            decay,
        };
        self.slots.push(slot);
        Ok(())
    }

    /// The parameters as they are trained: with the f32 master of a 16-bit parameter in its place.
    pub fn exact(&self, params: &[Param]) -> Vec<Param> {
        let exact = |param: &Param| {
            let name = param.tied_to.as_ref().unwrap_or(&param.name);
            let slot = self.slots.iter().find(|s| s.name == *name);
            let master = slot.and_then(|s| s.master.clone());
            Param { value: master.unwrap_or_else(|| param.value.clone()), ..param.clone() }
        };
        params.iter().map(exact).collect()
    }

    /// Rounds masters into their parameters: after masters were written from outside.
    ///
    /// # Errors
    /// As [`arith::axpby`].
    pub fn masters_changed(&self) -> RunResult<()> {
        for slot in &self.slots {
            if let Some(master) = &slot.master {
                arith::axpby(1.0, master, 0.0, &slot.value)?;
            }
        }
        Ok(())
    }

    /// Clears moments and step count.
    ///
    /// # Errors
    /// As [`arith::zero`].
    pub fn reset(&mut self) -> RunResult<()> {
        self.t = 0;
        for slot in &self.slots {
            arith::zero(&slot.m)?;
            slot.v.as_ref().map_or(Ok(()), arith::zero)?;
        }
        Ok(())
    }

    /// Global norm of the gradients that will be used, before clipping.
    ///
    /// # Errors
    /// As [`arith::axpby`].
    pub fn grad_norm(&self) -> RunResult<f64> {
        let grads: Vec<&Tensor> =
            self.slots.iter().filter(|s| !s.frozen).map(|s| &s.grad).collect();
        Ok(arith::sum_of_squares(&grads)?.sqrt())
    }

    /// One update with learning rate `lr`; gradients are scaled by `clip_norm / norm` if `norm` exceeds it.
    ///
    /// AdamW (Loshchilov & Hutter 2019): `p -= lr wd p`, `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g²`,
    /// `p -= lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)`. SGD: `m = mu m + g + wd p`, `p -= lr m`.
    ///
    /// # Errors
    /// A gradient that is not f32.
    pub fn update(&mut self, lr: f64, norm: f64) -> RunResult<()> {
        self.t += 1;
        let clip = match self.plan.clip_norm {
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        };
        if self.slots.iter().any(|s| s.value.device() != abi::DLDevice::CPU) {
            return self.update_on_device(lr, clip);
        }
        for slot in self.slots.iter().filter(|s| !s.frozen) {
            let lr = lr * slot.lr_factor;
            let decay = self.decay_of(slot);
            let target = slot.master.as_ref().unwrap_or(&slot.value);
            // SAFETY: the session's thread is the only one that touches these between plugin calls; the four
            // tensors are different memory.
            let (p, m) = unsafe { (target.data_mut::<f32>(), slot.m.data_mut::<f32>()) };
            let g = slot.grad.data::<f32>().ok_or_else(|| bug("gradients must be f32"))?;
            match (self.plan.kind, &slot.v) {
                (OptimizerKind::Adamw { beta1, beta2, eps }, Some(v)) => {
                    // SAFETY: as above.
                    let v = unsafe { v.data_mut::<f32>() };
                    let rule = AdamW::new(lr, decay, beta1, beta2, eps, clip, self.t);
                    rule.update(p, g, m, v);
                }
                (OptimizerKind::Sgd { momentum }, _) => {
                    sgd(p, g, m, lr as f32, decay as f32, momentum as f32, clip as f32);
                }
                (OptimizerKind::Adamw { .. }, None) => return Err(bug("AdamW without moments")),
            }
            if let Some(master) = &slot.master {
                arith::axpby(1.0, master, 0.0, &slot.value)?;
            }
        }
        Ok(())
    }

    /// As [`Optimizer::update`], by the device's `lmb.vector/1`.
    fn update_on_device(&self, lr: f64, clip: f64) -> RunResult<()> {
        // A list has masters or has none.
        for with_masters in [false, true] {
            let slots: Vec<&Slot> = self
                .slots
                .iter()
                .filter(|s| !s.frozen && s.master.is_some() == with_masters)
                .collect();
            match self.plan.kind {
                _ if slots.is_empty() => {}
                OptimizerKind::Adamw { .. } => self.adamw_on_device(&slots, lr, clip)?,
                OptimizerKind::Sgd { momentum } => {
                    for slot in slots {
                        self.sgd_on_device(slot, lr * slot.lr_factor, momentum, clip)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn decay_of(&self, slot: &Slot) -> f64 {
        if slot.decay { self.plan.weight_decay } else { 0.0 }
    }

    fn adamw_on_device(&self, slots: &[&Slot], lr: f64, clip: f64) -> RunResult<()> {
        let OptimizerKind::Adamw { beta1, beta2, eps } = self.plan.kind else { return Ok(()) };
        let list = |of: &dyn Fn(&Slot) -> Option<&Tensor>| -> Vec<abi::Tensor> {
            slots.iter().filter_map(|s| of(s).map(|t| t.view(&s.name, 0))).collect()
        };
        let (params, grads) = (list(&|s| Some(&s.value)), list(&|s| Some(&s.grad)));
        let (m, v) = (list(&|s| Some(&s.m)), list(&|s| s.v.as_ref()));
        let masters = list(&|s| s.master.as_ref());
        let rates: Vec<f64> = slots.iter().map(|s| lr * s.lr_factor).collect();
        let decays: Vec<f64> = slots.iter().map(|s| self.decay_of(s)).collect();
        if v.len() != slots.len() {
            return Err(bug("AdamW without moments"));
        }
        let update = abi::Adamw {
            struct_size: abi::struct_size::<abi::Adamw>(),
            params: params.as_ptr(),
            grads: grads.as_ptr(),
            m: m.as_ptr(),
            v: v.as_ptr(),
            masters: if masters.is_empty() { std::ptr::null() } else { masters.as_ptr() },
            lr: rates.as_ptr(),
            weight_decay: decays.as_ptr(),
            beta1,
            beta2,
            eps,
            grad_scale: clip,
            t: self.t,
        };
        let (ctx, table) = (device::context(slots[0].value.device()), vector::table());
        let adamw = table.adamw.ok_or_else(|| bug("no AdamW in the host's table"))?;
        let n = slots.len() as u64;
        // SAFETY: [step]; lists of n entries, alive during the call.
        Ok(device::answer("AdamW", |e| unsafe { adamw(table, &ctx, n, &update, e) })?)
    }

    fn sgd_on_device(&self, slot: &Slot, lr: f64, momentum: f64, clip: f64) -> RunResult<()> {
        let target = slot.master.as_ref().unwrap_or(&slot.value);
        arith::axpby(clip, &slot.grad, momentum, &slot.m)?;
        arith::axpby(self.decay_of(slot), target, 1.0, &slot.m)?;
        arith::axpby(-lr, &slot.m, 1.0, target)?;
        match &slot.master {
            Some(master) => arith::axpby(1.0, master, 0.0, &slot.value),
            None => Ok(()),
        }
    }

    /// Moments by name, for a checkpoint; masters are its model.
    pub fn save(&self) -> Named {
        let mut named = Named::new();
        for slot in &self.slots {
            named.insert(format!("m/{}", slot.name), slot.m.clone());
            if let Some(v) = &slot.v {
                named.insert(format!("v/{}", slot.name), v.clone());
            }
        }
        named
    }

    /// Takes moments back.
    ///
    /// # Errors
    /// A name or a shape that differs, in words.
    pub fn load(&mut self, named: &Named, t: u64) -> Result<(), String> {
        self.t = t;
        for slot in &self.slots {
            for (kind, tensor) in [("m", Some(&slot.m)), ("v", slot.v.as_ref())] {
                let Some(tensor) = tensor else { continue };
                let name = format!("{kind}/{}", slot.name);
                let saved = named.get(&name).ok_or_else(|| format!("`{name}` is missing"))?;
                copy_exact(saved, tensor).map_err(|e| format!("`{name}`: {e}"))?;
            }
        }
        Ok(())
    }
}

/// Copies bits, across devices; type and shape must be equal.
pub(crate) fn copy_exact(from: &Tensor, to: &Tensor) -> Result<(), String> {
    to.copy_from(from).map_err(|e| e.message)
}

/// Elements of a large tensor that one thread updates together: the vocabulary's table is half of a small encoder.
const PART: usize = 1 << 16;

/// Calls `f` with each part, on all threads.
fn in_parts<P: Send>(parts: impl Iterator<Item = P>, f: impl Fn(P) + Sync) {
    let parts: Vec<Mutex<Option<P>>> = parts.map(|part| Mutex::new(Some(part))).collect();
    parallel_ranges(parts.len(), 1, &|range, _| {
        for part in &parts[range] {
            if let Some(part) = part.lock().unwrap_or_else(PoisonError::into_inner).take() {
                f(part);
            }
        }
    });
}

struct AdamW {
    keep: f32,
    rate: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    root: f32,
    eps: f32,
    clip: f32,
}

impl AdamW {
    fn new(lr: f64, decay: f64, beta1: f64, beta2: f64, eps: f64, clip: f64, t: u64) -> Self {
        let power = |b: f64| 1.0 - b.powi(t.min(i32::MAX as u64) as i32);
        Self {
            keep: (1.0 - lr * decay) as f32,
            rate: (lr / power(beta1)) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            root: (1.0 / power(beta2).sqrt()) as f32,
            eps: eps as f32,
            clip: clip as f32,
        }
    }

    fn update(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        if p.len() <= PART {
            return self.update_part(p, g, m, v);
        }
        let parts = p.chunks_mut(PART).zip(g.chunks(PART));
        let parts = parts.zip(m.chunks_mut(PART)).zip(v.chunks_mut(PART));
        in_parts(parts, |(((p, g), m), v)| self.update_part(p, g, m, v));
    }

    fn update_part(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * self.clip;
            *m = self.beta1 * *m + self.rest1 * g;
            *v = self.beta2 * *v + self.rest2 * g * g;
            *p = *p * self.keep - self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}

fn sgd(p: &mut [f32], g: &[f32], m: &mut [f32], lr: f32, decay: f32, momentum: f32, clip: f32) {
    for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
        *m = momentum * *m + g * clip + decay * *p;
        *p -= lr * *m;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: OptimizerKind, clip_norm: Option<f64>) -> OptimizerPlan {
        OptimizerPlan { kind, lr: 0.01, weight_decay: 0.1, clip_norm }
    }

    fn run(kind: OptimizerKind, dtype: DType, steps: u32) -> Vec<f64> {
        let value = Tensor::zeros(dtype, &[3]);
        arith::axpby(1.0, &Tensor::from_slice(&[1f32, -2.0, 0.5], &[3]), 0.0, &value).unwrap();
        let grad = Tensor::zeros(DType::F32, &[3]);
        let mut optimizer = Optimizer::new(&plan(kind, None));
        optimizer.add("p".into(), value.clone(), grad.clone(), true).unwrap();
        for step in 0..steps {
            // SAFETY: only this test touches it.
            let g = unsafe { grad.data_mut::<f32>() };
            for (i, g) in g.iter_mut().enumerate() {
                *g = ((step + 1) as f32 * (i + 1) as f32).sin();
            }
            optimizer.update(0.01, 0.0).unwrap();
        }
        arith::to_f64(&value).unwrap()
    }

    #[test]
    fn adamw_agrees_with_f64() {
        let got = run(OptimizerKind::Adamw { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, DType::F32, 50);
        for (i, p0) in [1.0f64, -2.0, 0.5].into_iter().enumerate() {
            let (mut p, mut m, mut v) = (p0, 0.0, 0.0);
            for t in 1..=50 {
                let g = f64::from(t) * (i as f64 + 1.0);
                let g = g.sin();
                p -= 0.01 * 0.1 * p;
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                let (mh, vh) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
                p -= 0.01 * mh / (vh.sqrt() + 1e-8);
            }
            assert!((got[i] - p).abs() < 2e-5, "{i}: {} {p}", got[i]);
        }
    }

    #[test]
    fn sgd_agrees_with_f64_and_masters_keep_small_steps() {
        let got = run(OptimizerKind::Sgd { momentum: 0.9 }, DType::F32, 30);
        let rounded = run(OptimizerKind::Sgd { momentum: 0.9 }, DType::BF16, 30);
        for (i, p0) in [1.0f64, -2.0, 0.5].into_iter().enumerate() {
            let (mut p, mut m) = (p0, 0.0);
            for t in 1..=30 {
                let g = (f64::from(t) * (i as f64 + 1.0)).sin();
                m = 0.9 * m + g + 0.1 * p;
                p -= 0.01 * m;
            }
            assert!((got[i] - p).abs() < 1e-5);
            assert!((rounded[i] - p).abs() <= p.abs() / 256.0 + 1e-5, "{} {p}", rounded[i]);
        }
    }

    #[test]
    fn an_element_of_a_large_tensor_moves_as_it_would_alone() {
        let kind = OptimizerKind::Adamw { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let run = |values: &[f32], grads: &[f32]| {
            let mut optimizer = Optimizer::new(&plan(kind, Some(1.0)));
            let shape = [values.len() as i64];
            let value = Tensor::from_slice(values, &shape);
            optimizer
                .add("p".into(), value.clone(), Tensor::from_slice(grads, &shape), true)
                .unwrap();
            (0..3).for_each(|_| optimizer.update(0.01, 2.0).unwrap());
            value.data::<f32>().unwrap().to_vec()
        };
        let count = 2 * PART + 77;
        let wave = |i: usize| (i as f32 * 0.37).sin();
        let values: Vec<f32> = (0..count).map(wave).collect();
        let grads: Vec<f32> = (1..=count).map(wave).collect();
        let together = run(&values, &grads);
        for i in [0, 5, PART - 1, PART, 2 * PART, count - 1] {
            assert_eq!(run(&values[i..=i], &grads[i..=i])[0].to_bits(), together[i].to_bits());
        }
    }

    #[test]
    fn clipping_bounds_the_step_and_frozen_tensors_stay() {
        let mut optimizer = Optimizer::new(&plan(OptimizerKind::Sgd { momentum: 0.0 }, Some(1.0)));
        let values: Vec<Tensor> = (0..2).map(|_| Tensor::zeros(DType::F32, &[1])).collect();
        for (i, value) in values.iter().enumerate() {
            let grad = Tensor::from_slice(&[[30f32, 40.0][i]], &[1]);
            optimizer.add(format!("p{i}"), value.clone(), grad, false).unwrap();
        }
        assert_eq!(optimizer.grad_norm().unwrap(), 50.0);
        optimizer.update(1.0, 50.0).unwrap();
        let read = |i: usize| values[i].data::<f32>().unwrap()[0];
        assert!((read(0) + 0.6).abs() < 1e-6 && (read(1) + 0.8).abs() < 1e-6);
        optimizer.slots[0].frozen = true;
        assert_eq!(optimizer.grad_norm().unwrap(), 40.0);
        optimizer.update(1.0, 40.0).unwrap();
        assert!((read(0) + 0.6).abs() < 1e-6 && (read(1) + 1.8).abs() < 1e-6);
    }

    #[test]
    fn moments_survive_a_save_and_a_wrong_shape_is_refused() {
        let kind = OptimizerKind::Adamw { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let make = |n: i64| {
            let mut o = Optimizer::new(&plan(kind, None));
            let grad = Tensor::from_slice(&vec![1f32; n as usize], &[n]);
            o.add("p".into(), Tensor::zeros(DType::F32, &[n]), grad, true).unwrap();
            o
        };
        let mut first = make(3);
        first.update(0.1, 0.0).unwrap();
        let saved = first.save();
        let mut second = make(3);
        second.load(&saved, first.t).unwrap();
        assert_eq!(second.t, 1);
        assert_eq!(second.slots[0].m.raw(), first.slots[0].m.raw());
        assert!(make(4).load(&saved, 1).is_err());
        assert!(make(3).load(&Named::new(), 1).unwrap_err().contains("m/p"));
    }
}
