//! Forward and backward passes of a model under test.

use super::{MockInstance, MockTape, Slot, context};
use crate::views::{raw_slice, text};
use crate::{Column, DType, Error, Result, View};
use limbeck_abi as abi;
use std::ptr;

/// Flags of a forward pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// Dropout, statistics.
    pub train: bool,
    /// Record for parameter gradients.
    pub param_grad: bool,
    /// Record for input gradients.
    pub input_grad: bool,
}

/// A parameter of a student, by its address.
#[derive(Clone, Debug)]
pub struct MockParam {
    /// Name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<i64>,
    /// Element type.
    pub dtype: DType,
    /// `PARAM_*` bits.
    pub flags: u64,
    /// Canonical name, if tied.
    pub tied_to: String,
    raw: abi::Param,
}

impl MockParam {
    /// A copy of the value as f64.
    ///
    /// # Errors
    /// Not in host memory.
    pub fn values(&self) -> Result<Vec<f64>> {
        // SAFETY: the student's memory, alive while it is active.
        match unsafe { View::from_abi(&self.raw.value) }? {
            Some(view) => view.to_vec::<f64>(),
            None => Err(Error::internal("an absent parameter")),
        }
    }
    /// Overwrites the value, as the host's optimizer does.
    ///
    /// # Errors
    /// Another number of values.
    pub fn set(&self, values: &[f64]) -> Result<()> {
        // SAFETY: between calls the host may write (limbeck.h, lmb_student.params).
        match unsafe { crate::GradView::from_abi(&self.raw.value) }? {
            Some(mut view) => view.put(1.0, values),
            None => Err(Error::internal("an absent parameter")),
        }
    }
    /// Address of the first element.
    pub fn address(&self) -> usize {
        self.raw.value.t.data as usize
    }
}

/// Tensors of optional columns.
pub(super) fn tensors(columns: &[Option<Column>], flags: u64) -> Vec<abi::Tensor> {
    let absent = |_: &Option<Column>| abi::Tensor { flags: abi::TENSOR_ABSENT, ..zero_tensor() };
    columns
        .iter()
        .map(|c| match c {
            Some(column) => abi::Tensor { flags, ..column.abi() },
            None => absent(c),
        })
        .collect()
}

fn zero_tensor() -> abi::Tensor {
    abi::Tensor {
        name: abi::Str::EMPTY,
        t: abi::DLTensor {
            data: ptr::null_mut(),
            device: abi::DLDevice::CPU,
            ndim: 0,
            dtype: abi::DLDataType::F32,
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            byte_offset: 0,
        },
        flags: 0,
        reserved: 0,
    }
}

