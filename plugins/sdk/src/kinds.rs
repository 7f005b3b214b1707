//! The tables of the four kinds: trampolines from the contract to the traits.
//!
//! Every one goes through `guard::enter`; none has logic of its own.

use crate::guard::{Body, Shell, When, enter, give, guarded};
use crate::loss::{Loss, LossCall};
use crate::scheduler::{Event, Requests, ScheduleTable, Scheduler};
use crate::student::{BackwardCall, ParamTable, Parameter, Student};
use crate::teacher::{ForwardCall, Teacher};
use crate::views::Views;
use crate::{Activation, Context, Error, Host, Output, Ports, Result, settings};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::io::{Read, Write};
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

// ---------------------------------------------------------------- loss

pub(crate) struct LossBody<T: Loss> {
    plugin: T,
    kept: Option<ParamTable>,
}

struct LossTable<T>(std::marker::PhantomData<T>);
impl<T: Loss> LossTable<T> {
    const TABLE: &'static abi::Loss = &abi::Loss {
        struct_size: abi::struct_size::<abi::Loss>(),
        params: Some(loss_params::<T>),
        plan: loss_plan::<T>,
        compute: loss_compute::<T>,
    };
}

impl<T: Loss> Body for LossBody<T> {
    const STATE: bool = T::STATE;
    fn interface(id: &str) -> *const c_void {
        table(id, abi::LOSS_ID, LossTable::<T>::TABLE)
    }
    fn ports(&self) -> Result<Ports> {
        Ok(self.plugin.ports())
    }
    forward_body!();
}

pub(crate) fn create_loss<T: Loss>(host: Host, config: &str) -> Result<*const abi::Plugin> {
    let plugin = T::new(settings::parse(config)?, &host)?;
    Ok(Shell::into_raw(host, LossBody { plugin, kept: None }))
}

unsafe extern "C" fn loss_params<T: Loss>(
    plugin: *const abi::Plugin,
    inputs: *const abi::Tensor,
    num_inputs: u64,
    out: *mut *const abi::Param,
    num: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut LossBody<T>, _: &Shell<_>| {
        // SAFETY: R5.
        let inputs = unsafe { Views::from_abi(inputs, num_inputs) };
        let params = body.plugin.params(&inputs)?;
        let inits: Vec<String> = params.iter().map(|p| p.init.clone()).collect();
        let parameters = params.into_iter().map(|p| Parameter {
            name: p.name,
            shape: p.shape,
            dtype: p.dtype,
            device: abi::DLDevice::CPU,
            data: ptr::null_mut(),
            tied_to: None,
            trainable: true,
            no_decay: p.no_decay,
        });
        let parameters = parameters.collect();
        let table = ParamTable::new(parameters, inits, abi::TENSOR_SHAPE_ONLY);
        let table = body.kept.insert(table);
        // SAFETY: the host's out-parameters; the table lives until `deactivate` (limbeck.h, lmb_loss.params).
        unsafe { give(out, table.abi.as_ptr()) }?;
        // SAFETY: as above.
        unsafe { give(num, table.abi.len() as u64) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn loss_plan<T: Loss>(
    plugin: *const abi::Plugin,
    inputs: *const abi::Tensor,
    num_inputs: u64,
    workspace: *mut u64,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut LossBody<T>, shell: &Shell<LossBody<T>>| {
        // SAFETY: R5.
        let inputs = unsafe { Views::from_abi(inputs, num_inputs) };
        shell.port_table(body)?.ports.check(&inputs)?;
        let bytes = body.plugin.plan(&inputs)?;
        // SAFETY: the host's out-parameter.
        unsafe { give(workspace, bytes) }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

unsafe extern "C" fn loss_compute<T: Loss>(
    plugin: *const abi::Plugin,
    call: *const abi::LossCall,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut LossBody<T>, shell: &Shell<LossBody<T>>| {
        let ports = &shell.port_table(body)?.ports;
        // SAFETY: R5.
        let call = unsafe { LossCall::from_abi(call, ports, shell.host) }?;
        let _span = crate::log::enter(call.context().abi().span);
        body.plugin.compute(&call)
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}

// ---------------------------------------------------------------- teacher

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

// ---------------------------------------------------------------- student

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
}

impl<T: Student> Body for StudentBody<T> {
    const STATE: bool = T::STATE;
    fn interface(id: &str) -> *const c_void {
        match id {
            abi::TEACHER_ID => ptr::from_ref(StudentTable::<T>::TEACHER).cast(),
            abi::STUDENT_ID => ptr::from_ref(StudentTable::<T>::STUDENT).cast(),
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

// ---------------------------------------------------------------- scheduler

pub(crate) struct SchedulerBody<T: Scheduler> {
    plugin: T,
    schedule: Option<ScheduleTable>,
}

struct SchedulerTable<T>(std::marker::PhantomData<T>);
impl<T: Scheduler> SchedulerTable<T> {
    const TABLE: &'static abi::Scheduler = &abi::Scheduler {
        struct_size: abi::struct_size::<abi::Scheduler>(),
        plan: scheduler_plan::<T>,
        on_event: scheduler_on_event::<T>,
    };
}

impl<T: Scheduler> Body for SchedulerBody<T> {
    const STATE: bool = T::STATE;
    fn interface(id: &str) -> *const c_void {
        table(id, abi::SCHEDULER_ID, SchedulerTable::<T>::TABLE)
    }
    fn ports(&self) -> Result<Ports> {
        Ok(self.plugin.ports())
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<()> {
        self.plugin.activate(activation)
    }
    fn deactivate(&mut self) {
        self.plugin.deactivate();
    }
    fn save(&mut self, context: &Context<'_>, to: &mut dyn Write) -> Result<()> {
        self.plugin.save(context, to)
    }
    fn load(&mut self, context: &Context<'_>, from: &mut dyn Read) -> Result<()> {
        self.plugin.load(context, from)
    }
}

pub(crate) fn create_scheduler<T: Scheduler>(
    host: Host,
    config: &str,
) -> Result<*const abi::Plugin> {
    let plugin = T::new(settings::parse(config)?, &host)?;
    Ok(Shell::into_raw(host, SchedulerBody { plugin, schedule: None }))
}

unsafe extern "C" fn scheduler_plan<T: Scheduler>(
    plugin: *const abi::Plugin,
    out: *mut abi::Schedule,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut SchedulerBody<T>, _: &Shell<_>| {
        if body.schedule.is_none() {
            body.schedule = Some(ScheduleTable::new(body.plugin.plan()?));
        }
        match &body.schedule {
            // SAFETY: the host's struct; the table lives until `destroy` (limbeck.h, lmb_schedule).
            Some(table) => unsafe { table.fill(out) },
            None => Err(Error::internal("no schedule")),
        }
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Always, f) }
}

unsafe extern "C" fn scheduler_on_event<T: Scheduler>(
    plugin: *const abi::Plugin,
    event: *const abi::Event,
    requests: *const abi::Requests,
    error: *mut abi::Error,
) -> abi::Status {
    let f = |body: &mut SchedulerBody<T>, shell: &Shell<SchedulerBody<T>>| {
        // SAFETY: R5.
        let event = unsafe { Event::from_abi(event, shell.host) }?;
        // SAFETY: R5.
        let requests = unsafe { Requests::from_abi(requests, shell.host) }?;
        let _span = crate::log::enter(event.context().abi().span);
        body.plugin.on_event(&event, &requests)
    };
    // SAFETY: the host passes a live instance of this table.
    unsafe { enter(plugin, error, When::Active, f) }
}
