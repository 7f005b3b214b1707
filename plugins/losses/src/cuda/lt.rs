//! cuBLASLt by `dlopen`: the product of two matrices, for losses on hidden states times a head.
//!
//! Opened when such a loss is activated on a GPU; without it activation says which library was looked for. Sums are
//! f32, for 16-bit factors too. The library's first proposal is taken and kept, so equal shapes give equal bits.

use super::driver::symbol;
use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use limbeck_sdk::{DType, Error, Result};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// cuBLASLt of CUDA 13, in the folder `LIMBECK_CUDA_LIB_DIR` or where the loader looks.
const LIBRARY: &str = "libcublasLt.so.13";
const FOLDER: &str = "LIMBECK_CUDA_LIB_DIR";
/// Device memory that a product may use.
pub const WORKSPACE_BYTES: usize = 32 << 20;

// Of cublasLt.h, library_types.h.
const COMPUTE_F32: c_int = 68;
const DESC_TRANS_A: c_int = 3;
const DESC_TRANS_B: c_int = 4;
const PREF_WORKSPACE: c_int = 1;
const PREF_ALIGN: [c_int; 4] = [5, 6, 7, 8];
const TYPE_F32: c_int = 0;
const TYPE_F16: c_int = 2;
const TYPE_BF16: c_int = 14;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Proposal {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Proposal>() == 96);

type Opaque = *mut c_void;
type Read = *const c_void;
type Destroy = unsafe extern "C" fn(Opaque) -> c_int;

macro_rules! table {
    ($($field:ident = $symbol:literal: $type:ty;)*) => {
        /// The library's functions, named as in cublasLt.h.
        #[derive(Clone, Copy, Debug)]
        struct Table {
            $($field: $type,)*
        }

        impl Table {
            /// # Safety
            /// `library` is cuBLASLt and never closed.
            unsafe fn load(library: &Library) -> std::result::Result<Self, String> {
                // SAFETY: types as in cublasLt.h 13.0, unchanged since 11.
                unsafe { Ok(Self { $($field: symbol(library, $symbol)?,)* }) }
            }
        }
    };
}

table! {
    create = "cublasLtCreate": unsafe extern "C" fn(*mut Opaque) -> c_int;
    status_text = "cublasLtGetStatusString": unsafe extern "C" fn(c_int) -> *const c_char;
    desc_create = "cublasLtMatmulDescCreate": unsafe extern "C" fn(*mut Opaque, c_int, c_int) -> c_int;
    desc_set = "cublasLtMatmulDescSetAttribute":
        unsafe extern "C" fn(Opaque, c_int, Read, usize) -> c_int;
    desc_destroy = "cublasLtMatmulDescDestroy": Destroy;
    layout_create = "cublasLtMatrixLayoutCreate":
        unsafe extern "C" fn(*mut Opaque, c_int, u64, u64, i64) -> c_int;
    layout_destroy = "cublasLtMatrixLayoutDestroy": Destroy;
    pref_create = "cublasLtMatmulPreferenceCreate": unsafe extern "C" fn(*mut Opaque) -> c_int;
    pref_set = "cublasLtMatmulPreferenceSetAttribute":
        unsafe extern "C" fn(Opaque, c_int, Read, usize) -> c_int;
    pref_destroy = "cublasLtMatmulPreferenceDestroy": Destroy;
    heuristic = "cublasLtMatmulAlgoGetHeuristic":
        unsafe extern "C" fn(
            Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Proposal, *mut c_int,
        ) -> c_int;
    matmul = "cublasLtMatmul":
        unsafe extern "C" fn(
            Opaque, Opaque, Read, Read, Opaque, Read, Opaque, Read, Read, Opaque, *mut c_void, Opaque,
            *const Algorithm, *mut c_void, usize, *mut c_void,
        ) -> c_int;
}

/// A factor of a product, column-major.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    /// First element.
    pub data: *const c_void,
    /// f32, f16 or bf16.
    pub dtype: DType,
    /// Elements between columns.
    pub stride: usize,
    /// Taken with rows and columns exchanged.
    pub transposed: bool,
}

/// `D (+)= op(A) · op(B)`, D `[m, n]` and f32, column-major.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// m, n, k.
    pub size: [usize; 3],
    /// A, `[m, k]` after `op`.
    pub a: Factor,
    /// B, `[k, n]` after `op`.
    pub b: Factor,
    /// D.
    pub to: *mut c_void,
    /// Elements between columns of D.
    pub stride: usize,
    /// Adds to what is there.
    pub adds: bool,
}

/// What a proposal depends on: sizes, strides, alignments, types, transpositions.
type Key = ([usize; 6], [u32; 3], [c_int; 2], [bool; 2]);

impl Product {
    fn key(&self) -> Result<Key> {
        let [m, n, k] = self.size;
        let sizes = [m, n, k, self.a.stride, self.b.stride, self.stride];
        let aligns = [self.a.data, self.b.data, self.to.cast_const()].map(alignment);
        let types = [type_of(self.a.dtype)?, type_of(self.b.dtype)?];
        Ok((sizes, aligns, types, [self.a.transposed, self.b.transposed]))
    }
}

