//! Tensors as the host sees them: a handle, a shape, an element type.
//!
//! Cheap to clone; every clone shares the memory. The host reads CPU memory only where it must (labels, metrics,
//! checkpoints) and otherwise hands views on. Memory comes from the host, from a device, from a plugin (managed, freed by
//! its own deleter when the last clone drops, on the step thread) or is borrowed from a plugin (parameters).

mod transfer;

use crate::device::DeviceMemory;
use limbeck_abi as abi;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

/// Element types that cross the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit unsigned integer, also masks.
    U8,
    /// 32-bit unsigned integer.
    U32,
}

impl DType {
    /// Every type, for tables.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F64, Self::F16, Self::BF16, Self::I64, Self::I32, Self::U8, Self::U32];

    /// The DLPack type.
    pub const fn dl(self) -> abi::DLDataType {
        match self {
            Self::F32 => abi::DLDataType::F32,
            Self::F64 => abi::DLDataType::F64,
            Self::F16 => abi::DLDataType::F16,
            Self::BF16 => abi::DLDataType::BF16,
            Self::I64 => abi::DLDataType::I64,
            Self::I32 => abi::DLDataType::I32,
            Self::U8 => abi::DLDataType::U8,
            Self::U32 => abi::DLDataType::U32,
        }
    }

    /// The type of a DLPack type, if the host knows it.
    pub fn from_dl(dl: abi::DLDataType) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.dl() == dl)
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        self.dl().bytes()
    }

    /// `f32`, `bf16`, `i64`: as users write and read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::U32 => "u32",
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
}

/// Rust types that are elements.
pub trait Element: Copy + 'static {
    /// Their [`DType`].
    const DTYPE: DType;
}
macro_rules! element {
    ($($rust:ty => $dtype:ident),*) => {$(impl Element for $rust { const DTYPE: DType = DType::$dtype; })*};
}
element!(f32 => F32, f64 => F64, half::f16 => F16, half::bf16 => BF16, i64 => I64, i32 => I32, u8 => U8, u32 => U32);

/// Host memory, zeroed, aligned to 256 bytes so that SIMD and DLPack peers are content.
struct HostMemory {
    data: NonNull<u8>,
    layout: std::alloc::Layout,
}

