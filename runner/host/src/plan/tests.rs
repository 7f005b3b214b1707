//! Documents to plans and back, on the repository's own pipelines.

use super::*;
use crate::document;
use std::path::{Path, PathBuf};

fn pipeline(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines").join(name)
}

fn planned(path: &Path, sets: &[&str]) -> Result<Plan, Diagnostics> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    plan(&document::load(path, &sets)?)
}

fn planned_text(text: &str) -> Result<Plan, Diagnostics> {
    plan(&document::parse(Path::new("p.yaml"), text, &[])?)
}

#[test]
fn the_quick_start_is_planned_with_its_numbers() {
    let plan = planned(&pipeline("digits.yaml"), &[]).expect("valid");
    assert_eq!((plan.name.as_str(), plan.seed, plan.stages.len()), ("digits", 7, 4));
    let steps: Vec<_> = plan
        .stages
        .iter()
        .filter_map(StagePlan::training)
        .map(|t| estimate::steps(t, |id| Some(if id == "all" { 1437 } else { 1294 })))
        .collect();
    assert_eq!(steps, [[Some(900)], [Some(1640)], [Some(2460)]]);
    let distilled = plan.stages[2].training().expect("trains");
    assert!(matches!(&distilled.teacher, Some(TeacherPlan::Stage { from, student })
        if from.stage == 0 && student.with["hidden"] == serde_json::json!([256, 256])));
    assert_eq!(distilled.loss[0].name, "kl");
    assert_eq!(distilled.eval.metrics, [Metric::Accuracy, Metric::Recall(3)]);
    assert_eq!(plan.datasets["no-3s"].classes.as_ref().map(Vec::len), Some(9));
    assert_eq!(plan.datasets["held-out"].rows, Some((1437, 1797)));
    assert!(plan.warnings.is_empty(), "{:#?}", plan.warnings);
}

#[test]
fn a_resolved_pipeline_is_a_pipeline_that_resolves_to_itself() {
    for name in ["digits.yaml", "continual-digits.yaml", "born-again.yaml"] {
        let first = planned(&pipeline(name), &[]).unwrap_or_else(|e| panic!("{name}: {e:#?}"));
        let text = serde_yaml::to_string(&first.resolved).expect("YAML");
        let again = planned_text(&text).unwrap_or_else(|e| panic!("{name}: {e:#?}\n{text}"));
        assert_eq!(
            serde_json::to_string_pretty(&first.resolved).expect("JSON"),
            serde_json::to_string_pretty(&again.resolved).expect("JSON"),
            "{name}"
        );
    }
}
