//! Tensors in memory that notices what it should not have to: guard bands, gaps between rows, pages that may not be
//! written or touched.
//!
//! Values go in and out as `f64`; every element type of the boundary fits (integers here stay below 2^53).

use crate::tensor::DType;
use half::{bf16, f16};
use limbeck_abi as abi;
use std::ptr::NonNull;

/// What guard bytes and gaps hold. As f32 it is -2.87e-16: harmless when read by mistake, unlikely when written.
const PATTERN: u8 = 0xA5;
/// Bytes of a guard band.
const BAND: usize = 256;

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row-major, no gaps, bands of known bytes around it.
    Banded,
    /// Gaps between rows, a byte offset, bands around it.
    Strided,
    /// Ends where an untouchable page begins; read-only if so asked.
    Edge,
}

/// Mapped pages with untouchable neighbours.
struct Pages {
    base: NonNull<u8>,
    total: usize,
    page: usize,
    len: usize,
}

impl Pages {
    fn new(len: usize) -> Option<Self> {
        // SAFETY: plain query.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        let inner = len.max(1).div_ceil(page) * page;
        let total = inner + 2 * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        let base =
            NonNull::new(base.cast::<u8>()).filter(|b| b.as_ptr().cast() != libc::MAP_FAILED)?;
        let pages = Self { base, total, page, len };
        pages.protect(libc::PROT_READ | libc::PROT_WRITE);
        Some(pages)
    }

    /// Start of the data: flush with the end of the inner pages.
    fn data(&self) -> *mut u8 {
        self.base.as_ptr().wrapping_add(self.total - self.page - self.len)
    }

    fn protect(&self, mode: i32) {
        let inner = self.base.as_ptr().wrapping_add(self.page).cast();
        // SAFETY: the inner pages of this mapping.
        unsafe { libc::mprotect(inner, self.total - 2 * self.page, mode) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, made in `new`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.total) };
    }
}

enum Memory {
    Heap(Box<[u64]>),
    Pages(Pages),
}

/// A tensor under observation.
pub struct Watched {
    memory: Memory,
    /// Bytes before the first byte that belongs to the tensor's extent.
    lead: usize,
    /// Bytes from the first to the last element, gaps included.
    extent: usize,
    byte_offset: usize,
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl Watched {
    /// Memory for a tensor, filled with the pattern.
    pub fn new(dtype: DType, shape: &[i64], layout: Layout) -> Self {
        let strides = match layout {
            Layout::Strided => gapped_strides(shape),
            _ => crate::tensor::contiguous_strides(shape),
        };
        let is_empty = shape.contains(&0);
        let last: i64 = shape.iter().zip(&strides).map(|(d, s)| (d - 1) * s).sum();
        let elements = if is_empty { 0 } else { last as usize + 1 };
        let extent = elements * dtype.bytes();
        let byte_offset = if layout == Layout::Strided { 3 * dtype.bytes() } else { 0 };
        let edge = if layout == Layout::Edge { Pages::new(extent) } else { None };
        let (memory, lead) = match edge {
            Some(pages) => (Memory::Pages(pages), 0),
            None => {
                let words = (extent + byte_offset).div_ceil(8) + 2 * BAND / 8;
                (
                    Memory::Heap(vec![u64::from_ne_bytes([PATTERN; 8]); words].into()),
                    BAND + byte_offset,
                )
            }
        };
        Self { memory, lead, extent, byte_offset, dtype, shape: shape.to_vec(), strides }
    }

    /// With these values in row-major order.
    pub fn filled(dtype: DType, shape: &[i64], layout: Layout, values: &[f64]) -> Self {
        let tensor = Self::new(dtype, shape, layout);
        tensor.write(values);
        tensor
    }

    fn start(&self) -> *mut u8 {
        match &self.memory {
            Memory::Heap(words) => words.as_ptr().cast::<u8>().cast_mut().wrapping_add(self.lead),
            Memory::Pages(pages) => pages.data(),
        }
    }

    /// Makes it read-only (edge layout; elsewhere nothing happens).
    pub fn lock(&self) {
        if let Memory::Pages(pages) = &self.memory {
            pages.protect(libc::PROT_READ);
        }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// Byte position of the element with this row-major index.
    fn position(&self, mut index: usize) -> usize {
        let mut at = 0;
        for (d, s) in self.shape.iter().zip(&self.strides).rev() {
            at += (index % *d as usize) * *s as usize;
            index /= *d as usize;
        }
        at * self.dtype.bytes()
    }

    /// Overwrites the elements, in row-major order; rounds to the element type.
    pub fn write(&self, values: &[f64]) {
        for (index, value) in values.iter().enumerate().take(self.elements()) {
            let bytes = encode(self.dtype, *value);
            // SAFETY: `position` is inside the extent, the memory is this tensor's.
            unsafe {
                let at = self.start().add(self.position(index));
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, self.dtype.bytes());
            }
        }
    }

    /// The elements in row-major order.
    pub fn read(&self) -> Vec<f64> {
        let one = |index| {
            let mut bytes = [0; 8];
            // SAFETY: as in `write`.
            unsafe {
                let at = self.start().add(self.position(index));
                std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), self.dtype.bytes());
            }
            decode(self.dtype, bytes)
        };
        (0..self.elements()).map(one).collect()
    }

    /// Whether bands and gaps still hold the pattern.
    pub fn is_intact(&self) -> bool {
        let Memory::Heap(words) = &self.memory else { return true };
        // SAFETY: the bytes of the box.
        let bytes =
            unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), words.len() * 8) };
        let mut is_element = vec![false; bytes.len()];
        for index in 0..self.elements() {
            let at = self.lead + self.position(index);
            is_element[at..at + self.dtype.bytes()].fill(true);
        }
        bytes.iter().zip(is_element).all(|(byte, element)| element || *byte == PATTERN)
    }

    /// The view that crosses the boundary. Borrows `name` and this tensor's shape.
    pub fn view(&self, name: &str, flags: u64) -> abi::Tensor {
        debug_assert!(self.extent == 0 || !self.start().is_null());
        abi::Tensor {
            name: abi::Str::new(name),
            t: abi::DLTensor {
                data: self.start().wrapping_sub(self.byte_offset).cast(),
                device: abi::DLDevice::CPU,
                ndim: self.shape.len() as i32,
                dtype: self.dtype.dl(),
                shape: self.shape.as_ptr().cast_mut(),
                strides: self.strides.as_ptr().cast_mut(),
                byte_offset: self.byte_offset as u64,
            },
            flags,
            reserved: 0,
        }
    }
}

