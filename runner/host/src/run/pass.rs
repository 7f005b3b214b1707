//! Rows that go through the models together, in contiguous groups: the fresh ones, then those of schedulers.
//!
//! Every slice of a row axis is a view. Groups marked JOIN directly follow the fresh rows, so what a term sees is one
//! stretch.

use super::RunError;
use super::arith::{to_f64, to_i64};
use super::bind::{Bindings, Feed, Input, Term};
use super::error::{RunResult, bug, contract};
use super::rows::contiguous;
use crate::data::Batch;
use crate::diagnostic::Diagnostic;
use crate::load::wiring::TermRows;
use crate::plan::Reduction;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// A row group inside a pass.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Scheduler; `None`: the fresh rows.
    pub scheduler: Option<usize>,
    /// Local group name, `""` for the fresh rows.
    pub group: String,
    pub from: usize,
    pub to: usize,
    /// The pipeline's own terms count these rows.
    pub joined: bool,
}

/// Rows of a tensor that somebody supplies instead of a model or beside it.
#[derive(Clone, Debug)]
pub(crate) struct Supplied {
    pub from: usize,
    pub to: usize,
    pub tensor: Tensor,
}

/// One forward of the student, with all that belongs to it.
#[derive(Default)]
pub(crate) struct Pass {
    pub batch: Batch,
    pub segments: Vec<Segment>,
    /// 0: the step's own gradient; k: the k-th group that keeps its gradient apart.
    pub set: usize,
    /// Scheduler ports by (scheduler, port).
    pub supplied: BTreeMap<(usize, String), Supplied>,
    /// Teacher outputs that stand in, by output name.
    pub stand_ins: BTreeMap<String, Vec<Supplied>>,
}

impl Pass {
    /// Only fresh rows.
    pub fn fresh(batch: Batch) -> Self {
        let segment = Segment {
            scheduler: None,
            group: String::new(),
            from: 0,
            to: batch.rows,
            joined: true,
        };
        Self { batch, segments: vec![segment], ..Self::default() }
    }

    /// Rows that a term sees; `None`: none in this pass.
    pub fn range(&self, rows: &TermRows) -> Option<(usize, usize)> {
        let of = |wanted: &dyn Fn(&Segment) -> bool| {
            let mut found = self.segments.iter().filter(|s| wanted(s));
            let first = found.next()?;
            Some((first.from, found.next_back().map_or(first.to, |last| last.to)))
        };
        let range = match rows {
            TermRows::Fresh => of(&|s| s.scheduler.is_none()),
            TermRows::FreshAndJoined => of(&|s| s.scheduler.is_none() || s.joined),
            TermRows::All => Some((0, self.batch.rows)),
            TermRows::Group { scheduler, group } => {
                of(&|s| s.scheduler == Some(*scheduler) && s.group == *group)
            }
        };
        range.filter(|(from, to)| from < to)
    }
}

/// What the models gave for a pass.
#[derive(Default)]
pub(crate) struct PassOut {
    /// By position in [`Bindings::student_outputs`].
    pub student: Vec<Option<Tensor>>,
    /// By position in [`Bindings::teacher_outputs`].
    pub teacher: Vec<Option<Tensor>>,
    /// By snapshot and position in its wanted outputs; empty: not taken yet.
    pub snapshots: Vec<Vec<Tensor>>,
}

/// Tensors that outlast a step: constant ports that schedulers provided, by (scheduler, port).
pub(crate) type Provided = BTreeMap<(usize, String), Tensor>;

/// Everything that an input can be fed from.
pub(crate) struct Sources<'a> {
    pub bound: &'a Bindings,
    pub pass: &'a Pass,
    pub out: &'a PassOut,
    pub params: &'a [crate::load::instance::Param],
    pub provided: &'a Provided,
}

/// Rows `[from, to)` of `rows`, when the first axis counts rows or multiples of them (tokens).
pub(crate) fn slice_rows(tensor: &Tensor, rows: usize, from: usize, to: usize) -> Tensor {
    if (from, to) == (0, rows) || rows == 0 || tensor.shape().is_empty() {
        return tensor.clone();
    }
    let each = tensor.rows() / rows;
    tensor.slice_rows(from * each, to * each)
}

