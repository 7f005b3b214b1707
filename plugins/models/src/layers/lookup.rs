//! Rows of a table by number, with a gradient whose sums have one order.
//!
//! Refuses numbers outside of the table on the CPU. A GPU is not asked for them, which would be a wait in every step: there
//! such a row is NaN, and so is everything that follows from it. Invariant: a table's row is the sum over its uses in the
//! order of the batch.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, by_dtype, elements};
#[cfg(feature = "cuda")]
use super::gpu::site;
use super::rows::add;

/// `table[ids[n]]` for each n.
///
/// * `table`: `[R, C]`; `ids`: `[N]`, i64; gives `[N, C]`. The row `left_out` gets no gradient.
///
/// # Errors
/// A number outside of the table, on the CPU; candle's.
pub(crate) fn lookup(table: &Tensor, ids: &Tensor, left_out: Option<usize>) -> Result<Tensor> {
    let ids = ids.contiguous()?;
    table.contiguous()?.apply_op1(Lookup { ids, left_out })
}

struct Lookup {
    ids: Tensor,
    left_out: Option<usize>,
}

impl Lookup {
    fn places(&self, rows: usize) -> Result<Vec<usize>> {
        let place = |id: i64| match usize::try_from(id) {
            Ok(id) if id < rows => Ok(id),
            _ => bail!("row {id} of a table of {rows}"),
        };
        self.ids.to_vec1::<i64>()?.into_iter().map(place).collect()
    }
}

impl CustomOp1 for Lookup {
    fn name(&self) -> &'static str {
        "lookup"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        by_dtype!(storage.dtype(), "lookup", T => {
            let table = elements::<T>(storage, layout)?;
            let places = self.places(rows)?;
            let row = |&id: &usize| table[id * columns..(id + 1) * columns].iter().copied();
            let y: Vec<T> = places.iter().flat_map(row).collect();
            Ok((T::to_cpu_storage_owned(y), Shape::from((places.len(), columns))))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let shape = Shape::from((self.ids.elem_count(), layout.shape().dims2()?.1));
        Ok((site::lookup((storage, layout), &self.ids)?, shape))
    }

    fn bwd(&self, table: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = LookupBackward { lookup: self, rows: table.dim(0)? };
        grad.contiguous()?.apply_op1_no_bwd(&backward).map(Some)
    }
}

/// From the rows' gradients to the table's.
struct LookupBackward<'a> {
    lookup: &'a Lookup,
    rows: usize,
}

impl CustomOp1 for LookupBackward<'_> {
    fn name(&self) -> &'static str {
        "lookup_backward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = layout.shape().dims2()?;
        by_dtype!(storage.dtype(), "lookup", T => {
            let grad = elements::<T>(storage, layout)?;
            let mut table = vec![T::of(0.0); self.rows * columns];
            let places = self.lookup.places(self.rows)?;
            for (row, id) in grad.chunks(columns.max(1)).zip(places) {
                if Some(id) != self.lookup.left_out {
                    add(&mut table[id * columns..(id + 1) * columns], row);
                }
            }
            Ok((T::to_cpu_storage_owned(table), Shape::from((self.rows, columns))))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let Lookup { ids, left_out } = self.lookup;
        let table = site::lookup_backward((storage, layout), ids, self.rows, *left_out)?;
        Ok((table, Shape::from((self.rows, layout.shape().dims2()?.1))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, wave};
    use super::*;
    use candle_core::Device;

    #[test]
    fn gradients_match_central_differences_but_for_the_row_left_out() {
        let ids = Tensor::new(&[3i64, 0, 3, 2, 3], &Device::Cpu).unwrap();
        check_gradients(&[wave(&[4, 3], 1.0)], |x| lookup(&x[0], &ids, None));
        let table = candle_core::Var::from_tensor(&wave(&[4, 3], 1.0)).unwrap();
        let y = lookup(table.as_tensor(), &ids, Some(3)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&table).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(grad, [[1.0; 3], [0.0; 3], [1.0; 3], [0.0; 3]]);
    }

    #[test]
    fn a_number_outside_of_the_table_is_refused() {
        let ids = Tensor::new(&[0i64, 4], &Device::Cpu).unwrap();
        let error = lookup(&wave(&[4, 3], 1.0), &ids, None).unwrap_err().to_string();
        assert!(error.contains("row 4 of a table of 4"), "{error}");
    }
}
