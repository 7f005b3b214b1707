//! Pipelines on text, through the program: buckets, caches, teachers with inputs of their own, folders of Hugging Face.

use crate::support::{self, limbeck, root};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Exit code and standard error of `limbeck run`.
fn run(pipeline: &Path, runs: &Path, extra: &[&str]) -> (i32, String) {
    let mut command = limbeck();
    command.arg("run").arg(pipeline).args(["--progress", "none", "--runs"]).arg(runs).args(extra);
    let output = command.env("LIMBECK_CACHE", runs.join("cache")).output().expect("starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), error)
}

fn finish(pipeline: &Path, runs: &Path, extra: &[&str]) -> PathBuf {
    let (code, error) = run(pipeline, runs, extra);
    assert_eq!(code, 0, "{error}");
    run_dir(runs)
}

/// The one run below `runs`.
fn run_dir(runs: &Path) -> PathBuf {
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).expect("a folder");
        entries
            .map(|e| e.expect("entry").path())
            .filter(|p| p.is_dir() && !p.ends_with("cache"))
            .collect()
    };
    let [pipeline] = &below(runs)[..] else { panic!("one pipeline in {runs:?}") };
    let [run] = &below(pipeline)[..] else { panic!("one run in {pipeline:?}") };
    run.clone()
}

/// Lines of the metrics of a stage.
fn lines(run: &Path, stage: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let all = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"));
    all.filter(|l| l["stage"] == stage).collect()
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/text").join(name)
}

/// Everything that must be equal, by name.
fn results(run: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let names = [
        "metrics.jsonl",
        "stages/02-cache/out/manifest.json",
        "stages/03-student/eval/final.json",
        "stages/04-export/out/model.safetensors",
        "stages/04-export/out/config.json",
    ];
    names.map(|name| (name, std::fs::read(run.join(name)).expect(name))).into()
}

#[test]
fn buckets_pairs_and_a_cache_resume_byte_for_byte() {
    let (once, often) = (support::temp_dir(), support::temp_dir());
    let pipeline = fixture("bucketed.yaml");
    let whole = results(&finish(&pipeline, once.path(), &[]));
    let mut stops = 0;
    while run(&pipeline, often.path(), &["--max-steps", "3"]).0 == 75 {
        stops += 1;
        assert!(stops < 100, "it never ends");
    }
    assert!(stops >= 10, "{stops} stops");
    let parts = results(&run_dir(often.path()));
    for (name, bytes) in &whole {
        // The number of shards tells how often a capture was stopped.
        if !name.ends_with("manifest.json") {
            assert!(*bytes == parts[name], "{name} differs after {stops} stops");
        }
    }
}