/// Leading axes flattened so that `axes` are left.
fn flattened(tensor: Tensor, axes: Option<usize>) -> Tensor {
    let Some(axes) = axes.filter(|a| *a > 0 && tensor.shape().len() > *a) else { return tensor };
    let split = tensor.shape().len() - axes + 1;
    let mut shape = vec![tensor.shape()[..split].iter().product::<i64>()];
    shape.extend_from_slice(&tensor.shape()[split..]);
    let tensor = contiguous(&tensor);
    tensor.reshape(&shape).unwrap_or(tensor)
}

impl Sources<'_> {
    /// The tensor of an input for rows `[from, to)`; `None`: unbound or empty.
    ///
    /// # Errors
    /// A column that the rows lack (65).
    pub fn get(&self, input: &Input, from: usize, to: usize) -> RunResult<Option<Tensor>> {
        let Some(feed) = &input.feed else { return Ok(None) };
        let rows = self.pass.batch.rows;
        let slice = |tensor: &Tensor, row_axis: bool| {
            if row_axis { slice_rows(tensor, rows, from, to) } else { tensor.clone() }
        };
        let found = match feed {
            Feed::Batch(column) => match self.pass.batch.columns.get(column) {
                Some(tensor) => Some(slice(tensor, true)),
                None if input.optional => None,
                None => {
                    let message = format!(
                        "rows without column `{column}`, which port `{}` needs",
                        input.name
                    );
                    let diagnostic = Diagnostic::error("LMB0519", message);
                    return Err(RunError::new(diagnostic));
                }
            },
            Feed::RowClasses => {
                let labels = self.pass.batch.columns.get("labels").map(|t| slice(t, true));
                self.bound.row_classes.as_ref().zip(labels).and_then(|(own, l)| own.mask(&l))
            }
            Feed::Student(i) => {
                let axis = self.bound.student_rows.get(*i).copied().unwrap_or(false);
                self.out.student.get(*i).and_then(Option::as_ref).map(|t| slice(t, axis))
            }
            Feed::Teacher(i) => {
                let axis = self.bound.teacher_rows.get(*i).copied().unwrap_or(false);
                self.out.teacher.get(*i).and_then(Option::as_ref).map(|t| slice(t, axis))
            }
            Feed::Param(i) => self.params.get(*i).map(|p| p.value.clone()),
            Feed::Snapshot(s, i) => {
                self.out.snapshots.get(*s).and_then(|o| o.get(*i)).map(|t| slice(t, true))
            }
            Feed::Scheduler(s, port) => self.scheduler_port(*s, port, from, to),
        };
        Ok(found.map(|t| if input.flatten { flattened(t, input.axes) } else { t }))
    }

    fn scheduler_port(
        &self,
        scheduler: usize,
        port: &str,
        from: usize,
        to: usize,
    ) -> Option<Tensor> {
        let key = (scheduler, port.to_owned());
        match self.pass.supplied.get(&key) {
            Some(s) if s.from <= from && to <= s.to => {
                Some(slice_rows(&s.tensor, s.to - s.from, from - s.from, to - s.from))
            }
            Some(_) => None,
            None => self.provided.get(&key).cloned(),
        }
    }
}

/// Counted items of a term in rows `[from, to)` of a pass, before anything is computed.
///
/// An item is an index of the row axis, counted unless a bound `labels` is -100 or a bound `row_mask` is 0.
///
/// # Errors
/// Labels or masks that cannot be read.
pub(crate) fn counted(
    term: &Term,
    sources: &Sources<'_>,
    (from, to): (usize, usize),
) -> RunResult<f64> {
    let examples = (to - from) as f64;
    match term.reduction {
        Reduction::Sum => return Ok(1.0),
        Reduction::BatchMean => return Ok(examples),
        Reduction::TokenMean | Reduction::SeqMean => {}
    }
    let Some(keep) = kept(term, sources, from, to)? else {
        if !term.inputs.iter().any(|i| i.row_axis) {
            return Ok(1.0);
        }
        return Ok(match term.reduction {
            Reduction::SeqMean => examples,
            _ => examples * items_per_example(term, sources),
        });
    };
    if term.reduction == Reduction::SeqMean {
        let length = (keep.len() / (to - from).max(1)).max(1);
        return Ok(keep.chunks(length).filter(|c| c.iter().any(|k| *k)).count() as f64);
    }
    Ok(keep.iter().filter(|k| **k).count() as f64)
}

