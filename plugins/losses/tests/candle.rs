//! The losses as operations of candle: against the same loss as an expression, and against differences.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use limbeck_losses::candle_ops::{FusedLinearLoss, LogitLoss, Teacher};
use serde_json::json;

fn wave(rows: usize, columns: usize, a: f64) -> Result<Tensor> {
    let data: Vec<f64> = (0..rows * columns).map(|k| 3.0 * (k as f64 * a + 0.3).sin()).collect();
    Tensor::from_vec(data, (rows, columns), &Device::Cpu)
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?;
    centred.broadcast_sub(&centred.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// T² KL(teacher, student) over the rows, as an expression.
fn expression(student: &Tensor, teacher: &Tensor, t: f64) -> Result<Tensor> {
    let (q, p) = (log_softmax(&(student / t)?)?, log_softmax(&(teacher / t)?)?);
    let rows = student.dim(0)? as f64;
    (p.exp()? * (&p - &q)?)?.sum_all()? * (t * t / rows)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.max_all()?.to_scalar::<f64>()
}

#[test]
fn value_and_gradient_are_those_of_the_expression_also_under_a_factor() -> Result<()> {
    let loss = LogitLoss::new("kl", &json!({"temperature": 2.0}))?;
    for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 3e-2)] {
        for width in [7, 5000] {
            let student = Var::from_tensor(&wave(3, width, 0.7)?.to_dtype(dtype)?)?;
            let teacher = wave(3, width, 1.3)?.to_dtype(dtype)?;
            let wide = Var::from_tensor(&student.to_dtype(DType::F64)?)?;
            let exact = (expression(&wide, &teacher.to_dtype(DType::F64)?, 2.0)? * 3.0)?;
            let found = (loss.forward(&student, &teacher)? * 3.0)?;
            assert!(largest_difference(&found, &exact)? < bound * 10.0, "{dtype:?} {width}");
            let (found, exact) = (found.backward()?, exact.backward()?);
            let (found, exact) = (found.get(&student).unwrap(), exact.get(&wide).unwrap());
            assert_eq!(found.dtype(), dtype);
            assert!(largest_difference(found, exact)? < bound, "{dtype:?} {width}");
        }
    }
    Ok(())
}

#[test]
fn a_second_backward_pass_gives_the_gradient_again() -> Result<()> {
    let student = Var::from_tensor(&wave(4, 9, 0.7)?)?;
    let value = LogitLoss::new("gjsd", &json!({}))?.forward(&student, &wave(4, 9, 1.3)?)?;
    let (first, second) = (value.backward()?, value.backward()?);
    let (first, second) = (first.get(&student).unwrap(), second.get(&student).unwrap());
    assert_eq!(largest_difference(first, second)?, 0.0);
    assert!(first.abs()?.max_all()?.to_scalar::<f64>()? > 1e-3);
    Ok(())
}

