//! A dense loss on hidden states times a head as an operation of three tensors.

use super::counting::{Counting, counts};
use super::pool::Rayon;
use super::{part, scaled};
use crate::cpu::linear::{self as fused, LinearCall};
use crate::cpu::{Matrix, Output};
use crate::settings::{Linear, Spec, Vocab, parse};
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor, bail};
use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};

/// A dense loss on the logits of hidden states and a head, which exist in chunks only; ready to be applied.
///
/// Logits are f32. Rows that do not count cost nothing. Takes f32, bf16 and f16 on the CPU, f32 and bf16 on a GPU.
#[derive(Clone, Debug)]
pub struct FusedLinearLoss {
    pub(super) spec: Linear,
    pub(super) counting: Counting,
}
counts!(FusedLinearLoss);

/// Where the teacher's logits come from; constants.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// Logits `[N, V]`.
    Logits(&'a Tensor),
    /// States `[N, H']` times a head `[V, H']`.
    Product(&'a Tensor, &'a Tensor),
}

impl FusedLinearLoss {
    /// The loss `id` (`kl`, `rkl`, `gjsd`, `skl`, `srkl`, `tvd`, `sym-kl`, `soft-ce`, and on a CPU `alpha-div`) with
    /// settings as under its `with` in a pipeline.
    ///
    /// # Errors
    /// A setting out of range; a loss that is not of this list.
    pub fn new(id: &str, with: &Value) -> Result<Self> {
        Self::parse(&json!({"loss": id, "with": with}))
    }

    fn parse(settings: &Value) -> Result<Self> {
        match parse("fused_linear", settings) {
            Ok(Spec::Linear(spec)) => Ok(Self { spec, counting: Counting::default() }),
            Ok(_) => bail!("no loss on hidden states and a head"),
            Err(bad) => Err(Error::Msg(format!("fused-linear{}: {}", bad.pointer, bad.message))),
        }
    }

    /// Rows whose logits are in memory at once; chosen for the device unless given.
    #[must_use]
    pub fn chunk(mut self, rows: usize) -> Self {
        self.spec.chunk = rows;
        self
    }

    /// The loss of `hidden · headᵀ` (`[N, H]`, `[V, H]`) against the teacher: a scalar of the type of `hidden`, whose
    /// backward pass gives the gradients of both.
    ///
    /// # Errors
    /// Shapes, types or devices that do not fit.
    pub fn forward(&self, hidden: &Tensor, head: &Tensor, teacher: Teacher<'_>) -> Result<Tensor> {
        let ((rows, depth), (width, other)) = (hidden.dims2()?, head.dims2()?);
        if depth != other {
            bail!("states are [{rows}, {depth}], the head is [{width}, {other}]");
        }
        let (first, second) = match teacher {
            Teacher::Logits(logits) => (logits, None),
            Teacher::Product(states, head) => (states, Some(head.detach().contiguous()?)),
        };
        let (teacher_rows, columns) = first.dims2()?;
        let teacher_width = match &second {
            None => columns,
            Some(head) if head.dim(1)? == columns => head.dim(0)?,
            Some(head) => {
                bail!(
                    "teacher states are [{teacher_rows}, {columns}], its head is {:?}",
                    head.dims()
                )
            }
        };
        if rows != teacher_rows
            || (self.spec.dense.vocab == Vocab::Strict && width != teacher_width)
        {
            bail!(
                "student logits are [{rows}, {width}], teacher logits [{teacher_rows}, {teacher_width}]"
            );
        }
        self.counting.check(rows)?;
        let op = Op {
            loss: self.clone(),
            teacher_head: second,
            wanted: [hidden.track_op(), head.track_op()],
            kept: Mutex::new(None),
        };
        let teacher = first.detach().contiguous()?;
        let value = hidden.contiguous()?.apply_op3(&head.contiguous()?, &teacher, op)?;
        value.to_dtype(hidden.dtype())
    }

    /// Value, and the gradients that are wanted, all f32.
    fn on_cpu(
        &self,
        student: [(&CpuStorage, &Layout); 2],
        teacher: [Option<(&CpuStorage, &Layout)>; 2],
        wanted: [bool; 2],
    ) -> Result<(f64, [Option<Vec<f32>>; 2])> {
        let [hidden, head] = [matrix(student[0])?, matrix(student[1])?];
        let teacher = match teacher {
            [Some(states), Some(head)] => fused::Teacher::Product(matrix(states)?, matrix(head)?),
            [Some(logits), None] => fused::Teacher::Logits(matrix(logits)?),
            _ => bail!("a teacher of nothing"),
        };
        let (rows, depth) = (hidden.rows(), head.width());
        let sizes = [rows * depth, head.rows() * depth];
        let mut grads = [0, 1].map(|k| wanted[k].then(|| vec![0.0f32; sizes[k]]));
        let normalizer = self.counting.divisor(rows);
        let dense = &self.spec.dense;
        let [hidden_grad, head_grad] = &mut grads;
        let call = LinearCall {
            hidden_grad: output(hidden_grad, depth),
            head_grad: output(head_grad, depth),
            hidden,
            head,
            teacher,
            weights: &|n| self.counting.weight(n),
            grad_factor: 1.0 / normalizer,
            divergence: dense.divergence,
            softening: dense.softening,
            vocab: dense.vocab,
            non_finite: dense.non_finite,
            chunk: self.spec.chunk,
        };
        let Ok(sums) = fused::run(&call, &Rayon);
        Ok((sums.value / normalizer, grads))
    }
}

