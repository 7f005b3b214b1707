//! Which kernel serves a call and how it is launched. Pure: no pointer is followed, nothing is asked of a GPU.
//!
//! The choice depends on width, element types, alignment and device, never on the number of rows: a row's bits
//! are the same in every batch. Kernels are those of `cuda/`; `images` is held to this list by a test.

use super::arguments::type_number;
use limbeck_sdk::DType;

/// Shared memory of a cluster kernel before its slices: `kSlices` of `on_chip.cuh`.
const CLUSTER_CONTROL: usize = 768;
/// Shared memory of a block; three blocks of it share an SM of compute capability 9.0.
const CLUSTER_SHARED: usize = 76_800;
/// More blocks a cluster than this must be asked for.
pub const PORTABLE_CLUSTER: u32 = 8;
const MAX_CLUSTER: u32 = 16;
const CLUSTER_THREADS: u32 = 256;
/// A row this narrow is served by a warp.
const NARROW: usize = 1024;
/// Shared memory of a block kernel's sums: `kAfterScratch` of `single_sm80.cu`.
const BLOCK_SCRATCH: usize = 1024;
const BLOCK_THREADS: usize = 512;
/// Bytes of a row's share of the sums: `Slot` of `args.h`.
pub const SLOT_BYTES: usize = 16;
/// Shared memory of the kernels of `vector.cu`, which only sum.
pub const SUM_SHARED: usize = 1024;
const WARP: usize = 32;
/// Bytes of a kept column: `Kept` of `single.cuh`.
const KEPT_BYTES: usize = 12;
/// Kept columns of a sparse teacher at most.
pub const MAX_KEPT: usize = 1024;
/// Columns at most, so that column numbers of the last step still fit into 31 bits.
pub const MAX_COLUMNS: usize = 1 << 30;

/// How the elements of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the first element.
    pub address: usize,
    /// Between rows, in elements.
    pub row: i64,
    /// Between columns, in elements.
    pub column: i64,
    /// Element type.
    pub dtype: DType,
}

impl Layout {
    /// Whether rows start at 16-byte addresses and have no gaps between columns.
    pub fn is_packed(self) -> bool {
        let bytes = self.dtype.bytes();
        self.column == 1 && self.address.is_multiple_of(16) && (self.row * bytes as i64) % 16 == 0
    }
}

/// What a call is, as far as the choice of a kernel goes.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Columns that enter.
    pub width: usize,
    /// The student's rows.
    pub student: Layout,
    /// The teacher's dense rows.
    pub teacher: Option<Layout>,
    /// Where the gradient goes.
    pub grad: Option<Layout>,
    /// Columns are masked.
    pub masked: bool,
    /// The kernel has a version for clusters.
    pub clustered: bool,
    /// Kept columns of a sparse teacher.
    pub kept: Option<usize>,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// 80 for compute capability 8.0.
    pub compute: u32,
    /// Shared memory of a block at most.
    pub shared_bytes: usize,
    /// Blocks a cluster at most that can run; 0 without clusters.
    pub max_cluster: u32,
}

/// How a row is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A cluster of blocks, a slice each, on chip.
    Cluster {
        /// Blocks.
        blocks: u32,
        /// Columns of each.
        slice: usize,
        /// Dynamic shared memory of each.
        shared_bytes: usize,
    },
    /// A block, 16 bytes at a time.
    Packed,
    /// A block, element by element.
    Any,
}

/// The dimensions of a launch with one row a block or cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster; 1 without clusters.
    pub cluster: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// What a block of a cluster holds of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bytes of an element.
    pub bytes: usize,
    /// 2 with a dense teacher, else 1.
    pub tensors: usize,
    /// Kept columns of a sparse teacher.
    pub kept: Option<usize>,
}

impl Held {
    /// Shared memory of a block with `slice` columns.
    pub fn shared_bytes(self, slice: usize) -> usize {
        CLUSTER_CONTROL + self.tensors * self.bytes * slice + kept_bytes(self.kept, slice)
    }
}

/// The kept columns, and a bit a column.
fn kept_bytes(kept: Option<usize>, columns: usize) -> usize {
    kept.map_or(0, |kept| kept * KEPT_BYTES + columns.div_ceil(WARP) * 4)
}

