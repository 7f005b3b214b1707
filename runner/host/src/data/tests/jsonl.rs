//! JSON Lines files.

use super::*;

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
