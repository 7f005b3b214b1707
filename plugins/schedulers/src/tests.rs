//! Scripted events through the tables: what each scheduler declares, requests, and saves.

use crate::derpp::Derpp;
use crate::er::Er;
use crate::lwf::Lwf;
use crate::none::None as Nothing;
use limbeck_sdk::testing::{MockEvent, MockHost, MockInstance, Request};
use limbeck_sdk::{Column, Scheduler, abi};

fn scheduler<T: Scheduler>(config: &str) -> MockInstance {
    let mut instance = MockHost::new().scheduler::<T>(config).unwrap();
    instance.activate([0, 0]).unwrap();
    instance
}

fn ids(rows: std::ops::Range<i64>) -> Column {
    let rows: Vec<i64> = rows.collect();
    Column::new("row_ids", &[rows.len() as i64], &rows).unwrap()
}

/// Logits that tell their row: row r has [r, r + 0.5].
fn logits(rows: std::ops::Range<i64>) -> Column {
    let values: Vec<f32> = rows.clone().flat_map(|r| [r as f32, r as f32 + 0.5]).collect();
    Column::new("student.logits", &[rows.end - rows.start, 2], &values).unwrap()
}

/// STEP_BEGIN then FORWARD of four fresh rows; gives what STEP_BEGIN asked for.
fn step(instance: &MockInstance, number: i64, epoch: u64, seed: u64) -> Vec<Request> {
    let rows = 4 * number..4 * number + 4;
    let mut begin =
        MockEvent::new(abi::EVENT_STEP_BEGIN, number as u64).epoch(epoch).tensor(ids(rows.clone()));
    begin.rng_key[1] ^= seed << 32;
    let requests = instance.event(&mut begin).unwrap();
    let mut forward =
        MockEvent::new(abi::EVENT_FORWARD, number as u64).epoch(epoch).tensor(ids(rows.clone()));
    forward.rng_key[1] ^= seed << 32;
    let forward = &mut forward.tensor(logits(rows));
    assert_eq!(instance.event(forward).unwrap(), []);
    requests
}

fn rows_of(requests: &[Request], group: &str) -> Vec<i64> {
    requests
        .iter()
        .find_map(|r| match r {
            Request::Rows(abi::ROWS_STEP, name, _, columns) if name == group => {
                Some(columns[0].slice::<i64>().unwrap().to_vec())
            }
            _ => None,
        })
        .unwrap_or_default()
}

fn task_begin(index: u64, classes: &[i64]) -> MockEvent {
    let classes = Column::new("task.classes", &[classes.len() as i64], classes).unwrap();
    MockEvent::new(abi::EVENT_TASK_BEGIN, 0).task("t", index).tensor(classes)
}

#[test]
fn none_declares_and_requests_nothing() {
    let none = scheduler::<Nothing>("{}");
    let schedule = none.schedule().unwrap();
    assert_eq!((schedule.events, schedule.groups.len(), schedule.terms.len()), (0, 0, 0));
    assert!(none.event(&mut task_begin(0, &[0])).unwrap().is_empty());
}

