//! Rows from several places as one batch: a dataset, rows found again by id, rows that a scheduler stored.
//!
//! Batches keep the order asked for. Rows of different length (tokens) are padded at the end: labels with -100, all
//! else with 0, which an attention mask of 0 makes harmless.

use super::RunError;
use super::error::{RunResult, bug};
use crate::data::{Batch, Dataset, Datasets};
use crate::diagnostic::Diagnostic;
use crate::tensor::{DType, Tensor, contiguous_strides};
use limbeck_abi::DLDevice;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows to train on or to look at.
#[derive(Clone)]
pub(crate) enum RowSet {
    /// All rows of a dataset.
    All(Arc<Dataset>),
    /// A list.
    Listed(Vec<Row>, Vec<Batch>),
}

/// Where a listed row lies.
#[derive(Clone)]
pub(crate) enum Row {
    /// In a dataset.
    At(Arc<Dataset>, usize),
    /// In a stored batch.
    Stored(usize, usize),
}

impl RowSet {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::All(dataset) => dataset.rows(),
            Self::Listed(rows, _) => rows.len(),
        }
    }

    /// Tokens of a row; 0 where nobody knows (a row that a scheduler stored, a row without text).
    pub fn length(&self, row: usize) -> usize {
        match self {
            Self::All(dataset) => dataset.length(row),
            Self::Listed(rows, _) => match rows.get(row) {
                Some(Row::At(dataset, at)) => dataset.length(*at),
                _ => 0,
            },
        }
    }

    /// These rows, in this order.
    ///
    /// # Errors
    /// Stored columns that do not fit those of the data.
    pub fn gather(&self, which: &[usize]) -> RunResult<Batch> {
        match self {
            Self::All(dataset) => Ok(dataset.gather(which)),
            Self::Listed(rows, stored) => {
                let rows: Vec<&Row> = which.iter().filter_map(|i| rows.get(*i)).collect();
                gather_listed(&rows, stored)
            }
        }
    }

    /// These and `more`.
    pub fn join(self, more: Self) -> Self {
        let (mut rows, mut stored) = self.listed();
        let (new, blocks) = more.listed();
        let shift = stored.len();
        rows.extend(new.into_iter().map(|row| match row {
            Row::Stored(block, at) => Row::Stored(block + shift, at),
            at @ Row::At(..) => at,
        }));
        stored.extend(blocks);
        Self::Listed(rows, stored)
    }

    fn listed(self) -> (Vec<Row>, Vec<Batch>) {
        match self {
            Self::All(dataset) => {
                ((0..dataset.rows()).map(|i| Row::At(dataset.clone(), i)).collect(), Vec::new())
            }
            Self::Listed(rows, stored) => (rows, stored),
        }
    }
}

/// Rows from columns that a scheduler gave: read again if there are `row_ids`, else taken as they are.
///
/// # Errors
/// Columns of unequal length, unknown row ids, no column at all; in words.
pub(crate) fn from_columns(
    columns: &BTreeMap<String, Tensor>,
    datasets: &Datasets,
) -> Result<RowSet, String> {
    let rows = columns.values().next().map(Tensor::rows).ok_or("no columns")?;
    if let Some((name, other)) = columns.iter().find(|(_, t)| t.rows() != rows) {
        return Err(format!("column `{name}` has {} rows, another has {rows}", other.rows()));
    }
    if let Some(ids) = columns.get("row_ids") {
        let ids = ids.data::<i64>().ok_or("`row_ids` must be contiguous i64 in CPU memory")?;
        let found = datasets.locate(ids).ok_or("`row_ids` holds an id that no dataset has")?;
        let rows = found.into_iter().map(|(dataset, at)| Row::At(dataset, at)).collect();
        return Ok(RowSet::Listed(rows, Vec::new()));
    }
    let batch = Batch { rows, columns: columns.clone() };
    Ok(RowSet::Listed((0..rows).map(|i| Row::Stored(0, i)).collect(), vec![batch]))
}

