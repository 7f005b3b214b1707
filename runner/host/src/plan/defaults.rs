//! Top-level stage keys as defaults of the stages that train.
//!
//! A stage's own key replaces the default whole, `null` replaces it with nothing. Own `steps` drops a default
//! `epochs` and back, own `data` drops the default `tasks` and back; a `train` stage takes no default teacher.

use crate::document::{Field, Node};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys of a stage that may stand at top level, in the order of the resolved pipeline.
pub const STAGE_KEYS: [&str; 17] = [
    "tasks",
    "data",
    "student",
    "teacher",
    "loss",
    "scheduler",
    "batch",
    "epochs",
    "steps",
    "optimizer",
    "lr_schedule",
    "dtype",
    "eval",
    "checkpoint",
    "on_nonfinite",
    "stop_if",
    "gates",
];

/// Which defaults some stage took; the others are checked on their own.
#[derive(Default)]
pub struct Taken(RefCell<BTreeSet<String>>);

impl Taken {
    /// Whether a stage took this default.
    pub fn contains(&self, key: &str) -> bool {
        self.0.borrow().contains(key)
    }
}

/// The stage's own fields, then the defaults it does not replace. `tasks` are declared at top level, not inherited.
pub fn stage_fields(own: &Node, top: &[Field], distill: bool, taken: &Taken) -> Vec<Field> {
    let mut fields: Vec<Field> = own
        .entries()
        .iter()
        .map(|e| Field {
            key: e.key.clone(),
            key_span: e.key_span.clone(),
            node: e.node.clone(),
            inherited: false,
        })
        .collect();
    let has = |key: &str| own.entries().iter().any(|e| &*e.key == key);
    for default in top {
        let key = &*default.key;
        let replaced = has(key)
            || match key {
                "tasks" => true,
                "data" => has("tasks"),
                "epochs" => has("steps"),
                "steps" => has("epochs"),
                "teacher" => !distill,
                _ => !STAGE_KEYS.contains(&key),
            };
        if !replaced {
            taken.0.borrow_mut().insert(key.to_owned());
            fields.push(Field { inherited: true, ..default.clone() });
        }
    }
    fields
}
