//! The same operations on tensors of NVIDIA GPUs: candle's memory and stream, the launches of [`crate::cuda`].
//!
//! candle makes the device's context and orders what it frees on the same stream, so that memory of a call may be given
//! back as soon as its launches are on their way. Nothing here waits for the device.

use super::counting::Counting;
use super::{FusedLinearLoss, LogitLoss};
use crate::cuda::arguments::{Column, Matrix, Rows, ScaleArgs, type_number};
use crate::cuda::launch::{Device, device};
use crate::cuda::linear::{LinearCall, Teacher};
use crate::cuda::lt::lt;
use crate::cuda::plan::{Layout as Lies, SLOT_BYTES, SUM_SHARED, Shape};
use crate::cuda::prepared::{Gradient, Prepared, Site, Sums};
use crate::cuda::rows::Found;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{Error, Layout, Result, Storage, Tensor, bail};
use limbeck_sdk::DType;
use std::ffi::c_void;
use std::sync::Arc;

/// A tensor of candle.
type Given<'a> = (&'a CudaStorage, &'a Layout);

/// Where candle's tensors are, for our launches.
struct Place {
    candle: CudaDevice,
    device: &'static Device,
    stream: Arc<CudaStream>,
}

fn ours(error: limbeck_sdk::Error) -> Error {
    Error::Msg(error.message().to_owned())
}

impl Place {
    fn of(storage: &CudaStorage) -> Result<Self> {
        let candle = storage.device.clone();
        let stream = candle.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let device = device(stream.context().ordinal() as i32).map_err(ours)?;
        Ok(Self { candle, device, stream })
    }

