//! Datasets from files, good and bad, through [`Datasets::open`].

use super::*;
use crate::diagnostic::{Diagnostic, Span};
use crate::plan::{
    Column, DatasetPlan, DeviceChoice, Format, TensorColumns, TensorPlan, TextColumns,
    TokenizerPlan,
};
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::ByteArray;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
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
            deterministic: false,
            device: DeviceChoice::Cpu,
            datasets: datasets.into_iter().map(|d| (d.id.clone(), d)).collect(),
            tokenizer: None,
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
    Datasets::open_only(plan, &plan.datasets.keys().cloned().collect())
}

fn set(format: Format, path: &Path) -> DatasetPlan {
    DatasetPlan {
        id: "d".into(),
        span: Some(Span { file: Arc::new("p.yaml".into()), line: 4, column: 3, length: 1 }),
        format,
        paths: vec![path.to_owned()],
        text: None,
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
    let tensor = TensorPlan { columns, shape: None, scale: 1.0, dtype: DType::F32, span: None };
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

// ---- csv

#[test]
fn the_digits_are_read_as_the_quick_start_describes_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/data/digits.csv.gz");
    let mut tensors = range(0, 63);
    tensors.get_mut("x").unwrap().scale = 0.0625;
    let base = DatasetPlan {
        label: Some(Column::Index(64)),
        tensors,
        rows: Some((0, 1437)),
        ..set(Format::Csv, &path)
    };
    let no_3s = DatasetPlan {
        id: "no-3s".into(),
        classes: Some(vec![0, 1, 2, 4, 5, 6, 7, 8, 9]),
        ..base.clone()
    };
    let held_out = DatasetPlan { id: "held-out".into(), rows: Some((1437, 1797)), ..base.clone() };
    let started = std::time::Instant::now();
    let (sets, problems) = open_all(&Folder::new().plan([base, no_3s, held_out]));
    let took = started.elapsed();
    assert_eq!(problems, []);
    let rows = ["d", "no-3s", "held-out"].map(|id| sets.get(id).unwrap().rows());
    assert_eq!([rows[0], rows[2]], [1437, 360]);
    assert_eq!(sets.get("d").unwrap().classes(), (0..10).collect::<Vec<_>>());
    assert_eq!(sets.get("no-3s").unwrap().classes(), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    let threes = i64s(&all(sets.get("d").unwrap()), "labels").iter().filter(|l| **l == 3).count();
    assert_eq!(rows[1] + threes, 1437);
    let batch = sets.get("d").unwrap().gather(&[1, 0]);
    assert_eq!(i64s(&batch, "labels"), [1, 0]);
    assert_eq!(
        f32s(&batch, "x")[64..70],
        [0.0, 0.0, 5.0 / 16.0, 13.0 / 16.0, 9.0 / 16.0, 1.0 / 16.0]
    );
    assert_eq!(
        sets.get("d").unwrap().hashes()[0].1,
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    );
    // One parse for the three views.
    assert!(Arc::ptr_eq(
        &sets.get("d").unwrap().table.numbers[0].1,
        &sets.get("held-out").unwrap().table.numbers[0].1
    ));
    assert!(took.as_millis() < 200, "{took:?}");
}

#[test]
fn a_header_is_told_by_a_word_in_the_first_row() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "a, b ,y\n1,2,0\n3,4.5,1\n");
    let mut plan =
        DatasetPlan { label: Some(name("y")), tensors: named("b"), ..set(Format::Csv, &path) };
    let batch = all(&folder.open(plan.clone()).unwrap());
    assert_eq!(f32s(&batch, "x"), [2.0, 4.5]);
    assert_eq!(i64s(&batch, "labels"), [0, 1]);
    assert_eq!(batch.columns["x"].shape(), [2, 1]);
    plan.paths = vec![folder.file("b.csv", "1,2,0\n3,4.5,1\n")];
    let (problem, _) = one(folder.open(DatasetPlan { label: None, ..plan.clone() }));
    assert_eq!(problem.code, "LMB0505");
    assert!(problem.message.contains("no header"), "{problem:?}");
}

