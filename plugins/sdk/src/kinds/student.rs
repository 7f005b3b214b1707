//! The tables `lmb.student/1` and `lmb.teacher/1` over [`Student`]: every student also teaches.

use super::{begin_forward, estimate, hand_out};
use crate::guard::{Body, Shell, When, enter, give, guarded};
use crate::student::{BackwardCall, ParamTable, Student};
use crate::{Activation, Context, Error, Host, Ports, Result, settings};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::io::{Read, Write};
use std::ptr;

pub(crate) struct StudentBody<T: Student> {
    plugin: T,
    kept: Option<ParamTable>,
}

struct StudentTable<T>(std::marker::PhantomData<T>);
impl<T: Student> StudentTable<T> {
    const TEACHER: &'static abi::Teacher = &abi::Teacher {
        struct_size: abi::struct_size::<abi::Teacher>(),
        estimate: Some(student_estimate::<T>),
        forward: student_forward::<T>,
    };
    const STUDENT: &'static abi::Student = &abi::Student {
        struct_size: abi::struct_size::<abi::Student>(),
        params: student_params::<T>,
        params_changed: Some(student_params_changed::<T>),
        backward: student_backward::<T>,
        tape_release: student_tape_release::<T>,
    };
    const FOLDER: &'static abi::Folder = &abi::Folder {
        struct_size: abi::struct_size::<abi::Folder>(),
        config: student_folder_config::<T>,
    };
}

impl<T: Student> Body for StudentBody<T> {
    const STATE: bool = T::STATE;
    fn interface(id: &str) -> *const c_void {
        match id {
            abi::TEACHER_ID => ptr::from_ref(StudentTable::<T>::TEACHER).cast(),
            abi::STUDENT_ID => ptr::from_ref(StudentTable::<T>::STUDENT).cast(),
            abi::FOLDER_ID if T::FOLDER => ptr::from_ref(StudentTable::<T>::FOLDER).cast(),
            _ => ptr::null(),
        }
    }
    fn ports(&self) -> Result<Ports> {
        self.plugin.ports()
    }
    forward_body!();
}

pub(crate) fn create_student<T: Student>(host: Host, config: &str) -> Result<*const abi::Plugin> {
    let plugin = T::new(settings::parse(config)?, &host)?;
    Ok(Shell::into_raw(host, StudentBody { plugin, kept: None }))
}

unsafe extern "C" fn student_estimate<T: Student>(
    plugin: *const abi::Plugin,
    inputs: *const abi::Tensor,
    num_inputs: u64,
    held: *mut u64,
    peak: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut StudentBody<T>, _: &Shell<_>| {
        // SAFETY: R5.
        unsafe { estimate(inputs, num_inputs, held, peak, |i| body.plugin.estimate(i)) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Always, f) }
}

unsafe extern "C" fn student_folder_config<T: Student>(
    plugin: *const abi::Plugin,
    to: *const abi::Writer,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut StudentBody<T>, _: &Shell<_>| {
        let config = body.plugin.folder_config()?;
        // SAFETY: R5.
        let mut to = unsafe { crate::state::HostWriter::from_abi(to) }?;
        let written = to.write_all(config.to_string().as_bytes());
        written.map_err(|e| Error::internal(format!("the host takes no config: {e}")))
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Always, f) }
}

unsafe extern "C" fn student_forward<T: Student>(
    plugin: *const abi::Plugin,
    call: *const abi::Forward,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut StudentBody<T>, shell: &Shell<StudentBody<T>>| {
        // SAFETY: R5.
        let checked = unsafe { begin_forward(call, shell.host) }?;
        shell.port_table(body)?.ports.check(&checked.inputs())?;
        let _span = crate::log::enter(checked.context().abi().span);
        let (outputs, tape) = body.plugin.forward(&checked)?;
        let wanted = checked.param_grad() || checked.input_grad();
        let tape_out = checked.abi().tape;
        if wanted && (tape.is_none() || tape_out.is_null()) {
            return Err(Error::invalid_argument("a gradient is asked for, but there is no tape"));
        }
        // SAFETY: R5.
        unsafe { hand_out(checked.abi(), outputs) }?;
        if let (true, Some(tape)) = (wanted, tape) {
            // SAFETY: the host's out-parameter; the box is ours until `backward` or `tape_release`.
            unsafe { tape_out.write(Box::into_raw(Box::new(tape)).cast()) };
        }
        Ok(())
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn student_params<T: Student>(
    plugin: *const abi::Plugin,
    out: *mut *const abi::Param,
    num: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut StudentBody<T>, _: &Shell<_>| {
        if body.kept.is_none() {
            let params = body.plugin.params()?;
            body.kept = Some(ParamTable::new(params, Vec::new(), 0));
        }
        let Some(table) = &body.kept else { return Err(Error::internal("no parameters")) };
        // SAFETY: the host's out-parameters; the table lives until `deactivate` (limbeck.h, lmb_student.params).
        unsafe { give(out, table.abi.as_ptr()) }?;
        // SAFETY: as above.
        unsafe { give(num, table.abi.len() as u64) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn student_params_changed<T: Student>(
    plugin: *const abi::Plugin,
    ctx: *const abi::Ctx,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut StudentBody<T>, shell: &Shell<StudentBody<T>>| {
        // SAFETY: R5.
        let context = unsafe { Context::from_abi(ctx, shell.host) }?;
        let _span = crate::log::enter(context.abi().span);
        body.plugin.params_changed(&context)
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn student_backward<T: Student>(
    plugin: *const abi::Plugin,
    call: *const abi::Backward,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut StudentBody<T>, shell: &Shell<StudentBody<T>>| {
        // SAFETY: R5.
        let raw =
            unsafe { call.as_ref() }.ok_or_else(|| Error::invalid_argument("the call is NULL"))?;
        if raw.tape.is_null() {
            return Err(Error::invalid_argument("the tape is NULL"));
        }
        // SAFETY: made by `student_forward` of this type; consumed here, on failure too.
        let tape = unsafe { Box::from_raw(raw.tape.cast::<T::Tape>()) };
        // SAFETY: R5.
        let call = unsafe { BackwardCall::from_abi(raw, shell.host) }?;
        let _span = crate::log::enter(call.context().abi().span);
        body.plugin.backward(&call, *tape)
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn student_tape_release<T: Student>(_: *const abi::Plugin, tape: *mut abi::Tape) {
    if tape.is_null() {
        return;
    }
    let _ = guarded(|| {
        // SAFETY: made by `student_forward` of this type, released once.
        drop(unsafe { Box::from_raw(tape.cast::<T::Tape>()) });
        Ok(())
    });
}
