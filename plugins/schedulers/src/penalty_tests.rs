//! EWC and SI against formulas written out by hand in f64, through scripted events.

use crate::ewc::Ewc;
use crate::si::Si;
use limbeck_sdk::testing::{MockEvent, MockHost, MockInstance, Request};
use limbeck_sdk::{Column, Scheduler, abi};

fn scheduler<T: Scheduler>(host: &MockHost, config: &str) -> MockInstance {
    let mut instance = host.scheduler::<T>(config).unwrap();
    instance.activate([0, 0]).unwrap();
    instance
}

/// A student of two tensors.
fn params(values: [f32; 3]) -> Vec<Column> {
    vec![
        Column::new("a", &[2], &values[..2]).unwrap(),
        Column::new("b", &[1, 1], &values[2..]).unwrap(),
    ]
}

fn event(kind: u64, theta: [f32; 3], grad: Option<[f32; 3]>) -> MockEvent {
    let mut event = MockEvent::new(kind, 1);
    event.params = params(theta);
    if let Some(grad) = grad {
        event.grads = vec![(String::new(), params(grad).into_iter().map(Some).collect())];
    }
    event
}

fn grads(event: &MockEvent) -> Vec<f32> {
    let list = event.grads[0].1.iter().flatten();
    list.flat_map(|c| c.slice::<f32>().unwrap().to_vec()).collect()
}

/// What PENALTY adds to a gradient of 1.
fn penalty(instance: &MockInstance, theta: [f32; 3]) -> Vec<f64> {
    let mut event = event(abi::EVENT_PENALTY, theta, Some([1.0; 3]));
    assert!(instance.event(&mut event).unwrap().is_empty());
    grads(&event).iter().map(|g| f64::from(*g) - 1.0).collect()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    let near = a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()));
    assert!(near, "{a:?} is not {b:?}");
}

/// One task of empirical EWC: two examples with these gradients, ending at theta.
fn ewc_task(ewc: &MockInstance, theta: [f32; 3], examples: &[[f32; 3]]) {
    let asked = ewc.event(&mut event(abi::EVENT_TASK_END, theta, None)).unwrap();
    assert_eq!(
        asked,
        [Request::Probe("class.".into(), "student".into(), "*".into(), vec![], 400, 1)]
    );
    for grad in examples {
        let mut probe = event(abi::EVENT_PROBE, theta, Some(*grad)).phase("class.");
        ewc.event(&mut probe).unwrap();
    }
    ewc.event(&mut event(abi::EVENT_PROBE_END, theta, None).phase("class.")).unwrap();
}

const TASKS: [([f32; 3], [[f32; 3]; 2]); 3] = [
    ([0.1, -0.2, 0.3], [[1.0, 2.0, 0.0], [3.0, 0.5, 0.0]]),
    ([0.5, 0.4, -0.3], [[0.2, 1.0, 0.0], [0.1, 0.1, 0.0]]),
    ([-0.4, 0.2, 0.9], [[2.0, 0.0, 0.0], [1.0, 0.3, 0.0]]),
];

fn fisher(examples: &[[f32; 3]; 2], i: usize) -> f64 {
    examples.iter().map(|g| f64::from(g[i]).powi(2)).sum::<f64>() / 2.0
}

