//! A Rust loss of 25 lines: exported, and held to every promise of the contract.
#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure shows its line")]

use limbeck_sdk::testing::{LossCase, MockHost};
use limbeck_sdk::{Column, abi, gradcheck};

#[rustfmt::skip]
mod example {
use limbeck_sdk::{numeric::log_softmax, prelude::*, schemars, serde};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config { temperature: f64 }
struct ReverseKl(f64);

impl Loss for ReverseKl {
    const ID: &'static str = "org.example.reverse-kl";
    type Config = Config;
    fn new(c: Config, _: &Host) -> Result<Self> { Ok(Self(c.temperature)) }
    fn ports(&self) -> Ports { Ports::new().input_grad("student.logits", "N,V").input("teacher.logits", "N,V") }
    fn compute(&mut self, call: &LossCall) -> Result<()> {
        let (s, q, t) = (call.rows(0)?, call.rows(1)?, self.0);
        call.sum_rows(|i, grad| {
            let (lp, lq) = (log_softmax(s.row(i), t), log_softmax(q.row(i), t));
            let kl: f64 = lp.iter().zip(&lq).map(|(p, q)| p.exp() * (p - q)).sum();
            for (g, (p, q)) in grad.iter_mut().zip(lp.iter().zip(&lq)) { *g = p.exp() * (p - q - kl) * t }
            kl * t * t
        })
    }
}
limbeck_sdk::export! { loss ReverseKl }
pub type Loss_ = ReverseKlPublic;
pub struct ReverseKlPublic(ReverseKl);
impl Loss for ReverseKlPublic {
    const ID: &'static str = ReverseKl::ID;
    type Config = NoSettings;
    fn new(_: NoSettings, h: &Host) -> Result<Self> { Ok(Self(ReverseKl::new(Config { temperature: 2.0 }, h)?)) }
    fn ports(&self) -> Ports { self.0.ports().counting() }
    fn compute(&mut self, call: &LossCall) -> Result<()> { self.0.compute(call) }
}
}
use example::Loss_;

#[test]
fn the_example_loss_keeps_every_promise() {
    gradcheck!(Loss_, {});
}

/// Gradient of another formula than the value: what the check is for.
mod wrong {
    use limbeck_sdk::prelude::*;
    macro_rules! wrong {
        ($name:ident, $call:ident => $body:expr) => {
            pub struct $name;
            impl Loss for $name {
                const ID: &'static str = "test.wrong";
                type Config = NoSettings;
                fn new(_: NoSettings, _: &Host) -> Result<Self> {
                    Ok(Self)
                }
                fn ports(&self) -> Ports {
                    Ports::new().input_grad("student.logits", "N,V").counting()
                }
                fn compute(&mut self, $call: &LossCall) -> Result<()> {
                    $body
                }
            }
        };
    }
    fn square(call: &LossCall<'_>, factor: f64) -> Result<()> {
        let s = call.rows(0)?;
        call.sum_rows(|i, grad| {
            grad.iter_mut().zip(s.row(i)).for_each(|(g, x)| *g = 2.0 * factor * x);
            s.row(i).into_iter().map(|x| x * x).sum()
        })
    }
    wrong!(Right, call => square(call, 1.0));
    wrong!(TenPercent, call => square(call, 1.1));
    wrong!(IgnoresAccumulate, call => {
        square(call, 1.0)?;
        let (s, f) = (call.rows(0)?, call.grad_factor());
        let Some(grad) = call.grad(0)? else { return Ok(()) };
        for i in 0..s.len() {
            let Some(w) = call.counted()?.weight(i) else { continue };
            let row: Vec<f64> = s.row(i).into_iter().map(|x| 2.0 * x * f * w).collect();
            // SAFETY: one row at a time, on one thread.
            let to = unsafe { grad.row_mut::<f64>(i) }?;
            to.copy_from_slice(&row);
        }
        Ok(())
    });
    wrong!(MultipliesByTheMask, call => {
        let (s, counted) = (call.rows(0)?, call.counted()?);
        let sum: f64 = (0..s.len())
            // The mistake: a factor 0 does not remove a NaN.
            .map(|i| counted.weight(i).unwrap_or(0.0) * s.row(i).into_iter().map(|x| x * x).sum::<f64>())
            .sum();
        square(call, 1.0)?;
        call.set_value(sum / call.normalizer())
    });
    wrong!(Panics, _call => panic!("row {} is odd", 3));
}

fn verdict<T: limbeck_sdk::Loss>() -> String {
    limbeck_sdk::testing::gradcheck_loss::<T>("{}").err().unwrap_or_default()
}

