//! Tensors of any type, stride and offset, with guard bytes around them.

use crate::reference::Array;
use half::{bf16, f16};
use limbeck_sdk::abi;
use std::cell::Cell;

thread_local! {
    /// Where this thread's tensors are said to lie.
    pub static DEVICE: Cell<abi::DLDevice> = const { Cell::new(abi::DLDevice::CPU) };
}

/// Memory of one tensor with guard bytes around it.
pub struct Buffer {
    name: String,
    pub dtype: abi::DLDataType,
    shape: Vec<i64>,
    strides: Vec<i64>,
    bytes: Vec<u64>,
    offset: usize,
    pub device: abi::DLDevice,
    pub flags: u64,
}

const GUARD: usize = 64;

impl Buffer {
    /// A buffer whose rows are `gap` elements further apart than they are wide, `shift` elements in.
    pub fn new(
        name: &str,
        dtype: abi::DLDataType,
        array: &Array,
        (gap, shift): (usize, usize),
    ) -> Self {
        let shape: Vec<i64> = array.shape.iter().map(|d| *d as i64).collect();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            let extra = if axis + 1 == shape.len() && axis == 1 { gap as i64 } else { 0 };
            strides[axis - 1] = strides[axis] * shape[axis].max(1) + extra;
        }
        let span = shape.iter().zip(&strides).map(|(d, s)| (d - 1).max(0) * s).sum::<i64>() + 1;
        let offset = GUARD + shift * dtype.bytes();
        let bytes = vec![u64::MAX; (offset + span as usize * dtype.bytes() + GUARD).div_ceil(8)];
        let name = name.to_owned();
        let device = DEVICE.get();
        let mut buffer = Self { name, dtype, shape, strides, bytes, offset, device, flags: 0 };
        buffer.fill(&array.data);
        buffer
    }

    fn places(&self) -> Vec<usize> {
        let count = self.shape.iter().product::<i64>() as usize;
        let place = |mut k: usize| {
            let mut at = 0;
            for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
                at += k % *size as usize * *stride as usize;
                k /= *size as usize;
            }
            self.offset + at * self.dtype.bytes()
        };
        (0..count).map(place).collect()
    }

    pub fn fill(&mut self, data: &[f64]) {
        for (at, x) in self.places().into_iter().zip(data) {
            let raw: Vec<u8> = match self.dtype {
                abi::DLDataType::F32 => (*x as f32).to_ne_bytes().to_vec(),
                abi::DLDataType::F64 => x.to_ne_bytes().to_vec(),
                abi::DLDataType::F16 => f16::from_f64(*x).to_ne_bytes().to_vec(),
                abi::DLDataType::BF16 => bf16::from_f64(*x).to_ne_bytes().to_vec(),
                abi::DLDataType::I64 => (*x as i64).to_ne_bytes().to_vec(),
                other => panic!("{other:?}"),
            };
            self.raw_mut()[at..at + raw.len()].copy_from_slice(&raw);
        }
    }

    fn raw_mut(&mut self) -> &mut [u8] {
        let len = self.bytes.len() * 8;
        // SAFETY: the vector's own memory.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), len) }
    }

    fn raw(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() * 8) }
    }

    pub fn read(&self) -> Vec<f64> {
        let entry = |at: usize| {
            let raw = &self.raw()[at..at + self.dtype.bytes()];
            match self.dtype {
                abi::DLDataType::F32 => f64::from(f32::from_ne_bytes(raw.try_into().expect("4"))),
                abi::DLDataType::F64 => f64::from_ne_bytes(raw.try_into().expect("8")),
                abi::DLDataType::F16 => f16::from_ne_bytes(raw.try_into().expect("2")).to_f64(),
                abi::DLDataType::BF16 => bf16::from_ne_bytes(raw.try_into().expect("2")).to_f64(),
                other => panic!("{other:?}"),
            }
        };
        self.places().into_iter().map(entry).collect()
    }

    /// Whether all bytes outside the elements are as they were made.
    pub fn guards_hold(&self) -> bool {
        let mut inside = vec![false; self.bytes.len() * 8];
        for at in self.places() {
            inside[at..at + self.dtype.bytes()].fill(true);
        }
        self.raw().iter().zip(&inside).all(|(byte, inside)| *inside || *byte == 0xff)
    }

    pub fn tensor(&mut self) -> abi::Tensor {
        abi::Tensor {
            name: abi::Str::new(&self.name),
            t: abi::DLTensor {
                data: self.bytes.as_mut_ptr().cast(),
                device: self.device,
                ndim: self.shape.len() as i32,
                dtype: self.dtype,
                shape: self.shape.as_mut_ptr(),
                strides: self.strides.as_mut_ptr(),
                byte_offset: self.offset as u64,
            },
            flags: self.flags,
            reserved: 0,
        }
    }
}
