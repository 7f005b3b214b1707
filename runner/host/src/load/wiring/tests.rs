//! Whole pipelines over the C plugins of `testing/plugins.c`: what is wired, and what is refused where.

use super::*;
use crate::data::{Datasets, Tokenize};
use crate::diagnostic::Diagnostic;
use crate::load::{Loaded, load, testing};
use crate::{document, plan};

const HEAD: &str = "\
version: 1
name: wired
datasets:
  rows: {format: csv, path: rows.csv, tensors: {pixel_values: {columns: [0, 2]}}, label: 3}
data: {train: rows, valid: rows}
batch: {size: 2}
epochs: 1
optimizer: {kind: sgd, lr: 0.1}
student: {uses: test.linear}
stages:
";

/// Loads `HEAD` plus stages, with plugins compiled under these defines.
fn wired(defines: &[&str], stages: &str) -> Result<Loaded, Vec<Diagnostic>> {
    let (dir, catalogue) = testing::catalogue(defines);
    std::fs::write(dir.path().join("rows.csv"), "1,2,3,0\n4,5,6,1\n7,8,9,1\n").unwrap();
    let file = dir.path().join("pipeline.yaml");
    std::fs::write(&file, format!("{HEAD}{stages}")).unwrap();
    let plan = plan::plan(&document::load(&file, &[]).unwrap_or_else(|e| panic!("{e:#?}")))
        .unwrap_or_else(|e| panic!("{e:#?}"));
    let (datasets, problems) = Datasets::open(&plan, Tokenize::Always);
    assert!(problems.is_empty(), "{problems:#?}");
    load(&plan, &catalogue, &datasets)
}

/// The problems of one distill stage: code, line of the stage part (1 = first line of `stages`), message.
fn refused(defines: &[&str], stage: &str) -> Vec<Diagnostic> {
    wired(defines, stage).err().unwrap_or_else(|| panic!("accepted: {stage}"))
}

fn only(problems: &[Diagnostic]) -> (&'static str, usize, &str) {
    let [one] = problems else { panic!("{problems:#?}") };
    let line = one.span.as_ref().map_or(0, |s| s.line - HEAD.lines().count());
    (one.code, line, one.message.as_str())
}

const STAGE: &str =
    "  - {name: a, kind: distill, teacher: {uses: test.pass}, loss: [{uses: test.mse}]";

#[test]
fn default_names_wire_a_stage_without_a_word() {
    let loaded = wired(&[], &format!("{STAGE}}}\n")).unwrap_or_else(|e| panic!("{e:#?}"));
    let stage = loaded.stages[0].as_ref().unwrap();
    let pixels = [Some(Source::Batch("pixel_values".into()))];
    assert_eq!(
        (&stage.student_inputs[..], &stage.teachers[0].inputs[..]),
        (&pixels[..], &pixels[..])
    );
    let logits = [Some(Source::Student("logits".into())), Some(Source::Teacher("logits".into()))];
    assert_eq!(stage.terms[0].inputs, logits);
    assert_eq!(
        (&stage.student_wanted[..], &stage.teacher_wanted[..]),
        (&["logits".into()][..], &["logits".into()][..])
    );
}

#[test]
fn the_three_kinds_of_frozen_student_are_wired() {
    let text = "  - {name: a, kind: distill, teacher: {self: true}, loss: [{uses: test.mse}]}
  - {name: b, kind: distill, teacher: {from: a}, loss: [{uses: test.mse}]}
  - {name: c, kind: distill, student: {from: b}, teacher: {ema: {decay: 0.9}}, loss: [{uses: test.mse}]}
";
    let loaded = wired(&[], text).unwrap_or_else(|e| panic!("{e:#?}"));
    let stage = |i: usize| loaded.stages[i].as_ref().unwrap();
    assert!(stage(0).teachers.is_empty());
    assert_eq!(stage(0).terms[0].inputs[1], Some(Source::Teacher("logits".into())));
    assert_eq!(stage(0).student_wanted, ["logits"]);
    for i in [1, 2] {
        assert_eq!(stage(i).teachers[0].instance().unwrap().id(), "test.linear");
        assert_eq!(stage(i).teacher_wanted, ["logits"]);
    }
}

