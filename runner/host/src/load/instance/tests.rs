//! Through the C plugins of `testing/plugins.c`, opened like any other.

use super::super::testing::catalogue;
use super::*;
use crate::tensor::{DType, Tensor, TensorSpec};
use serde_json::json;
use std::path::Path;

fn counter(catalogue: &super::super::Catalogue, name: &str) -> i64 {
    let get = catalogue.module("test.mse").unwrap().get_interface.unwrap();
    // SAFETY: the test library answers these ids with a pointer to an i64.
    unsafe { *get(abi::Str::new(name)).cast::<i64>() }
}

fn active(catalogue: &super::super::Catalogue, id: &str, with: serde_json::Value) -> Instance {
    let mut instance = catalogue.create(id, &with).unwrap();
    instance.activate(CallCtx::default(), Path::new("/tmp")).unwrap();
    instance
}

fn rows(n: usize, width: usize, scale: f32) -> Tensor {
    let values: Vec<f32> = (0..n * width).map(|i| (i as f32 * 0.7).sin() * scale).collect();
    Tensor::from_slice(&values, &[n as i64, width as i64])
}

#[test]
fn a_loss_gives_value_metric_and_gradients_with_its_scale() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut loss = active(&catalogue, "test.mse", json!({}));
    let (s, t) = (rows(5, 3, 1.0), rows(5, 3, -0.5));
    let expected: f64 = s
        .data::<f32>()
        .unwrap()
        .iter()
        .zip(t.data::<f32>().unwrap())
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    let grad = Tensor::from_slice(&[1.0f32; 15], &[5, 3]);
    for accumulate in [false, true] {
        let call = LossCall {
            inputs: &[Some(s.clone()), Some(t.clone())],
            grads: &[Some(GradOut { buffer: grad.clone(), accumulate }), None],
            params: &[],
            param_grads: &[],
            normalizer: 4.0,
            grad_scale: 0.5,
        };
        let out = loss.loss_compute(CallCtx::default(), &call).unwrap();
        assert!((out.value - expected / 4.0).abs() < 1e-6, "{} {}", out.value, expected / 4.0);
        assert_eq!(out.metrics, [("seen".to_owned(), 1.25)]);
    }
    let first = f64::from(s.data::<f32>().unwrap()[1] - t.data::<f32>().unwrap()[1]);
    assert!(
        (f64::from(grad.data::<f32>().unwrap()[1]) - 2.0 * 0.5 / 4.0 * 2.0 * first).abs() < 1e-6
    );
}

#[test]
fn a_loss_is_planned_again_when_shapes_change_and_says_why_not() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut loss = active(&catalogue, "test.mse", json!({}));
    let compute = |loss: &mut Instance, n: usize, v: usize| {
        let inputs = [Some(rows(n, 2, 1.0)), Some(rows(n, v, 1.0))];
        let call = LossCall {
            inputs: &inputs,
            grads: &[None, None],
            params: &[],
            param_grads: &[],
            normalizer: 1.0,
            grad_scale: 1.0,
        };
        loss.loss_compute(CallCtx::default(), &call)
    };
    for n in [4, 4, 0, 1, 900, 4] {
        assert!(compute(&mut loss, n, 2).is_ok(), "{n} rows");
    }
    let error = compute(&mut loss, 4, 3).unwrap_err();
    assert_eq!(
        (error.call, error.status, error.message.as_str()),
        ("plan", abi::STATUS_UNSUPPORTED, "widths differ")
    );
    assert!(compute(&mut loss, 4, 2).is_ok());
}

#[test]
fn a_value_that_a_loss_forgets_is_nan_and_not_the_last_one() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut loss = active(&catalogue, "test.mse", json!({"forget": true}));
    let call = LossCall {
        inputs: &[Some(rows(2, 2, 1.0)), Some(rows(2, 2, 0.0))],
        grads: &[None, None],
        params: &[],
        param_grads: &[],
        normalizer: 2.0,
        grad_scale: 1.0,
    };
    assert!(loss.loss_compute(CallCtx::default(), &call).unwrap().value.is_nan());
}

