//! `limbeck plugin eval`: any loss on tensors from a file, and what is said when it cannot be.

use crate::support::{self, Finished, cc, temp_dir};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::collections::BTreeMap;
use std::path::Path;

type File = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn floats(shape: &[usize], at: impl Fn(usize) -> f32) -> (Dtype, Vec<usize>, Vec<u8>) {
    let data = (0..shape.iter().product()).flat_map(|k| at(k).to_le_bytes()).collect();
    (Dtype::F32, shape.to_vec(), data)
}

fn labels(data: &[i64]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::I64, vec![data.len()], data.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn write(path: &Path, file: &File) {
    let views = file.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    std::fs::write(path, serialize(views, None).expect("serializes")).expect("writes");
}

/// Numbers of a float tensor in a file.
fn read(path: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(path).expect("the answer");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = file.tensor(name).unwrap_or_else(|_| panic!("{name} among {:?}", file.names()));
    match view.dtype() {
        Dtype::F32 => {
            let four = |c: &[u8]| f64::from(f32::from_le_bytes(c.try_into().expect("four")));
            view.data().chunks(4).map(four).collect()
        }
        Dtype::F64 => {
            view.data().chunks(8).map(|c| f64::from_le_bytes(c.try_into().expect("8"))).collect()
        }
        Dtype::BF16 => {
            let two = |c: &[u8]| f64::from(f32::from_le_bytes([0, 0, c[0], c[1]]));
            view.data().chunks(2).map(two).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Three rows, the second ignored.
fn logits() -> File {
    File::from([
        ("student.logits".to_owned(), floats(&[3, 4], |k| (k as f32 * 1.3).sin() * 2.0)),
        ("teacher.logits".to_owned(), floats(&[3, 4], |k| (k as f32 * 0.7).cos() * 2.0)),
        ("labels".to_owned(), labels(&[0, -100, 2])),
    ])
}

/// T² KL of the counted rows over their number, and its gradient, in f64 from the definition.
fn expected(temperature: f64) -> (f64, Vec<f64>) {
    let softmax = |x: &[f64]| {
        let e: Vec<f64> = x.iter().map(|x| (x / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect::<Vec<f64>>()
    };
    let (mut value, mut grad) = (0.0, vec![0.0; 12]);
    for n in [0, 2] {
        let row = |f: &dyn Fn(usize) -> f32| {
            (4 * n..4 * n + 4).map(|k| f64::from(f(k))).collect::<Vec<_>>()
        };
        let q = softmax(&row(&|k| (k as f32 * 1.3).sin() * 2.0));
        let p = softmax(&row(&|k| (k as f32 * 0.7).cos() * 2.0));
        for v in 0..4 {
            value += p[v] * (p[v] / q[v]).ln() * temperature * temperature / 2.0;
            grad[4 * n + v] = (q[v] - p[v]) * temperature / 2.0;
        }
    }
    (value, grad)
}

fn eval(folder: &Path, args: &[&str]) -> Finished {
    let fixed = ["--json", "--allow-unlocked", "plugin", "eval"];
    support::finish(support::limbeck().current_dir(folder).args(fixed).args(args))
}

fn close(found: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= bound, "{found:?} for {expected:?}");
    }
}

#[test]
fn value_metrics_and_gradients_are_those_of_the_formula() {
    let folder = temp_dir();
    write(&folder.path().join("in.safetensors"), &logits());
    let (value, grad) = expected(2.0);
    for (dtype, bound) in [("f32", 1e-6), ("f64", 1e-7), ("bf16", 2e-2)] {
        let out = format!("{dtype}.safetensors");
        let args =
            ["limbeck.kl", "--with", r#"{"temperature": 2.0}"#, "--inputs", "in.safetensors"];
        let finished =
            eval(folder.path(), &[&args[..], &["--out", &out, "--dtype", dtype]].concat());
        assert_eq!(finished.code, Some(0), "{}", finished.err);
        let answer = &finished.json()[0];
        assert_eq!(
            (answer["type"].as_str(), answer["normalizer"].as_f64()),
            (Some("evaluated"), Some(2.0))
        );
        let out = folder.path().join(&out);
        close(&read(&out, "value"), &[value], bound);
        close(&read(&out, "grad.student.logits"), &grad, bound);
        close(&read(&out, "metric.dead_rows"), &[0.0], 0.0);
    }
}

#[test]
fn a_plugin_in_c_answers_as_the_built_in_one() {
    let folder = temp_dir();
    cc::plugin(&cc::fixture("fkl.c"), folder.path(), &[]);
    write(&folder.path().join("in.safetensors"), &logits());
    let (value, grad) = expected(3.0);
    let args = ["--plugin-dir", ".", "org.example.fkl", "--with", r#"{"temperature": 3.0}"#];
    let args = [&args[..], &["--inputs", "in.safetensors", "--out", "out.safetensors"]].concat();
    let finished = eval(folder.path(), &args);
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    let out = folder.path().join("out.safetensors");
    close(&read(&out, "value"), &[value], 1e-6);
    close(&read(&out, "grad.student.logits"), &grad, 1e-6);
}

#[test]
fn parameters_of_the_loss_come_from_the_file_and_get_gradients() {
    let folder = temp_dir();
    let mut file = File::from([
        ("student.hidden".to_owned(), floats(&[2, 2], |k| k as f32)),
        ("teacher.hidden".to_owned(), floats(&[2, 1], |_| 1.0)),
        ("proj.weight".to_owned(), floats(&[1, 2], |k| 1.0 + k as f32)),
        ("proj.bias".to_owned(), floats(&[1], |_| 0.5)),
    ]);
    let path = folder.path().join("in.safetensors");
    write(&path, &file);
    let args = ["limbeck.hidden-mse", "--with", r#"{"projector": "linear"}"#];
    let args = [&args[..], &["--inputs", "in.safetensors", "--out", "out.safetensors"]].concat();
    let finished = eval(folder.path(), &args);
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    // W h + b: 2.5 and 8.5, targets 1: errors 1.5 and 7.5, two rows.
    let out = folder.path().join("out.safetensors");
    close(&read(&out, "value"), &[(1.5 * 1.5 + 7.5 * 7.5) / 2.0], 1e-5);
    close(&read(&out, "grad.proj.weight"), &[7.5 * 2.0, 1.5 + 7.5 * 3.0], 1e-5);
    close(&read(&out, "grad.proj.bias"), &[9.0], 1e-5);
    file.remove("proj.weight");
    write(&path, &file);
    let finished = eval(folder.path(), &args);
    assert_eq!(finished.code, Some(78));
    assert!(
        finished.err.contains("proj.weight") && finished.err.contains("[1, 2]"),
        "{}",
        finished.err
    );
}

#[test]
fn what_cannot_be_evaluated_is_refused_by_name() {
    let folder = temp_dir();
    let path = |name: &str| folder.path().join(name);
    write(&path("in.safetensors"), &logits());
    std::fs::write(path("text.safetensors"), "no tensors here").expect("write");
    let with = |name: &str, change: &dyn Fn(&mut File)| {
        let mut file = logits();
        change(&mut file);
        write(&path(name), &file);
    };
    with("lonely", &|f| drop(f.remove("teacher.logits")));
    with("misspelt", &|f| drop(f.insert("techer.logits".into(), floats(&[3, 4], |_| 0.0))));
    with("wide", &|f| drop(f.insert("teacher.logits".into(), floats(&[3, 5], |_| 0.0))));
    with("words", &|f| drop(f.insert("labels".into(), floats(&[3], |_| 0.0))));
    with("label", &|f| drop(f.insert("labels".into(), labels(&[0, 9, 1]))));
    for (args, code, words) in [
        (&["limbeck.kl", "--inputs", "nothing"][..], 66, "nothing"),
        (&["limbeck.kl", "--inputs", "text.safetensors"], 65, "safetensors"),
        (&["limbeck.kl", "--inputs", "lonely"], 78, "teacher.logits"),
        (&["limbeck.kl", "--inputs", "misspelt"], 78, "did you mean `teacher.logits`"),
        (&["limbeck.kl", "--inputs", "wide"], 78, "teacher.logits"),
        (&["limbeck.kl", "--inputs", "words"], 78, "it takes i64"),
        (&["limbeck.kl", "--inputs", "label"], 65, "9"),
        (&["limbeck.kI", "--inputs", "in.safetensors"], 78, "did you mean `limbeck.kl`"),
        (&["limbeck.mlp", "--inputs", "in.safetensors"], 78, "student"),
        (&["limbeck.kl", "--inputs", "in.safetensors", "--with", "{"], 2, "--with"),
        (
            &["limbeck.kl", "--inputs", "in.safetensors", "--with", r#"{"temperature": 0}"#],
            78,
            "temperature",
        ),
        (&["limbeck.kl", "--inputs", "in.safetensors", "--normalizer", "0"], 2, "--normalizer"),
        (&["limbeck.kl", "--inputs", "in.safetensors", "--device", "cuda:0"], 69, "cuda:0"),
    ] {
        let finished = eval(folder.path(), &[args, &["--out", "out.safetensors"]].concat());
        assert_eq!(finished.code, Some(code), "{args:?}: {}{}", finished.out, finished.err);
        assert!(finished.err.contains(words), "{args:?}: {}", finished.err);
        assert!(!path("out.safetensors").exists(), "{args:?} wrote an answer");
    }
}
