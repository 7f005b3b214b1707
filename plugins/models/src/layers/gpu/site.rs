//! The operations on candle's storage of a GPU.
//!
//! candle frees in the order of its stream, so memory of a call may be given back as soon as its launches are on their
//! way. Nothing here waits for the device. Refuses strided storage and other types than f32 and bf16.

use super::arguments::{self, At, To, kind};
use super::launches::{self, Grid, Machine};
use crate::layers::{Activation, attend, dropout};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
    PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{Layout, Result, Storage, Tensor, bail};
use std::collections::BTreeMap;
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels' machine code, embedded when this library is built.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/layers.fatbin"));

/// A tensor of candle.
pub(crate) type Given<'a> = (&'a CudaStorage, &'a Layout);

/// candle's device, for tensors of one type.
struct Site {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    is_bf16: bool,
}

/// A kernel's argument.
#[repr(transparent)]
struct Argument<A>(A);
// SAFETY: a struct of plain numbers and device addresses, copied by the driver.
unsafe impl<A: Copy> DeviceRepr for Argument<A> {}

impl Site {
    fn of((storage, _): Given<'_>) -> Result<Self> {
        let is_bf16 = match &storage.slice {
            CudaStorageSlice::F32(_) => false,
            CudaStorageSlice::BF16(_) => true,
            _ => bail!("kernels take f32 and bf16"),
        };
        let device = storage.device.clone();
        Ok(Self { stream: device.cuda_stream(), device, is_bf16 })
    }

    fn address<T>(&self, slice: &CudaSlice<T>, layout: &Layout) -> Result<At> {
        let Some((from, _)) = layout.contiguous_offsets() else {
            bail!("a fused layer got a strided tensor")
        };
        // One stream: there is nothing to wait for or to record.
        let start = slice.device_ptr(&self.stream).0 as usize;
        Ok((start + from * size_of::<T>()) as At)
    }

    /// First element of a tensor of this type.
    fn at(&self, (storage, layout): Given<'_>) -> Result<At> {
        match (&storage.slice, self.is_bf16) {
            (CudaStorageSlice::F32(slice), false) => self.address(slice, layout),
            (CudaStorageSlice::BF16(slice), true) => self.address(slice, layout),
            _ => bail!("a fused layer got tensors of several types"),
        }
    }

    /// Storage of `count` elements that `write` fills, beginning as 0 if `is_cleared`.
    fn make(
        &self,
        count: usize,
        is_cleared: bool,
        write: impl FnOnce(To) -> Result<()>,
    ) -> Result<CudaStorage> {
        let whole = Layout::contiguous(count);
        macro_rules! typed {
            ($variant:ident) => {{
                let slice = match is_cleared {
                    true => self.device.alloc_zeros(count)?,
                    // SAFETY: written by the launches that follow before anything reads it.
                    false => unsafe { self.device.alloc(count) }?,
                };
                write(self.address(&slice, &whole)?.cast_mut())?;
                CudaStorageSlice::$variant(slice)
            }};
        }
        let slice = if self.is_bf16 { typed!(BF16) } else { typed!(F32) };
        Ok(CudaStorage { slice, device: self.device.clone() })
    }

    /// The kernel of this name and type; images load once a GPU.
    fn kernel(&self, name: &str) -> Result<CudaFunction> {
        type Loaded = (Arc<CudaModule>, BTreeMap<String, CudaFunction>);
        static LOADED: Mutex<BTreeMap<usize, Loaded>> = Mutex::new(BTreeMap::new());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let context = self.stream.context();
        let (module, kernels) = match loaded.entry(context.ordinal()) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let module = context.load_module(Ptx::from_binary(IMAGE.to_vec())).w()?;
                entry.insert((module, BTreeMap::new()))
            }
        };
        let name = format!("{name}_{}", if self.is_bf16 { "bf16" } else { "f32" });
        if let Some(kernel) = kernels.get(&name) {
            return Ok(kernel.clone());
        }
        let kernel = module.load_function(&name).w()?;
        kernels.insert(name, kernel.clone());
        Ok(kernel)
    }
}

impl Machine for Site {
    type Memory = CudaSlice<f32>;