#[test]
fn a_panic_poisons_the_instance_and_only_that() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut loss = active(&catalogue, "test.mse", json!({"panic": true}));
    let call = LossCall {
        inputs: &[Some(rows(2, 2, 1.0)), Some(rows(2, 2, 0.0))],
        grads: &[None, None],
        params: &[],
        param_grads: &[],
        normalizer: 2.0,
        grad_scale: 1.0,
    };
    let error = loss.loss_compute(CallCtx { step: 7, ..CallCtx::default() }, &call).unwrap_err();
    assert_eq!((error.status, error.note("row")), (abi::STATUS_PANIC, Some("3")));
    assert_eq!(error.to_string(), "plugin `test.mse` 0.1.0 failed in compute: index out of bounds");
    let again = loss.loss_compute(CallCtx::default(), &call).unwrap_err();
    assert_eq!(again.status, abi::STATUS_INVALID_STATE);
    assert!(loss.is_poisoned());
    drop(loss);
    assert_eq!(counter(&catalogue, "test.live"), 0, "destroy follows a panic");
    assert!(
        active(&catalogue, "test.mse", json!({})).loss_compute(CallCtx::default(), &call).is_ok()
    );
}

#[test]
fn a_student_trains_by_vjp_and_releases_unused_tapes() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut student = active(&catalogue, "test.linear", json!({}));
    let params = student.params().unwrap();
    assert_eq!((params[0].name.as_str(), params[0].value.shape()), ("w", &[3, 2][..]));
    let x = rows(4, 3, 1.0);
    let wanted = ["logits".to_owned()];
    let flags = ForwardFlags { train: true, param_grad: true, input_grad: false };
    let forward = |student: &mut Instance| {
        student.forward(CallCtx::default(), flags, &[Some(x.clone())], &wanted).unwrap()
    };
    let unused = forward(&mut student);
    assert_eq!(counter(&catalogue, "test.blocks"), 2);
    drop(unused);
    assert_eq!(counter(&catalogue, "test.blocks"), 0, "tape and output are given back");
    let ForwardOut { outputs, tape } = forward(&mut student);
    assert_eq!(outputs[0].shape(), [4, 2]);
    let cotangent = rows(4, 2, 0.3);
    let grad = Tensor::zeros(DType::F32, &[3, 2]);
    let to = Some(GradOut { buffer: grad.clone(), accumulate: false });
    let cotangents = [("logits".to_owned(), cotangent.clone())];
    student.backward(CallCtx::default(), tape.unwrap(), &cotangents, &[to], &[]).unwrap();
    for d in 0..3 {
        for j in 0..2 {
            let wanted: f32 = (0..4)
                .map(|i| {
                    x.data::<f32>().unwrap()[i * 3 + d]
                        * cotangent.data::<f32>().unwrap()[i * 2 + j]
                })
                .sum();
            assert!((grad.data::<f32>().unwrap()[d * 2 + j] - wanted).abs() < 1e-6);
        }
    }
    drop(outputs);
    // Written in place, seen by the next forward.
    // SAFETY: nothing else reads the parameter now.
    unsafe { params[0].value.data_mut::<f32>() }.fill(0.0);
    student.params_changed(CallCtx::default()).unwrap();
    let out = student
        .forward(CallCtx::default(), ForwardFlags::default(), &[Some(x.clone())], &wanted)
        .unwrap();
    assert!(out.tape.is_none());
    assert!(out.outputs[0].data::<f32>().unwrap().iter().all(|v| *v == 0.0));
}

#[test]
fn a_tape_of_another_activation_is_refused_and_never_released_late() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut student = active(&catalogue, "test.linear", json!({}));
    let flags = ForwardFlags { param_grad: true, ..ForwardFlags::default() };
    let out = student.forward(CallCtx::default(), flags, &[Some(rows(1, 3, 1.0))], &[]).unwrap();
    student.deactivate();
    student.activate(CallCtx::default(), Path::new("/tmp")).unwrap();
    let error = student.backward(CallCtx::default(), out.tape.unwrap(), &[], &[], &[]).unwrap_err();
    assert_eq!(error.status, abi::STATUS_INVALID_ARGUMENT);
}

