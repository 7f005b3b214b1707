//! The table `lmb.scheduler/1` over [`Scheduler`].

use super::table;
use crate::guard::{Body, Shell, When, enter};
use crate::scheduler::{Event, Requests, ScheduleTable, Scheduler};
use crate::{Activation, Context, Error, Host, Ports, Result, settings};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::io::{Read, Write};

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
        Ok(self.plugin.ports().in_host_memory())
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
            body.schedule =
                Some(ScheduleTable::new(body.plugin.plan()?, &body.plugin.definition()));
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
