//! A library as a host sees it: entry, manifest, descriptors, create, logs, faults.
#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure shows its line")]

use limbeck_sdk::prelude::*;
use limbeck_sdk::testing::{LossCase, MockHost};
use limbeck_sdk::{abi, schemars, serde, serde_json, tracing, vector};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    /// How often.
    #[serde(default)]
    times: u32,
}

/// Logs, allocates, and gives 0.
struct Talker {
    times: u32,
}

impl Loss for Talker {
    const ID: &'static str = "test.talker";
    const SUMMARY: &'static str = "talks";
    type Config = Config;
    fn new(config: Config, _: &Host) -> Result<Self> {
        Ok(Self { times: config.times })
    }
    fn ports(&self) -> Ports {
        Ports::new().input_grad("student.logits", "N,V")
    }
    fn params(&mut self, inputs: &Views<'_>) -> Result<Vec<LossParam>> {
        let width = inputs.required(0)?.shape()[1];
        Ok(vec![LossParam::new("scale", &[width], "normal(0,0.02)")])
    }
    fn compute(&mut self, call: &LossCall<'_>) -> Result<()> {
        tracing::warn!(times = self.times, "talking");
        call.context().metric("talks", f64::from(self.times));
        let input = [*call.inputs().required(0)?.abi()];
        let arithmetic = vector::Vector::new(call.context())?;
        let twice = vector::VectorSet::zeros_like(call.context(), "twice", &input)?;
        arithmetic.axpby(2.0, &input, 0.0, &twice.list())?;
        let dot = arithmetic.dot(&input, &twice.list())?;
        if let Some(mut grad) = call.grad(0)? {
            grad.put_zeros()?;
        }
        call.set_value(dot)
    }
}

struct Quiet;
impl Scheduler for Quiet {
    const ID: &'static str = "test.quiet";
    type Config = NoSettings;
    fn new(_: NoSettings, _: &Host) -> Result<Self> {
        Ok(Self)
    }
    fn ports(&self) -> Ports {
        Ports::new()
    }
    fn plan(&self) -> Result<Schedule> {
        Ok(Schedule::new())
    }
    fn on_event(&mut self, _: &Event<'_>, _: &Requests<'_>) -> Result<()> {
        Ok(())
    }
}

limbeck_sdk::export! { loss Talker, scheduler Quiet }

unsafe extern "C" {
    /// The symbol that `export!` made in this very program.
    fn lmb_module_v1(host: *const abi::Host) -> *const abi::Module;
}

fn module(host: &MockHost) -> &'static abi::Module {
    // SAFETY: the entry of this program; its table is static.
    unsafe { lmb_module_v1(host.host().abi()).as_ref() }.unwrap()
}

fn descriptors(module: &abi::Module) -> Vec<&'static abi::Descriptor> {
    // SAFETY: [any]; descriptors live as long as the process.
    (0..).map_while(|i| unsafe { (module.descriptor)(i).as_ref() }).collect()
}

fn text(text: abi::Str) -> &'static str {
    // SAFETY: descriptors live as long as the process.
    unsafe { text.text() }.unwrap()
}

#[test]
fn descriptors_say_what_the_traits_say() {
    let host = MockHost::new();
    let found = descriptors(module(&host));
    let ids: Vec<_> = found.iter().map(|d| (text(d.id), d.kind)).collect();
    assert_eq!(ids, [("test.talker", abi::KIND_LOSS), ("test.quiet", abi::KIND_SCHEDULER)]);
    assert_eq!(
        (text(found[0].summary), text(found[0].version)),
        ("talks", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(found[0].device_mask, 1 << abi::DL_CPU);
    let schema: serde_json::Value = serde_json::from_str(text(found[0].config_schema)).unwrap();
    assert_eq!(schema["properties"]["times"]["default"], 0);
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn the_manifest_in_the_file_agrees_with_the_descriptors() {
    let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let magic = [&abi::MANIFEST_MAGIC[..], b"{\"abi\""].concat();
    let at = file.windows(magic.len()).position(|w| w == magic).unwrap();
    let json = &file[at + 8..];
    let end = json.windows(2).position(|w| w == b"]}").unwrap() + 2;
    let manifest: serde_json::Value = serde_json::from_slice(&json[..end]).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = serde_json::json!({"abi": [1, 0], "plugins": [
        {"id": "test.talker", "kind": "loss", "version": version},
        {"id": "test.quiet", "kind": "scheduler", "version": version},
    ]});
    assert_eq!(manifest, expected);
}

#[test]
fn a_host_of_another_major_gets_nothing() {
    let host = MockHost::new();
    let table = abi::Host { abi_major: 2, ..copy(host.host().abi()) };
    // SAFETY: a table that outlives the call.
    assert!(unsafe { lmb_module_v1(&table) }.is_null());
    // SAFETY: NULL is allowed.
    assert!(unsafe { lmb_module_v1(std::ptr::null()) }.is_null());
}

fn copy(table: &abi::Host) -> abi::Host {
    // SAFETY: a table of plain pointers.
    unsafe { std::ptr::read(table) }
}

#[test]
fn an_unknown_id_is_not_found_and_the_host_may_pass_no_slot() {
    let host = MockHost::new();
    let mut out = std::ptr::null();
    let id = abi::Str::new("test.nobody");
    let create = module(&host).create;
    // SAFETY: [main]; the error may be NULL towards the host only, and is tolerated here.
    let status = unsafe {
        create(host.host().abi(), id, abi::Str::new("{}"), &mut out, std::ptr::null_mut())
    };
    assert_eq!(status, abi::STATUS_NOT_FOUND);
}

fn case() -> LossCase {
    LossCase::new(vec![Some(Column::new("student.logits", &[2, 2], &[1f32, 2., 3., 4.]).unwrap())])
}

#[test]
fn events_reach_the_host_with_fields_and_the_span_of_the_call() {
    let host = MockHost::new();
    // SAFETY: [main]; the first init of this process.
    let status = unsafe { module(&host).init.unwrap()(host.host().abi(), std::ptr::null_mut()) };
    assert_eq!(status, abi::STATUS_OK);
    let mut loss = host.loss::<Talker>(r#"{"times": 3}"#).unwrap();
    loss.activate([0, 0]).unwrap();
    assert_eq!(loss.compute(&case()).unwrap().value, 60.0);
    let logs = host.logs();
    let record = logs.iter().find(|r| r.message == "talking").unwrap();
    assert_eq!(
        (record.level, record.span, &record.fields[..]),
        (abi::LEVEL_WARN, 7, &["times".to_owned()][..])
    );
    assert_eq!(host.metrics()["talks"], 3.0);
}

#[test]
fn every_failing_allocation_is_a_clean_error_and_nothing_leaks() {
    let host = MockHost::new();
    let mut loss = host.loss::<Talker>("{}").unwrap();
    loss.activate([0, 0]).unwrap();
    host.fail_allocation(Some(0));
    let error = loss.compute(&case()).unwrap_err();
    assert_eq!(error.status(), abi::STATUS_OUT_OF_MEMORY);
    assert!(error.message().contains("asked for by the test"), "the host's own text: {error}");
    host.fail_allocation(None);
    loss.compute(&case()).unwrap();
    assert_eq!(host.live_allocations(), 0);
}

#[test]
fn parameters_of_a_loss_are_specs_with_their_initial_values() {
    let host = MockHost::new();
    let mut loss = host.loss::<Talker>("{}").unwrap();
    loss.activate([0, 0]).unwrap();
    let params = loss.loss_params(&case().inputs).unwrap();
    assert_eq!(params, [LossParam::new("scale", &[2], "normal(0,0.02)")]);
}
