//! DLPack 1.x structs as `dlpack.h` lays them out. Enumerations are plain integers here, so an unknown value is legal.

use core::ffi::c_void;

/// `kDLCPU`.
pub const DL_CPU: i32 = 1;
/// `kDLCUDA`.
pub const DL_CUDA: i32 = 2;
/// `kDLInt`.
pub const DL_INT: u8 = 0;
/// `kDLUInt`.
pub const DL_UINT: u8 = 1;
/// `kDLFloat`.
pub const DL_FLOAT: u8 = 2;
/// `kDLBfloat`.
pub const DL_BFLOAT: u8 = 4;
/// `kDLBool`.
pub const DL_BOOL: u8 = 6;

/// `DLPackVersion`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DLPackVersion {
    /// Breaking changes.
    pub major: u32,
    /// Additions.
    pub minor: u32,
}

/// `DLDevice`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DLDevice {
    /// A `DL_*` device type.
    pub device_type: i32,
    /// Ordinal, 0 for the CPU.
    pub device_id: i32,
}

impl DLDevice {
    /// The CPU.
    pub const CPU: Self = Self { device_type: DL_CPU, device_id: 0 };
}

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DLDataType {
    /// A `DL_*` type code.
    pub code: u8,
    /// Bits of one lane.
    pub bits: u8,
    /// Lanes, 1 for scalars.
    pub lanes: u16,
}

impl DLDataType {
    /// 32-bit float.
    pub const F32: Self = Self { code: DL_FLOAT, bits: 32, lanes: 1 };
    /// 64-bit float.
    pub const F64: Self = Self { code: DL_FLOAT, bits: 64, lanes: 1 };
    /// 16-bit IEEE float.
    pub const F16: Self = Self { code: DL_FLOAT, bits: 16, lanes: 1 };
    /// bfloat16.
    pub const BF16: Self = Self { code: DL_BFLOAT, bits: 16, lanes: 1 };
    /// 64-bit signed integer.
    pub const I64: Self = Self { code: DL_INT, bits: 64, lanes: 1 };
    /// 32-bit signed integer.
    pub const I32: Self = Self { code: DL_INT, bits: 32, lanes: 1 };
    /// 8-bit unsigned integer.
    pub const U8: Self = Self { code: DL_UINT, bits: 8, lanes: 1 };
    /// 32-bit unsigned integer.
    pub const U32: Self = Self { code: DL_UINT, bits: 32, lanes: 1 };

    /// Bytes of one element; sub-byte types round up.
    pub const fn bytes(self) -> usize {
        (self.bits as usize * self.lanes as usize).div_ceil(8)
    }
}

/// `DLTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLTensor {
    /// Start of the allocation; see `byte_offset`.
    pub data: *mut c_void,
    /// Where `data` lives.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Element type.
    pub dtype: DLDataType,
    /// `ndim` sizes.
    pub shape: *mut i64,
    /// `ndim` strides in elements; never NULL unless `ndim` is 0.
    pub strides: *mut i64,
    /// Offset of the first element from `data`.
    pub byte_offset: u64,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
#[derive(Debug)]
pub struct DLManagedTensorVersioned {
    /// DLPack version of the producer.
    pub version: DLPackVersion,
    /// The producer's own.
    pub manager_ctx: *mut c_void,
    /// Frees the tensor and this struct.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    /// `DLPACK_FLAG_*` bits.
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DLTensor,
}

const _: () = {
    assert!(size_of::<DLTensor>() == 48);
    assert!(size_of::<DLManagedTensorVersioned>() == 80);
};
