//! Sizes, offsets and constants of the header against the Rust mirror and against `plugins/abi/layout.txt`.
//!
//! Fields must tile their struct without a gap, so a field that is missing below fails the test, and every struct and
//! every number of the header must be listed.

use crate::support::{cc, root};
use limbeck_abi as abi;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// One struct: C name, Rust size, fields as (C name, Rust offset).
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize)>,
}

macro_rules! layouts {
    ($($c:literal = $rust:ident { $($field:ident $(as $cname:ident)?),* $(,)? })*) => {
        vec![$(Layout {
            name: $c,
            size: size_of::<abi::$rust>(),
            fields: vec![$((layouts!(@name $field $($cname)?), core::mem::offset_of!(abi::$rust, $field))),*],
        }),*]
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $cname:ident) => { stringify!($cname) };
}

fn rust_layouts() -> Vec<Layout> {
    layouts! {
        "lmb_str" = Str { ptr, len }
        "lmb_value" = Value { kind, reserved, u }
        "lmb_kv" = Kv { key, value }
        "lmb_stream" = Stream { device, handle }
        "lmb_tensor" = Tensor { name, t, flags, reserved }
        "lmb_param" = Param { value, tied_to, init, flags, reserved }
        "lmb_port" = Port { name, shape, rows, doc, dtypes, num_dtypes, flags, reserved }
        "lmb_ctx" = Ctx { struct_size, host, stream, step, micro_step, rng_key, span }
        "lmb_writer" = Writer { this as self, write }
        "lmb_reader" = Reader { this as self, read }
        "lmb_log" = Log { struct_size, level, line, target, file, message, fields, num_fields, span }
        "lmb_alloc" = Alloc { struct_size, stream, dtype, ndim, shape, tag }
        "lmb_host" = Host {
            struct_size, abi_major, abi_minor, this as self, version, get_interface, error_set, error_note,
            log_enabled, log, progress, cancelled, metric, num_threads, parallel_for, tensor_alloc, tensor_copy,
        }
        "lmb_adamw" = Adamw {
            struct_size, params, grads, m, v, masters, lr, weight_decay, beta1, beta2, eps, grad_scale, t,
        }
        "lmb_vector" = Vector { struct_size, device_type, reserved, axpby, mul, dot, adamw }
        "lmb_device" = Device {
            struct_size, device_type, reserved, count, describe, open, alloc, free, clear, upload, download, copy,
        }
        "lmb_activate" = Activate { struct_size, ctx, work_dir, rank, world_size, param_dtype, reserved }
        "lmb_plugin" = Plugin {
            struct_size, this as self, get_interface, ports, activate, deactivate, state_save, state_load, destroy,
        }
        "lmb_forward" = Forward {
            struct_size, ctx, flags, inputs, num_inputs, wanted, num_wanted, outputs, tape,
        }
        "lmb_teacher" = Teacher { struct_size, estimate, forward }
        "lmb_backward" = Backward {
            struct_size, ctx, tape, cotangents, num_cotangents, param_grads, num_params, input_grads, num_inputs,
        }
        "lmb_student" = Student { struct_size, params, params_changed, backward, tape_release }
        "lmb_folder" = Folder { struct_size, config }
        "lmb_loss_call" = LossCall {
            struct_size, ctx, inputs, num_inputs, grads, params, param_grads, num_params, value, metrics,
            num_metrics, normalizer, grad_scale, workspace, workspace_bytes,
        }
        "lmb_loss" = Loss { struct_size, params, plan, compute }
        "lmb_group" = Group { name, max_rows, flags, reserved }
        "lmb_term" = Term { name, loss, config_json, rows, inputs, num_inputs, weight, reserved }
        "lmb_schedule" = Schedule {
            struct_size, events, claims, groups, num_groups, terms, num_terms, snapshots, num_snapshots,
            definition,
        }
        "lmb_grads" = Grads { group, grads }
        "lmb_event" = Event {
            struct_size, kind, ctx, task, task_index, num_tasks, epoch, phase, group, tensors, num_tensors, params,
            num_params, grads, num_grads, metrics, num_metrics,
        }
        "lmb_rows" = Rows { struct_size, mode, epochs, name, columns, num_columns }
        "lmb_probe" = Probe { struct_size, name, model, term, columns, num_columns, max_rows, batch_rows }
        "lmb_requests" = Requests { struct_size, this as self, set, rows, probe, snapshot, restore, provide }
        "lmb_scheduler" = Scheduler { struct_size, plan, on_event }
        "lmb_descriptor" = Descriptor {
            struct_size, kind, reserved, id, version, summary, license, config_schema, device_mask, features,
            num_features, requires_host, num_requires_host,
        }
        "lmb_module" = Module {
            struct_size, abi_major, abi_minor, build_info, init, deinit, descriptor, get_interface, create,
        }
        "DLDevice" = DLDevice { device_type, device_id }
        "DLDataType" = DLDataType { code, bits, lanes }
        "DLTensor" = DLTensor { data, device, ndim, dtype, shape, strides, byte_offset }
        "DLManagedTensorVersioned" = DLManagedTensorVersioned {
            version, manager_ctx, deleter, flags, dl_tensor,
        }
    }
}

