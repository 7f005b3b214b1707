//! The table `lmb.loss/1` over [`Loss`].

use super::table;
use crate::guard::{Body, Shell, When, enter, give};
use crate::loss::{Loss, LossCall};
use crate::student::{ParamTable, Parameter};
use crate::views::Views;
use crate::{Activation, Context, Host, Ports, Result, settings};
use limbeck_abi as abi;
use std::ffi::c_void;
use std::io::{Read, Write};
use std::ptr;

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
