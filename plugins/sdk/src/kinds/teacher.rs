//! The table `lmb.teacher/1` over [`Teacher`].

use super::{begin_forward, estimate, hand_out, table};
use crate::guard::{Body, Shell, When, enter};
use crate::teacher::Teacher;
use crate::{Activation, Context, Host, Ports, Result, settings};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::io::{Read, Write};

pub(crate) struct TeacherBody<T: Teacher> {
    plugin: T,
    /// Nothing that it gave out outlives a call.
    kept: Option<()>,
}

struct TeacherTable<T>(std::marker::PhantomData<T>);
impl<T: Teacher> TeacherTable<T> {
    const TABLE: &'static abi::Teacher = &abi::Teacher {
        struct_size: abi::struct_size::<abi::Teacher>(),
        estimate: Some(teacher_estimate::<T>),
        forward: teacher_forward::<T>,
    };
}

impl<T: Teacher> Body for TeacherBody<T> {
    const STATE: bool = T::STATE;
    fn interface(id: &str) -> *const c_void {
        table(id, abi::TEACHER_ID, TeacherTable::<T>::TABLE)
    }
    fn ports(&self) -> Result<Ports> {
        self.plugin.ports()
    }
    forward_body!();
}

pub(crate) fn create_teacher<T: Teacher>(host: Host, config: &str) -> Result<*const abi::Plugin> {
    let plugin = T::new(settings::parse(config)?, &host)?;
    Ok(Shell::into_raw(host, TeacherBody { plugin, kept: None }))
}

unsafe extern "C" fn teacher_estimate<T: Teacher>(
    plugin: *const abi::Plugin,
    inputs: *const abi::Tensor,
    num_inputs: u64,
    held: *mut u64,
    peak: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut TeacherBody<T>, _: &Shell<_>| {
        // SAFETY: R5.
        unsafe { estimate(inputs, num_inputs, held, peak, |i| body.plugin.estimate(i)) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Always, f) }
}

unsafe extern "C" fn teacher_forward<T: Teacher>(
    plugin: *const abi::Plugin,
    call: *const abi::Forward,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut TeacherBody<T>, shell: &Shell<TeacherBody<T>>| {
        // SAFETY: R5.
        let checked = unsafe { begin_forward(call, shell.host) }?;
        shell.port_table(body)?.ports.check(&checked.inputs())?;
        let _span = crate::log::enter(checked.context().abi().span);
        let outputs = body.plugin.forward(&checked)?;
        // SAFETY: R5.
        unsafe { hand_out(&*call, outputs) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}
