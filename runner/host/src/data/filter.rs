//! The filters of a dataset: `rows`, then `classes`, then `limit`.
//!
//! Positions come out ascending. Refuses a range past the end, classes without labels, and filters that leave nothing.

use crate::diagnostic::Diagnostic;
use crate::plan::DatasetPlan;

/// Rows of the files from the start that this dataset can need; `u64::MAX` if all.
pub(super) fn rows_needed(plan: &DatasetPlan) -> u64 {
    let end = plan.rows.map_or(u64::MAX, |(_, to)| to);
    let limit = match (plan.limit, &plan.classes) {
        (Some(limit), None) => limit.saturating_add(plan.rows.map_or(0, |(from, _)| from)),
        _ => u64::MAX,
    };
    end.min(limit)
}

/// Positions that stay, of `count` rows.
///
/// # Errors
/// `LMB0512` for a range past the end, `LMB0513` if nothing stays, `LMB0517` for `classes` without `label`.
pub(super) fn select(
    plan: &DatasetPlan,
    count: usize,
    labels: Option<&[i64]>,
) -> Result<Vec<usize>, Diagnostic> {
    let problem = |code, message: String| {
        Diagnostic::error(code, message)
            .at(plan.span.clone())
            .within(format!("dataset `{}`", plan.id))
    };
    let (from, to) = plan.rows.unwrap_or((0, count as u64));
    // With a `limit` the files may not have been read to the end of the range, but at least to `from`.
    let read_whole = rows_needed(plan) >= to;
    if from > to || from > count as u64 || (read_whole && to > count as u64) {
        return Err(problem(
            "LMB0512",
            format!("rows [{from}, {to}] reach past the end: there are {count} rows"),
        )
        .help("rows are counted from 0 over all files, the end is not included"));
    }
    let range = from as usize..(to as usize).min(count);
    let mut kept: Vec<usize> = match (&plan.classes, labels) {
        (None, _) => range.collect(),
        (Some(_), None) => return Err(problem("LMB0517", "`classes` needs `label`".into())),
        (Some(classes), Some(labels)) => range
            .filter(|row| labels.get(*row).is_some_and(|label| classes.contains(label)))
            .collect(),
    };
    kept.truncate(plan.limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap_or(usize::MAX)));
    if kept.is_empty() {
        let message = if count == 0 {
            "no rows in its files".to_owned()
        } else {
            format!("no row of {count} passes its filters")
        };
        return Err(problem("LMB0513", message));
    }
    Ok(kept)
}
