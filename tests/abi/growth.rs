//! Hosts and plugins of 1.0 and of an imagined 1.1, in all pairs.
//!
//! 1.1 appends a field to `lmb_loss_call`, a function to `lmb_host` and one to `lmb_loss`, as R3 allows. Old sides
//! must not notice, new sides must find out. The 1.1 header is today's with the additions patched in, so the test
//! follows the real header.

use super::layout::c_layout;
use crate::support::{cargo_cdylibs, cc, rawhost, root, temp_dir};
use limbeck_abi as abi;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// `lmb_host` of 1.1.
#[repr(C)]
struct Host11 {
    base: abi::Host,
    twice: unsafe extern "C" fn(*const abi::Host, f64) -> f64,
}

/// `lmb_loss_call` of 1.1.
#[repr(C)]
struct LossCall11 {
    base: abi::LossCall,
    bonus: f64,
}

/// `lmb_loss` of 1.1.
#[repr(C)]
struct Loss11 {
    base: abi::Loss,
    flush: Option<unsafe extern "C" fn(*const abi::Plugin, *mut abi::Error) -> abi::Status>,
}

static TWICE_CALLS: AtomicU32 = AtomicU32::new(0);
unsafe extern "C" fn twice(_: *const abi::Host, x: f64) -> f64 {
    TWICE_CALLS.fetch_add(1, Ordering::Relaxed);
    2.0 * x
}

/// Writes the header of 1.1 (and DLPack) into `folder`.
fn write_grown_header(folder: &Path) {
    let header = std::fs::read_to_string(cc::include().join("limbeck.h")).expect("header");
    let mut grown = header.replace("#define LMB_ABI_MINOR 0u", "#define LMB_ABI_MINOR 1u");
    let guard = |addition: &str| {
        format!("#if LMB_TARGET_MINOR >= 1\n  {addition} /* since 1.1 */\n#endif\n")
    };
    let host_end = "};\n\n/* \"lmb.vector/1\"";
    for (anchor, addition) in [
        ("} lmb_loss_call;", "double bonus;"),
        ("} lmb_loss;", "lmb_status (*flush)(const lmb_plugin *, lmb_error *);"),
        (host_end, "double (*twice)(const lmb_host *, double);"),
    ] {
        assert_eq!(grown.matches(anchor).count(), 1, "{anchor} in limbeck.h");
        grown = grown.replace(anchor, &format!("{}{anchor}", guard(addition)));
    }
    std::fs::write(folder.join("limbeck.h"), grown).expect("write");
    std::fs::create_dir_all(folder.join("dlpack")).expect("folder");
    std::fs::copy(cc::include().join("dlpack/dlpack.h"), folder.join("dlpack/dlpack.h"))
        .expect("copy");
}

fn c_plugin(folder: &Path, grown: bool) -> PathBuf {
    if !grown {
        return cc::plugin(&cc::fixture("growth.c"), folder, &[]);
    }
    let headers = folder.join("include-1.1");
    std::fs::create_dir_all(&headers).expect("folder");
    write_grown_header(&headers);
    let flag = format!("-I{}", headers.display());
    cc::plugin(&cc::fixture("growth.c"), folder, &[&flag])
}

fn rust_plugin(grown: bool) -> PathBuf {
    let target = root().join("target/fixtures");
    let target = target.join(if grown { "growth-1.1" } else { "growth-1.0" });
    let mut args = vec!["--offline", "--target-dir", target.to_str().expect("UTF-8 path")];
    if grown {
        args.extend(["--features", "grown"]);
    }
    let built = cargo_cdylibs(&root().join("tests/fixtures/growth"), &args);
    built.into_iter().next().expect("one cdylib").1
}

/// What one pair did: loss value, calls of the new host function, whether the new loss function was seen.
#[derive(Debug, PartialEq)]
struct Outcome {
    value: f32,
    gradient: Vec<f32>,
    twice_calls: u32,
    flushed: bool,
}