    fn handle(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    fn address<T>(&self, slice: &CudaSlice<T>) -> *mut c_void {
        // One stream: there is nothing to wait for or to record.
        slice.device_ptr(&self.stream).0 as *mut c_void
    }

    /// A contiguous matrix; `None`: of no type that kernels take.
    fn matrix(&self, (storage, layout): Given<'_>) -> Result<Found> {
        let (address, dtype) = match &storage.slice {
            CudaStorageSlice::F32(slice) => (self.address(slice), DType::F32),
            CudaStorageSlice::F16(slice) => (self.address(slice), DType::F16),
            CudaStorageSlice::BF16(slice) => (self.address(slice), DType::BF16),
            _ => bail!("kernels take f32, f16 and bf16"),
        };
        let Some((from, _)) = layout.contiguous_offsets() else {
            bail!("matrices must be contiguous")
        };
        let (rows, columns) = layout.shape().dims2()?;
        Ok(found(address.wrapping_byte_add(from * dtype.bytes()), dtype, rows, columns))
    }

    /// Uninitialised memory of the type, as storage and as a matrix.
    fn buffer(&self, dtype: DType, rows: usize, columns: usize) -> Result<(CudaStorage, Found)> {
        let count = rows * columns;
        macro_rules! typed {
            ($($variant:ident),*) => {
                match dtype {
                    $(DType::$variant => {
                        // SAFETY: written by the launches that follow before anything reads it.
                        let slice = unsafe { self.candle.alloc(count) }?;
                        let address = self.address(&slice);
                        (CudaStorageSlice::$variant(slice), address)
                    })*
                    _ => bail!("kernels write f32, f16 and bf16"),
                }
            };
        }
        let (slice, address) = typed! { F32, F16, BF16 };
        let storage = CudaStorage { slice, device: self.candle.clone() };
        Ok((storage, found(address, dtype, rows, columns)))
    }

    fn bytes(&self, count: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: a workspace, of any contents.
        unsafe { self.candle.alloc(count.max(1)) }
    }
}

fn found(data: *mut c_void, dtype: DType, rows: usize, columns: usize) -> Found {
    let (number, row) = (type_number(dtype).unwrap_or_default(), columns as i64);
    Found {
        matrix: Matrix { data, row, column: 1, dtype: number, reserved: 0 },
        layout: Lies { address: data as usize, row, column: 1, dtype },
        rows,
        columns,
    }
}

/// The value's storage, and where it goes.
fn value(place: &Place, normalizer: f64) -> Result<(CudaStorage, Sums)> {
    let (storage, to) = place.buffer(DType::F32, 1, 1)?;
    let none = std::ptr::null_mut();
    Ok((storage, Sums { value: to.matrix.data, dead: none, infinite: none, normalizer }))
}

/// Weights of all rows on the device; `None`: all count 1.
fn weights(place: &Place, counting: &Counting, rows: usize) -> Result<Option<CudaSlice<f64>>> {
    if counting.labels.is_none() && counting.weights.is_none() {
        return Ok(None);
    }
    let list: Vec<f64> = (0..rows).map(|n| counting.weight(n).unwrap_or(0.0)).collect();
    place.candle.clone_htod(&list).map(Some)
}

impl LogitLoss {
    /// Value, f32, and if wanted the gradient.
    pub(super) fn on_gpu(
        &self,
        student: Given<'_>,
        teacher: Given<'_>,
        wanted: bool,
    ) -> Result<(CudaStorage, Option<CudaStorage>)> {
        let place = Place::of(student.0)?;
        let (s, t) = (place.matrix(student)?, place.matrix(teacher)?);
        let normalizer = self.counting.divisor(s.rows);
        let grad = wanted.then(|| place.buffer(s.layout.dtype, s.rows, s.columns)).transpose()?;
        let (storage, sums) = value(&place, normalizer)?;
        let listed = weights(&place, &self.counting, s.rows)?;
        let slots = place.bytes(s.rows * SLOT_BYTES)?;
        let weights = listed.as_ref().map_or(Column::ABSENT, |listed| Column {
            data: place.address(listed).cast_const(),
            stride: 1,
            dtype: type_number(DType::F64).unwrap_or_default(),
            reserved: 0,
        });
        let (labels, mask) = (Column::ABSENT, Column::ABSENT);
        let site = Site {
            device: place.device,
            stream: place.handle(),
            rows: Rows { count: s.rows as i64, labels, mask, weights },
            slots: place.address(&slots),
            grad_factor: 1.0 / normalizer,
        };
        let to = grad.as_ref().map(|(_, to)| Gradient { to: *to, adds: false });
        // SAFETY: memory of candle on this device, in the order of its stream, which frees in order too.
        unsafe { Prepared::new(&site, &s, Some(&t), to).diverge(&self.spec) }.map_err(ours)?;
        // SAFETY: as above.
        unsafe { sums.launch(place.device, site.stream, site.slots.cast_const(), s.rows) }
            .map_err(ours)?;
        Ok((storage, grad.map(|(storage, _)| storage)))
    }
}

impl FusedLinearLoss {
    /// Value and the gradients that are wanted, all f32.
    pub(super) fn on_gpu(
        &self,
        [hidden, head]: [Given<'_>; 2],
        (teacher, teacher_head): (Given<'_>, Option<Given<'_>>),
        wanted: [bool; 2],
    ) -> Result<(CudaStorage, [Option<CudaStorage>; 2])> {
        let place = Place::of(hidden.0)?;
        let (h, w, t) = (place.matrix(hidden)?, place.matrix(head)?, place.matrix(teacher)?);
        let normalizer = self.counting.divisor(h.rows);
        let grad = |wanted: bool, of: &Found| {
            wanted.then(|| place.buffer(DType::F32, of.rows, of.columns)).transpose()
        };
        let (to_hidden, to_head) = (grad(wanted[0], &h)?, grad(wanted[1], &w)?);
        let (storage, sums) = value(&place, normalizer)?;
        let over = |grad: &Option<(CudaStorage, Found)>| {
            grad.as_ref().map(|(_, to)| Gradient { to: *to, adds: false })
        };
        let call = LinearCall {
            device: place.device,
            lt: lt(place.device.ordinal()).map_err(ours)?,
            stream: place.handle(),
            hidden: h,
            head: w,
            teacher: match teacher_head {
                Some(head) => Teacher::Product(t, place.matrix(head)?),
                None => Teacher::Logits(t),
            },
            hidden_grad: over(&to_hidden),
            head_grad: over(&to_head),
            weights: &|n| self.counting.weight(n),
            grad_factor: 1.0 / normalizer,
            sums,
        };
        let chunks = call.chunks(&self.spec).map_err(ours)?;
        let workspace = place.bytes(chunks.bytes)?;
        let start = place.address(&workspace).cast();
        // SAFETY: memory of candle on this device, in the order of its stream, which frees in order too.
        unsafe { call.run(&self.spec.dense, &chunks, start) }.map_err(ours)?;
        let grads = [to_hidden, to_head].map(|grad| grad.map(|(storage, _)| storage));
        Ok((storage, grads))
    }
}

/// Multiplies a kept gradient by the scalar `upstream`, on the device; reads and writes nothing if that is 1.
pub(super) fn scale(
    grad: &mut CudaStorage,
    (rows, columns): (usize, usize),
    upstream: &Tensor,
) -> Result<()> {
    let upstream = upstream.to_dtype(candle_core::DType::F32)?;
    let (factor, layout) = upstream.storage_and_layout();
    let Storage::Cuda(factor) = &*factor else { bail!("a cotangent on another device") };
    let CudaStorageSlice::F32(slice) = &factor.slice else { bail!("a cotangent of no float") };
    let place = Place::of(grad)?;
    let whole = Layout::contiguous((rows, columns));
    let to = place.matrix((grad, &whole))?.matrix;
    let offset = layout.start_offset() * size_of::<f32>();
    let factor = place.address(slice).wrapping_byte_add(offset).cast_const();
    let arguments = ScaleArgs { to, factor, columns: columns as i32, reserved: 0 };
    let shape = Shape { threads: 256, cluster: 1, shared_bytes: SUM_SHARED };
    // SAFETY: arguments of the kernel; a gradient that is ours alone, in the order of candle's stream.
    unsafe { place.device.launch("linear_scale", shape, rows, &arguments, place.handle()) }
        .map_err(ours)
}