#[test]
fn a_scheduler_brings_its_terms_snapshot_and_every_batch_column() {
    let text =
        format!("{STAGE}, scheduler: {{uses: test.keeper, terms: {{lwf: {{weight: 3}}}}}}}}\n");
    let loaded = wired(&[], &text).unwrap_or_else(|e| panic!("{e:#?}"));
    let stage = loaded.stages[0].as_ref().unwrap();
    let term = &stage.terms[1];
    assert_eq!(
        (term.name.as_str(), term.weight, term.rows.clone()),
        ("keeper.lwf", 3.0, TermRows::Fresh)
    );
    assert_eq!(term.inputs[1], Some(Source::Snapshot { snapshot: 0, output: "logits".into() }));
    assert_eq!(
        (stage.snapshots[0].name.as_str(), &stage.snapshots[0].wanted[..]),
        ("previous", &["logits".into()][..])
    );
    let mut names: Vec<&str> = stage.schedulers[0].inputs.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["labels", "pixel_values", "row_ids"]);
}

#[test]
fn a_term_may_see_a_row_group_and_a_wrong_one_gets_a_suggestion() {
    let stage = |rows: &str| {
        format!(
            "  - {{name: a, kind: distill, teacher: {{uses: test.pass}}, loss: [{{uses: test.mse, rows: {rows}}}], scheduler: {{uses: test.keeper}}}}\n"
        )
    };
    for rows in ["replay", "keeper.replay"] {
        let loaded = wired(&[], &stage(rows)).unwrap_or_else(|e| panic!("{e:#?}"));
        let rows = &loaded.stages[0].as_ref().unwrap().terms[0].rows;
        assert_eq!(*rows, TermRows::Group { scheduler: 0, group: "replay".into() });
    }
    let problems = refused(&[], &stage("reply"));
    assert_eq!(only(&problems), ("LMB0239", 1, "no scheduler of the stage has row group `reply`"));
    assert_eq!(problems[0].help.as_deref(), Some("did you mean `replay`?"));
}

#[test]
fn layer_pairs_become_terms_that_share_the_weight() {
    let stage = |pairs: &str| {
        format!(
            "  - {{name: a, kind: distill, teacher: {{uses: test.pass}}, loss: [{{uses: test.mse, weight: 0.5, with: {{layers: {pairs}}}}}]}}\n"
        )
    };
    let hidden = ["LOSS_READS=\"hidden\""];
    let loaded = wired(&hidden, &stage("[[0, 1], [1, 0]]")).unwrap_or_else(|e| panic!("{e:#?}"));
    let terms = &loaded.stages[0].as_ref().unwrap().terms;
    assert_eq!(terms.len(), 2);
    assert!(terms.iter().all(|t| t.weight == 0.25 && t.name == "mse"));
    assert_eq!(
        terms[0].inputs,
        [Some(Source::Student("hidden.0".into())), Some(Source::Teacher("hidden.1".into()))]
    );
    let problems = refused(&hidden, &stage("[[1, 14]]"));
    let expected =
        "layer pair [1, 14]: the teacher has hidden states 0..1 (0 is the embedding output)";
    assert_eq!(only(&problems), ("LMB0204", 1, expected));
    let problems = refused(&hidden, &format!("{STAGE}}}\n"));
    assert_eq!(problems.len(), 2, "both ports: {problems:#?}");
    assert!(
        problems.iter().all(|p| p.code == "LMB0231" && p.help.as_ref().unwrap().contains("layers"))
    );
}

#[test]
fn vocabularies_that_differ_are_named_with_both_ends() {
    let problems = refused(&["TEACHER_SHAPE=\"B,5\""], &format!("{STAGE}}}\n"));
    assert_eq!(only(&problems), ("LMB0211", 1, "vocabularies differ: teacher 5, student 2"));
    assert!(
        problems[0].notes[0].contains("`teacher.logits` comes from `test.pass` ("),
        "{problems:#?}"
    );
    assert_eq!(problems[0].context.as_deref(), Some("stage `a`, term `mse`"));
}

