//! The C table over the kernels; calls for other devices go to the table that a module registered.
//!
//! Every function checks its lists before it touches an element.

use super::super::slot::report;
use super::{VectorError, View, kernels};
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::sync::RwLock;

/// The host's table.
pub fn table() -> &'static abi::Vector {
    &TABLE
}

static TABLE: abi::Vector = abi::Vector {
    struct_size: abi::struct_size::<abi::Vector>(),
    device_type: 0,
    reserved: 0,
    axpby,
    mul,
    dot,
    adamw: Some(adamw),
};

static DEVICES: RwLock<Vec<&'static abi::Vector>> = RwLock::new(Vec::new());

/// Takes over a module's table for its kind of device; the first one for a kind stays. CPU tables are not taken.
pub fn register_device(table: &'static abi::Vector) {
    let mut devices = DEVICES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let taken = devices.iter().any(|t| t.device_type == table.device_type);
    if table.device_type > abi::DL_CPU && !taken {
        devices.push(table);
    }
}

/// The table for the context's device, `None` for the CPU.
fn elsewhere(ctx: *const abi::Ctx) -> Option<Result<&'static abi::Vector, i32>> {
    // SAFETY: R5: a context lives during the call; NULL is read as "the CPU".
    let kind = unsafe { ctx.as_ref() }?.stream.device.device_type;
    if kind == abi::DL_CPU {
        return None;
    }
    let devices = DEVICES.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    Some(devices.iter().copied().find(|t| t.device_type == kind).ok_or(kind))
}

/// Sends the call to another device's table, or fails if there is none.
macro_rules! dispatch {
    ($ctx:expr, $error:expr, $table:ident => $call:expr) => {
        match elsewhere($ctx) {
            None => {}
            // SAFETY: the same arguments, under the same contract.
            Some(Ok($table)) => return unsafe { $call },
            Some(Err(kind)) => {
                let text = format!("no lmb.vector/1 for device type {kind}");
                // SAFETY: R8.
                return unsafe { report($error, abi::STATUS_UNSUPPORTED, &text) };
            }
        }
    };
}

/// # Safety
/// `list` is NULL or has `n` entries that live during the call.
unsafe fn views(n: u64, list: *const abi::Tensor) -> Result<Vec<View>, VectorError> {
    if n == 0 {
        return Ok(Vec::new());
    }
    if list.is_null() {
        return Err(VectorError::Arguments);
    }
    // SAFETY: the caller's promise.
    let list = unsafe { std::slice::from_raw_parts(list, n as usize) };
    let view = |(i, t): (usize, &abi::Tensor)| {
        // SAFETY: R5: the memory lives during the call, and the view does not outlive it.
        let tensor = unsafe { Tensor::borrowed(&t.t) }.ok_or(VectorError::Layout(i))?;
        View::new(i, &tensor)
    };
    list.iter().enumerate().map(view).collect()
}

/// Runs the body; an error or a panic becomes a status.
fn finish(error: *mut abi::Error, body: impl FnOnce() -> Result<(), VectorError>) -> abi::Status {
    super::super::guard(abi::STATUS_INTERNAL, || match body() {
        Ok(()) => abi::STATUS_OK,
        Err(why) => {
            let status = match why {
                VectorError::DType { .. } | VectorError::Layout(_) => abi::STATUS_UNSUPPORTED,
                _ => abi::STATUS_INVALID_ARGUMENT,
            };
            // SAFETY: R8: the slot of the running call or NULL.
            unsafe { report(error, status, &format!("lmb.vector/1: {why}")) }
        }
    })
}

unsafe extern "C" fn axpby(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    a: f64,
    x: *const abi::Tensor,
    b: f64,
    y: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    dispatch!(ctx, error, t => (t.axpby)(t, ctx, n, a, x, b, y, error));
    finish(error, || {
        // SAFETY: R5; a list that the factor 0 leaves unread is not looked at.
        let (x, y) = unsafe { (if a == 0.0 { Vec::new() } else { views(n, x)? }, views(n, y)?) };
        kernels::axpby(a, &x, b, &y)
    })
}

unsafe extern "C" fn mul(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    a: f64,
    x: *const abi::Tensor,
    y: *const abi::Tensor,
    b: f64,
    z: *const abi::Tensor,
    error: *mut abi::Error,
) -> abi::Status {
    dispatch!(ctx, error, t => (t.mul)(t, ctx, n, a, x, y, b, z, error));
    finish(error, || {
        // SAFETY: R5.
        let (x, y, z) = unsafe { (views(n, x)?, views(n, y)?, views(n, z)?) };
        kernels::mul(a, &x, &y, b, &z)
    })
}

unsafe extern "C" fn dot(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    x: *const abi::Tensor,
    y: *const abi::Tensor,
    out: *mut f64,
    error: *mut abi::Error,
) -> abi::Status {
    dispatch!(ctx, error, t => (t.dot)(t, ctx, n, x, y, out, error));
    finish(error, || {
        // SAFETY: R5.
        let (x, y) = unsafe { (views(n, x)?, views(n, y)?) };
        let value = kernels::dot(&x, &y)?;
        // SAFETY: R5: the caller's place for the result.
        *unsafe { out.as_mut() }.ok_or(VectorError::Arguments)? = value;
        Ok(())
    })
}

unsafe extern "C" fn adamw(
    _: *const abi::Vector,
    ctx: *const abi::Ctx,
    n: u64,
    update: *const abi::Adamw,
    error: *mut abi::Error,
) -> abi::Status {
    if let Some(Ok(other)) = elsewhere(ctx)
        && let Some(other_adamw) = other.adamw
    {
        // SAFETY: the same arguments, under the same contract.
        return unsafe { other_adamw(other, ctx, n, update, error) };
    }
    if elsewhere(ctx).is_some() {
        // SAFETY: R8.
        return unsafe { report(error, abi::STATUS_UNSUPPORTED, "no adamw for this device") };
    }
    finish(error, || {
        if update.is_null() || !abi::has!(update, abi::Adamw, t) {
            return Err(VectorError::Arguments);
        }
        // SAFETY: R3, R5: checked size, alive during the call.
        let u = unsafe { &*update };
        // SAFETY: R5: the lists have `n` entries.
        let lists =
            unsafe { [views(n, u.params)?, views(n, u.grads)?, views(n, u.m)?, views(n, u.v)?] };
        let [params, grads, m, v] = lists;
        // SAFETY: as above.
        let masters = (!u.masters.is_null()).then(|| unsafe { views(n, u.masters) }).transpose()?;
        // SAFETY: as above.
        let (lr, weight_decay) = unsafe { (numbers(n, u.lr)?, numbers(n, u.weight_decay)?) };
        kernels::adamw(&kernels::AdamwViews {
            params,
            grads,
            m,
            v,
            masters,
            lr,
            weight_decay,
            beta1: u.beta1,
            beta2: u.beta2,
            eps: u.eps,
            grad_scale: u.grad_scale,
            t: u.t,
        })
    })
}

/// # Safety
/// `list` is NULL or has `n` entries that live during the call.
unsafe fn numbers<'a>(n: u64, list: *const f64) -> Result<&'a [f64], VectorError> {
    match n {
        0 => Ok(&[]),
        _ if list.is_null() => Err(VectorError::Arguments),
        // SAFETY: the caller's promise.
        _ => Ok(unsafe { std::slice::from_raw_parts(list, n as usize) }),
    }
}