#[test]
fn a_bad_cell_has_line_column_and_text() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "a,b,y\n1,2,0\n3,4é5,1\n");
    let plan =
        DatasetPlan { label: Some(name("y")), tensors: range(0, 1), ..set(Format::Csv, &path) };
    let (problem, place) = one(folder.open(plan.clone()));
    assert_eq!((problem.code, place.as_str()), ("LMB0506", "3:3+3"));
    assert_eq!(problem.message, "`4é5` is not a number");
    assert_eq!(problem.context.as_deref(), Some("row 1, column `b`"));
    assert_eq!(problem.notes, ["dataset `d`, p.yaml:4:3"]);
    assert_eq!(problem.span.unwrap().file.as_path(), path);
    let gz = folder.gz("a.csv.gz", "a,b,y\n1,2,0\n3,4x5,1\n");
    let (_, place) = one(folder.open(DatasetPlan { paths: vec![gz], ..plan }));
    assert_eq!(place, "3:3+3");
}

#[test]
fn places_are_right_after_quoted_line_ends_and_a_byte_order_mark() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "\u{feff}t,n\n\"one\ntwo, \"\"x\"\"\",1\n\n\"a,\nb\",x\n");
    let plan = DatasetPlan { tensors: named("n"), ..set(Format::Csv, &path) };
    let (problem, place) = one(folder.open(plan));
    assert_eq!((problem.message.as_str(), place.as_str()), ("`x` is not a number", "6:4+1"));
}

#[test]
fn rows_of_another_length_and_missing_values_are_refused() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "1,2\n\n3\n4,\n5,6,7\n");
    let plan = DatasetPlan { tensors: range(0, 1), ..set(Format::Csv, &path) };
    let problems = folder.open(plan).err().unwrap();
    let found: Vec<_> = problems.iter().map(|p| (p.code, p.span.as_ref().unwrap().line)).collect();
    assert_eq!(found, [("LMB0508", 3), ("LMB0518", 4), ("LMB0508", 5)]);
}

#[test]
fn at_most_ten_problems_of_a_dataset_are_told() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "a,b\n".to_owned() + &"x,y\n".repeat(100));
    let problems =
        folder.open(DatasetPlan { tensors: range(0, 1), ..set(Format::Csv, &path) }).err().unwrap();
    assert_eq!(problems.len(), 10);
    assert!(problems[9].notes[1].contains("stopped after 10"), "{:?}", problems[9]);
}

#[test]
fn bad_labels_are_refused_with_their_place() {
    let folder = Folder::new();
    for (content, code, part) in [
        ("1,cat\n", "LMB0505", "no column `y`"),
        ("x,y\n1,-1\n", "LMB0507", "label -1 is negative"),
        ("x,y\n1,nan\n", "LMB0507", "NaN"),
        ("x,y\n1,cat\n", "LMB0507", "`cat` is no class number"),
        ("x,y\n1,\n", "LMB0518", "missing"),
        ("x,y\n1,1.5\n", "LMB0507", "1.5"),
    ] {
        let path = folder.file("a.csv", content);
        let (problem, place) =
            one(folder.open(DatasetPlan { label: Some(name("y")), ..set(Format::Csv, &path) }));
        assert_eq!(problem.code, code, "{problem:?}");
        assert!(problem.message.contains(part), "{problem:?}");
        assert!(code == "LMB0505" || place.starts_with("2:3+"), "{place}");
    }
    let path = folder.file("a.csv", "x,y\n1,-1\n1,2\n");
    let plan =
        DatasetPlan { label: Some(name("y")), ignore_label: Some(-1), ..set(Format::Csv, &path) };
    let set = folder.open(plan).unwrap();
    assert_eq!(i64s(&all(&set), "labels"), [-100, 2]);
    assert_eq!(set.classes(), [2]);
}

#[test]
fn unknown_columns_suggest_a_known_one() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "text,label\nhello,1\n");
    let (problem, _) =
        one(folder.open(DatasetPlan { label: Some(name("lable")), ..set(Format::Csv, &path) }));
    assert_eq!(problem.help.as_deref(), Some("did you mean `label`?"));
    let (problem, _) =
        one(folder.open(DatasetPlan { label: Some(Column::Index(2)), ..set(Format::Csv, &path) }));
    assert!(problem.message.contains("the file has 2"), "{problem:?}");
}

