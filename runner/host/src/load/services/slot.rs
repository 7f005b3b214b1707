//! The error slot: what a failing call says, kept by the host.
//!
//! A slot lives on the stack of one call. Any thread of the plugin may fill it while the call runs, so it locks.

use limbeck_abi as abi;
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

/// Longest message or note that is kept, in bytes.
const LIMIT: usize = 16 << 10;
/// Most notes that are kept.
const MAX_NOTES: usize = 64;

/// What `lmb_error` points to.
#[derive(Default)]
pub(crate) struct ErrorSlot(Mutex<Report>);

/// What was said.
#[derive(Default)]
pub(crate) struct Report {
    /// Status given with the message; 0 = nothing was said.
    pub status: abi::Status,
    /// Text.
    pub message: String,
    /// Notes in order.
    pub notes: Vec<(String, String)>,
}

impl ErrorSlot {
    /// The pointer that plugins get.
    pub fn as_ptr(&self) -> *mut abi::Error {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// What was said.
    pub fn into_report(self) -> Report {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills a slot from the host's side and gives the status back. `error` may be NULL (R8).
///
/// # Safety
/// `error` is NULL or a slot of this host, alive during the call.
pub(crate) unsafe fn report(
    error: *mut abi::Error,
    status: abi::Status,
    message: &str,
) -> abi::Status {
    // SAFETY: the caller's promise.
    unsafe { error_set(error, status, abi::Str::new(message)) };
    status
}

/// A plugin's text, replacement characters where it is not UTF-8, cut to a sane length.
///
/// # Safety
/// As [`abi::Str::bytes`].
pub(super) unsafe fn lossy<'a>(text: abi::Str) -> Cow<'a, str> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { text.bytes() };
    String::from_utf8_lossy(bytes.get(..LIMIT).unwrap_or(bytes))
}

pub(super) unsafe extern "C" fn error_set(
    error: *mut abi::Error,
    status: abi::Status,
    message: abi::Str,
) {
    super::guard((), || {
        // SAFETY: R8: NULL or the slot that the host passed to the running call.
        let Some(slot) = (unsafe { error.cast::<ErrorSlot>().as_ref() }) else { return };
        // SAFETY: R5, R6.
        let message = unsafe { lossy(message) }.into_owned();
        let mut report = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        report.status = status;
        report.message = message;
    });
}

pub(super) unsafe extern "C" fn error_note(error: *mut abi::Error, key: abi::Str, value: abi::Str) {
    super::guard((), || {
        // SAFETY: as in `error_set`.
        let Some(slot) = (unsafe { error.cast::<ErrorSlot>().as_ref() }) else { return };
        // SAFETY: R5, R6.
        let note = unsafe { (lossy(key).into_owned(), lossy(value).into_owned()) };
        let mut report = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        if report.notes.len() < MAX_NOTES {
            report.notes.push(note);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_wins_and_notes_add_up() {
        let slot = ErrorSlot::default();
        let text = abi::Str::new;
        // SAFETY: a live slot and literals.
        unsafe {
            error_set(slot.as_ptr(), abi::STATUS_IO, text("first"));
            error_note(slot.as_ptr(), text("pointer"), text("/hidden/0"));
            error_note(slot.as_ptr(), text("row"), text("7"));
            error_set(slot.as_ptr(), abi::STATUS_BAD_DATA, text("second"));
            error_set(std::ptr::null_mut(), abi::STATUS_IO, text("nobody listens"));
        }
        let report = slot.into_report();
        assert_eq!((report.status, report.message.as_str()), (abi::STATUS_BAD_DATA, "second"));
        assert_eq!(report.notes.len(), 2);
        assert_eq!(report.notes[0], ("pointer".into(), "/hidden/0".into()));
    }

    #[test]
    fn a_huge_message_is_cut() {
        let slot = ErrorSlot::default();
        let text = "x".repeat(LIMIT * 2);
        // SAFETY: a live slot and string.
        unsafe { error_set(slot.as_ptr(), 1, abi::Str::new(&text)) };
        assert_eq!(slot.into_report().message.len(), LIMIT);
    }
}