fn type_of(dtype: DType) -> Result<c_int> {
    match dtype {
        DType::F32 => Ok(TYPE_F32),
        DType::F16 => Ok(TYPE_F16),
        DType::BF16 => Ok(TYPE_BF16),
        other => Err(Error::unsupported(format!("cuBLASLt is not asked for {}", other.name()))),
    }
}

/// Bytes that an address is a multiple of, as far as the library cares.
fn alignment(address: *const c_void) -> u32 {
    1 << (address as usize).trailing_zeros().min(8)
}

static CHOSEN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Opens `path` instead of `libcublasLt.so.13`; of no effect once the library was asked for.
pub fn choose(path: &Path) {
    *CHOSEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
}

/// cuBLASLt on one GPU.
#[derive(Debug)]
pub struct Lt {
    table: Table,
    handle: Opaque,
    kept: Mutex<BTreeMap<Key, Algorithm>>,
}
// SAFETY: a handle that the library lets any thread use.
unsafe impl Send for Lt {}
// SAFETY: as above; the rest is behind a lock.
unsafe impl Sync for Lt {}

/// cuBLASLt on GPU `ordinal`, whose context is current; opened at the first call.
///
/// # Errors
/// LMB_DEVICE without the library.
pub fn lt(ordinal: i32) -> Result<&'static Lt> {
    static OPENED: Mutex<BTreeMap<i32, &'static Lt>> = Mutex::new(BTreeMap::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = opened.get(&ordinal) {
        return Ok(found);
    }
    let chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let folder = std::env::var_os(FOLDER).map(|folder| Path::new(&folder).join(LIBRARY));
    let paths = match chosen {
        Some(path) => vec![path],
        None => folder.into_iter().chain([LIBRARY.into()]).collect(),
    };
    let lt: &'static Lt = Box::leak(Box::new(Lt::open(&paths)?));
    opened.insert(ordinal, lt);
    Ok(lt)
}

impl Lt {
    /// Opens the first of `paths` that is there, and a handle on the GPU whose context is current.
    ///
    /// # Errors
    /// LMB_DEVICE naming what was looked for.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut why = Vec::new();
        for path in paths {
            match Self::table(path) {
                Ok(table) => return Self::with(table),
                Err(reason) => why.push(reason),
            }
        }
        let why = why.join("; ");
        Err(Error::device(format!(
            "no cuBLASLt: {why}. Install the libraries of CUDA 13, set {FOLDER} to the folder that has \
             {LIBRARY}, or use `device: cpu`"
        )))
    }

    fn table(path: &Path) -> std::result::Result<Table, String> {
        // SAFETY: the library's initialisers are its own affair; nothing of ours depends on them.
        let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
        let library =
            library.map_err(|error| format!("{} does not open: {error}", path.display()))?;
        // Never closed: the table lives as long as the process.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: cuBLASLt by name; not closed.
        unsafe { Table::load(library) }
    }

    fn with(table: Table) -> Result<Self> {
        let mut lt = Self { table, handle: ptr::null_mut(), kept: Mutex::new(BTreeMap::new()) };
        // SAFETY: an out-parameter of ours.
        let status = unsafe { (table.create)(&mut lt.handle) };
        lt.check("cublasLtCreate", status)?;
        Ok(lt)
    }

    fn check(&self, doing: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: takes any number.
        let text = unsafe { (self.table.status_text)(status) };
        let text = if text.is_null() {
            format!("status {status}")
        } else {
            // SAFETY: a static string of the library.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let error = Error::device(format!("{doing}: {text}"));
        Err(error.note("native_code", status.to_string()))
    }

    /// Puts a product on the stream.
    ///
    /// # Errors
    /// LMB_UNSUPPORTED for sizes and strides that the library has no algorithm for, what it says else.
    ///
    /// # Safety
    /// Factors, D and `workspace` of [`WORKSPACE_BYTES`] are memory of the handle's GPU that stays until the stream
    /// has passed; nobody else uses D and the workspace meanwhile.
    pub unsafe fn multiply(
        &self,
        product: &Product,
        workspace: *mut c_void,
        stream: *mut c_void,
    ) -> Result<()> {
        let call = Described::new(self, product)?;
        let algorithm = call.algorithm(product)?;
        let (one, beta) = (1.0f32, if product.adds { 1.0f32 } else { 0.0 });
        // SAFETY: live descriptors, scalars that the call reads before it returns; else the caller's promise.
        let status = unsafe {
            (self.table.matmul)(
                self.handle,
                call.operation.handle,
                (&raw const one).cast(),
                product.a.data,
                call.a.handle,
                product.b.data,
                call.b.handle,
                (&raw const beta).cast(),
                product.to.cast_const(),
                call.d.handle,
                product.to,
                call.d.handle,
                &algorithm,
                workspace,
                WORKSPACE_BYTES,
                stream,
            )
        };
        self.check("cublasLtMatmul", status)
    }
}

