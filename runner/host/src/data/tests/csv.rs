//! CSV files.

use super::*;

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
        &sets.get("d").unwrap().table.numbers[0].values,
        &sets.get("held-out").unwrap().table.numbers[0].values
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
