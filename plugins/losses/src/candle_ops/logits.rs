//! A dense loss on logits as an operation of two tensors.

use super::counting::{Counting, counts};
use super::pool::Rayon;
use super::{part, scaled};
use crate::cpu::dense::{self, DenseCall};
use crate::cpu::{Matrix, Output, Slot};
use crate::settings::{Dense, Spec, Vocab, parse};
use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};
use std::sync::{Mutex, PoisonError};

/// A dense loss on logits, ready to be applied.
#[derive(Clone, Debug)]
pub struct LogitLoss {
    pub(super) spec: Dense,
    pub(super) counting: Counting,
}
counts!(LogitLoss);

impl LogitLoss {
    /// The loss `id` of the catalogue (`kl`, `rkl`, `gjsd`, `skl`, `srkl`, `tvd`, `sym-kl`, `soft-ce`, `alpha-div`,
    /// `logit-mse`) with settings as under `with` in a pipeline. A GPU has no `alpha-div`.
    ///
    /// # Errors
    /// A setting out of range; an id without a kernel for dense logits.
    pub fn new(id: &str, with: &serde_json::Value) -> Result<Self> {
        let name = if id == "kl" { "fkl".to_owned() } else { id.replace('-', "_") };
        let spec = parse(&name, with)
            .map_err(|bad| Error::Msg(format!("{id}{}: {}", bad.pointer, bad.message)))?;
        match spec {
            Spec::Dense(spec) if dense::knows(spec.divergence) => {
                Ok(Self { spec, counting: Counting::default() })
            }
            _ => bail!("`{id}` has no kernel for dense logits"),
        }
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
        self.counting.check(rows)?;
        let op = Op { loss: self.clone(), wanted: student.track_op(), kept: Mutex::new(None) };
        let value = student.contiguous()?.apply_op2(&teacher.detach().contiguous()?, op)?;
        value.to_dtype(student.dtype())
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
        let normalizer = self.counting.divisor(rows);
        let call = DenseCall {
            student: (student, width).into(),
            teacher: (teacher, teacher_width).into(),
            grad: grad.map(|grad| (grad, width).into()),
            width: match self.spec.vocab {
                Vocab::StudentTail => width,
                _ => width.min(teacher_width),
            },
            class_mask: None,
            weights: &|n| self.counting.weight(n),
            grad_factor: 1.0 / normalizer,
            softening: self.spec.softening,
            non_finite: self.spec.non_finite,
        };
        let mut slots = vec![Slot::default(); rows];
        let Ok(sums) = dense::run(self.spec.divergence, &call, &mut slots, &mut [], &Rayon);
        sums.value / normalizer
    }

    /// Value, f64 or f32, and if wanted the gradient.
    fn on_cpu(
        &self,
        (s, l): (&CpuStorage, &Layout),
        (t, m): (&CpuStorage, &Layout),
        wanted: bool,
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        macro_rules! typed {
            ($($variant:ident $type:ty),*) => {
                match (s, t) {
                    $((CpuStorage::$variant(s), CpuStorage::$variant(t)) => {
                        let (s, t) = (part(s, l)?, part(t, m)?);
                        let mut grad = wanted.then(|| vec![<$type>::default(); s.len()]);
                        let widths = (l.shape().dims2()?.1, m.shape().dims2()?.1);
                        let value = self.compute((s, widths.0), (t, widths.1), grad.as_deref_mut());
                        (value, grad.map(CpuStorage::$variant))
                    })*
                    _ => bail!("logits must be of one float type"),
                }
            };
        }
        let (value, grad) = typed! { F32 f32, F64 f64, F16 f16, BF16 bf16 };
        let value = match s {
            CpuStorage::F64(_) => CpuStorage::F64(vec![value]),
            _ => CpuStorage::F32(vec![value as f32]),
        };
        Ok((value, grad))
    }
}

/// One application: the loss, and its gradient between forward and backward.
struct Op {
    loss: LogitLoss,
    wanted: bool,
    kept: Mutex<Option<Storage>>,
}

impl Op {
    fn keep(&self, grad: Option<Storage>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = grad;
    }

    fn again(&self, student: &Tensor, teacher: &Tensor) -> Result<Option<Storage>> {
        let ((s, l), (t, m)) = (student.storage_and_layout(), teacher.storage_and_layout());
        match (&*s, &*t) {
            (Storage::Cpu(s), Storage::Cpu(t)) => {
                Ok(self.loss.on_cpu((s, l), (t, m), true)?.1.map(Storage::Cpu))
            }
            #[cfg(feature = "candle-cuda")]
            (Storage::Cuda(s), Storage::Cuda(t)) => {
                Ok(self.loss.on_gpu((s, l), (t, m), true)?.1.map(Storage::Cuda))
            }
            _ => bail!("logits must be on one device"),
        }
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
        let (value, grad) = self.loss.on_cpu((s, l), (t, m), self.wanted)?;
        self.keep(grad.map(Storage::Cpu));
        Ok((value, Shape::from(())))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        s: &candle_core::CudaStorage,
        l: &Layout,
        t: &candle_core::CudaStorage,
        m: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (value, grad) = self.loss.on_gpu((s, l), (t, m), self.wanted)?;
        self.keep(grad.map(Storage::Cuda));
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
            Some(grad) => Some(grad),
            None => self.again(student, teacher)?,
        };
        let grad = grad.map(|grad| scaled(grad, student, upstream)).transpose()?;
        Ok((grad, None))
    }
}