fn gather_listed(rows: &[&Row], stored: &[Batch]) -> RunResult<Batch> {
    // Rows of one place are read together, then put in the order asked for.
    let mut places: Vec<(Arc<Dataset>, Vec<usize>, Vec<usize>)> = Vec::new();
    let mut parts: Vec<Batch> = Vec::new();
    let mut order: Vec<usize> = Vec::new();
    let mut from_stored: Vec<(usize, Batch)> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        match row {
            Row::At(dataset, index) => {
                let known = places.iter().position(|(d, ..)| Arc::ptr_eq(d, dataset));
                let place = known.unwrap_or_else(|| {
                    places.push((dataset.clone(), Vec::new(), Vec::new()));
                    places.len() - 1
                });
                places[place].1.push(*index);
                places[place].2.push(at);
            }
            Row::Stored(block, index) => {
                let block = stored.get(*block).ok_or_else(|| bug("a stored block is missing"))?;
                from_stored.push((at, slice(block, *index, *index + 1)));
            }
        }
    }
    for (dataset, indices, at) in places {
        parts.push(dataset.gather(&indices));
        order.extend(at);
    }
    for (at, batch) in from_stored {
        parts.push(batch);
        order.push(at);
    }
    let joined = concat_batches(&parts.iter().collect::<Vec<_>>())?;
    let mut back = vec![0; order.len()];
    for (now, wanted) in order.iter().enumerate() {
        back[*wanted] = now;
    }
    Ok(take(&joined, &back))
}

/// Rows `[from, to)`, sharing memory.
pub(crate) fn slice(batch: &Batch, from: usize, to: usize) -> Batch {
    let columns =
        batch.columns.iter().map(|(name, t)| (name.clone(), t.slice_rows(from, to))).collect();
    Batch { rows: to - from, columns }
}

/// These rows, copied.
fn take(batch: &Batch, rows: &[usize]) -> Batch {
    let columns = batch.columns.iter().map(|(name, tensor)| {
        let tensor = contiguous(tensor);
        let mut shape = tensor.shape().to_vec();
        let bytes = tensor.bytes().checked_div(batch.rows).unwrap_or(0);
        shape[0] = rows.len() as i64;
        let out = Tensor::zeros(tensor.dtype(), &shape);
        if let (Some(from), false) = (tensor.raw(), bytes == 0) {
            // SAFETY: fresh memory, not shared yet.
            let to = unsafe { out.raw_mut() };
            for (to, row) in to.chunks_exact_mut(bytes).zip(rows) {
                to.copy_from_slice(&from[row * bytes..(row + 1) * bytes]);
            }
        }
        (name.clone(), out)
    });
    Batch { rows: rows.len(), columns: columns.collect() }
}

/// Rows of several batches, one after the other. Columns that one of them lacks are left out.
///
/// # Errors
/// A column with different types or shapes (65).
pub(crate) fn concat_batches(parts: &[&Batch]) -> RunResult<Batch> {
    let Some((first, rest)) = parts.split_first() else { return Ok(Batch::default()) };
    if rest.is_empty() {
        return Ok((*first).clone());
    }
    let mut columns = BTreeMap::new();
    for name in first.columns.keys() {
        let tensors: Vec<&Tensor> = parts.iter().filter_map(|p| p.columns.get(name)).collect();
        if tensors.len() == parts.len() {
            let fill = name == "labels";
            let joined = concat(&tensors, fill).map_err(|reason| {
                let message = format!("rows cannot be joined: column `{name}`: {reason}");
                RunError::new(Diagnostic::error("LMB0519", message))
            })?;
            columns.insert(name.clone(), joined);
        }
    }
    Ok(Batch { rows: parts.iter().map(|p| p.rows).sum(), columns })
}

/// Joins along the first axis; shorter further axes are padded at the end (with -100 if `ignored`, else 0).
///
/// # Errors
/// Different types or numbers of axes, in words.
pub(crate) fn concat(parts: &[&Tensor], ignored: bool) -> Result<Tensor, String> {
    let Some(first) = parts.first() else { return Err("nothing to join".into()) };
    let mut shape = first.shape().to_vec();
    if shape.is_empty() {
        return Err("a scalar has no rows".into());
    }
    for part in &parts[1..] {
        if part.dtype() != first.dtype() || part.shape().len() != shape.len() {
            return Err(format!("{part:?} does not fit {first:?}"));
        }
        shape[0] += part.shape()[0];
        for (size, other) in shape.iter_mut().zip(part.shape()).skip(1) {
            *size = (*size).max(*other);
        }
    }
    if let Some(place) = parts.iter().map(|p| p.device()).find(|d| *d != DLDevice::CPU) {
        return concat_on(place, parts, &shape);
    }
    let out = Tensor::zeros(first.dtype(), &shape);
    if ignored && first.dtype() == DType::I64 {
        // SAFETY: fresh memory, not shared yet.
        unsafe { out.data_mut::<i64>() }.fill(-100);
    }
    let mut at = 0;
    for part in parts {
        let target = out.slice_rows(at, at + part.rows());
        copy_into_corner(part, &target);
        at += part.rows();
    }
    Ok(out)
}

