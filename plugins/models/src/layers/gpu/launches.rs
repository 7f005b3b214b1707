//! The operations as launches: grids, workspaces, which kernel follows which.
//!
//! Refuses more elements than a launch numbers. Invariant: grids and strips follow from sizes alone, so sums have the same
//! order wherever they run.

use super::arguments::{Activate, Attend, Drop, Lookup, Norm, Strips, Sum, To};
use candle_core::{Result, bail};
use std::ptr::{null, null_mut};

/// What kernels run on.
pub(crate) trait Machine {
    /// Memory that launches on their way keep.
    type Memory;

    /// Runs `blocks` blocks of kernel `name`, of this machine's element type.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// `arguments` is the struct of that kernel; all it points to is memory of the device, of the sizes it says.
    unsafe fn launch<A: Copy>(&self, name: &str, grid: Grid, arguments: &A) -> Result<()>;

    /// Memory for `count` numbers of f32, of any contents, and its address.
    ///
    /// # Errors
    /// No memory.
    fn scratch(&self, count: usize) -> Result<(Self::Memory, To)>;

    /// Bytes of an element.
    fn element(&self) -> usize;
}

/// Blocks, their threads, and bytes of shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

// As in cuda/*.cuh.
const ELEMENT_THREADS: u32 = 256;
const LINE_THREADS: u32 = 128;
const SUM_THREADS: u32 = 256;
const WARP: usize = 32;
const STRIP: usize = 256;
const TABLE_COLUMNS: usize = 1024;
/// Tables of fewer rows are summed row by row: a block that adds thousands of uses up would hold all others back.
const SMALL_TABLE: usize = 8;

fn grid(blocks: usize, threads: u32, shared: usize) -> Result<Grid> {
    match i32::try_from(blocks) {
        Ok(blocks) => Ok(Grid { blocks: blocks as u32, threads, shared: shared as u32 }),
        Err(_) => bail!("{blocks} blocks are too many for a launch"),
    }
}

/// A thread for every four elements of a row.
fn quads(rows: usize, columns: usize) -> Result<Grid> {
    let quads = rows * columns.div_ceil(4);
    if u32::try_from(quads).is_err() {
        bail!("{rows} rows of {columns} elements are too many for a launch");
    }
    grid(quads.div_ceil(ELEMENT_THREADS as usize), ELEMENT_THREADS, 0)
}

/// A warp for every row.
fn lines(rows: usize) -> Result<Grid> {
    grid(rows.div_ceil(LINE_THREADS as usize / WARP), LINE_THREADS, 0)
}

/// # Safety
/// As [`Machine::launch`]; the functions below likewise.
unsafe fn launch<A: Copy>(on: &impl Machine, name: &str, grid: Grid, arguments: &A) -> Result<()> {
    if grid.blocks == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { on.launch(name, grid, arguments) }
}

/// y = act(x + bias) or, `is_back`, dx from dy in the place of the bias.
pub(crate) unsafe fn activate(on: &impl Machine, a: &Activate, is_back: bool) -> Result<()> {
    let name = if is_back { "activate_back" } else { "activate" };
    // SAFETY: the caller's promise.
    unsafe { launch(on, name, quads(a.rows as usize, a.columns as usize)?, a) }
}

/// y = residual + drop(x).
pub(crate) unsafe fn drop(on: &impl Machine, a: &Drop) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch(on, "drop", quads(a.rows as usize, a.columns as usize)?, a) }
}

/// y = norm(x) · weight + bias.
pub(crate) unsafe fn norm(on: &impl Machine, a: &Norm) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch(on, "norm", lines(a.rows as usize)?, a) }
}

/// From x, weight and dy to dx, dw and db, which stand one after another from `a.y` on.
pub(crate) unsafe fn norm_back(on: &impl Machine, a: &Norm) -> Result<()> {
    let (rows, columns) = (a.rows as usize, a.columns as usize);
    let (_stats, stats) = on.scratch(2 * rows)?;
    // SAFETY: the caller's promise.
    unsafe { launch(on, "norm_back", lines(rows)?, &Norm { stats, ..*a }) }?;
    let sum = Sum {
        x: a.x,
        grad: a.other,
        stats: stats.cast_const(),
        ids: null(),
        partial: null_mut(),
        rows: a.rows,
        columns: a.columns,
        value: 0,
    };
    let sums = a.y.wrapping_byte_add(rows * columns * on.element());
    // SAFETY: the caller's promise; statistics of the launch before.
    unsafe { sum_rows(on, sum, sums) }
}

/// Attention weights, or the scores' gradient.
pub(crate) unsafe fn attend(on: &impl Machine, a: &Attend) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch(on, "attend", lines(a.rows as usize)?, a) }
}

/// Sums over the rows to `y`: `columns` of them, with statistics those of weight and bias.
pub(crate) unsafe fn sum_rows(on: &impl Machine, a: Sum, y: To) -> Result<()> {
    let (rows, columns) = (a.rows as usize, a.columns as usize);
    let (strips, sums) =
        (rows.div_ceil(STRIP), if a.stats.is_null() { columns } else { 2 * columns });
    let (_partial, partial) = on.scratch(strips * sums)?;
    let shared = SUM_THREADS as usize * size_of::<f32>();
    let blocks = grid(strips * columns.div_ceil(WARP), SUM_THREADS, shared)?;
    // SAFETY: the caller's promise, and a workspace for all sums of all strips.
    unsafe { launch(on, "sum_strip", blocks, &Sum { partial, ..a }) }?;
    let partial = partial.cast_const();
    let strips = Strips { partial, y, strips: strips as i64, columns: sums as i64 };
    let blocks = grid(sums.div_ceil(SUM_THREADS as usize), SUM_THREADS, 0)?;
    // SAFETY: the sums of the launch before.
    unsafe { launch(on, "add_strips", blocks, &strips) }
}

/// Rows of a table.
pub(crate) unsafe fn lookup(on: &impl Machine, a: &Lookup) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch(on, "look_up", quads(a.rows as usize, a.columns as usize)?, a) }
}

/// The gradient of a table, which is 0 before.
pub(crate) unsafe fn lookup_back(on: &impl Machine, a: &Lookup) -> Result<()> {
    let (rows, columns) = (a.rows as usize, a.columns as usize);
    if a.table_rows < SMALL_TABLE as i64 {
        for value in (0..a.table_rows).filter(|value| *value != a.left_out) {
            let sum = Sum {
                x: a.x,
                grad: null(),
                stats: null(),
                ids: a.ids,
                partial: null_mut(),
                rows: a.rows,
                columns: a.columns,
                value,
            };
            let row = a.y.wrapping_byte_add(value as usize * columns * on.element());
            // SAFETY: the caller's promise; a row of its table.
            unsafe { sum_rows(on, sum, row) }?;
        }
        return Ok(());
    }
    let shared = (1 + SUM_THREADS as usize / 32) * size_of::<u32>();
    let blocks = grid(rows * columns.div_ceil(TABLE_COLUMNS), SUM_THREADS, shared)?;
    // SAFETY: the caller's promise.
    unsafe { launch(on, "look_up_back", blocks, a) }
}
