//! The dense losses as operations of candle programs, with their gradient.
//!
//! Forward computes loss and gradient in one pass and keeps the gradient for the backward pass, which scales it; a
//! second backward computes it again. Refuses what the settings refuse, other shapes than `[N, V]` and tensors that
//! are not on the CPU. No graph of intermediate tensors is made.
//!
//! ```
#![doc = include_str!("../examples/distill.rs")]
//! ```

use crate::cpu::dense::{self, DenseCall};
use crate::cpu::{Matrix, Output, Pool, Slot};
use crate::settings::{Dense, Spec, Vocab, parse};
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A dense loss on logits, ready to be applied.
#[derive(Clone, Debug)]
pub struct LogitLoss {
    spec: Dense,
    labels: Option<Vec<i64>>,
    weights: Option<Vec<f64>>,
    normalizer: Option<f64>,
}

impl LogitLoss {
    /// The loss `id` of the catalogue (`kl`, `rkl`, `gjsd`, `skl`, `srkl`, `tvd`, `sym-kl`, `soft-ce`, `alpha-div`,
    /// `logit-mse`) with settings as under `with` in a pipeline.
    ///
    /// # Errors
    /// A setting out of range; an id without a kernel for dense logits.
    pub fn new(id: &str, with: &serde_json::Value) -> Result<Self> {
        let name = if id == "kl" { "fkl".to_owned() } else { id.replace('-', "_") };
        let spec = parse(&name, with)
            .map_err(|bad| Error::Msg(format!("{id}{}: {}", bad.pointer, bad.message)))?;
        match spec {
            Spec::Dense(spec) if dense::knows(spec.divergence) => {
                Ok(Self { spec, labels: None, weights: None, normalizer: None })
            }
            _ => bail!("`{id}` has no kernel for dense logits"),
        }
    }

    /// Rows with label −100 do not count; others are not looked at.
    #[must_use]
    pub fn labels(mut self, labels: Vec<i64>) -> Self {
        self.labels = Some(labels);
        self
    }

    /// A weight for each row.
    #[must_use]
    pub fn weights(mut self, weights: Vec<f64>) -> Self {
        self.weights = Some(weights);
        self
    }

    /// What the sum over rows is divided by; the counted rows unless given.
    #[must_use]
    pub fn normalizer(mut self, normalizer: f64) -> Self {
        self.normalizer = Some(normalizer);
        self
    }

