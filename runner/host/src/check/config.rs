//! Tier `config`: settings that are valid, and texts that are not.

use super::subject::ensure;
use super::{ALL, Check, Outcome, Subject, fail, sample};
use crate::run::random::Random;
use limbeck_abi as abi;
use serde_json::Value;

/// Random valid samples.
const SAMPLES: u64 = 100;
/// Damaged texts.
const MUTATIONS: u64 = 1000;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "config.valid",
        clause: "create; LMB_INVALID_CONFIG with a pointer",
        kinds: ALL,
        run: valid,
    },
    Check { id: "config.damaged", clause: "R7, R8", kinds: ALL, run: damaged },
];

fn schema_of(subject: &mut Subject) -> Result<Value, super::Miss> {
    let text = subject.described()?.schema;
    serde_json::from_str(&text).map_err(|e| fail("JSON in config_schema", e.to_string()))
}

fn valid(subject: &mut Subject) -> Outcome {
    let schema = schema_of(subject)?;
    let validator =
        jsonschema::validator_for(&schema).map_err(|e| fail("a JSON Schema", e.to_string()))?;
    let id = subject.plugin.clone().unwrap_or_default();
    let mut draw = Random::new([subject.seed, 1]);
    let (mut created, mut refused) = (0, 0);
    for _ in 0..SAMPLES {
        let sample = sample::random(&schema, &mut draw);
        if !validator.is_valid(&sample) {
            continue;
        }
        match subject.create_with(&id, &sample.to_string())? {
            Ok(_) => created += 1,
            // Paths in a sample lead nowhere.
            Err((abi::STATUS_INVALID_CONFIG | abi::STATUS_NOT_FOUND | abi::STATUS_IO, _)) => {
                refused += 1
            }
            Err((abi::STATUS_UNSUPPORTED | abi::STATUS_OUT_OF_MEMORY, _)) => refused += 1,
            Err((_, said)) => {
                return Err(fail(format!("an instance or LMB_INVALID_CONFIG for {sample}"), said));
            }
        }
    }
    Ok(format!("{created} created, {refused} refused"))
}

fn damaged(subject: &mut Subject) -> Outcome {
    let schema = schema_of(subject)?;
    let id = subject.plugin.clone().unwrap_or_default();
    let mut draw = Random::new([subject.seed, 2]);
    let mut refused = 0;
    for _ in 0..MUTATIONS {
        let sample = sample::random(&schema, &mut draw).to_string();
        let text = sample::mutate(&sample, &mut draw);
        if let Err((status, said)) = subject.create_with(&id, &text)? {
            refused += 1;
            ensure(status != abi::STATUS_PANIC, &format!("no panic for {text:?}"), || said)?;
        }
    }
    Ok(format!("{MUTATIONS} texts, {refused} refused"))
}
