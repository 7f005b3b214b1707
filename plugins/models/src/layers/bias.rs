//! A row that is added to every row, and sums over rows: the gradient of everything that is added to all rows.
//!
//! candle's own sum over the first dimension is slow on every device. Invariant: a sum has one order.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, add_rows, by_dtype, elements};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::rows::add;

/// `x[n] + row` for each n.
///
/// * `x`: `[N, C]`; `row`: `[C]`, the dtype of x. Gradients flow to both.
///
/// # Errors
/// candle's.
pub(crate) fn add_row(x: &Tensor, row: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&row.contiguous()?, AddRow)
}

struct AddRow;

impl CustomOp2 for AddRow {
    fn name(&self) -> &'static str {
        "add_row"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        row: &CpuStorage,
        row_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), "add_row", T => {
            let row = elements::<T>(row, row_layout)?;
            let mut y = elements::<T>(x, x_layout)?.to_vec();
            y.chunks_mut(row.len().max(1)).for_each(|y| add(y, row));
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        row: &candle_core::CudaStorage,
        row_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let identity = super::Activation::Identity;
        let y = site::activate((x, x_layout), Some((row, row_layout)), identity)?;
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        row: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d_row = row.track_op().then(|| sum_rows(grad)).transpose()?;
        Ok((x.track_op().then(|| grad.clone()), d_row))
    }
}

/// Σ over the rows of `[N, C]`: `[C]`, without a gradient of its own.
///
/// # Errors
/// candle's.
pub(super) fn sum_rows(rows: &Tensor) -> Result<Tensor> {
    rows.contiguous()?.apply_op1_no_bwd(&SumRows)
}

struct SumRows;

impl CustomOp1 for SumRows {
    fn name(&self) -> &'static str {
        "sum_rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = layout.shape().dims2()?;
        by_dtype!(storage.dtype(), "sum_rows", T => {
            let mut sums = vec![T::of(0.0); columns];
            add_rows(&mut sums, elements::<T>(storage, layout)?);
            Ok((T::to_cpu_storage_owned(sums), Shape::from(columns)))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let sums = site::sum_rows((storage, layout))?;
        Ok((sums, Shape::from(layout.shape().dims2()?.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;

    #[test]
    fn gradients_match_central_differences() {
        check_gradients(&[wave(&[5, 3], 1.0), wave(&[3], 0.5)], |x| add_row(&x[0], &x[1]));
    }
}
