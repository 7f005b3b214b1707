//! Rows kept as they were seen: the bytes of each column, for data that may not be read again.
//!
//! Every kept row has the same columns, types and shapes; a batch with others is refused.

use crate::state::{StateReader, StateWriter};
use crate::vector::{from_bytes, to_bytes};
use crate::{Column, DType, Error, Result, View};

/// Names, types and shapes of the columns of one kept row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    columns: Vec<(String, DType, Vec<i64>)>,
}

impl Layout {
    /// The layout of rows of these columns; the first axis of each counts rows.
    pub fn of(views: &[View<'_>]) -> Self {
        let column = |v: &View<'_>| {
            (v.name().to_owned(), v.dtype(), v.shape().get(1..).unwrap_or_default().to_vec())
        };
        Self { columns: views.iter().map(column).collect() }
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.columns.iter().map(Self::bytes).sum()
    }

    fn bytes((_, dtype, shape): &(String, DType, Vec<i64>)) -> usize {
        shape.iter().product::<i64>().max(0) as usize * dtype.bytes()
    }

    /// All rows of a batch as bytes, in the order of the columns.
    ///
    /// # Errors
    /// BAD_DATA if the batch has other columns; UNSUPPORTED outside host memory.
    pub fn rows(&self, views: &[View<'_>]) -> Result<Vec<Vec<u8>>> {
        if Self::of(views) != *self {
            let message = "rows of other shapes than those stored before; store row ids instead";
            return Err(Error::bad_data(message));
        }
        let count = views.first().map_or(0, View::num_rows);
        let mut rows = vec![Vec::with_capacity(self.row_bytes()); count];
        for (view, column) in views.iter().zip(&self.columns) {
            let (bytes, size) = (view.to_bytes()?, Self::bytes(column));
            for (row, part) in rows.iter_mut().zip(bytes.chunks(size.max(1))) {
                row.extend_from_slice(part);
            }
        }
        Ok(rows)
    }

    /// Kept rows as columns again.
    ///
    /// # Errors
    /// BAD_DATA if a row has another number of bytes.
    pub fn columns<'r>(&self, rows: impl Iterator<Item = &'r [u8]>) -> Result<Vec<Column>> {
        let rows: Vec<&[u8]> = rows.collect();
        if rows.iter().any(|r| r.len() != self.row_bytes()) {
            return Err(Error::bad_data("a stored row does not fit its columns"));
        }
        let (mut columns, mut at) = (Vec::new(), 0);
        for column in &self.columns {
            let size = Self::bytes(column);
            let bytes: Vec<u8> = rows.iter().flat_map(|r| &r[at..at + size]).copied().collect();
            at += size;
            let (name, dtype, shape) = column;
            let shape: Vec<i64> =
                std::iter::once(rows.len() as i64).chain(shape.iter().copied()).collect();
            columns.push(Column::from_bytes(name.clone(), *dtype, &shape, &bytes)?);
        }
        Ok(columns)
    }

    pub(super) fn save(&self, state: &mut StateWriter<'_>) -> Result<()> {
        state.u64(self.columns.len() as u64)?;
        for (name, dtype, shape) in &self.columns {
            state.text(name)?;
            state.text(dtype.name())?;
            state.bytes(&to_bytes(shape))?;
        }
        Ok(())
    }

    pub(super) fn load(state: &mut StateReader<'_>) -> Result<Self> {
        let types = [DType::I64, DType::I32, DType::U8, DType::U32];
        let mut columns = Vec::new();
        for _ in 0..state.u64()? {
            let (name, dtype) = (state.text()?, state.text()?);
            let known = DType::FLOATS.iter().chain(&types).find(|t| t.name() == dtype);
            let known = known.ok_or_else(|| Error::bad_data(format!("element type `{dtype}`")))?;
            let shape = from_bytes::<i64>(&state.bytes()?)?;
            if shape.iter().any(|d| *d < 0) {
                return Err(Error::bad_data("a negative size in the state"));
            }
            columns.push((name, *known, shape));
        }
        Ok(Self { columns })
    }
}