    /// The loss of `student` against `teacher`, both `[N, V]` of one float type: a scalar of that type, whose
    /// backward pass gives the gradient of `student`. The teacher is a constant.
    ///
    /// # Errors
    /// Shapes, types or devices that do not fit.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        let (rows, width) = student.dims2()?;
        let (other, teacher_width) = teacher.dims2()?;
        if rows != other || (self.spec.vocab == Vocab::Strict && width != teacher_width) {
            bail!(
                "student logits are [{rows}, {width}], teacher logits [{other}, {teacher_width}]"
            );
        }
        if student.dtype() != teacher.dtype() {
            bail!("student logits are {:?}, teacher logits {:?}", student.dtype(), teacher.dtype());
        }
        let lengths = [self.labels.as_ref().map(Vec::len), self.weights.as_ref().map(Vec::len)];
        if let Some(found) = lengths.into_iter().flatten().find(|found| *found != rows) {
            bail!("{found} labels or weights for {rows} rows");
        }
        let op = Op { loss: self.clone(), wanted: student.track_op(), kept: Mutex::new(None) };
        student.contiguous()?.apply_op2(&teacher.detach().contiguous()?, op)
    }

    fn weight(&self, n: usize) -> Option<f64> {
        let ignored = self.labels.as_ref().is_some_and(|labels| labels[n] == -100);
        (!ignored).then(|| self.weights.as_ref().map_or(1.0, |weights| weights[n]))
    }

    fn counted(&self, rows: usize) -> f64 {
        let count = || (0..rows).filter(|n| self.weight(*n).is_some()).count().max(1) as f64;
        self.normalizer.unwrap_or_else(count)
    }

    /// Value and gradient of contiguous logits.
    fn compute<E: Copy + Default>(
        &self,
        (student, width): (&[E], usize),
        (teacher, teacher_width): (&[E], usize),
        grad: Option<&mut [E]>,
    ) -> f64
    where
        for<'a> Matrix<'a>: From<(&'a [E], usize)>,
        for<'a> Output<'a>: From<(&'a mut [E], usize)>,
    {
        let rows = student.len().checked_div(width).unwrap_or(0);
        let normalizer = self.counted(rows);
        let call = DenseCall {
            student: (student, width).into(),
            teacher: (teacher, teacher_width).into(),
            grad: grad.map(|grad| (grad, width).into()),
            width: match self.spec.vocab {
                Vocab::StudentTail => width,
                _ => width.min(teacher_width),
            },
            class_mask: None,
            weights: &|n| self.weight(n),
            grad_factor: 1.0 / normalizer,
            softening: self.spec.softening,
            non_finite: self.spec.non_finite,
        };
        let mut slots = vec![Slot::default(); rows];
        let Ok(sums) = dense::run(self.spec.divergence, &call, &mut slots, &mut [], &Rayon);
        sums.value / normalizer
    }
}

/// One application: the loss, and its gradient between forward and backward.
struct Op {
    loss: LogitLoss,
    wanted: bool,
    kept: Mutex<Option<CpuStorage>>,
}

impl Op {
    /// Value and, if wanted, gradient of contiguous logits.
    fn run(
        &self,
        (s, l): (&CpuStorage, &Layout),
        (t, m): (&CpuStorage, &Layout),
        wanted: bool,
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        macro_rules! typed {
            ($($variant:ident $type:ty: $of:expr),*) => {
                match (s, t) {
                    $((CpuStorage::$variant(s), CpuStorage::$variant(t)) => {
                        let (s, t) = (part(s, l)?, part(t, m)?);
                        let mut grad = wanted.then(|| vec![<$type>::default(); s.len()]);
                        let widths = (l.shape().dims2()?.1, m.shape().dims2()?.1);
                        let value = self.loss.compute((s, widths.0), (t, widths.1), grad.as_deref_mut());
                        let of: fn(f64) -> $type = $of;
                        Ok((CpuStorage::$variant(vec![of(value)]), grad.map(CpuStorage::$variant)))
                    })*
                    _ => bail!("logits must be of one float type"),
                }
            };
        }
        typed! { F32 f32: |x| x as f32, F64 f64: |x| x, F16 f16: f16::from_f64, BF16 bf16: bf16::from_f64 }
    }
}

/// The elements of a contiguous tensor.
fn part<'a, E>(data: &'a [E], layout: &Layout) -> Result<&'a [E]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&data[from..to]),
        None => bail!("logits must be contiguous"),
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "limbeck-logit-loss"
    }

    fn cpu_fwd(
        &self,
        s: &CpuStorage,
        l: &Layout,
        t: &CpuStorage,
        m: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (value, grad) = self.run((s, l), (t, m), self.wanted)?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = grad;
        Ok((value, Shape::from(())))
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _value: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let grad = match kept {
            Some(grad) => grad,
            None => {
                let ((s, l), (t, m)) = (student.storage_and_layout(), teacher.storage_and_layout());
                let (candle_core::Storage::Cpu(s), candle_core::Storage::Cpu(t)) = (&*s, &*t)
                else {
                    bail!("logits must be on the CPU")
                };
                self.run((s, l), (t, m), true)?.1.unwrap_or(CpuStorage::F32(Vec::new()))
            }
        };
        let (shape, device) = (student.shape().clone(), student.device());
        let grad = match grad {
            CpuStorage::F32(grad) => Tensor::from_vec(grad, shape, device)?,
            CpuStorage::F64(grad) => Tensor::from_vec(grad, shape, device)?,
            CpuStorage::F16(grad) => Tensor::from_vec(grad, shape, device)?,
            CpuStorage::BF16(grad) => Tensor::from_vec(grad, shape, device)?,
            _ => bail!("a gradient of no float type"),
        };
        // The loss of a step is mostly its own objective: nothing to multiply then.
        let factor = upstream.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok((Some(if factor == 1.0 { grad } else { (grad * factor)? }), None))
    }
}

/// The global pool of rayon, which candle uses too.
struct Rayon;

impl Pool for Rayon {
    type Error = std::convert::Infallible;
    fn workers(&self) -> usize {
        rayon::current_num_threads()
    }
    fn run(
        &self,
        n: usize,
        grain: usize,
        body: &(dyn Fn(Range<usize>, usize) + Sync),
    ) -> std::result::Result<(), Self::Error> {
        let next = AtomicUsize::new(0);
        rayon::broadcast(|context| {
            loop {
                let begin = next.fetch_add(grain, Ordering::Relaxed);
                if begin >= n {
                    break;
                }
                body(begin..(begin + grain).min(n), context.index());
            }
        });
        Ok(())
    }
}