#[test]
fn an_optional_port_that_fits_by_name_alone_stays_empty_and_is_told() {
    let defines = ["TEACHER_SHAPE=\"B,5\"", "LOSS_TEACHER_FLAGS=LMB_PORT_OPTIONAL"];
    let loaded = wired(&defines, &format!("{STAGE}}}\n")).unwrap_or_else(|e| panic!("{e:#?}"));
    let inputs = |loaded: &Loaded| loaded.stages[0].as_ref().unwrap().terms[0].inputs.clone();
    assert_eq!(inputs(&loaded), [Some(Source::Student("logits".into())), None]);
    let message =
        "optional port `teacher.logits` is left unbound: vocabularies differ: teacher 5, student 2";
    assert_eq!(only(&loaded.warnings), ("LMB0242", 1, message));
    assert!(!loaded.warnings[0].is_error());
    // Meant, and said so.
    let meant = STAGE.replace("test.mse", "test.mse, inputs: {teacher.logits: none}");
    let loaded = wired(&defines, &format!("{meant}}}\n")).unwrap_or_else(|e| panic!("{e:#?}"));
    assert_eq!((inputs(&loaded)[1].clone(), loaded.warnings.len()), (None, 0));
    // Meant otherwise: an error, as for any port.
    let asked = STAGE.replace("test.mse", "test.mse, inputs: {teacher.logits: teacher.logits}");
    assert_eq!(only(&refused(&defines, &format!("{asked}}}\n"))).0, "LMB0211");
}

#[test]
fn a_model_of_another_input_width_is_refused_with_the_dataset() {
    let problems = refused(&["IN_SHAPE=\"B,4\""], &format!("{STAGE}}}\n"));
    assert_eq!(problems.len(), 2, "student and teacher: {problems:#?}");
    for problem in &problems {
        assert_eq!(problem.code, "LMB0233");
        assert!(
            problem.message.contains("`pixel_values` [B,3] does not fit port `pixel_values` [B,4]"),
            "{problem:?}"
        );
        assert!(problem.notes.iter().any(|n| n.contains("dataset `rows` (")), "{problem:?}");
    }
}

#[test]
fn sources_and_ports_that_do_not_exist_get_suggestions() {
    let stage = |inputs: &str| {
        format!(
            "  - {{name: a, kind: distill, teacher: {{uses: test.pass}}, loss: [{{uses: test.mse, inputs: {{{inputs}}}}}]}}\n"
        )
    };
    let problems = refused(&[], &stage("teacher.logits: teacher.logit"));
    assert_eq!(
        only(&problems),
        ("LMB0230", 1, "port `teacher.logits` reads `teacher.logit`, which does not exist")
    );
    assert_eq!(problems[0].help.as_deref(), Some("did you mean `teacher.logits`?"));
    let problems = refused(&[], &stage("teacher.logitz: teacher.logits"));
    assert_eq!(only(&problems), ("LMB0232", 1, "`test.mse` has no input port `teacher.logitz`"));
    let problems = refused(&[], &stage("teacher.logits: labels"));
    assert_eq!(
        only(&problems),
        ("LMB0234", 1, "`labels` is i64, port `teacher.logits` of `test.mse` takes f32")
    );
    // Another source of the right shape is fine.
    assert!(wired(&[], &stage("teacher.logits: teacher.hidden.1")).is_ok());
}

#[test]
fn a_term_that_needs_a_teacher_says_how_to_get_one() {
    let problems = refused(&[], "  - {name: a, kind: train, loss: [{uses: test.mse}]}\n");
    assert_eq!(
        only(&problems),
        ("LMB0241", 1, "`teacher.logits` is read and the stage has no teacher")
    );
}

