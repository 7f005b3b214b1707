//! The passes of a step: micro-batches of fresh rows, and the row groups that schedulers joined.
//!
//! Groups join the first micro-batch, those marked JOIN first; OWN_PASS and OWN_GRAD groups become passes of their
//! own behind the micro-batches. An empty group is no group.

use super::error::RunResult;
use super::live::Live;
use super::pass::{Pass, Segment, Supplied, slice_rows};
use super::rows::{concat, concat_batches, from_columns};
use super::schedule::refuse;
use crate::data::Batch;
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::collections::BTreeMap;

/// A row group of this step.
struct Group {
    scheduler: usize,
    name: String,
    flags: u64,
    batch: Batch,
    /// The scheduler's own ports.
    ports: BTreeMap<String, Tensor>,
    /// Outputs of the teacher that stand in.
    stand_ins: BTreeMap<String, Tensor>,
}

impl Live<'_> {
    /// Passes of a step whose fresh rows are given by micro-batch; takes what schedulers asked for this step.
    ///
    /// # Errors
    /// Columns of a group that nobody knows, rows that do not fit together.
    pub fn assemble(&mut self, micro: Vec<Batch>) -> RunResult<Vec<Pass>> {
        let asked = std::mem::take(&mut self.asked.groups);
        let provided = std::mem::take(&mut self.asked.provided);
        let known: Vec<String> =
            micro.first().map_or(Vec::new(), |b| b.columns.keys().cloned().collect());
        let mut groups = Vec::new();
        for (scheduler, name, columns) in asked {
            if columns.values().next().is_some_and(|t| t.rows() > 0) {
                groups.push(self.group(scheduler, name, columns, &known)?);
            }
        }
        // Joined groups directly behind the fresh rows; the order is otherwise that of the requests.
        groups.sort_by_key(|g| g.flags & abi::GROUP_JOIN == 0);
        let apart = |g: &Group| g.flags & (abi::GROUP_OWN_PASS | abi::GROUP_OWN_GRAD) != 0;
        let (own, inside): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(apart);
        let mut passes: Vec<Pass> = micro.into_iter().map(Pass::fresh).collect();
        let fresh: Vec<usize> = passes.iter().map(|p| p.batch.rows).collect();
        self.spread(&mut passes, &fresh, &provided)?;
        if let (Some(first), false) = (passes.first_mut(), inside.is_empty()) {
            join(first, inside)?;
        }
        for group in own {
            passes.push(self.own_pass(group));
        }
        Ok(passes)
    }

    fn group(
        &self,
        scheduler: usize,
        name: String,
        columns: BTreeMap<String, Tensor>,
        known: &[String],
    ) -> RunResult<Group> {
        let owner = &self.loaded.schedulers[scheduler];
        let flags = owner.schedule.groups.iter().find(|g| g.name == name).map_or(0, |g| g.flags);
        let (mut batch, mut ports) = (BTreeMap::new(), BTreeMap::new());
        let mut stand_ins = BTreeMap::new();
        for (column, tensor) in columns {
            if let Some(output) = column.strip_prefix("teacher.") {
                stand_ins.insert(output.to_owned(), tensor);
            } else if column == "row_ids" || known.contains(&column) {
                batch.insert(column, tensor);
            } else if owner.instance.ports().iter().any(|p| p.is_output() && p.name == column) {
                ports.insert(column, tensor);
            } else {
                let message = format!(
                    "column `{column}` of group `{name}` is neither a batch column nor a port"
                );
                return Err(refuse(&owner.name, message));
            }
        }
        let rows = from_columns(&batch, self.datasets)
            .map_err(|e| refuse(&owner.name, format!("group `{name}`: {e}")))?;
        let all: Vec<usize> = (0..rows.len()).collect();
        let mut batch = rows.gather(&all)?;
        if !batch.columns.contains_key("row_ids") {
            // Rows used as they were stored have no id; without the column the fresh ones would lose theirs.
            let none = Tensor::from_slice(&vec![-1i64; batch.rows], &[batch.rows as i64]);
            batch.columns.insert("row_ids".into(), none);
        }
        Ok(Group { scheduler, name, flags, batch, ports, stand_ins })
    }

    /// Ports with a row axis, provided for all fresh rows of the step, to the micro-batches.
    fn spread(
        &self,
        passes: &mut [Pass],
        fresh: &[usize],
        provided: &BTreeMap<(usize, String), Tensor>,
    ) -> RunResult<()> {
        let total: usize = fresh.iter().sum();
        for ((scheduler, port), tensor) in provided {
            if tensor.rows() != total {
                let message = format!("`{port}` has {} rows, the step has {total}", tensor.rows());
                return Err(refuse(&self.loaded.schedulers[*scheduler].name, message));
            }
            let mut at = 0;
            for (pass, rows) in passes.iter_mut().zip(fresh) {
                let tensor = slice_rows(tensor, total, at, at + rows);
                at += rows;
                let supplied = Supplied { from: 0, to: *rows, tensor };
                pass.supplied.insert((*scheduler, port.clone()), supplied);
            }
        }
        Ok(())
    }

    fn own_pass(&self, group: Group) -> Pass {
        let rows = group.batch.rows;
        let set = self
            .own_grads
            .iter()
            .position(|((s, name), _)| *s == group.scheduler && *name == group.name)
            .map_or(0, |i| i + 1);
        let mut pass = Pass { batch: group.batch, set, ..Pass::default() };
        pass.segments.push(Segment {
            scheduler: Some(group.scheduler),
            group: group.name,
            from: 0,
            to: rows,
            joined: group.flags & abi::GROUP_JOIN != 0,
        });
        let whole = |tensor| Supplied { from: 0, to: rows, tensor };
        for (port, tensor) in group.ports {
            pass.supplied.insert((group.scheduler, port), whole(tensor));
        }
        for (output, tensor) in group.stand_ins {
            pass.stand_ins.insert(output, vec![whole(tensor)]);
        }
        pass
    }
}

/// Adds groups to a pass of fresh rows.
fn join(pass: &mut Pass, groups: Vec<Group>) -> RunResult<()> {
    let mut parts = vec![std::mem::take(&mut pass.batch)];
    let mut at = parts[0].rows;
    for group in groups {
        let to = at + group.batch.rows;
        pass.segments.push(Segment {
            scheduler: Some(group.scheduler),
            group: group.name,
            from: at,
            to,
            joined: group.flags & abi::GROUP_JOIN != 0,
        });
        for (port, tensor) in group.ports {
            let key = (group.scheduler, port);
            // Two groups that carry one port follow each other, or the earlier one wins nothing: keep them joined.
            let supplied = match pass.supplied.remove(&key) {
                Some(before) if before.to == at => {
                    let both = concat(&[&before.tensor, &tensor], false);
                    both.map_or(Supplied { from: at, to, tensor }, |tensor| Supplied {
                        from: before.from,
                        to,
                        tensor,
                    })
                }
                _ => Supplied { from: at, to, tensor },
            };
            pass.supplied.insert(key, supplied);
        }
        for (output, tensor) in group.stand_ins {
            pass.stand_ins.entry(output).or_default().push(Supplied { from: at, to, tensor });
        }
        parts.push(group.batch);
        at = to;
    }
    pass.batch = concat_batches(&parts.iter().collect::<Vec<_>>())?;
    Ok(())
}
