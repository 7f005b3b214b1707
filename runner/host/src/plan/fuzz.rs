//! Mutated pipelines: always a plan or an error with a place, never a panic, always quick.
//!
//! Mutations come from a counter and a fixed hash, so a failure names the seed that shows it again.

use super::plan;
use crate::diagnostic::{Diagnostic, codes};
use crate::document;
use std::path::Path;
use std::time::{Duration, Instant};

/// SplitMix64 (Steele et al. 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn seeds() -> Vec<String> {
    ["digits.yaml", "continual-digits.yaml", "born-again.yaml"]
        .iter()
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines").join(name))
        .map(|path| std::fs::read_to_string(path).expect("readable"))
        .collect()
}

const BITS: [&str; 30] = [
    "[",
    "]",
    "{",
    "}",
    ":",
    ": ",
    "-",
    "- ",
    "\n",
    "  ",
    "\t",
    "\"",
    "'",
    "#",
    "&a",
    "*a",
    "!x",
    "<<",
    "null",
    "-1",
    "1e999",
    ".nan",
    "true",
    "é",
    "\u{feff}",
    "|",
    ">",
    "%",
    "0x",
    "99999999999999999999",
];

fn mutate(text: &str, draw: &mut Draw) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..=draw.below(3) {
        let at = draw.below(chars.len());
        let end = (at + draw.below(12)).min(chars.len());
        match draw.below(5) {
            0 => drop(chars.drain(at..end)),
            1 => drop(chars.splice(at..at, BITS[draw.below(BITS.len())].chars())),
            2 => drop(chars.splice(at..end, BITS[draw.below(BITS.len())].chars())),
            3 => {
                let copy: Vec<char> = chars[at..end].to_vec();
                let to = draw.below(chars.len());
                drop(chars.splice(to..to, copy));
            }
            _ => {
                let other = draw.below(chars.len());
                let last = chars.len() - 1;
                chars.swap(at.min(last), other.min(last));
            }
        }
        if chars.is_empty() {
            chars.push(' ');
        }
    }
    chars.into_iter().collect()
}

fn check(text: &str, what: &str) -> bool {
    let start = Instant::now();
    let result = document::parse(Path::new("p.yaml"), text, &[]).and_then(|d| plan(&d));
    assert!(start.elapsed() < Duration::from_millis(500), "{what} takes {:?}", start.elapsed());
    let Err(problems) = result else { return true };
    assert!(problems.iter().any(Diagnostic::is_error), "{what}");
    let lines = text.lines().count();
    for problem in &problems {
        assert!(codes::find(problem.code).is_some_and(|c| c.code < "LMB03"), "{what}: {problem:?}");
        let span = problem.span.as_ref().unwrap_or_else(|| panic!("{what}: no place: {problem:?}"));
        assert!(
            span.line >= 1 && span.line <= lines + 1 && span.column >= 1,
            "{what}: {problem:?}"
        );
        assert!(problem.message.len() < 400, "{what}: {problem:?}");
    }
    false
}

#[test]
fn mutated_pipelines_give_a_plan_or_errors_with_places() {
    let seeds = seeds();
    let (mut planned, total) = (0, 3000);
    for seed in 0..total {
        let mut draw = Draw(seed);
        let text = mutate(&seeds[draw.below(seeds.len())], &mut draw);
        planned += u64::from(check(&text, &format!("seed {seed}")));
    }
    // Both happen, else the mutations are too weak or too strong.
    assert!(planned > total / 50 && planned < total * 9 / 10, "{planned} of {total} are valid");
}

#[test]
fn a_pipeline_cut_at_any_place_is_no_panic() {
    for text in seeds() {
        for (at, _) in text.char_indices().step_by(7) {
            check(&text[..at], &format!("cut at {at}"));
        }
    }
}

#[test]
fn garbled_sets_are_no_panic() {
    let text = &seeds()[0];
    let base = [
        "stages.distilled.loss.kl.weight=0.5",
        "optimizer.lr=1e-3",
        "datasets.all.rows=[0, 5]",
        "stages.0.epochs=3",
    ];
    for seed in 0..2000 {
        let mut draw = Draw(seed);
        let set = mutate(base[draw.below(base.len())], &mut draw);
        if let Ok(document) = document::parse(Path::new("p.yaml"), text, std::slice::from_ref(&set))
        {
            let _ = plan(&document);
        }
    }
}