macro_rules! constants {
    ($($c:ident = $rust:ident),* $(,)?) => { vec![$((stringify!($c), abi::$rust as u64)),*] };
}

fn rust_constants() -> Vec<(&'static str, u64)> {
    constants! {
        LMB_ABI_MAJOR = ABI_MAJOR, LMB_ABI_MINOR = ABI_MINOR,
        LMB_OK = STATUS_OK, LMB_CANCELLED = STATUS_CANCELLED, LMB_INVALID_ARGUMENT = STATUS_INVALID_ARGUMENT,
        LMB_INVALID_CONFIG = STATUS_INVALID_CONFIG, LMB_INVALID_STATE = STATUS_INVALID_STATE,
        LMB_NOT_FOUND = STATUS_NOT_FOUND, LMB_UNSUPPORTED = STATUS_UNSUPPORTED,
        LMB_OUT_OF_MEMORY = STATUS_OUT_OF_MEMORY, LMB_DEVICE = STATUS_DEVICE, LMB_IO = STATUS_IO,
        LMB_BAD_DATA = STATUS_BAD_DATA, LMB_NON_FINITE = STATUS_NON_FINITE, LMB_INTERNAL = STATUS_INTERNAL,
        LMB_PANIC = STATUS_PANIC,
        LMB_VALUE_BOOL = VALUE_BOOL, LMB_VALUE_I64 = VALUE_I64, LMB_VALUE_F64 = VALUE_F64,
        LMB_VALUE_STR = VALUE_STR,
        LMB_TENSOR_READ_ONLY = TENSOR_READ_ONLY, LMB_TENSOR_ACCUMULATE = TENSOR_ACCUMULATE,
        LMB_TENSOR_SHAPE_ONLY = TENSOR_SHAPE_ONLY, LMB_TENSOR_ABSENT = TENSOR_ABSENT,
        LMB_PARAM_TRAINABLE = PARAM_TRAINABLE, LMB_PARAM_NO_DECAY = PARAM_NO_DECAY,
        LMB_PORT_OUTPUT = PORT_OUTPUT, LMB_PORT_OPTIONAL = PORT_OPTIONAL,
        LMB_PORT_DIFFERENTIABLE = PORT_DIFFERENTIABLE, LMB_PORT_GRAD_MAY_ALIAS = PORT_GRAD_MAY_ALIAS,
        LMB_PORT_CONSTANT = PORT_CONSTANT, LMB_PORT_HOST_MEMORY = PORT_HOST_MEMORY,
        LMB_FORWARD_TRAIN = FORWARD_TRAIN, LMB_FORWARD_PARAM_GRAD = FORWARD_PARAM_GRAD,
        LMB_FORWARD_INPUT_GRAD = FORWARD_INPUT_GRAD,
        LMB_GROUP_JOIN = GROUP_JOIN, LMB_GROUP_OWN_PASS = GROUP_OWN_PASS, LMB_GROUP_OWN_GRAD = GROUP_OWN_GRAD,
        LMB_CLAIM_DATA = CLAIM_DATA, LMB_CLAIM_STUDENT = CLAIM_STUDENT,
        LMB_EVENT_TASK_BEGIN = EVENT_TASK_BEGIN, LMB_EVENT_STEP_BEGIN = EVENT_STEP_BEGIN,
        LMB_EVENT_FORWARD = EVENT_FORWARD, LMB_EVENT_BACKWARD = EVENT_BACKWARD,
        LMB_EVENT_PENALTY = EVENT_PENALTY, LMB_EVENT_PROJECT = EVENT_PROJECT,
        LMB_EVENT_STEP_END = EVENT_STEP_END, LMB_EVENT_TASK_END = EVENT_TASK_END,
        LMB_EVENT_PROBE = EVENT_PROBE, LMB_EVENT_PROBE_END = EVENT_PROBE_END,
        LMB_EVENT_EVAL_BEGIN = EVENT_EVAL_BEGIN, LMB_EVENT_EVAL_BATCH = EVENT_EVAL_BATCH,
        LMB_EVENT_EVAL_END = EVENT_EVAL_END,
        LMB_ROWS_STEP = ROWS_STEP, LMB_ROWS_UNION = ROWS_UNION, LMB_ROWS_PASS = ROWS_PASS,
        LMB_KIND_TEACHER = KIND_TEACHER, LMB_KIND_STUDENT = KIND_STUDENT, LMB_KIND_LOSS = KIND_LOSS,
        LMB_KIND_SCHEDULER = KIND_SCHEDULER,
    }
}