#[test]
fn calls_out_of_order_never_reach_the_plugin() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut student = catalogue.create("test.linear", &json!({})).unwrap();
    let invalid = abi::STATUS_INVALID_STATE;
    assert_eq!(student.params().unwrap_err().status, invalid);
    let forward = |s: &mut Instance, inputs: &[Option<Tensor>], wanted: &str| {
        s.forward(CallCtx::default(), ForwardFlags::default(), inputs, &[wanted.to_owned()])
            .map(|_| ())
            .unwrap_err()
            .status
    };
    assert_eq!(forward(&mut student, &[Some(rows(1, 3, 1.0))], "logits"), invalid);
    student.activate(CallCtx::default(), Path::new("/tmp")).unwrap();
    assert_eq!(
        student.activate(CallCtx::default(), Path::new("/tmp")).unwrap_err().status,
        invalid
    );
    assert_eq!(forward(&mut student, &[], "logits"), abi::STATUS_INVALID_ARGUMENT);
    assert_eq!(
        forward(&mut student, &[Some(rows(1, 3, 1.0))], "hidden.9"),
        abi::STATUS_INVALID_ARGUMENT
    );
    assert_eq!(student.schedule().unwrap_err().status, abi::STATUS_UNSUPPORTED);
    assert!(student.offers(abi::TEACHER_ID) && !student.offers("lmb.generate/1"));
}

#[test]
fn outputs_that_break_the_contract_are_refused_and_freed() {
    for define in ["BAD_DTYPE", "NEGATIVE_SHAPE", "WIDE_OUTPUT", "NO_TAPE"] {
        let (_dir, catalogue) = catalogue(&[define]);
        let mut student = active(&catalogue, "test.linear", json!({}));
        let flags = ForwardFlags { param_grad: true, ..ForwardFlags::default() };
        let wanted = ["logits".to_owned()];
        let error = student
            .forward(CallCtx::default(), flags, &[Some(rows(2, 3, 1.0))], &wanted)
            .err()
            .unwrap();
        assert!(error.is_contract(), "{define}: {error}");
        assert_eq!(error.diagnostic().code, "LMB0402");
        assert_eq!(counter(&catalogue, "test.blocks"), 0, "{define}");
    }
}

#[test]
fn an_estimate_needs_no_activation() {
    let (_dir, catalogue) = catalogue(&[]);
    let teacher = catalogue.create("test.pass", &json!({})).unwrap();
    let spec = TensorSpec { dtype: DType::F32, shape: vec![16, 3] };
    assert_eq!(teacher.estimate(&[Some(spec)]).unwrap(), Some((24, 128)));
}

#[test]
fn state_travels_byte_by_byte_and_a_cut_one_is_refused() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut one = active(&catalogue, "test.keeper", json!({}));
    let event = event("", &[], &[], &[]);
    one.on_event(CallCtx::default(), &event, &|_| Ok(())).unwrap();
    let bytes = one.state_save(CallCtx::default()).unwrap().unwrap();
    let mut two = active(&catalogue, "test.keeper", json!({}));
    two.state_load(CallCtx::default(), &bytes).unwrap();
    assert_eq!(two.state_save(CallCtx::default()).unwrap().unwrap(), bytes);
    let error = two.state_load(CallCtx::default(), &bytes[..5]).unwrap_err();
    assert_eq!((error.status, error.message.as_str()), (abi::STATUS_BAD_DATA, "the state is cut"));
}

fn event<'a>(
    task: &'a str,
    tensors: &'a [(String, Option<Tensor>)],
    params: &'a [Param],
    grads: &'a [(String, Vec<Tensor>)],
) -> Event<'a> {
    let kind = if grads.is_empty() { abi::EVENT_STEP_BEGIN } else { abi::EVENT_PENALTY };
    Event {
        kind,
        task,
        task_index: 0,
        num_tasks: 1,
        epoch: 0,
        phase: "",
        group: "",
        tensors,
        params,
        params_writable: false,
        grads,
        metrics: &[],
    }
}