#[test]
fn broken_compression_and_foreign_encodings_are_told() {
    let folder = Folder::new();
    let whole = std::fs::read(folder.gz("w.gz", "1,2\n".repeat(5000))).unwrap();
    let cut = folder.file("cut.csv.gz", &whole[..whole.len() / 2]);
    assert_eq!(
        one(folder.open(DatasetPlan { tensors: range(0, 1), ..set(Format::Csv, &cut) })).0.code,
        "LMB0503"
    );
    let mut bytes = vec![0xff, 0xfe];
    bytes.extend("1,2\n".encode_utf16().flat_map(u16::to_le_bytes));
    let utf16 = folder.file("utf16.csv", bytes);
    for format in [Format::Csv, Format::Jsonl] {
        let (problem, _) =
            one(folder.open(DatasetPlan { label: Some(name("a")), ..set(format, &utf16) }));
        assert_eq!(problem.code, "LMB0504");
    }
}

#[test]
fn several_files_are_one_run_of_rows_with_headers_of_their_own() {
    let folder = Folder::new();
    folder.file("t-2.csv", "y,x\n3,30\n");
    folder.file("t-1.csv", "x,y\n10,1\n20,2\n");
    let plan = DatasetPlan {
        label: Some(name("y")),
        tensors: named("x"),
        ..set(Format::Csv, &folder.0.path().join("t-*.csv"))
    };
    let set = folder.open(plan).unwrap();
    let batch = all(&set);
    assert_eq!(
        (f32s(&batch, "x"), i64s(&batch, "labels")),
        (vec![10.0, 20.0, 30.0], vec![1, 2, 3])
    );
    assert_eq!(set.hashes().len(), 2);
}

// ---- filters and ids

fn ten(folder: &Folder) -> DatasetPlan {
    let text: String = (0..10).map(|i| format!("{i},{}\n", i % 3)).collect();
    DatasetPlan {
        label: Some(Column::Index(1)),
        tensors: range(0, 0),
        ..set(Format::Csv, &folder.file("ten.csv", text))
    }
}

#[test]
fn filters_apply_in_order_rows_classes_limit() {
    let folder = Folder::new();
    let plan = DatasetPlan {
        rows: Some((2, 9)),
        classes: Some(vec![0, 2]),
        limit: Some(3),
        ..ten(&folder)
    };
    let set = folder.open(plan).unwrap();
    assert_eq!(f32s(&all(&set), "x"), [2.0, 3.0, 5.0]);
    let set =
        folder.open(DatasetPlan { rows: Some((2, 100)), limit: Some(2), ..ten(&folder) }).unwrap();
    assert_eq!(f32s(&all(&set), "x"), [2.0, 3.0]);
}

#[test]
fn a_limit_stops_reading_before_later_rows() {
    let folder = Folder::new();
    let path = folder.file("a.csv", "1,0\n2,1\nbad,1\n");
    let plan = DatasetPlan { tensors: range(0, 1), limit: Some(2), ..set(Format::Csv, &path) };
    assert_eq!(folder.open(plan).unwrap().rows(), 2);
}

#[test]
fn filters_that_leave_nothing_or_reach_past_the_end_are_refused() {
    let folder = Folder::new();
    for (plan, code) in [
        (DatasetPlan { rows: Some((2, 11)), ..ten(&folder) }, "LMB0512"),
        (DatasetPlan { rows: Some((20, 30)), limit: Some(1), ..ten(&folder) }, "LMB0512"),
        (DatasetPlan { classes: Some(vec![7]), ..ten(&folder) }, "LMB0513"),
        (DatasetPlan { rows: Some((3, 3)), ..ten(&folder) }, "LMB0513"),
        (DatasetPlan { classes: Some(vec![1]), label: None, ..ten(&folder) }, "LMB0517"),
    ] {
        let (problem, place) = one(folder.open(plan));
        assert_eq!((problem.code, place.as_str()), (code, "4:3+1"), "{problem:?}");
    }
}

#[test]
fn row_ids_survive_filters_and_find_their_rows_again() {
    let folder = Folder::new();
    let base = ten(&folder);
    let odd = DatasetPlan { id: "view".into(), classes: Some(vec![1]), ..base.clone() };
    let other = DatasetPlan { id: "other".into(), tensors: range(1, 1), ..base.clone() };
    let (sets, problems) = open_all(&folder.plan([base, odd, other]));
    assert_eq!(problems, []);
    let get = |id: &str| sets.get(id).unwrap();
    let ids = i64s(&all(get("view")), "row_ids");
    assert_eq!(ids, [1, 4, 7]);
    let other_ids = i64s(&all(get("other")), "row_ids");
    assert_eq!(other_ids[1], 1 + (1 << SOURCE_SHIFT), "other columns, other source");
    let found = sets.locate(&[7, other_ids[2]]).unwrap();
    assert_eq!(found[0].0.gather(&[found[0].1]).columns["x"].data::<f32>().unwrap(), [7.0]);
    assert_eq!((found[1].0.id(), found[1].1), ("other", 2));
    assert!(sets.locate(&[10]).is_none());
    assert!(sets.locate(&[-1]).is_none());
    assert_eq!(get("view").position(4), Some(1));
    assert_eq!(get("view").row_id(2), Some(7));
}