fn output(grad: &mut Option<Vec<f32>>, width: usize) -> Option<Output<'_>> {
    grad.as_mut().map(|grad| (&mut grad[..], width).into())
}

fn matrix<'a>((data, layout): (&'a CpuStorage, &Layout)) -> Result<Matrix<'a>> {
    let width = layout.shape().dims2()?.1;
    match data {
        CpuStorage::F32(data) => Ok((part(data, layout)?, width).into()),
        CpuStorage::F16(data) => Ok((part(data, layout)?, width).into()),
        CpuStorage::BF16(data) => Ok((part(data, layout)?, width).into()),
        _ => bail!("states and heads must be f32, bf16 or f16"),
    }
}

/// Gradients of states and head.
type Grads = [Option<Storage>; 2];

/// One application: the loss, and its gradients between forward and backward.
struct Op {
    loss: FusedLinearLoss,
    teacher_head: Option<Tensor>,
    wanted: [bool; 2],
    kept: Mutex<Option<Grads>>,
}

impl Op {
    fn keep(&self, grads: Grads) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(grads);
    }

    fn on_cpu(
        &self,
        student: [(&CpuStorage, &Layout); 2],
        teacher: (&CpuStorage, &Layout),
    ) -> Result<(f64, Grads)> {
        let head = self.teacher_head.as_ref().map(Tensor::storage_and_layout);
        let head = match &head {
            None => None,
            Some((storage, layout)) => match &**storage {
                Storage::Cpu(storage) => Some((storage, *layout)),
                _ => bail!("states and heads must be on one device"),
            },
        };
        let (value, grads) = self.loss.on_cpu(student, [Some(teacher), head], self.wanted)?;
        Ok((value, grads.map(|grad| grad.map(|grad| Storage::Cpu(CpuStorage::F32(grad))))))
    }

    #[cfg(feature = "candle-cuda")]
    fn on_gpu(
        &self,
        student: [(&candle_core::CudaStorage, &Layout); 2],
        teacher: (&candle_core::CudaStorage, &Layout),
    ) -> Result<(candle_core::CudaStorage, Grads)> {
        let head = self.teacher_head.as_ref().map(Tensor::storage_and_layout);
        let head = match &head {
            None => None,
            Some((storage, layout)) => match &**storage {
                Storage::Cuda(storage) => Some((storage, *layout)),
                _ => bail!("states and heads must be on one device"),
            },
        };
        let (value, grads) = self.loss.on_gpu(student, (teacher, head), self.wanted)?;
        Ok((value, grads.map(|grad| grad.map(Storage::Cuda))))
    }

    fn again(&self, hidden: &Tensor, head: &Tensor, teacher: &Tensor) -> Result<Grads> {
        let (h, w, t) =
            (hidden.storage_and_layout(), head.storage_and_layout(), teacher.storage_and_layout());
        match (&*h.0, &*w.0, &*t.0) {
            (Storage::Cpu(a), Storage::Cpu(b), Storage::Cpu(c)) => {
                Ok(self.on_cpu([(a, h.1), (b, w.1)], (c, t.1))?.1)
            }
            #[cfg(feature = "candle-cuda")]
            (Storage::Cuda(a), Storage::Cuda(b), Storage::Cuda(c)) => {
                Ok(self.on_gpu([(a, h.1), (b, w.1)], (c, t.1))?.1)
            }
            _ => bail!("states and heads must be on one device"),
        }
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "limbeck-fused-linear-loss"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        t: &CpuStorage,
        t_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (value, grads) = self.on_cpu([(h, h_layout), (w, w_layout)], (t, t_layout))?;
        self.keep(grads);
        Ok((CpuStorage::F32(vec![value as f32]), Shape::from(())))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        h: &candle_core::CudaStorage,
        h_layout: &Layout,
        w: &candle_core::CudaStorage,
        w_layout: &Layout,
        t: &candle_core::CudaStorage,
        t_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (value, grads) = self.on_gpu([(h, h_layout), (w, w_layout)], (t, t_layout))?;
        self.keep(grads);
        Ok((value, Shape::from(())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        teacher: &Tensor,
        _value: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let [to_hidden, to_head] = match kept {
            Some(grads) => grads,
            None => self.again(hidden, head, teacher)?,
        };
        let of = |grad: Option<Storage>, tensor: &Tensor| {
            grad.map(|grad| scaled(grad, tensor, upstream)).transpose()
        };
        Ok((of(to_hidden, hidden)?, of(to_head, head)?, None))
    }
}