#[test]
fn offline_ewc_equals_the_sum_over_tasks() {
    let host = MockHost::new();
    let ewc = scheduler::<Ewc>(&host, r#"{"lambda": 7, "fisher": "empirical"}"#);
    let now = [1.0, -1.0, 0.5];
    assert_eq!(penalty(&ewc, now), [0.0; 3]);
    TASKS.iter().for_each(|(theta, examples)| ewc_task(&ewc, *theta, examples));
    let expected = |i: usize| -> f64 {
        let pull = |(theta, examples): &([f32; 3], [[f32; 3]; 2])| {
            7.0 * fisher(examples, i) * (f64::from(now[i]) - f64::from(theta[i]))
        };
        TASKS.iter().map(pull).sum()
    };
    close(&penalty(&ewc, now), &[expected(0), expected(1), expected(2)]);
    drop(ewc);
    assert_eq!(host.live_allocations(), 0);
}

#[test]
fn online_ewc_decays_and_pulls_to_the_last_task() {
    let host = MockHost::new();
    let ewc = scheduler::<Ewc>(
        &host,
        r#"{"lambda": 2, "fisher": "empirical", "mode": "online", "gamma": 0.5}"#,
    );
    TASKS[..2].iter().for_each(|(theta, examples)| ewc_task(&ewc, *theta, examples));
    let now = [1.0, -1.0, 0.5];
    let expected = |i: usize| {
        let running = 0.5 * fisher(&TASKS[0].1, i) + fisher(&TASKS[1].1, i);
        2.0 * 0.5 * running * (f64::from(now[i]) - f64::from(TASKS[1].0[i]))
    };
    close(&penalty(&ewc, now), &[expected(0), expected(1), expected(2)]);
}

#[test]
fn exact_ewc_weighs_each_class_by_its_probability() {
    let host = MockHost::new();
    let ewc = scheduler::<Ewc>(&host, r#"{"lambda": 1}"#);
    let term = &ewc.schedule().unwrap().terms[0];
    assert_eq!((term.loss.as_str(), term.weight), ("limbeck.ce", 0.0));
    assert_eq!(term.inputs, [("labels".to_owned(), "self.fisher_labels".to_owned())]);
    let asked = ewc.event(&mut event(abi::EVENT_TASK_END, [0.0; 3], None)).unwrap();
    assert!(
        matches!(&asked[..], [Request::Probe(name, _, term, _, 400, 0)] if name == "look" && term.is_empty())
    );
    let ids = Column::new("row_ids", &[2], &[30i64, 40]).unwrap();
    let logits = Column::new("student.logits", &[2, 2], &[0.0f32, 3f32.ln(), 0.0, 0.0]).unwrap();
    let look = event(abi::EVENT_PROBE, [0.0; 3], None).phase("look");
    ewc.event(&mut look.tensor(ids).tensor(logits)).unwrap();
    let asked = ewc.event(&mut event(abi::EVENT_PROBE_END, [0.0; 3], None).phase("look")).unwrap();
    let probabilities = [[0.25, 0.75], [0.5, 0.5]];
    let mut expected = [0.0f64; 3];
    assert_eq!(asked.len(), 2);
    for (class, request) in asked.iter().enumerate() {
        let Request::Probe(name, _, term, columns, 0, 1) = request else { panic!("{request:?}") };
        assert_eq!((name.as_str(), term.as_str()), (format!("class.{class}").as_str(), "fisher"));
        assert_eq!(columns[1].slice::<i64>().unwrap(), [class as i64; 2]);
        for (row, id) in columns[0].slice::<i64>().unwrap().iter().enumerate() {
            let grad = [1.0 + class as f32, row as f32, 2.0];
            let shown = Column::new("row_ids", &[1], &[*id]).unwrap();
            ewc.event(&mut event(abi::EVENT_PROBE, [0.0; 3], Some(grad)).phase(name).tensor(shown))
                .unwrap();
            for (e, g) in expected.iter_mut().zip(grad) {
                *e += probabilities[row][class] * f64::from(g).powi(2) / 2.0;
            }
        }
        ewc.event(&mut event(abi::EVENT_PROBE_END, [0.0; 3], None).phase(name)).unwrap();
    }
    close(&penalty(&ewc, [1.0; 3]), &expected);
}

#[test]
fn sampled_ewc_asks_once_with_labels_of_the_students_distribution() {
    let host = MockHost::new();
    let ewc = scheduler::<Ewc>(&host, r#"{"lambda": 1, "fisher": "sampled"}"#);
    ewc.event(&mut event(abi::EVENT_TASK_END, [0.0; 3], None)).unwrap();
    let rows: Vec<i64> = (0..2000).collect();
    let logits: Vec<f32> = rows.iter().flat_map(|_| [0.0, 3f32.ln()]).collect();
    let look = event(abi::EVENT_PROBE, [0.0; 3], None)
        .phase("look")
        .tensor(Column::new("row_ids", &[2000], &rows).unwrap())
        .tensor(Column::new("student.logits", &[2000, 2], &logits).unwrap());
    ewc.event(&mut look.clone()).unwrap();
    let asked = ewc.event(&mut event(abi::EVENT_PROBE_END, [0.0; 3], None).phase("look")).unwrap();
    let [Request::Probe(_, _, _, columns, ..)] = &asked[..] else { panic!("{}", asked.len()) };
    let ones = columns[1].slice::<i64>().unwrap().iter().sum::<i64>();
    // Mean 1500, standard deviation 19.4.
    assert!((1400..1600).contains(&ones), "{ones}");
}

/// Runs one task of SI: gradients and parameters along the path.
fn si_task(si: &MockInstance, path: &[[f32; 3]], gradients: &[[f32; 3]]) {
    si.event(&mut event(abi::EVENT_TASK_BEGIN, path[0], None)).unwrap();
    for (k, grad) in gradients.iter().enumerate() {
        si.event(&mut event(abi::EVENT_BACKWARD, path[k], Some(*grad))).unwrap();
        si.event(&mut event(abi::EVENT_STEP_END, path[k + 1], None)).unwrap();
    }
    si.event(&mut event(abi::EVENT_TASK_END, path[path.len() - 1], None)).unwrap();
}

const PATH: [[f32; 3]; 3] = [[0.0, 1.0, 2.0], [0.5, 0.5, 2.0], [0.75, 0.75, 1.0]];
const ALONG: [[f32; 3]; 2] = [[-1.0, 2.0, 3.0], [-2.0, -1.0, 0.5]];

fn si_importance(i: usize) -> f64 {
    let step = |k: usize| -f64::from(ALONG[k][i]) * f64::from(PATH[k + 1][i] - PATH[k][i]);
    (step(0) + step(1)) / (f64::from(PATH[2][i] - PATH[0][i]).powi(2) + 0.1)
}

#[test]
fn si_sums_the_path_and_pulls_to_the_end_of_the_last_task() {
    let host = MockHost::new();
    let si = scheduler::<Si>(&host, r#"{"c": 3}"#);
    assert_eq!(penalty(&si, [5.0; 3]), [0.0; 3]);
    si_task(&si, &PATH, &ALONG);
    let expected =
        |i: usize, now: f64| 2.0 * 3.0 * si_importance(i) * (now - f64::from(PATH[2][i]));
    close(&penalty(&si, [1.0, 0.0, 0.5]), &[expected(0, 1.0), expected(1, 0.0), expected(2, 0.5)]);
    si_task(&si, &PATH, &ALONG);
    let twice = |i: usize, now: f64| 2.0 * expected(i, now);
    close(&penalty(&si, [1.0, 0.0, 0.5]), &[twice(0, 1.0), twice(1, 0.0), twice(2, 0.5)]);
}

#[test]
fn a_cut_changes_neither_penalty_nor_state() {
    let host = MockHost::new();
    let config = r#"{"lambda": 7, "fisher": "empirical"}"#;
    let ewc = scheduler::<Ewc>(&host, config);
    ewc_task(&ewc, TASKS[0].0, &TASKS[0].1);
    let saved = ewc.state_save().unwrap();
    let other = scheduler::<Ewc>(&host, config);
    other.state_load(&saved).unwrap();
    assert_eq!(other.state_save().unwrap(), saved);
    for instance in [&ewc, &other] {
        ewc_task(instance, TASKS[1].0, &TASKS[1].1);
    }
    assert_eq!(penalty(&ewc, [1.0; 3]), penalty(&other, [1.0; 3]));
    assert_eq!(ewc.state_save().unwrap(), other.state_save().unwrap());

    let si = scheduler::<Si>(&host, r#"{"c": 3}"#);
    si_task(&si, &PATH, &ALONG);
    si.event(&mut event(abi::EVENT_TASK_BEGIN, PATH[2], None)).unwrap();
    si.event(&mut event(abi::EVENT_BACKWARD, PATH[2], Some([1.0; 3]))).unwrap();
    si.event(&mut event(abi::EVENT_STEP_END, PATH[1], None)).unwrap();
    let saved = si.state_save().unwrap();
    let other = scheduler::<Si>(&host, r#"{"c": 3}"#);
    other.state_load(&saved).unwrap();
    assert_eq!(other.state_save().unwrap(), saved);
    for instance in [&si, &other] {
        instance.event(&mut event(abi::EVENT_BACKWARD, PATH[1], Some([2.0; 3]))).unwrap();
        instance.event(&mut event(abi::EVENT_STEP_END, PATH[0], None)).unwrap();
        instance.event(&mut event(abi::EVENT_TASK_END, PATH[0], None)).unwrap();
    }
    assert_eq!(si.state_save().unwrap(), other.state_save().unwrap());
    assert_eq!(penalty(&si, [1.0; 3]), penalty(&other, [1.0; 3]));
}

#[test]
fn strength_zero_listens_to_nothing() {
    let host = MockHost::new();
    for instance in
        [scheduler::<Ewc>(&host, r#"{"lambda": 0}"#), scheduler::<Si>(&host, r#"{"c": 0}"#)]
    {
        let schedule = instance.schedule().unwrap();
        assert!(schedule.events == 0 && schedule.terms.is_empty());
        assert!(
            instance.event(&mut event(abi::EVENT_TASK_END, [0.0; 3], None)).unwrap().is_empty()
        );
    }
}

#[test]
fn memory_that_runs_out_is_a_clean_error() {
    let host = MockHost::new();
    for n in 0..8 {
        let si = scheduler::<Si>(&host, r#"{"c": 1}"#);
        host.fail_allocation(Some(n));
        let error = si.event(&mut event(abi::EVENT_TASK_BEGIN, [0.0; 3], None)).unwrap_err();
        assert_eq!(error.status(), abi::STATUS_OUT_OF_MEMORY, "allocation {n}");
        host.fail_allocation(None);
        si.event(&mut event(abi::EVENT_TASK_BEGIN, [0.0; 3], None)).unwrap();
        drop(si);
        assert_eq!(host.live_allocations(), 0);
    }
}