/// Which items are counted; `None` if neither labels nor a mask is bound.
fn kept(
    term: &Term,
    sources: &Sources<'_>,
    from: usize,
    to: usize,
) -> RunResult<Option<Vec<bool>>> {
    let read = |place: Option<usize>| -> RunResult<Option<Tensor>> {
        place.map_or(Ok(None), |i| sources.get(&term.inputs[i], from, to))
    };
    let mut keep: Option<Vec<bool>> = None;
    if let Some(labels) = read(term.labels)? {
        let labels = to_i64(&labels).ok_or_else(|| bug("labels are not in CPU memory"))?;
        keep = Some(labels.into_iter().map(|l| l != -100).collect());
    }
    if let Some(mask) = read(term.mask)? {
        let mask = to_f64(&mask).ok_or_else(|| bug("a row mask is not in CPU memory"))?;
        let mask = mask.into_iter().map(|m| m != 0.0);
        keep = match keep {
            None => Some(mask.collect()),
            Some(keep) if keep.len() == mask.len() => {
                Some(keep.into_iter().zip(mask).map(|(a, b)| a && b).collect())
            }
            Some(keep) => {
                let message = format!("{} labels and {} mask entries", keep.len(), mask.len());
                return Err(contract(&term.name, message));
            }
        };
    }
    Ok(keep)
}

/// Items of one example where no label and no mask tells: the tokens of a flattened `[B, T, ...]`.
fn items_per_example(term: &Term, sources: &Sources<'_>) -> f64 {
    let Some(input) = term.inputs.iter().find(|i| i.row_axis && i.flatten && i.feed.is_some())
    else {
        return 1.0;
    };
    let rows = sources.pass.batch.rows.max(1) as f64;
    match (&input.feed, input.axes) {
        (Some(Feed::Batch(column)), Some(axes)) => {
            let tensor = sources.pass.batch.columns.get(column);
            tensor.map_or(1.0, |t| {
                let split = (t.shape().len() + 1).saturating_sub(axes).max(1);
                t.shape()[1..split].iter().product::<i64>() as f64
            })
        }
        (Some(Feed::Student(i)), Some(axes))
            if sources.bound.student_axes.get(*i).copied().unwrap_or(0) > axes =>
        {
            // The student's own `T` is that of its token input.
            let tokens = sources.bound.student_inputs.iter().find_map(|input| match &input.feed {
                Some(Feed::Batch(column)) => sources.pass.batch.columns.get(column),
                _ => None,
            });
            tokens.map_or(1.0, |t| t.elements() as f64 / rows)
        }
        _ => 1.0,
    }
}

/// Row weights of `seq_mean`: 1 / counted items of the sequence.
///
/// # Errors
/// As [`counted`].
pub(crate) fn sequence_weights(
    term: &Term,
    sources: &Sources<'_>,
    (from, to): (usize, usize),
    items: usize,
) -> RunResult<Tensor> {
    let keep = kept(term, sources, from, to)?.unwrap_or_else(|| vec![true; items]);
    let length = (keep.len() / (to - from).max(1)).max(1);
    let mut weights = Vec::with_capacity(keep.len());
    for sequence in keep.chunks(length) {
        let count = sequence.iter().filter(|k| **k).count().max(1);
        weights.extend(std::iter::repeat_n(1.0 / count as f32, sequence.len()));
    }
    Ok(Tensor::from_slice(&weights, &[weights.len() as i64]))
}
