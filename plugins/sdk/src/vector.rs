//! Arithmetic on lists of tensors through the host's `lmb.vector/1`: a scheduler needs no kernels of its own.
//!
//! One entry per student parameter. Entries whose gradient is ABSENT (buffers, tied names) are left out of a list.

use crate::host::Memory;
use crate::views::text;
use crate::{Column, Context, DType, Element, Error, Result, View};
use limbeck_abi as abi;
use std::ptr;

/// The host's table with the context of the running call. \[step\]
#[derive(Clone, Copy)]
pub struct Vector<'a> {
    table: &'static abi::Vector,
    context: Context<'a>,
}

impl<'a> Vector<'a> {
    /// The host's table.
    ///
    /// # Errors
    /// UNSUPPORTED if the host has none.
    pub fn new(context: &Context<'a>) -> Result<Self> {
        let table = context.host().interface(abi::VECTOR_ID).cast::<abi::Vector>();
        // SAFETY: lives as long as the host, that is until the process ends.
        match unsafe { table.as_ref() } {
            Some(table) => Ok(Self { table, context: *context }),
            None => Err(Error::unsupported("the host has no lmb.vector/1")),
        }
    }

    /// `y = a·x + b·y`; `b` = 0 does not read `y`.
    ///
    /// # Errors
    /// Lists of different length, and what the host says.
    pub fn axpby(&self, a: f64, x: &[abi::Tensor], b: f64, y: &[abi::Tensor]) -> Result<()> {
        same_length(&[x, y])?;
        let (table, n) = (self.table, y.len() as u64);
        self.context.host().call(|_, error| {
            // SAFETY: [step]; the lists outlive the call.
            unsafe {
                (table.axpby)(table, self.context.abi(), n, a, x.as_ptr(), b, y.as_ptr(), error)
            }
        })
    }

    /// `y = b·y`; 0 fills with zeros.
    ///
    /// # Errors
    /// What the host says.
    pub fn scale(&self, b: f64, y: &[abi::Tensor]) -> Result<()> {
        let (table, n) = (self.table, y.len() as u64);
        self.context.host().call(|_, error| {
            // SAFETY: [step]; with a = 0 the host does not read x (limbeck.h, lmb_vector.axpby).
            unsafe {
                (table.axpby)(table, self.context.abi(), n, 0.0, ptr::null(), b, y.as_ptr(), error)
            }
        })
    }

    /// `z = a·x∘y + b·z`; `b` = 0 does not read `z`, which may be `x` or `y`.
    ///
    /// # Errors
    /// Lists of different length, and what the host says.
    pub fn mul(
        &self,
        a: f64,
        x: &[abi::Tensor],
        y: &[abi::Tensor],
        b: f64,
        z: &[abi::Tensor],
    ) -> Result<()> {
        same_length(&[x, y, z])?;
        let (table, ctx, n) = (self.table, self.context.abi(), z.len() as u64);
        self.context.host().call(|_, error| {
            // SAFETY: [step]; the lists outlive the call.
            unsafe { (table.mul)(table, ctx, n, a, x.as_ptr(), y.as_ptr(), b, z.as_ptr(), error) }
        })
    }

    /// `Σ x·y` over all entries.
    ///
    /// # Errors
    /// Lists of different length, and what the host says.
    pub fn dot(&self, x: &[abi::Tensor], y: &[abi::Tensor]) -> Result<f64> {
        same_length(&[x, y])?;
        let mut out = 0.0;
        let (table, ctx, n) = (self.table, self.context.abi(), x.len() as u64);
        self.context.host().call(|_, error| {
            // SAFETY: [step]; lists and out-parameter outlive the call.
            unsafe { (table.dot)(table, ctx, n, x.as_ptr(), y.as_ptr(), &mut out, error) }
        })?;
        Ok(out)
    }
}

