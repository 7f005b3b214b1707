//! A candle student through the tables: twin, gradients, in-place writes, buffers, empty batches.
#![cfg(feature = "candle")]
#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure shows its line")]

use limbeck_sdk::candle::prelude::*;
use limbeck_sdk::candle::{LossAdapter, StudentAdapter, TeacherAdapter};
use limbeck_sdk::testing::{Flags, MockHost, MockInstance};
use limbeck_sdk::{abi, gradcheck, schemars, serde};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    inputs: usize,
    classes: usize,
}

/// One hidden layer, a tied copy of its bias, a running mean of the hidden values.
struct Mlp {
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    mean: Buffer,
}

const HIDDEN: usize = 4;

impl CandleStudent for Mlp {
    const ID: &'static str = "test.mlp";
    type Config = Config;
    fn ports(c: &Config) -> Result<Ports> {
        Ok(Ports::new()
            .input_grad("pixel_values", format!("B,{}", c.inputs))
            .output_grad("logits", format!("B,{}", c.classes))
            .output_grad("hidden.1", format!("B,{HIDDEN}"))
            .output("bias", HIDDEN.to_string()))
    }
    fn build(c: &Config, w: &mut Weights<'_>) -> Result<Self> {
        let first = w.scope("z", |w| {
            let w1 = w.param("weight", &[HIDDEN, c.inputs], Init::Normal(0.0, 0.5))?;
            Ok((w1, w.param("bias", &[HIDDEN], Init::Uniform(-0.5, 0.5))?))
        })?;
        let w2 = w.param("a.weight", &[c.classes, HIDDEN], Init::Normal(0.0, 0.5))?;
        w.tie("alias.bias", "z.bias")?;
        let mean = w.buffer("running_mean", &[HIDDEN], Init::Zeros)?;
        Ok(Self { w1: first.0, b1: first.1, w2, mean })
    }
    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        let x = call.input("pixel_values")?;
        let hidden = x.matmul(&self.w1.t()?)?.broadcast_add(&self.b1)?.tanh()?;
        if call.train() {
            self.mean.set(&hidden.mean(0)?)?;
        }
        let centred = hidden.broadcast_sub(&self.mean.get())?;
        let mut out = Outputs::new().with("hidden.1", hidden).with("bias", self.b1.clone());
        if call.wants("logits") {
            out.put("logits", centred.matmul(&self.w2.t()?)?);
        }
        Ok(out)
    }
}

struct Frozen(Mlp);
impl CandleTeacher for Frozen {
    const ID: &'static str = "test.frozen";
    type Config = Config;
    fn ports(c: &Config) -> Result<Ports> {
        Mlp::ports(c)
    }
    fn build(c: &Config, w: &mut Weights<'_>) -> Result<Self> {
        Ok(Self(Mlp::build(c, w)?))
    }
    fn forward(&self, call: &ModelCall<'_>) -> Result<Outputs> {
        self.0.forward(call)
    }
}

const SETTINGS: &str = r#"{"inputs": 3, "classes": 2}"#;

fn student(key: u64) -> MockInstance {
    let mut student = MockHost::new().student::<StudentAdapter<Mlp>>(SETTINGS).unwrap();
    student.activate([key, 1]).unwrap();
    student
}

fn x(rows: usize) -> Column {
    let values: Vec<f32> = (0..rows * 3).map(|i| (i as f32 * 0.7).sin()).collect();
    Column::new("pixel_values", &[rows as i64, 3], &values).unwrap()
}

fn eval(student: &MockInstance, x: &Column, wanted: &[&str]) -> Vec<Vec<f32>> {
    let (out, tape) =
        student.forward(&[Some(x.clone())], wanted, Flags::default(), [0, 0]).unwrap();
    assert!(tape.is_none());
    out.iter().map(|c| c.slice::<f32>().unwrap().to_vec()).collect()
}

const GRADS: Flags = Flags { train: false, param_grad: true, input_grad: true };

/// `Σ logits·c + Σ hidden·d` with fixed c, d.
fn objective(student: &MockInstance, x: &Column) -> f64 {
    let out = eval(student, x, &["logits", "hidden.1"]);
    let weigh = |v: &[f32], phase: f64| -> f64 {
        v.iter().enumerate().map(|(i, v)| f64::from(*v) * (i as f64 + phase).cos()).sum()
    };
    weigh(&out[0], 0.3) + weigh(&out[1], 1.3)
}

fn cotangent(name: &str, shape: [i64; 2], phase: f64) -> Column {
    let values: Vec<f32> =
        (0..shape[0] * shape[1]).map(|i| (i as f64 + phase).cos() as f32).collect();
    Column::new(name, &shape, &values).unwrap()
}

type Buffers = Vec<Option<(Column, bool)>>;