impl MockInstance {
    /// A forward pass through `lmb.teacher/1`.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn forward(
        &self,
        inputs: &[Option<Column>],
        wanted: &[&str],
        flags: Flags,
        rng_key: [u64; 2],
    ) -> Result<(Vec<Column>, Option<MockTape>)> {
        let table: &abi::Teacher = self.interface(abi::TEACHER_ID)?;
        let (ctx, mut slot) = (context(self.host, 1, rng_key), Slot::default());
        let inputs = tensors(inputs, abi::TENSOR_READ_ONLY);
        let names: Vec<abi::Str> = wanted.iter().map(|w| abi::Str::new(w)).collect();
        // Not NULL, so that a plugin that leaves them alone is noticed.
        let mut outputs = vec![ptr::dangling_mut(); wanted.len()];
        let mut tape: *mut abi::Tape = ptr::null_mut();
        let bits = [
            (flags.train, abi::FORWARD_TRAIN),
            (flags.param_grad, abi::FORWARD_PARAM_GRAD),
            (flags.input_grad, abi::FORWARD_INPUT_GRAD),
        ];
        let call = abi::Forward {
            struct_size: abi::struct_size::<abi::Forward>(),
            ctx: &ctx,
            flags: bits.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum(),
            inputs: inputs.as_ptr(),
            num_inputs: inputs.len() as u64,
            wanted: names.as_ptr(),
            num_wanted: names.len() as u64,
            outputs: outputs.as_mut_ptr(),
            tape: &mut tape,
        };
        // SAFETY: [step]; everything outlives the call.
        let status = unsafe { (table.forward)(self.plugin, &call, slot.as_abi()) };
        slot.outcome(status)?;
        let mut columns = Vec::new();
        for (output, name) in outputs.into_iter().zip(wanted) {
            // SAFETY: given out by the plugin on success; its deleter is called once, here.
            columns.push(unsafe { take_output(output, name) }?);
        }
        Ok((columns, (!tape.is_null()).then_some(MockTape(tape))))
    }

    /// A student's parameters.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn params(&self) -> Result<Vec<MockParam>> {
        let table: &abi::Student = self.interface(abi::STUDENT_ID)?;
        let (mut out, mut num, mut slot) = (ptr::null(), 0, Slot::default());
        // SAFETY: [step]; out-parameters outlive the call.
        let status = unsafe { (table.params)(self.plugin, &mut out, &mut num, slot.as_abi()) };
        slot.outcome(status)?;
        // SAFETY: plugin memory until deactivate.
        let params = unsafe { raw_slice(out, num) };
        params.iter().map(param).collect()
    }

    /// Tells the student that its parameters were written.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn params_changed(&self) -> Result<()> {
        let table: &abi::Student = self.interface(abi::STUDENT_ID)?;
        let (ctx, mut slot) = (context(self.host, 1, [0, 0]), Slot::default());
        match table.params_changed {
            // SAFETY: [step].
            Some(f) => slot_call(&mut slot, |slot| unsafe { f(self.plugin, &ctx, slot) }),
            None => Ok(()),
        }
    }

    /// A backward pass. `param_grads` and `input_grads` are host buffers with a flag "accumulate"; `None`: not wanted.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn backward(
        &self,
        tape: MockTape,
        cotangents: &[Column],
        param_grads: &mut [Option<(Column, bool)>],
        input_grads: &mut [Option<(Column, bool)>],
    ) -> Result<()> {
        let table: &abi::Student = self.interface(abi::STUDENT_ID)?;
        let (ctx, mut slot) = (context(self.host, 1, [0, 0]), Slot::default());
        let cotangents: Vec<abi::Tensor> = cotangents.iter().map(Column::abi).collect();
        let (params, inputs) = (grad_tensors(param_grads), grad_tensors(input_grads));
        let call = abi::Backward {
            struct_size: abi::struct_size::<abi::Backward>(),
            ctx: &ctx,
            tape: tape.0,
            cotangents: cotangents.as_ptr(),
            num_cotangents: cotangents.len() as u64,
            param_grads: params.as_ptr(),
            num_params: params.len() as u64,
            input_grads: inputs.as_ptr(),
            num_inputs: inputs.len() as u64,
        };
        // SAFETY: [step]; everything outlives the call.
        slot_call(&mut slot, |slot| unsafe { (table.backward)(self.plugin, &call, slot) })
    }

    /// Drops a tape unused.
    ///
    /// # Errors
    /// The instance is no student.
    pub fn tape_release(&self, tape: MockTape) -> Result<()> {
        let table: &abi::Student = self.interface(abi::STUDENT_ID)?;
        // SAFETY: [step]; released once.
        unsafe { (table.tape_release)(self.plugin, tape.0) };
        Ok(())
    }
}

fn slot_call(slot: &mut Slot, f: impl FnOnce(*mut abi::Error) -> abi::Status) -> Result<()> {
    let status = f(slot.as_abi());
    std::mem::take(slot).outcome(status)
}

/// Tensors of host buffers with a flag "accumulate".
pub(super) fn grad_tensors(grads: &mut [Option<(Column, bool)>]) -> Vec<abi::Tensor> {
    let tensor = |g: &mut Option<(Column, bool)>| match g {
        Some((column, add)) => {
            let flags = if *add { abi::TENSOR_ACCUMULATE } else { 0 };
            abi::Tensor { flags, ..column.abi_mut() }
        }
        None => abi::Tensor { flags: abi::TENSOR_ABSENT, ..zero_tensor() },
    };
    grads.iter_mut().map(tensor).collect()
}

fn param(raw: &abi::Param) -> Result<MockParam> {
    // SAFETY: plugin memory until deactivate.
    let view = unsafe { View::from_abi(&raw.value) }?
        .ok_or_else(|| Error::internal("an absent parameter"))?;
    Ok(MockParam {
        name: view.name().to_owned(),
        shape: view.shape().to_vec(),
        dtype: view.dtype(),
        flags: raw.flags,
        // SAFETY: R6.
        tied_to: unsafe { text(raw.tied_to) }.to_owned(),
        raw: *raw,
    })
}

/// # Safety
/// `output` was given out by a plugin and not deleted.
unsafe fn take_output(output: *mut abi::DLManagedTensorVersioned, name: &str) -> Result<Column> {
    // SAFETY: the caller's promise.
    let managed = unsafe { output.as_ref() }.ok_or_else(|| Error::internal("an output is NULL"))?;
    let tensor = abi::Tensor { name: abi::Str::new(name), t: managed.dl_tensor, ..zero_tensor() };
    // SAFETY: alive until the deleter below.
    let column = match unsafe { View::from_abi(&tensor) } {
        Ok(Some(view)) => Column::from_view(&view),
        Ok(None) => Err(Error::internal("an absent output")),
        Err(error) => Err(error),
    };
    if let Some(deleter) = managed.deleter {
        // SAFETY: called once.
        unsafe { deleter(output) };
    }
    column
}