#[test]
fn a_bad_dataset_does_not_hide_another() {
    let folder = Folder::new();
    let bad = DatasetPlan {
        id: "bad".into(),
        paths: vec![folder.0.path().join("none.csv")],
        ..ten(&folder)
    };
    let worse = DatasetPlan {
        id: "worse".into(),
        tensors: range(0, 1),
        ..set(Format::Csv, &folder.file("w.csv", "1,a\n"))
    };
    let (sets, problems) = open_all(&folder.plan([ten(&folder), bad, worse]));
    assert!(sets.get("d").is_some() && sets.get("bad").is_none() && sets.get("worse").is_none());
    let mut codes: Vec<_> = problems.iter().map(|p| p.code).collect();
    codes.sort_unstable();
    // `w.csv` has a header by the rule, and no rows.
    assert_eq!(codes, ["LMB0501", "LMB0513"]);
}

#[test]
fn names_of_columns_may_not_collide() {
    let folder = Folder::new();
    let mut plan = ten(&folder);
    plan.tensors = BTreeMap::from([("labels".into(), range(0, 0)["x"].clone())]);
    assert_eq!(one(folder.open(plan)).0.code, "LMB0517");
}

// ---- jsonl

#[test]
fn jsonl_gives_numbers_lists_and_labels() {
    let folder = Folder::new();
    let content = "{\"y\":1,\"v\":[[1,2],[3,4.5]],\"other\":{\"deep\":[{}]}}\n\n{\"v\":[[5,6],[7,8]],\"y\":true}\n";
    for path in [folder.file("a.jsonl", content), folder.gz("a.jsonl.gz", content)] {
        let mut tensors = named("v");
        tensors.get_mut("x").unwrap().shape = Some(vec![2, 2]);
        let plan = DatasetPlan { label: Some(name("y")), tensors, ..set(Format::Jsonl, &path) };
        let set = folder.open(plan).unwrap();
        let batch = all(&set);
        assert_eq!(f32s(&batch, "x"), [1.0, 2.0, 3.0, 4.5, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(batch.columns["x"].shape(), [2, 2, 2]);
        assert_eq!(i64s(&batch, "labels"), [1, 1]);
        let names: Vec<_> = set.columns().into_iter().map(|c| (c.name, c.row_shape)).collect();
        assert_eq!(
            names,
            [("labels".into(), vec![]), ("row_ids".into(), vec![]), ("x".into(), vec![2, 2])]
        );
    }
}

#[test]
fn bad_jsonl_lines_have_line_and_column() {
    let folder = Folder::new();
    for (line, code, part, place) in [
        ("{\"y\":1,\"v\":[1,2]", "LMB0509", "broken JSON: EOF", "2:16+1"),
        ("[1]", "LMB0509", "expected an object", "2:"),
        ("{\"v\":[1,2]}", "LMB0505", "no key `y`; the object has `v`", "2:1+1"),
        ("{\"y\":null,\"v\":[1,2]}", "LMB0518", "null", "2:2+3"),
        ("{\"v\":[1,2],\"y\":-1}", "LMB0507", "label -1", "2:12+3"),
        ("{\"y\":1,\"v\":[1]}", "LMB0508", "1 values, but shape [2] needs 2", "2:8+3"),
        ("{\"y\":1,\"v\":\"a\"}", "LMB0506", "text \"a\"", "2:8+3"),
        ("{\"y\":1,\"v\":{\"a\":1}}", "LMB0509", "an object", "2:8+3"),
        ("{\"y\":1,\"v\":[1,null]}", "LMB0509", "invalid type: null", "2:"),
        ("{\"y\":1,\"y\":2,\"v\":[1,2]}", "LMB0509", "`y` stands twice", "2:"),
        ("{\"y\":1,\"v\":[1,2]} x", "LMB0509", "trailing", "2:19+1"),
        ("{\"y\":1,\"v\":[1,2],\"t\":\"\u{1}\"}", "LMB0509", "control character", "2:"),
    ] {
        let path = folder.file("a.jsonl", format!("{{\"y\":0,\"v\":[0,0]}}\n{line}\n"));
        let plan = DatasetPlan {
            label: Some(name("y")),
            tensors: named("v"),
            ..set(Format::Jsonl, &path)
        };
        let (problem, at) = one(folder.open(plan));
        assert_eq!(problem.code, code, "{line}: {problem:?}");
        assert!(problem.message.contains(part), "{line}: {problem:?}");
        assert!(at.starts_with(place), "{line}: {at}");
        assert_eq!(problem.context.as_deref().map(|c| c.starts_with("row 1")), Some(true));
    }
}

#[test]
fn deep_json_is_refused_without_a_crash() {
    let folder = Folder::new();
    let deep = "[".repeat(200_000);
    for line in [format!("{{\"v\":{deep}"), format!("{{\"other\":{deep}")] {
        let path = folder.file("a.jsonl", line);
        let (problem, _) =
            one(folder.open(DatasetPlan { tensors: named("v"), ..set(Format::Jsonl, &path) }));
        assert_eq!(problem.code, "LMB0509", "{problem:?}");
    }
}

#[test]
fn positions_make_no_sense_in_jsonl() {
    let folder = Folder::new();
    let path = folder.file("a.jsonl", "{}\n");
    let (problem, _) = one(
        folder.open(DatasetPlan { label: Some(Column::Index(0)), ..set(Format::Jsonl, &path) })
    );
    assert_eq!(problem.code, "LMB0517");
}

// ---- idx and npy

fn idx(kind: u8, dims: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(elements);
    bytes
}

#[test]
fn idx_images_and_labels_are_joined_by_row() {
    let folder = Folder::new();
    let images = folder.file("images", idx(8, &[3, 2, 2], &(0..12).collect::<Vec<u8>>()));
    folder.gz("labels.gz", idx(8, &[3], &[7, 8, 9]));
    let mut tensors = tensor(None);
    tensors.get_mut("x").unwrap().scale = 0.5;
    let plan = DatasetPlan { label: Some(name("labels.gz")), tensors, ..set(Format::Idx, &images) };
    let set = folder.open(DatasetPlan { limit: Some(2), ..plan.clone() }).unwrap();
    let batch = all(&set);
    assert_eq!(batch.columns["x"].shape(), [2, 2, 2]);
    assert_eq!(f32s(&batch, "x"), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
    assert_eq!(i64s(&batch, "labels"), [7, 8]);
    assert_eq!(set.hashes().len(), 2);
    folder.gz("labels.gz", idx(8, &[4], &[7, 8, 9, 1]));
    let (problem, _) = one(folder.open(plan));
    assert_eq!(problem.code, "LMB0514");
    assert!(problem.message.contains("`x` has 3, `labels` from `labels.gz` has 4"), "{problem:?}");
}

#[test]
fn headers_that_claim_too_much_are_refused_at_once() {
    let folder = Folder::new();
    let huge = u32::MAX;
    for (bytes, format) in [
        (idx(8, &[huge, huge, huge, huge], &[1]), Format::Idx),
        (idx(0x0e, &[huge, 256], &[1]), Format::Idx),
        (idx(8, &[3, 2], &[1, 2, 3, 4, 5]), Format::Idx),
        (idx(8, &[3, 2], &[1, 2, 3, 4, 5, 6, 7]), Format::Idx),
        (npy("<f4", "(1000000000000, 1000)", &[0; 16]), Format::Npy),
        (npy("<f8", "(18446744073709551615, 18446744073709551615)", &[0; 16]), Format::Npy),
    ] {
        let started = std::time::Instant::now();
        let path = folder.file("a", &bytes);
        let (problem, _) =
            one(folder.open(DatasetPlan { tensors: tensor(None), ..set(format, &path) }));
        assert_eq!(problem.code, "LMB0511", "{problem:?}");
        let path = folder.gz("a.gz", &bytes);
        let (problem, _) =
            one(folder.open(DatasetPlan { tensors: tensor(None), ..set(format, &path) }));
        assert_eq!(problem.code, "LMB0511", "{problem:?}");
        assert!(started.elapsed().as_secs() < 1);
    }
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn npy_of_each_type_and_byte_order_is_read() {
    let folder = Folder::new();
    let values = [1.0f64, -2.0, 3.0, 4.0];
    macro_rules! case {
        ($descr:literal, $type:ty, $to:ident) => {
            ($descr, values.iter().flat_map(|v| (*v as $type).$to()).collect::<Vec<u8>>())
        };
    }
    let halves = values.iter().flat_map(|v| half::f16::from_f64(*v).to_le_bytes()).collect();
    for (descr, data) in [
        case!("<f4", f32, to_le_bytes),
        case!(">f4", f32, to_be_bytes),
        case!("<f8", f64, to_le_bytes),
        case!(">i2", i16, to_be_bytes),
        case!("|i1", i8, to_le_bytes),
        case!("<i8", i64, to_le_bytes),
        case!(">i4", i32, to_be_bytes),
        ("<f2", halves),
    ] {
        let path = folder.file("x.npy", npy(descr, "(2, 2)", &data));
        folder.file("y.npy", npy("|u1", "(2,)", &[3, 4]));
        let plan = DatasetPlan {
            label: Some(name("y.npy")),
            tensors: tensor(None),
            ..set(Format::Npy, &path)
        };
        let batch = all(&folder.open(plan).unwrap());
        assert_eq!(f32s(&batch, "x"), [1.0, -2.0, 3.0, 4.0], "{descr}");
        assert_eq!(i64s(&batch, "labels"), [3, 4]);
    }
}

#[test]
fn nan_in_an_array_is_refused_with_its_row() {
    let folder = Folder::new();
    let data: Vec<u8> = [1.0f32, 2.0, 3.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let path = folder.file("x.npy", npy("<f4", "(2, 2)", &data));
    let (problem, _) =
        one(folder.open(DatasetPlan { tensors: tensor(None), ..set(Format::Npy, &path) }));
    assert!(
        problem.message.ends_with("x.npy: row 1, column 1: NaN is not a finite number"),
        "{problem:?}"
    );
    let path = folder.file("y.npy", npy("<i8", "(1,)", &(-7i64).to_le_bytes()));
    let (problem, _) =
        one(folder.open(DatasetPlan { label: Some(name("y.npy")), ..set(Format::Npy, &path) }));
    assert_eq!(problem.code, "LMB0507");
}

// ---- parquet

/// Writes a file: a list of columns of physical values with their levels.
fn parquet_file(
    path: &Path,
    schema: &str,
    columns: &mut dyn FnMut(usize, &mut ColumnWriter<'_>, usize),
    groups: usize,
) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for group in 0..groups {
        let mut rows = writer.next_row_group().unwrap();
        let mut column = 0;
        while let Some(mut out) = rows.next_column().unwrap() {
            columns(group, out.untyped(), column);
            out.close().unwrap();
            column += 1;
        }
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

const SCHEMA: &str = "message m {
    required int64 label;
    optional byte_array text (UTF8);
    required group v (LIST) { repeated group list { required float element; } }
    required double a;
    required int32 b;
}";

/// 3 rows a group: labels 0, 1, 2; lists of 2; `a` and `b` scalars. `null`: the second text is one.
fn sample(path: &Path, null: bool) {
    let mut write = |group: usize, out: &mut ColumnWriter<'_>, column: usize| {
        let base = group as i64 * 3;
        match (column, out) {
            (0, ColumnWriter::Int64ColumnWriter(w)) => {
                w.write_batch(&[base, base + 1, base + 2], None, None).unwrap()
            }
            (1, ColumnWriter::ByteArrayColumnWriter(w)) if null => w
                .write_batch(
                    &[ByteArray::from("one"), ByteArray::from("three")],
                    Some(&[1, 0, 1]),
                    None,
                )
                .unwrap(),
            (1, ColumnWriter::ByteArrayColumnWriter(w)) => {
                let texts = ["one", "two", "three"].map(ByteArray::from);
                w.write_batch(&texts, Some(&[1, 1, 1]), None).unwrap()
            }
            (2, ColumnWriter::FloatColumnWriter(w)) => {
                let values: Vec<f32> = (0..6).map(|i| (base * 2 + i) as f32).collect();
                w.write_batch(&values, Some(&[1; 6]), Some(&[0, 1, 0, 1, 0, 1])).unwrap()
            }
            (3, ColumnWriter::DoubleColumnWriter(w)) => {
                w.write_batch(&[0.5, 1.5, 2.5], None, None).unwrap()
            }
            (4, ColumnWriter::Int32ColumnWriter(w)) => {
                w.write_batch(&[10, 20, 30], None, None).unwrap()
            }
            (column, _) => panic!("column {column}"),
        };
    };
    parquet_file(path, SCHEMA, &mut write, 2);
}

#[test]
fn parquet_columns_lists_and_ranges_are_read_over_row_groups() {
    let folder = Folder::new();
    let path = folder.0.path().join("a.parquet");
    sample(&path, true);
    let plan = DatasetPlan {
        label: Some(name("label")),
        tensors: named("v"),
        ..set(Format::Parquet, &path)
    };
    let batch = all(&folder.open(plan.clone()).unwrap());
    assert_eq!(i64s(&batch, "labels"), [0, 1, 2, 3, 4, 5]);
    assert_eq!(f32s(&batch, "x"), (0..12).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(batch.columns["x"].shape(), [6, 2]);
    let batch =
        all(&folder.open(DatasetPlan { tensors: range(3, 4), limit: Some(4), ..plan }).unwrap());
    assert_eq!(f32s(&batch, "x"), [0.5, 10.0, 1.5, 20.0, 2.5, 30.0, 0.5, 10.0]);
}

#[test]
fn bad_parquet_columns_are_named() {
    let folder = Folder::new();
    let path = folder.0.path().join("a.parquet");
    sample(&path, true);
    let plan = set(Format::Parquet, &path);
    for (plan, code, part) in [
        (
            DatasetPlan { label: Some(name("lable")), ..plan.clone() },
            "LMB0505",
            "no column `lable`",
        ),
        (DatasetPlan { label: Some(Column::Index(5)), ..plan.clone() }, "LMB0505", "it has 5"),
        (DatasetPlan { tensors: tensor(None), ..plan.clone() }, "LMB0517", "must name a column"),
        (
            DatasetPlan { label: Some(name("a")), ..plan.clone() },
            "LMB0507",
            "row 0, column `a`: label 0.5 is no whole",
        ),
    ] {
        let problems = folder.open(plan).err().unwrap();
        assert_eq!(problems[0].code, code, "{problems:?}");
        assert!(problems[0].message.contains(part), "{problems:?}");
    }
    let text = TextColumns { column: name("text"), pair: None };
    let mut plan = folder.plan([DatasetPlan { text: Some(text), ..plan }]);
    plan.tokenizer = Some(tokenizer(&folder, 8, true));
    let (_, problems) = open_all(&plan);
    assert_eq!(problems[0].code, "LMB0518");
    assert!(
        problems[0].message.contains("row 1, column `text`: the value is null"),
        "{problems:?}"
    );
}

#[test]
fn damaged_parquet_files_are_refused_not_crashed_on() {
    let folder = Folder::new();
    let path = folder.0.path().join("a.parquet");
    sample(&path, false);
    let good = std::fs::read(&path).unwrap();
    let plan = DatasetPlan {
        label: Some(name("label")),
        tensors: named("v"),
        ..set(Format::Parquet, &path)
    };
    let cut = &good[..good.len() - 20];
    std::fs::write(&path, cut).unwrap();
    assert_eq!(one(folder.open(plan.clone())).0.code, "LMB0510");
    let mut refused = 0;
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        std::fs::write(&path, &bad).unwrap();
        refused += usize::from(folder.open(plan.clone()).is_err());
    }
    assert!(refused > 20, "{refused}");
}

// ---- text

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

fn text_set(folder: &Folder, pair: bool) -> DatasetPlan {
    let path = folder
        .file("t.csv", "text,pair,label\na b c d a b,d,0\n\"a, z\",c d,1\nb,a a a a a a a,0\n");
    let text = TextColumns { column: name("text"), pair: pair.then(|| name("pair")) };
    DatasetPlan { text: Some(text), label: Some(name("label")), ..set(Format::Csv, &path) }
}

fn open_text(
    folder: &Folder,
    dataset: DatasetPlan,
    tokenizer: TokenizerPlan,
) -> (Arc<Dataset>, Datasets) {
    let mut plan = folder.plan([dataset]);
    plan.tokenizer = Some(tokenizer);
    let (sets, problems) = open_all(&plan);
    assert_eq!(problems, []);
    (Arc::clone(sets.get("d").unwrap()), sets)
}

#[test]
fn stored_padding_and_truncation_are_not_used() {
    let folder = Folder::new();
    let (set, sets) = open_text(&folder, text_set(&folder, false), tokenizer(&folder, 16, true));
    let batch = set.gather(&[1, 2]);
    assert_eq!(batch.columns["input_ids"].shape(), [2, 5]);
    assert_eq!(i64s(&batch, "input_ids"), [0, 3, 2, 2, 1, 0, 4, 1, 9, 9]);
    assert_eq!(i64s(&batch, "attention_mask"), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(set.gather(&[0]).columns["input_ids"].shape(), [1, 8], "6 words are not cut to 5");
    assert!(!batch.columns.contains_key("token_type_ids"));
    let spec = set.columns().into_iter().find(|c| c.name == "input_ids").unwrap();
    assert_eq!((spec.dtype, spec.row_shape), (DType::I64, vec![-1]));
    assert_eq!(sets.encoder().unwrap().vocab_size(), 8);
}

#[test]
fn long_texts_are_cut_and_fixed_padding_fills_up() {
    let folder = Folder::new();
    let (set, _) = open_text(&folder, text_set(&folder, false), tokenizer(&folder, 4, false));
    let batch = all(&set);
    assert_eq!(i64s(&batch, "input_ids"), [0, 3, 4, 1, 0, 3, 2, 1, 0, 4, 1, 9]);
    let spec = set.columns().into_iter().find(|c| c.name == "attention_mask").unwrap();
    assert_eq!(spec.row_shape, [4]);
}

#[test]
fn pairs_have_segments() {
    let folder = Folder::new();
    let (set, _) = open_text(&folder, text_set(&folder, true), tokenizer(&folder, 7, true));
    let batch = set.gather(&[2, 1]);
    assert_eq!(i64s(&batch, "input_ids"), [0, 4, 1, 3, 3, 3, 1, 0, 3, 2, 1, 5, 6, 1]);
    assert_eq!(i64s(&batch, "token_type_ids"), [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn tokens_do_not_depend_on_filters() {
    let folder = Folder::new();
    let plan = DatasetPlan { classes: Some(vec![1]), ..text_set(&folder, false) };
    let (set, _) = open_text(&folder, plan, tokenizer(&folder, 16, true));
    assert_eq!(i64s(&all(&set), "input_ids"), [0, 3, 2, 2, 1]);
}

#[test]
fn bad_tokenizers_are_refused() {
    let folder = Folder::new();
    let good = tokenizer(&folder, 16, true);
    let fails = |plan: TokenizerPlan| {
        let mut whole = folder.plan([text_set(&folder, true)]);
        whole.tokenizer = Some(plan);
        open_all(&whole).1.into_iter().map(|p| p.code).collect::<Vec<_>>()
    };
    assert_eq!(fails(TokenizerPlan { max_length: 3, ..good.clone() }), ["LMB0516"]);
    assert_eq!(
        fails(TokenizerPlan { path: folder.0.path().join("none"), ..good.clone() }),
        ["LMB0501"]
    );
    let other = folder.file("other.json", "{\"model\": 3}");
    assert_eq!(fails(TokenizerPlan { path: other, ..good.clone() }), ["LMB0516"]);
    let (_, problems) = open_all(&folder.plan([text_set(&folder, false)]));
    assert_eq!(problems[0].code, "LMB0515");
}

#[test]
fn a_text_a_line_skips_blank_lines_and_refuses_bad_bytes() {
    let folder = Folder::new();
    let path = folder.file("t.txt", "a b\n\n  \r\nc\r\n");
    let (set, _) = open_text(&folder, set(Format::Text, &path), tokenizer(&folder, 16, true));
    assert_eq!(i64s(&all(&set), "input_ids"), [0, 3, 4, 1, 0, 5, 1, 9]);
    let path = folder.file("t.txt", b"a b\nc\xc3\xa9 \xff\n");
    let mut plan = folder.plan([super::tests::set(Format::Text, &path)]);
    plan.tokenizer = Some(tokenizer(&folder, 16, true));
    let (_, problems) = open_all(&plan);
    assert_eq!(problems[0].code, "LMB0504");
    let span = problems[0].span.as_ref().unwrap();
    assert_eq!((span.line, span.column), (2, 4));
}