#[test]
fn a_cached_encoder_gives_the_losses_of_the_living_one() {
    let (live, cached) = (support::temp_dir(), support::temp_dir());
    let text = std::fs::read_to_string(fixture("bucketed.yaml")).expect("pipeline");
    let living = text.replace("{cache: {from: cache}}", "{from: teacher}");
    assert_ne!(text, living);
    let folder = support::temp_dir();
    for name in ["train.jsonl", "valid.jsonl", "tokenizer.json"] {
        std::fs::copy(fixture(name), folder.path().join(name)).expect("copy");
    }
    let pipeline = folder.path().join("living.yaml");
    std::fs::write(&pipeline, living).expect("write");
    let a = lines(&finish(&fixture("bucketed.yaml"), cached.path(), &[]), "student");
    let b = lines(&finish(&pipeline, live.path(), &[]), "student");
    assert_eq!(a.len(), b.len());
    // Other batches, other widths of padding: products round differently, and nothing more.
    for (a, b) in a.iter().zip(&b) {
        for name in ["kl", "hidden-mse", "agreement"] {
            let (x, y) = (a[name].as_f64(), b[name].as_f64());
            let close = x.zip(y).map_or(x == y, |(x, y)| (x - y).abs() <= 1e-6 + 1e-4 * y.abs());
            assert!(close, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn a_teacher_reads_its_own_column_through_its_own_tokenizer() {
    let runs = support::temp_dir();
    let run = finish(&root().join("pipelines/other-input.yaml"), runs.path(), &[]);
    let last = lines(&run, "student").pop().expect("an evaluation");
    assert!(last["agreement"].as_f64().expect("agreement") >= 0.5, "{last}");
    // Each student is exported with the tokenizer that it reads.
    for (stage, tokenizer) in [("teacher", "big/tokenizer.json"), ("student", "tokenizer.json")] {
        let to = runs.path().join(stage);
        let mut command = limbeck();
        command.arg("export").arg(&run).args(["--stage", stage, "--to"]).arg(&to);
        assert!(command.output().expect("starts").status.success());
        let found = std::fs::read(to.join("tokenizer.json")).expect("a tokenizer");
        assert!(found == std::fs::read(fixture(tokenizer)).expect("a tokenizer"), "{stage}");
    }
}

#[test]
fn a_teacher_that_reads_the_students_embeddings_agrees_with_its_copy() {
    let runs = support::temp_dir();
    let run = finish(&root().join("pipelines/reads-student.yaml"), runs.path(), &[]);
    let kl: Vec<f64> = lines(&run, "student").iter().filter_map(|l| l["kl"].as_f64()).collect();
    assert!(kl.len() > 10 && kl[0].abs() < 1e-6, "equal weights, equal embeddings: {kl:?}");
    assert!(kl.iter().skip(1).any(|v| *v > 1e-5), "the student moves on: {kl:?}");
}

#[test]
fn an_export_is_in_the_form_of_hugging_face_and_loads_as_a_teacher() {
    let runs = support::temp_dir();
    let run = finish(&fixture("bucketed.yaml"), runs.path(), &[]);
    let out = run.join("stages/04-export/out");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).expect("config"))
            .expect("JSON");
    assert_eq!(config["model_type"], "distilbert");
    assert_eq!(config["architectures"][0], "DistilBertForSequenceClassification");
    assert_eq!(
        (&config["dim"], &config["n_layers"], &config["n_heads"]),
        (&16.into(), &1.into(), &2.into())
    );
    assert!(out.join("tokenizer.json").is_file());
    let card = std::fs::read_to_string(out.join("README.md")).expect("card");
    for part in ["library_name: transformers", "`train.jsonl`", "kind: capture", "accuracy"] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    // A folder as others write them: a prefix less, older names of norms, another dtype key, fields nobody knows.
    let held_out = support::temp_dir();
    let bytes = std::fs::read(out.join("model.safetensors")).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let renamed: Vec<(String, safetensors::tensor::TensorView<'_>)> = file
        .iter()
        .map(|(name, view)| {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (name.strip_prefix("distilbert.").unwrap_or(&name).to_owned(), view)
        })
        .collect();
    let written = safetensors::serialize(renamed, None).expect("serialize");
    std::fs::write(held_out.path().join("model.safetensors"), written).expect("write");
    let mut other = config.as_object().expect("object").clone();
    other.remove("limbeck");
    other.insert("dtype".into(), "float32".into());
    other.insert("torch_dtype".into(), "float16".into());
    other.insert("transformers_version".into(), "9.9.9".into());
    other.insert("unheard_of".into(), serde_json::json!({"a": [1, null]}));
    std::fs::write(held_out.path().join("config.json"), serde_json::to_vec(&other).expect("JSON"))
        .expect("write");
    std::fs::copy(fixture("big/tokenizer.json"), held_out.path().join("tokenizer.json"))
        .expect("copy");
    let again = support::temp_dir();
    let pipeline = held_out.path().join("again.yaml");
    let text = format!(
        "version: 1\nname: again\ntokenizer: {{path: {tokens}, max_length: 24}}\n\
         datasets:\n  train: {{format: jsonl, path: {data}, text: {{column: text, pair: words}}, label: label}}\n\
         data: {{train: train, valid: train}}\nbatch: {{size: 8}}\noptimizer: {{kind: sgd, lr: 1e-12}}\n\
         student: {{uses: limbeck.distilbert, with: {{classes: 2, layers: 1, dropout: 0, attention_dropout: 0, head_dropout: 0}}}}\n\
         stages:\n  - name: same\n    kind: distill\n    steps: 1\n    student: {{uses: limbeck.distilbert, with: {{layers: 1, heads: 2, dim: 16, vocab_size: 28, max_positions: 32, classes: 2}}}}\n    \
         teacher: {{uses: limbeck.hf, with: {{path: {folder}}}}}\n    loss: [{{uses: limbeck.kl}}]\n    eval: {{metrics: [agreement]}}\n",
        tokens = fixture("").display(),
        data = fixture("train.jsonl").display(),
        folder = held_out.path().display(),
    );
    std::fs::write(&pipeline, text).expect("write");
    let run = finish(&pipeline, again.path(), &[]);
    assert!(lines(&run, "same").iter().any(|l| l["kl"].as_f64().is_some_and(f64::is_finite)));
}

/// Codes and places that `validate` tells of a pipeline made from `bucketed.yaml`.
fn problems(edit: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let folder = support::temp_dir();
    for name in ["train.jsonl", "valid.jsonl", "tokenizer.json"] {
        std::fs::copy(fixture(name), folder.path().join(name)).expect("copy");
    }
    let pipeline = folder.path().join("p.yaml");
    let text = std::fs::read_to_string(fixture("bucketed.yaml")).expect("pipeline");
    std::fs::write(&pipeline, edit(&text)).expect("write");
    let output = limbeck().arg("validate").arg(&pipeline).arg("--json").output().expect("starts");
    let all = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&all);
    let parsed = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    parsed
        .filter_map(|l| {
            let code = l["code"].as_str()?.to_owned();
            Some((code, format!("{}:{}", l["span"]["line"], l["span"]["column"])))
        })
        .collect()
}

#[test]
fn what_would_fail_an_hour_later_is_found_before_a_weight_is_read() {
    assert_eq!(problems(str::to_owned), []);
    let code = |edit: &dyn Fn(&str) -> String| {
        let found = problems(edit);
        assert!(!found.is_empty(), "nothing was found");
        assert!(found.iter().all(|(_, place)| !place.contains("null")), "no place: {found:?}");
        found[0].0.clone()
    };
    let replace = |from: &'static str, to: &'static str| {
        move |text: &str| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        }
    };
    assert_eq!(code(&replace("layers: [[1, 2]]", "layers: [[1, 5]]")), "LMB0204");
    assert_eq!(
        code(&replace(
            "dim: 16, vocab_size: 28, max_positions: 32, classes: 2}}\nstages",
            "dim: 16, vocab_size: 20, max_positions: 32, classes: 2}}\nstages"
        )),
        "LMB0243"
    );
    assert_eq!(code(&replace("max_length: 24", "max_length: 33")), "LMB0243");
    let large = "dim: 16, vocab_size: 280, max_positions: 32, classes: 2}}\nstages";
    let small = "dim: 16, vocab_size: 28, max_positions: 32, classes: 2}}\nstages";
    assert_eq!(code(&replace(small, large)), "LMB0245");
    let mask = "row_mask: attention_mask, ";
    assert_eq!(code(&replace(mask, "")), "LMB0242", "padding counts");
    assert_eq!(problems(replace(mask, "row_mask: none, ")), []);
    assert_eq!(code(&replace("uses: limbeck.kl", "uses: limbeck.kl, weight: -1")), "LMB0224");
    assert_eq!(code(&replace("label: label}", "label: lable}")), "LMB0505");
    assert_eq!(code(&replace("outputs: [logits, hidden.2]", "outputs: [logits]")), "LMB0231");
    // The first shard of a model that is cut in the middle.
    let folder = support::temp_dir();
    std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"bert\"}").expect("write");
    std::fs::write(folder.path().join("model.safetensors"), [9u8; 40]).expect("write");
    let cut = |text: &str| {
        let teacher =
            format!("teacher: {{uses: limbeck.hf, with: {{path: {}}}}}", folder.path().display());
        text.replace("teacher: {cache: {from: cache}}", &teacher)
    };
    let found = problems(cut);
    assert!(found.iter().any(|(code, _)| code.starts_with("LMB04")), "{found:?}");
}