fn same_length(lists: &[&[abi::Tensor]]) -> Result<()> {
    if lists.windows(2).all(|w| w[0].len() == w[1].len()) {
        return Ok(());
    }
    let lengths: Vec<usize> = lists.iter().map(|l| l.len()).collect();
    Err(Error::internal(format!("lists of different length: {lengths:?}")))
}

/// f32 tensors of the host, one per entry of a list: importance, centres, path integrals. In the instance's charge.
#[derive(Debug)]
pub struct VectorSet {
    memory: Vec<Memory>,
}

impl VectorSet {
    /// Zeros shaped like `list`. \[step\]
    ///
    /// # Errors
    /// OUT_OF_MEMORY, an unknown element type.
    pub fn zeros_like(context: &Context<'_>, name: &str, list: &[abi::Tensor]) -> Result<Self> {
        let mut memory = Vec::with_capacity(list.len());
        for tensor in list {
            // SAFETY: a view of the running call (R5).
            let view = unsafe { View::from_abi(tensor) }?
                .ok_or_else(|| Error::internal("an absent tensor in a list"))?;
            memory.push(context.alloc(
                &format!("{name}/{}", view.name()),
                DType::F32,
                view.shape(),
            )?);
        }
        let set = Self { memory };
        Vector::new(context)?.scale(0.0, &set.list())?;
        Ok(set)
    }

    /// The list of the contract; valid while `self` is neither moved nor dropped.
    pub fn list(&self) -> Vec<abi::Tensor> {
        self.memory.iter().map(Memory::abi).collect()
    }

    /// All values, entry after entry.
    ///
    /// # Errors
    /// What the host says.
    pub fn to_vec(&self, context: &Context<'_>) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for tensor in self.list() {
            // SAFETY: own memory, alive with `self`.
            out.extend(unsafe { fetch::<f32>(context, &tensor) }?);
        }
        Ok(out)
    }

    /// Overwrites all values.
    ///
    /// # Errors
    /// Another number of values; what the host says.
    pub fn set(&mut self, context: &Context<'_>, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for tensor in self.list() {
            // SAFETY: own memory, borrowed uniquely.
            let Some(view) = (unsafe { View::from_abi(&tensor) })? else { continue };
            let Some((now, later)) = rest.split_at_checked(view.elements()) else {
                return Err(Error::bad_data("too few values for the student's parameters"));
            };
            // SAFETY: as above.
            unsafe { store(context, &tensor, now) }?;
            rest = later;
        }
        if rest.is_empty() {
            return Ok(());
        }
        Err(Error::bad_data("too many values for the student's parameters"))
    }
}

/// The elements of a tensor, copied from its device if it lies on one.
///
/// # Safety
/// A tensor of the running call, or of this instance.
unsafe fn fetch<T: Element>(context: &Context<'_>, tensor: &abi::Tensor) -> Result<Vec<T>> {
    // SAFETY: the caller's promise.
    let view = unsafe { View::from_abi(tensor) }?;
    let view = view.ok_or_else(|| Error::internal("an absent tensor"))?;
    if view.device() == abi::DLDevice::CPU || view.elements() == 0 {
        return view.to_vec();
    }
    let memory = context.alloc_on_cpu(view.name(), view.dtype(), view.shape())?;
    let here = memory.abi();
    context.copy(&here, tensor)?;
    // SAFETY: own memory, alive until the end of this function.
    let copied = unsafe { View::from_abi(&here) }?;
    copied.ok_or_else(|| Error::internal("an absent tensor"))?.to_vec()
}

/// Overwrites a contiguous f32 tensor, on its device if it lies on one.
///
/// # Safety
/// A tensor of this instance with as many elements as `values`, borrowed by nobody else.
unsafe fn store(context: &Context<'_>, tensor: &abi::Tensor, values: &[f32]) -> Result<()> {
    // SAFETY: the caller's promise.
    let Some(mut view) = (unsafe { crate::GradView::from_abi(tensor) })? else { return Ok(()) };
    if view.device() == abi::DLDevice::CPU {
        view.slice_mut::<f32>()?.copy_from_slice(values);
        return Ok(());
    }
    context.copy(tensor, &Column::new(view.name(), view.shape(), values)?.abi())
}

