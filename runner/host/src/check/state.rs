//! Tier `state`: `state_save` and `state_load`.

use super::live::{Live, ctx};
use super::subject::{ensure, told};
use super::{ALL, Check, Miss, Outcome, Subject, fail};
use crate::load::services::ErrorSlot;
use crate::run::random::Random;
use limbeck_abi as abi;
use std::ffi::c_void;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "state.round-trip",
        clause: "all that another instance needs to go on bit for bit",
        kinds: ALL,
        run: round_trip,
    },
    Check {
        id: "state.damaged",
        clause: "a failed load leaves an instance fit for deactivate",
        kinds: ALL,
        run: damaged,
    },
];

/// Bytes and how many of them move per call.
struct Stream {
    bytes: Vec<u8>,
    at: usize,
    chunk: usize,
}

unsafe extern "C" fn write(this: *mut c_void, data: *const c_void, n: u64) -> i64 {
    // SAFETY: `this` is the stream of the running call; `data` holds `n` bytes (lmb_writer).
    unsafe {
        let stream = &mut *this.cast::<Stream>();
        let n = (n as usize).min(stream.chunk);
        stream.bytes.extend_from_slice(std::slice::from_raw_parts(data.cast(), n));
        n as i64
    }
}

unsafe extern "C" fn read(this: *mut c_void, data: *mut c_void, n: u64) -> i64 {
    // SAFETY: as in `write`; `data` takes `n` bytes.
    unsafe {
        let stream = &mut *this.cast::<Stream>();
        let n = (n as usize).min(stream.chunk).min(stream.bytes.len() - stream.at);
        std::ptr::copy_nonoverlapping(stream.bytes.as_ptr().add(stream.at), data.cast(), n);
        stream.at += n;
        n as i64
    }
}

/// Status, bytes and words of a `state_save`.
///
/// # Errors
/// A skip where no state is kept.
pub(super) fn try_save(live: &Live, chunk: usize) -> Result<(abi::Status, Vec<u8>, String), Miss> {
    let Some(function) = live.table().state_save else {
        return Err(Miss::Skip("keeps no state".to_owned()));
    };
    let mut stream = Stream { bytes: Vec::new(), at: 0, chunk };
    let writer = abi::Writer { this: (&raw mut stream).cast(), write };
    let (slot, context) = (ErrorSlot::default(), ctx([3, 5]));
    // SAFETY: [step], active; arguments live during the call.
    let status =
        unsafe { function(live.as_ptr(), &raw const context, &raw const writer, slot.as_ptr()) };
    Ok((status, stream.bytes, told(status, slot)))
}

/// The bytes of a `state_save`.
///
/// # Errors
/// It fails; a skip where no state is kept.
pub(super) fn save(live: &Live, chunk: usize) -> Result<Vec<u8>, Miss> {
    match try_save(live, chunk)? {
        (abi::STATUS_OK, bytes, _) => Ok(bytes),
        (_, _, said) => Err(fail("state_save to succeed", said)),
    }
}

/// Status and words of a `state_load`.
///
/// # Errors
/// A skip where no state is kept.
pub(super) fn load(live: &Live, bytes: &[u8], chunk: usize) -> Result<(abi::Status, String), Miss> {
    let Some(function) = live.table().state_load else {
        return Err(Miss::Skip("keeps no state".to_owned()));
    };
    let mut stream = Stream { bytes: bytes.to_vec(), at: 0, chunk };
    let reader = abi::Reader { this: (&raw mut stream).cast(), read };
    let (slot, context) = (ErrorSlot::default(), ctx([3, 5]));
    // SAFETY: as in `save`.
    let status =
        unsafe { function(live.as_ptr(), &raw const context, &raw const reader, slot.as_ptr()) };
    Ok((status, told(status, slot)))
}

fn active(subject: &mut Subject) -> Result<Live, Miss> {
    let mut live = subject.create()?;
    live.activate()?;
    Ok(live)
}

fn round_trip(subject: &mut Subject) -> Outcome {
    let first = active(subject)?;
    let bytes = save(&first, usize::MAX)?;
    for chunk in [1, 3, 7] {
        let slow = save(&first, chunk)?;
        ensure(
            slow == bytes,
            &format!("equal bytes through a writer of {chunk}-byte steps"),
            || format!("{} bytes instead of {}", slow.len(), bytes.len()),
        )?;
        let other = active(subject)?;
        let (status, said) = load(&other, &bytes, chunk)?;
        ensure(
            status == abi::STATUS_OK,
            &format!("state_load in {chunk}-byte steps to succeed"),
            || said,
        )?;
        let again = save(&other, usize::MAX)?;
        ensure(again == bytes, "save - load - save to give equal bytes", || "other bytes".into())?;
    }
    Ok(format!("{} bytes", bytes.len()))
}

fn damaged(subject: &mut Subject) -> Outcome {
    let bytes = save(&active(subject)?, usize::MAX)?;
    let mut draw = Random::new([subject.seed, 3]);
    if bytes.is_empty() {
        return Err(Miss::Skip("keeps an empty state".to_owned()));
    }
    let cut = |draw: &mut Random| bytes[..draw.below(bytes.len() as u64) as usize].to_vec();
    for round in 0..64 {
        (subject.doing)("state_load of a cut state");
        let text = if round == 0 { Vec::new() } else { cut(&mut draw) };
        let live = active(subject)?;
        let (status, said) = load(&live, &text, usize::MAX)?;
        let length = text.len();
        ensure(
            status != abi::STATUS_OK,
            &format!("an error for {length} of {} bytes", bytes.len()),
            || said.clone(),
        )?;
        ensure(status != abi::STATUS_PANIC, "no panic", || said)?;
        (subject.doing)("state_load of a flipped state");
        let mut flipped = bytes.clone();
        let at = draw.below(flipped.len() as u64) as usize;
        flipped[at] ^= 1 << draw.below(8);
        let live = active(subject)?;
        let (status, said) = load(&live, &flipped, usize::MAX)?;
        ensure(status != abi::STATUS_PANIC, "no panic", || said)?;
    }
    Ok("64 cuts, 64 flips".to_owned())
}