fn buffers(student: &MockInstance, start: f32, add: bool) -> Buffers {
    let params = student.params().unwrap();
    let buffer = |p: &limbeck_sdk::testing::MockParam| {
        let n = p.shape.iter().product::<i64>() as usize;
        let wanted = p.flags & abi::PARAM_TRAINABLE != 0 && p.tied_to.is_empty();
        wanted.then(|| (Column::new(&p.name, &p.shape, &vec![start; n]).unwrap(), add))
    };
    params.iter().map(buffer).collect()
}

fn gradients(student: &MockInstance, start: f32, add: bool) -> (Buffers, Buffers) {
    let wanted = ["logits", "hidden.1"];
    let (_, tape) = student.forward(&[Some(x(5))], &wanted, GRADS, [0, 0]).unwrap();
    let mut params = buffers(student, start, add);
    let mut inputs = vec![Some((Column::new("g", &[5, 3], &[start; 15]).unwrap(), add))];
    let cotangents = [cotangent("logits", [5, 2], 0.3), cotangent("hidden.1", [5, 4], 1.3)];
    student.backward(tape.unwrap(), &cotangents, &mut params, &mut inputs).unwrap();
    (params, inputs)
}

#[test]
fn parameters_are_sorted_and_tied_and_buffers_are_marked() {
    let params = student(1).params().unwrap();
    let names: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a.weight", "alias.bias", "running_mean", "z.bias", "z.weight"]);
    assert_eq!(params[1].tied_to, "z.bias");
    assert_eq!(params[1].address(), params[3].address());
    assert_eq!(params[2].flags & abi::PARAM_TRAINABLE, 0);
    assert_eq!(params[3].flags, abi::PARAM_TRAINABLE | abi::PARAM_NO_DECAY);
    assert_eq!(params[4].flags, abi::PARAM_TRAINABLE);
}

#[test]
fn gradients_agree_with_differences() {
    let student = student(1);
    let (params, inputs) = gradients(&student, f32::NAN, false);
    for (param, grad) in student.params().unwrap().iter().zip(&params) {
        let Some((grad, _)) = grad else { continue };
        let (start, grad) = (param.values().unwrap(), grad.slice::<f32>().unwrap());
        for i in 0..start.len() {
            let at = |step: f64| {
                let mut moved = start.clone();
                moved[i] += step;
                param.set(&moved).unwrap();
                objective(&student, &x(5))
            };
            let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
            param.set(&start).unwrap();
            let analytic = f64::from(grad[i]);
            assert!(
                (numeric - analytic).abs() < 1e-3 * (1.0 + numeric.abs()),
                "{} {i}: {analytic} {numeric}",
                param.name
            );
        }
    }
    let grad = inputs[0].as_ref().unwrap().0.slice::<f32>().unwrap().to_vec();
    for (i, analytic) in grad.into_iter().enumerate() {
        let at = |step: f32| {
            let mut moved = x(5);
            moved.slice_mut::<f32>().unwrap()[i] += step;
            objective(&student, &moved)
        };
        let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((numeric - f64::from(analytic)).abs() < 1e-3 * (1.0 + numeric.abs()), "input {i}");
    }
}

#[test]
fn gradients_are_added_where_the_host_asks() {
    let student = student(1);
    let (plain, _) = gradients(&student, f32::NAN, false);
    let (added, inputs) = gradients(&student, 0.5, true);
    for (plain, added) in plain.iter().flatten().zip(added.iter().flatten()) {
        for (p, a) in plain.0.slice::<f32>().unwrap().iter().zip(added.0.slice::<f32>().unwrap()) {
            assert_eq!(p + 0.5, *a);
        }
    }
    assert!(inputs[0].as_ref().unwrap().0.slice::<f32>().unwrap().iter().all(|g| g.is_finite()));
}

#[test]
fn addresses_hold_and_writes_in_place_reach_both_builds() {
    let student = student(1);
    let params = student.params().unwrap();
    let before = eval(&student, &x(2), &["logits"]);
    params[0].set(&[0.0; 8]).unwrap();
    student.params_changed().unwrap();
    assert_ne!(eval(&student, &x(2), &["logits"]), before);
    assert_eq!(eval(&student, &x(2), &["logits"])[0], [0.0; 4]);
    let (out, tape) = student.forward(&[Some(x(2))], &["logits"], GRADS, [0, 0]).unwrap();
    assert_eq!(out[0].slice::<f32>().unwrap(), [0.0; 4]);
    student.tape_release(tape.unwrap()).unwrap();
    let again = student.params().unwrap();
    assert!(params.iter().zip(&again).all(|(a, b)| a.address() == b.address()));
}

#[test]
fn training_updates_the_buffer_that_the_twin_reads() {
    let student = student(1);
    let flags = Flags { train: true, param_grad: true, input_grad: false };
    let before = eval(&student, &x(4), &["logits"]);
    let (_, tape) = student.forward(&[Some(x(4))], &["logits"], flags, [0, 0]).unwrap();
    student.tape_release(tape.unwrap()).unwrap();
    let mean = student.params().unwrap()[2].values().unwrap();
    assert!(mean.iter().any(|m| *m != 0.0));
    assert_ne!(eval(&student, &x(4), &["logits"]), before);
}

