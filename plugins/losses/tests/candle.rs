//! The losses as operations of candle: against the same loss as an expression, and against differences.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use limbeck_losses::candle_ops::LogitLoss;
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
