//! What the benches share: medians, the machine line, results as JSON, the PyTorch peer.
//!
//! A result file holds what was measured and where, so that a number never stands alone.
#![allow(dead_code, reason = "each bench uses its part")]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rounds of a bench; `BENCH_ROUNDS` overrides, to try a bench out.
pub fn rounds(usual: usize) -> usize {
    let asked = std::env::var("BENCH_ROUNDS").ok().and_then(|r| r.parse().ok());
    asked.filter(|r| *r > 0).unwrap_or(usual)
}

/// A fresh folder.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("limbeck-bench-").tempdir().expect("a temporary folder")
}

/// Median; the mean of the middle two of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// `{median, min, max, runs}`.
pub fn summary(values: &[f64]) -> Value {
    let fold = |f: fn(f64, f64) -> f64| values.iter().copied().reduce(f);
    json!({"median": median(values), "min": fold(f64::min), "max": fold(f64::max), "runs": values})
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(root()).output();
    output
        .map_or_else(|_| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// Processor, cores, compiler, commit, date, load of the machine before the bench.
pub fn machine() -> Value {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "rustc": said("rustc", &["--version"]),
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "date": date(),
        "load_1min": load.split(' ').next().and_then(|l| l.parse::<f64>().ok()),
    })
}

/// Today in UTC, `2026-11-25` (Hinnant, "chrono-compatible low-level date algorithms").
fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let days = seconds as i64 / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// Writes `benches/results/NAME.json` and says so.
pub fn write(name: &str, machine: &Value, results: &Value) {
    let path = root().join(format!("benches/results/{name}.json"));
    let command = format!("cargo bench --workspace --bench {name}");
    let value = json!({"bench": name, "command": command, "machine": machine, "results": results});
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("a results folder");
    std::fs::write(&path, format!("{value:#}\n")).expect("a writable results folder");
    println!("written to benches/results/{name}.json");
}

/// The interpreter that `benches/peers/setup.sh` made.
pub fn python() -> Option<PathBuf> {
    let path = root().join(".venv/bin/python");
    if path.is_file() {
        return Some(path);
    }
    println!("no .venv/: run benches/peers/setup.sh for the comparison with PyTorch");
    None
}

/// Folder of the program and its plugins: that of the binary under test.
pub fn program_dir() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_limbeck")).parent().expect("a folder").to_owned()
}

/// `limbeck run PIPELINE` into a folder of its own, quiet, two threads. Panics with its messages if the exit code is
/// not in `codes`.
pub fn run_limbeck(pipeline: &Path, sets: &[String], extra: &[&str], codes: &[i32]) {
    let runs = scratch();
    let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
    command.args(["run", "--quiet", "--progress", "none", "--threads", "2", "--fresh"]);
    command.arg("--runs").arg(runs.path()).args(extra);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.arg(pipeline).stdin(Stdio::null()).output().expect("the program starts");
    let code = output.status.code();
    assert!(
        code.is_some_and(|c| codes.contains(&c)),
        "exit {code:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