/// As [`concat`], in the memory of a device, where nothing is padded.
fn concat_on(place: DLDevice, parts: &[&Tensor], shape: &[i64]) -> Result<Tensor, String> {
    if parts.iter().any(|p| p.shape()[1..] != shape[1..]) {
        return Err("rows of different length on a device".into());
    }
    let out = Tensor::zeros_on(place, parts[0].dtype(), shape).map_err(|e| e.message)?;
    let mut at = 0;
    for part in parts {
        let target = out.slice_rows(at, at + part.rows());
        target.copy_from(part).map_err(|e| e.message)?;
        at += part.rows();
    }
    Ok(out)
}

/// Copies `from` into the corner of `to` at index 0 of every axis.
fn copy_into_corner(from: &Tensor, to: &Tensor) {
    let from = contiguous(from);
    let size = from.dtype().bytes();
    let Some(bytes) = from.raw() else { return };
    // SAFETY: `to` is a part of fresh memory that only the caller holds.
    let target = unsafe { to.raw_mut() };
    if from.shape() == to.shape() {
        target.copy_from_slice(bytes);
        return;
    }
    let axes = from.shape().len();
    let width = from.shape().last().map_or(1, |d| *d as usize);
    if from.elements() == 0 {
        return;
    }
    let strides = contiguous_strides(to.shape());
    let mut index = vec![0i64; axes];
    for row in bytes.chunks_exact(width * size) {
        let offset: i64 = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        let offset = offset as usize * size;
        target[offset..offset + row.len()].copy_from_slice(row);
        for axis in (0..axes - 1).rev() {
            index[axis] += 1;
            if index[axis] < from.shape()[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// The tensor itself if its elements lie without gaps, else a copy. CPU only.
pub(crate) fn contiguous(tensor: &Tensor) -> Tensor {
    if tensor.is_contiguous() || tensor.device() != limbeck_abi::DLDevice::CPU {
        return tensor.clone();
    }
    let out = Tensor::zeros(tensor.dtype(), tensor.shape());
    let size = tensor.dtype().bytes();
    // SAFETY: fresh memory, not shared yet.
    let target = unsafe { out.raw_mut() };
    let mut index = vec![0i64; tensor.shape().len()];
    for element in target.chunks_exact_mut(size) {
        let offset: i64 = index.iter().zip(tensor.strides()).map(|(i, s)| i * s).sum();
        // SAFETY: the index is inside the shape, so the address is inside the view's memory.
        let from = unsafe {
            std::slice::from_raw_parts(
                tensor.address().cast::<u8>().wrapping_offset(offset as isize * size as isize),
                size,
            )
        };
        element.copy_from_slice(from);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < tensor.shape()[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_rows_are_padded_and_labels_ignored_there() {
        let a = Tensor::from_slice(&[1i64, 2, 3, 4], &[2, 2]);
        let b = Tensor::from_slice(&[5i64, 6, 7], &[1, 3]);
        let joined = concat(&[&a, &b], true).unwrap();
        assert_eq!(joined.shape(), [3, 3]);
        assert_eq!(joined.data::<i64>().unwrap(), [1, 2, -100, 3, 4, -100, 5, 6, 7]);
        let joined = concat(&[&a, &b], false).unwrap();
        assert_eq!(joined.data::<i64>().unwrap()[2], 0);
        assert!(concat(&[&a, &Tensor::zeros(DType::F32, &[1, 2])], false).is_err());
    }

    #[test]
    fn gaps_are_closed() {
        let wide = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let mut shape = [2i64, 2];
        let mut strides = [3i64, 1];
        let mut view = wide.view("x", 0).t;
        view.shape = shape.as_mut_ptr();
        view.strides = strides.as_mut_ptr();
        // SAFETY: `wide` outlives the view.
        let narrow = unsafe { Tensor::borrowed(&view) }.unwrap();
        assert!(!narrow.is_contiguous());
        assert_eq!(contiguous(&narrow).data::<f32>().unwrap(), [1.0, 2.0, 4.0, 5.0]);
    }

    #[test]
    fn stored_rows_come_in_the_order_asked_for() {
        let columns = BTreeMap::from([
            ("labels".to_owned(), Tensor::from_slice(&[3i64, 1, 2], &[3])),
            ("x".to_owned(), Tensor::from_slice(&[3f32, 3.5, 1.0, 1.5, 2.0, 2.5], &[3, 2])),
        ]);
        let batch = Batch { rows: 3, columns };
        let rows = RowSet::Listed((0..3).map(|i| Row::Stored(0, i)).collect(), vec![batch]);
        let twice = rows.clone().join(rows);
        let got = twice.gather(&[4, 0, 2]).unwrap();
        assert_eq!(got.columns["labels"].data::<i64>().unwrap(), [1, 3, 2]);
        assert_eq!(got.columns["x"].data::<f32>().unwrap(), [1.0, 1.5, 3.0, 3.5, 2.0, 2.5]);
    }
}