/// Loads `plugin` on a host of 1.0 or 1.1 and computes the loss of [1, 2, 3] with normalizer 3 and, on 1.1, bonus 10.
fn drive(plugin: &Path, new_host: bool) -> Outcome {
    // SAFETY: the fixtures follow the contract; the library stays open (R11).
    let library = Box::leak(Box::new(unsafe { libloading::Library::new(plugin) }.expect("opens")));
    // SAFETY: the symbol has this type (header).
    let entry = *unsafe { library.get::<abi::Entry>(abi::ENTRY_SYMBOL) }.expect("entry");
    let mut grown = Host11 { base: rawhost::host(u32::from(new_host)), twice };
    if new_host {
        grown.base.struct_size = abi::struct_size::<Host11>();
    }
    let host: *const abi::Host = &Box::leak(Box::new(grown)).base;
    let calls_before = TWICE_CALLS.load(Ordering::Relaxed);
    // SAFETY: driven in the order of the lifecycle, with tables and buffers that outlive each call.
    unsafe {
        let module = &*entry(host);
        assert_eq!(module.abi_major, 1);
        let mut slot = rawhost::Slot::default();
        let mut instance = std::ptr::null();
        let id = abi::Str::new("test.growth");
        let status =
            (module.create)(host, id, abi::Str::new("{}"), &raw mut instance, slot.as_error());
        assert_eq!(status, abi::STATUS_OK, "{slot:?}");
        let ctx = rawhost::ctx(host);
        let activate = abi::Activate {
            struct_size: abi::struct_size::<abi::Activate>(),
            ctx: &raw const ctx,
            work_dir: abi::Str::EMPTY,
            rank: 0,
            world_size: 1,
            param_dtype: abi::DLDataType::F32,
            reserved: 0,
        };
        assert_eq!(
            ((*instance).activate)(instance, &raw const activate, slot.as_error()),
            abi::STATUS_OK
        );
        let loss =
            ((*instance).get_interface)(instance, abi::Str::new(abi::LOSS_ID)).cast::<abi::Loss>();
        assert!(!loss.is_null());

        let mut x = [1.0_f32, 2.0, 3.0];
        let mut gradient = vec![f32::NAN; 3];
        let mut value = [f32::NAN];
        let (shape, strides, one) = ([3_i64], [1_i64], [1_i64]);
        let input =
            rawhost::view("x", x.as_mut_ptr().cast(), &shape, &strides, abi::TENSOR_READ_ONLY);
        let grad = rawhost::view("x", gradient.as_mut_ptr().cast(), &shape, &strides, 0);
        let out = rawhost::view("value", value.as_mut_ptr().cast(), &one, &one, 0);
        let base = abi::LossCall {
            struct_size: abi::struct_size::<abi::LossCall>(),
            ctx: &raw const ctx,
            inputs: &raw const input,
            num_inputs: 1,
            grads: &raw const grad,
            params: std::ptr::null(),
            param_grads: std::ptr::null(),
            num_params: 0,
            value: &raw const out,
            metrics: std::ptr::null(),
            num_metrics: 0,
            normalizer: 3.0,
            grad_scale: 0.5,
            workspace: std::ptr::null_mut(),
            workspace_bytes: 0,
        };
        let mut call = LossCall11 { base, bonus: 10.0 };
        if new_host {
            call.base.struct_size = abi::struct_size::<LossCall11>();
        }
        assert_eq!(
            ((*loss).compute)(instance, &raw const call.base, slot.as_error()),
            abi::STATUS_OK
        );

        // A host of 1.0 does not know `flush`; one of 1.1 asks the table's size first.
        let mut flushed = false;
        let end = core::mem::offset_of!(Loss11, flush) + size_of::<usize>();
        if new_host
            && (*loss).struct_size >= end as u64
            && let Some(flush) = (*loss.cast::<Loss11>()).flush
        {
            flushed = flush(instance, slot.as_error()) == abi::STATUS_OK;
        }
        ((*instance).deactivate)(instance);
        ((*instance).destroy)(instance);
        let twice_calls = TWICE_CALLS.load(Ordering::Relaxed) - calls_before;
        Outcome { value: value[0], gradient, twice_calls, flushed }
    }
}

fn expect_matrix(name: &str, old: &Path, new: &Path) {
    // Σx / normalizer = 2; with the bonus of 1.1 doubled by the host's new function: 2 + 2·10.
    let plain =
        |_| Outcome { value: 2.0, gradient: vec![0.5 / 3.0; 3], twice_calls: 0, flushed: false };
    let grown =
        Outcome { value: 22.0, gradient: vec![0.5 / 3.0; 3], twice_calls: 1, flushed: true };
    assert_eq!(drive(old, false), plain(()), "{name}: 1.0 plugin on 1.0 host");
    assert_eq!(drive(old, true), plain(()), "{name}: 1.0 plugin on 1.1 host");
    assert_eq!(drive(new, false), plain(()), "{name}: 1.1 plugin on 1.0 host");
    assert_eq!(drive(new, true), grown, "{name}: 1.1 plugin on 1.1 host");
}

#[test]
fn old_and_new_hosts_and_plugins_work_in_all_pairs() {
    let (old, new) = (temp_dir(), temp_dir());
    expect_matrix("C", &c_plugin(old.path(), false), &c_plugin(new.path(), true));
    expect_matrix("Rust", &rust_plugin(false), &rust_plugin(true));
}

#[test]
fn a_plugin_built_for_an_older_minor_sees_the_old_layout_in_a_newer_header() {
    let folder = temp_dir();
    write_grown_header(folder.path());
    let header = folder.path().join("limbeck.h");
    let grown = c_layout(folder.path());
    assert_ne!(grown, c_layout(&cc::include()), "the patched header appends nothing");
    let text = std::fs::read_to_string(&header).expect("header");
    std::fs::write(&header, format!("#define LMB_TARGET_MINOR 0\n{text}")).expect("write");
    assert_eq!(c_layout(folder.path()), c_layout(&cc::include()));
}