#[test]
fn the_check_finds_seeded_faults() {
    assert_eq!(verdict::<wrong::Right>(), "");
    assert!(
        verdict::<wrong::TenPercent>().contains("differences give"),
        "{}",
        verdict::<wrong::TenPercent>()
    );
    let ignores = verdict::<wrong::IgnoresAccumulate>();
    assert!(ignores.contains("ACCUMULATE"), "{ignores}");
    let masked = verdict::<wrong::MultipliesByTheMask>();
    assert!(masked.contains("NaN in a row"), "{masked}");
}

fn logits(name: &str, rows: i64) -> Option<Column> {
    let values: Vec<f32> = (0..rows * 3).map(|i| (i as f32).sin()).collect();
    Some(Column::new(name, &[rows, 3], &values).unwrap())
}

#[test]
fn a_panic_becomes_a_status_and_poisons_the_instance() {
    let host = MockHost::new();
    let mut loss = host.loss::<wrong::Panics>("{}").unwrap();
    loss.activate([0, 0]).unwrap();
    let case = LossCase::new(vec![logits("student.logits", 2), None, None, None]);
    let error = loss.compute(&case).unwrap_err();
    assert_eq!(error.status(), abi::STATUS_PANIC);
    assert!(error.message().contains("row 3 is odd"), "{error}");
    assert_eq!(loss.compute(&case).unwrap_err().status(), abi::STATUS_INVALID_STATE);
}

#[test]
fn calls_out_of_order_are_invalid_state() {
    let host = MockHost::new();
    let mut loss = host.loss::<Loss_>("{}").unwrap();
    let inputs = vec![logits("student.logits", 2), logits("teacher.logits", 2), None, None, None];
    let case = LossCase::new(inputs);
    assert_eq!(loss.compute(&case).unwrap_err().status(), abi::STATUS_INVALID_STATE);
    loss.activate([0, 0]).unwrap();
    assert_eq!(loss.activate([0, 0]).unwrap_err().status(), abi::STATUS_INVALID_STATE);
    let first = loss.compute(&case).unwrap();
    loss.deactivate();
    assert_eq!(loss.compute(&case).unwrap_err().status(), abi::STATUS_INVALID_STATE);
    loss.activate([0, 0]).unwrap();
    assert_eq!(loss.compute(&case).unwrap(), first);
}

#[test]
fn inputs_that_do_not_fit_the_ports_are_named() {
    let host = MockHost::new();
    let mut loss = host.loss::<Loss_>("{}").unwrap();
    loss.activate([0, 0]).unwrap();
    let plan = |teacher| {
        let inputs = vec![logits("student.logits", 2), teacher, None, None, None];
        loss.loss_plan(&inputs).unwrap_err()
    };
    let rows = plan(logits("teacher.logits", 3));
    assert_eq!(rows.status(), abi::STATUS_INVALID_ARGUMENT);
    assert_eq!(rows.find_note("tensor"), Some("teacher.logits"));
    assert!(rows.message().contains("N is 3"), "{rows}");
    let absent = plan(None);
    assert!(absent.message().contains("`teacher.logits` is absent"), "{absent}");
    let ints = plan(Some(Column::new("teacher.logits", &[2, 3], &[1i64; 6]).unwrap()));
    assert_eq!(ints.status(), abi::STATUS_UNSUPPORTED);
}

#[test]
fn unknown_settings_are_refused_with_a_pointer() {
    let host = MockHost::new();
    let error = host.loss::<Loss_>(r#"{"temprature": 1}"#).err().unwrap();
    assert_eq!(error.status(), abi::STATUS_INVALID_CONFIG);
    assert!(error.message().contains("temprature"), "{error}");
}

#[test]
fn gradients_are_written_in_the_dtype_of_the_buffer() {
    use limbeck_sdk::half::bf16;
    let host = MockHost::new();
    let mut loss = host.loss::<Loss_>("{}").unwrap();
    loss.activate([0, 0]).unwrap();
    let column = |name: &str, shift: f32| {
        let values: Vec<bf16> = (0..6).map(|i| bf16::from_f32((i as f32 + shift).sin())).collect();
        Some(Column::new(name, &[2, 3], &values).unwrap())
    };
    let inputs =
        vec![column("student.logits", 0.0), column("teacher.logits", 0.7), None, None, None];
    let narrow = loss.compute(&LossCase::new(inputs.clone())).unwrap();
    let wide = |c: &Option<Column>| {
        c.as_ref().map(|c| {
            let values: Vec<f64> = c.slice::<bf16>().unwrap().iter().map(|x| x.to_f64()).collect();
            Column::new(c.name(), c.shape(), &values).unwrap()
        })
    };
    let exact = loss.compute(&LossCase::new(inputs.iter().map(wide).collect())).unwrap();
    assert_eq!(narrow.value, exact.value);
    let (a, b) = (narrow.grads[0].as_ref().unwrap(), exact.grads[0].as_ref().unwrap());
    for (a, b) in a.slice::<bf16>().unwrap().iter().zip(b.slice::<f64>().unwrap()) {
        assert_eq!(*a, bf16::from_f64(*b));
    }
}
