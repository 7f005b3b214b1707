//! Datasets from files, good and bad, through [`Datasets::open`].

use super::*;
use crate::diagnostic::{Diagnostic, Span};
use crate::plan::{
    Column, DatasetPlan, DeviceChoice, Format, TensorColumns, TensorPlan, TextColumns,
    TokenizerPlan,
};
use std::io::Write;
use std::path::Path;

/// A folder of data files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn gz(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        gz.write_all(content.as_ref()).unwrap();
        gz.finish().unwrap();
        path
    }

    fn plan(&self, datasets: impl IntoIterator<Item = DatasetPlan>) -> Plan {
        Plan {
            file: self.0.path().join("p.yaml"),
            base_dir: self.0.path().to_owned(),
            name: "p".into(),
            description: None,
            seed: 0,
            seed_is_drawn: false,
            deterministic: false,
            device: DeviceChoice::Cpu,
            datasets: datasets.into_iter().map(|d| (d.id.clone(), d)).collect(),
            tokenizer: None,
            tokenizers: BTreeMap::new(),
            plugins: Vec::new(),
            tensorboard: false,
            tasks: Vec::new(),
            stages: Vec::new(),
            resolved: serde_json::Value::Null,
            origins: BTreeMap::new(),
            text: String::new(),
            warnings: Vec::new(),
        }
    }

    fn open(&self, dataset: DatasetPlan) -> Result<Arc<Dataset>, Vec<Diagnostic>> {
        let id = dataset.id.clone();
        let (sets, problems) = open_all(&self.plan([dataset]));
        match sets.get(&id) {
            Some(set) => {
                assert_eq!(problems, []);
                Ok(Arc::clone(set))
            }
            None => Err(problems),
        }
    }
}

fn open_all(plan: &Plan) -> (Datasets, Vec<Diagnostic>) {
    let ids = plan.datasets.keys().cloned().collect();
    Datasets::open_only(plan, &ids, Tokenize::Always)
}

fn set(format: Format, path: &Path) -> DatasetPlan {
    DatasetPlan {
        id: "d".into(),
        span: Some(Span { file: Arc::new("p.yaml".into()), line: 4, column: 3, length: 1 }),
        format,
        paths: vec![path.to_owned()],
        text: None,
        texts: BTreeMap::new(),
        label: None,
        tensors: BTreeMap::new(),
        rows: None,
        classes: None,
        limit: None,
        ignore_label: None,
    }
}

fn name(text: &str) -> Column {
    Column::Name(text.into())
}

fn tensor(columns: Option<TensorColumns>) -> BTreeMap<String, TensorPlan> {
    let tensor = TensorPlan {
        columns,
        shape: None,
        scale: 1.0,
        dtype: DType::F32,
        transform: None,
        span: None,
    };
    BTreeMap::from([("x".into(), tensor)])
}

fn range(first: usize, last: usize) -> BTreeMap<String, TensorPlan> {
    tensor(Some(TensorColumns::Range(first, last)))
}

fn named(column: &str) -> BTreeMap<String, TensorPlan> {
    tensor(Some(TensorColumns::Named(name(column))))
}

fn all(set: &Dataset) -> Batch {
    set.gather(&(0..set.rows()).collect::<Vec<_>>())
}

fn f32s(batch: &Batch, column: &str) -> Vec<f32> {
    batch.columns[column].data::<f32>().unwrap().to_vec()
}

fn i64s(batch: &Batch, column: &str) -> Vec<i64> {
    batch.columns[column].data::<i64>().unwrap().to_vec()
}

/// The only problem, its place as `line:column+length`.
fn one(result: Result<Arc<Dataset>, Vec<Diagnostic>>) -> (Diagnostic, String) {
    let problems = result.err().expect("the file is bad");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let place = problems[0]
        .span
        .as_ref()
        .map_or(String::new(), |s| format!("{}:{}+{}", s.line, s.column, s.length));
    (problems[0].clone(), place)
}

/// A word-level tokenizer whose file has the trap: padding and truncation fixed at 5.
fn tokenizer(folder: &Folder, max_length: usize, pad_longest: bool) -> TokenizerPlan {
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 9, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [
            {"id": 0, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 1, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [1], "tokens": ["[SEP]"]}}
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4, "c": 5, "d": 6, "[PAD]": 9}, "unk_token": "[UNK]"}
    });
    folder.file("tokenizer.json", json.to_string());
    TokenizerPlan { path: folder.0.path().to_owned(), max_length, pad_longest, span: None }
}

mod array;
mod csv;
mod filter;
mod jsonl;
mod parquet;
mod text;
