//! The tables of the four kinds: trampolines from the contract to the traits.
//!
//! Every one goes through `guard::enter`; none has logic of its own.

use crate::guard::give;
use crate::teacher::ForwardCall;
use crate::views::Views;
use crate::{Error, Host, Output, Result};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::ptr;

macro_rules! forward_body {
    () => {
        fn activate(&mut self, activation: &Activation<'_>) -> Result<()> {
            self.plugin.activate(activation)
        }
        fn deactivate(&mut self) {
            self.kept = None;
            self.plugin.deactivate();
        }
        fn save(&mut self, context: &Context<'_>, to: &mut dyn Write) -> Result<()> {
            self.plugin.save(context, to)
        }
        fn load(&mut self, context: &Context<'_>, from: &mut dyn Read) -> Result<()> {
            self.plugin.load(context, from)
        }
    };
}

fn table<T>(id: &str, wanted: &str, table: &'static T) -> *const c_void {
    if id == wanted { ptr::from_ref(table).cast() } else { ptr::null() }
}

mod loss;
mod scheduler;
mod student;
mod teacher;

pub(crate) use loss::create_loss;
pub(crate) use scheduler::create_scheduler;
pub(crate) use student::create_student;
pub(crate) use teacher::create_teacher;

/// # Safety
/// R5: the host's estimate arguments.
unsafe fn estimate(
    inputs: *const abi::Tensor,
    num_inputs: u64,
    held: *mut u64,
    peak: *mut u64,
    f: impl FnOnce(&Views<'_>) -> Result<Option<(u64, u64)>>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let inputs = unsafe { Views::from_abi(inputs, num_inputs) };
    let (h, p) = f(&inputs)?.ok_or_else(|| Error::unsupported("no estimate"))?;
    // SAFETY: the host's out-parameters.
    unsafe { give(held, h) }?;
    // SAFETY: as above.
    unsafe { give(peak, p) }
}

/// Sets every out-parameter to NULL, as they must be on failure, then reads the call.
///
/// # Safety
/// R5: `call` and all it points to live for `'a`.
unsafe fn begin_forward<'a>(call: *const abi::Forward, host: Host) -> Result<ForwardCall<'a>> {
    if call.is_null() {
        return Err(Error::invalid_argument("the call is NULL"));
    }
    // SAFETY: the caller's promise.
    let raw = unsafe { &*call };
    if raw.outputs.is_null() && raw.num_wanted > 0 {
        return Err(Error::invalid_argument("there is no place for outputs"));
    }
    for i in 0..raw.num_wanted as usize {
        // SAFETY: the host's array of `num_wanted` pointers.
        unsafe { raw.outputs.add(i).write(ptr::null_mut()) };
    }
    if !raw.tape.is_null() {
        // SAFETY: the host's out-parameter.
        unsafe { raw.tape.write(ptr::null_mut()) };
    }
    // SAFETY: the caller's promise.
    unsafe { ForwardCall::from_abi(call, host) }
}

/// # Safety
/// R5: `call` as the host passed it.
unsafe fn hand_out(call: &abi::Forward, outputs: Vec<Output>) -> Result<()> {
    if outputs.len() as u64 != call.num_wanted {
        let message = format!("{} outputs for {} wanted", outputs.len(), call.num_wanted);
        return Err(Error::internal(message));
    }
    for (i, output) in outputs.into_iter().enumerate() {
        // SAFETY: the host's array of `num_wanted` pointers.
        unsafe { call.outputs.add(i).write(output.into_raw()) };
    }
    Ok(())
}