#[test]
fn rows_that_do_not_count_get_no_gradient_and_weights_scale() -> Result<()> {
    let student = Var::from_tensor(&wave(3, 6, 0.7)?)?;
    let teacher = wave(3, 6, 1.3)?;
    let plain = LogitLoss::new("rkl", &json!({}))?;
    let loss = plain.clone().labels(vec![0, -100, 2]).weights(vec![1.0, 5.0, 2.0]).normalizer(1.0);
    let grads = loss.forward(&student, &teacher)?.backward()?;
    let grad = grads.get(&student).unwrap().to_vec2::<f64>()?;
    let all = plain.normalizer(1.0).forward(&student, &teacher)?.backward()?;
    let all = all.get(&student).unwrap().to_vec2::<f64>()?;
    for v in 0..6 {
        assert_eq!((grad[0][v], grad[1][v]), (all[0][v], 0.0));
        assert!((grad[2][v] - 2.0 * all[2][v]).abs() < 1e-15);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_with_words() -> Result<()> {
    let words = |result: Result<Tensor>| result.expect_err("refused").to_string();
    let loss = LogitLoss::new("tvd", &json!({}))?;
    let (a, b) = (wave(2, 5, 0.7)?, wave(2, 6, 0.7)?);
    assert!(words(loss.forward(&a, &b)).contains("[2, 6]"));
    assert!(words(loss.forward(&a, &a.to_dtype(DType::F32)?)).contains("F32"));
    assert!(words(loss.labels(vec![0]).forward(&a, &a)).contains("1 labels"));
    assert!(LogitLoss::new("kl", &json!({"temperature": 0})).is_err());
    assert!(LogitLoss::new("uld", &json!({})).is_err());
    Ok(())
}

/// States and heads, as `dtype`, and the loss on their logits as an expression of f64.
struct Fused {
    hidden: Var,
    head: Var,
    teacher: [Tensor; 2],
}

impl Fused {
    fn new(dtype: DType) -> Result<Self> {
        let of = |rows, columns, a| (wave(rows, columns, a)? / 3.0)?.to_dtype(dtype);
        Ok(Self {
            hidden: Var::from_tensor(&of(7, 6, 0.7)?)?,
            head: Var::from_tensor(&of(40, 6, 0.37)?)?,
            teacher: [of(7, 9, 0.9)?, of(40, 9, 0.61)?],
        })
    }

    fn teacher(&self) -> Teacher<'_> {
        Teacher::Product(&self.teacher[0], &self.teacher[1])
    }

    /// T² KL over the rows, and the gradients of states and head.
    fn exact(&self, t: f64) -> Result<(Tensor, [Tensor; 2])> {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
        let (hidden, head) =
            (Var::from_tensor(&wide(&self.hidden)?)?, Var::from_tensor(&wide(&self.head)?)?);
        let teacher = wide(&self.teacher[0])?.matmul(&wide(&self.teacher[1])?.t()?)?;
        let value = expression(&hidden.matmul(&head.t()?)?, &teacher, t)?;
        let grads = value.backward()?;
        let of = |var: &Var| grads.get(var).cloned().expect("it is used");
        Ok((value, [of(&hidden), of(&head)]))
    }
}

#[test]
fn states_and_a_head_give_the_loss_on_their_logits_and_both_gradients() -> Result<()> {
    for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
        let fused = Fused::new(dtype)?;
        let (value, grads) = fused.exact(2.0)?;
        for chunk in [0, 1, 3] {
            let loss = FusedLinearLoss::new("kl", &json!({"temperature": 2.0}))?.chunk(chunk);
            let found = (loss.forward(&fused.hidden, &fused.head, fused.teacher())? * 3.0)?;
            assert_eq!(found.dtype(), dtype);
            // A 16-bit value is rounded before and after its factor.
            let most = bound * (1.0 + 3.0 * value.to_scalar::<f64>()?);
            assert!(largest_difference(&found, &(&value * 3.0)?)? < most, "{dtype:?} {chunk}");
            let (first, second) = (found.backward()?, found.backward()?);
            for (var, exact) in [&fused.hidden, &fused.head].into_iter().zip(&grads) {
                let (grad, again) = (first.get(var).unwrap(), second.get(var).unwrap());
                assert_eq!(grad.dtype(), dtype);
                assert!(largest_difference(grad, &(exact * 3.0)?)? < 3.0 * bound, "{dtype:?}");
                assert_eq!(largest_difference(grad, again)?, 0.0);
            }
        }
    }
    Ok(())
}

#[test]
fn a_frozen_head_gets_no_gradient_and_logits_do_for_a_teacher() -> Result<()> {
    let fused = Fused::new(DType::F32)?;
    let logits = fused.teacher[0].matmul(&fused.teacher[1].t()?)?;
    let loss = FusedLinearLoss::new("gjsd", &json!({}))?.labels(vec![0, 1, -100, 3, 4, 5, 6]);
    let frozen = fused.head.as_detached_tensor();
    let whole = loss.forward(&fused.hidden, &fused.head, fused.teacher())?.backward()?;
    let grads = loss.forward(&fused.hidden, &frozen, Teacher::Logits(&logits))?.backward()?;
    let (one, other) = (whole.get(&fused.hidden).unwrap(), grads.get(&fused.hidden).unwrap());
    assert!(largest_difference(one, other)? < 1e-7);
    assert!(other.to_vec2::<f32>()?[2].iter().all(|g| *g == 0.0));
    assert!(grads.get(&frozen).is_none() && grads.get(&fused.head).is_none());
    Ok(())
}

#[test]
fn states_and_heads_that_do_not_fit_are_refused_with_words() -> Result<()> {
    let words = |result: Result<Tensor>| result.expect_err("refused").to_string();
    let fused = Fused::new(DType::F32)?;
    let loss = FusedLinearLoss::new("kl", &json!({}))?;
    let narrow = fused.head.narrow(1, 0, 5)?;
    assert!(words(loss.forward(&fused.hidden, &narrow, fused.teacher())).contains("[40, 5]"));
    let few = fused.teacher[1].narrow(0, 0, 39)?;
    let teacher = Teacher::Product(&fused.teacher[0], &few);
    assert!(words(loss.forward(&fused.hidden, &fused.head, teacher)).contains("[7, 39]"));
    let wide = fused.hidden.to_dtype(DType::F64)?;
    assert!(words(loss.forward(&wide, &fused.head, fused.teacher())).contains("f32, bf16 or f16"));
    let bad = FusedLinearLoss::new("kl", &json!({"temperature": 0})).expect_err("refused");
    assert!(bad.to_string().contains("/with/temperature"), "{bad}");
    Ok(())
}
