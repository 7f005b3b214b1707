//! The exemplars of each class, best first, and which classes are old.
//!
//! Row ids alone; lists are in the order of herding, so cutting one keeps its best.

use limbeck_sdk::Error;
use limbeck_sdk::Result;
use limbeck_sdk::buffers::herding;
use limbeck_sdk::state::{StateReader, StateWriter};
use limbeck_sdk::vector::{from_bytes, to_bytes};
use std::collections::{BTreeMap, BTreeSet};

/// A row with its L2-normalised features.
pub struct Seen {
    pub row: i64,
    pub features: Vec<f64>,
}

/// See the module.
#[derive(Default)]
pub struct Exemplars {
    by_class: BTreeMap<i64, Vec<i64>>,
    /// Classes of the tasks before the current one.
    old: BTreeSet<i64>,
    /// Classes of the current task.
    own: BTreeSet<i64>,
}

impl Exemplars {
    /// A task with these classes begins.
    pub fn begin(&mut self, classes: Vec<i64>) {
        self.old.append(&mut self.own);
        self.own = classes.into_iter().filter(|class| !self.old.contains(class)).collect();
    }

    pub fn own(&self) -> Vec<i64> {
        self.own.iter().copied().collect()
    }

    pub fn old(&self) -> Vec<i64> {
        self.old.iter().copied().collect()
    }

    /// All kept rows, class by class.
    pub fn rows(&self) -> Vec<i64> {
        self.by_class.values().flatten().copied().collect()
    }

    /// Cuts the lists to their share and makes those of the task's classes.
    ///
    /// # Errors
    /// A share of no row.
    pub fn choose(&mut self, found: BTreeMap<i64, Vec<Seen>>, capacity: usize) -> Result<()> {
        let classes = self.old.len() + self.own.len();
        let share = capacity / classes.max(1);
        if share == 0 {
            let message =
                format!("`capacity` {capacity} has no exemplar for each of {classes} classes");
            return Err(Error::config("/capacity", message));
        }
        self.by_class.values_mut().for_each(|list| list.truncate(share));
        for (class, rows) in found.into_iter().filter(|(class, _)| self.own.contains(class)) {
            let features: Vec<Vec<f64>> = rows.iter().map(|seen| seen.features.clone()).collect();
            let list = herding(&features, share).into_iter().map(|i| rows[i].row).collect();
            self.by_class.insert(class, list);
        }
        Ok(())
    }

    pub fn save(&self, state: &mut StateWriter<'_>) -> Result<()> {
        state.bytes(&to_bytes(&self.old()))?;
        state.bytes(&to_bytes(&self.own()))?;
        state.u64(self.by_class.len() as u64)?;
        for (class, rows) in &self.by_class {
            state.u64(*class as u64)?;
            state.bytes(&to_bytes(rows))?;
        }
        Ok(())
    }

    pub fn load(&mut self, state: &mut StateReader<'_>) -> Result<()> {
        let old = from_bytes::<i64>(&state.bytes()?)?.into_iter().collect();
        let own = from_bytes::<i64>(&state.bytes()?)?.into_iter().collect();
        let mut by_class = BTreeMap::new();
        for _ in 0..state.u64()? {
            by_class.insert(state.u64()? as i64, from_bytes::<i64>(&state.bytes()?)?);
        }
        *self = Self { by_class, old, own };
        Ok(())
    }
}