/// Strides with three unused elements after each innermost row; a vector gets every second element.
fn gapped_strides(shape: &[i64]) -> Vec<i64> {
    match shape {
        [] => Vec::new(),
        [_] => vec![2],
        _ => {
            let mut padded = shape.to_vec();
            if let Some(last) = padded.last_mut() {
                *last += 3;
            }
            crate::tensor::contiguous_strides(&padded)
        }
    }
}

fn encode(dtype: DType, value: f64) -> [u8; 8] {
    let mut out = [0; 8];
    let mut put = |bytes: &[u8]| out[..bytes.len()].copy_from_slice(bytes);
    match dtype {
        DType::F32 => put(&(value as f32).to_ne_bytes()),
        DType::F64 => put(&value.to_ne_bytes()),
        DType::F16 => put(&f16::from_f64(value).to_ne_bytes()),
        DType::BF16 => put(&bf16::from_f64(value).to_ne_bytes()),
        DType::I64 => put(&(value as i64).to_ne_bytes()),
        DType::I32 => put(&(value as i32).to_ne_bytes()),
        DType::U8 => put(&[value as u8]),
        DType::U32 => put(&(value as u32).to_ne_bytes()),
    }
    out
}

fn decode(dtype: DType, b: [u8; 8]) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
        DType::F64 => f64::from_ne_bytes(b),
        DType::F16 => f16::from_ne_bytes([b[0], b[1]]).to_f64(),
        DType::BF16 => bf16::from_ne_bytes([b[0], b[1]]).to_f64(),
        DType::I64 => i64::from_ne_bytes(b) as f64,
        DType::I32 => f64::from(i32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
        DType::U8 => f64::from(b[0]),
        DType::U32 => f64::from(u32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_every_type_and_layout() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        for dtype in DType::ALL {
            for layout in [Layout::Banded, Layout::Strided, Layout::Edge] {
                let tensor = Watched::filled(dtype, &[2, 3], layout, &values);
                assert_eq!(tensor.read(), values, "{dtype:?} {layout:?}");
                assert!(tensor.is_intact(), "{dtype:?} {layout:?}");
            }
        }
    }

    #[test]
    fn a_byte_beside_the_elements_is_noticed() {
        for (layout, index) in [(Layout::Banded, 6), (Layout::Strided, 3), (Layout::Strided, -1)] {
            let tensor = Watched::filled(DType::F32, &[2, 3], layout, &[0.0; 6]);
            // SAFETY: inside the tensor's own allocation, on purpose outside its elements.
            unsafe { *tensor.start().offset(4 * index) = 0 };
            assert!(!tensor.is_intact(), "{layout:?} {index}");
        }
    }

    #[test]
    fn an_empty_tensor_has_no_elements() {
        let tensor = Watched::filled(DType::F32, &[0, 3], Layout::Banded, &[]);
        assert!(tensor.read().is_empty() && tensor.is_intact());
    }
}