/// A descriptor of the library.
struct Owned {
    handle: Opaque,
    destroy: Destroy,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by the library, given back once.
        unsafe { (self.destroy)(self.handle) };
    }
}

/// The descriptors of one product.
struct Described<'a> {
    lt: &'a Lt,
    operation: Owned,
    a: Owned,
    b: Owned,
    d: Owned,
}

impl<'a> Described<'a> {
    fn new(lt: &'a Lt, product: &Product) -> Result<Self> {
        let table = &lt.table;
        let [m, n, k] = product.size;
        let mut handle = ptr::null_mut();
        // SAFETY: an out-parameter of ours.
        let status = unsafe { (table.desc_create)(&mut handle, COMPUTE_F32, TYPE_F32) };
        lt.check("cublasLtMatmulDescCreate", status)?;
        let operation = Owned { handle, destroy: table.desc_destroy };
        for (name, factor) in [(DESC_TRANS_A, &product.a), (DESC_TRANS_B, &product.b)] {
            let op = c_int::from(factor.transposed);
            // SAFETY: a live descriptor; four bytes that are read at once.
            let status = unsafe {
                (table.desc_set)(operation.handle, name, (&raw const op).cast(), size_of_val(&op))
            };
            lt.check("cublasLtMatmulDescSetAttribute", status)?;
        }
        let stored = |factor: &Factor, rows: usize, columns: usize| {
            let [rows, columns] = if factor.transposed { [columns, rows] } else { [rows, columns] };
            layout(lt, type_of(factor.dtype)?, [rows, columns], factor.stride)
        };
        let a = stored(&product.a, m, k)?;
        let b = stored(&product.b, k, n)?;
        let d = layout(lt, TYPE_F32, [m, n], product.stride)?;
        Ok(Self { lt, operation, a, b, d })
    }

    /// The library's first proposal for such a product, asked for once.
    fn algorithm(&self, product: &Product) -> Result<Algorithm> {
        let key = product.key()?;
        let mut kept = self.lt.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.get(&key) {
            return Ok(*found);
        }
        let found = self.propose(key.1)?.ok_or_else(|| {
            let message = format!("cuBLASLt has no algorithm for {product:?}");
            Error::unsupported(message)
        })?;
        kept.insert(key, found);
        Ok(found)
    }

    fn propose(&self, [a, b, d]: [u32; 3]) -> Result<Option<Algorithm>> {
        let (lt, table, most) = (self.lt, &self.lt.table, WORKSPACE_BYTES);
        let mut handle = ptr::null_mut();
        // SAFETY: an out-parameter of ours.
        lt.check("cublasLtMatmulPreferenceCreate", unsafe { (table.pref_create)(&mut handle) })?;
        let preference = Owned { handle, destroy: table.pref_destroy };
        let set = |name: c_int, value: *const c_void, bytes: usize| {
            // SAFETY: a live preference; bytes that are read at once.
            let status = unsafe { (table.pref_set)(preference.handle, name, value, bytes) };
            lt.check("cublasLtMatmulPreferenceSetAttribute", status)
        };
        set(PREF_WORKSPACE, (&raw const most).cast(), size_of_val(&most))?;
        for (name, bytes) in PREF_ALIGN.into_iter().zip([a, b, d, d]) {
            set(name, (&raw const bytes).cast(), size_of::<u32>())?;
        }
        let mut count = 0;
        let mut proposal = Proposal {
            algorithm: Algorithm([0; 8]),
            workspace_bytes: 0,
            state: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        // SAFETY: live descriptors, out-parameters of ours for one proposal.
        let status = unsafe {
            (table.heuristic)(
                lt.handle,
                self.operation.handle,
                self.a.handle,
                self.b.handle,
                self.d.handle,
                self.d.handle,
                preference.handle,
                1,
                &mut proposal,
                &mut count,
            )
        };
        const NOT_SUPPORTED: c_int = 15;
        if status == NOT_SUPPORTED || (status == 0 && (count == 0 || proposal.state != 0)) {
            return Ok(None);
        }
        lt.check("cublasLtMatmulAlgoGetHeuristic", status)?;
        Ok(Some(proposal.algorithm))
    }
}

fn layout(lt: &Lt, dtype: c_int, [rows, columns]: [usize; 2], stride: usize) -> Result<Owned> {
    let mut handle = ptr::null_mut();
    let (rows, columns, stride) = (rows as u64, columns as u64, stride as i64);
    // SAFETY: an out-parameter of ours.
    let status = unsafe { (lt.table.layout_create)(&mut handle, dtype, rows, columns, stride) };
    lt.check("cublasLtMatrixLayoutCreate", status)?;
    Ok(Owned { handle, destroy: lt.table.layout_destroy })
}