    unsafe fn launch<A: Copy>(&self, name: &str, grid: Grid, arguments: &A) -> Result<()> {
        let (kernel, argument) = (self.kernel(name)?, Argument(*arguments));
        let mut launch = self.stream.launch_builder(&kernel);
        launch.arg(&argument);
        let config = LaunchConfig {
            grid_dim: (grid.blocks, 1, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared,
        };
        // SAFETY: the caller's promise.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }

    fn scratch(&self, count: usize) -> Result<(CudaSlice<f32>, To)> {
        // SAFETY: a workspace, of any contents.
        let memory = unsafe { self.device.alloc::<f32>(count.max(1)) }?;
        let address = self.address(&memory, &Layout::contiguous(count))?.cast_mut();
        Ok((memory, address))
    }

    fn element(&self) -> usize {
        if self.is_bf16 { 2 } else { 4 }
    }
}

/// Calls `f` with the first element of a contiguous i64 or u8 tensor.
fn with_numbers<R>(site: &Site, tensor: &Tensor, f: impl FnOnce(At) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("numbers on another device") };
    match &storage.slice {
        CudaStorageSlice::I64(slice) => f(site.address(slice, layout)?),
        CudaStorageSlice::U8(slice) => f(site.address(slice, layout)?),
        _ => bail!("numbers of another type"),
    }
}

/// Elements, and the last dimension's size.
fn sizes(layout: &Layout) -> (usize, usize) {
    (layout.shape().elem_count(), layout.dims().last().copied().unwrap_or(1))
}

fn rows_of(count: usize, columns: usize) -> i64 {
    count.checked_div(columns).unwrap_or(0) as i64
}

/// `act(x + bias)`.
pub(crate) fn activate(
    x: Given<'_>,
    bias: Option<Given<'_>>,
    activation: Activation,
) -> Result<CudaStorage> {
    let site = Site::of(x)?;
    let (count, columns) = sizes(x.1);
    let columns = bias.map_or(columns, |(_, layout)| sizes(layout).0);
    let (from, bias) = (site.at(x)?, bias.map_or(Ok(null()), |bias| site.at(bias))?);
    site.make(count, false, |y| {
        let (rows, kind) = (rows_of(count, columns), kind(activation));
        let a = arguments::Activate {
            x: from,
            bias,
            y,
            rows,
            columns: columns as i64,
            kind,
            reserved: 0,
        };
        // SAFETY: memory of candle on this device, in the order of its stream, of the sizes of the tensors.
        unsafe { launches::activate(&site, &a, false) }
    })
}

/// `y = act(y + bias)`.
pub(crate) fn activate_in_place(
    (storage, layout): (&mut CudaStorage, &Layout),
    bias: Given<'_>,
    activation: Activation,
) -> Result<()> {
    let given = (&*storage, layout);
    let site = Site::of(given)?;
    let (count, columns) = sizes(layout);
    let (x, bias) = (site.at(given)?, site.at(bias)?);
    let (rows, kind) = (rows_of(count, columns), kind(activation));
    let y = x.cast_mut();
    let a = arguments::Activate { x, bias, y, rows, columns: columns as i64, kind, reserved: 0 };
    // SAFETY: as in `activate`; the storage is this call's alone.
    unsafe { launches::activate(&site, &a, false) }
}

/// dx from the result or the input of an activation, and dy.
pub(crate) fn activate_backward(
    from: Given<'_>,
    grad: Given<'_>,
    activation: Activation,
) -> Result<CudaStorage> {
    let site = Site::of(from)?;
    let (count, columns) = sizes(from.1);
    let (x, bias) = (site.at(from)?, site.at(grad)?);
    site.make(count, false, |y| {
        let (rows, kind) = (rows_of(count, columns), kind(activation));
        let a =
            arguments::Activate { x, bias, y, rows, columns: columns as i64, kind, reserved: 0 };
        // SAFETY: as in `activate`.
        unsafe { launches::activate(&site, &a, true) }
    })
}

/// `residual + drop(x)`.
pub(crate) fn drop(
    x: Given<'_>,
    residual: Option<Given<'_>>,
    drop: &dropout::Drop,
) -> Result<CudaStorage> {
    let site = Site::of(x)?;
    let (count, _) = sizes(x.1);
    let (from, residual) = (site.at(x)?, residual.map_or(Ok(null()), |given| site.at(given))?);
    site.make(count, false, |y| {
        let a = arguments::Drop {
            x: from,
            residual,
            y,
            rows: rows_of(count, drop.columns),
            columns: drop.columns as i64,
            row_step: drop.row_step as i64,
            dropout: Some(drop.dropout).into(),
        };
        // SAFETY: as in `activate`.
        unsafe { launches::drop(&site, &a) }
    })
}

/// The argument of both normalizations.
fn norm_of(site: &Site, [x, weight, other]: [Given<'_>; 3], eps: f64) -> Result<arguments::Norm> {
    let (count, columns) = sizes(x.1);
    Ok(arguments::Norm {
        x: site.at(x)?,
        weight: site.at(weight)?,
        other: site.at(other)?,
        y: null_mut(),
        stats: null_mut(),
        rows: rows_of(count, columns),
        columns: columns as i64,
        eps: eps as f32,
        reserved: 0,
    })
}

/// Of x, weight and bias.
pub(crate) fn norm(given: [Given<'_>; 3], eps: f64) -> Result<CudaStorage> {
    let site = Site::of(given[0])?;
    let a = norm_of(&site, given, eps)?;
    // SAFETY: as in `activate`.
    site.make(sizes(given[0].1).0, false, |y| unsafe {
        launches::norm(&site, &arguments::Norm { y, ..a })
    })
}

/// dx, dw and db, one after another, of x, weight and dy.
pub(crate) fn norm_backward(given: [Given<'_>; 3], eps: f64) -> Result<CudaStorage> {
    let site = Site::of(given[0])?;
    let a = norm_of(&site, given, eps)?;
    let (count, columns) = sizes(given[0].1);
    // SAFETY: as in `activate`; room for all three.
    site.make(count + 2 * columns, false, |y| unsafe {
        launches::norm_back(&site, &arguments::Norm { y, ..a })
    })
}

/// Attention weights of `scores`, or with a gradient of theirs that of the scores.
pub(crate) fn attend(
    op: &attend::Attend,
    scores: Given<'_>,
    grad: Option<Given<'_>>,
) -> Result<CudaStorage> {
    let site = Site::of(scores)?;
    let (count, columns) = sizes(scores.1);
    let rows = rows_of(count, columns);
    let sequences = scores.1.dims().first().copied().unwrap_or(1).max(1) as i64;
    let (from, grad) = (site.at(scores)?, grad.map_or(Ok(null()), |grad| site.at(grad))?);
    let run = |keep: At| {
        site.make(count, false, |y| {
            let a = arguments::Attend {
                scores: from,
                grad,
                keep,
                y,
                rows,
                columns: columns as i64,
                sequence_rows: (rows / sequences).max(1),
                row_step: op.row_step as i64,
                dropout: op.dropout.into(),
                scale: op.scale as f32,
                reserved: 0,
            };
            // SAFETY: as in `activate`.
            unsafe { launches::attend(&site, &a) }
        })
    };
    match &op.keep {
        Some(keep) => with_numbers(&site, keep, run),
        None => run(null()),
    }
}

/// Σ over the rows of a matrix.
pub(crate) fn sum_rows(x: Given<'_>) -> Result<CudaStorage> {
    let site = Site::of(x)?;
    let (count, columns) = sizes(x.1);
    let from = site.at(x)?;
    site.make(columns, false, |y| {
        let a = arguments::Sum {
            x: from,
            grad: null(),
            stats: null(),
            ids: null(),
            partial: null_mut(),
            rows: rows_of(count, columns),
            columns: columns as i64,
            value: 0,
        };
        // SAFETY: as in `activate`.
        unsafe { launches::sum_rows(&site, a, y) }
    })
}

/// Rows of a table.
pub(crate) fn lookup(table: Given<'_>, ids: &Tensor) -> Result<CudaStorage> {
    let site = Site::of(table)?;
    let (table_rows, columns) = table.1.shape().dims2()?;
    let (x, rows) = (site.at(table)?, ids.elem_count());
    with_numbers(&site, ids, |ids| {
        site.make(rows * columns, false, |y| {
            let a = arguments::Lookup {
                x,
                ids,
                y,
                rows: rows as i64,
                columns: columns as i64,
                table_rows: table_rows as i64,
                left_out: -1,
            };
            // SAFETY: as in `activate`.
            unsafe { launches::lookup(&site, &a) }
        })
    })
}

/// The gradient of a table of `table_rows` from that of its rows.
pub(crate) fn lookup_backward(
    grad: Given<'_>,
    ids: &Tensor,
    table_rows: usize,
    left_out: Option<usize>,
) -> Result<CudaStorage> {
    let site = Site::of(grad)?;
    let (rows, columns) = grad.1.shape().dims2()?;
    let x = site.at(grad)?;
    with_numbers(&site, ids, |ids| {
        site.make(table_rows * columns, true, |y| {
            let a = arguments::Lookup {
                x,
                ids,
                y,
                rows: rows as i64,
                columns: columns as i64,
                table_rows: table_rows as i64,
                left_out: left_out.map_or(-1, |row| row as i64),
            };
            // SAFETY: as in `activate`; the table begins as 0.
            unsafe { launches::lookup_back(&site, &a) }
        })
    })
}
