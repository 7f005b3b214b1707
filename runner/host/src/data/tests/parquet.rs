//! Parquet files.

use super::*;
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::ByteArray;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

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
