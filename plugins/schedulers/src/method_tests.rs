//! MAS, A-GEM, iCaRL, GDumb, PS-KD and joint training through scripted events, against formulas and counts by hand.

use crate::agem::Agem;
use crate::gdumb::Gdumb;
use crate::icarl::Icarl;
use crate::joint::Joint;
use crate::mas::Mas;
use crate::ps_kd::PsKd;
use limbeck_sdk::testing::{MockEvent, MockHost, MockInstance, Request};
use limbeck_sdk::{Column, Scheduler, abi};

fn scheduler<T: Scheduler>(host: &MockHost, config: &str) -> MockInstance {
    let mut instance = host.scheduler::<T>(config).unwrap();
    instance.activate([0, 0]).unwrap();
    instance
}

fn ids(rows: &[i64]) -> Column {
    Column::new("row_ids", &[rows.len() as i64], rows).unwrap()
}

fn labels(labels: &[i64]) -> Column {
    Column::new("labels", &[labels.len() as i64], labels).unwrap()
}

fn matrix(name: &str, width: usize, values: &[f32]) -> Column {
    Column::new(name, &[(values.len() / width) as i64, width as i64], values).unwrap()
}

fn with_params(kind: u64, theta: &[f32], grads: &[(&str, &[f32])]) -> MockEvent {
    let column = |values: &[f32]| Column::new("w", &[values.len() as i64], values).unwrap();
    let mut event = MockEvent::new(kind, 1);
    event.params = vec![column(theta)];
    event.grads =
        grads.iter().map(|(group, g)| ((*group).to_owned(), vec![Some(column(g))])).collect();
    event
}

fn written(event: &MockEvent) -> Vec<f64> {
    let first = event.grads[0].1[0].as_ref().unwrap();
    first.slice::<f32>().unwrap().iter().map(|g| f64::from(*g)).collect()
}

fn task_begin(classes: &[i64]) -> MockEvent {
    let classes = Column::new("task.classes", &[classes.len() as i64], classes).unwrap();
    MockEvent::new(abi::EVENT_TASK_BEGIN, 0).tensor(classes)
}

