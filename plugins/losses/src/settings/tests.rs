//! What the settings refuse, with the pointer of the culprit.

use super::*;
use serde_json::json;

fn pointer(id: &str, config: serde_json::Value) -> String {
    parse(id, &config).expect_err("must be refused").pointer
}

#[test]
fn zero_negative_and_huge_temperatures_are_refused_at_their_key() {
    for t in [0.0, -1.0, 1000.5] {
        assert_eq!(pointer("fkl", json!({"temperature": t})), "/temperature");
        assert_eq!(pointer("lwf", json!({"teacher_temperature": t})), "/teacher_temperature");
    }
}

#[test]
fn unknown_keys_are_refused() {
    let error = parse("fkl", &json!({"temprature": 2.0})).expect_err("must be refused");
    assert!(error.message.contains("temprature"), "{}", error.message);
    assert!(parse("ce", &json!({"temperature": 2.0})).is_err());
}

#[test]
fn a_student_tail_is_refused_where_a_reverse_kl_takes_part() {
    assert_eq!(pointer("rkl", json!({"vocab": "student_tail"})), "/vocab");
    assert_eq!(pointer("sym_kl", json!({"vocab": "student_tail"})), "/vocab");
    assert_eq!(pointer("gjsd", json!({"vocab": "student_tail", "beta": 1.0})), "/vocab");
    assert!(parse("gjsd", &json!({"vocab": "student_tail"})).is_ok());
}

#[test]
fn end_points_become_the_divergence_that_they_are() {
    let dense = |id: &str, config| match parse(id, &config) {
        Ok(Spec::Dense(dense)) => dense.divergence,
        other => panic!("{other:?}"),
    };
    assert_eq!(dense("gjsd", json!({"beta": 0.0})), Divergence::ForwardKl);
    assert_eq!(dense("gjsd", json!({"beta": 1.0})), Divergence::ReverseKl);
    assert_eq!(dense("skl", json!({"alpha": 0.0})), Divergence::ForwardKl);
    assert_eq!(dense("srkl", json!({"alpha": 0.0})), Divergence::ReverseKl);
    assert_eq!(dense("alpha_div", json!({"alpha": 0.0})), Divergence::ReverseKl);
    assert_eq!(dense("renyi", json!({"alpha": 1.0})), Divergence::ForwardKl);
}

#[test]
fn only_soft_ce_leaves_t_squared_out_by_default() {
    for (id, factor) in [("fkl", 9.0), ("gjsd", 9.0), ("dkd", 9.0), ("soft_ce", 1.0)] {
        match parse(id, &json!({"temperature": 3.0})) {
            Ok(Spec::Dense(dense)) => assert_eq!(dense.softening.factor, factor, "{id}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn lists_point_at_their_entry() {
    assert_eq!(pointer("mmd", json!({"sigma2": [1.0, -2.0]})), "/sigma2/1");
    assert_eq!(pointer("at", json!({"p": 3})), "/p");
}
