//! `lmb.device/1` for GPUs, through the module's `get_interface`.

use crate::emulator::{AMPERE, HOPPER, on};
use crate::host::{Failure, context, module, slot};
use limbeck_sdk::abi;
use std::ffi::c_void;

fn table() -> &'static abi::Device {
    let get = module().get_interface.expect("a module with interfaces");
    // SAFETY: [any]; the table lives as long as the process.
    unsafe { get(abi::Str::new(abi::DEVICE_ID)).cast::<abi::Device>().as_ref() }
        .expect("lmb.device/1")
}

fn ok(call: impl FnOnce(*mut abi::Error) -> abi::Status) {
    let mut failure = Failure::default();
    assert_eq!(call(slot(&mut failure)), abi::STATUS_OK, "{failure:?}");
}

/// More than all staged pieces together, and not a multiple of one.
const BYTES: usize = (9 << 22) + 12_345;

#[test]
fn what_goes_up_comes_back_whatever_happens_to_the_source_meanwhile() {
    on(HOPPER);
    let (t, ctx, bytes) = (table(), context(), BYTES as u64);
    let sent: Vec<u8> = (0..BYTES).map(|i| (i * 31 % 251) as u8).collect();
    let mut source = sent.clone();
    let (mut first, mut second) = (std::ptr::null_mut(), std::ptr::null_mut::<c_void>());
    // SAFETY: this thread is the step thread; places and memory are ours and of that size.
    unsafe {
        ok(|e| (t.open)(t, &ctx, e));
        ok(|e| (t.open)(t, &ctx, e));
        ok(|e| (t.alloc)(t, &ctx, bytes, &mut first, e));
        ok(|e| (t.alloc)(t, &ctx, bytes, &mut second, e));
        assert!([first, second].iter().all(|p| (*p as usize).is_multiple_of(256)));
        ok(|e| (t.upload)(t, &ctx, first, source.as_ptr().cast(), bytes, e));
        source.fill(7);
        ok(|e| (t.copy)(t, &ctx, second, first, bytes, e));
        ok(|e| (t.clear)(t, &ctx, first, bytes, e));
        let mut back = vec![1u8; BYTES];
        ok(|e| (t.download)(t, &ctx, back.as_mut_ptr().cast(), second, bytes, e));
        assert!(back == sent, "bytes changed on their way");
        ok(|e| (t.download)(t, &ctx, back.as_mut_ptr().cast(), first, bytes, e));
        assert!(back.iter().all(|b| *b == 0), "not cleared");
        (t.free)(t, &ctx, first);
        (t.free)(t, &ctx, second);
    }
}

#[test]
fn gpus_are_counted_and_described() {
    for (ordinal, name) in [(HOPPER, "Emulated GPU sm_90"), (AMPERE, "Emulated GPU sm_80")] {
        on(ordinal);
        let (t, ctx, mut num) = (table(), context(), 0);
        let (mut text, mut bytes) = (abi::Str::EMPTY, 0);
        // SAFETY: places of ours.
        unsafe {
            ok(|e| (t.count)(t, &ctx, &mut num, e));
            ok(|e| (t.describe)(t, &ctx, &mut text, &mut bytes, e));
        }
        // SAFETY: text of the module.
        assert_eq!((num, unsafe { text.text() }, bytes), (2, Some(name), 1 << 30));
    }
}

#[test]
fn another_device_and_an_upload_before_open_are_refused() {
    let refused = |device_type: i32, device_id: i32, wanted: abi::Status| {
        on(HOPPER);
        let (t, mut ctx) = (table(), context());
        ctx.stream.device = abi::DLDevice { device_type, device_id };
        let (mut failure, bytes) = (Failure::default(), [0u8; 4]);
        let to = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the call is refused before it touches memory.
        let status =
            unsafe { (t.upload)(t, &ctx, to, bytes.as_ptr().cast(), 4, slot(&mut failure)) };
        assert_eq!(status, wanted, "{failure:?}");
    };
    refused(abi::DL_CPU, 0, abi::STATUS_UNSUPPORTED);
    refused(abi::DL_CUDA, 7, abi::STATUS_INVALID_STATE);
}