#[test]
fn mas_sums_the_magnitude_of_output_gradients_and_pulls_to_the_last_task() {
    let host = MockHost::new();
    let mas = scheduler::<Mas>(&host, r#"{"lambda": 3, "rows": 7}"#);
    for theta in [[1.0f32, 2.0], [0.0, 1.0]] {
        let asked = mas.event(&mut with_params(abi::EVENT_TASK_END, &theta, &[])).unwrap();
        assert!(
            matches!(&asked[..], [Request::Probe(name, _, term, _, 7, 0)] if name == "look" && term.is_empty())
        );
        let look = MockEvent::new(abi::EVENT_PROBE, 1).phase("look").tensor(ids(&[5, 6]));
        mas.event(&mut look.tensor(matrix("student.logits", 4, &[0.0; 8]))).unwrap();
        let mut end = with_params(abi::EVENT_PROBE_END, &theta, &[]).phase("look");
        let asked = mas.event(&mut end).unwrap();
        let [Request::Probe(name, _, term, columns, 0, 1)] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!((name.as_str(), term.as_str()), ("norm", "norm"));
        assert_eq!(
            (columns[0].slice::<i64>().unwrap(), columns[1].shape()),
            (&[5i64, 6][..], &[2i64, 4][..])
        );
        for grad in [[0.5f32, -1.0], [-1.5, 0.0]] {
            let mut probe = with_params(abi::EVENT_PROBE, &theta, &[("", &grad)]).phase("norm");
            mas.event(&mut probe).unwrap();
        }
        mas.event(&mut with_params(abi::EVENT_PROBE_END, &theta, &[]).phase("norm")).unwrap();
    }
    // The term is a mean over 4 columns; the mean over two rows is added once per task.
    let omega = [2.0 * 4.0 * (0.5 + 1.5) / 2.0, 2.0 * 4.0 * 1.0 / 2.0];
    let mut penalty = with_params(abi::EVENT_PENALTY, &[0.25, 3.0], &[("", &[1.0, 1.0])]);
    mas.event(&mut penalty).unwrap();
    let expected = [1.0 + 2.0 * 3.0 * omega[0] * 0.25, 1.0 + 2.0 * 3.0 * omega[1] * 2.0];
    assert!(written(&penalty).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
}

/// One step of A-GEM with gradient `g`, old rows pulling by `r`.
fn agem_step(agem: &MockInstance, g: &[f32], r: &[f32]) -> Vec<f64> {
    agem.event(&mut MockEvent::new(abi::EVENT_STEP_BEGIN, 3).tensor(ids(&[90, 91]))).unwrap();
    let mut project = with_params(abi::EVENT_PROJECT, &[0.0; 3], &[("", g), ("memory", r)]);
    agem.event(&mut project).unwrap();
    written(&project)
}

#[test]
fn agem_never_moves_against_the_rows_of_past_tasks() {
    let host = MockHost::new();
    let agem = scheduler::<Agem>(&host, r#"{"capacity": 8}"#);
    let group = &agem.schedule().unwrap().groups[0];
    assert_eq!(group.2, abi::GROUP_JOIN | abi::GROUP_OWN_GRAD);
    let (against, r) = ([1.0f32, -2.0, 0.5], [-1.0f32, 1.0, 1.0]);
    agem.event(&mut task_begin(&[0, 1])).unwrap();
    assert_eq!(agem_step(&agem, &against, &r), [1.0, -2.0, 0.5], "nothing is old yet");
    let mut collect = MockEvent::new(abi::EVENT_PROBE, 2).phase("collect").tensor(ids(&[1, 2, 3]));
    agem.event(&mut collect).unwrap();
    assert_eq!(agem_step(&agem, &against, &r), [1.0, -2.0, 0.5], "rows of the running task");
    agem.event(&mut task_begin(&[2, 3])).unwrap();
    let after = agem_step(&agem, &against, &r);
    let dot: f64 = after.iter().zip(r).map(|(a, b)| a * f64::from(b)).sum();
    assert!(dot.abs() < 1e-6, "{dot}");
    // ⟨g, r⟩ = -2.5, ⟨r, r⟩ = 3.
    assert!((after[0] - (1.0 - 2.5 / 3.0)).abs() < 1e-6);
    let with = [-1.0f32, 1.0, 0.0];
    assert_eq!(agem_step(&agem, &with, &r), [-1.0, 1.0, 0.0]);
}

fn icarl_task(icarl: &MockInstance, rows: &[i64], classes: &[i64], features: &[f32]) {
    icarl.event(&mut MockEvent::new(abi::EVENT_TASK_END, 9)).unwrap();
    let probe = MockEvent::new(abi::EVENT_PROBE, 9)
        .phase("choose")
        .tensor(ids(rows))
        .tensor(labels(classes))
        .tensor(matrix("student.features", 2, features));
    icarl
        .event(&mut probe.tensor(matrix("student.logits", 4, &vec![0.0; rows.len() * 4])))
        .unwrap();
    icarl.event(&mut MockEvent::new(abi::EVENT_PROBE_END, 9).phase("choose")).unwrap();
}

/// Row ids that are mixed into the task that begins.
fn united(requests: &[Request]) -> Vec<i64> {
    let rows = requests.iter().find_map(|r| match r {
        Request::Rows(abi::ROWS_UNION, _, _, columns) => {
            Some(columns[0].slice::<i64>().unwrap().to_vec())
        }
        _ => None,
    });
    rows.unwrap_or_default()
}

#[test]
fn icarl_shares_its_exemplars_and_weighs_both_terms_by_classes() {
    let host = MockHost::new();
    let mut icarl = scheduler::<Icarl>(&host, r#"{"capacity": 6}"#);
    let asked = icarl.event(&mut task_begin(&[0, 1])).unwrap();
    assert!(matches!(&asked[..], [Request::Probe(name, ..)] if name == "width"));
    let look = MockEvent::new(abi::EVENT_PROBE, 0).phase("width");
    icarl.event(&mut look.tensor(matrix("student.logits", 4, &[0.0; 4]))).unwrap();
    let told = icarl.event(&mut MockEvent::new(abi::EVENT_PROBE_END, 0).phase("width")).unwrap();
    assert!(told.contains(&Request::Set("weight/bce".into(), "1".into())));
    assert!(told.contains(&Request::Set("weight/bce-kd".into(), "0".into())));
    let features =
        [1.0, 0.0, 1.0, 0.1, 1.0, -0.1, 1.0, 0.2, 0.0, 1.0, 0.1, 1.0, -0.1, 1.0, 0.2, 1.0];
    icarl_task(&icarl, &[10, 11, 12, 13, 20, 21, 22, 23], &[0, 0, 0, 0, 1, 1, 1, 1], &features);
    // A cut here changes nothing.
    let saved = icarl.state_save().unwrap();
    icarl = scheduler::<Icarl>(&host, r#"{"capacity": 6}"#);
    icarl.state_load(&saved).unwrap();
    assert_eq!(icarl.state_save().unwrap(), saved);
    let told = icarl.event(&mut task_begin(&[2])).unwrap();
    let first = united(&told);
    assert_eq!(first.len(), 6);
    assert!(told.contains(&Request::Snapshot("previous".into(), 0.0)));
    let (third, two_thirds) = (1.0 / 3.0, 2.0 / 3.0);
    assert!(told.contains(&Request::Set("weight/bce".into(), format!("{third}"))));
    assert!(told.contains(&Request::Set("weight/bce-kd".into(), format!("{two_thirds}"))));
    let mask = Column::new("old_classes", &[4], &[1u8, 1, 0, 0]).unwrap();
    assert!(told.contains(&Request::Provide(mask)));
    icarl_task(
        &icarl,
        &[10, 30, 31, 32],
        &[0, 2, 2, 2],
        &[1.0, 0.0, -1.0, 0.0, -1.0, 0.1, -1.0, 0.2],
    );
    let second = united(&icarl.event(&mut task_begin(&[3])).unwrap());
    // Old lists are cut to their first two; the task's class gives two of its own.
    assert_eq!(second[..4], [first[0], first[1], first[3], first[4]]);
    assert!(second[4..].len() == 2 && second[4..].iter().all(|r| *r >= 30));
}

#[test]
fn icarl_predicts_the_nearest_class_mean() {
    let host = MockHost::new();
    let icarl = scheduler::<Icarl>(&host, r#"{"capacity": 4}"#);
    let batch = |features: &[f32]| {
        MockEvent::new(abi::EVENT_EVAL_BATCH, 1).tensor(matrix("student.features", 2, features))
    };
    icarl.event(&mut task_begin(&[0, 1])).unwrap();
    let look = MockEvent::new(abi::EVENT_PROBE, 0).phase("width");
    icarl.event(&mut look.tensor(matrix("student.logits", 3, &[0.0; 3]))).unwrap();
    assert_eq!(icarl.event(&mut MockEvent::new(abi::EVENT_EVAL_BEGIN, 1)).unwrap(), []);
    assert_eq!(icarl.event(&mut batch(&[1.0, 0.0])).unwrap(), [], "the logits decide at first");
    icarl_task(&icarl, &[1, 2], &[0, 1], &[1.0, 0.0, 0.0, 1.0]);
    let asked = icarl.event(&mut MockEvent::new(abi::EVENT_EVAL_BEGIN, 1)).unwrap();
    assert!(
        matches!(&asked[..], [Request::Probe(name, _, _, columns, 0, 0)] if name == "means" && columns.len() == 1)
    );
    let means = MockEvent::new(abi::EVENT_PROBE, 1).phase("means").tensor(ids(&[1, 2]));
    let means =
        means.tensor(labels(&[0, 1])).tensor(matrix("student.features", 2, &[2.0, 0.0, 0.0, 3.0]));
    icarl.event(&mut means.tensor(matrix("student.logits", 3, &[0.0; 6]))).unwrap();
    icarl.event(&mut MockEvent::new(abi::EVENT_PROBE_END, 1).phase("means")).unwrap();
    let asked = icarl.event(&mut batch(&[5.0, 1.0, 1.0, 9.0])).unwrap();
    let [Request::Provide(scores)] = &asked[..] else { panic!("{asked:?}") };
    let scores = scores.slice::<f32>().unwrap();
    assert!(scores[0] > scores[1] && scores[4] > scores[3], "{scores:?}");
    assert_eq!((scores[2], scores[5]), (f32::MIN, f32::MIN));
}

fn gdumb_step(
    gdumb: &MockInstance,
    number: u64,
    epoch: u64,
    rows: &[i64],
    classes: &[i64],
) -> Vec<Request> {
    let event = MockEvent::new(abi::EVENT_STEP_BEGIN, number).epoch(epoch).tensor(ids(rows));
    gdumb.event(&mut event.tensor(labels(classes))).unwrap()
}

#[test]
fn gdumb_skips_the_stream_and_fits_a_balanced_buffer_from_the_first_weights() {
    let host = MockHost::new();
    let gdumb = scheduler::<Gdumb>(&host, r#"{"capacity": 6, "epochs": 4}"#);
    let skip = Request::Set("step.skip".into(), "1".into());
    for task in 0..2u64 {
        gdumb.event(&mut task_begin(&[0, 1])).unwrap();
        for n in 0..5 {
            let first = (100 * task + 2 * n) as i64;
            let asked = gdumb_step(&gdumb, n, 0, &[first, first + 1], &[0, 1]);
            assert_eq!(asked, std::slice::from_ref(&skip));
        }
        let asked = gdumb_step(&gdumb, 5, 1, &[0, 1], &[0, 1]);
        assert_eq!(asked, [skip.clone(), Request::Set("task.end".into(), "1".into())]);
    }
    let asked = gdumb.event(&mut MockEvent::new(abi::EVENT_TASK_END, 9)).unwrap();
    let [Request::Restore(from), Request::Rows(abi::ROWS_PASS, phase, 4, columns)] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!((from.as_str(), phase.as_str()), ("init", "fit"));
    // The same two classes in both tasks: the key is (task, class), so the second task is in the buffer.
    let rows = columns[0].slice::<i64>().unwrap();
    let of = |task: i64, class: i64| {
        rows.iter().filter(|r| **r / 100 == task && **r % 2 == class).count()
    };
    assert_eq!(rows.len(), 6);
    assert!(
        [of(0, 0), of(0, 1), of(1, 0), of(1, 1)].iter().all(|n| (1..=2).contains(n)),
        "{rows:?}"
    );
    let mut fit = MockEvent::new(abi::EVENT_STEP_BEGIN, 9).phase("fit").tensor(ids(&[1]));
    assert_eq!(gdumb.event(&mut fit).unwrap(), []);
    let saved = gdumb.state_save().unwrap();
    let other = scheduler::<Gdumb>(&host, r#"{"capacity": 6, "epochs": 4}"#);
    other.state_load(&saved).unwrap();
    assert_eq!(other.event(&mut MockEvent::new(abi::EVENT_TASK_END, 9)).unwrap(), asked);
}

#[test]
fn joint_mixes_in_every_row_of_the_tasks_before() {
    let host = MockHost::new();
    let joint = scheduler::<Joint>(&host, "{}");
    assert_eq!(joint.event(&mut task_begin(&[0])).unwrap(), []);
    joint.event(&mut MockEvent::new(abi::EVENT_TASK_END, 1)).unwrap();
    for rows in [[4, 5], [5, 6]] {
        joint
            .event(&mut MockEvent::new(abi::EVENT_PROBE, 1).phase("collect").tensor(ids(&rows)))
            .unwrap();
    }
    let other = scheduler::<Joint>(&host, "{}");
    other.state_load(&joint.state_save().unwrap()).unwrap();
    for instance in [&joint, &other] {
        assert_eq!(united(&instance.event(&mut task_begin(&[1])).unwrap()), [4, 5, 6]);
    }
}

#[test]
fn every_method_defines_its_strengths_for_the_record() {
    let host = MockHost::new();
    let told = |instance: &MockInstance| instance.schedule().unwrap().definition;
    let mas = scheduler::<Mas>(&host, r#"{"lambda": 3}"#);
    assert!(told(&mas).contains("2*lambda*Omega*(theta-theta*)"));
    let agem = scheduler::<Agem>(&host, r#"{"capacity": 8}"#);
    assert!(told(&agem).contains("\"insert\":\"task_end\""));
    assert!(told(&scheduler::<Joint>(&host, "{}")).starts_with('{'));
}

#[test]
fn ps_kd_mixes_the_label_with_the_prediction_of_the_epoch_before() {
    let host = MockHost::new();
    let config = r#"{"classes": 2, "epochs": 4, "alpha": 0.8}"#;
    let ps_kd = scheduler::<PsKd>(&host, config);
    let term = &ps_kd.schedule().unwrap().terms[0];
    assert_eq!(term.loss, "limbeck.soft-ce");
    let targets = |ps_kd: &MockInstance, epoch: u64| -> Vec<f64> {
        let begin = MockEvent::new(abi::EVENT_STEP_BEGIN, 0).epoch(epoch);
        let mut begin = begin.tensor(ids(&[7, 9])).tensor(labels(&[1, 0]));
        let asked = ps_kd.event(&mut begin).unwrap();
        let [Request::Provide(target)] = &asked[..] else { panic!("{asked:?}") };
        target.slice::<f32>().unwrap().iter().map(|x| f64::from(*x).exp()).collect()
    };
    assert_eq!(targets(&ps_kd, 0), [0.0, 1.0, 1.0, 0.0], "labels alone");
    // Probabilities 1/4 and 3/4; only row 7 was seen.
    let forward = MockEvent::new(abi::EVENT_FORWARD, 0).tensor(ids(&[7]));
    let logits = matrix("student.logits", 2, &[0.0, 3.0f32.ln()]);
    ps_kd.event(&mut forward.tensor(logits)).unwrap();
    let close = |found: Vec<f64>, expected: [f64; 4]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    };
    close(targets(&ps_kd, 1), [0.4 * 0.25, 0.6 + 0.4 * 0.75, 1.0, 0.0]);
    close(targets(&ps_kd, 3), [0.8 * 0.25, 0.2 + 0.8 * 0.75, 1.0, 0.0]);
    close(targets(&ps_kd, 9), [0.8 * 0.25, 0.2 + 0.8 * 0.75, 1.0, 0.0]);
    let state = ps_kd.state_save().unwrap();
    let again = scheduler::<PsKd>(&host, config);
    again.state_load(&state).unwrap();
    assert_eq!(targets(&again, 2), targets(&ps_kd, 2));
    assert_eq!(again.state_save().unwrap(), state);
}