impl HostMemory {
    fn zeroed(bytes: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(bytes.max(1), 256)
            .unwrap_or_else(|_| std::alloc::handle_alloc_error(std::alloc::Layout::new::<u8>()));
        // SAFETY: the layout has a non-zero size.
        let data = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(data) = NonNull::new(data) else { std::alloc::handle_alloc_error(layout) };
        Self { data, layout }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`, freed once.
        unsafe { std::alloc::dealloc(self.data.as_ptr(), self.layout) }
    }
}

enum Memory {
    /// With its copy on a device, made when a call there first reads it; not written any more from then on.
    Host(HostMemory, OnceLock<Tensor>),
    Device(#[expect(dead_code, reason = "held for its drop")] DeviceMemory),
    /// A plugin's tensor; its deleter runs when the last clone drops.
    Managed(*mut abi::DLManagedTensorVersioned),
    /// Memory that someone else keeps alive (a parameter of an active instance).
    Borrowed,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Managed(tensor) = *self {
            // SAFETY: R5 and `lmb_forward.outputs`: the host calls each deleter once; the owner of this tensor keeps
            // it on the step thread.
            unsafe {
                if let Some(deleter) = (*tensor).deleter {
                    deleter(tensor);
                }
            }
        }
    }
}

// SAFETY: what the memory holds is plain data; the run session keeps managed tensors on the step thread.
unsafe impl Send for Memory {}
// SAFETY: as above; writes go through `Tensor::data_mut`, whose callers own the tensor's contents.
unsafe impl Sync for Memory {}

/// A view of memory, shared by its clones.
#[derive(Clone)]
pub struct Tensor {
    memory: Arc<Memory>,
    data: *mut c_void,
    dtype: DType,
    device: abi::DLDevice,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

// SAFETY: see `Memory`.
unsafe impl Send for Tensor {}
// SAFETY: see `Memory`.
unsafe impl Sync for Tensor {}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype.name(), self.shape)
    }
}

/// Row-major strides of `shape`, in elements.
pub fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

impl Tensor {
    /// Zeros in host memory.
    pub fn zeros(dtype: DType, shape: &[i64]) -> Self {
        let elements: i64 = shape.iter().product();
        let memory = HostMemory::zeroed(elements as usize * dtype.bytes());
        Self {
            data: memory.data.as_ptr().cast(),
            memory: Arc::new(Memory::Host(memory, OnceLock::new())),
            dtype,
            device: abi::DLDevice::CPU,
            shape: shape.to_vec(),
            strides: contiguous_strides(shape),
        }
    }

    /// A copy of `values` in host memory. Panics if the lengths differ: a caller's bug.
    pub fn from_slice<T: Element>(values: &[T], shape: &[i64]) -> Self {
        let tensor = Self::zeros(T::DTYPE, shape);
        assert_eq!(values.len(), tensor.elements(), "shape {shape:?} for {} values", values.len());
        // SAFETY: fresh memory of this type and length, not shared yet.
        unsafe { tensor.data_mut::<T>() }.copy_from_slice(values);
        tensor
    }

    /// Zeros in host memory that `fill` overwrites as bytes, native byte order.
    pub fn filled(dtype: DType, shape: &[i64], fill: impl FnOnce(&mut [u8])) -> Self {
        let tensor = Self::zeros(dtype, shape);
        // SAFETY: fresh memory, not shared yet.
        fill(unsafe { tensor.raw_mut() });
        tensor
    }

    /// Takes over a plugin's managed tensor; its deleter runs when the last clone drops. `None` if its element type
    /// is unknown or a pointer it must have is NULL (the deleter has run then).
    ///
    /// # Safety
    /// `tensor` is a valid DLPack 1 tensor that nobody else will delete.
    pub unsafe fn from_managed(tensor: *mut abi::DLManagedTensorVersioned) -> Option<Self> {
        let memory = Arc::new(Memory::Managed(NonNull::new(tensor)?.as_ptr()));
        // SAFETY: the caller's promise.
        let dl = unsafe { &(*tensor).dl_tensor };
        // SAFETY: the caller's promise.
        unsafe { Self::from_dl(dl, memory) }
    }

    /// A view of memory that somebody else keeps alive.
    ///
    /// # Safety
    /// `dl` is a valid DLPack tensor whose memory outlives every clone of the result.
    pub unsafe fn borrowed(dl: &abi::DLTensor) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::from_dl(dl, Arc::new(Memory::Borrowed)) }
    }

    unsafe fn from_dl(dl: &abi::DLTensor, memory: Arc<Memory>) -> Option<Self> {
        let ndim = usize::try_from(dl.ndim).ok()?;
        let list = |p: *const i64| {
            if ndim == 0 {
                return Some(Vec::new());
            }
            // SAFETY: a valid tensor's shape and strides have `ndim` entries.
            NonNull::new(p.cast_mut())
                .map(|p| unsafe { std::slice::from_raw_parts(p.as_ptr(), ndim) }.to_vec())
        };
        let shape = list(dl.shape)?;
        let strides = list(dl.strides).unwrap_or_else(|| contiguous_strides(&shape));
        if shape.iter().any(|d| *d < 0) || (dl.data.is_null() && shape.iter().all(|d| *d > 0)) {
            return None;
        }
        Some(Self {
            data: dl.data.wrapping_byte_add(dl.byte_offset as usize),
            memory,
            dtype: DType::from_dl(dl.dtype)?,
            device: dl.device,
            shape,
            strides,
        })
    }

    /// Sizes.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[i64] {
        &self.strides
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> abi::DLDevice {
        self.device
    }

    /// Address of the first element.
    pub fn address(&self) -> *mut c_void {
        self.data
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// Bytes of the elements, gaps not counted.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    /// Size of the first axis; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().map_or(1, |d| *d as usize)
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let expected = contiguous_strides(&self.shape);
        self.elements() == 0
            || self
                .shape
                .iter()
                .zip(self.strides.iter().zip(&expected))
                .all(|(d, (s, e))| *d == 1 || s == e)
    }

    /// The elements. `None` unless on the CPU, contiguous and of type `T`.
    pub fn data<T: Element>(&self) -> Option<&[T]> {
        if T::DTYPE != self.dtype || self.device != abi::DLDevice::CPU || !self.is_contiguous() {
            return None;
        }
        if self.elements() == 0 {
            return Some(&[]);
        }
        // SAFETY: checked type, place and layout; the memory lives as long as `self`.
        Some(unsafe { std::slice::from_raw_parts(self.data.cast(), self.elements()) })
    }

    /// The elements, writable. Panics unless on the CPU, contiguous and of type `T`.
    ///
    /// # Safety
    /// No other reference to the elements is alive while the result is.
    #[expect(
        clippy::mut_from_ref,
        reason = "clones share memory as views do; the caller rules out aliasing"
    )]
    pub unsafe fn data_mut<T: Element>(&self) -> &mut [T] {
        assert!(
            T::DTYPE == self.dtype && self.device == abi::DLDevice::CPU && self.is_contiguous(),
            "{self:?} is no contiguous CPU tensor of {}",
            T::DTYPE.name()
        );
        if self.elements() == 0 {
            return &mut [];
        }
        // SAFETY: checked above; uniqueness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.elements()) }
    }

    /// Raw bytes of a contiguous CPU tensor, else `None`.
    pub fn raw(&self) -> Option<&[u8]> {
        if self.device != abi::DLDevice::CPU || !self.is_contiguous() {
            return None;
        }
        if self.elements() == 0 {
            return Some(&[]);
        }
        // SAFETY: contiguous CPU memory of `bytes()` bytes, alive with `self`.
        Some(unsafe { std::slice::from_raw_parts(self.data.cast(), self.bytes()) })
    }

    /// Raw bytes, writable. Panics unless contiguous on the CPU.
    ///
    /// # Safety
    /// As [`Tensor::data_mut`].
    #[expect(clippy::mut_from_ref, reason = "as `data_mut`")]
    pub unsafe fn raw_mut(&self) -> &mut [u8] {
        assert!(
            self.device == abi::DLDevice::CPU && self.is_contiguous(),
            "{self:?} is not contiguous on the CPU"
        );
        if self.elements() == 0 {
            return &mut [];
        }
        // SAFETY: as above; uniqueness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.bytes()) }
    }

    /// The same elements row-major without gaps: itself if they lie so, else a copy. `None` unless on the CPU.
    pub fn contiguous(&self) -> Option<Self> {
        if self.device != abi::DLDevice::CPU {
            return None;
        }
        if self.is_contiguous() {
            return Some(self.clone());
        }
        let size = self.dtype.bytes();
        let mut index = vec![0i64; self.shape.len()];
        Some(Self::filled(self.dtype, &self.shape, |bytes| {
            for element in bytes.chunks_exact_mut(size) {
                let at: i64 = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
                let from = self.data.cast::<u8>().wrapping_offset(at as isize * size as isize);
                // SAFETY: strides of a valid tensor keep every index below its shape inside its memory.
                element.copy_from_slice(unsafe { std::slice::from_raw_parts(from, size) });
                for (i, d) in index.iter_mut().zip(&self.shape).rev() {
                    *i += 1;
                    if *i < *d {
                        break;
                    }
                    *i = 0;
                }
            }
        }))
    }

    /// Rows `[from, to)` of the first axis, sharing memory. Panics if out of range: a caller's bug.
    #[must_use]
    pub fn slice_rows(&self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows(), "rows {from}..{to} of {self:?}");
        let mut slice = self.clone();
        slice.shape[0] = (to - from) as i64;
        let offset = from as i64 * self.strides[0] * self.dtype.bytes() as i64;
        slice.data = self.data.wrapping_byte_offset(offset as isize);
        slice
    }

    /// Same elements under another shape, sharing memory; `None` unless contiguous and of equal size.
    pub fn reshape(&self, shape: &[i64]) -> Option<Self> {
        if !self.is_contiguous() || shape.iter().product::<i64>() as usize != self.elements() {
            return None;
        }
        let mut view = self.clone();
        view.shape = shape.to_vec();
        view.strides = contiguous_strides(shape);
        Some(view)
    }

    /// The ABI view, borrowing `name` and `self`'s shape: keep both alive during the call.
    pub fn view(&self, name: &str, flags: u64) -> abi::Tensor {
        abi::Tensor {
            name: abi::Str::new(name),
            t: abi::DLTensor {
                data: self.data,
                device: self.device,
                ndim: self.shape.len() as i32,
                dtype: self.dtype.dl(),
                shape: self.shape.as_ptr().cast_mut(),
                strides: self.strides.as_ptr().cast_mut(),
                byte_offset: 0,
            },
            flags,
            reserved: 0,
        }
    }
}

/// An `lmb_tensor` that says only "absent".
pub fn absent(name: &str) -> abi::Tensor {
    abi::Tensor {
        name: abi::Str::new(name),
        t: abi::DLTensor {
            data: std::ptr::null_mut(),
            device: abi::DLDevice::CPU,
            ndim: 0,
            dtype: abi::DLDataType::F32,
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        },
        flags: abi::TENSOR_ABSENT,
        reserved: 0,
    }
}

/// Shape and type without data (SHAPE_ONLY); -1 is a dimension that is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<i64>,
}