/// The entries of `params` that have a gradient in `grads`: values and gradients, side by side.
///
/// # Errors
/// Lists of different length.
pub fn trainable(
    params: &[abi::Param],
    grads: &[abi::Tensor],
) -> Result<(Vec<abi::Tensor>, Vec<abi::Tensor>)> {
    if params.len() != grads.len() {
        let message = format!("{} gradients for {} parameters", grads.len(), params.len());
        return Err(Error::invalid_argument(message));
    }
    let there = |(_, g): &(&abi::Param, &abi::Tensor)| g.flags & abi::TENSOR_ABSENT == 0;
    Ok(params.iter().zip(grads).filter(there).map(|(p, g)| (p.value, *g)).unzip())
}

/// Whether a parameter is trained and owns its memory: it has a gradient of its own.
pub fn is_owned_trainable(param: &abi::Param) -> bool {
    // SAFETY: R5, R6.
    param.flags & abi::PARAM_TRAINABLE != 0 && unsafe { text(param.tied_to) }.is_empty()
}

/// The parameters that are trained and own their memory.
pub fn owned_trainable(params: &[abi::Param]) -> Vec<abi::Tensor> {
    params.iter().filter(|p| is_owned_trainable(p)).map(|p| p.value).collect()
}

/// Replaces every element by `f(own, others…)`, in f64 on the CPU: there is no division in `lmb.vector/1`. Tensors of a
/// device are fetched and written back, which is slow: for what happens outside of steps.
///
/// # Errors
/// Lists or tensors of different size; what the host says.
pub fn combine<const K: usize>(
    context: &Context<'_>,
    to: &[abi::Tensor],
    others: [&[abi::Tensor]; K],
    f: impl Fn(f64, [f64; K]) -> f64,
) -> Result<()> {
    for (i, tensor) in to.iter().enumerate() {
        let mut values: [Vec<f64>; K] = std::array::from_fn(|_| Vec::new());
        for (values, list) in values.iter_mut().zip(others) {
            let other = list.get(i).ok_or_else(|| Error::internal("lists of different length"))?;
            // SAFETY: a tensor of the running call, or of this instance.
            *values = unsafe { fetch(context, other) }?;
        }
        // SAFETY: a vector of this instance.
        let mut own = unsafe { fetch::<f32>(context, tensor) }?;
        if values.iter().any(|v| v.len() != own.len()) {
            return Err(Error::internal("tensors of different size"));
        }
        for (j, own) in own.iter_mut().enumerate() {
            *own = f(f64::from(*own), std::array::from_fn(|k| values[k][j])) as f32;
        }
        // SAFETY: a vector of this instance, borrowed by nobody else, with as many elements.
        unsafe { store(context, tensor, &own) }?;
    }
    Ok(())
}

/// The elements of `values` as little-endian bytes, for a state.
pub fn to_bytes<T: Element>(values: &[T]) -> Vec<u8> {
    // SAFETY: elements are plain data without padding; targets are little-endian (R1).
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
        .to_vec()
}

/// The inverse of [`to_bytes`].
///
/// # Errors
/// BAD_DATA if the bytes are no whole number of elements.
pub fn from_bytes<T: Element>(bytes: &[u8]) -> Result<Vec<T>> {
    if !bytes.len().is_multiple_of(size_of::<T>()) {
        return Err(Error::bad_data(format!("{} bytes of {}", bytes.len(), T::DTYPE.name())));
    }
    let mut out = vec![T::default(); bytes.len() / size_of::<T>()];
    // SAFETY: `out` has exactly this many bytes of plain data.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), out.as_mut_ptr().cast(), bytes.len()) };
    Ok(out)
}