#[test]
fn a_scheduler_declares_and_files_requests_in_order() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut keeper = active(&catalogue, "test.keeper", json!({}));
    let schedule = keeper.schedule().unwrap();
    assert_eq!(
        schedule.groups,
        [Group { name: "replay".into(), max_rows: 8, flags: abi::GROUP_JOIN }]
    );
    assert_eq!((schedule.terms[0].name.as_str(), schedule.terms[0].weight), ("lwf", 0.25));
    assert_eq!(schedule.terms[0].inputs, [("teacher.logits".into(), "previous.logits".into())]);
    assert_eq!(schedule.snapshots, ["previous"]);
    let ids = [("row_ids".to_owned(), Some(Tensor::from_slice(&[4i64, 9], &[2])))];
    let mut show = |task: &str, allow: &dyn Fn(&Request) -> Result<(), String>| {
        keeper.on_event(CallCtx::default(), &event(task, &ids, &[], &[]), allow)
    };
    let filed = show("knob", &|_| Ok(())).unwrap();
    assert!(
        matches!(&filed[..], [Request::Set(key, Knob::F64(v))] if key == "lr" && *v == 0.5),
        "{filed:?}"
    );
    let filed = show("rows", &|_| Ok(())).unwrap();
    let [Request::Rows { name, columns, .. }] = &filed[..] else { panic!("{filed:?}") };
    assert_eq!((name.as_str(), columns[0].0.as_str()), ("replay", "row_ids"));
    assert_eq!(columns[0].1.data::<i64>().unwrap(), [4, 9]);
    assert_eq!(show("unknown knob", &|_| Ok(())).unwrap_err().status, abi::STATUS_NOT_FOUND);
    let error =
        show("snapshot", &|_| Err("not between STEP_BEGIN and STEP_END".into())).unwrap_err();
    assert_eq!(error.status, abi::STATUS_INVALID_STATE);
    assert!(error.message.contains("STEP_BEGIN"));
    assert_eq!(show("fail after", &|_| Ok(())).unwrap_err().message, "changed my mind");
    assert!(show("", &|_| Ok(())).unwrap().is_empty(), "requests of a failed event are dropped");
}

#[test]
fn gradients_are_writable_in_penalty_only() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut keeper = active(&catalogue, "test.keeper", json!({}));
    let grad = Tensor::zeros(DType::F32, &[2]);
    let param = Param {
        name: "w".into(),
        value: Tensor::zeros(DType::F32, &[2]),
        tied_to: None,
        trainable: true,
        no_decay: false,
    };
    let grads = [(String::new(), vec![grad.clone()])];
    let params = [param];
    let shown = event("", &[], &params, &grads);
    keeper.on_event(CallCtx::default(), &shown, &|_| Ok(())).unwrap();
    assert_eq!(grad.data::<f32>().unwrap(), [1.0, 0.0]);
}

#[test]
fn a_schedule_that_names_an_undeclared_group_is_refused() {
    let (_dir, catalogue) = catalogue(&["BAD_GROUP"]);
    let error = catalogue.create("test.keeper", &json!({})).unwrap().schedule().unwrap_err();
    assert!(error.is_contract() && error.message.contains("`nowhere`"), "{error}");
}

#[test]
fn the_running_call_is_known_inside_and_forgotten_after() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut keeper = active(&catalogue, "test.keeper", json!({}));
    let seen = std::cell::Cell::new(None);
    let note = |_: &Request| {
        seen.set(current_call());
        Ok(())
    };
    keeper
        .on_event(CallCtx { step: 41, ..CallCtx::default() }, &event("knob", &[], &[], &[]), &note)
        .unwrap();
    assert_eq!(seen.get(), Some(("test.keeper", "on_event", 41)));
}

#[test]
#[ignore = "a measurement: run with --release -- --ignored --nocapture"]
fn overhead_of_a_loss_call() {
    let (_dir, catalogue) = catalogue(&[]);
    let mut loss = active(&catalogue, "test.mse", json!({}));
    let inputs = [Some(rows(1, 1, 1.0)), Some(rows(1, 1, 0.0))];
    let grads =
        [Some(GradOut { buffer: Tensor::zeros(DType::F32, &[1, 1]), accumulate: false }), None];
    let call = LossCall {
        inputs: &inputs,
        grads: &grads,
        params: &[],
        param_grads: &[],
        normalizer: 1.0,
        grad_scale: 1.0,
    };
    let start = std::time::Instant::now();
    for _ in 0..1_000_000 {
        loss.loss_compute(CallCtx::default(), &call).unwrap();
    }
    println!("loss_compute: {} ns", start.elapsed().as_nanos() as f64 / 1e6);
}