#[test]
fn models_that_wait_for_each_other_are_printed_as_a_path() {
    let stage = "  - {name: a, kind: distill, student: {uses: test.linear, inputs: {pixel_values: teacher.logits}}, teacher: {uses: test.pass, inputs: {pixel_values: student.logits}}, loss: [{uses: test.mse}]}\n";
    let problems = refused(&["IN_SHAPE=\"*\""], stage);
    assert_eq!(only(&problems).0, "LMB0235");
    assert!(problems[0].message.contains("student -> teacher -> student"));
    // One direction is a use case: a teacher that reads the student.
    let stage = "  - {name: a, kind: distill, teacher: {uses: test.pass, inputs: {pixel_values: student.logits}}, loss: [{uses: test.mse}]}\n";
    assert!(wired(&["IN_SHAPE=\"*\""], stage).is_ok());
}

#[test]
fn a_term_without_a_gradient_to_the_student_is_refused() {
    let problems = refused(&["STUDENT_FLAGS=0"], &format!("{STAGE}}}\n"));
    assert_eq!(only(&problems), ("LMB0238", 1, "no gradient of term `mse` reaches the student"));
}

#[test]
fn two_schedulers_cannot_own_the_same_rows() {
    let text = format!(
        "{STAGE}, scheduler: [{{name: x, uses: test.keeper}}, {{name: y, uses: test.keeper}}]}}\n"
    );
    let problems = refused(&[], &text);
    assert_eq!(only(&problems), ("LMB0236", 1, "schedulers `x` and `y` both want the task's rows"));
}

#[test]
fn every_problem_of_every_plugin_is_reported_at_its_place() {
    let stage = "  - name: a
    kind: distill
    student: {uses: test.linear, with: {widht: 3}}
    teacher: {uses: test.linear}
    loss:
      - {uses: test.mse, with: {width: 13}}
      - {uses: test.msee}
  - {name: b, kind: distill, student: {from: a}, teacher: {ema: {decay: 0.5}}, loss: [{uses: test.mse}]}
";
    let problems = refused(&[], stage);
    let found: Vec<_> = problems
        .iter()
        .map(|p| (p.span.as_ref().unwrap().line - HEAD.lines().count(), p.code))
        .collect();
    // The student's slip is said once, though stage b takes the settings over twice.
    assert_eq!(
        found,
        [(3, "LMB0101"), (4, "LMB0237"), (6, "LMB0404"), (7, "LMB0315")],
        "{problems:#?}"
    );
    assert_eq!(problems[2].span.as_ref().unwrap().column, 40, "{problems:#?}");
    assert!(problems[3].help.as_ref().unwrap().contains("test.mse"));
}

#[test]
fn determinism_is_asked_of_every_plugin() {
    let (dir, catalogue) = testing::catalogue(&[]);
    std::fs::write(dir.path().join("rows.csv"), "1,2,3,0\n").unwrap();
    let text = format!("deterministic: true\n{HEAD}{STAGE}}}\n");
    let plan =
        plan::plan(&document::parse(&dir.path().join("p.yaml"), &text, &[]).unwrap()).unwrap();
    let (datasets, _) = Datasets::open(&plan, Tokenize::Always);
    let problems = load(&plan, &catalogue, &datasets).err().unwrap();
    assert_eq!(problems.len(), 3);
    assert!(problems.iter().all(|p| p.code == "LMB0240"), "{problems:#?}");
}

#[test]
#[ignore = "needs the built-in plugins: cargo build --release --workspace"]
fn the_repositorys_pipelines_load_with_the_built_in_plugins() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (catalogue, warnings) =
        Catalogue::discover(&testing::search(&root.join("target/release"))).unwrap();
    assert!(warnings.is_empty(), "{warnings:#?}");
    for file in std::fs::read_dir(root.join("pipelines")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let plan = plan::plan(&document::load(&file, &[]).unwrap()).unwrap();
        let (datasets, problems) = Datasets::open(&plan, Tokenize::Always);
        assert!(problems.is_empty(), "{problems:#?}");
        let loaded = load(&plan, &catalogue, &datasets)
            .unwrap_or_else(|e| panic!("{}: {e:#?}", file.display()));
        for stage in loaded.stages.iter().flatten() {
            println!("{} {:?} {:?}", file.display(), stage.student_wanted, stage.teacher_wanted);
            for term in &stage.terms {
                println!("  {} {} {:?}", term.name, term.weight, term.inputs);
            }
        }
    }
}
