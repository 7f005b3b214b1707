//! Arithmetic on lists of tensors through the host's `lmb.vector/1`: a scheduler needs no kernels of its own.
//!
//! One entry per student parameter. Entries whose gradient is ABSENT (buffers, tied names) are left out of a list.

use crate::host::Memory;
use crate::views::text;
use crate::{Context, DType, Element, Error, Result, View};
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

    /// All values, entry after entry. CPU only.
    ///
    /// # Errors
    /// Not in host memory.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for tensor in self.list() {
            // SAFETY: own memory, alive with `self`.
            if let Some(view) = unsafe { View::from_abi(&tensor) }? {
                out.extend_from_slice(view.slice::<f32>()?);
            }
        }
        Ok(out)
    }

    /// Overwrites all values. CPU only.
    ///
    /// # Errors
    /// Another number of values; not in host memory.
    pub fn set(&mut self, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for tensor in self.list() {
            // SAFETY: own memory, borrowed uniquely.
            let Some(mut view) = (unsafe { crate::GradView::from_abi(&tensor) })? else { continue };
            let Some((now, later)) = rest.split_at_checked(view.elements()) else {
                return Err(Error::bad_data("too few values for the student's parameters"));
            };
            view.slice_mut::<f32>()?.copy_from_slice(now);
            rest = later;
        }
        if rest.is_empty() {
            return Ok(());
        }
        Err(Error::bad_data("too many values for the student's parameters"))
    }
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

/// Replaces every element by `f(own, others…)`, in f64. Host memory only: there is no division in `lmb.vector/1`.
///
/// # Errors
/// Lists or tensors of different size; not in host memory.
pub fn combine<const K: usize>(
    to: &[abi::Tensor],
    others: [&[abi::Tensor]; K],
    f: impl Fn(f64, [f64; K]) -> f64,
) -> Result<()> {
    for (i, tensor) in to.iter().enumerate() {
        let mut values: [Vec<f64>; K] = std::array::from_fn(|_| Vec::new());
        for (values, list) in values.iter_mut().zip(others) {
            let other = list.get(i).ok_or_else(|| Error::internal("lists of different length"))?;
            // SAFETY: a tensor of the running call, or of this instance.
            let view = unsafe { View::from_abi(other) }?;
            *values = view.ok_or_else(|| Error::internal("an absent tensor"))?.to_vec()?;
        }
        // SAFETY: a vector of this instance, borrowed by nobody else.
        let Some(mut view) = (unsafe { crate::GradView::from_abi(tensor) })? else { continue };
        let own = view.slice_mut::<f32>()?;
        if values.iter().any(|v| v.len() != own.len()) {
            return Err(Error::internal("tensors of different size"));
        }
        for (j, own) in own.iter_mut().enumerate() {
            *own = f(f64::from(*own), std::array::from_fn(|k| values[k][j])) as f32;
        }
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