#[test]
fn a_copy_of_all_parameters_is_an_equal_model() {
    let (a, b) = (student(1), student(2));
    assert_ne!(eval(&a, &x(3), &["logits"]), eval(&b, &x(3), &["logits"]));
    for (from, to) in a.params().unwrap().iter().zip(b.params().unwrap()) {
        to.set(&from.values().unwrap()).unwrap();
    }
    b.params_changed().unwrap();
    assert_eq!(eval(&a, &x(3), &["logits"]), eval(&b, &x(3), &["logits"]));
}

#[test]
fn initial_weights_are_a_function_of_the_key() {
    assert_eq!(eval(&student(3), &x(3), &["logits"]), eval(&student(3), &x(3), &["logits"]));
}

#[test]
fn tapes_are_independent_and_may_be_used_in_any_order() {
    let student = student(1);
    let forward = |rows| {
        let (_, tape) = student.forward(&[Some(x(rows))], &["logits"], GRADS, [0, 0]).unwrap();
        tape.unwrap()
    };
    let run = |tape, rows| {
        let mut grads = buffers(&student, f32::NAN, false);
        let cotangent = cotangent("logits", [rows, 2], 0.3);
        student.backward(tape, &[cotangent], &mut grads, &mut []).unwrap();
        grads
    };
    let alone = run(forward(3), 3);
    let (first, second) = (forward(3), forward(6));
    run(second, 6);
    assert_eq!(run(first, 3), alone);
}

#[test]
fn an_output_that_is_a_parameter_does_not_change_when_the_parameter_does() {
    let student = student(1);
    let table = student.params().unwrap();
    let bias = table[3].values().unwrap();
    let (out, _) = student.forward(&[Some(x(1))], &["bias"], Flags::default(), [0, 0]).unwrap();
    let seen: Vec<f64> = out[0].slice::<f32>().unwrap().iter().map(|x| f64::from(*x)).collect();
    assert_eq!(seen, bias);
}

#[test]
fn a_batch_without_rows_gives_empty_outputs_and_zero_gradients() {
    let student = student(1);
    let (out, tape) = student.forward(&[Some(x(0))], &["logits"], GRADS, [0, 0]).unwrap();
    assert_eq!(out[0].shape(), [0, 2]);
    let mut grads = buffers(&student, f32::NAN, false);
    let cotangent = Column::new::<f32>("logits", &[0, 2], &[]).unwrap();
    student.backward(tape.unwrap(), &[cotangent], &mut grads, &mut []).unwrap();
    for (grad, _) in grads.iter().flatten() {
        assert!(grad.slice::<f32>().unwrap().iter().all(|g| *g == 0.0));
    }
}

#[test]
fn a_cotangent_of_an_output_that_was_not_computed_is_refused() {
    let student = student(1);
    let (_, tape) = student.forward(&[Some(x(2))], &["logits"], GRADS, [0, 0]).unwrap();
    let wrong = cotangent("hidden.1", [2, 4], 0.0);
    let error = student.backward(tape.unwrap(), &[wrong], &mut [], &mut []).unwrap_err();
    assert_eq!(error.status(), abi::STATUS_INVALID_ARGUMENT);
    assert_eq!(error.find_note("tensor"), Some("hidden.1"));
}

#[test]
fn activation_can_be_cancelled_and_tried_again() {
    let host = MockHost::new();
    let mut student = host.student::<StudentAdapter<Mlp>>(SETTINGS).unwrap();
    host.cancel(true);
    assert_eq!(student.activate([1, 1]).unwrap_err().status(), abi::STATUS_CANCELLED);
    host.cancel(false);
    student.activate([1, 1]).unwrap();
    assert_eq!(student.params().unwrap().len(), 5);
}

#[test]
fn the_same_model_serves_as_a_teacher_without_the_student_interface() {
    let mut teacher = MockHost::new().teacher::<TeacherAdapter<Frozen>>(SETTINGS).unwrap();
    teacher.activate([1, 1]).unwrap();
    assert!(teacher.offers(abi::TEACHER_ID) && !teacher.offers(abi::STUDENT_ID));
    assert_eq!(eval(&teacher, &x(3), &["logits"]), eval(&student(1), &x(3), &["logits"]));
}

struct WeightedSquare;
impl CandleLoss for WeightedSquare {
    const ID: &'static str = "test.square";
    type Config = NoSettings;
    fn new(_: NoSettings, _: &Host) -> Result<Self> {
        Ok(Self)
    }
    fn ports(&self) -> Ports {
        Ports::new()
            .input_grad("student.logits", "N,V")
            .input_grad("student.unused", "N,V")
            .counting()
    }
    fn value(&self, x: &Inputs) -> Candle<Tensor> {
        x.get("student.logits")?.sqr()?.sum(D::Minus1)
    }
}

#[test]
fn a_candle_loss_keeps_every_promise() {
    gradcheck!(candle WeightedSquare, {});
    let _ = std::any::type_name::<LossAdapter<WeightedSquare>>();
}