/// A program that prints `sizeof NAME N`, then `NAME.FIELD OFFSET SIZE` for each field.
fn layout_program(layouts: &[Layout]) -> String {
    let mut program =
        String::from("#include <stdio.h>\n#include \"limbeck.h\"\nint main(void) {\n");
    for layout in layouts {
        let tag = if layout.name == "DLManagedTensorVersioned" { "struct " } else { "" };
        let ty = format!("{tag}{}", layout.name);
        writeln!(program, "  printf(\"sizeof {} %zu\\n\", sizeof({ty}));", layout.name)
            .expect("a string grows");
        for (field, _) in &layout.fields {
            writeln!(
                program,
                "  printf(\"{}.{field} %zu %zu\\n\", offsetof({ty}, {field}), sizeof((({ty} *)0)->{field}));",
                layout.name
            )
            .expect("a string grows");
        }
    }
    program + "  return 0;\n}\n"
}

/// The layout as C sees it through the headers in `include`.
pub fn c_layout(include: &std::path::Path) -> String {
    cc::program_output(&layout_program(&rust_layouts()), include)
}

const GOLDEN_HEAD: &str = "\
# Every size and offset of limbeck.h, as C prints them: `sizeof STRUCT BYTES`, `STRUCT.FIELD OFFSET BYTES`.
# The contract of ABI major 1. Changing or removing a line breaks every plugin in the field; adding one (a field
# appended to a growable struct) needs an entry under \"ABI\" in CHANGELOG.md in the same commit.
# Rewrite with LIMBECK_BLESS=1 cargo test --release c_layout_is_the_golden_one
";