/// The smallest cluster that holds a row of `width` columns.
///
/// `None`: too narrow to need it, or too wide for 16 blocks.
pub fn cluster(width: usize, held: Held, max_cluster: u32) -> Option<Route> {
    if width <= NARROW {
        return None;
    }
    let mut blocks = 1;
    while blocks <= max_cluster.min(MAX_CLUSTER) {
        let slice = width.div_ceil(blocks as usize).next_multiple_of(8);
        let shared_bytes = held.shared_bytes(slice);
        if shared_bytes <= CLUSTER_SHARED {
            return Some(Route::Cluster { blocks, slice, shared_bytes });
        }
        blocks *= 2;
    }
    None
}

/// Chooses the kernel of a call.
pub fn route(facts: &Facts, device: Capability) -> Route {
    let student = facts.student;
    let teacher = facts.teacher.unwrap_or(student);
    let packed = student.is_packed()
        && teacher.is_packed()
        && student.dtype == teacher.dtype
        && !facts.masked;
    if !packed {
        return Route::Any;
    }
    let tensors = 1 + usize::from(facts.teacher.is_some());
    let held = Held { bytes: student.dtype.bytes(), tensors, kept: facts.kept };
    let fits = facts.clustered && device.compute == 90;
    let on_chip = if fits { cluster(facts.width, held, device.max_cluster) } else { None };
    on_chip.unwrap_or(Route::Packed)
}

impl Route {
    /// Name of the kernel of `family` for elements of type `dtype`.
    pub fn kernel(self, family: &str, dtype: DType) -> String {
        match self {
            Self::Cluster { .. } => format!("{family}_{}_cluster", dtype.name()),
            Self::Packed => format!("{family}_{}", dtype.name()),
            Self::Any => format!("{family}_any"),
        }
    }

    /// Launch of a row of `width` columns; a sparse one keeps `kept` of them.
    pub fn shape(self, width: usize, dtype: DType, kept: Option<usize>) -> Shape {
        if let Self::Cluster { blocks, shared_bytes, .. } = self {
            return Shape { threads: CLUSTER_THREADS, cluster: blocks, shared_bytes };
        }
        let lanes = if self == Self::Packed { 16 / dtype.bytes() } else { 1 };
        let threads = width.div_ceil(lanes).next_multiple_of(WARP).clamp(WARP, BLOCK_THREADS);
        let shared_bytes = BLOCK_SCRATCH + kept_bytes(kept, width);
        Shape { threads: threads as u32, cluster: 1, shared_bytes }
    }
}

/// Whether the gradient can be stored 16 bytes at a time.
pub fn stores_vectors(grad: Option<Layout>) -> bool {
    grad.is_some_and(Layout::is_packed)
}

/// Whether ∂ℓ/∂q can be kept in 16 bits between the passes: not for a wider gradient, nor where it grows past
/// what 11 bits resolve.
pub fn keeps_narrow(grad: Option<Layout>, largest_u: f64) -> bool {
    grad.is_some_and(|grad| grad.dtype.bytes() == 2) && largest_u <= 1000.0
}

/// Families with an `_any`, `_f32`, `_f16` and `_bf16` kernel.
pub const FAMILIES: &[&str] = &[
    "fkl",
    "soft_ce",
    "rkl",
    "sym_kl",
    "tvd",
    "gjsd",
    "skl",
    "srkl",
    "ce",
    "sparse",
    "logit_mse",
    "hidden_mse",
    "cosine",
];
/// Families with a kernel for clusters as well.
pub const CLUSTERED: &[&str] = &["fkl", "soft_ce", "rkl", "sym_kl", "tvd", "gjsd", "skl", "srkl"];
/// Kernels without a family.
pub const OTHERS: &[&str] = &[
    "finish",
    "vector_combine",
    "vector_dot",
    "vector_adamw",
    "vector_total",
    "linear_list",
    "linear_copy",
    "linear_scale",
];

/// Float types that kernels take.
pub fn is_taken(dtype: DType) -> bool {
    type_number(dtype).is_some_and(|number| number < 3)
}