#[test]
fn er_replays_earlier_rows_and_never_those_of_the_same_step() {
    let er = scheduler::<Er>(r#"{"capacity": 16, "batch": 3}"#);
    assert_eq!(er.schedule().unwrap().groups, [("replay".to_owned(), 3, abi::GROUP_JOIN)]);
    assert_eq!(step(&er, 0, 0, 0), []);
    for number in 1..30 {
        let rows = rows_of(&step(&er, number, 0, 0), "replay");
        assert_eq!(rows.len(), 3);
        assert!(rows.iter().all(|r| *r < 4 * number), "step {number}: {rows:?}");
        assert!(rows[0] != rows[1] && rows[1] != rows[2] && rows[0] != rows[2], "{rows:?}");
    }
}

#[test]
fn er_draws_as_many_rows_as_there_are_fresh_ones_by_default() {
    let er = scheduler::<Er>(r#"{"capacity": 16}"#);
    step(&er, 0, 0, 0);
    assert_eq!(rows_of(&step(&er, 1, 0, 0), "replay").len(), 4);
    assert_eq!(er.schedule().unwrap().groups[0].1, 16);
}

#[test]
fn the_reservoir_of_er_keeps_every_row_equally_often() {
    let (steps, capacity, seeds) = (10i64, 10usize, 400u64);
    let mut kept = vec![0f64; 4 * steps as usize];
    for seed in 0..seeds {
        let er = scheduler::<Er>(&format!(r#"{{"capacity": {capacity}, "batch": {capacity}}}"#));
        (0..steps).for_each(|n| drop(step(&er, n, 0, seed)));
        let mut look = MockEvent::new(abi::EVENT_STEP_BEGIN, 99).tensor(ids(0..4));
        let rows = rows_of(&er.event(&mut look).unwrap(), "replay");
        assert_eq!(rows.len(), capacity);
        rows.iter().for_each(|r| kept[*r as usize] += 1.0);
    }
    let expected = seeds as f64 * capacity as f64 / kept.len() as f64;
    let chi2: f64 = kept.iter().map(|k| (k - expected).powi(2) / expected).sum();
    // Rows exclude each other, so chi2 is about (1 - 10/40) times a chi-square of 39 degrees: 99.9 % below 55.
    assert!((8.0..55.0).contains(&chi2), "{chi2}");
}

#[test]
fn insertion_happens_when_it_was_asked_for() {
    let first = scheduler::<Er>(r#"{"capacity": 16, "insert": "first_pass"}"#);
    step(&first, 0, 1, 0);
    assert_eq!(step(&first, 1, 1, 0), []);
    step(&first, 2, 0, 0);
    assert_eq!(rows_of(&step(&first, 3, 1, 0), "replay").len(), 4);

    let end = scheduler::<Er>(r#"{"capacity": 16, "insert": "task_end"}"#);
    assert_eq!(end.schedule().unwrap().events & abi::EVENT_FORWARD, 0);
    step(&end, 0, 0, 0);
    assert_eq!(step(&end, 1, 0, 0), []);
    let asked = end.event(&mut MockEvent::new(abi::EVENT_TASK_END, 2)).unwrap();
    assert!(
        matches!(&asked[..], [Request::Probe(name, model, ..)] if name == "collect" && model == "student")
    );
    let mut probe = MockEvent::new(abi::EVENT_PROBE, 2).phase("collect").tensor(ids(0..8));
    end.event(&mut probe).unwrap();
    let rows = rows_of(&step(&end, 2, 0, 0), "replay");
    assert!(rows.len() == 4 && rows.iter().all(|r| *r < 8), "{rows:?}");
}

#[test]
fn joined_and_extra_pass_rows_are_never_offered() {
    let er = scheduler::<Er>(r#"{"capacity": 16}"#);
    let mut joined = MockEvent::new(abi::EVENT_FORWARD, 0).group("replay").tensor(ids(0..4));
    let mut pass = MockEvent::new(abi::EVENT_FORWARD, 0).phase("fit").tensor(ids(0..4));
    er.event(&mut joined).unwrap();
    er.event(&mut pass).unwrap();
    assert_eq!(step(&er, 1, 0, 0), []);
}

#[test]
fn balanced_er_keeps_an_equal_share_of_each_class() {
    let er = scheduler::<Er>(r#"{"capacity": 6, "batch": 6, "policy": "balanced"}"#);
    for (number, label) in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)] {
        let rows = 4 * number..4 * number + 4;
        let labels = Column::new("labels", &[4], &[label; 4]).unwrap();
        let mut forward =
            MockEvent::new(abi::EVENT_FORWARD, number as u64).tensor(ids(rows)).tensor(labels);
        er.event(&mut forward).unwrap();
    }
    let rows = rows_of(&step(&er, 9, 0, 0), "replay");
    assert_eq!(rows.iter().filter(|r| **r < 12).count(), 3, "{rows:?}");
    assert_eq!(rows.len(), 6);
}

#[test]
fn derpp_gives_back_the_logits_that_were_stored_in_two_independent_draws() {
    let derpp = scheduler::<Derpp>(r#"{"capacity": 32, "batch": 8}"#);
    let schedule = derpp.schedule().unwrap();
    let terms: Vec<_> =
        schedule.terms.iter().map(|t| (t.name.as_str(), t.rows.as_str(), t.weight)).collect();
    assert_eq!(terms, [("logit-mse", "logit-mse", 0.5), ("ce", "ce", 0.5)]);
    assert_eq!(schedule.terms[0].inputs, [("teacher.logits".to_owned(), "self.logits".to_owned())]);
    (0..8).for_each(|n| drop(step(&derpp, n, 0, 0)));
    let requests = step(&derpp, 8, 0, 0);
    let (mse, ce) = (rows_of(&requests, "logit-mse"), rows_of(&requests, "ce"));
    assert_eq!((mse.len(), ce.len()), (8, 8));
    assert_ne!(mse, ce);
    let Request::Rows(_, _, _, columns) = &requests[0] else { panic!("{requests:?}") };
    assert_eq!(columns[1].name(), "logits");
    let expected: Vec<f32> = mse.iter().flat_map(|r| [*r as f32, *r as f32 + 0.5]).collect();
    assert_eq!(columns[1].slice::<f32>().unwrap(), expected);
}

#[test]
fn der_is_derpp_without_the_label_term() {
    let der = scheduler::<Derpp>(r#"{"capacity": 32, "beta": 0}"#);
    assert_eq!(der.schedule().unwrap().terms.len(), 1);
    step(&der, 0, 0, 0);
    let requests = step(&der, 1, 0, 0);
    assert!(rows_of(&requests, "ce").is_empty() && !rows_of(&requests, "logit-mse").is_empty());
}

#[test]
fn lwf_snapshots_the_previous_student_from_the_second_task_on() {
    let lwf = scheduler::<Lwf>(r#"{"temperature": 3.0}"#);
    let schedule = lwf.schedule().unwrap();
    assert_eq!(schedule.snapshots, ["previous"]);
    let term = &schedule.terms[0];
    assert_eq!((term.loss.as_str(), term.weight, term.rows.as_str()), ("limbeck.kl", 0.0, ""));
    assert_eq!(term.config, r#"{"temperature":3.0,"t2":true}"#);
    assert_eq!(term.inputs, [("teacher.logits".to_owned(), "previous.logits".to_owned())]);
    assert_eq!(lwf.event(&mut task_begin(0, &[0, 1])).unwrap(), []);
    for before in 1..3u64 {
        let requests = lwf.event(&mut task_begin(before, &[2, 3])).unwrap();
        let weight = Request::Set("weight/kl".into(), before.to_string());
        assert_eq!(requests, [Request::Snapshot("previous".into(), 0.0), weight]);
    }
}

#[test]
fn lwf_masks_new_classes_only_where_asked() {
    let lwf = scheduler::<Lwf>(r#"{"classes": "old", "weighting": "constant", "weight": 0.7}"#);
    let schedule = lwf.schedule().unwrap();
    assert!(
        schedule.terms[0]
            .inputs
            .contains(&("class_mask".to_owned(), "self.old_classes".to_owned()))
    );
    lwf.event(&mut task_begin(0, &[0, 3])).unwrap();
    let seen = Column::new("student.logits", &[1, 5], &[0f32; 5]).unwrap();
    lwf.event(&mut MockEvent::new(abi::EVENT_FORWARD, 0).tensor(seen)).unwrap();
    let requests = lwf.event(&mut task_begin(1, &[1, 2])).unwrap();
    assert!(requests.contains(&Request::Set("weight/kl".into(), "0.7".into())));
    let mask = Column::new("old_classes", &[5], &[1u8, 0, 0, 1, 0]).unwrap();
    assert_eq!(requests.last(), Some(&Request::Provide(mask)));
}

#[test]
fn strength_zero_requests_nothing() {
    let off = [
        scheduler::<Er>(r#"{"capacity": 0}"#),
        scheduler::<Er>(r#"{"capacity": 0, "insert": "task_end"}"#),
        scheduler::<Derpp>(r#"{"capacity": 0}"#),
        scheduler::<Derpp>(r#"{"capacity": 8, "alpha": 0, "beta": 0}"#),
        scheduler::<Lwf>(r#"{"weighting": "constant", "weight": 0}"#),
    ];
    for instance in &off {
        let schedule = instance.schedule().unwrap();
        assert!(schedule.events == 0 && schedule.groups.is_empty() && schedule.terms.is_empty());
        assert!(schedule.snapshots.is_empty());
        for number in 0..3 {
            assert_eq!(instance.event(&mut task_begin(number as u64, &[0, 1])).unwrap(), []);
            assert_eq!(step(instance, number, 0, 0), []);
            let mut end = MockEvent::new(abi::EVENT_TASK_END, number as u64);
            assert_eq!(instance.event(&mut end).unwrap(), []);
        }
    }
}

/// Runs `steps` of a stream whose task changes every 5 steps, saving and loading into a new instance before step `cut`.
fn stream<T: Scheduler>(
    config: &str,
    steps: i64,
    cut: Option<i64>,
) -> (Vec<Vec<Request>>, Vec<u8>) {
    let mut instance = scheduler::<T>(config);
    let mut all = Vec::new();
    for number in 0..steps {
        if number % 5 == 0 {
            let begin = &mut task_begin(number as u64 / 5, &[number / 5, number / 5 + 1]);
            all.push(instance.event(begin).unwrap());
        }
        if cut == Some(number) {
            let saved = instance.state_save().unwrap();
            let other = scheduler::<T>(config);
            other.state_load(&saved).unwrap();
            assert_eq!(other.state_save().unwrap(), saved, "save, load, save at step {number}");
            instance = other;
        }
        all.push(step(&instance, number, (number % 5) as u64 / 3, 0));
    }
    (all, instance.state_save().unwrap())
}

#[test]
fn a_cut_at_any_step_changes_no_request_and_no_byte_of_the_state() {
    fn check<T: Scheduler>(config: &str) {
        let whole = stream::<T>(config, 17, None);
        assert!(whole.0.iter().any(|requests| !requests.is_empty()));
        (0..17).for_each(|cut| {
            assert_eq!(stream::<T>(config, 17, Some(cut)), whole, "{} {cut}", T::ID)
        });
    }
    check::<Er>(r#"{"capacity": 9, "batch": 3}"#);
    check::<Er>(r#"{"capacity": 9, "policy": "ring", "insert": "first_pass"}"#);
    check::<Derpp>(r#"{"capacity": 9}"#);
    check::<Lwf>(r#"{"classes": "old"}"#);
}

#[test]
fn a_state_of_other_settings_or_another_plugin_is_refused() {
    let er = scheduler::<Er>(r#"{"capacity": 9}"#);
    let saved = er.state_save().unwrap();
    let other = scheduler::<Er>(r#"{"capacity": 8}"#).state_load(&saved).unwrap_err();
    assert_eq!(other.status(), abi::STATUS_BAD_DATA);
    assert!(other.message().contains("other settings"), "{other}");
    let wrong = scheduler::<Lwf>("{}").state_load(&saved).unwrap_err();
    assert!(wrong.message().contains("`limbeck.er`"), "{wrong}");
    let cut =
        scheduler::<Er>(r#"{"capacity": 9}"#).state_load(&saved[..saved.len() - 3]).unwrap_err();
    assert!(cut.message().contains("cut short"), "{cut}");
}

#[test]
fn settings_out_of_range_are_refused_at_their_key() {
    let pointer = |error: limbeck_sdk::Error| error.find_note("pointer").map(str::to_owned);
    let host = MockHost::new();
    let lwf = host.scheduler::<Lwf>(r#"{"temperature": 0}"#).err().unwrap();
    assert_eq!(pointer(lwf).as_deref(), Some("/temperature"));
    let derpp = host.scheduler::<Derpp>(r#"{"capacity": 1, "alpha": -1}"#).err().unwrap();
    assert_eq!(pointer(derpp).as_deref(), Some("/alpha"));
    let er = host.scheduler::<Er>(r#"{"capacity": 1, "batch": 0}"#).err().unwrap();
    assert_eq!(pointer(er).as_deref(), Some("/batch"));
    let missing = host.scheduler::<Er>("{}").err().unwrap();
    assert!(missing.message().contains("capacity"), "{missing}");
}

#[test]
fn er_and_lwf_stack_without_sharing_a_name_or_a_claim() {
    let (er, lwf) = (scheduler::<Er>(r#"{"capacity": 9}"#), scheduler::<Lwf>("{}"));
    let (a, b) = (er.schedule().unwrap(), lwf.schedule().unwrap());
    assert_eq!(a.claims & b.claims, 0);
    let names = |s: &limbeck_sdk::testing::MockSchedule| {
        let groups = s.groups.iter().map(|g| g.0.clone());
        groups.chain(s.terms.iter().map(|t| t.name.clone())).collect::<Vec<_>>()
    };
    assert!(names(&a).iter().all(|n| !names(&b).contains(n)));
    // LwF teaches on the fresh rows alone, whatever joined.
    assert_eq!(b.terms[0].rows, "");
}