#[test]
fn c_layout_is_the_golden_one() {
    let path = root().join("plugins/abi/layout.txt");
    let now = format!("{GOLDEN_HEAD}{}", c_layout(&cc::include()));
    if std::env::var_os("LIMBECK_BLESS").is_some() {
        std::fs::write(&path, &now).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&path).expect("plugins/abi/layout.txt");
    for (line, (old, new)) in golden.lines().zip(now.lines()).enumerate() {
        assert_eq!(old, new, "layout.txt:{}: the ABI moved; see the top of that file", line + 1);
    }
    assert_eq!(golden.lines().count(), now.lines().count(), "lines in layout.txt");
}

#[test]
fn c_and_rust_agree_on_every_size_and_offset() {
    let layouts = rust_layouts();
    let mut rust = String::new();
    for layout in &layouts {
        writeln!(rust, "sizeof {} {}", layout.name, layout.size).expect("a string grows");
        for (field, offset) in &layout.fields {
            writeln!(rust, "{}.{field} {offset}", layout.name).expect("a string grows");
        }
    }
    let c = c_layout(&cc::include());
    assert!(c.lines().count() > 250, "only {} lines of layout", c.lines().count());
    for (c, rust) in c.lines().zip(rust.lines()) {
        let c_without_size =
            if c.starts_with("sizeof") { c } else { c.rsplit_once(' ').expect("three words").0 };
        assert_eq!(c_without_size, rust, "C on the left, Rust on the right");
    }
    assert_eq!(c.lines().count(), rust.lines().count());
}

#[test]
fn fields_tile_their_structs_so_none_is_unlisted_and_none_is_padded() {
    let mut end = 0;
    let mut name = String::new();
    let mut checked = 0;
    let text = c_layout(&cc::include());
    let mut size = 0;
    let finish = |name: &str, end: usize, size: usize| {
        assert!(
            name.is_empty() || end == size,
            "{name}: fields end at {end}, the struct at {size}"
        );
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().expect("a number");
        if words[0] == "sizeof" {
            finish(&name, end, size);
            (name, size, end) = (words[1].to_owned(), number(2), 0);
        } else {
            assert_eq!(number(1), end, "{}: a gap before this field", words[0]);
            end = number(1) + number(2);
            checked += 1;
        }
    }
    finish(&name, end, size);
    assert!(checked > 220, "only {checked} fields");
}

#[test]
fn every_struct_and_constant_of_the_header_is_compared() {
    let header = std::fs::read_to_string(cc::include().join("limbeck.h")).expect("header");
    let structs: BTreeSet<&str> = header
        .lines()
        .filter_map(|l| l.strip_prefix("typedef ").unwrap_or(l).strip_prefix("struct "))
        .filter_map(|l| l.split_once(" {").map(|(name, _)| name))
        .collect();
    let listed: BTreeSet<&str> =
        rust_layouts().iter().map(|l| l.name).filter(|n| n.starts_with("lmb_")).collect();
    assert_eq!(structs, listed, "structs of limbeck.h on the left, of this test on the right");

    let is_number =
        |word: &str| word.trim_start_matches('(').starts_with(|c: char| c.is_ascii_digit());
    let in_header: BTreeSet<&str> = header
        .lines()
        .filter_map(|l| l.strip_prefix("#define "))
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, rest)| rest.split(' ').next().is_some_and(is_number))
        .map(|(name, _)| name)
        .collect();
    let compared: BTreeSet<&str> = rust_constants().iter().map(|(name, _)| *name).collect();
    assert_eq!(in_header, compared, "numbers of limbeck.h on the left, of this test on the right");
}

#[test]
fn c_and_rust_agree_on_every_constant() {
    let constants = rust_constants();
    let mut program =
        String::from("#include <stdio.h>\n#include \"limbeck.h\"\nint main(void) {\n");
    for (name, _) in &constants {
        writeln!(program, "  printf(\"{name} %llu\\n\", (unsigned long long){name});")
            .expect("a string grows");
    }
    program += "  return 0;\n}\n";
    let c = cc::program_output(&program, &cc::include());
    let rust: String = constants.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
    assert_eq!(c, rust, "C on the left, Rust on the right");
}
