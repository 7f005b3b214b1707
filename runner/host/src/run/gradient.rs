//! Gradient buffers: one flat f32 block for the student, one for the loss parameters, made once per stage.
//!
//! A buffer is never read before it was written or cleared in the same step.

use super::arith;
use super::bind::Term;
use super::error::RunResult;
use crate::load::instance::{GradOut, Param};
use crate::tensor::{DType, Tensor};
use limbeck_abi::DLDevice;

/// Gradients of everything that is optimised.
#[derive(Default)]
pub(crate) struct GradSet {
    flat: Option<Tensor>,
    /// By parameter; `None` for buffers and tied names.
    pub views: Vec<Option<Tensor>>,
    /// By parameter, with zeros where there is no gradient: what schedulers are shown.
    pub shown: Vec<Tensor>,
    overwrite: Vec<Option<GradOut>>,
    add: Vec<Option<GradOut>>,
    /// By term and loss parameter.
    pub loss: Vec<Vec<GradOut>>,
    /// Something was written in this step, so the next one adds.
    written: bool,
}

impl GradSet {
    /// Buffers for these parameters and terms in the memory of a device.
    ///
    /// # Errors
    /// No room there.
    pub fn new(params: &[Param], terms: &[Term], device: DLDevice) -> RunResult<Self> {
        let zeros = |shape: &[i64]| Tensor::zeros_on(device, DType::F32, shape);
        let sizes = params.iter().map(|p| if wants_gradient(p) { p.value.elements() } else { 0 });
        let total: usize = sizes.sum();
        let flat = zeros(&[total as i64])?;
        let mut at = 0;
        let mut views = Vec::new();
        for param in params {
            let size = param.value.elements();
            views.push(wants_gradient(param).then(|| {
                let view = flat.slice_rows(at, at + size);
                at += size;
                // Equal size and contiguous, so never refused.
                view.reshape(param.value.shape()).unwrap_or(view)
            }));
        }
        let out = |accumulate| {
            let make = |v: &Option<Tensor>| {
                v.as_ref().map(|buffer| GradOut { buffer: buffer.clone(), accumulate })
            };
            views.iter().map(make).collect()
        };
        let shown = params
            .iter()
            .zip(&views)
            .map(|(p, v)| v.clone().map_or_else(|| zeros(p.value.shape()), Ok))
            .collect::<Result<_, _>>()?;
        let mut loss = Vec::new();
        for term in terms {
            let mut outs = Vec::new();
            for param in &term.params {
                outs.push(GradOut { buffer: zeros(param.value.shape())?, accumulate: true });
            }
            loss.push(outs);
        }
        Ok(Self {
            overwrite: out(false),
            add: out(true),
            flat: Some(flat),
            views,
            shown,
            loss,
            written: false,
        })
    }

    /// Begins a step. With `clear`, everything is zero at once and all writers add.
    ///
    /// # Errors
    /// Never for buffers of [`GradSet::new`].
    pub fn begin(&mut self, clear: bool) -> RunResult<()> {
        self.written = clear;
        if clear && let Some(flat) = &self.flat {
            arith::zero(flat)?;
        }
        // What schedulers are shown where there is no gradient is zero whatever they wrote there.
        for (shown, view) in self.shown.iter().zip(&self.views) {
            if view.is_none() {
                arith::zero(shown)?;
            }
        }
        for out in self.loss.iter().flatten() {
            arith::zero(&out.buffer)?;
        }
        Ok(())
    }

    /// Where the next backward pass of the student writes.
    pub fn next(&mut self) -> &[Option<GradOut>] {
        let first = !std::mem::replace(&mut self.written, true);
        if first { &self.overwrite } else { &self.add }
    }

    /// Where a loss adds the gradient of a student parameter that it reads itself.
    pub fn param(&self, place: usize) -> Option<GradOut> {
        self.add.get(place).cloned().flatten()
    }

    /// Ends the passes of a step: no backward at all means a gradient of zero.
    ///
    /// # Errors
    /// As [`GradSet::begin`].
    pub fn finish(&mut self) -> RunResult<()> {
        match &self.flat {
            Some(flat) if !self.written => arith::zero(flat),
            _ => Ok(()),
        }
    }
}

/// Whether the student's backward pass fills a gradient for it.
pub(crate) fn wants_gradient(param: &Param) -> bool {
    param.trainable && param.tied_to.is_none()
}

/// The cotangent of one student output, reused from step to step.
#[derive(Default)]
pub(crate) struct Cotangent {
    memory: Option<Tensor>,
    view: Option<Tensor>,
    written: bool,
}

impl Cotangent {
    /// Begins a pass whose output has this shape, of a student on `device`.
    ///
    /// # Errors
    /// No room there.
    pub fn begin(&mut self, shape: &[i64], device: DLDevice) -> RunResult<()> {
        self.written = false;
        if self.view.as_ref().is_some_and(|v| v.shape() == shape) {
            return Ok(());
        }
        let size = shape.iter().product::<i64>();
        if self.memory.as_ref().is_none_or(|m| m.elements() < size as usize) {
            self.memory = Some(Tensor::zeros_on(device, DType::F32, &[size])?);
        }
        let part = self.memory.as_ref().map(|m| m.slice_rows(0, size as usize));
        self.view = part.and_then(|m| m.reshape(shape));
        Ok(())
    }

    /// Where a loss writes for rows `[from, to)` of `rows`; `alone`: no other port of the call writes here.
    ///
    /// # Errors
    /// As [`arith::zero`].
    pub fn part(
        &mut self,
        rows: Option<(usize, usize, usize)>,
        alone: bool,
    ) -> RunResult<Option<GradOut>> {
        let Some(view) = &self.view else { return Ok(None) };
        let whole = rows.is_none_or(|(rows, from, to)| (from, to) == (0, rows));
        let overwrite = whole && alone && !self.written;
        if !overwrite && !self.written {
            arith::zero(view)?;
        }
        self.written = true;
        let buffer = match rows {
            Some((rows, from, to)) => super::pass::slice_rows(view, rows, from, to),
            None => view.clone(),
        };
        Ok(Some(GradOut { buffer, accumulate: !overwrite }))
    }

    /// The whole, if a loss wrote to it in this pass.
    pub fn taken(&self) -> Option<&Tensor> {
        self.view.as_ref().filter(|_| self.written)
    }
}
