//! Which crate may use which: the table of the design, compared with what Cargo says.

use crate::support::root;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Workspace crates that each may use (dev-dependencies apart).
const EDGES: &[(&str, &[&str])] = &[
    ("limbeck-abi", &[]),
    ("limbeck-sdk", &["limbeck-abi"]),
    ("limbeck-models", &[]),
    ("limbeck-teachers", &["limbeck-models", "limbeck-sdk"]),
    ("limbeck-students", &["limbeck-models", "limbeck-sdk"]),
    ("limbeck-losses", &["limbeck-sdk"]),
    ("limbeck-schedulers", &["limbeck-sdk"]),
    ("limbeck-host", &["limbeck-abi"]),
    ("limbeck", &["limbeck-host"]),
];

/// Crates that only these may use directly.
const RESERVED: &[(&str, &[&str])] = &[
    // The losses open the CUDA driver, where there is one.
    ("libloading", &["limbeck-host", "limbeck-losses"]),
    (
        "candle-core",
        &[
            "limbeck-losses",
            "limbeck-models",
            "limbeck-sdk",
            "limbeck-students",
            "limbeck-teachers",
        ],
    ),
    ("candle-nn", &["limbeck-models", "limbeck-students", "limbeck-teachers"]),
    ("clap", &["limbeck"]),
    ("clap_complete", &["limbeck"]),
    ("indicatif", &["limbeck"]),
    ("annotate-snippets", &["limbeck"]),
    ("tracing-subscriber", &["limbeck"]),
];

/// Packages in the lock file at most; a new one is a decision.
const MAX_LOCKED: usize = 330;

/// Direct dependencies of each workspace crate, development ones left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = std::process::Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().into_iter().flatten();
        all.filter(|d| d["kind"] != "dev").map(|d| text(&d["name"])).collect()
    };
    packages.iter().map(|p| (text(&p["name"]), of(p))).collect()
}

/// What breaks the tables, in words.
fn violations(found: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut bad = Vec::new();
    let members: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    for (name, uses) in found {
        let Some((_, allowed)) = EDGES.iter().find(|(n, _)| n == name) else {
            bad.push(format!("{name} is in no table"));
            continue;
        };
        for used in uses.iter().filter(|u| members.contains(u.as_str())) {
            if !allowed.contains(&used.as_str()) {
                bad.push(format!("{name} must not use {used}"));
            }
        }
        for (reserved, owners) in RESERVED {
            if uses.contains(*reserved) && !owners.contains(&name.as_str()) {
                bad.push(format!("{name} must not use {reserved}"));
            }
        }
        if name == "limbeck-abi" && !uses.is_empty() {
            bad.push(format!("limbeck-abi must use nothing, uses {uses:?}"));
        }
    }
    bad
}

#[test]
fn dependencies_point_in_the_allowed_directions() {
    let found = dependencies();
    assert_eq!(found.len(), EDGES.len(), "{:?}", found.keys());
    assert_eq!(violations(&found), Vec::<String>::new());
}

#[test]
fn a_forbidden_edge_is_seen() {
    let mut found = dependencies();
    let mut add = |from: &str, to: &str| {
        found.get_mut(from).expect("a member").insert(to.to_owned());
    };
    add("limbeck-host", "candle-core");
    add("limbeck-losses", "limbeck-host");
    add("limbeck-abi", "libc");
    assert_eq!(violations(&found).len(), 3, "{:?}", violations(&found));
}

#[test]
fn the_lock_file_stays_within_its_cap() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let packages = lock.lines().filter(|l| *l == "[[package]]").count();
    assert!(packages <= MAX_LOCKED, "{packages} packages, at most {MAX_LOCKED}");
}
